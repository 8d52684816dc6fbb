//! Progress on standard error, where that is a terminal.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use turbo_pipeline::Events;

/// One bar for the part that runs, and the flag that Ctrl-C sets.
pub struct Bars {
    bar: Option<(String, ProgressBar)>,
    silent: bool,
    terminal: bool,
    /// Set by Ctrl-C.
    pub cancelled: Arc<AtomicBool>,
}

impl Bars {
    /// Bars, or silence.
    pub fn new(silent: bool) -> Self {
        Bars { bar: None, silent, terminal: std::io::stderr().is_terminal(), cancelled: Arc::default() }
    }

    /// Removes the bar.
    pub fn finish(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Events for Bars {
    fn begin(&mut self, part: &str, units: Option<u64>) {
        if self.silent || !self.terminal {
            return;
        }
        if let Some((_, bar)) = self.bar.as_ref().filter(|(current, _)| current == part) {
            bar.set_position(0);
            return;
        }
        self.finish();
        let bar = match units {
            Some(units) => ProgressBar::new(units),
            None => ProgressBar::new_spinner(),
        };
        let style =
            if units.is_some() { "{msg} [{bar:30}] {pos}/{len} {elapsed}" } else { "{spinner} {msg}" };
        let bar = match ProgressStyle::with_template(style) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.set_message(part.to_string());
        bar.enable_steady_tick(Duration::from_millis(100));
        self.bar = Some((part.to_string(), bar));
    }

    fn advance(&mut self) {
        if let Some((_, bar)) = &self.bar {
            bar.inc(1);
        }
    }

    fn warn(&mut self, message: &str) {
        let line = format!("warning: {message}");
        match &self.bar {
            Some((_, bar)) => bar.println(line),
            None if !self.silent => eprintln!("{line}"),
            None => {}
        }
    }

    fn cancelled(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }
}
