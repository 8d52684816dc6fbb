//! Contact sheets: a video, or several to compare, on one picture.

use std::io::{BufWriter, Write};
use std::path::Path;

use crate::place::PendingFile;
use crate::{Error, Frame, pngs, resize};

/// Pixels between pictures and around them.
const GAP: usize = 4;
const BACKGROUND: [u8; 3] = [32, 32, 32];

/// The indices of `count` frames spread evenly over `frames`, first and last included; the middle one for
/// a count of 1, all of them when there are no more than `count`.
pub fn evenly_spaced(frames: usize, count: usize) -> Vec<usize> {
    match count {
        _ if frames <= count => (0..frames).collect(),
        0 => Vec::new(),
        1 => vec![frames / 2],
        _ => {
            let (last, steps) = (frames as u128 - 1, count as u128 - 1);
            (0..=steps).map(|i| ((i * last + steps / 2) / steps) as usize).collect()
        }
    }
}

/// Lays out one row of frames per video, from the top: `&[frames]` for one, `&[truth, generated]` to
/// compare. Rows may differ in length. All frames have one size; they are scaled down together when the
/// sheet would be wider than `max_width` pixels.
///
/// # Errors
/// [`Error::Shape`] when there is no frame, when sizes differ, or when `max_width` has no room for a pixel
/// of each frame.
pub fn contact_sheet(rows: &[Vec<Frame>], max_width: usize) -> Result<Frame, Error> {
    let wrong = |what, expected: String, found: String| Error::Shape { what, expected, found };
    let first = rows.iter().flatten().next();
    let first = first.ok_or_else(|| wrong("contact sheet", "at least one frame".into(), "none".into()))?;
    let (mut w, mut h) = (first.width, first.height);
    for frame in rows.iter().flatten() {
        frame.check()?;
        if (frame.width, frame.height) != (w, h) {
            let found = format!("{} x {}", frame.width, frame.height);
            return Err(wrong("frame of a contact sheet", format!("{w} x {h} as the first one"), found));
        }
    }
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let room = max_width.saturating_sub(GAP * (columns + 1)) / columns;
    if room == 0 || w == 0 || h == 0 {
        let found = format!("{max_width} for {columns} frames of {w} x {h}");
        return Err(wrong("width of a contact sheet", "a pixel or more for each frame".into(), found));
    }
    if w > room {
        h = (h * room).div_ceil(w);
        w = room;
    }
    let side = |cells: usize, size: usize| GAP + cells * (size + GAP);
    let mut sheet = Frame::filled(side(columns, w), side(rows.len(), h), BACKGROUND)?;
    for (row, frames) in rows.iter().enumerate() {
        for (column, frame) in frames.iter().enumerate() {
            let cell = resize(frame, w, h)?;
            for (y, line) in cell.rgb.chunks_exact(w * 3).enumerate() {
                let at = ((side(row, h) + y) * sheet.width + side(column, w)) * 3;
                sheet.rgb[at..at + line.len()].copy_from_slice(line);
            }
        }
    }
    Ok(sheet)
}

/// Writes a picture as a PNG file, under a temporary name until it is whole.
///
/// # Errors
/// [`Error::FrameBytes`], [`Error::OutputPlace`] or [`Error::Write`].
pub fn write_png(path: &Path, frame: &Frame) -> Result<(), Error> {
    PngFile::create(path)?.write(frame)
}

/// A PNG file that is opened before there is anything to write: a place that cannot be written is known early.
pub struct PngFile(PendingFile);

impl PngFile {
    /// Opens a temporary file beside `path`; it goes away when nothing is written.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(path: &Path) -> Result<PngFile, Error> {
        PendingFile::create(path).map(PngFile)
    }

    /// Writes the image and gives the file its name.
    ///
    /// # Errors
    /// A frame of the wrong length, or what the system says.
    pub fn write(self, frame: &Frame) -> Result<(), Error> {
        frame.check()?;
        let mut out = BufWriter::new(self.0);
        let written = pngs::encode(&mut out, frame).and_then(|()| out.flush());
        written.map_err(|e| out.get_ref().failed(e))?;
        let (file, _) = out.into_parts();
        file.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacing_includes_both_ends() {
        assert_eq!(evenly_spaced(33, 5), [0, 8, 16, 24, 32]);
        assert_eq!(evenly_spaced(33, 2), [0, 32]);
        assert_eq!(evenly_spaced(33, 1), [16]);
        assert_eq!(evenly_spaced(3, 8), [0, 1, 2]);
        assert_eq!(evenly_spaced(4, 3), [0, 2, 3]);
        assert!(evenly_spaced(7, 0).is_empty());
        assert!(evenly_spaced(0, 3).is_empty());
    }

    #[test]
    fn frames_land_in_rows_and_columns() {
        let plain = |v: u8| Frame::filled(6, 4, [v, v, v]).unwrap();
        let sheet = contact_sheet(&[vec![plain(1), plain(2), plain(3)], vec![plain(4)]], 1000).unwrap();
        assert_eq!((sheet.width, sheet.height), (3 * 10 + 4, 2 * 8 + 4));
        let at = |x: usize, y: usize| sheet.rgb[(y * sheet.width + x) * 3];
        assert_eq!([at(4, 4), at(9, 7), at(14, 4), at(24, 4), at(4, 12)], [1, 1, 2, 3, 4]);
        assert_eq!([at(3, 4), at(10, 4), at(4, 3), at(4, 8), at(14, 12), at(33, 19)], [32; 6]);
        let counted = [1, 2, 3, 4].map(|v| sheet.rgb.iter().filter(|p| **p == v).count());
        assert_eq!(counted, [6 * 4 * 3; 4]);
    }

    #[test]
    fn wide_sheets_are_scaled_down() {
        let plain = Frame::filled(200, 100, [9, 8, 7]).unwrap();
        let sheet = contact_sheet(&[vec![plain.clone(), plain]], 112).unwrap();
        assert_eq!((sheet.width, sheet.height), (112, 25 + 8));
        assert_eq!(sheet.rgb.chunks(3).filter(|p| *p == [9, 8, 7]).count(), 2 * 50 * 25);
    }

    #[test]
    fn sheets_without_sense_are_errors() {
        let plain = |w| Frame::filled(w, 4, [0; 3]).unwrap();
        assert!(contact_sheet(&[], 100).is_err());
        assert!(contact_sheet(&[vec![], vec![]], 100).is_err());
        assert!(contact_sheet(&[vec![plain(4), plain(5)]], 100).is_err());
        assert!(contact_sheet(&[vec![plain(4)]], 8).is_err());
        assert!(contact_sheet(&[vec![plain(0)]], 100).is_err());
        assert!(contact_sheet(&[vec![Frame { width: 4, height: 4, rgb: vec![] }]], 100).is_err());
    }
}
