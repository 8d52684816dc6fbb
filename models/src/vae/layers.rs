//! The VAE's modules. Which module stands where is read off the weights' names.

use turbo_graph::{DType, Graph, GraphError, Value};

use super::{Stage, State};
use crate::Params;

/// Frames of a causal convolution's input that come from earlier runs.
const CACHED: usize = 2;

/// Builds modules and collects their states.
pub(super) struct Layers<'a> {
    params: Params<'a>,
    first: bool,
    state: Vec<State>,
    next: Vec<(String, Value)>,
}

impl<'a> Layers<'a> {
    /// Layers for the first frame of a video, or for the chunks after it.
    pub(super) fn new(params: Params<'a>, first: bool) -> Self {
        Layers { params, first, state: Vec::new(), next: Vec::new() }
    }

    /// Adds the states' outputs and completes the graph.
    pub(super) fn finish(self, mut g: Graph) -> Result<Stage, GraphError> {
        for (name, value) in self.next {
            g.output(&name, value);
        }
        Ok(Stage { graph: g.finish()?, state: self.state })
    }

    /// The state of the module at `path`, as it is before this run. A first run knows that it is zero.
    fn state(&mut self, g: &mut Graph, path: &str, shape: Vec<usize>) -> Value {
        let value = g.input(&format!("state.{path}"), self.params.compute, &shape);
        self.state.push(State { name: path.to_string(), shape });
        value
    }

    fn keep(&mut self, path: &str, value: Value) {
        self.next.push((format!("next.{path}"), value));
    }

    /// Shape of a convolution's weight; the graph keeps a mistake when there is none.
    fn kernel(&self, g: &mut Graph, path: &str, rank: usize) -> Vec<usize> {
        let name = format!("{path}.weight");
        match self.params.shape(&name) {
            Some(shape) if shape.len() == rank => shape,
            found => {
                let found = found.map_or("missing".to_string(), |s| format!("{s:?}"));
                g.fail("weight", format!("{name} must have {rank} axes, found {found}"));
                vec![1; rank]
            }
        }
    }

    fn weights(&self, g: &mut Graph, path: &str, kernel: &[usize]) -> (Value, Value) {
        let weight = self.params.get(g, &format!("{path}.weight"), kernel);
        let bias = self.params.get(g, &format!("{path}.bias"), &kernel[..1]);
        (weight, bias)
    }

    /// `CausalConv3d` with a kernel of 1: no state.
    pub(super) fn pointwise(&mut self, g: &mut Graph, leaf: &str, x: Value) -> Value {
        let path = g.path(leaf);
        let kernel = self.kernel(g, &path, 5);
        let (weight, bias) = self.weights(g, &path, &kernel);
        g.conv(x, weight, Some(bias), &[1, 1, 1], &[(0, 0); 3])
    }

    /// `CausalConv3d` with 3 frames: the two before `x` come from the state.
    pub(super) fn causal(&mut self, g: &mut Graph, leaf: &str, x: Value) -> Value {
        let path = g.path(leaf);
        let kernel = self.kernel(g, &path, 5);
        let (weight, bias) = self.weights(g, &path, &kernel);
        let mut shape = g.shape(x).to_vec();
        if let Some(frames) = shape.get_mut(2) {
            *frames = CACHED;
        }
        let before = self.state(g, &path, shape);
        let all = g.concat(&[before, x], 2);
        let frames = g.dim(all, 2);
        let last = g.slice(all, 2, frames.saturating_sub(CACHED), frames);
        self.keep(&path, last);
        let pad = |k: usize| (k / 2, k / 2);
        g.conv(all, weight, Some(bias), &[1, 1, 1], &[(0, 0), pad(kernel[3]), pad(kernel[4])])
    }

    /// Modules `leaf.0`, `leaf.1`, ... as long as there are weights for one.
    pub(super) fn sequence(&mut self, g: &mut Graph, leaf: &str, mut x: Value) -> Value {
        for i in 0.. {
            let name = format!("{leaf}.{i}");
            let path = g.path(&name);
            let has = |part: &str| self.params.has(&format!("{path}.{part}.weight"));
            let module = if has("residual.2") {
                Self::residual
            } else if has("to_qkv") {
                Self::attention
            } else if has("resample.1") {
                Self::resample
            } else {
                break;
            };
            x = g.scope(&name, |g| module(self, g, x));
            g.label(x, &name);
        }
        x
    }

    /// `RMS_norm`: `x / max(|x|, 1e-12) * sqrt(c) * gamma` over the channels, in f32.
    fn norm(&mut self, g: &mut Graph, leaf: &str, x: Value) -> Value {
        let path = g.path(leaf);
        let c = g.dim(x, 1);
        let mut shape = vec![c];
        shape.resize(g.shape(x).len() - 1, 1);
        let gamma = self.params.typed(g, &format!("{path}.gamma"), &shape, DType::F32);
        let x = g.cast(x, DType::F32);
        let square = g.mul(x, x);
        let sum = g.reduce_sum(square, &[1]);
        let length = g.sqrt(sum);
        let least = g.scalar(DType::F32, 1e-12);
        let length = g.max(length, least);
        let length = g.mul_scalar(length, 1.0 / (c as f64).sqrt());
        let x = g.div(x, length);
        let x = g.mul(x, gamma);
        g.cast(x, self.params.compute)
    }

    /// `ResidualBlock`.
    fn residual(&mut self, g: &mut Graph, x: Value) -> Value {
        let shortcut = match self.params.has(&g.path("shortcut.weight")) {
            true => self.pointwise(g, "shortcut", x),
            false => x,
        };
        let h = self.norm(g, "residual.0", x);
        let h = g.silu(h);
        let h = self.causal(g, "residual.2", h);
        let h = self.norm(g, "residual.3", h);
        let h = g.silu(h);
        let h = self.causal(g, "residual.6", h);
        g.add(h, shortcut)
    }

    /// Frames as a batch of images: `[1, c, t, h, w]` to `[t, c, h, w]`.
    fn images(g: &mut Graph, x: Value) -> Value {
        let [_, c, t, h, w] = [0, 1, 2, 3, 4].map(|i| g.dim(x, i));
        let x = g.transpose(x, &[0, 2, 1, 3, 4]);
        g.reshape(x, &[t, c, h, w])
    }

    /// Back from [`Layers::images`].
    fn video(g: &mut Graph, x: Value) -> Value {
        let [t, c, h, w] = [0, 1, 2, 3].map(|i| g.dim(x, i));
        let x = g.reshape(x, &[1, t, c, h, w]);
        g.transpose(x, &[0, 2, 1, 3, 4])
    }

    /// `AttentionBlock`: single-head attention among the pixels of each frame.
    fn attention(&mut self, g: &mut Graph, x: Value) -> Value {
        let images = Self::images(g, x);
        let [t, c, h, w] = [0, 1, 2, 3].map(|i| g.dim(images, i));
        let y = self.norm(g, "norm", images);
        let qkv = self.conv2d(g, "to_qkv", y, &[1, 1], &[(0, 0); 2]);
        let qkv = g.reshape(qkv, &[t, 3 * c, h * w]);
        let [q, k, v] = [0, 1, 2].map(|i| g.slice(qkv, 1, i * c, (i + 1) * c));
        let q = g.transpose(q, &[0, 2, 1]);
        let scores = g.matmul(q, k);
        let scores = g.mul_scalar(scores, 1.0 / (c as f64).sqrt());
        let p = g.softmax(scores, 2);
        let p = g.transpose(p, &[0, 2, 1]);
        let y = g.matmul(v, p);
        let y = g.reshape(y, &[t, c, h, w]);
        let y = self.conv2d(g, "proj", y, &[1, 1], &[(0, 0); 2]);
        let y = Self::video(g, y);
        g.add(y, x)
    }

    fn conv2d(
        &mut self,
        g: &mut Graph,
        leaf: &str,
        x: Value,
        stride: &[usize],
        pads: &[(usize, usize)],
    ) -> Value {
        let path = g.path(leaf);
        let kernel = self.kernel(g, &path, 4);
        let (weight, bias) = self.weights(g, &path, &kernel);
        g.conv(x, weight, Some(bias), stride, pads)
    }

    /// `Resample`: the direction is told by whether the convolution halves the channels.
    fn resample(&mut self, g: &mut Graph, x: Value) -> Value {
        let kernel = self.kernel(g, &g.path("resample.1"), 4);
        let temporal = self.params.has(&g.path("time_conv.weight"));
        if kernel[0] < kernel[1] {
            let x = if temporal && !self.first { self.double_frames(g, x) } else { x };
            let x = Self::images(g, x);
            let x = Self::double_pixels(g, x);
            let x = self.conv2d(g, "resample.1", x, &[1, 1], &[(1, 1); 2]);
            Self::video(g, x)
        } else {
            let x = Self::images(g, x);
            let x = self.conv2d(g, "resample.1", x, &[2, 2], &[(0, 1); 2]);
            let x = Self::video(g, x);
            if temporal { self.halve_frames(g, x) } else { x }
        }
    }

    /// Nearest-neighbour doubling of height and width.
    fn double_pixels(g: &mut Graph, x: Value) -> Value {
        let [t, c, h, w] = [0, 1, 2, 3].map(|i| g.dim(x, i));
        let x = g.reshape(x, &[t, c, h, 1, w, 1]);
        let x = g.expand(x, &[t, c, h, 2, w, 2]);
        g.reshape(x, &[t, c, 2 * h, 2 * w])
    }

    /// `upsample3d`: a temporal convolution to twice the channels, which become two frames each.
    fn double_frames(&mut self, g: &mut Graph, x: Value) -> Value {
        let [_, c, t, h, w] = [0, 1, 2, 3, 4].map(|i| g.dim(x, i));
        let x = self.causal(g, "time_conv", x);
        let x = g.reshape(x, &[1, 2, c, t, h, w]);
        let x = g.transpose(x, &[0, 2, 3, 1, 4, 5]);
        g.reshape(x, &[1, c, 2 * t, h, w])
    }

    /// `downsample3d`: a temporal convolution of stride 2 over the last frame of the chunk before and this one; the
    /// first frame of a video passes as it is.
    fn halve_frames(&mut self, g: &mut Graph, x: Value) -> Value {
        let path = g.path("time_conv");
        let mut shape = g.shape(x).to_vec();
        let frames = g.dim(x, 2);
        let last = g.slice(x, 2, frames.saturating_sub(1), frames);
        shape[2] = 1;
        if self.first {
            self.state.push(State { name: path.clone(), shape });
            // A copy, because the frame is both the state and what the next module reads.
            let copy = g.identity(last);
            self.keep(&path, copy);
            return x;
        }
        let before = self.state(g, &path, shape);
        self.keep(&path, last);
        let kernel = self.kernel(g, &path, 5);
        let (weight, bias) = self.weights(g, &path, &kernel);
        let all = g.concat(&[before, x], 2);
        g.conv(all, weight, Some(bias), &[2, 1, 1], &[(0, 0); 3])
    }

    /// Norm, activation and the last convolution.
    pub(super) fn head(&mut self, g: &mut Graph, x: Value) -> Value {
        let x = self.norm(g, "head.0", x);
        let x = g.silu(x);
        self.causal(g, "head.2", x)
    }
}
