//! CUDA graphs: work recorded once and launched as a whole.

use crate::api::Raw;
use crate::stream::Kept;
use crate::{Error, Stream};

/// A captured graph, with everything that it touches.
#[derive(Debug)]
pub struct Graph {
    raw: Raw,
    stream: Stream,
    /// The stream of the last launch.
    launched: Option<Stream>,
    _kept: Kept,
}

// SAFETY: CUDA's graphs may be used from any thread, one at a time; launching takes the value exclusively.
unsafe impl Send for Graph {}
// SAFETY: nothing can be done through a shared reference.
unsafe impl Sync for Graph {}

impl Stream {
    /// Captures what `work` enqueues on this stream, without running it.
    ///
    /// Buffers and contexts in it live as long as the graph; what contexts are bound to afterwards does not
    /// change it. Only device work can be captured: copies on the device, fills, the sampler, runs of a
    /// context.
    ///
    /// # Errors
    /// What `work` gives, a capture in progress, or what CUDA says.
    pub fn capture<E: From<Error>>(&self, work: impl FnOnce(&Stream) -> Result<(), E>) -> Result<Graph, E> {
        self.begin_capture()?;
        let capture = Capture { stream: Some(self) };
        work(self)?;
        Ok(capture.end()?)
    }
}

/// Ends the capture, also when the work fails or panics: the stream could not be used any more.
struct Capture<'a> {
    stream: Option<&'a Stream>,
}

impl Capture<'_> {
    fn end(mut self) -> Result<Graph, Error> {
        let stream = self.stream.take().ok_or(Error::Capturing { what: "a capture" })?;
        let (raw, kept) = stream.end_capture()?;
        Ok(Graph { raw, stream: stream.clone(), launched: None, _kept: kept })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take()
            && let Ok((raw, _kept)) = stream.end_capture()
        {
            // SAFETY: the graph was just made and was never launched.
            let _ = unsafe { (stream.shim().api.graph_destroy)(raw) };
        }
    }
}

impl Graph {
    /// Enqueues the whole graph.
    ///
    /// # Errors
    /// A capture in progress, or what CUDA says.
    pub fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        if stream.is_capturing() {
            return Err(Error::Capturing { what: "a graph" });
        }
        // One stream at a time, so that the end of the last is the end of all.
        if let Some(before) = &self.launched
            && !before.is(stream)
        {
            before.synchronize()?;
        }
        self.launched = Some(stream.clone());
        let api = stream.shim().api;
        // SAFETY: live handles; what the graph touches lives as long as this value, which waits for its
        // launches.
        stream.enqueue(|_| {}, |queue| unsafe { (api.graph_launch)(self.raw, queue) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(stream) = &self.launched {
            // A failure means that the GPU is lost, and nothing runs.
            drop(stream.synchronize());
        }
        // SAFETY: made by the capture, destroyed once, and no launch is under way.
        let _ = unsafe { (self.stream.shim().api.graph_destroy)(self.raw) };
    }
}
