//! One picture, and how it becomes a tensor and back.

use crate::Error;

/// Far beyond any use, and less than a gigabyte.
const MAX_PIXELS: usize = 1 << 28;

/// An RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// `[height, width, 3]` bytes, sRGB as decoded or generated.
    pub rgb: Vec<u8>,
}

impl Frame {
    /// A picture of one colour.
    ///
    /// # Errors
    /// [`Error::Shape`] for more than 2^28 pixels.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Result<Self, Error> {
        let pixels = width.checked_mul(height).filter(|n| *n <= MAX_PIXELS);
        let pixels = pixels.ok_or_else(|| Error::Shape {
            what: "size of a picture",
            expected: format!("at most {MAX_PIXELS} pixels"),
            found: format!("{width} x {height}"),
        })?;
        Ok(Self { width, height, rgb: colour.repeat(pixels) })
    }

    /// Whether the buffer is as long as the sides say.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let bytes = self.width.checked_mul(self.height).and_then(|n| n.checked_mul(3));
        if bytes == Some(self.rgb.len()) {
            return Ok(());
        }
        Err(Error::FrameBytes { width: self.width, height: self.height, found: self.rgb.len() })
    }
}

/// The frames of a decoded piece of video: `data` is `[3, t, h, w]`, nominally in [-1, 1].
///
/// Each value becomes `floor(255 * (1 + clamp(v, -1, 1)) / 2 + 0.5)`, in f32 and in this order, as
/// TurboDiffusion's `save_image_or_video` computes it.
///
/// # Errors
/// [`Error::NotFinite`] with the number of NaN and infinite values; [`Error::Shape`] when `data` is not
/// `3 * t * h * w` long.
pub fn frames_from_video_chunk(data: &[f32], t: usize, h: usize, w: usize) -> Result<Vec<Frame>, Error> {
    let area = h.checked_mul(w);
    let expected = area.and_then(|n| n.checked_mul(t)).and_then(|n| n.checked_mul(3));
    let (Some(area), true) = (area, expected == Some(data.len())) else {
        return Err(Error::Shape {
            what: "length of a piece of video",
            expected: format!("3 x {t} x {h} x {w}"),
            found: data.len().to_string(),
        });
    };
    let count = data.iter().filter(|v| !v.is_finite()).count();
    if count > 0 {
        return Err(Error::NotFinite { count, total: data.len() });
    }
    let frame = |i: usize| {
        let planes = [0, 1, 2].map(|c| &data[(c * t + i) * area..][..area]);
        let mut rgb = vec![0; area * 3];
        for (at, px) in rgb.chunks_exact_mut(3).enumerate() {
            for (value, plane) in px.iter_mut().zip(planes) {
                *value = ((1.0 + plane[at].clamp(-1.0, 1.0)) / 2.0 * 255.0 + 0.5) as u8;
            }
        }
        Frame { width: w, height: h, rgb }
    };
    Ok((0..t).map(frame).collect())
}

/// A picture as the image encoder of a model takes it: `[3, height, width]`, `(u8 / 255 - 0.5) / 0.5`.
///
/// Bit for bit torchvision's v2 `ToDtype(float32, scale=True)`, which multiplies by 1/255, and
/// `Normalize(0.5, 0.5)`.
///
/// # Errors
/// [`Error::FrameBytes`] when the buffer is not as long as the sides say.
pub fn to_tensor(frame: &Frame) -> Result<Vec<f32>, Error> {
    frame.check()?;
    let plane = |c: usize| frame.rgb.iter().skip(c).step_by(3);
    Ok((0..3).flat_map(plane).map(|v| (f32::from(*v) * (1.0 / 255.0) - 0.5) / 0.5).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_half_up_and_clamp() {
        // 2 frames of 1 x 2; the planes are red, green, blue.
        let half_step = 1.0 / 255.0; // (1 + v) / 2 * 255 = 127.5 + 0.5
        let data = [-1.0, 1.0, -5.0, 5.0, 0.0, half_step, -0.999, 0.999, 0.5, -0.5, 0.25, -0.25];
        let frames = frames_from_video_chunk(&data, 2, 1, 2).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].width, frames[0].height), (2, 1));
        assert_eq!(frames[0].rgb, [0, 128, 191, 255, 128, 64]);
        assert_eq!(frames[1].rgb, [0, 0, 159, 255, 255, 96]);
    }

    #[test]
    fn values_that_are_no_colours_are_counted() {
        let mut data = vec![0.0; 12];
        (data[1], data[7], data[8]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let error = frames_from_video_chunk(&data, 1, 2, 2).unwrap_err();
        assert!(matches!(error, Error::NotFinite { count: 3, total: 12 }), "{error}");
    }

    #[test]
    fn wrong_lengths_are_errors_and_not_panics() {
        assert!(matches!(frames_from_video_chunk(&[0.0; 11], 1, 2, 2), Err(Error::Shape { .. })));
        assert!(matches!(frames_from_video_chunk(&[], usize::MAX, 2, 2), Err(Error::Shape { .. })));
        assert!(matches!(
            to_tensor(&Frame { width: 2, height: 2, rgb: vec![0; 11] }),
            Err(Error::FrameBytes { .. })
        ));
        assert!(Frame::filled(usize::MAX, 2, [0; 3]).is_err());
    }

    #[test]
    fn tensor_is_planar_and_symmetric() {
        let frame = Frame { width: 2, height: 1, rgb: vec![0, 255, 51, 255, 0, 204] };
        let tensor = to_tensor(&frame).unwrap();
        assert_eq!(tensor.len(), 6);
        for (found, expected) in tensor.iter().zip([-1.0, 1.0, 1.0, -1.0, -0.6, 0.6]) {
            assert!((found - expected).abs() < 1e-6, "{tensor:?}");
        }
    }
}
