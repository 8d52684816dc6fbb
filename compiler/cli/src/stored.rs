//! What is stored of a network: which weights, in which form, and how they are written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde_json::{Map, json};
use turbo_checkpoint::{DType as SourceType, TensorView, check_finite};
use turbo_graph::DType;
use turbo_models::Weights;
use turbo_models::dit::{Linear, weight_name};
use turbo_ops::common::quant::{FORMAT, Format};
use turbo_ops::{Attrs, DataRef, TensorRef};

use crate::CompileError;
use crate::network::{Kind, Network};

/// Rows and columns of a block of quantised weights.
const BLOCK: usize = 128;
/// Rows of a weight that are quantised at a time: enough for all threads, and a small part of a large weight.
const ROWS: usize = 8 * BLOCK;

/// Bytes of a tensor that are converted and written at a time, a whole number of elements of any type.
const CHUNK: usize = 8 << 20;

/// End of the name of a weight that upstream keeps in f32 and multiplies by in bf16.
const PROJ_L_WEIGHT: &str = "attn_op.local_attn.proj_l.weight";

/// How a stored weight comes from a checkpoint tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The same elements, converted where the entry's type is another (f64 becomes f32).
    Copy,
    /// Rounded to bf16, whatever the entry's type.
    Bf16,
    /// 8-bit values of 128 x 128 blocks.
    Values(Format),
    /// f32 scales of these blocks.
    Scales(Format),
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: DType,
    shape: Vec<usize>,
    /// Canonical name of the checkpoint tensor.
    from: String,
    form: Form,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// The weights of one network as the engine file stores them, by name.
pub struct Stored<'a> {
    network: &'a Network,
    entries: BTreeMap<String, Entry>,
}

/// Where each weight lies in the written file.
pub struct Layout {
    header: Vec<u8>,
    order: Vec<String>,
    places: BTreeMap<String, (u64, u64)>,
    total: u64,
}

impl<'a> Stored<'a> {
    /// Decides the stored form of every tensor: with `w8a8` the linears inside a DiT's blocks become INT8, with
    /// `fp8` E4M3, except `proj_l`, whose f32 weight is rounded to bf16: upstream multiplies by it under bf16
    /// autocast (`SLA/core.py`). A checkpoint that comes quantised stays as it is, bit for bit.
    ///
    /// # Errors
    /// Element types that no graph can hold, and a quantised checkpoint where full precision is asked for.
    pub fn plan(network: &'a Network, linear: Linear) -> Result<Self, CompileError> {
        let mut entries = BTreeMap::new();
        let comes_quantised = network.names().any(|(name, _)| name.ends_with(".int8_weight"));
        for (name, own) in network.names() {
            let Some((dtype, shape)) = network.info(name) else {
                let found = network.tensor(name).map(|t| t.dtype.to_string()).unwrap_or_default();
                let what = format!("tensor {own} has element type {found}");
                let hint = "use a checkpoint in bf16, f16 or f32, or TurboDiffusion's own -quant form";
                return Err(CompileError::input(&network.path, what, hint));
            };
            let from = name.to_string();
            let format = linear.format().filter(|_| network.kind == Kind::Dit && !comes_quantised);
            if format.is_some() && dtype == DType::F32 && name.ends_with(PROJ_L_WEIGHT) {
                entries.insert(from.clone(), Entry { dtype: DType::Bf16, shape, from, form: Form::Bf16 });
                continue;
            }
            let stem = name.strip_suffix(".weight").filter(|stem| is_block_linear(stem, &shape));
            let Some((stem, format)) = stem.zip(format) else {
                entries.insert(from.clone(), Entry { dtype, shape, from, form: Form::Copy });
                continue;
            };
            let scales = vec![shape[0].div_ceil(BLOCK), shape[1].div_ceil(BLOCK)];
            let values = Entry { dtype: DType::I8, shape, from: from.clone(), form: Form::Values(format) };
            let scales = Entry { dtype: DType::F32, shape: scales, from, form: Form::Scales(format) };
            entries.insert(format!("{stem}.{}", weight_name(format)), values);
            entries.insert(format!("{stem}.scale"), scales);
        }
        Ok(Stored { network, entries })
    }

    /// Checks that every tensor is used or known to be optional, and drops what is not used.
    ///
    /// `known` names weights that other recipes use. Gives the checkpoint tensors that this one leaves out.
    ///
    /// # Errors
    /// Tensors that no recipe uses, by name.
    pub fn keep(
        &mut self,
        used: &BTreeSet<String>,
        known: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, CompileError> {
        let mut unused = Vec::new();
        let mut unknown = Vec::new();
        for (name, entry) in &self.entries {
            if used.contains(name) {
                continue;
            }
            if known(name) {
                unused.push(entry.from.clone());
            } else {
                unknown.push(entry.from.clone());
            }
        }
        if let Some(first) = unknown.first() {
            let more = match unknown.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            let what = format!("tensor {first}{more} has no place in a Wan {}", self.network.kind.name());
            let hint = "every tensor must be used: check that the file belongs to this model and is not a \
                        variant that is not supported";
            return Err(CompileError::input(&self.network.path, what, hint));
        }
        self.entries.retain(|name, _| used.contains(name));
        Ok(unused)
    }

    /// Stores weights in the types and shapes that their graphs have them in (see
    /// [`turbo_models::Params::converted`]).
    pub fn convert(&mut self, used: &BTreeMap<String, (DType, Vec<usize>)>) {
        for (name, (dtype, shape)) in used {
            if let Some(entry) = self.entries.get_mut(name) {
                (entry.dtype, entry.shape) = (*dtype, shape.clone());
            }
        }
    }

    /// Number of weights elements, blocks' scales aside.
    pub fn parameters(&self) -> u64 {
        let weights = self
            .entries
            .iter()
            .filter(|(name, e)| !matches!(e.form, Form::Scales(_)) && !name.ends_with(".scale"));
        weights.map(|(_, e)| e.shape.iter().product::<usize>() as u64).sum()
    }

    /// Lays the weights out as a safetensors file: widest elements first, so that all are aligned.
    pub fn layout(&self) -> Layout {
        let mut order: Vec<&String> = self.entries.keys().collect();
        order.sort_by_key(|name| (std::cmp::Reverse(self.entries[*name].dtype.size()), name.as_str()));
        let mut header = Map::new();
        let mut spans = BTreeMap::new();
        let mut at = 0;
        for &name in &order {
            let entry = &self.entries[name];
            let end = at + entry.bytes() as u64;
            let tensor = json!({"dtype": safetensors_name(entry.dtype), "shape": entry.shape, "data_offsets": [at, end]});
            header.insert(name.clone(), tensor);
            spans.insert(name.clone(), (at, end - at));
            at = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        // Padded with spaces so that the first element is aligned for vector loads.
        while !(header.len() + 8).is_multiple_of(64) {
            header.push(b' ');
        }
        let start = header.len() as u64 + 8;
        let places = spans.into_iter().map(|(name, (offset, len))| (name, (start + offset, len))).collect();
        Layout { header, order: order.into_iter().cloned().collect(), places, total: start + at }
    }

    /// Writes the file that `layout` describes, one tensor at a time; `tick` gets the bytes written and may
    /// stop the work.
    ///
    /// # Errors
    /// NaN or infinity in a tensor, write errors, whatever `tick` returns.
    pub fn write(
        &self,
        layout: &Layout,
        out: &mut dyn Write,
        tick: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> Result<(), CompileError> {
        let path = self.network.path.clone();
        let io = |cause| CompileError::Io { path: path.clone(), cause };
        out.write_all(&(layout.header.len() as u64).to_le_bytes()).map_err(io)?;
        out.write_all(&layout.header).map_err(io)?;
        for name in &layout.order {
            let entry = &self.entries[name];
            let Some(tensor) = self.network.tensor(&entry.from) else { continue };
            if !matches!(entry.form, Form::Values(_)) && is_float(tensor.dtype) {
                check_finite(&tensor)?;
            }
            match entry.form {
                Form::Copy
                    if !is_float(tensor.dtype) || safetensors_name(entry.dtype) == tensor.dtype.name() =>
                {
                    for chunk in tensor.bytes().chunks(CHUNK) {
                        out.write_all(chunk).map_err(io)?;
                        tick(chunk.len() as u64).map_err(io)?;
                    }
                }
                Form::Copy | Form::Bf16 => {
                    for chunk in tensor.bytes().chunks(CHUNK) {
                        let mut values = widen(tensor.dtype, chunk);
                        if entry.form == Form::Bf16 {
                            values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
                        }
                        let bytes = narrow(entry.dtype, &values);
                        out.write_all(&bytes).map_err(io)?;
                        tick(bytes.len() as u64).map_err(io)?;
                    }
                }
                Form::Values(format) | Form::Scales(format) => {
                    self.quantize(entry, format, &tensor, out, tick)?
                }
            }
            self.network.release(&tensor);
        }
        Ok(())
    }

    /// Quantises a few rows of blocks at a time, with the op that activations go through and its threads.
    fn quantize(
        &self,
        entry: &Entry,
        format: Format,
        tensor: &TensorView<'_>,
        out: &mut dyn Write,
        tick: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> Result<(), CompileError> {
        let io = |cause| CompileError::Io { path: self.network.path.clone(), cause };
        let columns = tensor.shape[1];
        let attrs = Attrs::new().choice(FORMAT.name, format.word());
        let bytes = tensor.bytes();
        for rows in bytes.chunks(ROWS * columns * tensor.dtype.size()) {
            let rows = widen(tensor.dtype, rows);
            let shape = [rows.len() / columns, columns];
            let input = TensorRef { shape: &shape, data: DataRef::F32(&rows) };
            let out_tensors = turbo_ops::quantize::OP.run(&attrs, &[input]).map_err(|cause| {
                CompileError::Network { path: self.network.path.clone(), cause: cause.to_string() }
            })?;
            let (q, scale) = (out_tensors[0].view(), out_tensors[1].view());
            let written: &[u8] = match entry.form {
                Form::Values(_) => bytemuck::cast_slice(q.i8()),
                _ => bytemuck::cast_slice(scale.f32()),
            };
            out.write_all(written).map_err(io)?;
            tick(written.len() as u64).map_err(io)?;
        }
        Ok(())
    }
}

impl Weights for Stored<'_> {
    fn info(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        self.entries.get(name).map(|e| (e.dtype, e.shape.clone()))
    }
}

impl Layout {
    /// Size of the whole file.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Offset and length of a weight in the file.
    pub fn place(&self, name: &str) -> Option<(u64, u64)> {
        self.places.get(name).copied()
    }
}

/// Every `nn.Linear` under `blocks` except `proj_l` (upstream `inference/modify_model.py`).
fn is_block_linear(stem: &str, shape: &[usize]) -> bool {
    let linears = ["self_attn.", "cross_attn.", "ffn."];
    shape.len() == 2
        && stem
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'))
            .is_some_and(|(_, leaf)| linears.iter().any(|l| leaf.starts_with(l)) && !leaf.contains("proj_l"))
}

fn widen(dtype: SourceType, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        SourceType::Bf16 => {
            pairs().map(|&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)).collect()
        }
        SourceType::F16 => pairs().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
        SourceType::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
        _ => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    }
}

fn narrow(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}

fn is_float(dtype: SourceType) -> bool {
    matches!(dtype, SourceType::F64 | SourceType::F32 | SourceType::F16 | SourceType::Bf16)
}

fn safetensors_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::Bf16 => "BF16",
        DType::F8E4M3 => "F8_E4M3",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I8 => "I8",
        DType::U8 => "U8",
        DType::Bool => "BOOL",
    }
}
