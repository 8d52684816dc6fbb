//! Whole trajectories of the sampler with our own network: the velocity of every step comes from the emitted graph.

use anyhow::{Context as _, Result};
use turbo_pipeline::backend::Tensor;
use turbo_sampler::{Expert, FileNoise, MAX_STEPS, NoiseSource, initial, ode_step, schedule, sde_step};

use super::backend::{Backend, Outputs};
use super::compiled::Compiled;
use super::forward::{Context, Denoiser, Forward, dense};
use crate::vectors::{Family, Vectors, find};

pub(super) fn t2v(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    check(backend, family, "sampler_t2v.safetensors", &["dit_t2v_ckpt.safetensors"])
}

pub(super) fn i2v(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let experts = ["dit_i2v_high_ckpt.safetensors", "dit_i2v_low_ckpt.safetensors"];
    check(backend, family, "sampler_i2v.safetensors", &experts)
}

/// To bf16 where the deployed script rounds what it feeds the network.
fn rounded(tensor: &Tensor, really: bool) -> Tensor {
    let round = |&x: &f32| if really { half::bf16::from_f32(x).to_f32() } else { x };
    Tensor::f32(tensor.shape.clone(), tensor.as_f32().iter().map(round).collect())
}

fn check(backend: &dyn Backend, family: &mut Family, name: &str, checkpoints: &[&str]) -> Result<()> {
    let v = Vectors::find(name)?;
    let noise = find(name)?;
    let shape = v.f32("noise_init")?.shape;
    let count = shape.iter().product();
    let boundary = v.number("boundary");
    let dits: Vec<Compiled> = checkpoints.iter().map(|name| Compiled::find(name)).collect::<Result<_>>()?;
    let forwards: Vec<Forward<'_>> =
        dits.iter().map(|dit| Forward::new(backend, dit, dense())).collect::<Result<_>>()?;
    let latent = Tensor::f32(shape.clone(), vec![0.0; count]);
    let mut denoisers: Vec<Denoiser<'_>> =
        forwards.iter().map(|forward| forward.denoiser(&latent, &[])).collect::<Result<_>>()?;
    let mut contexts: Vec<Context<'_>> =
        forwards.iter().map(|forward| forward.context(1, MAX_STEPS, &[])).collect::<Result<_>>()?;
    for deployed in [false, true] {
        // A network that rounds is compared with the reference that rounded.
        if !deployed && !backend.is_exact() {
            continue;
        }
        let context = rounded(&v.f32("context")?, deployed);
        let condition = if v.has("y") { Some(rounded(&v.f32("y")?, deployed)) } else { None };
        let names = v.names();
        let trajectories = names.iter().filter_map(|n| n.strip_suffix(".t_steps"));
        for trajectory in trajectories.filter(|t| t.starts_with("bf16io_") == deployed) {
            let part =
                |start: char| trajectory.split('_').find_map(|p| p.strip_prefix(start)?.parse::<u32>().ok());
            let (sigma, steps) = part('s').zip(part('n')).with_context(|| trajectory.to_string())?;
            let steps = steps as usize;
            let plan = schedule(steps, f64::from(sigma))?;
            let timesteps = if deployed { &plan.deployed_timesteps } else { &plan.timesteps };
            let given: Vec<Outputs> =
                contexts.iter_mut().map(|network| network.run(&context, timesteps)).collect::<Result<_>>()?;
            let mut noise = FileNoise::open(&noise)?;
            let mut x = initial(&noise.draw(count)?, plan.times[0]);
            for i in 0..steps {
                let input = Tensor::f32(shape.clone(), x.iter().map(|&x| x as f32).collect());
                let network = usize::from(plan.expert(i, boundary) == Expert::Low);
                let input = rounded(&input, deployed);
                let out = denoisers[network].run(&input, condition.as_ref(), &given[network], i)?;
                let velocity = out.get("velocity")?;
                let (t, t_next) = (plan.times[i], plan.times[i + 1]);
                if trajectory.contains("ode") {
                    ode_step(&mut x, &velocity, t, t_next)?;
                } else {
                    sde_step(&mut x, &velocity, t, t_next, &noise.draw(count)?)?;
                }
            }
            let found: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            let expected = v.values(&format!("{trajectory}.x{steps}"))?;
            // A last bit that rounds to the other bf16 makes a difference of 4e-3 of an element.
            family.rel(trajectory, &found, &expected, if deployed { 1.5e-2 } else { 1e-4 });
        }
    }
    Ok(())
}
