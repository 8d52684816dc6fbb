//! Times of the kernels at the sizes of Wan's blocks.

use anyhow::Result;
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Value, json};
use turbo_ops::common::quant::{FORMAT, Format, quantize};
use turbo_ops::{Attrs, Case, Dims, Op, Rng, TensorDef, Ty, find};

use crate::check::{arguments, input_shapes, output_shapes};
use crate::elements::{Element, attrs_for};
use crate::floor::{Ceilings, Work};
use crate::library::Library;
use crate::memory::Block;
use crate::node::{Call, Node};

/// Runs of a kernel; the median counts.
const RUNS: usize = 20;
/// Bytes of random data, repeated to fill a tensor: more than the L2 cache of Hopper holds, and four times a prime, so
/// that no two rows are alike.
const CHUNK: usize = 4 * 16_777_213;
/// Formats of quantised values.
const FORMATS: [&str; 2] = ["int8", "e4m3"];
/// Tokens of the longest prompt.
const PROMPT: usize = 512;

/// A model at a size of video.
struct Model {
    name: &'static str,
    tokens: usize,
    width: usize,
    heads: usize,
    ffn: usize,
}

const MODELS: [Model; 2] = [
    Model { name: "1.3B 480p", tokens: 32760, width: 1536, heads: 12, ffn: 8960 },
    Model { name: "14B 720p", tokens: 75600, width: 5120, heads: 40, ffn: 13824 },
];

/// Something to time.
struct Bench {
    op: &'static Op,
    model: &'static str,
    form: String,
    case: Case,
    /// What it has to do, but for its bytes.
    work: Work,
}

/// What was measured.
pub struct Timing {
    op: &'static str,
    model: &'static str,
    form: String,
    result: Result<Figures>,
}

struct Figures {
    /// Microseconds, ascending.
    times: Vec<f32>,
    work: Work,
    /// Seconds that the work takes at least, where that is known.
    floor: Option<f64>,
    workspace: usize,
}

impl Timing {
    /// Whether the kernel ran.
    pub fn ok(&self) -> bool {
        self.result.is_ok()
    }

    /// A row of the table.
    pub fn line(&self) -> String {
        let head = format!("{:<10} {:<25} {:<34}", self.model, self.op, self.form);
        match &self.result {
            Ok(figures) => {
                let (rate, unit) = figures.rate();
                let workspace = figures.workspace as f64 / f64::from(1 << 20);
                let share =
                    figures.share().map_or("-".to_string(), |share| format!("{:.0} %", 100.0 * share));
                let median = figures.median();
                format!(
                    "{head} {median:>11.1} us {rate:>8.1} {unit} {share:>6} of the floor {workspace:>8.1} MiB"
                )
            }
            Err(error) => format!("{head} FAILED {error:#}"),
        }
    }

    /// All figures.
    pub fn to_json(&self) -> Value {
        let mut value = json!({ "op": self.op, "model": self.model, "form": self.form });
        match &self.result {
            Ok(figures) => {
                let (rate, unit) = figures.rate();
                value["median_us"] = json!(figures.median());
                value["min_us"] = json!(figures.times.first());
                value["max_us"] = json!(figures.times.last());
                value["rate"] = json!(rate);
                value["unit"] = json!(unit);
                value["floor_us"] = json!(figures.floor.map(|floor| floor * 1e6));
                value["share_of_floor"] = json!(figures.share());
                value["workspace_bytes"] = json!(figures.workspace);
            }
            Err(error) => value["error"] = json!(format!("{error:#}")),
        }
        value
    }
}

impl Figures {
    fn median(&self) -> f32 {
        self.times.get(self.times.len() / 2).copied().unwrap_or(f32::NAN)
    }

    fn rate(&self) -> (f64, &'static str) {
        let seconds = f64::from(self.median()) * 1e-6;
        match self.work.operations() {
            0.0 => (self.work.bytes / seconds * 1e-9, "GB/s"),
            operations => (operations / seconds * 1e-12, "TOPS"),
        }
    }

    /// How much of the time the least possible one is.
    fn share(&self) -> Option<f64> {
        Some(self.floor? / (f64::from(self.median()) * 1e-6))
    }
}

/// Times every kernel, or those of one op; `report` hears of each at once.
///
/// # Errors
/// The device is lost.
pub fn run(library: &Library, op: Option<&str>, mut report: impl FnMut(&Timing)) -> Result<Vec<Timing>> {
    let ceilings = Ceilings::measure(library)?;
    let mut timings = Vec::new();
    for bench in MODELS.iter().flat_map(benches).filter(|bench| op.is_none_or(|name| name == bench.op.name)) {
        let result = time(library, &ceilings, &bench);
        let timing = Timing { op: bench.op.name, model: bench.model, form: bench.form, result };
        report(&timing);
        if !timing.ok() {
            library.synchronize()?;
        }
        timings.push(timing);
    }
    Ok(timings)
}

/// What a block of a model runs, and forms of attention beside the ones that it uses.
fn benches(model: &Model) -> Vec<Bench> {
    let &Model { name, tokens: l, width: c, heads, ffn } = model;
    let mut all = Vec::new();
    let mut add = |op: &str, form: &str, attrs: Attrs, axes: &[(&'static str, usize)], work: Work| {
        let case = Case { name: form.to_string(), attrs, dims: Dims::of(axes), seed: 1, tol: Vec::new() };
        if let Some(op) = find(op) {
            all.push(Bench { op, model: name, form: form.to_string(), case, work });
        }
    };
    let tokens = [("m", l), ("c", c)];
    let and = |more: &[(&'static str, usize)]| [&tokens, more].concat();
    let kind = |kind: &str| Attrs::new().choice("kind", kind).float("eps", 1e-6);
    let with_heads = Attrs::new().int("batch", 1).int("heads", heads);
    for word in ["layer", "rms"] {
        add("TurboNorm", word, kind(word), &and(&[("g", 1)]), Work::default());
    }
    for format in FORMATS {
        let attrs = kind("layer").choice(FORMAT.name, format);
        add("TurboNormQuantize", &format!("layer {format}"), attrs, &and(&[("g", 1)]), Work::default());
    }
    add(
        "TurboNormRope",
        "",
        Attrs::new().int("heads", heads).float("eps", 1e-6),
        &and(&[("l", l)]),
        Work::default(),
    );
    for (format, k) in FORMATS.into_iter().flat_map(|format| [(format, c), (format, ffn)]) {
        let attrs = Attrs::new().choice(FORMAT.name, format);
        add("TurboQuantize", &format!("k={k} {format}"), attrs, &[("m", l), ("k", k)], Work::default());
    }
    let linear = |n: usize, k: usize| {
        let axes = vec![("m", l), ("n", n), ("k", k), ("g", 1)];
        (format!("n={n} k={k}"), axes, Work { eight: 2.0 * (l * n * k) as f64, ..Work::default() })
    };
    for (n, k, activation) in [(c, c, "none"), (ffn, c, "gelu_tanh"), (c, ffn, "none")] {
        let (form, axes, work) = linear(n, k);
        let form = if activation == "none" { form } else { format!("{form} gelu") };
        let work = Work { sixteen: work.eight, ..Work::default() };
        add("TurboLinear", &form, Attrs::new().choice("activation", activation), &axes, work);
    }
    for format in FORMATS {
        let plain = Attrs::new().choice(FORMAT.name, format);
        let [none, gelu] = ["none", "gelu_tanh"].map(|word| plain.clone().choice("activation", word));
        let (form, axes, work) = linear(c, c);
        let form = format!("{form} {format}");
        add("TurboW8A8Linear", &form, none.choice("dtype", "bf16"), &axes, work);
        let three = Work { eight: 3.0 * work.eight, ..Work::default() };
        add("TurboW8A8LinearQkv", &form, plain.clone().choice("dtype", "bf16"), &axes, three);
        add("TurboW8A8LinearResidual", &form, plain.clone(), &axes, work);
        let (form, axes, work) = linear(ffn, c);
        let form = format!("{form} {format} gelu");
        add("TurboW8A8Linear", &form, gelu.clone().choice("dtype", "bf16"), &axes, work);
        add("TurboW8A8LinearQuantize", &form, gelu, &axes, work);
        let (form, axes, work) = linear(c, ffn);
        add("TurboW8A8LinearResidual", &format!("{form} {format}"), plain, &axes, work);
    }

    // Products of queries and keys, and as many of probabilities and values.
    let half = |keys: usize| 2.0 * (l * keys * c) as f64;
    let exact = |keys: usize| Work { sixteen: 2.0 * half(keys), ..Work::default() };
    let sage = |keys: usize, pv: &str| match pv {
        "fp8" => Work { eight: 2.0 * half(keys), ..Work::default() },
        _ => Work { eight: half(keys), sixteen: half(keys), ..Work::default() },
    };
    // Features times values, queries times that, and the projection.
    let with_linear =
        |work: Work| Work { sixteen: work.sixteen + 6.0 * (l * c * (c / heads)) as f64, ..work };
    for [block_q, block_k] in [[128, 64], [64, 128]] {
        let tiling = format!("{block_q}x{block_k}");
        let tiled = with_heads.clone().int("block_q", block_q).int("block_k", block_k);
        let keep = (l.div_ceil(block_k) / 10).max(1);
        let kept = keep * block_k;
        let attrs = Attrs::new().int("heads", heads).int("block_q", block_q).int("block_k", block_k);
        add(
            "TurboBlockMap",
            &format!("{tiling} top 0.1"),
            attrs.int("tokens", l).int("keep", keep),
            &[("b", 1), ("c", c)],
            Work::default(),
        );
        add(
            "TurboSla",
            &format!("{tiling} top 0.1"),
            tiled.clone(),
            &and(&[("keep", keep)]),
            with_linear(exact(kept)),
        );
        for pv in ["fp8", "f16"] {
            let attrs = tiled.clone().choice("pv", pv);
            let form = format!("{tiling} {pv}");
            let sparse = with_linear(sage(kept, pv));
            add("TurboSageSla", &format!("{form} top 0.1"), attrs.clone(), &and(&[("keep", keep)]), sparse);
            add("TurboSageAttention", &form, attrs, &and(&[("n", l)]), sage(l, pv));
        }
    }
    add("TurboAttention", "self", with_heads.clone(), &and(&[("n", l)]), exact(l));
    add("TurboAttention", "cross", with_heads, &and(&[("n", PROMPT)]), exact(PROMPT));
    all
}

fn time(library: &Library, ceilings: &Ceilings, bench: &Bench) -> Result<Figures> {
    let Bench { op, case, work, .. } = bench;
    let activation = Element::Bf16;
    let in_shapes = input_shapes(op, case)?;
    let attrs = attrs_for(op, &case.attrs, activation);
    let out_shapes = output_shapes(op, case, &in_shapes)?;
    let bytes = |def: &TensorDef, shape: &[usize]| {
        shape.iter().product::<usize>() * Element::of(def.ty, activation).size()
    };
    let node = Node::new(library, op, &attrs, activation)?;
    let sizes = Call::new(
        &arguments(op.inputs, activation, &in_shapes, None),
        &arguments(op.outputs, activation, &out_shapes, None),
        None,
    )?;
    let needed = node.prepare(&sizes)?;
    let inputs: Vec<Block<'_>> = (op.inputs.iter().zip(&in_shapes))
        .map(|(def, shape)| {
            let block = Block::new(library, bytes(def, shape))?;
            match Element::of(def.ty, activation) {
                Element::I32 => block.upload(&block_map(case, shape))?,
                element => {
                    // Sums of rows are of activations.
                    let normal = def.ty == Ty::T || def.name.ends_with("sums");
                    block.tile(&random(element, normal, Format::of(&attrs), bytes(def, shape).min(CHUNK)))?;
                }
            }
            Ok(block)
        })
        .collect::<Result<_>>()?;
    let outputs: Vec<Block<'_>> = (op.outputs.iter().zip(&out_shapes))
        .map(|(def, shape)| Block::new(library, bytes(def, shape)))
        .collect::<Result<_>>()?;
    let workspace = Block::new(library, needed)?;
    let call = Call::new(
        &arguments(op.inputs, activation, &in_shapes, Some(&inputs)),
        &arguments(op.outputs, activation, &out_shapes, Some(&outputs)),
        Some(&workspace),
    )?;
    let mut times = node.time(&call, RUNS)?;
    times.sort_by(f32::total_cmp);
    let bytes: usize = inputs.iter().chain(&outputs).map(Block::bytes).sum();
    let work = Work { bytes: bytes as f64, ..*work };
    Ok(Figures { times, work, floor: ceilings.floor(&work), workspace: needed })
}

/// Random elements: normal numbers or else small positive ones (scales, weights), and what quantisation makes of normal
/// activations: how fast a GPU multiplies depends on how many bits change, since that takes power.
fn random(element: Element, normal: bool, format: Format, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    data.par_chunks_mut(1 << 16).enumerate().for_each(|(i, part)| {
        let mut rng = Rng::new(i as u64);
        if element == Element::I8 {
            let x: Vec<f32> = part.iter().map(|_| rng.normal() as f32).collect();
            let shape = if part.len() % 128 == 0 { [part.len() / 128, 128] } else { [1, part.len()] };
            let mut q = vec![0; part.len()];
            quantize(
                format,
                &x,
                shape,
                &mut q,
                &mut vec![0.0; shape[0].div_ceil(128) * shape[1].div_ceil(128)],
            );
            part.iter_mut().zip(q).for_each(|(byte, q)| *byte = q as u8);
            return;
        }
        for value in part.chunks_mut(element.size()) {
            match element {
                Element::F32 if normal => value.copy_from_slice(&(rng.normal() as f32).to_le_bytes()),
                Element::Bf16 => value.copy_from_slice(&bf16::from_f64(rng.normal()).to_le_bytes()),
                Element::F16 => value.copy_from_slice(&f16::from_f64(rng.normal()).to_le_bytes()),
                _ => value.copy_from_slice(&(0.02 * (0.5 + rng.uniform()) as f32).to_le_bytes()),
            }
        }
    });
    data
}

/// Kept key blocks of every query block, ascending: one from each of `keep` equal parts.
fn block_map(case: &Case, shape: &[usize]) -> Vec<u8> {
    let key_blocks = case.dims.get("m").div_ceil(case.attrs.get_int("block_k").max(1));
    let keep = shape.last().copied().unwrap_or(1).max(1);
    let mut rng = Rng::new(5);
    let part = |i: usize| i % keep * key_blocks / keep..(i % keep + 1) * key_blocks / keep;
    let lut: Vec<i32> = (0..shape.iter().product::<usize>())
        .map(|i| (part(i).start + (rng.bits() % part(i).len().max(1) as u64) as usize) as i32)
        .collect();
    bytemuck::cast_slice(&lut).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_is_timed_at_sizes_that_fit_its_definition() {
        for model in &MODELS {
            let all = benches(model);
            for op in turbo_ops::ALL {
                assert!(all.iter().any(|bench| bench.op.name == op.name), "{}", op.name);
            }
            for bench in &all {
                let inputs = input_shapes(bench.op, &bench.case).unwrap();
                output_shapes(bench.op, &bench.case, &inputs).unwrap();
            }
        }
    }

    #[test]
    fn block_maps_ascend_within_bounds() {
        let attrs = Attrs::new().int("block_k", 64);
        let case =
            Case { name: String::new(), attrs, dims: Dims::of(&[("m", 1000)]), seed: 0, tol: Vec::new() };
        let bytes = block_map(&case, &[1, 2, 50, 5]);
        let lut = crate::elements::decode(&bytes, &[500], Element::I32);
        let lut = lut.as_i32();
        assert_eq!(lut.len(), 500);
        assert!(lut.chunks(5).all(|row| row.is_sorted_by(|a, b| a < b) && row[0] >= 0 && row[4] < 16));
    }

    #[test]
    fn random_elements_are_finite() {
        for (element, normal) in [(Element::Bf16, true), (Element::F32, true), (Element::F32, false)] {
            let bytes = random(element, normal, Format::Int8, 4000);
            let tensor = crate::elements::decode(&bytes, &[4000 / element.size()], element);
            assert!(tensor.to_f64().iter().all(|x| x.is_finite() && x.abs() < 20.0));
        }
        let bytes = random(Element::I8, false, Format::E4m3, 4000);
        assert!(bytes.iter().all(|&byte| Format::E4m3.value(byte as i8).is_finite()));
    }
}
