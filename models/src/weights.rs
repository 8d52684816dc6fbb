//! How a network asks for its weights.

use turbo_graph::{DType, Graph, Value};

/// The stored weights of one network, by canonical name (the upstream's own, see [`crate::names`]).
pub trait Weights {
    /// Stored element type and shape of a weight.
    fn info(&self, name: &str) -> Option<(DType, Vec<usize>)>;
}

/// Weights as a graph builder sees them: every one arrives in the type that the network computes in.
#[derive(Clone, Copy)]
pub struct Params<'a> {
    weights: &'a dyn Weights,
    /// Activation type: f32 on the CPU, bf16 on a GPU.
    pub compute: DType,
}

impl<'a> Params<'a> {
    /// Weights for a network that computes in `compute`.
    pub fn new(weights: &'a dyn Weights, compute: DType) -> Self {
        Params { weights, compute }
    }

    /// The same weights for a part that computes in another type.
    pub fn in_type(self, compute: DType) -> Self {
        Params { compute, ..self }
    }

    /// Whether there is a weight of that name.
    pub fn has(&self, name: &str) -> bool {
        self.weights.info(name).is_some()
    }

    /// Shape of a weight, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.info(name).map(|(_, shape)| shape)
    }

    /// A weight in its stored type. A missing one or another shape is a mistake that the graph keeps.
    pub fn stored(&self, g: &mut Graph, name: &str, shape: &[usize]) -> Value {
        match self.weights.info(name) {
            Some((dtype, found)) => {
                if found != shape {
                    g.fail("weight", format!("{name} has shape {found:?}, expected {shape:?}"));
                }
                g.weight(name, dtype, shape)
            }
            None => {
                g.fail("weight", format!("{name} is missing, expected with shape {shape:?}"));
                g.weight(name, self.compute, shape)
            }
        }
    }

    /// A weight converted to `dtype`.
    pub fn typed(&self, g: &mut Graph, name: &str, shape: &[usize], dtype: DType) -> Value {
        let stored = self.stored(g, name, shape);
        g.cast(stored, dtype)
    }

    /// A weight in the type that the network computes in.
    pub fn get(&self, g: &mut Graph, name: &str, shape: &[usize]) -> Value {
        self.typed(g, name, shape, self.compute)
    }
}
