//! The sampler against trajectories of the reference, and the CUDA noise against draws of torch on a GPU.
//!
//! `TURBO_GOLDEN` and `TURBO_GOLDEN_GPU` name the folders; by default the subset kept in this repository is used,
//! and files it lacks are skipped.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use turbo_sampler::{
    CudaGeometry, Expert, FileNoise, NoiseKind, NoiseSource, initial, ode_step, schedule, sde_step,
};

struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    /// The file, or `None` where the repository's subset lacks it.
    fn open(variable: &str, default: &str, name: &str) -> Option<Self> {
        let (folder, chosen) = match std::env::var_os(variable) {
            Some(folder) => (PathBuf::from(folder), true),
            None => (Path::new(env!("CARGO_MANIFEST_DIR")).join(default), false),
        };
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Some(Self { path, bytes }),
            Err(error) if chosen => panic!("{}: {error}", path.display()),
            Err(_) => {
                println!("skipped: {} is not there", path.display());
                None
            }
        }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    fn header(&self, key: &str) -> Option<String> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        metadata.metadata().as_ref()?.get(key).cloned()
    }

    fn f64s(&self, name: &str) -> Option<Vec<f64>> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).ok()?;
        let data = view.data();
        Some(match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
            Dtype::F64 => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            Dtype::I32 => data.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect(),
            other => panic!("{name}: {other:?}"),
        })
    }

    fn f32s(&self, name: &str) -> Option<Vec<f32>> {
        Some(self.f64s(name)?.into_iter().map(|x| x as f32).collect())
    }
}

fn max_abs(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// `sde_s80_n4.` -> 80; trajectories without it take the file's header.
fn sigma_max(golden: &Golden, prefix: &str) -> f64 {
    let named = prefix.split(['_', '.']).find_map(|part| part.strip_prefix('s')?.parse().ok());
    named.unwrap_or_else(|| golden.header("sigma_max").expect("sigma_max").parse().expect("a number"))
}

/// Checks every trajectory of a file; says how many, and how many of them step by step.
fn check_trajectories(golden: &Golden) -> (usize, usize) {
    let names: Vec<String> = golden.tensors().names().into_iter().map(str::to_owned).collect();
    let boundary = golden.header("boundary").map(|text| text.parse().expect("a number"));
    let (mut all, mut stepped) = (0, 0);
    for prefix in names.iter().filter_map(|name| name.strip_suffix("t_steps")) {
        let tensor = |name: &str| golden.f64s(&format!("{prefix}{name}"));
        let times = tensor("t_steps").unwrap();
        let steps = times.len() - 1;
        let plan = schedule(steps, sigma_max(golden, prefix)).unwrap();
        assert_eq!(plan.times, times, "{prefix}");
        all += 1;

        let rounded = prefix.contains("bf16io");
        let timesteps = if rounded { &plan.deployed_timesteps } else { &plan.timesteps };
        assert_eq!(timesteps[..], golden.f32s(&format!("{prefix}timesteps")).expect("timesteps"), "{prefix}");
        let expert: Vec<f64> =
            (0..steps).map(|i| f64::from(plan.expert(i, boundary) == Expert::Low)).collect();
        assert_eq!(expert, tensor("expert").expect("expert"), "{prefix}");

        let mut noise = FileNoise::open(&golden.path).unwrap();
        let first = golden.f32s("noise_init").unwrap();
        let mut x = initial(&noise.draw(first.len()).unwrap(), plan.times[0]);
        // Pipeline files keep the states of their main trajectory only.
        let Some(start) = tensor("x0") else { continue };
        assert!(max_abs(start, x.iter().copied()) <= 1e-6, "{prefix}x0");
        for i in 0..steps {
            let Some(v) = golden.f32s(&format!("{prefix}v{i}")) else { break };
            let (t, t_next) = (plan.times[i], plan.times[i + 1]);
            if prefix.contains("ode") {
                ode_step(&mut x, &v, t, t_next).unwrap();
            } else {
                sde_step(&mut x, &v, t, t_next, &noise.draw(v.len()).unwrap()).unwrap();
            }
            let expected = tensor(&format!("x{}", i + 1)).expect("x");
            assert_eq!(expected.len(), x.len());
            let error = max_abs(expected, x.iter().copied());
            assert!(error <= 1e-6, "{prefix}x{}: {error:e}", i + 1);
            stepped += usize::from(i + 1 == steps);
        }
    }
    (all, stepped)
}

fn check_file(name: &str) {
    if let Some(golden) = Golden::open("TURBO_GOLDEN", "../../tests/golden", name) {
        let (all, stepped) = check_trajectories(&golden);
        println!("{name}: {all} schedules, {stepped} trajectories step by step");
        assert!(all > 0 && stepped > 0, "{name} holds nothing to check");
    }
}

#[test]
fn golden_sampler_t2v() {
    check_file("sampler_t2v.safetensors");
}

#[test]
fn golden_sampler_i2v() {
    check_file("sampler_i2v.safetensors");
}

#[test]
fn golden_e2e_t2v_trajectory() {
    check_file("e2e_t2v.safetensors");
}

#[test]
fn golden_e2e_i2v_trajectory() {
    check_file("e2e_i2v.safetensors");
}

#[test]
fn golden_philox() {
    let Some(golden) = Golden::open("TURBO_GOLDEN_GPU", "../../tests/golden/gpu", "philox.safetensors")
    else {
        return;
    };
    let header = |key: &str| -> Value { serde_json::from_str(&golden.header(key).unwrap()).unwrap() };
    let device = header("device");
    let count = |key: &str| u32::try_from(device[key].as_u64().unwrap()).unwrap();
    let gpu =
        CudaGeometry::new(count("multi_processor_count"), count("max_threads_per_multi_processor")).unwrap();

    let mut cases: Vec<String> =
        golden.tensors().names().iter().filter_map(|n| Some(n.split_once(".draw")?.0.to_owned())).collect();
    cases.sort();
    cases.dedup();
    let (mut draws, mut worst) = (0, 0.0f64);
    for case in &cases {
        let facts = header(case);
        let n = facts["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).product();
        let mut noise = NoiseKind::TorchCuda(gpu).source(facts["seed"].as_u64().unwrap()).unwrap();
        for (i, facts) in facts["draws"].as_array().unwrap().iter().enumerate() {
            let ours = noise.draw(n).unwrap();
            let error = match golden.f64s(&format!("{case}.draw{i}")) {
                Some(whole) => {
                    assert_eq!(whole.len(), n);
                    max_abs(whole, ours.iter().map(|&x| x.into()))
                }
                None => {
                    let at = golden.f64s(&format!("{case}.draw{i}.index")).expect("index");
                    let values = golden.f64s(&format!("{case}.draw{i}.value")).expect("value");
                    max_abs(values, at.iter().map(|&at| ours[at as usize].into()))
                }
            };
            assert!(error <= 5e-6, "{case}.draw{i}: {error:e}");
            // The sum speaks for the positions that are not stored.
            let sum: f64 = ours.iter().map(|&x| f64::from(x)).sum();
            let expected = facts["sum_f64"].as_f64().unwrap();
            assert!(
                (sum - expected).abs() <= 1e-7 * n as f64,
                "{case}.draw{i}: sum {sum}, expected {expected}"
            );
            worst = worst.max(error);
            draws += 1;
        }
    }
    println!("{draws} draws of {} cases, largest difference {worst:e}", cases.len());
    assert!(draws > 0);
}
