//! RGB to Y'CbCr as H.264 carries it: BT.709 matrix, limited range, 4:2:0.

use openh264::formats::YUVSource;

use crate::Frame;

/// BT.709 luma weights (ITU-R BT.709-6, item 3.2).
const KR: f64 = 0.2126;
const KB: f64 = 0.0722;
const KG: f64 = 1.0 - KR - KB;

/// Fixed-point fraction bits of the conversion.
const BITS: u32 = 16;

/// `value` in fixed point, scaled from 0..=255 to `levels` steps.
const fn fixed(value: f64, levels: f64) -> i32 {
    let v = value * levels / 255.0 * (1u32 << BITS) as f64;
    if v < 0.0 { (v - 0.5) as i32 } else { (v + 0.5) as i32 }
}

/// Y' spans 219 steps from 16, Cb and Cr span 224 steps around 128.
const Y: [i32; 3] = [fixed(KR, 219.0), fixed(KG, 219.0), fixed(KB, 219.0)];
const CB: [i32; 3] = chroma(KR, KG, 2.0 * (1.0 - KB), 2);
const CR: [i32; 3] = chroma(KB, KG, 2.0 * (1.0 - KR), 0);

/// The row of one colour difference: its own colour (at `own`) weighs 1/2, green and the other share
/// minus 1/2. They are made to add up to 0 exactly, so that every grey has a chroma of exactly 128.
const fn chroma(other: f64, green: f64, span: f64, own: usize) -> [i32; 3] {
    let (g, o) = (fixed(-green / span, 224.0), fixed(-other / span, 224.0));
    if own == 0 { [-g - o, g, o] } else { [o, g, -g - o] }
}

/// Planes of one 4:2:0 picture with even sides.
pub(crate) struct Picture {
    width: usize,
    height: usize,
    y: Vec<u8>,
    cb: Vec<u8>,
    cr: Vec<u8>,
}

impl Picture {
    /// An empty picture; both sides must be even.
    pub fn new(width: usize, height: usize) -> Self {
        let quarter = (width / 2) * (height / 2);
        Self { width, height, y: vec![0; width * height], cb: vec![0; quarter], cr: vec![0; quarter] }
    }

    /// Converts a frame of the picture's size.
    ///
    /// A chroma sample is the mean of its 2 x 2 pixels, as most encoders take it and most players (all
    /// that interpolate textures, and ffmpeg) give it back.
    pub fn fill(&mut self, frame: &Frame) {
        let stride = self.width * 3;
        for (y, px) in self.y.iter_mut().zip(frame.rgb.chunks_exact(3)) {
            let sum = Y[0] * i32::from(px[0]) + Y[1] * i32::from(px[1]) + Y[2] * i32::from(px[2]);
            *y = ((sum + (16 << BITS) + (1 << (BITS - 1))) >> BITS) as u8;
        }
        let mut chroma = self.cb.iter_mut().zip(&mut self.cr);
        for rows in frame.rgb.chunks_exact(2 * stride) {
            let (upper, lower) = rows.split_at(stride);
            let blocks = upper.chunks_exact(6).zip(lower.chunks_exact(6));
            for ((a, b), (cb, cr)) in blocks.zip(&mut chroma) {
                let sum =
                    [0, 1, 2].map(|c| [a[c], a[c + 3], b[c], b[c + 3]].map(i32::from).iter().sum::<i32>());
                // Four pixels added up, hence two more bits.
                let project = |k: &[i32; 3]| {
                    let sum = k[0] * sum[0] + k[1] * sum[1] + k[2] * sum[2];
                    ((sum + (128 << (BITS + 2)) + (1 << (BITS + 1))) >> (BITS + 2)) as u8
                };
                *cb = project(&CB);
                *cr = project(&CR);
            }
        }
    }
}

impl YUVSource for Picture {
    fn dimensions(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn strides(&self) -> (usize, usize, usize) {
        (self.width, self.width / 2, self.width / 2)
    }

    fn y(&self) -> &[u8] {
        &self.y
    }

    fn u(&self) -> &[u8] {
        &self.cb
    }

    fn v(&self) -> &[u8] {
        &self.cr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(colour: [u8; 3]) -> (u8, u8, u8) {
        let mut picture = Picture::new(2, 2);
        picture.fill(&Frame::filled(2, 2, colour).unwrap());
        (picture.y[3], picture.cb[0], picture.cr[0])
    }

    #[test]
    fn colour_bars_have_the_codes_of_the_standard() {
        // 100% bars in 8 bits, as test signal generators for BT.709 have them.
        for (rgb, ycc) in [
            ([255, 255, 255], (235, 128, 128)),
            ([255, 255, 0], (219, 16, 138)),
            ([0, 255, 255], (188, 154, 16)),
            ([0, 255, 0], (173, 42, 26)),
            ([255, 0, 255], (78, 214, 230)),
            ([255, 0, 0], (63, 102, 240)),
            ([0, 0, 255], (32, 240, 118)),
            ([0, 0, 0], (16, 128, 128)),
        ] {
            assert_eq!(plane(rgb), ycc, "{rgb:?}");
        }
    }

    #[test]
    fn every_colour_is_within_half_a_step_of_the_exact_value() {
        for rgb in (0..=255u8).step_by(15).flat_map(|r| (0..=255u8).map(move |x| [r, x, x.wrapping_mul(7)])) {
            let [r, g, b] = rgb.map(|v| f64::from(v) / 255.0);
            let luma = KR * r + KG * g + KB * b;
            let exact = [
                16.0 + 219.0 * luma,
                128.0 + 224.0 * (b - luma) / 1.8556,
                128.0 + 224.0 * (r - luma) / 1.5748,
            ];
            let (y, cb, cr) = plane(rgb);
            for (found, exact) in [y, cb, cr].into_iter().zip(exact) {
                assert!((f64::from(found) - exact).abs() <= 0.51, "{rgb:?}: {found} for {exact}");
            }
        }
    }

    #[test]
    fn greys_have_no_colour() {
        for v in 0..=255 {
            let (_, cb, cr) = plane([v; 3]);
            assert_eq!((cb, cr), (128, 128), "{v}");
        }
    }

    #[test]
    fn chroma_is_the_mean_of_its_block_and_luma_is_not() {
        let mut frame = Frame::filled(4, 2, [0; 3]).unwrap();
        frame.rgb[3..6].copy_from_slice(&[255, 0, 0]);
        let mut picture = Picture::new(4, 2);
        picture.fill(&frame);
        assert_eq!(picture.y, [16, 63, 16, 16, 16, 16, 16, 16]);
        assert_eq!((picture.cr[0], picture.cr[1]), (156, 128)); // a quarter of 112 above 128
        assert_eq!((picture.cb[0], picture.cb[1]), (122, 128)); // a quarter of 26 (25.68) below
    }
}
