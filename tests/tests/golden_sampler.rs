//! Whole trajectories of the sampler with our own network: the velocity of every step comes from the emitted graph.

use turbo_models::Params;
use turbo_models::dit::{self, Attention, Config, LatentSize, Linear, Recipe};
use turbo_pipeline::backend::{Session, Tensor};
use turbo_sampler::{Expert, FileNoise, NoiseSource, initial, ode_step, schedule, sde_step, time_embedding};
use turbo_tests::vectors::{Compiled, Family, Vectors, file, run, runtime};

/// The network's two graphs, loaded, with what the text side gave.
struct Network {
    session: Session,
    text: Vec<(String, Tensor)>,
    freq_dim: usize,
}

impl Network {
    fn new(checkpoint: &str, latent: &[usize], context: &Tensor) -> Option<Network> {
        let (path, runtime) = (file(checkpoint)?, runtime()?);
        let dit = Compiled::open(&path, Linear::Bf16);
        let config = Config::read(dit.network, None).unwrap();
        let recipe = Recipe { attention: Attention::Dense, linear: Linear::Bf16, ..Recipe::default() };
        let params = Params::new(&dit.stored, turbo_graph::DType::F32);
        let size = LatentSize { frames: latent[2], height: latent[3], width: latent[4] };
        let text = dit::context(&config, &recipe, params, 1).unwrap();
        let text = dit.load(&runtime, text, &[]).run(&[("text_emb", context)]).unwrap();
        let graph = dit::denoiser(&config, &recipe, params, 1, size).unwrap();
        Some(Network { session: dit.load(&runtime, graph, &[]), text, freq_dim: config.freq_dim })
    }

    fn velocity(&mut self, x: &Tensor, condition: Option<&Tensor>, timestep: f32) -> Vec<f32> {
        let time = Tensor::f32(vec![1, self.freq_dim], time_embedding(timestep, self.freq_dim));
        let mut inputs: Vec<(&str, &Tensor)> = vec![("x", x), ("time", &time)];
        inputs.extend(condition.map(|y| ("condition", y)));
        inputs.extend(self.text.iter().map(|(name, tensor)| (name.as_str(), tensor)));
        run(&mut self.session, &inputs).remove("velocity").unwrap()
    }
}

/// To bf16 where the deployed script rounds what it feeds the network.
fn rounded(tensor: &Tensor, really: bool) -> Tensor {
    let round = |&x: &f32| if really { half::bf16::from_f32(x).to_f32() } else { x };
    Tensor::f32(tensor.shape.clone(), tensor.as_f32().iter().map(round).collect())
}

fn check(name: &str, checkpoints: &[&str]) {
    let Some(path) = file(&format!("{name}.safetensors")) else { return };
    let v = Vectors::open(&path);
    let shape = v.f32("noise_init").shape.clone();
    let boundary = v.0.metadata().get("boundary").map(|text| text.parse().unwrap());
    let mut family = Family::new(&format!("{name} own network"));
    for deployed in [false, true] {
        let context = rounded(&v.f32("context"), deployed);
        let condition = v.get("y").map(|y| rounded(&y, deployed));
        let networks = checkpoints.iter().map(|checkpoint| Network::new(checkpoint, &shape, &context));
        let Some(mut networks) = networks.collect::<Option<Vec<Network>>>() else { return };
        let names = v.names();
        let trajectories = names.iter().filter_map(|n| n.strip_suffix(".t_steps"));
        for trajectory in trajectories.filter(|t| t.starts_with("bf16io_") == deployed) {
            let part =
                |start: char| trajectory.split('_').find_map(|p| p.strip_prefix(start)?.parse::<u32>().ok());
            let (sigma, steps) = (part('s').unwrap(), part('n').unwrap() as usize);
            let plan = schedule(steps, f64::from(sigma)).unwrap();
            let mut noise = FileNoise::open(&path).unwrap();
            let count = shape.iter().product();
            let mut x = initial(&noise.draw(count).unwrap(), plan.times[0]);
            for i in 0..steps {
                let timestep = if deployed { plan.deployed_timesteps[i] } else { plan.timesteps[i] };
                let input = Tensor::f32(shape.clone(), x.iter().map(|&x| x as f32).collect());
                let network = usize::from(plan.expert(i, boundary) == Expert::Low);
                let velocity =
                    networks[network].velocity(&rounded(&input, deployed), condition.as_ref(), timestep);
                let (t, t_next) = (plan.times[i], plan.times[i + 1]);
                if trajectory.contains("ode") {
                    ode_step(&mut x, &velocity, t, t_next).unwrap();
                } else {
                    sde_step(&mut x, &velocity, t, t_next, &noise.draw(count).unwrap()).unwrap();
                }
            }
            let found: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            let expected = v.f32(&format!("{trajectory}.x{steps}"));
            // A last bit that rounds to the other bf16 makes a difference of 4e-3 of an element.
            family.rel(trajectory, &found, expected.as_f32(), if deployed { 1.5e-2 } else { 1e-4 });
        }
    }
}

#[test]
fn golden_sampler_t2v_own_network() {
    check("sampler_t2v", &["dit_t2v_ckpt.safetensors"]);
}

#[test]
fn golden_sampler_i2v_own_network() {
    check("sampler_i2v", &["dit_i2v_high_ckpt.safetensors", "dit_i2v_low_ckpt.safetensors"]);
}
