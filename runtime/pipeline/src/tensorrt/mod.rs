//! The TensorRT backend: plans on an NVIDIA GPU.
//!
//! # Memory
//!
//! Stages run one after the other, so what a plan computes on the way lies in one arena that all of them share, as
//! large as the largest needs. Weights and the buffers of inputs and outputs come with a stage and go with it. The
//! engine file says what each stage needs at its peak; a run that would not fit is refused before anything is loaded.

mod executor;
mod layers;
mod stage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use turbo_engine_file::Manifest;
use turbo_trt::{DeviceBuffer, Gpu, Library, MemoryInfo, Places, Runtime, Shim};

use crate::RunError;
pub(crate) use executor::TensorRt;
pub use layers::{OWN, layer_op};
pub use stage::Stage;

/// A GPU and the TensorRT that runs on it.
#[derive(Debug)]
pub struct Device {
    library: Library,
    gpu: Gpu,
    /// Makes engines one at a time.
    runtime: Mutex<Runtime>,
}

impl Device {
    /// Loads TensorRT and the plugins: from these folders or the usual places (see [`Places`]).
    ///
    /// # Errors
    /// A library that is missing or of a version that is not supported, no driver, no GPU.
    pub fn open(libraries: Option<&Path>, tensorrt: Option<&Path>) -> Result<Device, RunError> {
        let places = Places { shim: libraries, tensorrt };
        let library = Library::load(&places)?;
        let gpu = library.shim().gpu(0)?;
        let mut runtime = Runtime::new(&library)?;
        runtime.load_plugins(&plugins(&library)?)?;
        Ok(Device { library, gpu, runtime: Mutex::new(runtime) })
    }

    /// TensorRT itself.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn shim(&self) -> Shim {
        self.library.shim()
    }

    fn runtime(&self) -> MutexGuard<'_, Runtime> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether this machine can run an engine file.
    ///
    /// # Errors
    /// Another GPU architecture, another version of TensorRT, a driver that is too old.
    pub fn check(&self, manifest: &Manifest) -> Result<(), RunError> {
        let Some(needed) = &manifest.backend.gpu else {
            return Err(RunError::Inconsistent("it names no GPU".to_string()));
        };
        let shim = self.shim();
        let machine = Machine {
            gpu: &self.gpu,
            tensorrt: self.library.version().to_string(),
            library: self.library.path(),
            driver: shim.driver_version()?,
        };
        machine.suits(needed)
    }
}

/// What a plan is bound to, as it is found.
#[derive(Debug)]
struct Machine<'a> {
    gpu: &'a Gpu,
    /// Version of TensorRT.
    tensorrt: String,
    library: &'a Path,
    /// The newest CUDA that the driver supports, if there is a driver.
    driver: Option<(i32, i32)>,
}

impl Machine<'_> {
    /// An error when plans that need this cannot run here.
    fn suits(&self, needed: &turbo_engine_file::Gpu) -> Result<(), RunError> {
        let refused = |what: String, hint: &str| Err(RunError::Machine { what, hint: hint.to_string() });
        let [major, minor] = needed.compute_capability;
        let (found_major, found_minor) = self.gpu.compute_capability;
        if (i64::from(found_major), i64::from(found_minor)) != (i64::from(major), i64::from(minor)) {
            let what = format!(
                "the engine file was built on {} for compute capability {major}.{minor}, this GPU is {} with \
                 {found_major}.{found_minor}",
                needed.name, self.gpu.name
            );
            return refused(what, "compile the model on this machine: turbo-compile MODEL --target trt");
        }
        if self.tensorrt != needed.tensorrt {
            let what = format!(
                "the engine file was built with TensorRT {}, {} is {}",
                needed.tensorrt,
                self.library.display(),
                self.tensorrt
            );
            let hint = "give that version with --tensorrt PATH, or compile the model with this one: \
                        turbo-compile MODEL --target trt";
            return refused(what, hint);
        }
        let wanted = needed.cuda.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let (driver_major, driver_minor) = self.driver.unwrap_or_default();
        if wanted.is_some_and(|wanted| (driver_major, driver_minor) < wanted) {
            let what = format!(
                "the engine file needs a driver for CUDA {} or newer, this one is for CUDA \
                 {driver_major}.{driver_minor}",
                needed.cuda
            );
            let hint = "update the NVIDIA driver (nvidia-smi shows it), or compile the model on this machine: \
                        turbo-compile MODEL --target trt";
            return refused(what, hint);
        }
        Ok(())
    }
}

/// The plugin library beside the shim, made for the same version of TensorRT.
///
/// # Errors
/// When it is not there.
pub fn plugins(library: &Library) -> Result<PathBuf, RunError> {
    let shim = library.shim();
    let name = format!("libturbo_plugins-{}.so", shim.tensorrt());
    let path = shim.path().with_file_name(&name);
    match path.is_file() {
        true => Ok(path),
        false => Err(RunError::Machine {
            what: format!("{} is missing", path.display()),
            hint: "it is built together with libturbo_trt: cargo xtask gpu".to_string(),
        }),
    }
}

/// The arena that stages share, and the most memory that was in use.
#[derive(Debug)]
pub(crate) struct Memory {
    arena: DeviceBuffer,
    free_before: u64,
    peak: u64,
}

impl Memory {
    /// Checks that every stage of the video fits into what is free and allocates the arena.
    fn reserve(device: &Device, manifest: &Manifest, video: usize) -> Result<Memory, RunError> {
        let info = device.shim().memory()?;
        fits(manifest, video, info)?;
        let largest = arena_bytes(manifest, video);
        let arena = DeviceBuffer::new(device.shim(), usize::try_from(largest).unwrap_or(usize::MAX))?;
        Ok(Memory { arena, free_before: info.free, peak: 0 })
    }

    fn arena(&self) -> &DeviceBuffer {
        &self.arena
    }

    /// Takes note of what is in use now.
    fn measure(&mut self, device: &Device) -> Result<(), RunError> {
        let free = device.shim().memory()?.free;
        self.peak = self.peak.max(self.free_before.saturating_sub(free));
        Ok(())
    }

    fn peak(&self) -> u64 {
        self.peak
    }
}

/// The stages that a video needs.
fn stages(manifest: &Manifest, video: usize) -> impl Iterator<Item = &turbo_engine_file::Stage> {
    manifest.stages.iter().filter(move |stage| stage.serves(video))
}

/// Size of the arena.
fn arena_bytes(manifest: &Manifest, video: usize) -> u64 {
    stages(manifest, video).filter_map(|stage| stage.activation_bytes).max().unwrap_or(0)
}

/// Bytes that stay beside the steps: the latent in f64; in f32 the initial noise and that of each step, and what modulates
/// each, six rows for a block and two for the head.
fn state_bytes(manifest: &Manifest, video: usize) -> u64 {
    const STEPS: u64 = turbo_sampler::MAX_STEPS as u64;
    let latent = manifest.videos.get(video).map_or([0; 4], |shape| shape.latent.map(u64::from));
    let latent = latent.iter().fold(8 + 4 * (1 + STEPS), |bytes, &extent| bytes.saturating_mul(extent));
    let (layers, dim) = (u64::from(manifest.model.layers), u64::from(manifest.model.dim));
    let modulation = (4 * STEPS * dim).saturating_mul(6 * layers + 2);
    latent.saturating_add(modulation)
}

/// The stage that needs most at its peak, and how much of that is not the arena: its weights and buffers. The parts of
/// an expert are loaded together and count as its first one.
fn largest(manifest: &Manifest, video: usize) -> Option<(&str, u64)> {
    let mut needs: BTreeMap<&str, u64> = BTreeMap::new();
    for stage in stages(manifest, video) {
        let Some(peak) = stage.peak_memory_bytes else { continue };
        let experts = std::iter::once(&manifest.experts.high).chain(&manifest.experts.low);
        let expert = experts.into_iter().find(|expert| expert.steps.contains(&stage.name));
        let name = expert.and_then(|expert| expert.steps.first()).unwrap_or(&stage.name);
        // The arena is there in every stage, so what else it needs decides.
        let own = peak.saturating_sub(stage.activation_bytes.unwrap_or(0));
        let state = if expert.is_some() && *name == stage.name { state_bytes(manifest, video) } else { 0 };
        let need = needs.entry(name).or_default();
        *need = need.saturating_add(own).saturating_add(state);
    }
    needs.into_iter().max_by_key(|&(_, own)| own)
}

/// Most memory that a video needs at once, where it was measured.
fn peak_bytes(manifest: &Manifest, video: usize) -> Option<u64> {
    Some(largest(manifest, video)?.1.saturating_add(arena_bytes(manifest, video)))
}

/// An error when a stage of the video needs more than is free, with what would fit.
fn fits(manifest: &Manifest, video: usize, memory: MemoryInfo) -> Result<(), RunError> {
    let (Some((stage, weights)), Some(shape)) = (largest(manifest, video), manifest.videos.get(video)) else {
        return Ok(());
    };
    let arena = arena_bytes(manifest, video);
    let peak = weights.saturating_add(arena);
    if peak <= memory.free {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let what = format!(
        "stage {} needs {:.2} GiB of GPU memory, {:.2} of {:.2} GiB are free",
        stage,
        gib(peak),
        gib(memory.free),
        gib(memory.total)
    );
    // Weights stay, the arena grows with the number of tokens.
    let share = memory.free.saturating_sub(weights) as f64 / arena.max(1) as f64;
    let latents = (f64::from(shape.latent[1]) * share) as u32;
    let mut hint = if peak <= memory.total {
        "close what else uses this GPU: nvidia-smi lists it".to_string()
    } else if weights >= memory.free {
        format!("its weights alone take {:.2} GiB: use a GPU with more memory", gib(weights))
    } else if latents == 0 {
        format!(
            "one frame of {}x{} is too large already: compile with a smaller --size, or use a GPU with more memory",
            shape.width, shape.height
        )
    } else {
        format!(
            "about --size {}x{} --frames {} would fit: compile it so, or use a GPU with more memory",
            shape.width,
            shape.height,
            (latents - 1) * shape.vae_stride[0] + 1
        )
    };
    let others = manifest.videos.iter().enumerate();
    let fitting =
        others.filter(|&(other, _)| peak_bytes(manifest, other).is_some_and(|peak| peak <= memory.free));
    if let Some((_, best)) = fitting.max_by_key(|(_, other)| other.tokens) {
        hint = format!(
            "--size {}x{} --frames {} of this engine file fits; otherwise {hint}",
            best.width, best.height, best.frames
        );
    }
    Err(RunError::Machine { what, hint })
}

#[cfg(test)]
mod tests;
