"""What stock Python says of the ONNX files that turbo-compile emits: `standard.py STANDARD CUSTOM RUNS`.

STANDARD and CUSTOM are folders of the two flavors of one model. RUNS holds a folder per stage with each input's
elements as `NAME.in`; each output's elements are written beside them as `NAME.out`. Nothing but the packages
`numpy`, `onnx` and `onnxruntime` is used, which is the point.
"""

import pathlib
import sys

import numpy
import onnx
import onnxruntime

NUMPY = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}


def nodes(graph):
    """All nodes, those of inner graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from nodes(inner)


def is_custom(domain):
    return domain not in ("", "ai.onnx")


def check_places(path, model):
    """External data lies in files below the model's folder, whole, one weight apart from the other."""
    folder = path.parent.resolve()
    spans = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = pathlib.PurePosixPath(place["location"])
        assert not location.is_absolute() and ".." not in location.parts, (path, tensor.name, location)
        data = (folder / location).resolve()
        assert data.is_relative_to(folder) and data.is_file(), (path, tensor.name, data)
        offset, length = int(place["offset"]), int(place["length"])
        elements = int(numpy.prod(tensor.dims, dtype=numpy.int64))
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        assert length == elements * size, (path, tensor.name, length)
        assert offset + length <= data.stat().st_size, (path, tensor.name, offset, length)
        spans.setdefault(data, []).append((offset, offset + length, tensor.name))
    assert spans, f"{path} has no external data"
    for data, inside in spans.items():
        inside.sort()
        for (_, end, a), (begin, _, b) in zip(inside, inside[1:]):
            assert end <= begin, (data, a, b)


def int8(model):
    return sum(t.data_type == onnx.TensorProto.INT8 for t in model.graph.initializer)


def load(path):
    model = onnx.load(path, load_external_data=False)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert opsets.get("", 0) >= 20, (path, opsets)
    assert not model.functions, path
    check_places(path, model)
    return model, opsets


def check_standard(path):
    model, opsets = load(path)
    onnx.checker.check_model(path, full_check=True)
    custom = {node.domain for node in nodes(model.graph) if is_custom(node.domain)}
    assert not custom and not any(map(is_custom, opsets)), (path, custom, opsets)
    return model


def check_custom(path):
    model, opsets = load(path)
    onnx.checker.check_model(path)
    count = 0
    for node in nodes(model.graph):
        if not is_custom(node.domain):
            continue
        count += 1
        assert node.domain in opsets, (path, node.domain, opsets)
        said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for name in ("plugin_version", "plugin_namespace"):
            assert isinstance(said.get(name), bytes) and said[name], (path, node.name, name, said)
        assert said["plugin_namespace"].decode() == node.domain, (path, node.name, said)
    return model, count


def run(path, folder):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {}
    for given in session.get_inputs():
        elements = numpy.fromfile(folder / f"{given.name}.in", NUMPY[given.type])
        feeds[given.name] = elements.reshape(given.shape)
    for declared, found in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert list(found.shape) == declared.shape, (path, declared.name, declared.shape, found.shape)
        assert found.dtype == NUMPY[declared.type], (path, declared.name, declared.type, found.dtype)
        found.tofile(folder / f"{declared.name}.out")


def main():
    standard, custom, runs = map(pathlib.Path, sys.argv[1:])
    paths = sorted(standard.rglob("*.onnx"))
    names = [path.relative_to(standard) for path in paths]
    assert names and names == sorted(p.relative_to(custom) for p in custom.rglob("*.onnx")), names
    for path, name in zip(paths, names):
        with_ops, ops = check_custom(custom / name)
        plain = check_standard(path)
        assert int8(plain) == int8(with_ops), (name, int8(plain), int8(with_ops))
        run(path, runs / name.stem)
        print(f"{name.stem}: {ops} custom nodes, {int8(with_ops)} INT8 weights")


main()
