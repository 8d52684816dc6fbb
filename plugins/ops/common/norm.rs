//! Layer and RMS normalisation of rows.

/// `norm(x) * scale + shift` of one row into `y`.
pub fn row(layer: bool, eps: f32, x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
    let n = x.len() as f64;
    let mean = if layer { x.iter().map(|&v| f64::from(v)).sum::<f64>() / n } else { 0.0 };
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let (mean, factor) = (mean as f32, (variance + f64::from(eps)).sqrt().recip() as f32);
    for (((y, &x), &a), &b) in y.iter_mut().zip(x).zip(scale).zip(shift) {
        *y = ((x - mean) * factor).mul_add(a, b);
    }
}

/// [`row`] in f64, without short cuts.
pub fn reference_row(layer: bool, eps: f32, x: &[f64], scale: &[f64], shift: &[f64]) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = if layer { x.iter().sum::<f64>() / n } else { 0.0 };
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let factor = 1.0 / (variance + f64::from(eps)).sqrt();
    (0..x.len()).map(|i| (x[i] - mean) * factor * scale[i] + shift[i]).collect()
}
