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
    /// Chroma samples lie on the left column of each 2 x 2 block, halfway between its rows, which is
    /// where H.264 puts them when the stream says nothing (chroma_loc 0); hence the filter
    /// [1 2 1] across and [1 1] down.
    pub fn fill(&mut self, frame: &Frame) {
        let (w, h) = (self.width, self.height);
        for (y, px) in self.y.iter_mut().zip(frame.rgb.chunks_exact(3)) {
            let sum = Y[0] * i32::from(px[0]) + Y[1] * i32::from(px[1]) + Y[2] * i32::from(px[2]);
            *y = ((sum + (16 << BITS) + (1 << (BITS - 1))) >> BITS) as u8;
        }
        for row in 0..h / 2 {
            let lines = [&frame.rgb[row * 2 * w * 3..][..w * 3], &frame.rgb[(row * 2 + 1) * w * 3..][..w * 3]];
            for col in 0..w / 2 {
                let x = col * 2;
                let mut mean = [0i32; 3];
                for line in lines {
                    for (c, mean) in mean.iter_mut().enumerate() {
                        let at = |x: usize| i32::from(line[x * 3 + c]);
                        *mean += at(x.saturating_sub(1)) + 2 * at(x) + at(x + 1);
                    }
                }
                // The filter's weights add up to 8, hence three more bits.
                let project = |k: &[i32; 3]| {
                    let sum = k[0] * mean[0] + k[1] * mean[1] + k[2] * mean[2];
                    ((sum + (128 << (BITS + 3)) + (1 << (BITS + 2))) >> (BITS + 3)) as u8
                };
                self.cb[row * (w / 2) + col] = project(&CB);
                self.cr[row * (w / 2) + col] = project(&CR);
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
