//! Weights are read where they are mapped.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use turbo_graph::{DType, Graph};
use turbo_onnx::encode_with_weight_inputs;
use turbo_pipeline::backend::*;

fn field(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let rest = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    rest.trim().strip_suffix("kB").unwrap().trim().parse::<f64>().unwrap() / 1024.0
}
fn show(what: &str) {
    println!(
        "{what:30} anon {:8.1} file {:8.1} hwm {:8.1}",
        field("RssAnon:"),
        field("RssFile:"),
        field("VmHWM:")
    );
}

fn weights_file(dtype: &str, count: usize, n: usize, size: usize) -> memmap2::Mmap {
    let entries: Vec<String> = (0..count)
        .map(|i| {
            format!(
                "\"w{i}\":{{\"dtype\":\"{dtype}\",\"shape\":[{n},{n}],\"data_offsets\":[{},{}]}}",
                i * size,
                (i + 1) * size
            )
        })
        .collect();
    let mut header = format!("{{{}}}", entries.join(","));
    while (header.len() + 8) % 64 != 0 {
        header.push(' ');
    }
    let mut file = tempfile::tempfile().unwrap();
    use std::io::Write;
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + count * size) as u64).unwrap();
    unsafe { memmap2::Mmap::map(&file) }.unwrap()
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
    if kind == "i8" {
        u = g.cast(x, DType::U8);
    }
    let mut acc = None;
    for i in 0..count {
        match kind.as_str() {
            "i8" => {
                let w = g.weight(&format!("w{i}"), DType::I8, &[n, n]);
                let y =
                    g.node("", "MatMulInteger", &[Some(u), Some(w)], vec![], &[(DType::I32, vec![4, n])])[0];
                acc = Some(match acc {
                    Some(a) => g.add(a, y),
                    None => y,
                });
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
    let bytes = encode_with_weight_inputs(&g.finish().unwrap()).unwrap();
    let map = weights_file(if kind == "i8" { "I8" } else { "BF16" }, count, n, size);
    show("mapped");
    let weights: Vec<(String, Bytes)> = vec![("w.bin".into(), Arc::new(map))];
    let t = std::time::Instant::now();
    let mut session = Session::load(
        &runtime,
        Options { stage: "s", graph: &bytes, weights, cancelled: Arc::new(AtomicBool::new(false)) },
    )
    .unwrap();
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

#[test]
fn vae_like() {
    let runtime = init(None, None).unwrap();
    let c = 96;
    let mut g = Graph::new("g");
    let mut x = g.input("x", DType::F32, &[1, c, 4, 112, 208]);
    let mut w = Vec::new();
    for i in 0..6 {
        let y = g.silu(x);
        let sq = g.mul(y, y);
        let m = g.reduce_sum(sq, &[1]);
        let m = g.sqrt(m);
        let m = g.add_scalar(m, 1e-3);
        let y = g.div(y, m);
        let y = g.pad(y, &[(0, 0), (0, 0), (2, 0), (0, 0), (0, 0)], 0.0);
        let k = g.input(&format!("k{i}"), DType::F32, &[c, c, 3, 3, 3]);
        let y = g.conv(y, k, None, &[1, 1, 1], &[(0, 0), (1, 1), (1, 1)]);
        x = g.add(x, y);
        w.push(Tensor::f32(vec![c, c, 3, 3, 3], vec![0.001; c * c * 27]));
    }
    g.output("y", x);
    let bytes = encode_with_weight_inputs(&g.finish().unwrap()).unwrap();
    let mut session =
        Session::load(&runtime, Options { stage: "s", graph: &bytes, weights: vec![], cancelled: Arc::new(AtomicBool::new(false)) }).unwrap();
    let x = Tensor::f32(vec![1, c, 4, 112, 208], vec![0.5; c * 4 * 112 * 208]);
    let names: Vec<String> = (0..6).map(|i| format!("k{i}")).collect();
    show("start");
    for _ in 0..4 {
        let mut inputs = vec![("x", &x)];
        inputs.extend(names.iter().map(|n| n.as_str()).zip(&w));
        let t = std::time::Instant::now();
        session.run(&inputs).unwrap();
        show("ran");
        println!("{:?}", t.elapsed());
    }
}
