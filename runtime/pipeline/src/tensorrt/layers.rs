//! Layers of an engine by the ops that they come from.

/// What layers of TensorRT's own are called together.
pub const OWN: &str = "TensorRT's own";

/// The op of a layer: `TurboSla` of `blocks.3.self_attn.TurboSla#`, and [`OWN`] for TensorRT's.
pub fn layer_op(layer: &str) -> &str {
    let Some((_, name)) = layer.find("Turbo").map(|at| layer.split_at(at)) else { return OWN };
    name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or(OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_named_by_its_op() {
        assert_eq!(layer_op("blocks.3.self_attn.TurboSla#"), "TurboSla");
        assert_eq!(layer_op("TurboW8A8Linear_12"), "TurboW8A8Linear");
        assert_eq!(layer_op("{ForeignNode[blocks.0.Add...blocks.0.Mul]}"), OWN);
        assert_eq!(layer_op(""), OWN);
    }
}
