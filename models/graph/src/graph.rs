//! Values, nodes, initializers and the graph that holds them.

use std::collections::{HashMap, HashSet};

use crate::DType;

/// Handle of a value in the graph that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

/// A node attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// 64-bit integer.
    Int(i64),
    /// 32-bit float.
    Float(f32),
    /// Text.
    Str(String),
    /// List of integers.
    Ints(Vec<i64>),
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Operator type, such as `Conv`.
    pub op: String,
    /// Operator domain; empty for standard ONNX.
    pub domain: String,
    /// Unique name, made of the scope it was built in.
    pub name: String,
    /// Inputs in the operator's order; `None` is an omitted optional input.
    pub inputs: Vec<Option<Value>>,
    /// Outputs in the operator's order.
    pub outputs: Vec<Value>,
    /// Attributes, all written out.
    pub attrs: Vec<(String, Attr)>,
}

/// Where an initializer's elements come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// Little-endian row-major elements kept in the graph: small constants.
    Inline(Vec<u8>),
    /// A stored weight of this name, supplied when the graph is written.
    Weight(String),
}

/// A value that is known before the graph runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Initializer {
    /// The value it defines.
    pub value: Value,
    /// Its elements.
    pub payload: Payload,
}

#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// A mistake made while building: which node, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {what}")]
pub struct GraphError {
    /// Scope and operator.
    pub node: String,
    /// What does not fit, expected against found.
    pub what: String,
}

/// A network under construction, or complete.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name of the stage the graph implements.
    pub name: String,
    pub(crate) values: Vec<Info>,
    nodes: Vec<Node>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    initializers: Vec<Initializer>,
    scope: Vec<String>,
    names: HashSet<String>,
    counters: HashMap<String, usize>,
    constants: HashMap<(DType, Vec<usize>, Vec<u8>), Value>,
    weights: HashMap<String, Value>,
    error: Option<GraphError>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Graph {
            name: name.to_string(),
            values: Vec::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            initializers: Vec::new(),
            scope: Vec::new(),
            names: HashSet::new(),
            counters: HashMap::new(),
            constants: HashMap::new(),
            weights: HashMap::new(),
            error: None,
        }
    }

    /// Builds inside a name scope; scopes join with dots, as checkpoint names do.
    pub fn scope<R>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> R) -> R {
        self.scope.push(name.to_string());
        let result = build(self);
        self.scope.pop();
        result
    }

    /// The current scope joined with `leaf`.
    pub fn path(&self, leaf: &str) -> String {
        let mut path = self.scope.join(".");
        if !path.is_empty() && !leaf.is_empty() {
            path.push('.');
        }
        path + leaf
    }

    fn unique(&mut self, wanted: String) -> String {
        if self.names.insert(wanted.clone()) {
            return wanted;
        }
        let counter = self.counters.entry(wanted.clone()).or_insert(0);
        loop {
            *counter += 1;
            let name = format!("{wanted}_{counter}");
            if self.names.insert(name.clone()) {
                return name;
            }
        }
    }

    fn value(&mut self, name: String, dtype: DType, shape: &[usize]) -> Value {
        let name = self.unique(name);
        self.values.push(Info { name, dtype, shape: shape.to_vec() });
        Value((self.values.len() - 1) as u32)
    }

    /// Adds a graph input.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Value {
        let value = self.value(name.to_string(), dtype, shape);
        self.inputs.push(value);
        value
    }

    /// Makes `value` a graph output called `name`.
    ///
    /// The value is renamed; one that already has a public name (an input, a weight or another output) is
    /// passed through an `Identity` node first.
    pub fn output(&mut self, name: &str, value: Value) {
        let taken = self.inputs.contains(&value)
            || self.outputs.contains(&value)
            || self.initializers.iter().any(|i| i.value == value);
        let value = if taken { self.identity(value) } else { value };
        self.rename(value, name.to_string());
        self.outputs.push(value);
    }

    /// Names an inner value after the current scope, so that it can be found by [`Graph::find`].
    pub fn label(&mut self, value: Value, leaf: &str) -> Value {
        let name = self.path(leaf);
        if !self.inputs.contains(&value) {
            self.rename(value, name);
        }
        value
    }

    fn rename(&mut self, value: Value, name: String) {
        let old = self.values[value.0 as usize].name.clone();
        if old == name {
            return;
        }
        self.names.remove(&old);
        self.values[value.0 as usize].name = self.unique(name);
    }

    /// The value of that name.
    pub fn find(&self, name: &str) -> Option<Value> {
        self.values.iter().position(|v| v.name == name).map(|i| Value(i as u32))
    }

    /// A stored weight, known by its name; asking twice gives the same value.
    pub fn weight(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Value {
        if let Some(&value) = self.weights.get(name) {
            if self.shape(value) != shape || self.dtype(value) != dtype {
                let found = self.describe(value);
                self.fail("weight", format!("{name} is {found}, asked for as {dtype}{shape:?}"));
            }
            return value;
        }
        let value = self.value(name.to_string(), dtype, shape);
        self.initializers.push(Initializer { value, payload: Payload::Weight(name.to_string()) });
        self.weights.insert(name.to_string(), value);
        value
    }

    /// A constant kept in the graph; equal constants are stored once.
    pub fn constant(&mut self, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Value {
        if bytes.len() != shape.iter().product::<usize>() * dtype.size() {
            self.fail("constant", format!("{} bytes for {dtype}{shape:?}", bytes.len()));
        }
        let key = (dtype, shape.to_vec(), bytes);
        if let Some(&value) = self.constants.get(&key) {
            return value;
        }
        let value = self.value("const".to_string(), dtype, shape);
        self.initializers.push(Initializer { value, payload: Payload::Inline(key.2.clone()) });
        self.constants.insert(key, value);
        value
    }

    /// An f32 constant.
    pub fn constant_f32(&mut self, shape: &[usize], data: &[f32]) -> Value {
        self.constant(DType::F32, shape, bytemuck::cast_slice(data).to_vec())
    }

    /// A one-dimensional i64 constant, as shapes and axes are given to standard operators.
    pub fn constant_i64(&mut self, data: &[i64]) -> Value {
        self.constant(DType::I64, &[data.len()], bytemuck::cast_slice(data).to_vec())
    }

    /// A scalar of `dtype` (f32, f16, bf16 or an integer type) that holds `x`.
    pub fn scalar(&mut self, dtype: DType, x: f64) -> Value {
        let bytes = match dtype {
            DType::F32 => (x as f32).to_le_bytes().to_vec(),
            DType::F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
            DType::Bf16 => half::bf16::from_f64(x).to_le_bytes().to_vec(),
            DType::I64 => (x as i64).to_le_bytes().to_vec(),
            DType::I32 => (x as i32).to_le_bytes().to_vec(),
            DType::I8 => (x as i8).to_le_bytes().to_vec(),
            DType::U8 | DType::Bool => vec![x as u8],
            DType::F8E4M3 => {
                self.fail("scalar", "FP8 scalars are not used".to_string());
                vec![0]
            }
        };
        self.constant(dtype, &[], bytes)
    }

    /// Appends a node whose output types and shapes the caller knows.
    pub fn node(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[Option<Value>],
        attrs: Vec<(String, Attr)>,
        outputs: &[(DType, Vec<usize>)],
    ) -> Vec<Value> {
        let base = self.path(op);
        let name = self.unique(format!("{base}#"));
        let outs: Vec<Value> =
            outputs.iter().map(|(dtype, shape)| self.value(format!("{base}.out"), *dtype, shape)).collect();
        self.nodes.push(Node {
            op: op.to_string(),
            domain: domain.to_string(),
            name,
            inputs: inputs.to_vec(),
            outputs: outs.clone(),
            attrs,
        });
        outs
    }

    /// Keeps the first mistake; building goes on with whatever shape is at hand.
    pub fn fail(&mut self, op: &str, what: String) {
        if self.error.is_none() {
            self.error = Some(GraphError { node: self.path(op), what });
        }
    }

    /// The complete graph, or the first mistake.
    ///
    /// # Errors
    /// Whatever [`Graph::fail`] recorded: shapes or types that do not fit, named by scope and operator.
    pub fn finish(self) -> Result<Graph, GraphError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }

    /// Element type of a value.
    pub fn dtype(&self, value: Value) -> DType {
        self.values[value.0 as usize].dtype
    }

    /// Shape of a value.
    pub fn shape(&self, value: Value) -> &[usize] {
        &self.values[value.0 as usize].shape
    }

    /// Size of one axis; 0 when there is no such axis (the mistake is then reported by the next operator).
    pub fn dim(&self, value: Value, axis: usize) -> usize {
        self.shape(value).get(axis).copied().unwrap_or(0)
    }

    /// Name of a value.
    pub fn value_name(&self, value: Value) -> &str {
        &self.values[value.0 as usize].name
    }

    /// Type and shape as messages write them: `f32[1, 105, 256]`.
    pub fn describe(&self, value: Value) -> String {
        format!("{}{:?}", self.dtype(value), self.shape(value))
    }

    /// Nodes in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Graph inputs.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// Graph outputs.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// Constants and weights.
    pub fn initializers(&self) -> &[Initializer] {
        &self.initializers
    }

    /// All values made so far.
    pub fn values(&self) -> impl Iterator<Item = Value> + '_ {
        (0..self.values.len()).map(|i| Value(i as u32))
    }

    /// A copy in which `replace` may write a node out as other nodes.
    ///
    /// `replace` sees the new graph, the old node and the node's inputs in the new graph, inside the scope of
    /// the node's name; `None` keeps the node. Names of kept values stay as they are.
    ///
    /// # Errors
    /// Replacements whose outputs differ from the node's in number, type or shape, and whatever they report.
    pub fn rewrite(
        &self,
        mut replace: impl FnMut(&mut Graph, &Node, &[Option<Value>]) -> Option<Vec<Value>>,
    ) -> Result<Graph, GraphError> {
        let mut new = Graph::new(&self.name);
        let mut map: HashMap<Value, Value> = HashMap::new();
        for &v in &self.inputs {
            map.insert(v, new.input(self.value_name(v), self.dtype(v), self.shape(v)));
        }
        for i in &self.initializers {
            let (dtype, shape) = (self.dtype(i.value), self.shape(i.value));
            let value = match &i.payload {
                Payload::Inline(bytes) => new.constant(dtype, shape, bytes.clone()),
                Payload::Weight(name) => new.weight(name, dtype, shape),
            };
            map.insert(i.value, value);
        }
        for node in &self.nodes {
            let inputs: Vec<Option<Value>> =
                node.inputs.iter().map(|v| v.and_then(|v| map.get(&v).copied())).collect();
            let types: Vec<_> =
                node.outputs.iter().map(|&v| (self.dtype(v), self.shape(v).to_vec())).collect();
            let outs = match new.scope(&node.name, |g| replace(g, node, &inputs)) {
                Some(outs) => {
                    let found: Vec<_> = outs.iter().map(|&v| (new.dtype(v), new.shape(v).to_vec())).collect();
                    if found != types {
                        new.fail(&node.name, format!("written out as {found:?}, expected {types:?}"));
                    }
                    outs
                }
                None => new.node(&node.domain, &node.op, &inputs, node.attrs.clone(), &types),
            };
            for (&old, value) in node.outputs.iter().zip(outs) {
                if !self.outputs.contains(&old) {
                    new.rename(value, self.value_name(old).to_string());
                }
                map.insert(old, value);
            }
        }
        for &v in &self.outputs {
            if let Some(&value) = map.get(&v) {
                new.output(self.value_name(v), value);
            }
        }
        new.finish()
    }
}
