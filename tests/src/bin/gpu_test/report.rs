//! What the GPU program reports.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// One line of the report.
#[derive(Serialize)]
pub struct Row {
    group: String,
    case: String,
    /// What was measured, and the most that is allowed of it.
    found: f64,
    bound: f64,
    seconds: f64,
    /// Empty when the case passed.
    pub problem: String,
}

/// What was run where, and how it went.
#[derive(Serialize)]
pub struct Report {
    pub gpu: String,
    pub compute_capability: (i32, i32),
    pub tensorrt: String,
    pub cuda_driver: Option<(i32, i32)>,
    pub version: &'static str,
    pub rows: Vec<Row>,
    pub figures: Vec<Figure>,
}

impl Report {
    /// Runs a case, which gives its measured value, and notes how it went.
    pub fn case(&mut self, group: &str, case: &str, bound: f64, run: impl FnOnce() -> Result<f64>) {
        let start = Instant::now();
        let (found, problem) = match run() {
            Ok(found) if found <= bound => (found, String::new()),
            Ok(found) => (found, "too far".to_string()),
            Err(error) => (f64::NAN, format!("{error:#}")),
        };
        let seconds = start.elapsed().as_secs_f64();
        let verdict = if problem.is_empty() { "ok" } else { "FAILED" };
        println!("{group:<12} {case:<44} {found:>10.2e} of {bound:<8.0e} {seconds:>7.2} s  {verdict}");
        for line in problem.lines().filter(|_| problem != "too far") {
            println!("    {line}");
        }
        self.rows.push(Row { group: group.into(), case: case.into(), found, bound, seconds, problem });
    }
}

impl Report {
    /// Notes a figure that has no bound.
    pub fn figure(&mut self, group: &str, case: &str, found: f64, unit: &'static str) {
        println!("{group:<12} {case:<60} {found:>12.2} {unit}");
        self.figures.push(Figure { group: group.into(), case: case.into(), found, unit });
    }
}

/// A measurement without a bound.
#[derive(Serialize)]
pub struct Figure {
    group: String,
    case: String,
    found: f64,
    unit: &'static str,
}
