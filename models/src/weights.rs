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
    conversion: Conversion,
    /// Activation type: f32 on the CPU, bf16 on a GPU.
    pub compute: DType,
}

/// Where a weight gets the type and shape in which it is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conversion {
    /// Nodes of the graph convert the stored form.
    InGraph,
    /// Whoever stores the weight converts it; the graph has it as it is used.
    WhenStored,
}

impl<'a> Params<'a> {
    /// Weights for a network that computes in `compute` and widens them itself: the stored form is the checkpoint's.
    pub fn new(weights: &'a dyn Weights, compute: DType) -> Self {
        Params { weights, conversion: Conversion::InGraph, compute }
    }

    /// Weights for a network that takes each as it uses it, so that nothing is computed of weights alone: what
    /// an engine needs whose weights are supplied by name when it is loaded. The weight's initializer says in
    /// which type and shape to store it.
    pub fn converted(weights: &'a dyn Weights, compute: DType) -> Self {
        Params { weights, conversion: Conversion::WhenStored, compute }
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
        let dtype = self.check(g, name, shape);
        g.weight(name, dtype, shape)
    }

    /// Stored type of a weight, after its presence and shape were checked.
    fn check(&self, g: &mut Graph, name: &str, shape: &[usize]) -> DType {
        match self.weights.info(name) {
            Some((dtype, found)) => {
                if found != shape {
                    g.fail("weight", format!("{name} has shape {found:?}, expected {shape:?}"));
                }
                dtype
            }
            None => {
                g.fail("weight", format!("{name} is missing, expected with shape {shape:?}"));
                self.compute
            }
        }
    }

    /// A weight converted to `dtype`.
    pub fn typed(&self, g: &mut Graph, name: &str, shape: &[usize], dtype: DType) -> Value {
        self.reshaped(g, name, shape, dtype, shape)
    }

    /// A weight converted to `dtype` and to another shape of as many elements.
    pub fn reshaped(
        &self,
        g: &mut Graph,
        name: &str,
        shape: &[usize],
        dtype: DType,
        used: &[usize],
    ) -> Value {
        let stored = self.check(g, name, shape);
        match self.conversion {
            Conversion::WhenStored => g.weight(name, dtype, used),
            Conversion::InGraph => {
                let value = g.weight(name, stored, shape);
                let value = g.cast(value, dtype);
                g.reshape(value, used)
            }
        }
    }

    /// A weight in the type that the network computes in.
    pub fn get(&self, g: &mut Graph, name: &str, shape: &[usize]) -> Value {
        self.typed(g, name, shape, self.compute)
    }
}
