//! One move of the state. The network predicts the velocity `v = noise - data`, so `x - t v` is the data it sees.
//!
//! The state is f64 as in the reference; noise and velocity are the f32 tensors of generator and network.

use crate::Error;

/// The state before the first step: `noise` scaled by the first time.
pub fn initial(noise: &[f32], first_time: f64) -> Vec<f64> {
    noise.iter().map(|&value| f64::from(value) * first_time).collect()
}

/// The stochastic step: to the predicted data, then to `t_next` with fresh noise,
/// `x <- (1 - t_next) (x - t v) + t_next noise`.
///
/// The last step (`t_next` = 0) adds nothing, but its noise is drawn all the same, as the reference does.
///
/// # Errors
///
/// [`Error::Length`] when `v` or `noise` is not as long as `x`.
pub fn sde_step(x: &mut [f64], v: &[f32], t: f64, t_next: f64, noise: &[f32]) -> Result<(), Error> {
    same_length("velocity", v, x)?;
    same_length("noise", noise, x)?;
    for ((x, &v), &noise) in x.iter_mut().zip(v).zip(noise) {
        // The reference multiplies an f32 tensor by a scalar here, which torch does in f32.
        let fresh = t_next as f32 * noise;
        *x = (1.0 - t_next) * (*x - t * f64::from(v)) + f64::from(fresh);
    }
    Ok(())
}

/// The deterministic step along the velocity: `x <- x - (t - t_next) v`. Draws no noise.
///
/// # Errors
///
/// [`Error::Length`] when `v` is not as long as `x`.
pub fn ode_step(x: &mut [f64], v: &[f32], t: f64, t_next: f64) -> Result<(), Error> {
    same_length("velocity", v, x)?;
    for (x, &v) in x.iter_mut().zip(v) {
        *x -= (t - t_next) * f64::from(v);
    }
    Ok(())
}

fn same_length(what: &'static str, slice: &[f32], x: &[f64]) -> Result<(), Error> {
    if slice.len() == x.len() {
        Ok(())
    } else {
        Err(Error::Length { what, found: slice.len(), expected: x.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_velocity_ends_at_the_data() {
        let (data, noise) = ([0.25, -1.5], [0.5f32, 2.0]);
        let v: Vec<f32> = noise.iter().zip(data).map(|(n, d)| n - d as f32).collect();
        let at = |t: f64| -> Vec<f64> {
            data.iter().zip(noise).map(|(d, n)| (1.0 - t) * d + t * f64::from(n)).collect()
        };
        let mut x = at(0.75);
        ode_step(&mut x, &v, 0.75, 0.5).unwrap();
        assert_eq!(x, at(0.5));
        let mut x = at(0.75);
        sde_step(&mut x, &v, 0.75, 0.5, &noise).unwrap();
        assert_eq!(x, at(0.5));
        sde_step(&mut x, &v, 0.5, 0.0, &[9.0, 9.0]).unwrap();
        assert_eq!(x, data);
    }

    #[test]
    fn lengths_are_checked_before_the_state_moves() {
        let mut x = vec![1.0, 2.0];
        assert!(matches!(
            sde_step(&mut x, &[1.0], 0.9, 0.5, &[0.0; 2]),
            Err(Error::Length { what: "velocity", .. })
        ));
        assert!(matches!(
            sde_step(&mut x, &[1.0; 2], 0.9, 0.5, &[0.0; 3]),
            Err(Error::Length { what: "noise", .. })
        ));
        assert!(matches!(
            ode_step(&mut x, &[1.0; 3], 0.9, 0.5),
            Err(Error::Length { found: 3, expected: 2, .. })
        ));
        assert_eq!(x, [1.0, 2.0]);
    }
}
