//! Standard ONNX operators (opset 20) as graph-building methods.
//!
//! Each method checks its operands, infers the output and appends one node. Names and attributes follow the
//! ONNX operator documentation.

use crate::{Attr, DType, Graph, Value};

fn ints(name: &str, v: &[usize]) -> (String, Attr) {
    (name.to_string(), Attr::Ints(v.iter().map(|&x| x as i64).collect()))
}

fn int(name: &str, v: i64) -> (String, Attr) {
    (name.to_string(), Attr::Int(v))
}

/// Multidirectional broadcasting as ONNX defines it.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() >= rank { s[i + s.len() - rank] } else { 1 };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Output extent of a convolution or pooling window along one axis.
fn window(extent: usize, kernel: usize, stride: usize, pad: (usize, usize)) -> Option<usize> {
    (extent + pad.0 + pad.1).checked_sub(kernel).map(|room| room / stride.max(1) + 1)
}

impl Graph {
    fn std(
        &mut self,
        op: &str,
        inputs: &[Value],
        attrs: Vec<(String, Attr)>,
        dtype: DType,
        shape: Vec<usize>,
    ) -> Value {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.node("", op, &inputs, attrs, &[(dtype, shape)])[0]
    }

    fn binary(&mut self, op: &str, a: Value, b: Value, out: Option<DType>) -> Value {
        if self.dtype(a) != self.dtype(b) {
            let (x, y) = (self.describe(a), self.describe(b));
            self.fail(op, format!("operand types differ: {x} and {y}"));
        }
        let shape = broadcast(self.shape(a), self.shape(b)).unwrap_or_else(|| {
            let (x, y) = (self.describe(a), self.describe(b));
            self.fail(op, format!("operands do not broadcast: {x} and {y}"));
            self.shape(a).to_vec()
        });
        let dtype = out.unwrap_or(self.dtype(a));
        self.std(op, &[a, b], vec![], dtype, shape)
    }

    fn unary(&mut self, op: &str, x: Value) -> Value {
        let (dtype, shape) = (self.dtype(x), self.shape(x).to_vec());
        self.std(op, &[x], vec![], dtype, shape)
    }

    fn axis(&mut self, op: &str, x: Value, axis: usize) -> usize {
        let rank = self.shape(x).len();
        if axis >= rank {
            self.fail(op, format!("axis {axis} of {}", self.describe(x)));
            return rank.saturating_sub(1);
        }
        axis
    }

    /// `a + b` with broadcasting.
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.binary("Add", a, b, None)
    }
    /// `a - b` with broadcasting.
    pub fn sub(&mut self, a: Value, b: Value) -> Value {
        self.binary("Sub", a, b, None)
    }
    /// `a * b` with broadcasting.
    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.binary("Mul", a, b, None)
    }
    /// `a / b` with broadcasting.
    pub fn div(&mut self, a: Value, b: Value) -> Value {
        self.binary("Div", a, b, None)
    }
    /// Elementwise maximum with broadcasting.
    pub fn max(&mut self, a: Value, b: Value) -> Value {
        self.binary("Max", a, b, None)
    }
    /// Elementwise minimum with broadcasting.
    pub fn min(&mut self, a: Value, b: Value) -> Value {
        self.binary("Min", a, b, None)
    }
    /// `a == b`, boolean.
    pub fn equal(&mut self, a: Value, b: Value) -> Value {
        self.binary("Equal", a, b, Some(DType::Bool))
    }
    /// `a + c` for a number.
    pub fn add_scalar(&mut self, a: Value, c: f64) -> Value {
        let dtype = self.dtype(a);
        let c = self.scalar(dtype, c);
        self.add(a, c)
    }
    /// `a * c` for a number.
    pub fn mul_scalar(&mut self, a: Value, c: f64) -> Value {
        let dtype = self.dtype(a);
        let c = self.scalar(dtype, c);
        self.mul(a, c)
    }

    /// Square root.
    pub fn sqrt(&mut self, x: Value) -> Value {
        self.unary("Sqrt", x)
    }
    /// Natural exponential.
    pub fn exp(&mut self, x: Value) -> Value {
        self.unary("Exp", x)
    }
    /// Natural logarithm.
    pub fn log(&mut self, x: Value) -> Value {
        self.unary("Log", x)
    }
    /// Cosine.
    pub fn cos(&mut self, x: Value) -> Value {
        self.unary("Cos", x)
    }
    /// Sine.
    pub fn sin(&mut self, x: Value) -> Value {
        self.unary("Sin", x)
    }
    /// Absolute value.
    pub fn abs(&mut self, x: Value) -> Value {
        self.unary("Abs", x)
    }
    /// Round half to even.
    pub fn round(&mut self, x: Value) -> Value {
        self.unary("Round", x)
    }
    /// Largest integer not above.
    pub fn floor(&mut self, x: Value) -> Value {
        self.unary("Floor", x)
    }
    /// -1, 0 or 1.
    pub fn sign(&mut self, x: Value) -> Value {
        self.unary("Sign", x)
    }
    /// Logistic function.
    pub fn sigmoid(&mut self, x: Value) -> Value {
        self.unary("Sigmoid", x)
    }
    /// Copy under another name.
    pub fn identity(&mut self, x: Value) -> Value {
        self.unary("Identity", x)
    }
    /// `x * sigmoid(x)`.
    pub fn silu(&mut self, x: Value) -> Value {
        let s = self.sigmoid(x);
        self.mul(x, s)
    }
    /// GELU with the tanh approximation.
    pub fn gelu_tanh(&mut self, x: Value) -> Value {
        let (dtype, shape) = (self.dtype(x), self.shape(x).to_vec());
        let attrs = vec![("approximate".to_string(), Attr::Str("tanh".to_string()))];
        self.std("Gelu", &[x], attrs, dtype, shape)
    }
    /// Limits to `[low, high]`.
    pub fn clip(&mut self, x: Value, low: f64, high: f64) -> Value {
        let (dtype, shape) = (self.dtype(x), self.shape(x).to_vec());
        let (low, high) = (self.scalar(dtype, low), self.scalar(dtype, high));
        self.std("Clip", &[x, low, high], vec![], dtype, shape)
    }
    /// Softmax over one axis.
    pub fn softmax(&mut self, x: Value, axis: usize) -> Value {
        let axis = self.axis("Softmax", x, axis);
        let (dtype, shape) = (self.dtype(x), self.shape(x).to_vec());
        self.std("Softmax", &[x], vec![int("axis", axis as i64)], dtype, shape)
    }
    /// `condition ? a : b` with broadcasting.
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Value {
        let shape = broadcast(self.shape(a), self.shape(b))
            .and_then(|s| broadcast(&s, self.shape(condition)))
            .unwrap_or_else(|| {
                let (c, x, y) = (self.describe(condition), self.describe(a), self.describe(b));
                self.fail("Where", format!("operands do not broadcast: {c}, {x}, {y}"));
                self.shape(a).to_vec()
            });
        let dtype = self.dtype(a);
        self.std("Where", &[condition, a, b], vec![], dtype, shape)
    }

    /// Converts to another element type; no node when it already has it.
    pub fn cast(&mut self, x: Value, to: DType) -> Value {
        if self.dtype(x) == to {
            return x;
        }
        // ONNX TensorProto.DataType numbers.
        let code = match to {
            DType::F32 => 1,
            DType::U8 => 2,
            DType::I8 => 3,
            DType::I32 => 6,
            DType::I64 => 7,
            DType::Bool => 9,
            DType::F16 => 10,
            DType::Bf16 => 16,
            DType::F8E4M3 => 17,
        };
        let shape = self.shape(x).to_vec();
        self.std("Cast", &[x], vec![int("to", code)], to, shape)
    }

    /// Same elements in another shape.
    pub fn reshape(&mut self, x: Value, shape: &[usize]) -> Value {
        if self.shape(x) == shape {
            return x;
        }
        if self.shape(x).iter().product::<usize>() != shape.iter().product::<usize>() {
            self.fail("Reshape", format!("{} into {shape:?}", self.describe(x)));
        }
        let target: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let target = self.constant_i64(&target);
        let dtype = self.dtype(x);
        self.std("Reshape", &[x, target], vec![], dtype, shape.to_vec())
    }

    /// Permutes axes.
    pub fn transpose(&mut self, x: Value, perm: &[usize]) -> Value {
        let from = self.shape(x).to_vec();
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..from.len()) {
            self.fail("Transpose", format!("{perm:?} of {}", self.describe(x)));
            return x;
        }
        let shape = perm.iter().map(|&p| from[p]).collect();
        let dtype = self.dtype(x);
        self.std("Transpose", &[x], vec![ints("perm", perm)], dtype, shape)
    }

    /// Repeats axes of size 1 to reach `shape`.
    pub fn expand(&mut self, x: Value, shape: &[usize]) -> Value {
        if self.shape(x) == shape {
            return x;
        }
        if broadcast(self.shape(x), shape).as_deref() != Some(shape) {
            self.fail("Expand", format!("{} to {shape:?}", self.describe(x)));
        }
        let target: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let target = self.constant_i64(&target);
        let dtype = self.dtype(x);
        self.std("Expand", &[x, target], vec![], dtype, shape.to_vec())
    }

    /// Joins along one axis.
    pub fn concat(&mut self, parts: &[Value], axis: usize) -> Value {
        let Some(&first) = parts.first() else {
            self.fail("Concat", "no operands".to_string());
            return self.scalar(DType::F32, 0.0);
        };
        let axis = self.axis("Concat", first, axis);
        let mut shape = self.shape(first).to_vec();
        for &part in &parts[1..] {
            let other = self.shape(part).to_vec();
            let fits = other.len() == shape.len()
                && (0..shape.len()).all(|i| i == axis || other[i] == shape[i])
                && self.dtype(part) == self.dtype(first);
            if fits {
                shape[axis] += other[axis];
            } else {
                let (x, y) = (self.describe(first), self.describe(part));
                self.fail("Concat", format!("axis {axis} of {x} and {y}"));
            }
        }
        let dtype = self.dtype(first);
        self.std("Concat", parts, vec![int("axis", axis as i64)], dtype, shape)
    }

    /// Elements `start..end` of one axis.
    pub fn slice(&mut self, x: Value, axis: usize, start: usize, end: usize) -> Value {
        let axis = self.axis("Slice", x, axis);
        let mut shape = self.shape(x).to_vec();
        if start >= end || shape.get(axis).is_none_or(|&n| end > n) {
            self.fail("Slice", format!("{start}..{end} on axis {axis} of {}", self.describe(x)));
            return x;
        }
        if start == 0 && end == shape[axis] {
            return x;
        }
        shape[axis] = end - start;
        let starts = self.constant_i64(&[start as i64]);
        let ends = self.constant_i64(&[end as i64]);
        let axes = self.constant_i64(&[axis as i64]);
        let dtype = self.dtype(x);
        self.std("Slice", &[x, starts, ends, axes], vec![], dtype, shape)
    }

    /// Rows of `table` along axis 0 at integer `indices`.
    pub fn gather(&mut self, table: Value, indices: Value) -> Value {
        let mut shape = self.shape(indices).to_vec();
        shape.extend(self.shape(table).iter().skip(1));
        let dtype = self.dtype(table);
        self.std("Gather", &[table, indices], vec![int("axis", 0)], dtype, shape)
    }

    /// Batched matrix product `a[.., m, k] @ b[.., k, n]`.
    pub fn matmul(&mut self, a: Value, b: Value) -> Value {
        let (x, y) = (self.shape(a).to_vec(), self.shape(b).to_vec());
        let fits = x.len() >= 2
            && y.len() >= 2
            && x[x.len() - 1] == y[y.len() - 2]
            && self.dtype(a) == self.dtype(b);
        let batch = fits.then(|| broadcast(&x[..x.len() - 2], &y[..y.len() - 2])).flatten();
        let Some(mut shape) = batch else {
            let (p, q) = (self.describe(a), self.describe(b));
            self.fail("MatMul", format!("{p} by {q}"));
            return a;
        };
        shape.extend([x[x.len() - 2], y[y.len() - 1]]);
        let dtype = self.dtype(a);
        self.std("MatMul", &[a, b], vec![], dtype, shape)
    }

    /// `x[m, k] @ w[n, k]^T + bias[n]`, weights in the layout of `torch.nn.Linear`.
    pub fn gemm(&mut self, x: Value, w: Value, bias: Option<Value>) -> Value {
        let (a, b) = (self.shape(x).to_vec(), self.shape(w).to_vec());
        let bias_fits = bias.is_none_or(|v| b.len() == 2 && self.shape(v) == [b[0]]);
        if a.len() != 2 || b.len() != 2 || a[1] != b[1] || !bias_fits || self.dtype(x) != self.dtype(w) {
            let mut what = format!("{} by {} transposed", self.describe(x), self.describe(w));
            if let Some(v) = bias {
                what += &format!(" plus {}", self.describe(v));
            }
            self.fail("Gemm", what);
            return x;
        }
        let dtype = self.dtype(x);
        let operands: Vec<Value> = [x, w].into_iter().chain(bias).collect();
        self.std("Gemm", &operands, vec![int("transB", 1)], dtype, vec![a[0], b[0]])
    }

    fn reduce(&mut self, op: &str, x: Value, axes: &[usize], keep: bool) -> Value {
        let from = self.shape(x).to_vec();
        if axes.iter().any(|&a| a >= from.len()) {
            self.fail(op, format!("axes {axes:?} of {}", self.describe(x)));
            return x;
        }
        let shape = from
            .iter()
            .enumerate()
            .filter_map(|(i, &d)| if !axes.contains(&i) { Some(d) } else { keep.then_some(1) })
            .collect();
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let axes = self.constant_i64(&axes);
        let dtype = self.dtype(x);
        self.std(op, &[x, axes], vec![int("keepdims", keep as i64)], dtype, shape)
    }

    /// Sum over axes, kept with size 1.
    pub fn reduce_sum(&mut self, x: Value, axes: &[usize]) -> Value {
        self.reduce("ReduceSum", x, axes, true)
    }
    /// Mean over axes, kept with size 1.
    pub fn reduce_mean(&mut self, x: Value, axes: &[usize]) -> Value {
        self.reduce("ReduceMean", x, axes, true)
    }
    /// Maximum over axes, kept with size 1.
    pub fn reduce_max(&mut self, x: Value, axes: &[usize]) -> Value {
        self.reduce("ReduceMax", x, axes, true)
    }

    /// The `k` largest elements of the last axis: values and i64 indices, largest first.
    pub fn top_k(&mut self, x: Value, k: usize) -> (Value, Value) {
        let mut shape = self.shape(x).to_vec();
        match shape.last_mut() {
            Some(last) if k >= 1 && k <= *last => *last = k,
            _ => self.fail("TopK", format!("{k} of {}", self.describe(x))),
        }
        let count = self.constant_i64(&[k as i64]);
        let dtype = self.dtype(x);
        let attrs = vec![int("axis", -1), int("largest", 1), int("sorted", 1)];
        let out = self.node(
            "",
            "TopK",
            &[Some(x), Some(count)],
            attrs,
            &[(dtype, shape.clone()), (DType::I64, shape)],
        );
        (out[0], out[1])
    }

    /// Copies of `data` with `updates` written along the last axis at `indices`.
    pub fn scatter_last(&mut self, data: Value, indices: Value, updates: Value) -> Value {
        if self.shape(indices) != self.shape(updates) || self.shape(indices).len() != self.shape(data).len() {
            let (i, u) = (self.describe(indices), self.describe(updates));
            self.fail("ScatterElements", format!("{i} indices for {u} updates of {}", self.describe(data)));
        }
        let (dtype, shape) = (self.dtype(data), self.shape(data).to_vec());
        self.std("ScatterElements", &[data, indices, updates], vec![int("axis", -1)], dtype, shape)
    }

    /// Constant padding: `pads[axis] = (before, after)`.
    pub fn pad(&mut self, x: Value, pads: &[(usize, usize)], value: f64) -> Value {
        if pads.iter().all(|&p| p == (0, 0)) {
            return x;
        }
        if pads.len() != self.shape(x).len() {
            self.fail("Pad", format!("{pads:?} for {}", self.describe(x)));
            return x;
        }
        let shape = self.shape(x).iter().zip(pads).map(|(&d, &(a, b))| d + a + b).collect();
        let flat: Vec<i64> = pads.iter().map(|p| p.0 as i64).chain(pads.iter().map(|p| p.1 as i64)).collect();
        let flat = self.constant_i64(&flat);
        let dtype = self.dtype(x);
        let value = self.scalar(dtype, value);
        let attrs = vec![("mode".to_string(), Attr::Str("constant".to_string()))];
        self.std("Pad", &[x, flat, value], attrs, dtype, shape)
    }

    /// N-dimensional convolution of `x[b, c, spatial..]` with `w[o, c, kernel..]`; `pads[axis] = (before, after)`.
    pub fn conv(
        &mut self,
        x: Value,
        w: Value,
        bias: Option<Value>,
        stride: &[usize],
        pads: &[(usize, usize)],
    ) -> Value {
        let (a, b) = (self.shape(x).to_vec(), self.shape(w).to_vec());
        let rank = a.len().saturating_sub(2);
        let fits = a.len() == b.len()
            && a.len() > 2
            && a[1] == b[1]
            && stride.len() == rank
            && pads.len() == rank
            && bias.is_none_or(|v| self.shape(v) == [b[0]])
            && self.dtype(x) == self.dtype(w);
        let spatial: Option<Vec<usize>> = fits
            .then(|| (0..rank).map(|i| window(a[2 + i], b[2 + i], stride[i], pads[i])).collect())
            .flatten();
        let Some(spatial) = spatial else {
            let what =
                format!("{} with {} stride {stride:?} pads {pads:?}", self.describe(x), self.describe(w));
            self.fail("Conv", what);
            return x;
        };
        let mut shape = vec![a[0], b[0]];
        shape.extend(spatial);
        let flat: Vec<usize> = pads.iter().map(|p| p.0).chain(pads.iter().map(|p| p.1)).collect();
        let attrs = vec![ints("kernel_shape", &b[2..]), ints("strides", stride), ints("pads", &flat)];
        let operands: Vec<Value> = [x, w].into_iter().chain(bias).collect();
        let dtype = self.dtype(x);
        self.std("Conv", &operands, attrs, dtype, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_inferred() {
        let mut g = Graph::new("t");
        let x = g.input("x", DType::F32, &[2, 3, 4]);
        let y = g.input("y", DType::F32, &[4, 5]);
        let z = g.matmul(x, y);
        assert_eq!(g.shape(z), [2, 3, 5]);
        let s = g.reduce_sum(z, &[1]);
        assert_eq!(g.shape(s), [2, 1, 5]);
        let d = g.sub(z, s);
        let t = g.transpose(d, &[2, 0, 1]);
        assert_eq!(g.shape(t), [5, 2, 3]);
        let v = g.input("v", DType::F32, &[1, 4, 3, 8, 9]);
        let w = g.weight("w", DType::F32, &[6, 4, 3, 3, 3]);
        let c = g.conv(v, w, None, &[1, 2, 2], &[(0, 0), (0, 1), (0, 1)]);
        assert_eq!(g.shape(c), [1, 6, 1, 4, 4]);
        assert!(g.finish().is_ok());
    }

    #[test]
    fn the_first_mistake_is_kept_and_named() {
        let mut g = Graph::new("t");
        let x = g.input("x", DType::F32, &[2, 3]);
        let y = g.input("y", DType::F32, &[4, 5]);
        g.scope("blocks.0", |g| g.matmul(x, y));
        let _ = g.add(x, y);
        let error = g.finish().unwrap_err();
        assert_eq!(error.to_string(), "blocks.0.MatMul: f32[2, 3] by f32[4, 5]");
    }

    #[test]
    fn equal_constants_are_stored_once() {
        let mut g = Graph::new("t");
        let a = g.scalar(DType::F32, 1.5);
        let b = g.scalar(DType::F32, 1.5);
        let c = g.scalar(DType::F32, 2.5);
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(g.initializers().len(), 2);
    }
}
