//! What GPUs there are.

use crate::api::RawGpu;
use crate::error::NoGpu;
use crate::shim::text;
use crate::{Error, Shim};

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its position among CUDA's devices.
    pub index: i32,
    /// Name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Most resident threads of a multiprocessor.
    pub threads_per_multiprocessor: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by any process.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// Major and minor of CUDA's number.
fn version(number: i32) -> (i32, i32) {
    (number / 1000, number % 1000 / 10)
}

impl Shim {
    /// Number of GPUs.
    ///
    /// # Errors
    /// No driver, one that is too old, or no GPU.
    pub fn gpu_count(self) -> Result<i32, Error> {
        let mut count = 0;
        // SAFETY: writes one number to a place that outlives the call.
        match self.check(unsafe { (self.api.gpu_count)(&raw mut count) }) {
            Ok(()) if count > 0 => Ok(count),
            Ok(()) => Err(self.no_gpu("it finds none")),
            Err(Error::Cuda { text, .. }) => Err(self.no_gpu(&text)),
            Err(other) => Err(other),
        }
    }

    /// Why there is no GPU, by what CUDA says and by the driver's version.
    fn no_gpu(self, said: &str) -> Error {
        // SAFETY: takes nothing and returns a constant.
        let (needed, _) = version(unsafe { (self.api.cuda_version)() });
        Error::NoGpu(match self.driver_version() {
            Ok(None) | Err(_) => NoGpu::NoDriver,
            Ok(Some((found, minor))) if found < needed => NoGpu::OldDriver { found: (found, minor), needed },
            Ok(Some(driver)) => NoGpu::NoneFound { driver, said: said.to_string() },
        })
    }

    /// One GPU.
    ///
    /// # Errors
    /// As [`Shim::gpu_count`], or no GPU of that index.
    pub fn gpu(self, index: i32) -> Result<Gpu, Error> {
        let mut gpu = RawGpu::EMPTY;
        // SAFETY: fills a structure of the ABI's layout that outlives the call.
        let asked = self.check(unsafe { (self.api.gpu_info)(index, &raw mut gpu) });
        asked.map_err(|error| self.gpu_count().err().unwrap_or(error))?;
        Ok(Gpu {
            index,
            // SAFETY: the shim ends the name with a zero.
            name: unsafe { text(gpu.name.as_ptr()) },
            compute_capability: (gpu.major, gpu.minor),
            multiprocessors: gpu.multiprocessors.unsigned_abs(),
            threads_per_multiprocessor: gpu.threads_per_multiprocessor.unsigned_abs(),
            memory: gpu.memory,
        })
    }

    /// Makes a GPU the current one of this thread; threads begin with the first.
    ///
    /// # Errors
    /// As [`Shim::gpu`].
    pub fn select(self, index: i32) -> Result<(), Error> {
        // SAFETY: any index may be passed.
        self.check(unsafe { (self.api.gpu_select)(index) })
    }

    /// CUDA version of the driver, major and minor; none without a driver.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn driver_version(self) -> Result<Option<(i32, i32)>, Error> {
        let mut number = 0;
        // SAFETY: writes one number to a place that outlives the call.
        self.check(unsafe { (self.api.driver_version)(&raw mut number) })?;
        Ok((number != 0).then_some(version(number)))
    }

    /// Memory of the current GPU.
    ///
    /// # Errors
    /// As [`Shim::gpu_count`].
    pub fn memory(self) -> Result<MemoryInfo, Error> {
        let mut info = MemoryInfo::default();
        // SAFETY: writes two numbers to places that outlive the call.
        self.check(unsafe { (self.api.memory_info)(&raw mut info.free, &raw mut info.total) })?;
        Ok(info)
    }
}
