//! The one place that decides how a linear is computed.

use turbo_graph::{DType, Graph, Value};
use turbo_ops::Attrs;
use turbo_ops::common::quant::{FORMAT, Format};

use super::recipe::{Recipe, weight_name};
use crate::Params;

/// Rows on their way into a linear.
#[derive(Clone, Copy)]
pub(super) enum Input {
    /// `[m, k]` in the activation type.
    Plain(Value),
    /// Bytes `[m, k]` of the format and f32 scales per 128 x 128 block.
    Quantized(Format, Value, Value),
}

/// The attribute of every op of quantised values.
fn attrs(format: Format) -> Attrs {
    Attrs::new().choice(FORMAT.name, format.word())
}

/// Builds linears of one precision.
#[derive(Clone, Copy)]
pub(super) struct Linears<'a> {
    /// Of quantised linears.
    format: Option<Format>,
    params: Params<'a>,
}

impl<'a> Linears<'a> {
    /// Linears inside the blocks, as the recipe says.
    pub(super) fn new(recipe: &Recipe, params: Params<'a>) -> Self {
        Linears { format: recipe.linear.format(), params }
    }

    /// Linears outside the blocks, never quantised.
    pub(super) fn plain(params: Params<'a>) -> Self {
        Linears { format: None, params }
    }

    fn dtype(&self) -> &'static str {
        self.params.compute.name()
    }

    fn bias(&self, g: &mut Graph, path: &str, n: usize, dtype: DType) -> Value {
        self.params.typed(g, &format!("{path}.bias"), &[n], dtype)
    }

    /// Quantised weight `[n, k]`, its scales, and the bias.
    fn quantized(&self, g: &mut Graph, format: Format, path: &str, [n, k]: [usize; 2]) -> [Value; 3] {
        [
            self.params.stored(g, &format!("{path}.{}", weight_name(format)), &[n, k]),
            self.params.stored(g, &format!("{path}.scale"), &[n.div_ceil(128), k.div_ceil(128)]),
            self.bias(g, path, n, DType::F32),
        ]
    }

    /// Prepares rows `[m, k]` once for every linear that reads them.
    pub(super) fn input(&self, g: &mut Graph, x: Value) -> Input {
        match self.format {
            None => Input::Plain(x),
            Some(format) => {
                let out = turbo_ops::emit(g, "TurboQuantize", attrs(format), &[x]);
                Input::Quantized(format, out[0], out[1])
            }
        }
    }

    /// `norm(x) * scale + shift` of rows `[m, c]` as input of the linears that follow; as [`super::attention::norm`].
    pub(super) fn norm_input(&self, g: &mut Graph, x: Value, scale: Value, shift: Value, eps: f32) -> Input {
        match self.format {
            None => Input::Plain(super::attention::norm(g, "layer", x, scale, shift, eps)),
            Some(format) => {
                let attrs = attrs(format).choice("kind", "layer").float("eps", eps);
                let out = turbo_ops::emit(g, "TurboNormQuantize", attrs, &[x, scale, shift]);
                Input::Quantized(format, out[0], out[1])
            }
        }
    }

    /// The linear whose checkpoint path is `path`, whatever the scope.
    pub(super) fn named(&self, g: &mut Graph, path: &str, x: Value, n: usize) -> Value {
        let input = self.input(g, x);
        self.at(g, path, &input, n)
    }

    /// The linear `leaf` of the current scope: `[m, k]` to `[m, n]`.
    pub(super) fn apply(&self, g: &mut Graph, leaf: &str, x: &Input, n: usize) -> Value {
        let path = g.path(leaf);
        self.at(g, &path, x, n)
    }

    /// `x @ weight^T + bias`, with `gelu` the tanh GELU of it. In f32 every backend's own product is better.
    fn full(&self, g: &mut Graph, path: &str, x: Value, n: usize, gelu: bool) -> Value {
        let k = g.dim(x, 1);
        let w = self.params.get(g, &format!("{path}.weight"), &[n, k]);
        let bias = self.bias(g, path, n, self.params.compute);
        if self.params.compute != DType::F32 {
            let attrs = Attrs::new().choice("activation", if gelu { "gelu_tanh" } else { "none" });
            return turbo_ops::emit(g, "TurboLinear", attrs, &[x, w, bias])[0];
        }
        let y = g.gemm(x, w, Some(bias));
        if gelu { g.gelu_tanh(y) } else { y }
    }

    fn at(&self, g: &mut Graph, path: &str, x: &Input, n: usize) -> Value {
        match *x {
            Input::Plain(x) => self.full(g, path, x, n, false),
            Input::Quantized(format, q, s) => {
                let [w, ws, bias] = self.quantized(g, format, path, [n, g.dim(q, 1)]);
                let attrs = attrs(format).choice("activation", "none").choice("dtype", self.dtype());
                turbo_ops::emit(g, "TurboW8A8Linear", attrs, &[q, s, w, ws, bias])[0]
            }
        }
    }

    /// The linears `q`, `k` and `v` of the current scope: `[m, k]` to `[m, n]` each.
    pub(super) fn qkv(&self, g: &mut Graph, x: &Input, n: usize) -> [Value; 3] {
        let leaves = ["q", "k", "v"];
        let y = match *x {
            Input::Plain(_) => leaves.map(|leaf| self.apply(g, leaf, x, n)),
            Input::Quantized(format, q, s) => {
                let k = g.dim(q, 1);
                let weights = leaves.map(|leaf| {
                    let path = g.path(leaf);
                    self.quantized(g, format, &path, [n, k])
                });
                let inputs = [&[q, s], weights.as_flattened()].concat();
                let attrs = attrs(format).choice("dtype", self.dtype());
                let y = turbo_ops::emit(g, "TurboW8A8LinearQkv", attrs, &inputs);
                [y[0], y[1], y[2]]
            }
        };
        [0, 1, 2].map(|i| g.label(y[i], leaves[i]))
    }

    /// `gelu(linear(x))` as input rows of the next linear.
    pub(super) fn gelu_input(&self, g: &mut Graph, leaf: &str, x: &Input, n: usize) -> Input {
        match *x {
            Input::Plain(x) => {
                let path = g.path(leaf);
                Input::Plain(self.full(g, &path, x, n, true))
            }
            Input::Quantized(format, q, s) => {
                let path = g.path(leaf);
                let [w, ws, bias] = self.quantized(g, format, &path, [n, g.dim(q, 1)]);
                let attrs = attrs(format).choice("activation", "gelu_tanh");
                let out = turbo_ops::emit(g, "TurboW8A8LinearQuantize", attrs, &[q, s, w, ws, bias]);
                Input::Quantized(format, out[0], out[1])
            }
        }
    }

    /// `residual + gate * linear(x)`; `gate` f32 `[1 or b, n]`, or none for a plain sum. Rows `[m, n]`.
    pub(super) fn residual(
        &self,
        g: &mut Graph,
        leaf: &str,
        x: &Input,
        residual: Value,
        gate: Option<Value>,
    ) -> Value {
        let (m, n) = (g.dim(residual, 0), g.dim(residual, 1));
        match *x {
            Input::Plain(_) => {
                let y = self.apply(g, leaf, x, n);
                let y = g.label(y, leaf);
                let Some(gate) = gate else { return g.add(residual, y) };
                let gate = g.cast(gate, self.params.compute);
                let y = match g.dim(gate, 0) {
                    // Without a reshape, which to TensorRT is a copy.
                    1 => g.mul(y, gate),
                    groups => {
                        let gate = g.reshape(gate, &[groups, 1, n]);
                        let y = g.reshape(y, &[groups, m / groups.max(1), n]);
                        let y = g.mul(y, gate);
                        g.reshape(y, &[m, n])
                    }
                };
                g.add(residual, y)
            }
            Input::Quantized(format, q, s) => {
                let gate = gate.unwrap_or_else(|| g.constant_f32(&[1, n], &vec![1.0; n]));
                let path = g.path(leaf);
                let [w, ws, bias] = self.quantized(g, format, &path, [n, g.dim(q, 1)]);
                let inputs = [q, s, w, ws, bias, residual, gate];
                turbo_ops::emit(g, "TurboW8A8LinearResidual", attrs(format), &inputs)[0]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Weights;

    /// One linear of 8 to 16.
    struct One;

    impl Weights for One {
        fn info(&self, name: &str) -> Option<(DType, Vec<usize>)> {
            let shape = if name.ends_with("weight") { vec![16, 8] } else { vec![16] };
            Some((DType::Bf16, shape))
        }
    }

    /// Linears of 128 to 128, in bf16 and quantised.
    struct Square;

    impl Weights for Square {
        fn info(&self, name: &str) -> Option<(DType, Vec<usize>)> {
            Some(match name.rsplit_once('.')?.1 {
                "weight" => (DType::Bf16, vec![128, 128]),
                "int8_weight" => (DType::I8, vec![128, 128]),
                "scale" => (DType::F32, vec![1, 1]),
                _ => (DType::F32, vec![128]),
            })
        }
    }

    #[test]
    fn queries_keys_and_values_have_each_their_own_weights() {
        let graph = |quantised: bool| {
            let params = Params::converted(&Square, DType::Bf16);
            let linear = if quantised { super::super::Linear::W8a8 } else { super::super::Linear::Bf16 };
            let linears = Linears::new(&Recipe { linear, ..Recipe::default() }, params);
            let mut g = Graph::new("qkv");
            let x = g.input("x", DType::Bf16, &[256, 128]);
            let x = linears.input(&mut g, x);
            for (i, y) in linears.qkv(&mut g, &x, 128).into_iter().enumerate() {
                g.output(["q", "k", "v"][i], y);
            }
            g.finish().unwrap()
        };
        let g = graph(true);
        let ops: Vec<&str> = g.nodes().iter().map(|node| node.op.as_str()).collect();
        assert_eq!(ops, ["TurboQuantize", "TurboW8A8LinearQkv"]);
        let weights: Vec<&str> =
            g.nodes()[1].inputs[2..].iter().flatten().map(|&v| g.value_name(v)).collect();
        let own = |leaf| [format!("{leaf}.int8_weight"), format!("{leaf}.scale"), format!("{leaf}.bias")];
        assert_eq!(weights, ["q", "k", "v"].map(own).concat());

        let g = graph(false);
        let weights: Vec<&str> =
            g.nodes().iter().filter_map(|node| Some(g.value_name(node.inputs[1]?))).collect();
        assert_eq!(weights, ["q.weight", "k.weight", "v.weight"]);
    }

    #[test]
    fn a_plain_linear_takes_its_activation_and_stored_weights() {
        for (compute, expected) in [(DType::Bf16, &["TurboLinear"][..]), (DType::F32, &["Gemm", "Gelu"])] {
            let linears = Linears::plain(Params::converted(&One, compute));
            let mut g = Graph::new("linear");
            let x = g.input("x", compute, &[4, 8]);
            let Input::Plain(y) = linears.gelu_input(&mut g, "ffn", &Input::Plain(x), 16) else {
                panic!("quantised")
            };
            g.output("y", y);
            let g = g.finish().unwrap();
            assert_eq!(g.nodes().iter().map(|node| node.op.as_str()).collect::<Vec<_>>(), expected);
            let names: Vec<&str> = g.initializers().iter().map(|one| g.value_name(one.value)).collect();
            assert_eq!(names, ["ffn.weight", "ffn.bias"]);
        }
    }
}
