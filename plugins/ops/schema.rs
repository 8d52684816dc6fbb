//! What an op definition is made of, and what is derived from it: validation, shapes, graph nodes, kernel runs.

use std::collections::BTreeMap;

use turbo_graph::{Attr, DType, Graph, Value};

use crate::{Case, DOMAIN, Data, DataMut, DataRef, Tensor, TensorMut, TensorRef};

/// Element type in a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ty {
    /// The activation type: f32 on the CPU, bf16 or f16 on a GPU; the same for all `T` of one node.
    /// An op that has no input of this type carries [`DTYPE_ATTR`].
    T,
    /// Always f32: scales, modulation, biases, norm weights.
    F32,
    /// Quantised values.
    I8,
    /// Indices.
    I32,
}

/// A size in a shape, written with named axes and integer attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A named axis; all uses of a name in one op have one size.
    Axis(&'static str),
    /// The value of an integer attribute.
    Attr(&'static str),
    /// A fixed size.
    Const(usize),
    /// Product of two sizes.
    Mul(&'static Dim, &'static Dim),
    /// Quotient, rounded up.
    CeilDiv(&'static Dim, &'static Dim),
    /// Quotient; the division must leave no rest.
    Div(&'static Dim, &'static Dim),
}

/// One input or output.
#[derive(Clone, Copy, Debug)]
pub struct TensorDef {
    /// Name in nodes, C++ traits and messages.
    pub name: &'static str,
    /// Element type.
    pub ty: Ty,
    /// Shape.
    pub dims: &'static [Dim],
    /// What it holds, with units.
    pub doc: &'static str,
}

/// Kind of an attribute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttrKind {
    /// A positive integer.
    Int,
    /// A real number.
    Float,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// One attribute. Attributes have no defaults: every node writes all of them out.
#[derive(Clone, Copy, Debug)]
pub struct AttrDef {
    /// Name in nodes, C++ traits and messages.
    pub name: &'static str,
    /// Kind and allowed values.
    pub kind: AttrKind,
    /// What it means.
    pub doc: &'static str,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// Integer.
    Int(i64),
    /// Real number.
    Float(f32),
    /// Word of a [`AttrKind::Choice`].
    Choice(String),
}

/// Attribute values of one node, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(BTreeMap<String, AttrValue>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds an integer.
    pub fn int(mut self, name: &str, value: usize) -> Self {
        self.0.insert(name.to_string(), AttrValue::Int(value as i64));
        self
    }
    /// Adds a real number.
    pub fn float(mut self, name: &str, value: f32) -> Self {
        self.0.insert(name.to_string(), AttrValue::Float(value));
        self
    }
    /// Adds a word.
    pub fn choice(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_string(), AttrValue::Choice(value.to_string()));
        self
    }
    /// Adds a value of any kind.
    pub fn with(mut self, name: &str, value: AttrValue) -> Self {
        self.0.insert(name.to_string(), value);
        self
    }
    /// The value of an attribute.
    pub fn get(&self, name: &str) -> Option<&AttrValue> {
        self.0.get(name)
    }
    /// An integer attribute; 0 when it is missing, which [`Op::check`] rules out.
    pub fn get_int(&self, name: &str) -> usize {
        match self.0.get(name) {
            Some(AttrValue::Int(v)) => usize::try_from(*v).unwrap_or(0),
            _ => 0,
        }
    }
    /// A real attribute; 0 when it is missing, which [`Op::check`] rules out.
    pub fn get_float(&self, name: &str) -> f32 {
        match self.0.get(name) {
            Some(AttrValue::Float(v)) => *v,
            _ => 0.0,
        }
    }
    /// A word; empty when it is missing, which [`Op::check`] rules out.
    pub fn get_choice(&self, name: &str) -> &str {
        match self.0.get(name) {
            Some(AttrValue::Choice(v)) => v,
            _ => "",
        }
    }
    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &AttrValue)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }
}

/// Sizes of the named axes of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dims(BTreeMap<&'static str, usize>);

impl Dims {
    /// From name and size pairs.
    pub fn of(pairs: &[(&'static str, usize)]) -> Self {
        Dims(pairs.iter().copied().collect())
    }
    /// Size of an axis; 0 for an unknown one, which [`Op::check`] rules out.
    pub fn get(&self, axis: &str) -> usize {
        self.0.get(axis).copied().unwrap_or(0)
    }
    /// All axes.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        self.0.iter().map(|(k, v)| (*k, *v))
    }
}

/// A node that does not fit its op: op, tensor or attribute, expected against found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {what}")]
pub struct OpError {
    /// Op name.
    pub op: &'static str,
    /// What does not fit.
    pub what: String,
}

/// Naive f64 reference: the meaning of an op. Floating-point inputs and outputs are [`Data::F64`].
pub type Reference = fn(&Attrs, &[Tensor]) -> Vec<Tensor>;
/// CPU kernel. Shapes and types have been checked; every output element is written.
pub type CpuKernel = fn(&Attrs, &[TensorRef<'_>], &mut [TensorMut<'_>]);
/// The op in standard ONNX operators.
pub type Expansion = fn(&mut Graph, &Attrs, &[Value]) -> Vec<Value>;

/// The definition of an op.
#[derive(Clone, Copy)]
pub struct Op {
    /// ONNX operator type and plugin name; starts with `Turbo` so that no built-in operator is meant by accident.
    pub name: &'static str,
    /// Version of the meaning; raised whenever outputs change.
    pub version: u32,
    /// The formula, in one line.
    pub summary: &'static str,
    /// What a reader has to know: sources, rounding, conventions.
    pub doc: &'static str,
    /// Attributes.
    pub attrs: &'static [AttrDef],
    /// Inputs, in order.
    pub inputs: &'static [TensorDef],
    /// Outputs, in order.
    pub outputs: &'static [TensorDef],
    /// Constraints that types and shapes do not express; says what is wrong.
    pub constraint: fn(&Attrs, &Dims) -> Result<(), String>,
    /// Meaning in f64.
    pub reference: Reference,
    /// Kernel for the CPU.
    pub cpu: CpuKernel,
    /// Standard ONNX form, where there is one.
    pub expand: Option<Expansion>,
    /// Inputs of a test case.
    pub sample: fn(&Case) -> Vec<Tensor>,
    /// Test cases that every implementation of the op runs.
    pub cases: fn() -> Vec<Case>,
}

/// The attribute by which an op without inputs of type [`Ty::T`] says its activation type.
pub const DTYPE_ATTR: AttrDef = AttrDef {
    name: "dtype",
    kind: AttrKind::Choice(&["f32", "bf16", "f16"]),
    doc: "activation type `T`, which no input tells",
};

fn dtype_attr(attrs: &Attrs) -> DType {
    match attrs.get_choice(DTYPE_ATTR.name) {
        "bf16" => DType::Bf16,
        "f16" => DType::F16,
        _ => DType::F32,
    }
}

/// The constraint of ops that have none.
pub fn no_constraint(_: &Attrs, _: &Dims) -> Result<(), String> {
    Ok(())
}

impl Dim {
    /// The size, where all axes and attributes are known.
    pub fn eval(&self, attrs: &Attrs, dims: &Dims) -> Option<usize> {
        let nonzero = |d: usize| (d > 0).then_some(d);
        match self {
            Dim::Axis(name) => dims.0.get(name).copied(),
            Dim::Attr(name) => nonzero(attrs.get_int(name)),
            Dim::Const(n) => Some(*n),
            Dim::Mul(a, b) => a.eval(attrs, dims)?.checked_mul(b.eval(attrs, dims)?),
            Dim::CeilDiv(a, b) => Some(a.eval(attrs, dims)?.div_ceil(nonzero(b.eval(attrs, dims)?)?)),
            Dim::Div(a, b) => {
                let (a, b) = (a.eval(attrs, dims)?, nonzero(b.eval(attrs, dims)?)?);
                (a % b == 0).then_some(a / b)
            }
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dim::Axis(name) | Dim::Attr(name) => f.write_str(name),
            Dim::Const(n) => write!(f, "{n}"),
            Dim::Mul(a, b) => write!(f, "{a}*{b}"),
            Dim::CeilDiv(a, b) => write!(f, "ceil({a}/{b})"),
            Dim::Div(a, b) => write!(f, "{a}/{b}"),
        }
    }
}

impl Op {
    fn error(&self, what: String) -> OpError {
        OpError { op: self.name, what }
    }

    /// Checks attributes and input shapes and binds the named axes.
    ///
    /// # Errors
    /// A missing or unknown attribute, a wrong number of inputs, a rank or size that does not fit, a
    /// constraint of the op.
    pub fn check(&self, attrs: &Attrs, shapes: &[&[usize]]) -> Result<Dims, OpError> {
        for def in self.attrs {
            let fits = match (attrs.get(def.name), def.kind) {
                (Some(AttrValue::Int(v)), AttrKind::Int) => *v > 0,
                (Some(AttrValue::Float(v)), AttrKind::Float) => v.is_finite(),
                (Some(AttrValue::Choice(v)), AttrKind::Choice(words)) => words.contains(&v.as_str()),
                _ => false,
            };
            if !fits {
                let found = attrs.get(def.name);
                return Err(
                    self.error(format!("attribute `{}` must be {:?}, found {found:?}", def.name, def.kind))
                );
            }
        }
        if let Some((name, _)) = attrs.iter().find(|(n, _)| self.attrs.iter().all(|d| d.name != *n)) {
            return Err(self.error(format!("has no attribute `{name}`")));
        }
        if shapes.len() != self.inputs.len() {
            return Err(self.error(format!("takes {} inputs, found {}", self.inputs.len(), shapes.len())));
        }
        let mut dims = Dims::default();
        let mut first: BTreeMap<&str, &str> = BTreeMap::new();
        for (def, shape) in self.inputs.iter().zip(shapes) {
            if shape.len() != def.dims.len() {
                return Err(self.error(format!("`{}` must be {}, found {shape:?}", def.name, def.shape())));
            }
            for (dim, &size) in def.dims.iter().zip(*shape) {
                let Dim::Axis(name) = dim else { continue };
                let bound = *dims.0.entry(name).or_insert(size);
                let source = *first.entry(name).or_insert(def.name);
                if bound != size {
                    return Err(self.error(format!(
                        "axis `{name}` is {bound} in `{source}` but {size} in `{}`",
                        def.name
                    )));
                }
            }
        }
        for (def, shape) in self.inputs.iter().zip(shapes) {
            for (dim, &size) in def.dims.iter().zip(*shape) {
                let expected = dim.eval(attrs, &dims);
                if expected != Some(size) {
                    let expected = expected.map_or("nothing whole".to_string(), |n| n.to_string());
                    return Err(
                        self.error(format!("`{dim}` of `{}` must be {expected}, found {size}", def.name))
                    );
                }
            }
        }
        (self.constraint)(attrs, &dims).map_err(|what| self.error(what))?;
        Ok(dims)
    }

    /// Shapes of the outputs for bound axes.
    ///
    /// # Errors
    /// An output size that is not whole or not representable.
    pub fn output_shapes(&self, attrs: &Attrs, dims: &Dims) -> Result<Vec<Vec<usize>>, OpError> {
        let size = |def: &TensorDef, dim: &Dim| {
            dim.eval(attrs, dims)
                .ok_or_else(|| self.error(format!("`{dim}` of output `{}` is not a size", def.name)))
        };
        self.outputs.iter().map(|def| def.dims.iter().map(|dim| size(def, dim)).collect()).collect()
    }

    /// Appends a node of this op to a graph; mistakes are kept by the graph.
    pub fn node(&self, g: &mut Graph, attrs: &Attrs, inputs: &[Value]) -> Vec<Value> {
        let activation = self
            .inputs
            .iter()
            .zip(inputs)
            .find(|(def, _)| def.ty == Ty::T)
            .map_or(dtype_attr(attrs), |(_, &v)| g.dtype(v));
        let dtype = |ty: Ty| match ty {
            Ty::T => activation,
            Ty::F32 => DType::F32,
            Ty::I8 => DType::I8,
            Ty::I32 => DType::I32,
        };
        for (def, &v) in self.inputs.iter().zip(inputs) {
            if g.dtype(v) != dtype(def.ty) {
                let what = format!("`{}` must be {}, found {}", def.name, dtype(def.ty), g.describe(v));
                g.fail(self.name, what);
            }
        }
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|&v| g.shape(v).to_vec()).collect();
        let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let outputs = self.check(attrs, &views).and_then(|dims| self.output_shapes(attrs, &dims));
        let outputs = match outputs {
            Ok(outputs) => outputs,
            Err(error) => {
                g.fail(self.name, error.what);
                self.outputs.iter().map(|def| vec![0; def.dims.len()]).collect()
            }
        };
        let types: Vec<_> =
            self.outputs.iter().zip(outputs).map(|(def, shape)| (dtype(def.ty), shape)).collect();
        let mut list: Vec<(String, Attr)> = attrs
            .iter()
            .map(|(name, value)| {
                let value = match value {
                    AttrValue::Int(v) => Attr::Int(*v),
                    AttrValue::Float(v) => Attr::Float(*v),
                    AttrValue::Choice(v) => Attr::Str(v.clone()),
                };
                (name.to_string(), value)
            })
            .collect();
        list.push(("plugin_version".to_string(), Attr::Str(self.version.to_string())));
        list.push(("plugin_namespace".to_string(), Attr::Str(DOMAIN.to_string())));
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        g.node(DOMAIN, self.name, &inputs, list, &types)
    }

    /// The attributes of a graph node of this op.
    pub fn attrs_of(&self, node: &turbo_graph::Node) -> Attrs {
        let mut attrs = Attrs::new();
        for (name, value) in &node.attrs {
            if self.attrs.iter().any(|def| def.name == name) {
                attrs = match value {
                    Attr::Int(v) => attrs.with(name, AttrValue::Int(*v)),
                    Attr::Float(v) => attrs.with(name, AttrValue::Float(*v)),
                    Attr::Str(v) => attrs.with(name, AttrValue::Choice(v.clone())),
                    Attr::Ints(_) => attrs,
                };
            }
        }
        attrs
    }

    /// Checks the inputs and runs the CPU kernel into new tensors.
    ///
    /// # Errors
    /// As [`Op::check`], or an input of the wrong element type.
    pub fn run(&self, attrs: &Attrs, inputs: &[TensorRef<'_>]) -> Result<Vec<Tensor>, OpError> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|t| t.shape).collect();
        let dims = self.check(attrs, &shapes)?;
        self.check_types(inputs)?;
        let outputs = self.output_shapes(attrs, &dims)?;
        let mut outputs: Vec<Tensor> = self
            .outputs
            .iter()
            .zip(outputs)
            .map(|(def, shape)| {
                let n = shape.iter().product();
                let data = match def.ty {
                    Ty::T | Ty::F32 => Data::F32(vec![f32::NAN; n]),
                    Ty::I8 => Data::I8(vec![0x55; n]),
                    Ty::I32 => Data::I32(vec![i32::MIN; n]),
                };
                Tensor { shape, data }
            })
            .collect();
        let mut views: Vec<TensorMut<'_>> = outputs.iter_mut().map(Tensor::view_mut).collect();
        (self.cpu)(attrs, inputs, &mut views);
        Ok(outputs)
    }

    /// Checks shapes and types and runs the CPU kernel into the caller's outputs.
    ///
    /// # Errors
    /// As [`Op::check`], or an input or output of the wrong type or size.
    pub fn run_into(
        &self,
        attrs: &Attrs,
        inputs: &[TensorRef<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<(), OpError> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|t| t.shape).collect();
        let dims = self.check(attrs, &shapes)?;
        self.check_types(inputs)?;
        let expected = self.output_shapes(attrs, &dims)?;
        for ((def, shape), out) in self.outputs.iter().zip(&expected).zip(outputs.iter()) {
            let elements = match &out.data {
                DataMut::F32(v) => v.len(),
                DataMut::I8(v) => v.len(),
                DataMut::I32(v) => v.len(),
            };
            let typed = matches!(
                (def.ty, &out.data),
                (Ty::T | Ty::F32, DataMut::F32(_)) | (Ty::I8, DataMut::I8(_)) | (Ty::I32, DataMut::I32(_))
            );
            if !typed || out.shape != shape || Some(elements) != count(shape) {
                return Err(self.error(format!("output `{}` must be {shape:?}", def.name)));
            }
        }
        (self.cpu)(attrs, inputs, outputs);
        Ok(())
    }

    fn check_types(&self, inputs: &[TensorRef<'_>]) -> Result<(), OpError> {
        for (def, input) in self.inputs.iter().zip(inputs) {
            let (typed, elements) = match (def.ty, input.data) {
                (Ty::T | Ty::F32, DataRef::F32(v)) => (true, v.len()),
                (Ty::I8, DataRef::I8(v)) => (true, v.len()),
                (Ty::I32, DataRef::I32(v)) => (true, v.len()),
                _ => (false, 0),
            };
            if !typed || Some(elements) != count(input.shape) {
                return Err(self
                    .error(format!("`{}` must be {:?} with {:?} elements", def.name, def.ty, input.shape)));
            }
        }
        Ok(())
    }
}

/// Elements of a shape, if they can be counted.
fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size))
}

impl TensorDef {
    /// The shape as documentation writes it: `[b, l, c]`.
    pub fn shape(&self) -> String {
        let dims: Vec<String> = self.dims.iter().map(Dim::to_string).collect();
        format!("[{}]", dims.join(", "))
    }
}

/// Writes every custom op of a graph out in standard ONNX operators.
///
/// # Errors
/// An op without a standard form, or an expansion that does not give the op's outputs.
pub fn expand(graph: &Graph) -> Result<Graph, turbo_graph::GraphError> {
    graph.rewrite(|g, node, inputs| {
        if node.domain != DOMAIN {
            return None;
        }
        let Some((op, expansion)) = crate::find(&node.op).and_then(|op| Some((op, op.expand?))) else {
            g.fail(&node.op, "has no form in standard ONNX operators".to_string());
            return None;
        };
        let inputs: Vec<Value> = inputs.iter().copied().flatten().collect();
        Some(expansion(g, &op.attrs_of(node), &inputs))
    })
}
