//! The sinusoidal embedding of a network time step.

/// `[cos, sin]` of the time step at `dim / 2` falling frequencies: `dim` values, computed in f64 and rounded once.
///
/// Upstream `sinusoidal_embedding_1d` of `rcm/networks/wan2pt1.py`; an odd `dim` has no such embedding there, and
/// here its last value is left out.
pub fn time_embedding(timestep: f32, dim: usize) -> Vec<f32> {
    let half = dim / 2;
    let angle = |i: usize| f64::from(timestep) * libm::pow(10000.0, -(i as f64 / half as f64));
    let cos = (0..half).map(|i| libm::cos(angle(i)) as f32);
    cos.chain((0..half).map(|i| libm::sin(angle(i)) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::time_embedding;

    #[test]
    fn cosines_come_first_and_frequencies_fall() {
        let found = time_embedding(988.0, 256);
        assert_eq!(found.len(), 256);
        assert!((f64::from(found[0]) - 988f64.cos()).abs() < 1e-7);
        assert!((f64::from(found[128]) - 988f64.sin()).abs() < 1e-7);
        let last = 988.0 / 10000f64.powf(127.0 / 128.0);
        assert!((f64::from(found[255]) - last.sin()).abs() < 1e-7);
    }
}
