//! Noise from a file, for tests that need the very tensors of another run.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::{NoiseSource, empty};
use crate::Error;

/// Draws `noise_init`, then `noise0`, `noise1`, ... of a safetensors file (f32, any shape with the right number of
/// elements).
#[derive(Debug, Clone)]
pub struct FileNoise {
    name: String,
    bytes: Vec<u8>,
    /// Draws so far.
    draws: usize,
}

impl FileNoise {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], and those of [`Self::from_bytes`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::from_bytes(path.display().to_string(), bytes)
    }

    /// Takes the content of a safetensors file; `name` is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] for anything but a safetensors file; [`Error::Tensor`] when it has no `noise_init`.
    pub fn from_bytes(name: String, bytes: Vec<u8>) -> Result<Self, Error> {
        let noise = Self { name, bytes, draws: 0 };
        noise.parsed()?.tensor("noise_init").map_err(|_| noise.problem("noise_init", "is missing"))?;
        Ok(noise)
    }

    fn parsed(&self) -> Result<SafeTensors<'_>, Error> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|source| Error::Format { name: self.name.clone(), source })
    }

    fn problem(&self, tensor: &str, problem: impl Into<String>) -> Error {
        Error::Tensor { name: self.name.clone(), tensor: tensor.to_owned(), problem: problem.into() }
    }
}

impl NoiseSource for FileNoise {
    fn draw(&mut self, n: usize) -> Result<Vec<f32>, Error> {
        let key = match self.draws.checked_sub(1) {
            None => "noise_init".to_owned(),
            Some(step) => format!("noise{step}"),
        };
        let tensors = self.parsed()?;
        let view = tensors.tensor(&key).map_err(|_| {
            self.problem(&key, "is missing: the file holds the noise of fewer steps than are run")
        })?;
        if view.dtype() != Dtype::F32 {
            return Err(self.problem(&key, format!("is {:?}: expected F32", view.dtype())));
        }
        if view.data().len() / size_of::<f32>() != n {
            return Err(self.problem(
                &key,
                format!("has shape {:?}: expected {n} elements, the size of the latent", view.shape()),
            ));
        }
        let mut out = empty(n)?;
        out.extend(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        if let Some(at) = out.iter().position(|value| !value.is_finite()) {
            return Err(
                self.problem(&key, format!("holds {} at element {at}: expected finite numbers", out[at]))
            );
        }
        self.draws += 1;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    fn file(tensors: &[(&str, Dtype, &[f32])]) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|t| t.2.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, dtype, values), bytes)| {
            (name.to_string(), TensorView::new(*dtype, vec![values.len()], bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn draws_in_order_then_says_what_is_missing() {
        let bytes = file(&[("noise_init", Dtype::F32, &[1.0, 2.0]), ("noise0", Dtype::F32, &[3.0, 4.0])]);
        let mut noise = FileNoise::from_bytes("n".into(), bytes).unwrap();
        assert_eq!(noise.draw(2).unwrap(), [1.0, 2.0]);
        let error = noise.draw(3).unwrap_err().to_string();
        assert!(error.contains("noise0") && error.contains("[2]") && error.contains("3 elements"), "{error}");
        assert_eq!(noise.draw(2).unwrap(), [3.0, 4.0], "a failed draw uses nothing up");
        let error = noise.draw(2).unwrap_err().to_string();
        assert!(error.contains("'noise1' is missing"), "{error}");
    }

    #[test]
    fn wrong_content_is_named() {
        let missing = file(&[("noise0", Dtype::F32, &[1.0])]);
        assert!(matches!(FileNoise::from_bytes("n".into(), missing), Err(Error::Tensor { .. })));
        assert!(matches!(FileNoise::from_bytes("n".into(), b"no".to_vec()), Err(Error::Format { .. })));
        assert!(matches!(FileNoise::open(Path::new("no/such/file")), Err(Error::Read { .. })));
        for (dtype, values, word) in [(Dtype::I32, [1.0], "I32"), (Dtype::F32, [f32::NAN], "NaN")] {
            let bytes = file(&[("noise_init", dtype, &values)]);
            let error = FileNoise::from_bytes("n".into(), bytes).unwrap().draw(1).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..200, value: u8, cut in 0usize..200, n in 0usize..8) {
            let mut bytes = file(&[("noise_init", Dtype::F32, &[1.0, 2.0]), ("noise0", Dtype::F32, &[3.0, 4.0])]);
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Ok(mut noise) = FileNoise::from_bytes("n".into(), bytes) {
                if let Ok(values) = noise.draw(n) {
                    prop_assert_eq!(values.len(), n);
                }
                let _ = noise.draw(2);
            }
        }
    }
}
