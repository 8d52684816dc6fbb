//! Streams: work that the GPU does in order; and events in them.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::{AnyBitPattern, NoUninit};

use crate::api::{ON_DEVICE, Raw, TO_DEVICE, TO_HOST};
use crate::memory::{same_length, unfit};
use crate::{DeviceBuffer, Error, PinnedBuffer, Shim};

/// A queue of work for the GPU; clones are the same queue.
#[derive(Clone, Debug)]
pub struct Stream {
    handle: Arc<Handle>,
}

/// What a captured graph needs as long as it lives.
pub(crate) type Kept = Vec<Arc<dyn Any + Send + Sync>>;

#[derive(Debug)]
struct Handle {
    shim: Shim,
    raw: Raw,
    /// Present while a graph is captured. Held locked during every use of the stream, so that a capture
    /// neither begins nor ends in between.
    captured: Mutex<Option<Kept>>,
}

// SAFETY: CUDA's streams may be used from any thread, and all uses are under the lock.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `stream_create` and destroyed once; CUDA finishes the work first. A failure means
        // that the GPU is lost.
        let _ = unsafe { (self.shim.api.stream_destroy)(self.raw) };
    }
}

/// Rows of a copy between two layouts, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Bytes of a row.
    pub width: usize,
    /// Number of rows.
    pub count: usize,
    /// From row to row of the source.
    pub from_pitch: usize,
    /// From row to row of the destination.
    pub to_pitch: usize,
}

impl Stream {
    /// A stream on the thread's current GPU.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn new(shim: Shim) -> Result<Stream, Error> {
        let mut raw: Raw = std::ptr::null_mut();
        // SAFETY: writes a handle to a place that outlives the call.
        shim.check(unsafe { (shim.api.stream_create)(&raw mut raw) })?;
        Ok(Stream { handle: Arc::new(Handle { shim, raw, captured: Mutex::new(None) }) })
    }

    /// The shim that it came from.
    pub fn shim(&self) -> Shim {
        self.handle.shim
    }

    /// Enqueues a call. What it touches is named by `keep`, for the graph if one is captured.
    pub(crate) fn enqueue(
        &self,
        keep: impl FnOnce(&mut Kept),
        call: impl FnOnce(Raw) -> i32,
    ) -> Result<(), Error> {
        let mut captured = self.captured();
        if let Some(kept) = captured.as_mut() {
            keep(kept);
        }
        self.shim().check(call(self.handle.raw))
    }

    fn captured(&self) -> MutexGuard<'_, Option<Kept>> {
        self.handle.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, for what a graph must not contain.
    fn outside_capture(&self, what: &'static str) -> Result<MutexGuard<'_, Option<Kept>>, Error> {
        let captured = self.captured();
        if captured.is_some() { Err(Error::Capturing { what }) } else { Ok(captured) }
    }

    /// Whether it is the same queue.
    pub(crate) fn is(&self, other: &Stream) -> bool {
        Arc::ptr_eq(&self.handle, &other.handle)
    }

    /// Whether a graph is being captured.
    pub(crate) fn is_capturing(&self) -> bool {
        self.captured().is_some()
    }

    pub(crate) fn begin_capture(&self) -> Result<(), Error> {
        let mut captured = self.outside_capture("a capture")?;
        // SAFETY: a live stream.
        self.shim().check(unsafe { (self.shim().api.capture_begin)(self.handle.raw) })?;
        *captured = Some(Vec::new());
        Ok(())
    }

    /// The instantiated graph and what it needs.
    pub(crate) fn end_capture(&self) -> Result<(Raw, Kept), Error> {
        let mut captured = self.captured();
        let kept = captured.take().unwrap_or_default();
        let mut graph: Raw = std::ptr::null_mut();
        // SAFETY: a live stream, and a place for a handle that outlives the call.
        let ended = unsafe { (self.shim().api.capture_end)(self.handle.raw, &raw mut graph) };
        self.shim().check(ended)?;
        Ok((graph, kept))
    }

    /// Waits for all work enqueued so far.
    ///
    /// # Errors
    /// What failed of that work, as CUDA says it.
    pub fn synchronize(&self) -> Result<(), Error> {
        let _lock = self.outside_capture("waiting")?;
        self.wait_for_all()
    }

    /// Waits; the caller holds the lock.
    fn wait_for_all(&self) -> Result<(), Error> {
        // SAFETY: a live stream.
        self.shim().check(unsafe { (self.shim().api.stream_synchronize)(self.handle.raw) })
    }

    /// Copies to the device, and waits for it and for all work before it.
    ///
    /// # Errors
    /// Lengths that differ, a capture in progress, or what CUDA says.
    pub fn upload<T: NoUninit>(&self, to: &DeviceBuffer, from: &[T]) -> Result<(), Error> {
        let bytes: &[u8] = bytemuck::cast_slice(from);
        same_length("bytes of an upload", bytes.len(), to.len())?;
        let _lock = self.outside_capture("an upload")?;
        let api = self.shim().api;
        // SAFETY: `to` has as many bytes, and both live until the wait below is over; the lock keeps a
        // capture from taking the host's address.
        let copied =
            unsafe { (api.copy)(TO_DEVICE, to.raw(), bytes.as_ptr().cast(), bytes.len(), self.handle.raw) };
        self.shim().check(copied)?;
        self.wait_for_all()
    }

    /// Copies to the host, and waits for it and for all work before it.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn download<T: NoUninit + AnyBitPattern>(
        &self,
        to: &mut [T],
        from: &DeviceBuffer,
    ) -> Result<(), Error> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(to);
        same_length("bytes of a download", bytes.len(), from.len())?;
        let _lock = self.outside_capture("a download")?;
        let (api, len) = (self.shim().api, bytes.len());
        // SAFETY: as in `upload`, the other way round.
        let copied =
            unsafe { (api.copy)(TO_HOST, bytes.as_mut_ptr().cast(), from.raw(), len, self.handle.raw) };
        self.shim().check(copied)?;
        self.wait_for_all()
    }

    /// Copies to the device without waiting.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn upload_later(&self, to: &DeviceBuffer, from: PinnedBuffer) -> Result<Transfer, Error> {
        same_length("bytes of an upload", from.len(), to.len())?;
        let (host, device) = (from.raw(), to.raw());
        self.transfer("an upload", from, TO_DEVICE, device, host)
    }

    /// Copies to the host without waiting.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn download_later(&self, to: PinnedBuffer, from: &DeviceBuffer) -> Result<Transfer, Error> {
        same_length("bytes of a download", to.len(), from.len())?;
        let (host, device) = (to.raw(), from.raw());
        self.transfer("a download", to, TO_HOST, host, device)
    }

    fn transfer(
        &self,
        what: &'static str,
        buffer: PinnedBuffer,
        kind: i32,
        to: Raw,
        from: Raw,
    ) -> Result<Transfer, Error> {
        let event = Event::new(self.shim())?;
        let _lock = self.outside_capture(what)?;
        let api = self.shim().api;
        // SAFETY: both sides have the buffer's length. The host's side is owned by the transfer until the
        // event says that the copy is over, and freeing either side waits for the copy.
        self.shim().check(unsafe { (api.copy)(kind, to, from, buffer.len(), self.handle.raw) })?;
        // SAFETY: live handles.
        let recorded = self.shim().check(unsafe { (api.event_record)(event.raw, self.handle.raw) });
        if let Err(error) = recorded {
            self.wait_for_all()?;
            return Err(error);
        }
        Ok(Transfer { buffer: Some(buffer), event })
    }

    /// Copies on the device.
    ///
    /// # Errors
    /// Lengths that differ, or what CUDA says.
    pub fn copy(&self, to: &DeviceBuffer, from: &DeviceBuffer) -> Result<(), Error> {
        same_length("bytes of a copy", from.len(), to.len())?;
        let api = self.shim().api;
        // SAFETY: device memory of that length on both sides.
        let call = |stream| unsafe { (api.copy)(ON_DEVICE, to.raw(), from.raw(), from.len(), stream) };
        self.enqueue(keep(&[to, from]), call)
    }

    /// Copies rows on the device from one layout to another.
    ///
    /// # Errors
    /// Rows that overlap or do not fit, or what CUDA says.
    pub fn copy_rows(&self, to: &DeviceBuffer, from: &DeviceBuffer, rows: Rows) -> Result<(), Error> {
        let Rows { width, count, from_pitch, to_pitch } = rows;
        if width == 0 || count == 0 {
            return Ok(());
        }
        for (what, pitch, len) in [("source", from_pitch, from.len()), ("destination", to_pitch, to.len())] {
            let end = pitch.checked_mul(count - 1).and_then(|last| last.checked_add(width));
            if pitch < width || end.is_none_or(|end| end > len) {
                return Err(unfit(
                    &format!("{what} of copied rows"),
                    format!("{len} bytes"),
                    format!("{rows:?}"),
                ));
            }
        }
        let api = self.shim().api;
        // SAFETY: the rows were checked to lie inside both buffers.
        let call = |stream| unsafe {
            (api.copy_2d)(to.raw(), to_pitch, from.raw(), from_pitch, width, count, stream)
        };
        self.enqueue(keep(&[to, from]), call)
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn fill(&self, buffer: &DeviceBuffer, byte: u8) -> Result<(), Error> {
        let api = self.shim().api;
        // SAFETY: device memory of that length.
        let call = |stream| unsafe { (api.fill)(buffer.raw(), i32::from(byte), buffer.len(), stream) };
        self.enqueue(keep(&[buffer]), call)
    }

    /// Marks this place in the queue.
    ///
    /// # Errors
    /// A capture in progress (another stream that waited for the event would be captured too), or what CUDA
    /// says.
    pub fn record(&self) -> Result<Event, Error> {
        let event = Event::new(self.shim())?;
        let _lock = self.outside_capture("an event")?;
        // SAFETY: live handles.
        self.shim().check(unsafe { (self.shim().api.event_record)(event.raw, self.handle.raw) })?;
        Ok(event)
    }

    /// Lets what is enqueued from here on wait for an event of another stream.
    ///
    /// # Errors
    /// A capture in progress, or what CUDA says.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        let _lock = self.outside_capture("waiting for an event")?;
        // SAFETY: live handles.
        self.shim().check(unsafe { (self.shim().api.stream_wait)(self.handle.raw, event.raw) })
    }
}

/// Keeps buffers for a graph.
pub(crate) fn keep(buffers: &[&DeviceBuffer]) -> impl FnOnce(&mut Kept) {
    move |kept| {
        kept.extend(buffers.iter().map(|&buffer| Arc::new(buffer.clone()) as Arc<dyn Any + Send + Sync>))
    }
}

/// A place in a stream's queue.
#[derive(Debug)]
pub struct Event {
    shim: Shim,
    raw: Raw,
}

// SAFETY: CUDA's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    fn new(shim: Shim) -> Result<Event, Error> {
        let mut raw: Raw = std::ptr::null_mut();
        // SAFETY: writes a handle to a place that outlives the call.
        shim.check(unsafe { (shim.api.event_create)(&raw mut raw) })?;
        Ok(Event { shim, raw })
    }

    /// Whether the work before it is done.
    ///
    /// # Errors
    /// What failed of that work, as CUDA says it.
    pub fn is_done(&self) -> Result<bool, Error> {
        let mut done = 0;
        // SAFETY: a live event, and a number that outlives the call.
        self.shim.check(unsafe { (self.shim.api.event_query)(self.raw, &raw mut done) })?;
        Ok(done != 0)
    }

    /// Waits for the work before it.
    ///
    /// # Errors
    /// As [`Event::is_done`].
    pub fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: a live event.
        self.shim.check(unsafe { (self.shim.api.event_synchronize)(self.raw) })
    }

    /// Milliseconds from an earlier event; both must be done.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn milliseconds_since(&self, earlier: &Event) -> Result<f32, Error> {
        let mut elapsed = 0.0;
        // SAFETY: live events, and a number that outlives the call.
        self.shim.check(unsafe { (self.shim.api.event_elapsed)(earlier.raw, self.raw, &raw mut elapsed) })?;
        Ok(elapsed)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `event_create` and destroyed once; CUDA keeps it while work refers to it.
        let _ = unsafe { (self.shim.api.event_destroy)(self.raw) };
    }
}

/// A copy under way; it owns the host's side until the copy is over.
#[derive(Debug)]
pub struct Transfer {
    buffer: Option<PinnedBuffer>,
    event: Event,
}

impl Transfer {
    /// Waits and gives the host's side back.
    ///
    /// # Errors
    /// What failed of the stream's work until then, as CUDA says it.
    pub fn wait(mut self) -> Result<PinnedBuffer, Error> {
        self.event.synchronize()?;
        self.buffer.take().ok_or_else(|| Error::Internal("a transfer was waited for twice".to_string()))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.buffer.is_some() {
            // A failure means that the GPU is lost, and no copy goes on.
            drop(self.event.synchronize());
        }
    }
}
