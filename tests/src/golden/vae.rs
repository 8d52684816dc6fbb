//! The VAE against the reference, streaming.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, bail};
use turbo_models::vae::{self, LATENT_MEAN, LATENT_STD};
use turbo_pipeline::backend::Tensor;

use super::backend::{Backend, Outputs};
use super::compiled::Compiled;
use crate::vectors::{Family, Vectors};

/// Tolerances of f32 and bf16 code. Ours is f16 on a GPU.
const F32: f64 = 1e-5;
const BF16: f64 = 5e-2;

pub(super) fn suite(backend: &dyn Backend, family: &mut Family) -> Result<()> {
    let v = Vectors::find("vae.safetensors")?;
    let network = Compiled::find("vae_ckpt.safetensors")?;
    family.rel("mean", &LATENT_MEAN, &v.values("mean")?, 1e-7);
    family.rel("std", &LATENT_STD, &v.values("std")?, 1e-7);
    let config = vae::Config::read(network.network)?;
    let suite = Suite { backend, v: &v, network: &network, config };
    for i in (0..).take_while(|i| v.has(&format!("dec{i}.latent"))) {
        family.attempt(&format!("dec{i}"), |family| suite.decode(family, i));
    }
    for i in (0..).take_while(|i| v.has(&format!("enc{i}.video"))) {
        family.attempt(&format!("enc{i}"), |family| suite.encode(family, i));
    }
    Ok(())
}

struct Suite<'a> {
    backend: &'a dyn Backend,
    v: &'a Vectors,
    network: &'a Compiled,
    config: vae::Config,
}

impl Suite<'_> {
    fn decode(&self, family: &mut Family, i: usize) -> Result<()> {
        let latent = self.v.f32(&format!("dec{i}.latent"))?;
        let (h, w) = (latent.shape[3], latent.shape[4]);
        let chunks = (0..latent.shape[2]).map(|t| frames(&latent, t..t + 1));
        let chunks: Vec<Tensor> = chunks.collect::<Result<_>>()?;
        let build = |first| {
            let params = self.backend.vae_params(&self.network.stored);
            Ok(vae::decoder(&self.config, params, (&LATENT_MEAN, &LATENT_STD), h, w, first)?)
        };
        let inner = |chunk: usize| self.inner(&format!("dec{i}.chunk{chunk}."), "decoder");
        let out = self.stream(&build, "latent", &chunks, &inner, &[])?;
        self.compare_inner(family, &out, &inner)?;
        self.compare(family, &out, "video", &format!("dec{i}.video"))
    }

    fn encode(&self, family: &mut Family, i: usize) -> Result<()> {
        let video = self.v.f32(&format!("enc{i}.video"))?;
        let (t, h, w) = (video.shape[2], video.shape[3], video.shape[4]);
        let later = (1..t).step_by(vae::FRAMES).map(|from| from..from + vae::FRAMES);
        let chunks = std::iter::once(0..1).chain(later).map(|range| frames(&video, range));
        let chunks: Vec<Tensor> = chunks.collect::<Result<_>>()?;
        let build = |first| {
            let params = self.backend.vae_params(&self.network.stored);
            Ok(vae::encoder(&self.config, params, (&LATENT_MEAN, &LATENT_STD), h, w, first)?)
        };
        let inner = |chunk: usize| self.inner(&format!("enc{i}.chunk{chunk}."), "encoder");
        let moments = self.taps(vec!["moments".to_string()]);
        let out = self.stream(&build, "video", &chunks, &inner, &moments)?;
        self.compare_inner(family, &out, &inner)?;
        for output in ["latent"].into_iter().chain(moments.iter().map(String::as_str)) {
            self.compare(family, &out, output, &format!("enc{i}.{output}"))?;
        }
        Ok(())
    }

    /// Inner values are compared in f32 only: the tolerances of bf16 code are those of the results.
    fn taps<T>(&self, taps: Vec<T>) -> Vec<T> {
        if self.backend.is_exact() { taps } else { vec![] }
    }

    /// Inner values of one chunk: their names in the graph and in the vectors.
    fn inner(&self, chunk: &str, part: &str) -> Vec<(String, String)> {
        let names = self.v.names();
        let inner = names.iter().filter_map(|name| {
            let module = module(name.strip_prefix(chunk)?);
            Some((format!("{part}.{module}"), name.clone()))
        });
        self.taps(inner.collect())
    }

    /// Runs chunks one after the other, the state carried on as the runtime does. The first has a graph of its own.
    fn stream(
        &self,
        build: &dyn Fn(bool) -> Result<vae::Stage>,
        input: &str,
        chunks: &[Tensor],
        inner: &dyn Fn(usize) -> Vec<(String, String)>,
        taps: &[String],
    ) -> Result<Vec<Outputs>> {
        let mut state: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut outputs = Vec::new();
        for (first, range) in [(true, 0..1), (false, 1..chunks.len())] {
            if range.is_empty() {
                continue;
            }
            let vae::Stage { graph, state: carried } = build(first)?;
            for s in &carried {
                let zeros = || Tensor::f32(s.shape.clone(), vec![0.0; s.shape.iter().product()]);
                state.entry(format!("state.{}", s.name)).or_insert_with(zeros);
            }
            let names: Vec<String> =
                graph.inputs().iter().map(|&v| graph.value_name(v).to_string()).collect();
            let mut wanted: Vec<&str> = taps.iter().map(String::as_str).collect();
            let inner: Vec<(String, String)> = range.clone().flat_map(inner).collect();
            wanted.extend(inner.iter().map(|(tap, _)| tap.as_str()));
            wanted.sort_unstable();
            wanted.dedup();
            let mut network = self.backend.load(Some(self.network), graph, &wanted)?;
            for chunk in &chunks[range] {
                let mut inputs: Vec<(&str, &Tensor)> = vec![(input, chunk)];
                for name in names.iter().filter(|name| *name != input) {
                    inputs.push((name, state.get(name).with_context(|| format!("no {name}"))?));
                }
                let mut out = network.run(&inputs)?;
                for s in &carried {
                    if let Some(next) = out.take(&format!("next.{}", s.name)) {
                        state.insert(format!("state.{}", s.name), next);
                    }
                }
                outputs.push(out);
            }
        }
        Ok(outputs)
    }

    fn compare_inner(
        &self,
        family: &mut Family,
        out: &[Outputs],
        inner: &dyn Fn(usize) -> Vec<(String, String)>,
    ) -> Result<()> {
        for (chunk, out) in out.iter().enumerate() {
            for (tap, name) in inner(chunk) {
                family.rel(&name, &out.get(&tap)?, &self.v.values(&name)?, self.backend.bound(F32, BF16));
            }
        }
        Ok(())
    }

    /// An output of all chunks, joined along time.
    fn compare(&self, family: &mut Family, out: &[Outputs], output: &str, name: &str) -> Result<()> {
        let expected = self.v.f32(name)?;
        let channels = expected.shape[1];
        let chunks: Vec<Vec<f32>> = out.iter().map(|out| out.get(output)).collect::<Result<_>>()?;
        let part = |c: usize, chunk: &Vec<f32>| {
            let each = chunk.len() / channels;
            chunk[c * each..(c + 1) * each].to_vec()
        };
        let joined: Vec<f32> =
            (0..channels).flat_map(|c| chunks.iter().flat_map(move |chunk| part(c, chunk))).collect();
        family.rel(name, &joined, expected.as_f32(), self.backend.bound(F32, BF16));
        Ok(())
    }
}

/// `middle1_attn` is the module `middle.1`, `upsamples11` is `upsamples.11`.
fn module(name: &str) -> String {
    let name = name.trim_end_matches("_attn");
    let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    match &name[..digits] {
        "conv" => name.to_string(),
        stem => format!("{stem}.{}", &name[digits..]),
    }
}

/// Frames `range` of `[1, c, t, h, w]`.
fn frames(x: &Tensor, range: Range<usize>) -> Result<Tensor> {
    let [1, c, t, h, w] = x.shape[..] else { bail!("{:?} is no video", x.shape) };
    let plane = h * w;
    let frames = |i: usize| {
        x.as_f32().get((i * t + range.start) * plane..(i * t + range.end) * plane).map(<[f32]>::to_vec)
    };
    let parts: Option<Vec<Vec<f32>>> = (0..c).map(frames).collect();
    let values = parts.with_context(|| format!("no frames {range:?}"))?.concat();
    Ok(Tensor::f32(vec![1, c, range.len(), h, w], values))
}
