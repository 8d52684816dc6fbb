use super::*;

struct At(u64);

impl WeightPlaces for At {
    fn place(&self, name: &str) -> Option<Place> {
        (name == "w").then(|| Place { location: "w.bin".to_string(), offset: 8, length: self.0 })
    }
}

fn small() -> Graph {
    let mut g = Graph::new("small");
    let x = g.input("x", DType::F32, &[2, 4]);
    let w = g.weight("w", DType::F32, &[3, 4]);
    let y = g.gemm(x, w, None);
    let y = g.add_scalar(y, 1.0);
    g.output("y", y);
    g.finish().unwrap()
}

#[test]
fn weights_are_external_and_constants_inside() {
    let bytes = encode(&small(), &At(48)).unwrap();
    let model = Model::decode(&bytes[..]).unwrap();
    let graph = model.graph.unwrap();
    let external = graph.initializer.iter().find(|t| t.name == "w").unwrap();
    let keys: Vec<&str> = external.external_data.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(keys, ["location", "offset", "length"]);
    assert!(graph.initializer.iter().filter(|t| t.name != "w").all(|t| t.raw_data.is_some()));
    assert_eq!(graph.node.iter().map(|n| n.op_type.as_str()).collect::<Vec<_>>(), ["Gemm", "Add"]);
    assert_eq!(graph.output[0].name, "y");
}

#[test]
fn weights_can_be_inputs() {
    let bytes = encode_with_weight_inputs(&small()).unwrap();
    let graph = Model::decode(&bytes[..]).unwrap().graph.unwrap();
    assert_eq!(graph.input.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["x", "w"]);
    assert!(graph.initializer.iter().all(|t| t.raw_data.is_some() && t.name != "w"));
}

#[test]
fn what_depends_on_weights_alone_comes_first() {
    let mut g = Graph::new("casts");
    let mut x = g.input("x", DType::F32, &[1, 4]);
    for name in ["w", "v"] {
        let w = g.weight(name, DType::Bf16, &[4, 4]);
        let w = g.cast(w, DType::F32);
        let w = g.transpose(w, &[1, 0]);
        x = g.matmul(x, w);
    }
    g.output("y", x);
    let bytes = encode_with_weight_inputs(&g.finish().unwrap()).unwrap();
    let graph = Model::decode(&bytes[..]).unwrap().graph.unwrap();
    let ops: Vec<&str> = graph.node.iter().map(|n| n.op_type.as_str()).collect();
    assert_eq!(ops, ["Cast", "Transpose", "Cast", "Transpose", "MatMul", "MatMul"]);
}

#[test]
fn the_same_graph_gives_the_same_bytes() {
    assert_eq!(encode(&small(), &At(48)).unwrap(), encode(&small(), &At(48)).unwrap());
}

struct Fixed(Place);

impl WeightPlaces for Fixed {
    fn place(&self, _: &str) -> Option<Place> {
        Some(self.0.clone())
    }
}

#[test]
fn every_value_has_a_type_once() {
    let bytes = encode(&small(), &At(48)).unwrap();
    let graph = Model::decode(&bytes[..]).unwrap().graph.unwrap();
    let infos = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
    let mut names: Vec<&str> = infos.map(|i| i.name.as_str()).collect();
    names.extend(graph.initializer.iter().map(|t| t.name.as_str()));
    let mut expected: Vec<String> = {
        let g = small();
        g.values().map(|v| g.value_name(v).to_string()).collect()
    };
    names.sort_unstable();
    expected.sort();
    assert_eq!(names, expected);
}

#[test]
fn locations_outside_the_folder_are_refused() {
    for location in ["/w.bin", "../w.bin", "a/../w.bin", "", "a//b", "C:/w.bin", "a\\b", "./w.bin"] {
        let place = Place { location: location.to_string(), offset: 0, length: 48 };
        let error = encode(&small(), &Fixed(place)).unwrap_err();
        assert!(matches!(error, OnnxError::Location { .. }), "{location}: {error}");
    }
    let place = Place { location: "weights/w.safetensors".to_string(), offset: 0, length: 48 };
    assert!(encode(&small(), &Fixed(place)).is_ok());
}

#[test]
fn an_offset_beyond_63_bits_is_refused() {
    let place = Place { location: "w".to_string(), offset: i64::MAX as u64 - 47, length: 48 };
    assert!(matches!(encode(&small(), &Fixed(place)).unwrap_err(), OnnxError::Offset { .. }));
}

#[test]
fn a_shape_beyond_63_bits_is_refused() {
    let mut g = Graph::new("huge");
    let x = g.input("x", DType::F32, &[usize::MAX / 2, 3]);
    let y = g.node("turbo", "TurboNothing", &[Some(x)], vec![], &[(DType::F32, vec![1])]);
    g.output("y", y[0]);
    let error = encode(&g.finish().unwrap(), &At(0)).unwrap_err();
    assert!(matches!(error, OnnxError::Shape { .. }), "{error}");
}

#[test]
fn a_weight_without_a_place_is_refused() {
    let mut g = Graph::new("g");
    let w = g.weight("v", DType::F32, &[4]);
    g.output("y", w);
    let error = encode(&g.finish().unwrap(), &At(16)).unwrap_err();
    assert_eq!(error.to_string(), "weight v is stored nowhere");
}

#[test]
fn a_graph_beyond_the_limit_is_refused() {
    let length = encode(&small(), &At(48)).unwrap().len();
    assert!(encode_within(&small(), Some(&At(48)), length).is_ok());
    assert_eq!(encode_within(&small(), Some(&At(48)), length - 1).unwrap_err(), OnnxError::TooLarge(length));
}

#[test]
fn a_place_of_another_size_is_refused() {
    let error = encode(&small(), &At(47)).unwrap_err().to_string();
    assert_eq!(error, "weight w takes 48 bytes, its place has 47");
}
