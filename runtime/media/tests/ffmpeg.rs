//! What ffprobe and ffmpeg make of an MP4 file. Skipped where they are missing.
#![allow(clippy::unwrap_used)] // a helper of a test may panic like the test

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{bytes, ffmpeg_is_there, psnr, video, write};

/// `ffprobe`'s answers about the only stream, by name.
fn probe(path: &Path) -> serde_json::Value {
    let out = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"])
        .arg(path)
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && complaints.is_empty(), "{complaints}");
    let all: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(all["streams"].as_array().unwrap().len(), 1);
    all
}

#[test]
fn ffprobe_sees_what_browsers_need() {
    if !ffmpeg_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (width, height, fps, frames) in
        [(208, 112, 16, 33), (832, 480, 24, 5), (66, 34, 30, 1), (64, 64, 1, 3), (32, 64, 1000, 20)]
    {
        let path = folder.path().join(format!("{width}.mp4"));
        write(&path, &video(width, height, frames), fps).unwrap();
        let all = probe(&path);
        let stream = &all["streams"][0];
        let rate = format!("{fps}/1");
        let count = frames.to_string();
        for (name, expected) in [
            ("codec_name", "h264"),
            ("codec_tag_string", "avc1"),
            ("is_avc", "true"),
            ("profile", "Constrained Baseline"),
            ("pix_fmt", "yuv420p"),
            ("color_range", "tv"),
            ("color_space", "bt709"),
            ("color_transfer", "bt709"),
            ("color_primaries", "bt709"),
            ("field_order", "progressive"),
            ("r_frame_rate", &rate),
            ("avg_frame_rate", &rate),
            ("nb_frames", &count),
            ("nb_read_frames", &count),
            ("start_time", "0.000000"),
        ] {
            assert_eq!(stream[name], expected, "{name}");
        }
        assert_eq!((&stream["width"], &stream["height"]), (&width.into(), &height.into()));
        let duration: f64 = all["format"]["duration"].as_str().unwrap().parse().unwrap();
        assert!((duration - frames as f64 / f64::from(fps)).abs() < 1e-3, "{duration}");
    }
}

/// The stream says so by itself, too: players that take frames out of the container see only that.
#[test]
fn the_bare_stream_states_its_colours() {
    if !ffmpeg_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (path, bare) = (folder.path().join("out.mp4"), folder.path().join("out.h264"));
    write(&path, &video(64, 64, 4), 16).unwrap();
    let done = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(&path)
        .args(["-c", "copy", "-bsf:v", "h264_mp4toannexb"])
        .arg(&bare)
        .status();
    assert!(done.unwrap().success());
    let all = probe(&bare);
    for (name, expected) in [
        ("color_range", "tv"),
        ("color_space", "bt709"),
        ("color_transfer", "bt709"),
        ("color_primaries", "bt709"),
    ] {
        assert_eq!(all["streams"][0][name], expected, "{name}");
    }
}

#[test]
fn ffmpeg_decodes_what_went_in() {
    if !ffmpeg_is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.mp4");
    let frames = video(208, 112, 33);
    write(&path, &frames, 16).unwrap();
    let out = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(&path)
        .args([
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-sws_flags",
            "accurate_rnd+full_chroma_int+bicubic",
            "-",
        ])
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && complaints.is_empty(), "{complaints}");
    let quality = psnr(&out.stdout, &bytes(&frames));
    assert!(quality >= 38.0, "{quality:.2} dB");
}

/// The boxes of a file in their order.
fn boxes(mut file: &[u8]) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    while let Some((size, rest)) = file.split_first_chunk::<4>() {
        let kind = String::from_utf8(rest[..4].to_vec()).unwrap();
        let size = match u32::from_be_bytes(*size) {
            0 => file.len() as u64,
            1 => u64::from_be_bytes(rest[4..12].try_into().unwrap()),
            size => u64::from(size),
        };
        found.push((kind, size));
        file = &file[size as usize..];
    }
    found
}

/// No ffmpeg needed for this one: the index lies before the data, however many frames there are.
#[test]
fn the_index_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    for frames in [1, 2, 33, 700] {
        let path = folder.path().join("out.mp4");
        write(&path, &video(32, 16, frames), 16).unwrap();
        let order: Vec<String> = boxes(&fs::read(&path).unwrap()).into_iter().map(|(kind, _)| kind).collect();
        let kinds: Vec<&str> = order.iter().map(String::as_str).filter(|k| *k != "free").collect();
        assert_eq!(kinds, ["ftyp", "moov", "mdat"], "{frames} frames");
    }
}
