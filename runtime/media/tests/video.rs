//! Every format is read back with a decoder of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a helper of a test may panic like the test

mod common;

use std::fs;
use std::path::Path;

use common::{bytes, names, psnr, video, write};
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;
use shiguredo_mp4::boxes::SampleEntry;
use shiguredo_mp4::demux::{Input, Mp4FileDemuxer};
use turbo_media::{Frame, load_image};

/// An MP4 file, taken apart: the `avc1` box and for each sample `(keyframe, start, duration, bytes)`.
struct Movie {
    entry: shiguredo_mp4::boxes::Avc1Box,
    timescale: u32,
    samples: Vec<(bool, u64, u32, Vec<u8>)>,
}

fn demux(file: &[u8]) -> Movie {
    let mut demuxer = Mp4FileDemuxer::new();
    demuxer.handle_input(Input { position: 0, data: file });
    let tracks = demuxer.tracks().unwrap();
    assert_eq!(tracks.len(), 1);
    let timescale = tracks[0].timescale.get();
    let (mut entry, mut samples) = (None, Vec::new());
    while let Some(sample) = demuxer.next_sample().unwrap() {
        if let Some(SampleEntry::Avc1(found)) = sample.sample_entry {
            entry.get_or_insert_with(|| found.clone());
        }
        let data = file[sample.data_offset as usize..][..sample.data_size].to_vec();
        samples.push((sample.keyframe, sample.timestamp, sample.duration, data));
    }
    Movie { entry: entry.unwrap(), timescale, samples }
}

/// The planes Y', Cb and Cr of a picture, one after another.
type Planes = [Vec<u8>; 3];

/// Decodes with openh264.
fn decode(movie: &Movie) -> Vec<Planes> {
    let mut decoder = Decoder::new().unwrap();
    let start = [0, 0, 0, 1];
    let mut out = Vec::new();
    for (i, (.., data)) in movie.samples.iter().enumerate() {
        let mut stream = Vec::new();
        if i == 0 {
            for set in [&movie.entry.avcc_box.sps_list[0], &movie.entry.avcc_box.pps_list[0]] {
                stream.extend_from_slice(&start);
                stream.extend_from_slice(set);
            }
        }
        let mut rest = &data[..];
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let (nal, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
            assert!(!matches!(nal[0] & 31, 7 | 8), "parameter sets belong into avcC");
            stream.extend_from_slice(&start);
            stream.extend_from_slice(nal);
            rest = tail;
        }
        let picture = decoder.decode(&stream).unwrap().expect("a picture for each sample");
        let (width, _) = picture.dimensions();
        let (sy, su, sv) = picture.strides();
        let tight = |plane: &[u8], stride: usize, width: usize| {
            plane.chunks(stride).flat_map(|line| line[..width].to_vec()).collect::<Vec<u8>>()
        };
        out.push([
            tight(picture.y(), sy, width),
            tight(picture.u(), su, width / 2),
            tight(picture.v(), sv, width / 2),
        ]);
    }
    out
}

/// What the planes should hold: BT.709, limited range, by the book.
fn planes(frame: &Frame) -> Planes {
    let (w, h) = (frame.width, frame.height);
    let at = |x: usize, y: usize| {
        let [r, g, b] = [0, 1, 2].map(|c| f64::from(frame.rgb[(y * w + x) * 3 + c]) / 255.0);
        let luma = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        [luma, (b - luma) / 1.8556, (r - luma) / 1.5748]
    };
    let mean = |c: usize, x: usize, y: usize| {
        [(0, 0), (1, 0), (0, 1), (1, 1)].iter().map(|(i, j)| at(2 * x + i, 2 * y + j)[c]).sum::<f64>() / 4.0
    };
    let chroma = |c: usize| {
        let places = (0..h / 2).flat_map(|y| (0..w / 2).map(move |x| (x, y)));
        places.map(|(x, y)| (128.0 + 224.0 * mean(c, x, y)).round() as u8).collect()
    };
    let luma = (0..h).flat_map(|y| (0..w).map(move |x| (x, y)));
    [luma.map(|(x, y)| (16.0 + 219.0 * at(x, y)[0]).round() as u8).collect(), chroma(1), chroma(2)]
}

/// The worst of the three planes.
fn quality(found: &Planes, frame: &Frame) -> f64 {
    found.iter().zip(&planes(frame)).map(|(a, b)| psnr(a, b)).fold(f64::INFINITY, f64::min)
}

#[test]
fn mp4_holds_every_frame_at_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.mp4");
    let frames = video(208, 112, 50);
    write(&path, &frames, 16).unwrap();
    assert_eq!(names(folder.path()), ["out.mp4"]);
    let movie = demux(&fs::read(&path).unwrap());
    assert_eq!(movie.samples.len(), 50);
    for (i, (keyframe, start, duration, _)) in movie.samples.iter().enumerate() {
        assert_eq!(*keyframe, i % 32 == 0, "sample {i}");
        assert_eq!(*start * 16, i as u64 * u64::from(movie.timescale));
        assert_eq!(*duration * 16, movie.timescale);
    }
    let decoded = decode(&movie);
    for (i, (found, expected)) in decoded.iter().zip(&frames).enumerate() {
        let found = quality(found, expected);
        assert!(found >= 42.0, "frame {i}: {found:.2} dB");
    }
    // Frames in their order: none is as near to its predecessor's source as to its own.
    for i in 1..50 {
        assert!(quality(&decoded[i], &frames[i]) > quality(&decoded[i], &frames[i - 1]) + 3.0, "frame {i}");
    }
}

#[test]
fn mp4_states_size_profile_and_colours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.mp4");
    write(&path, &video(64, 48, 3), 24).unwrap();
    let entry = demux(&fs::read(&path).unwrap()).entry;
    assert_eq!((entry.visual.width, entry.visual.height), (64, 48));
    assert_eq!(entry.avcc_box.avc_profile_indication, 66);
    assert_eq!(entry.avcc_box.length_size_minus_one.get(), 3);
    let colr = entry.unknown_boxes.iter().find(|b| b.box_type.as_bytes() == b"colr").unwrap();
    assert_eq!(colr.payload, b"nclx\0\x01\0\x01\0\x01\0");
}

#[test]
fn mp4_is_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = folder.path().join(name);
        write(&path, &video(64, 64, 5), 16).unwrap();
        fs::read(path).unwrap()
    };
    assert!(write("a.mp4") == write("b.mp4"));
}

#[test]
fn mp4_of_extreme_sizes_decodes() {
    let folder = tempfile::tempdir().unwrap();
    for (width, height) in [(16, 16), (18, 22), (3840, 16), (16, 3840), (3840, 2160), (2160, 3840)] {
        let path = folder.path().join("out.mp4");
        let frames = video(width, height, 2);
        write(&path, &frames, 30).unwrap();
        let decoded = decode(&demux(&fs::read(&path).unwrap()));
        assert_eq!(decoded.len(), 2);
        for (found, expected) in decoded.iter().zip(&frames) {
            let found = quality(found, expected);
            assert!(found >= 40.0, "{width} x {height}: {found:.2} dB");
        }
    }
}

#[test]
fn gif_holds_every_frame_at_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.gif");
    let frames = video(67, 45, 16);
    write(&path, &frames, 16).unwrap();
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(fs::File::open(&path).unwrap()).unwrap();
    assert_eq!((decoder.width(), decoder.height()), (67, 45));
    assert_eq!(decoder.repeat(), gif::Repeat::Infinite);
    let (mut found, mut delays) = (Vec::new(), Vec::new());
    while let Some(frame) = decoder.read_next_frame().unwrap() {
        delays.push(frame.delay);
        found.push(frame.buffer.chunks(4).flat_map(|px| [px[0], px[1], px[2]]).collect::<Vec<u8>>());
    }
    assert_eq!(delays.iter().map(|d| u32::from(*d)).sum::<u32>(), 100, "{delays:?}");
    assert!(delays.iter().all(|d| [6, 7].contains(d)), "{delays:?}");
    assert_eq!(found.len(), 16);
    let quality = psnr(&found.concat(), &bytes(&frames));
    assert!(quality >= 32.0, "{quality:.2} dB");
}

#[test]
fn webp_holds_every_frame_at_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.webp");
    let frames = video(207, 111, 16);
    write(&path, &frames, 16).unwrap();
    let decoded = webp_frames(&path);
    assert_eq!(decoded.len(), 16);
    for (i, ((end, found), expected)) in decoded.iter().zip(&frames).enumerate() {
        assert_eq!(*end, (i as i32 + 1) * 1000 / 16 + i32::from(i % 2 == 0));
        let quality = psnr(found, &expected.rgb);
        assert!(quality >= 38.0, "frame {i}: {quality:.2} dB");
    }
}

/// The frames of a WebP file with the times at which they end, in milliseconds.
fn webp_frames(path: &Path) -> Vec<(i32, Vec<u8>)> {
    let data = fs::read(path).unwrap();
    let rgb = |rgba: &[u8]| rgba.chunks(4).flat_map(|px| [px[0], px[1], px[2]]).collect();
    let frames = webp_animation::Decoder::new(&data).unwrap().into_iter();
    frames.map(|f| (f.timestamp(), rgb(f.data()))).collect()
}

#[test]
fn webp_keeps_the_time_of_frames_that_do_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.webp");
    let two = video(64, 64, 2);
    let frames = [0, 0, 0, 1, 1, 0].map(|i: usize| two[i].clone());
    write(&path, &frames, 10).unwrap();
    let ends: Vec<i32> = webp_frames(&path).iter().map(|(end, _)| *end).collect();
    assert_eq!(ends, [300, 500, 600]);
}

/// A background that brightens by one level a frame, behind something that moves.
#[test]
fn slow_fades_are_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut frames = video(96, 64, 48);
    for (i, frame) in frames.iter_mut().enumerate() {
        for (at, value) in frame.rgb.iter_mut().enumerate() {
            if at / 3 % 96 < 48 || at / 3 / 96 < 8 {
                *value = 60 + i as u8;
            }
        }
    }
    let last = frames.last().unwrap();
    let path = folder.path().join("out.webp");
    write(&path, &frames, 16).unwrap();
    assert!(psnr(&webp_frames(&path).last().unwrap().1, &last.rgb) > 34.0);
    let path = folder.path().join("out.mp4");
    write(&path, &frames, 16).unwrap();
    let decoded = decode(&demux(&fs::read(&path).unwrap()));
    assert!(quality(decoded.last().unwrap(), last) > 40.0);
}

#[test]
fn png_folder_holds_the_very_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frames");
    let frames = video(31, 17, 4);
    write(&path, &frames, 16).unwrap();
    assert_eq!(names(folder.path()), ["frames"]);
    assert_eq!(names(&path), ["0000.png", "0001.png", "0002.png", "0003.png"]);
    for (name, frame) in names(&path).iter().zip(&frames) {
        assert!(load_image(&path.join(name)).unwrap() == *frame, "{name}");
    }
    // Once more into the folder that is there now, beside a file that is none of ours.
    fs::write(path.join("notes.txt"), "mine").unwrap();
    let other: Vec<Frame> = frames.iter().rev().cloned().collect();
    write(&path, &other, 16).unwrap();
    assert_eq!(names(&path).len(), 5);
    assert!(load_image(&path.join("0000.png")).unwrap() == frames[3]);
    assert_eq!(fs::read(path.join("notes.txt")).unwrap(), b"mine");
}

#[test]
fn safetensors_holds_the_very_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let frames = video(31, 17, 4);
    write(&path, &frames, 12).unwrap();
    let data = fs::read(&path).unwrap();
    let (start, metadata) = safetensors::SafeTensors::read_metadata(&data).unwrap();
    assert_eq!(start % 8, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["fps"], "12");
    let tensors = safetensors::SafeTensors::deserialize(&data).unwrap();
    assert_eq!(tensors.len(), 1);
    let tensor = tensors.tensor("frames").unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::U8);
    assert_eq!(tensor.shape(), [4, 17, 31, 3]);
    assert!(tensor.data() == bytes(&frames));
}

#[test]
fn an_older_output_is_replaced_and_readable_by_others() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.mp4", "a.gif", "a.webp", "a.safetensors"] {
        let path = folder.path().join(name);
        fs::write(&path, "older").unwrap();
        write(&path, &video(32, 32, 2), 16).unwrap();
        assert!(fs::metadata(&path).unwrap().len() > 100, "{name}");
        let plain = folder.path().join("plain");
        fs::write(&plain, "as any file").unwrap();
        assert_eq!(permissions(&path), permissions(&plain), "{name}");
    }
}

fn permissions(path: &Path) -> String {
    format!("{:?}", fs::metadata(path).unwrap().permissions())
}
