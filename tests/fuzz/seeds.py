#!/usr/bin/env python3
"""Writes seeds/<target>/: `python3 seeds.py`, standard library only, the same bytes on every run.

Files whose names begin with `bad_` must be refused, all others accepted; tests/seeds.rs checks it. The pickles
come from CPython's own pickler, fed with stand-ins for the torch classes, so they are laid out as torch's are.
"""

import collections
import hashlib
import io
import json
import pathlib
import pickle
import shutil
import struct
import sys
import types
import zipfile
import zlib

SEEDS = pathlib.Path(__file__).parent / "seeds"


def save(target, name, data):
    path = SEEDS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# safetensors_header


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, str) else json.dumps(header, separators=(",", ":"))
    text = text.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_safetensors():
    def put(name, *args, **kw):
        save("safetensors_header", name, safetensors(*args, **kw))

    put("empty", {})
    put("two", {"__metadata__": {"format": "pt"}, "b.weight": entry("F32", [2], 0, 8), "a": entry("BF16", [3, 1], 8, 14)}, bytes(14))
    put("scalars", {"s": entry("F64", [], 0, 8), "e": entry("I8", [0, 5], 8, 8), "q": entry("F8_E4M3", [1], 8, 9)}, bytes(9))
    put("escapes", '{"\\u00e9\\"\\\\": {"shape": [1], "dtype": "BOOL", "data_offsets": [0, 1]}}  ', b"\1")
    put("bad_unknown", {"a": {**entry("U8", [1], 0, 1), "more": [None, 1.5e3]}}, bytes(1))
    put("bad_overlap", {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 3, 7)}, bytes(7))
    put("bad_hole", {"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, bytes(3))
    put("bad_trailing", {"a": entry("I16", [1], 0, 2)}, bytes(3))
    put("bad_truncated", {"a": entry("I32", [4], 0, 16)}, bytes(15))
    put("bad_overflow", {"a": entry("I64", [2**32, 2**32], 0, 8)}, bytes(8))
    put("bad_twice", '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')
    put("bad_length", {}, length=2**63)


# torch_pickle and torch_zip


def stand_in(module, name, kind=type):
    """A class or function that pickles by this name."""
    if kind is type:
        made = type(name, (), {"__module__": module})
    else:
        made = lambda *args: None  # noqa: E731
        made.__module__, made.__qualname__, made.__name__ = module, name, name
    target = sys.modules.setdefault(module, types.ModuleType(module))
    setattr(target, name, made)
    return made


V2 = stand_in("torch._utils", "_rebuild_tensor_v2", "function")
V3 = stand_in("torch._utils", "_rebuild_tensor_v3", "function")
PARAMETER = stand_in("torch._utils", "_rebuild_parameter", "function")
UNTYPED = stand_in("torch.storage", "UntypedStorage")
FLOAT = stand_in("torch", "FloatStorage")
BRAIN = stand_in("torch", "BFloat16Storage")
LONG = stand_in("torch", "LongStorage")


class Named:
    """A value that pickles as a name, as torch's dtypes do."""

    __module__ = "torch"

    def __reduce__(self):
        return "float8_e4m3fn"


FP8 = sys.modules["torch"].float8_e4m3fn = Named()


class Storage:
    def __init__(self, kind, key, numel):
        self.id = ("storage", kind, key, "cpu", numel)


class Tensor:
    def __init__(self, storage, shape, stride, offset=0, dtype=None):
        self.args = (storage, offset, shape, stride, False, collections.OrderedDict())
        self.dtype = dtype

    def __reduce_ex__(self, protocol):
        return (V2, self.args) if self.dtype is None else (V3, (*self.args, self.dtype))


class Parameter:
    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return PARAMETER, (self.data, True, collections.OrderedDict())


def dump(value, protocol=2):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.id if isinstance(value, Storage) else None

    out = io.BytesIO()
    Pickler(out, protocol).dump(value)
    return out.getvalue()


def torch_values():
    one = Storage(FLOAT, "0", 6)
    state_dict = collections.OrderedDict(
        [("a.weight", Tensor(one, (2, 3), (3, 1))), ("a.bias", Tensor(one, (3,), (1,), 3)), ("t", Tensor(one, (3, 2), (1, 3)))]
    )
    state_dict._metadata = collections.OrderedDict([("", {"version": 1})])
    yield "state_dict", state_dict, {"0": bytes(24)}
    nested = {
        "epoch": 3,
        "lr": 0.5,
        "big": 1 << 80,
        "note": "é",
        "none": None,
        "state_dict": {"net": {0: Parameter(Tensor(Storage(BRAIN, "7", 1), (), ()))}},
        "optimizer": [(True, 2.5), {"step": -1}, {"m": Tensor(Storage(LONG, "8", 300), (300,), (1,))}],
    }
    yield "nested", nested, {"7": bytes(2), "8": bytes(2400)}
    yield "fp8", {"w": Tensor(Storage(UNTYPED, "0", 4), (2, 2), (2, 1), 0, FP8)}, {"0": bytes(4)}


def torch_zip(pickled, storages, order=b"little", compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        entries = {"data.pkl": pickled, "byteorder": order, **{f"data/{k}": v for k, v in storages.items()}, "version": b"3\n"}
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f"m/{name}"), data, compression)
    return out.getvalue()


def write_torch():
    for name, value, storages in torch_values():
        for protocol in (2, 4) if name != "fp8" else (2,):
            save("torch_pickle", f"{name}_{protocol}", dump(value, protocol))
        if name != "nested":
            save("torch_zip", name, torch_zip(dump(value), storages))
    fp8 = dump({"w": Tensor(Storage(UNTYPED, "0", 4), (4,), (1,), 0, FP8)})
    save("torch_zip", "bad_order", torch_zip(fp8, {"0": bytes(4)}, b"big"))
    save("torch_zip", "bad_storage", torch_zip(fp8, {"0": bytes(5)}))
    save("torch_zip", "bad_compressed", torch_zip(fp8, {"0": bytes(4)}, compression=zipfile.ZIP_DEFLATED))
    save("torch_pickle", "bad_call", b"\x80\x02cos\nsystem\nX\x04\0\0\0echo\x85R.")
    save("torch_pickle", "bad_stack_call", b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x04echo\x94\x85\x94R.")
    save("torch_pickle", "bad_text", b"(dp0\nS'a'\nI1\ns.")
    save("torch_pickle", "bad_cycle", b"\x80\x02}q\x00X\x01\0\0\0ah\x00s.")
    save("torch_pickle", "bad_stride", dump({"w": Tensor(Storage(FLOAT, "0", 6), (2, 3), (4, 1))}))
    save("torch_pickle", "bad_expanded", dump({"w": Tensor(Storage(FLOAT, "0", 6), (1 << 40, 2), (0, 1))}))


# manifest and engine_zip

GRAPH = "graphs/dit.onnx"


VIDEO = {
    "width": 16, "height": 32, "frames": 5, "fps": 16, "vae_stride": [4, 8, 8], "latent": [1, 2, 4, 2],
    "tokens": 4, "latent_mean": [-0.5], "latent_std": [2.25],
}


def manifest(content, **changes):
    made = {
        "schema": 2,
        "created_by": {"name": "turbo-compile", "version": "0.1.0"},
        "backend": {"kind": "onnxruntime-cpu", "min_version": "1.22"},
        "ops": [],
        "recipe": {"attention": {"kind": "dense"}, "linear": "bf16"},
        "model": {
            "family": "wan2.1-t2v", "dim": 8, "heads": 2, "layers": 1, "ffn_dim": 8, "in_channels": 1,
            "out_channels": 1, "text_dim": 4, "text_len": 8, "parameters": 100,
        },
        "videos": [VIDEO],
        "sampling": {"steps": 4, "sigma_max": 80.0, "sampler": "sde"},
        "tokenizer": {"entry": GRAPH, "pad_id": 0},
        "stages": [
            {
                "name": "dit", "graph": GRAPH, "weights": [], "inputs": [],
                "outputs": [{"name": "v", "dtype": "f32", "shape": [1, 1, 2, 4, 2]}], "state": [],
            }
        ],
        "experts": {"high": {"context": "dit", "steps": ["dit"]}},
        "entries": [{"path": GRAPH, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}],
        "sources": [],
    }
    made.update(changes)
    return json.dumps(made, separators=(",", ":")).encode()


def engine_zip(entries):
    """Stored entries whose data begins at multiples of 4096, padded by an extra field, then the directory."""
    file, directory = b"", b""
    for name, data in entries:
        name = name.encode()
        padding = -(len(file) + 30 + len(name) + 6) % 4096
        fixed = struct.pack("<HHHHHIIIH", 10, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name))
        directory += b"PK\1\2" + struct.pack("<H", 0x32D) + fixed + struct.pack("<HHHHII", 0, 0, 0, 0, 0o100644 << 16, len(file)) + name
        extra = struct.pack("<HHH", 0xA11E, 2 + padding, 4096) + bytes(padding)
        file += b"PK\3\4" + fixed + struct.pack("<H", len(extra)) + name + extra + data
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(file), 0)
    return file + directory + b"PK\5\6" + end


def write_engine():
    content = b"graph"
    plain = manifest(content)
    sla = {"kind": "sagesla", "topk": 0.5, "block_q": 64, "block_k": 64, "pv": "fp8"}
    step = {"name": "a", "graph": GRAPH, "weights": [GRAPH], "peak_memory_bytes": 9}
    tensor = {"dtype": "bf16", "shape": [2, 3]}
    stages = [
        {
            **step, "name": name, "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}],
            "state": [{"name": "s", "input": "i", "output": "o", **tensor}],
        }
        for name in ("a", "b")
    ]
    # One frame beside five, and the second stage once for each.
    short = {"frames": 1, "latent": [1, 1, 4, 2], "tokens": 2}
    stages[1:] = [{**stages[1], "video": video} for video in (0, 1)]
    full = {
        "recipe": {"attention": sla, "linear": "w8a8"},
        "videos": [{**VIDEO, "keep_blocks": 1}, {**VIDEO, **short, "keep_blocks": 1}],
        "ops": [{"name": "TurboSageSla", "version": "1"}],
        "stages": stages,
        "experts": {"high": {"context": "a", "steps": ["a"]}, "low": {"steps": ["b"], "context": "a"}},
        "sampling": {"steps": 1, "sigma_max": 200.5, "sampler": "ode", "boundary": 0.9},
        "sources": [{"name": "m.pth", "bytes": 7, "sha256": "0" * 64}],
        "licence": "Apache-2.0",
    }
    save("manifest", "plain", plain)
    save("manifest", "full", manifest(content, **full))
    save("manifest", "bad_newer", b'{"schema":3,"created_by":{"name":"turbo-compile","version":"9"},"new":[]}')
    save("manifest", "bad_older", b'{"schema":0}')
    save("manifest", "bad_unknown", manifest(content, extra=1))
    save("manifest", "bad_video", manifest(content, videos=[VIDEO, VIDEO]))
    save("manifest", "bad_path", manifest(content, tokenizer={"entry": "../x", "pad_id": 0}))
    save("manifest", "bad_steps", manifest(content, sampling={"steps": 9, "sigma_max": 80.0, "sampler": "sde"}))
    save("manifest", "bad_syntax", plain[:200])

    good = [(GRAPH, content), ("manifest.json", plain)]
    save("engine_zip", "plain", engine_zip(good))
    save("engine_zip", "bad_truncated", engine_zip(good)[:-100])
    save("engine_zip", "bad_traversal", engine_zip([("../dit.onnx", b""), *good]))
    save("engine_zip", "bad_twice", engine_zip([(GRAPH, b"other"), *good]))
    save("engine_zip", "bad_no_manifest", engine_zip(good[:1]))
    save("engine_zip", "bad_crc", engine_zip(good).replace(b'"schema":2', b'"schema":7'))


if __name__ == "__main__":
    shutil.rmtree(SEEDS, ignore_errors=True)
    write_safetensors()
    write_torch()
    write_engine()
    for folder in sorted(SEEDS.iterdir()):
        sizes = [path.stat().st_size for path in folder.iterdir()]
        print(f"{folder.name}: {len(sizes)} files, {min(sizes)} to {max(sizes)} bytes")
