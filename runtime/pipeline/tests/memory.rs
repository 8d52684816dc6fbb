//! Weights are read where they are mapped.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use turbo_graph::{DType, Graph};
use turbo_onnx::{Place, WeightPlaces, encode};
use turbo_pipeline::backend::*;

fn field(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let rest = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    rest.trim().strip_suffix("kB").unwrap().trim().parse::<f64>().unwrap() / 1024.0
}
fn show(what: &str) {
    println!("{what:30} anon {:8.1} file {:8.1} hwm {:8.1}", field("RssAnon:"), field("RssFile:"), field("VmHWM:"));
}
struct At(usize);
impl WeightPlaces for At {
    fn place(&self, name: &str) -> Option<Place> {
        let i: u64 = name.strip_prefix('w')?.parse().ok()?;
        Some(Place { location: "w.bin".into(), offset: i * self.0 as u64, length: self.0 as u64 })
    }
}
#[test]
fn experiment() {
    let n = 4096;
    let kind = std::env::var("KIND").unwrap_or("bf16".into());
    let runtime = init(None, None).unwrap();
    let count: usize = 32;
    let (mut g, size) = (Graph::new("g"), if kind == "i8" { n * n } else { 2 * n * n });
    let mut x = g.input("x", DType::F32, &[4, n]);
    let mut u = x;
    if kind == "i8" { u = g.cast(x, DType::U8); }
    let mut acc = None;
    for i in 0..count {
        match kind.as_str() {
            "i8" => {
                let w = g.weight(&format!("w{i}"), DType::I8, &[n, n]);
                let y = g.node("", "MatMulInteger", &[Some(u), Some(w)], vec![], &[(DType::I32, vec![4, n])])[0];
                acc = Some(match acc { Some(a) => g.add(a, y), None => y });
            }
            _ => {
                let w = g.weight(&format!("w{i}"), DType::Bf16, &[n, n]);
                let w = g.cast(w, DType::F32);
                x = g.gemm(x, w, None);
                acc = Some(x);
            }
        }
    }
    g.output("y", acc.unwrap());
    let bytes = encode(&g.finish().unwrap(), &At(size)).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len((count * size) as u64).unwrap();
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    show("mapped");
    let weights: Vec<(String, Bytes)> = vec![("w.bin".into(), Arc::new(map))];
    let t = std::time::Instant::now();
    let mut session =
        Session::load(&runtime, Options { stage: "s", graph: &bytes, weights, cancelled: Arc::new(AtomicBool::new(false)) }).unwrap();
    show("loaded");
    println!("{:?}", t.elapsed());
    let x = Tensor::f32(vec![4, n], vec![0.5; 4 * n]);
    for _ in 0..3 {
        let t = std::time::Instant::now();
        session.run(&[("x", &x)]).unwrap();
        show("ran");
        println!("{:?}", t.elapsed());
    }
    drop(session);
    show("dropped");
}
