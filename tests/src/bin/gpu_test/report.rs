//! What the GPU program reports.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use serde::Serialize;
use turbo_pipeline::tensorrt::Device;

/// What was run where, and how it went.
#[derive(Serialize)]
pub struct Report {
    /// Day in UTC.
    date: String,
    gpu: String,
    compute_capability: (i32, i32),
    gpu_memory_bytes: u64,
    tensorrt: String,
    /// The driver as it calls itself, where the system tells.
    driver: Option<String>,
    cuda_driver: Option<(i32, i32)>,
    version: &'static str,
    rows: Vec<Row>,
    figures: Vec<Figure>,
    #[serde(skip)]
    file: Option<PathBuf>,
}

/// One case.
#[derive(Serialize)]
struct Row {
    group: String,
    case: String,
    /// What was measured, and the most that is allowed of it.
    found: f64,
    bound: f64,
    seconds: f64,
    /// Empty when the case passed.
    problem: String,
}

/// A measurement without a bound.
#[derive(Serialize)]
struct Figure {
    group: String,
    case: String,
    found: f64,
    unit: &'static str,
}

impl Report {
    /// A report on this device, which is kept in a file if one is given.
    pub fn new(device: &Device, file: Option<&Path>) -> Result<Report> {
        let gpu = device.gpu();
        let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
        let report = Report {
            date: today(),
            gpu: gpu.name.clone(),
            compute_capability: gpu.compute_capability,
            gpu_memory_bytes: gpu.memory,
            tensorrt: device.library().version().to_string(),
            driver: driver.and_then(|text| Some(text.lines().next()?.trim().to_string())),
            cuda_driver: device.library().shim().driver_version()?,
            version: env!("CARGO_PKG_VERSION"),
            rows: Vec::new(),
            figures: Vec::new(),
            file: file.map(Path::to_path_buf),
        };
        println!("{}, TensorRT {}, driver for CUDA {:?}", report.gpu, report.tensorrt, report.cuda_driver);
        Ok(report)
    }

    /// Runs a case, which gives its measured value, and notes how it went.
    pub fn case(&mut self, group: &str, case: &str, bound: f64, run: impl FnOnce() -> Result<f64>) {
        let start = Instant::now();
        // One case that panics must not keep the others from running.
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(said(&*panic)));
        let (found, problem) = match result {
            Ok(found) if found <= bound => (found, String::new()),
            Ok(found) => (found, "too far".to_string()),
            Err(error) => (f64::NAN, format!("{error:#}")),
        };
        let seconds = start.elapsed().as_secs_f64();
        let verdict = if problem.is_empty() { "ok" } else { "FAILED" };
        println!("{group:<12} {case:<60} {found:>10.2e} of {bound:<8.1e} {seconds:>7.2} s  {verdict}");
        for line in problem.lines().filter(|_| problem != "too far") {
            println!("    {line}");
        }
        self.rows.push(Row { group: group.into(), case: case.into(), found, bound, seconds, problem });
        self.keep();
    }

    /// Notes a figure that has no bound.
    pub fn figure(&mut self, group: &str, case: &str, found: f64, unit: &'static str) {
        println!("{group:<12} {case:<60} {found:>12.2} {unit}");
        self.figures.push(Figure { group: group.into(), case: case.into(), found, unit });
        self.keep();
    }

    /// Cases, and how many of them failed.
    pub fn count(&self) -> (usize, usize) {
        (self.rows.len(), self.rows.iter().filter(|row| !row.problem.is_empty()).count())
    }

    /// Writes the file anew, so that it is there even if the program is ended from outside.
    fn keep(&self) {
        let Some(file) = &self.file else { return };
        let written = serde_json::to_string_pretty(self)
            .map_err(std::io::Error::from)
            .and_then(|text| std::fs::write(file, text + "\n"));
        if let Err(error) = written {
            eprintln!("{}: {error}", file.display());
        }
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> anyhow::Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    anyhow!("panic: {}", text.unwrap_or("without a text"))
}

/// Today in UTC, as `2026-01-31`.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    civil(seconds / 86_400)
}

/// The date so many days after the start of 1970.
fn civil(days: u64) -> String {
    // Years begin in March here, so that the odd day comes last; eras of 400 years are all alike.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), "1970-01-01");
        assert_eq!(civil(11_016), "2000-02-29");
        assert_eq!(civil(20_782), "2026-11-25");
    }
}
