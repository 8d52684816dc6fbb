//! Memory, streams, graphs and the sampler on a GPU; skipped where there is none.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

use half::bf16;
use turbo_sampler::{initial, ode_step, sde_step};
use turbo_trt::{DeviceBuffer, Error, PinnedBuffer, Places, Rows, Sampler, Shim, Stream};

fn gpu() -> Option<(Shim, Stream)> {
    let shim = Places::default().any_shim();
    match shim.and_then(|shim| shim.gpu(0).map(|_| shim)) {
        Ok(shim) => Some((shim, Stream::new(shim).unwrap())),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// A buffer with these elements.
fn on_gpu<T: bytemuck::NoUninit>(stream: &Stream, elements: &[T]) -> DeviceBuffer {
    let buffer = DeviceBuffer::new(stream.shim(), size_of_val(elements)).unwrap();
    stream.upload(&buffer, elements).unwrap();
    buffer
}

fn on_host<T: bytemuck::NoUninit + bytemuck::AnyBitPattern + Default>(
    stream: &Stream,
    buffer: &DeviceBuffer,
) -> Vec<T> {
    let mut elements = vec![T::default(); buffer.len() / size_of::<T>()];
    stream.download(&mut elements, buffer).unwrap();
    elements
}

/// Values of all signs and sizes, the same every time.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|i| next() * if i % 17 == 0 { 1e-20 } else { 3.0 }).collect()
}

#[test]
fn a_gpu_says_what_it_is() {
    let Some((shim, _)) = gpu() else { return };
    let gpu = shim.gpu(0).unwrap();
    assert!(!gpu.name.is_empty() && gpu.compute_capability.0 >= 8, "{gpu:?}");
    assert!(gpu.multiprocessors > 0 && gpu.threads_per_multiprocessor >= 1024, "{gpu:?}");
    let memory = shim.memory().unwrap();
    assert!(
        memory.free > 0 && memory.free <= memory.total && memory.total <= gpu.memory,
        "{memory:?} {gpu:?}"
    );
    assert!(shim.driver_version().unwrap().is_some());
    let error = shim.gpu(1000).unwrap_err();
    assert!(error.to_string().starts_with("cudaGetDeviceProperties: "), "{error}");
}

#[test]
fn too_much_memory_says_how_much_is_free() {
    let Some((shim, stream)) = gpu() else { return };
    let error = DeviceBuffer::new(shim, 1 << 50).unwrap_err();
    let Error::OutOfMemory { asked, free, total, .. } = error else { panic!("{error}") };
    assert!(asked == 1 << 50 && free > 0 && total >= free);
    // The failure is over.
    assert_eq!(on_host::<u8>(&stream, &on_gpu(&stream, b"after")), b"after");
}

#[test]
fn bytes_go_there_and_back() {
    let Some((shim, stream)) = gpu() else { return };
    let bytes: Vec<u8> = (0..=255).collect();
    let buffer = on_gpu(&stream, &bytes);
    let copy = DeviceBuffer::new(shim, 256).unwrap();
    stream.fill(&copy, 7).unwrap();
    stream.copy(&copy.slice(16..32).unwrap(), &buffer.slice(240..256).unwrap()).unwrap();
    let mut expected = vec![7u8; 256];
    expected[16..32].copy_from_slice(&bytes[240..]);
    assert_eq!(on_host::<u8>(&stream, &copy), expected);
    assert!(buffer.slice(200..257).is_err() && stream.copy(&copy, &buffer.slice(0..8).unwrap()).is_err());

    let mut pinned = PinnedBuffer::new(shim, 256).unwrap();
    assert!(pinned.iter().all(|&byte| byte == 0));
    pinned.copy_from_slice(&bytes);
    let pinned = stream.upload_later(&copy, pinned).unwrap().wait().unwrap();
    assert_eq!(on_host::<u8>(&stream, &copy), bytes);
    let other = Stream::new(shim).unwrap();
    let written = stream.record().unwrap();
    other.wait(&written).unwrap();
    let pinned = other.download_later(pinned, &buffer).unwrap().wait().unwrap();
    assert_eq!(pinned[..], bytes[..]);
    stream.synchronize().unwrap();
    assert!(written.is_done().unwrap());
    let later = stream.record().unwrap();
    later.synchronize().unwrap();
    assert!(later.milliseconds_since(&written).unwrap() >= 0.0);
}

#[test]
fn one_frame_of_every_channel_is_copied_as_rows() {
    let Some((shim, stream)) = gpu() else { return };
    // 3 channels, 4 frames of 5 values; frame 2 of each.
    let latent: Vec<f32> = (0..60).map(|i| i as f32).collect();
    let from = on_gpu(&stream, &latent);
    let frame = DeviceBuffer::new(shim, 3 * 5 * 4).unwrap();
    let rows = Rows { width: 20, count: 3, from_pitch: 80, to_pitch: 20 };
    stream.copy_rows(&frame, &from.slice(40..240).unwrap(), rows).unwrap();
    let expected: Vec<f32> = (0..3).flat_map(|c| latent[c * 20 + 10..c * 20 + 15].to_vec()).collect();
    assert_eq!(on_host::<f32>(&stream, &frame), expected);
    let outside = Rows { count: 4, ..rows };
    assert!(stream.copy_rows(&frame, &from, outside).is_err());
    assert!(stream.copy_rows(&frame, &from, Rows { to_pitch: 19, ..rows }).is_err());
}

#[test]
fn the_sampler_is_that_of_the_cpu_bit_for_bit() {
    let Some((shim, stream)) = gpu() else { return };
    let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    // The last needs more threads than one launch has.
    for count in [1, 255, 257, 4096 * 256 + 3] {
        let times = [0.987_654_321, 0.7, 1.0 / 3.0, 0.0];
        let (noise, v, fresh) = (values(count, 1), values(count, 2), values(3 * count, 3));
        let sampler = Sampler::new(&stream, &times).unwrap();
        let [noise_gpu, v_gpu, fresh_gpu] = [&noise, &v, &fresh].map(|values| on_gpu(&stream, values));
        let [x_gpu, row] = [8, 4].map(|bytes| DeviceBuffer::new(shim, bytes * count).unwrap());
        let input = DeviceBuffer::new(shim, 4 * count).unwrap();

        sampler.initial(&stream, &x_gpu, &noise_gpu).unwrap();
        let mut x = initial(&noise, times[0]);
        assert_eq!(bits(&on_host(&stream, &x_gpu)), bits(&x));

        let mut step = stream
            .capture(|stream| -> Result<(), Error> {
                sampler.input(stream, &input, &x_gpu, true)?;
                sampler.row(stream, &row, &fresh_gpu)?;
                sampler.sde_step(stream, &x_gpu, &v_gpu, &fresh_gpu)?;
                sampler.advance(stream)
            })
            .unwrap();
        // Captured, not run.
        assert_eq!(bits(&on_host(&stream, &x_gpu)), bits(&x));
        for (i, fresh) in fresh.chunks(count).enumerate() {
            step.launch(&stream).unwrap();
            let rounded: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x as f32).to_f32()).collect();
            assert_eq!(on_host::<f32>(&stream, &input), rounded);
            assert_eq!(on_host::<f32>(&stream, &row), fresh);
            sde_step(&mut x, &v, times[i], times[i + 1], fresh).unwrap();
            assert_eq!(bits(&on_host(&stream, &x_gpu)), bits(&x));
        }
        // Past the end it stays with the last step, and reads nothing that is not there.
        sampler.row(&stream, &row, &fresh_gpu).unwrap();
        assert_eq!(on_host::<f32>(&stream, &row), fresh[2 * count..]);

        let sampler = Sampler::new(&stream, &[0.7, 0.1]).unwrap();
        sampler.ode_step(&stream, &x_gpu, &v_gpu).unwrap();
        ode_step(&mut x, &v, 0.7, 0.1).unwrap();
        assert_eq!(bits(&on_host(&stream, &x_gpu)), bits(&x));
        sampler.input(&stream, &input, &x_gpu, false).unwrap();
        assert_eq!(on_host::<f32>(&stream, &input), x.iter().map(|&x| x as f32).collect::<Vec<_>>());
        stream.round_bf16(&v_gpu).unwrap();
        let rounded: Vec<f32> = v.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(on_host::<f32>(&stream, &v_gpu), rounded);
    }
}

#[test]
fn lengths_are_checked_before_anything_runs() {
    let Some((shim, stream)) = gpu() else { return };
    let sampler = Sampler::new(&stream, &[0.7, 0.3, 0.1]).unwrap();
    let buffer = |len| DeviceBuffer::new(shim, len).unwrap();
    for (x, v) in
        [(buffer(16), buffer(4)), (buffer(12), buffer(8)), (buffer(20).slice(4..20).unwrap(), buffer(8))]
    {
        let error = sampler.ode_step(&stream, &x, &v).unwrap_err();
        assert!(matches!(error, Error::Buffer { .. }), "{error}");
    }
    assert!(stream.upload(&buffer(4), &[1.0f64]).is_err());
    // Noise for one of two steps.
    assert!(sampler.sde_step(&stream, &buffer(16), &buffer(8), &buffer(8)).is_err());
    assert!(sampler.row(&stream, &buffer(8), &buffer(12)).is_err());
    assert!(Sampler::new(&stream, &[0.7]).is_err());
}

#[test]
fn a_graph_keeps_what_it_touches() {
    let Some((shim, stream)) = gpu() else { return };
    let to = DeviceBuffer::new(shim, 64).unwrap();
    let mut graph = {
        let from = on_gpu(&stream, &[3u8; 64]);
        stream.capture(|stream| stream.copy(&to, &from)).unwrap()
    };
    stream.fill(&to, 0).unwrap();
    graph.launch(&stream).unwrap();
    assert_eq!(on_host::<u8>(&stream, &to), [3; 64]);
    graph.launch(&Stream::new(shim).unwrap()).unwrap();
}

#[test]
fn what_cannot_be_captured_leaves_the_stream_usable() {
    let Some((shim, stream)) = gpu() else { return };
    let buffer = DeviceBuffer::new(shim, 4).unwrap();
    let refused = stream.capture(|stream| stream.upload(&buffer, &[1u8; 4])).unwrap_err();
    assert!(matches!(refused, Error::Capturing { .. }), "{refused}");
    let refused = stream.capture(|stream| stream.record().map(drop)).unwrap_err();
    assert!(matches!(refused, Error::Capturing { .. }), "{refused}");
    let refused = stream.capture(|stream| stream.capture(|_| Ok::<(), Error>(())).map(drop)).unwrap_err();
    assert!(matches!(refused, Error::Capturing { .. }), "{refused}");
    stream.upload(&buffer, &[5u8; 4]).unwrap();
    assert_eq!(on_host::<u8>(&stream, &buffer), [5; 4]);
}
