//! Memory on the GPU, and memory of this process that the GPU reads and writes without a detour.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use crate::api::Raw;
use crate::{Error, Shim};

/// A piece of device memory; clones and slices share it, and the last one frees it.
#[derive(Clone, Debug)]
pub struct DeviceBuffer {
    memory: Arc<Allocation>,
    offset: usize,
    len: usize,
}

#[derive(Debug)]
struct Allocation {
    shim: Shim,
    raw: Raw,
}

// SAFETY: an address on the device, which this process never reads or writes; CUDA may be called from any
// thread.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: made by `device_alloc`, and no buffer refers to it any more. CUDA waits for work that uses
        // it. A failure means that the GPU is lost, with the memory.
        let _ = unsafe { (self.shim.api.device_free)(self.raw) };
    }
}

impl DeviceBuffer {
    /// Allocates on the thread's current GPU; what is in it is unspecified.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what CUDA says.
    pub fn new(shim: Shim, len: usize) -> Result<DeviceBuffer, Error> {
        let mut raw: Raw = std::ptr::null_mut();
        // CUDA gives no address for nothing.
        let asked = len.max(1);
        // SAFETY: writes an address to a place that outlives the call.
        shim.check_memory(unsafe { (shim.api.device_alloc)(asked, &raw mut raw) }, asked)?;
        Ok(DeviceBuffer { memory: Arc::new(Allocation { shim, raw }), offset: 0, len })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Part of it.
    ///
    /// # Errors
    /// A range that is not inside.
    pub fn slice(&self, range: Range<usize>) -> Result<DeviceBuffer, Error> {
        if range.start > range.end || range.end > self.len {
            return Err(unfit(
                "slice of a device buffer",
                format!("bytes {range:?}"),
                format!("up to {}", self.len),
            ));
        }
        let len = range.end - range.start;
        Ok(DeviceBuffer { memory: self.memory.clone(), offset: self.offset + range.start, len })
    }

    /// Address on the device.
    pub(crate) fn raw(&self) -> Raw {
        self.memory.raw.wrapping_byte_add(self.offset)
    }

    pub(crate) fn is_aligned(&self, to: usize) -> bool {
        self.raw().addr().is_multiple_of(to)
    }

    /// Number of elements of a size, checked for alignment.
    pub(crate) fn elements(&self, what: &str, size: usize) -> Result<usize, Error> {
        if self.len.is_multiple_of(size) && self.is_aligned(size) {
            return Ok(self.len / size);
        }
        let found = format!("{} bytes at offset {}", self.len, self.offset);
        Err(unfit(what, found, format!("whole elements of {size} bytes")))
    }
}

/// Host memory that the GPU copies from and to by itself.
#[derive(Debug)]
pub struct PinnedBuffer {
    shim: Shim,
    raw: Raw,
    len: usize,
}

// SAFETY: owned memory of this process; CUDA may be called from any thread.
unsafe impl Send for PinnedBuffer {}
// SAFETY: shared references only read.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates, all zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what CUDA says.
    pub fn new(shim: Shim, len: usize) -> Result<PinnedBuffer, Error> {
        let mut raw: Raw = std::ptr::null_mut();
        let asked = len.max(1);
        // SAFETY: writes an address to a place that outlives the call.
        shim.check_memory(unsafe { (shim.api.pinned_alloc)(asked, &raw mut raw) }, asked)?;
        // SAFETY: `asked` bytes were just allocated there, and `len` is not more.
        unsafe { raw.cast::<u8>().write_bytes(0, asked) };
        Ok(PinnedBuffer { shim, raw, len })
    }

    pub(crate) fn raw(&self) -> Raw {
        self.raw
    }
}

impl Deref for PinnedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes, owned by this value. While the GPU uses them a `Transfer` owns the
        // value.
        unsafe { std::slice::from_raw_parts(self.raw.cast(), self.len) }
    }
}

impl DerefMut for PinnedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.raw.cast(), self.len) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: made by `pinned_alloc` and freed once. A failure means that the GPU is lost.
        let _ = unsafe { (self.shim.api.pinned_free)(self.raw) };
    }
}

pub(crate) fn unfit(what: &str, found: String, expected: String) -> Error {
    Error::Buffer { what: what.to_string(), found, expected }
}

/// That two lengths agree.
pub(crate) fn same_length(what: &str, found: usize, expected: usize) -> Result<(), Error> {
    match found == expected {
        true => Ok(()),
        false => Err(unfit(what, found.to_string(), expected.to_string())),
    }
}
