//! Comparisons of one family against its tolerances.

use std::io::Write;

use anyhow::Result;
use turbo_ops::cases::rel_l2;

use crate::vectors::Missing;

/// What was found of one comparison, and the most that is allowed.
#[derive(Debug)]
pub struct Case {
    /// What was compared.
    pub name: String,
    /// What was found; NaN where it could not be.
    pub found: f64,
    /// The most that is allowed of it.
    pub bound: f64,
    /// What kept the comparison from being made.
    pub error: Option<anyhow::Error>,
}

impl Case {
    fn problem(&self) -> Option<String> {
        let Case { name, found, bound, error } = self;
        match error {
            Some(error) => Some(format!("{name}: {error:#}")),
            None if *found <= *bound => None,
            None => Some(format!("{name}: {found:.3e} exceeds {bound:.1e}")),
        }
    }
}

/// Collects the cases of one family. When it is dropped it prints a line, appends a row of a table to the file that
/// `TURBO_GOLDEN_SUMMARY` names, and panics if a case failed, as a test should; [`Family::into_cases`] hands the cases
/// over instead.
pub struct Family {
    name: String,
    cases: Vec<Case>,
    skipped: bool,
    handed_over: bool,
}

impl Family {
    /// A family of cases.
    pub fn new(name: &str) -> Self {
        Family { name: name.to_string(), cases: Vec::new(), skipped: false, handed_over: false }
    }

    /// Compares by relative L2 distance.
    pub fn rel(&mut self, case: &str, found: &[f32], expected: &[f32], bound: f64) -> f64 {
        let error = match found.len() == expected.len() {
            true => rel(found, expected),
            false => f64::NAN,
        };
        self.value(case, error, bound);
        error
    }

    /// Records a figure that must be at most `bound`; NaN fails.
    pub fn value(&mut self, case: &str, found: f64, bound: f64) {
        self.cases.push(Case { name: case.to_string(), found, bound, error: None });
    }

    /// Records a statement that must be true.
    pub fn holds(&mut self, case: &str, truth: bool) {
        self.value(case, if truth { 0.0 } else { 1.0 }, 0.0);
    }

    /// Makes a part of the comparisons. What stops it is a case that failed, and the other parts go on; a file that is
    /// missing from the small subset is no failure.
    pub fn attempt(&mut self, part: &str, compare: impl FnOnce(&mut Family) -> Result<()>) {
        let Err(error) = compare(self) else { return };
        match error.downcast_ref::<Missing>() {
            Some(missing) if !missing.named => {
                println!("skipped: {missing}");
                self.skipped = true;
            }
            _ => {
                let name = part.to_string();
                self.cases.push(Case { name, found: f64::NAN, bound: 0.0, error: Some(error) });
            }
        }
    }

    /// Hands the cases over; whoever takes them judges.
    pub fn into_cases(mut self) -> Vec<Case> {
        self.handed_over = true;
        std::mem::take(&mut self.cases)
    }

    /// The case that comes nearest to its bound, or exceeds it most.
    fn worst(&self) -> (f64, f64, &str) {
        self.cases.iter().fold((0.0, 1.0, ""), |worst, case| {
            let nearer = case.found / case.bound > worst.0 / worst.1;
            if nearer { (case.found, case.bound, &case.name) } else { worst }
        })
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        if self.handed_over || (self.skipped && self.cases.is_empty()) {
            return;
        }
        let ((error, bound, case), cases) = (self.worst(), self.cases.len());
        println!("golden {}: {cases} cases, worst {error:.2e} of {bound:.0e} ({case})", self.name);
        if let Some(path) = std::env::var_os("TURBO_GOLDEN_SUMMARY") {
            let line = format!("| {} | {cases} | {error:.1e} | {bound:.0e} | {case} |\n", self.name);
            let file = std::fs::File::options().append(true).create(true).open(path);
            // One write a line: suites run side by side.
            file.and_then(|mut file| file.write_all(line.as_bytes())).expect("a summary");
        }
        if !std::thread::panicking() {
            let problems: Vec<String> = self.cases.iter().filter_map(Case::problem).collect();
            assert!(problems.is_empty(), "golden {}:\n  {}", self.name, problems.join("\n  "));
            assert!(cases > 0, "golden {}: no case", self.name);
        }
    }
}

/// Relative L2 distance of values from those that are expected; as many of both.
pub fn rel(found: &[f32], expected: &[f32]) -> f64 {
    rel_l2(&wide(found), &wide(expected))
}

/// Values as f64.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_one_part_hides_no_other() {
        let mut family = Family::new("parts");
        family.attempt("first", |family| {
            family.holds("true", true);
            anyhow::bail!("broken")
        });
        family.attempt("second", |family| {
            family.rel("equal", &[1.0], &[1.0], 0.0);
            family.rel("of another length", &[1.0], &[1.0, 2.0], 1.0);
            Ok(())
        });
        let missing = Missing { path: "none".into(), named: false };
        family.attempt("third", |_| Err(missing.into()));
        let problems: Vec<Option<String>> = family.into_cases().iter().map(Case::problem).collect();
        let said = |case: usize| problems[case].as_deref();
        assert_eq!((problems.len(), said(0), said(1), said(2)), (4, None, Some("first: broken"), None));
        assert!(said(3).is_some());
    }
}
