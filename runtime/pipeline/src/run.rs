//! What the parts of one run share: the engine file, where its time went, and whether to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use turbo_engine_file::{EngineFile, Manifest, Stage, Video};

use crate::{Events, RunError, Timing};

/// One run of an engine file.
pub(crate) struct Run<'a> {
    pub(crate) file: &'a Arc<EngineFile>,
    /// Index of the video that is made.
    index: usize,
    video: &'a Video,
    pub(crate) events: &'a mut dyn Events,
    pub(crate) cancelled: Arc<AtomicBool>,
    parts: Vec<Timing>,
    last: Instant,
}

impl<'a> Run<'a> {
    /// A run that makes the engine file's video of this index.
    pub(crate) fn new(
        file: &'a Arc<EngineFile>,
        index: usize,
        events: &'a mut dyn Events,
    ) -> Result<Self, RunError> {
        let videos = &file.manifest().videos;
        let video = videos.get(index).ok_or_else(|| {
            let what = format!("video {index} is asked for, the engine file has {}", videos.len());
            RunError::usage(what, "take an index into the manifest's videos")
        })?;
        let cancelled = events.cancelled();
        Ok(Run { file, index, video, events, cancelled, parts: Vec::new(), last: Instant::now() })
    }

    pub(crate) fn manifest(&self) -> &'a Manifest {
        self.file.manifest()
    }

    /// Index of the video that is made.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The video that is made.
    pub(crate) fn video(&self) -> &'a Video {
        self.video
    }

    /// The stage of that name that the video needs.
    pub(crate) fn stage(&self, name: &str) -> Result<&'a Stage, RunError> {
        let found = self.manifest().stage(name, self.index);
        found.ok_or_else(|| RunError::Inconsistent(format!("there is no stage `{name}`")))
    }

    /// Ends a part: wall time is split into parts without gaps.
    pub(crate) fn lap(&mut self, part: impl Into<String>) {
        let now = Instant::now();
        self.parts.push(Timing { part: part.into(), seconds: (now - self.last).as_secs_f64() });
        self.last = now;
    }

    pub(crate) fn take_parts(&mut self) -> Vec<Timing> {
        std::mem::take(&mut self.parts)
    }

    /// An error when the user asked to stop.
    pub(crate) fn check(&self) -> Result<(), RunError> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(RunError::Interrupted),
            false => Ok(()),
        }
    }

    /// Shows that `done` of `total` units of a part are done.
    pub(crate) fn progress(&mut self, part: &str, done: usize, total: usize) {
        self.events.begin(part, Some(total as u64));
        (0..done).for_each(|_| self.events.advance());
    }
}
