//! H.264 in MP4, in the form that every browser and player takes: Constrained Baseline, yuv420p, `avc1`
//! with parameter sets in `avcC`, index before data, BT.709 limited range stated in stream and container.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::num::NonZeroU32;
use std::path::Path;

use openh264::OpenH264API;
use openh264::Timestamp;
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, Profile, QpRange,
    RateControlMode, UsageType, VuiConfig,
};
use shiguredo_mp4::boxes::{Avc1Box, AvccBox, SampleEntry, UnknownBox, VisualSampleEntryFields};
use shiguredo_mp4::mux::{Mp4FileMuxer, Mp4FileMuxerOptions, Sample, estimate_maximum_moov_box_size};
use shiguredo_mp4::{BoxSize, BoxType, TrackKind, Uint};

use crate::place::PendingFile;
use crate::sink::{Video, VideoSink};
use crate::yuv::Picture;
use crate::{Error, Frame};

/// Quantiser of every block. At 16 the loss is less than what 4:2:0 costs anyway.
const QP: u8 = 16;
/// Ticks per frame: players round times to the track's ticks, so there are enough of them to round well.
const TICKS: u32 = 1000;

pub(crate) struct Mp4 {
    video: Video,
    encoder: Encoder,
    picture: Picture,
    out: BufWriter<PendingFile>,
    position: u64,
    muxer: Mp4FileMuxer,
    /// Written with the first frame and not to change after it.
    parameters: Option<ParameterSets>,
}

#[derive(PartialEq, Eq)]
struct ParameterSets {
    sps: Vec<u8>,
    pps: Vec<u8>,
}

impl Mp4 {
    pub fn create(path: &Path, video: Video) -> Result<Self, Error> {
        let failed = |message: String| video.encoder_failed(0, message);
        let bits = (video.width * video.height) as u64 * u64::from(video.fps) / 2;
        let bits = bits.clamp(64_000, 200_000_000) as u32;
        let config = EncoderConfig::new()
            .profile(Profile::Baseline)
            .vui(VuiConfig::bt709())
            .usage_type(UsageType::CameraVideoRealTime)
            .complexity(Complexity::High)
            .max_frame_rate(FrameRate::from_hz(video.fps as f32))
            // A key frame every two seconds, for seeking.
            .intra_frame_period(IntraFramePeriod::from_num_frames(video.fps * 2))
            .scene_change_detect(false)
            .adaptive_quantization(false)
            .background_detection(false)
            // The one mode that takes the quantiser as it is and leaves no frame out; the bit rate, two
            // pixels to the bit, serves it only to choose the level that the stream declares.
            .rate_control_mode(RateControlMode::Bufferbased)
            .bitrate(BitRate::from_bps(bits))
            .skip_frames(false)
            .qp(QpRange::new(QP, QP))
            // One slice a frame leaves nothing to share out.
            .num_threads(1);
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config)
            .map_err(|e| failed(e.to_string()))?;
        let options = Mp4FileMuxerOptions {
            reserved_moov_box_size: estimate_maximum_moov_box_size(&[video.frames]),
            ..Default::default()
        };
        let muxer = Mp4FileMuxer::with_options(options).map_err(|e| failed(e.to_string()))?;
        let mut out = BufWriter::new(PendingFile::create(path)?);
        let head = muxer.initial_boxes_bytes();
        out.write_all(head).map_err(|e| out.get_ref().failed(e))?;
        Ok(Self {
            picture: Picture::new(video.width, video.height),
            position: head.len() as u64,
            video,
            encoder,
            out,
            muxer,
            parameters: None,
        })
    }
}

impl VideoSink for Mp4 {
    fn push(&mut self, frame: &Frame) -> Result<(), Error> {
        let index = self.video.accept(frame)?;
        self.picture.fill(frame);
        let time = Timestamp::from_millis(self.video.start_of(index, 1000));
        let failed = |message: String| self.video.encoder_failed(index, message);
        let stream = self.encoder.encode_at(&self.picture, time).map_err(|e| failed(e.to_string()))?;
        let keyframe = stream.frame_type() == FrameType::IDR;
        let (parameters, data) = split(&stream.to_vec());
        if data.is_empty() {
            return Err(failed("it left out a frame".into()));
        }
        let sample_entry = match (&self.parameters, parameters) {
            (None, Some(new)) => {
                let entry = sample_entry(&new, &self.video).ok_or_else(|| failed("empty SPS".into()))?;
                self.parameters = Some(new);
                Some(entry)
            }
            (None, None) => return Err(failed("the stream starts without SPS and PPS".into())),
            (Some(old), Some(new)) if *old != new => {
                return Err(failed("SPS or PPS changed within the stream".into()));
            }
            _ => None,
        };
        let sample = Sample {
            track_kind: TrackKind::Video,
            sample_entry,
            keyframe,
            timescale: NonZeroU32::MIN.saturating_add(self.video.fps * TICKS - 1),
            duration: TICKS,
            composition_time_offset: None,
            data_offset: self.position,
            data_size: data.len(),
        };
        self.muxer.append_sample(&sample).map_err(|e| failed(e.to_string()))?;
        self.out.write_all(&data).map_err(|e| self.out.get_ref().failed(e))?;
        self.position += data.len() as u64;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), Error> {
        self.video.complete()?;
        let failed = |message: String| self.video.encoder_failed(self.video.frames, message);
        let boxes = self.muxer.finalize().map_err(|e| failed(e.to_string()))?;
        if !boxes.is_faststart_enabled() {
            return Err(failed("the index outgrew its place before the data".into()));
        }
        for (offset, bytes) in boxes.offset_and_bytes_pairs() {
            let written = self.out.seek(SeekFrom::Start(offset)).and_then(|_| self.out.write_all(bytes));
            written.map_err(|e| self.out.get_ref().failed(e))?;
        }
        self.out.flush().map_err(|e| self.out.get_ref().failed(e))?;
        let (file, _) = self.out.into_parts();
        file.commit()
    }
}

/// Splits an Annex B access unit: parameter sets out, everything else with 4-byte lengths in place of
/// start codes (ISO/IEC 14496-15, 5.3.3).
fn split(stream: &[u8]) -> (Option<ParameterSets>, Vec<u8>) {
    let (mut sps, mut pps, mut data) = (None, None, Vec::with_capacity(stream.len() + 16));
    for nal in nal_units(stream) {
        match nal[0] & 31 {
            7 => sps = Some(nal.to_vec()),
            8 => pps = Some(nal.to_vec()),
            _ => {
                data.extend_from_slice(&(nal.len() as u32).to_be_bytes());
                data.extend_from_slice(nal);
            }
        }
    }
    (sps.zip(pps).map(|(sps, pps)| ParameterSets { sps, pps }), data)
}

/// The NAL units of an Annex B stream, never empty. Trailing zeros of one belong to the next start code.
fn nal_units(stream: &[u8]) -> Vec<&[u8]> {
    let codes: Vec<usize> =
        (0..stream.len().saturating_sub(2)).filter(|i| stream[*i..].starts_with(&[0, 0, 1])).collect();
    let ends = codes.iter().skip(1).copied().chain([stream.len()]);
    let mut units = Vec::with_capacity(codes.len());
    for (start, end) in codes.iter().map(|i| i + 3).zip(ends) {
        let mut nal = &stream[start..end];
        while let [rest @ .., 0] = nal {
            nal = rest;
        }
        if !nal.is_empty() {
            units.push(nal);
        }
    }
    units
}

/// The `avc1` box with `avcC` and the `colr` box that repeats what the SPS says about colours.
fn sample_entry(parameters: &ParameterSets, video: &Video) -> Option<SampleEntry> {
    let [_, profile, compatibility, level, ..] = parameters.sps[..] else { return None };
    Some(SampleEntry::Avc1(Avc1Box {
        visual: VisualSampleEntryFields {
            data_reference_index: VisualSampleEntryFields::DEFAULT_DATA_REFERENCE_INDEX,
            width: video.width as u16,
            height: video.height as u16,
            horizresolution: VisualSampleEntryFields::DEFAULT_HORIZRESOLUTION,
            vertresolution: VisualSampleEntryFields::DEFAULT_VERTRESOLUTION,
            frame_count: VisualSampleEntryFields::DEFAULT_FRAME_COUNT,
            compressorname: VisualSampleEntryFields::NULL_COMPRESSORNAME,
            depth: VisualSampleEntryFields::DEFAULT_DEPTH,
        },
        avcc_box: AvccBox {
            avc_profile_indication: profile,
            profile_compatibility: compatibility,
            avc_level_indication: level,
            length_size_minus_one: Uint::new(3),
            sps_list: vec![parameters.sps.clone()],
            pps_list: vec![parameters.pps.clone()],
            chroma_format: None,
            bit_depth_luma_minus8: None,
            bit_depth_chroma_minus8: None,
            sps_ext_list: Vec::new(),
        },
        unknown_boxes: vec![colour_box()],
    }))
}

/// `colr` of type `nclx` (ISO/IEC 14496-12, 12.1.5): primaries, transfer and matrix 1, which is BT.709,
/// and the full range flag off.
fn colour_box() -> UnknownBox {
    let box_type = BoxType::Normal(*b"colr");
    let payload = [&b"nclx"[..], &[0, 1, 0, 1, 0, 1, 0]].concat();
    UnknownBox { box_type, box_size: BoxSize::with_payload_size(box_type, payload.len() as u64), payload }
}
