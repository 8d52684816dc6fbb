//! Which of an engine file's videos is made.

use std::fmt;
use std::str::FromStr;

use turbo_engine_file::{Manifest, Video};
use turbo_pipeline::RunError;

/// Width and height in pixels, written `832x480`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(u32, u32);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.0, self.1)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let pair = s.split_once(['x', 'X']).and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let (width, height) = pair.ok_or_else(|| format!("`{s}` is not a size; write it as 832x480"))?;
        Ok(Size(width, height))
    }
}

/// The first video that is as the user said, and its index.
///
/// # Errors
/// When the engine file has none, with those that it has.
pub fn choose(
    manifest: &Manifest,
    size: Option<Size>,
    frames: Option<u32>,
) -> Result<(usize, &Video), RunError> {
    if let Some(found) = manifest.find_video(size.map(|Size(width, height)| (width, height)), frames) {
        return Ok(found);
    }
    let size = size.map(|size| format!("--size {size}"));
    let frames = frames.map(|frames| format!("--frames {frames}"));
    let asked: Vec<String> = size.into_iter().chain(frames).collect();
    let one = |video: &Video| format!("--size {} --frames {}", Size(video.width, video.height), video.frames);
    let has: Vec<String> = manifest.videos.iter().map(one).collect();
    Err(RunError::Usage {
        what: format!("the engine file has no video of {}, only of {}", asked.join(" "), has.join(", ")),
        hint: "take one of these, or compile the model for it: turbo-compile MODEL --size WxH,... --frames N,..."
            .to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample, 208x112 with 33 frames, and that size with 1 frame.
    fn manifest() -> Manifest {
        let sample = include_bytes!("../../engine-file/tests/sample.json");
        let mut manifest = turbo_engine_file::parse_manifest(sample).unwrap();
        manifest.videos.push(Video { frames: 1, ..manifest.videos[0].clone() });
        manifest
    }

    #[test]
    fn what_is_left_open_is_the_first_that_fits() {
        let size: Size = "208x112".parse().unwrap();
        for (size, frames, index) in [
            (None, None, 0),
            (Some(size), None, 0),
            (None, Some(1), 1),
            (Some(size), Some(33), 0),
            (Some(size), Some(1), 1),
        ] {
            assert_eq!(choose(&manifest(), size, frames).unwrap().0, index);
        }
    }

    #[test]
    fn what_there_is_not_is_named_beside_what_there_is() {
        let said = |size: Option<&str>, frames| {
            let size = size.map(|size| size.parse().unwrap());
            choose(&manifest(), size, frames).unwrap_err().to_string()
        };
        assert_eq!(
            said(Some("112X208"), Some(5)),
            "the engine file has no video of --size 112x208 --frames 5, only of --size 208x112 --frames 33, --size \
             208x112 --frames 1\nhint: take one of these, or compile the model for it: turbo-compile MODEL --size \
             WxH,... --frames N,..."
        );
        assert!(said(None, Some(5)).starts_with("the engine file has no video of --frames 5, only"));
        for bad in ["", "208", "x", "208x", "-1x2", "208x112x3", "99999999999x1"] {
            assert_eq!(
                bad.parse::<Size>().unwrap_err(),
                format!("`{bad}` is not a size; write it as 832x480")
            );
        }
    }
}
