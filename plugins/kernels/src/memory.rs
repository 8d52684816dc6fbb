//! Memory on the device, with guard bands.

use std::ffi::c_void;

use anyhow::{Result, bail};

use crate::library::Library;

/// Bytes of a guard band, which keeps what lies behind it as aligned as CUDA's allocations are.
pub const GUARD: usize = 256;
/// What guard bands hold.
const GUARD_BYTE: u8 = 0xa5;

/// Some bytes on the device, freed when dropped.
pub struct Block<'a> {
    library: &'a Library,
    base: *mut c_void,
    guard: usize,
    bytes: usize,
}

impl<'a> Block<'a> {
    /// Exactly so many bytes.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(library: &'a Library, bytes: usize) -> Result<Self> {
        Self::allocate(library, bytes, 0)
    }

    /// The bytes between two guard bands, the second of which begins right after the last byte.
    ///
    /// # Errors
    /// Out of memory.
    pub fn guarded(library: &'a Library, bytes: usize) -> Result<Self> {
        let block = Self::allocate(library, bytes, GUARD)?;
        block.write(&vec![GUARD_BYTE; GUARD], block.base)?;
        block.write(&vec![GUARD_BYTE; GUARD], block.at(bytes))?;
        Ok(block)
    }

    fn allocate(library: &'a Library, bytes: usize, guard: usize) -> Result<Self> {
        let mut base = std::ptr::null_mut();
        // SAFETY: `base` outlives the call.
        library.call(|f, text, size| unsafe { (f.malloc)(bytes + 2 * guard, &raw mut base, text, size) })?;
        Ok(Block { library, base, guard, bytes })
    }

    /// Bytes without the guard bands.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of byte `offset`; only for this module's callers to hand to the library.
    pub(crate) fn at(&self, offset: usize) -> *mut c_void {
        self.base.wrapping_byte_add(self.guard + offset)
    }

    /// Sets all bytes.
    ///
    /// # Errors
    /// The device's.
    pub fn fill(&self, byte: u8) -> Result<()> {
        // SAFETY: the range is within the allocation.
        self.library
            .call(|f, text, size| unsafe { (f.fill)(self.at(0), i32::from(byte), self.bytes, text, size) })
    }

    /// Copies bytes to the start of the block.
    ///
    /// # Errors
    /// More bytes than there are; the device's.
    pub fn upload(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.bytes {
            bail!("{} bytes for a block of {}", bytes.len(), self.bytes);
        }
        self.write(bytes, self.at(0))
    }

    /// Copies another block of the same size.
    ///
    /// # Errors
    /// Another size; the device's.
    pub fn copy_from(&self, other: &Block<'_>) -> Result<()> {
        if other.bytes != self.bytes {
            bail!("{} bytes for a block of {}", other.bytes, self.bytes);
        }
        // SAFETY: both ranges are within their allocations.
        self.library
            .call(|f, text, size| unsafe { (f.copy)(self.at(0), other.at(0), self.bytes, text, size) })
    }

    /// All bytes.
    ///
    /// # Errors
    /// The device's.
    pub fn download(&self) -> Result<Vec<u8>> {
        self.read(self.at(0), self.bytes)
    }

    /// Repeats bytes over the whole block.
    ///
    /// # Errors
    /// The device's.
    pub fn tile(&self, bytes: &[u8]) -> Result<()> {
        let mut done = bytes.len().min(self.bytes);
        self.upload(&bytes[..done])?;
        while done > 0 && done < self.bytes {
            let more = done.min(self.bytes - done);
            self.copy(self.at(done), self.at(0), more)?;
            done += more;
        }
        Ok(())
    }

    /// Whether the guard bands are as they were.
    ///
    /// # Errors
    /// The first byte that was overwritten, counted from the start of the block.
    pub fn check_guards(&self) -> Result<()> {
        for (at, first) in [(self.base, -(self.guard as i64)), (self.at(self.bytes), self.bytes as i64)] {
            let band = self.read(at, self.guard)?;
            if let Some(i) = band.iter().position(|&byte| byte != GUARD_BYTE) {
                bail!("byte {} of {} was written", first + i as i64, self.bytes);
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], to: *mut c_void) -> Result<()> {
        self.copy(to, bytes.as_ptr().cast(), bytes.len())
    }

    fn read(&self, from: *const c_void, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; count];
        self.copy(bytes.as_mut_ptr().cast(), from, count)?;
        Ok(bytes)
    }

    /// The ranges are the callers', all in this module: of this allocation or of a slice on the host, and apart.
    fn copy(&self, to: *mut c_void, from: *const c_void, bytes: usize) -> Result<()> {
        // SAFETY: both ranges are whole, as said above.
        self.library.call(|f, text, size| unsafe { (f.copy)(to, from, bytes, text, size) })
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        // SAFETY: `base` came from `malloc`. A failure here was reported by the call that caused it.
        let _ = self.library.call(|f, text, size| unsafe { (f.free)(self.base, text, size) });
    }
}
