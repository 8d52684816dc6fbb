//! Outcomes as a table and as JSON.

use serde_json::{Value, json};

use crate::check::{Measure, Outcome, Verdict};
use crate::elements::{Element, activations};
use crate::library::Device;

/// What there is to say of one op.
struct Summary<'a> {
    op: &'a turbo_ops::Op,
    outcomes: Vec<&'a Outcome>,
}

impl<'a> Summary<'a> {
    fn all(outcomes: &'a [Outcome]) -> Vec<Summary<'a>> {
        let of = |op: &'static turbo_ops::Op| Summary {
            op,
            outcomes: outcomes.iter().filter(|outcome| outcome.job.op.name == op.name).collect(),
        };
        turbo_ops::ALL.iter().map(|&op| of(op)).filter(|summary| !summary.outcomes.is_empty()).collect()
    }

    fn count(&self, wanted: fn(&Verdict) -> bool) -> usize {
        self.outcomes.iter().filter(|outcome| wanted(&outcome.verdict)).count()
    }

    /// Activation types with a case that passed.
    fn types(&self) -> Vec<&'static str> {
        let passed = |element: Element| {
            let of = |o: &&Outcome| o.job.activation == element && matches!(o.verdict, Verdict::Passed(_));
            self.outcomes.iter().any(of)
        };
        activations(self.op)
            .iter()
            .filter(|&&element| passed(element))
            .map(|element| element.name())
            .collect()
    }

    /// Nothing failed and something ran.
    fn ok(&self) -> bool {
        self.count(|v| matches!(v, Verdict::Failed(_))) == 0 && !self.types().is_empty()
    }

    /// The output nearest to its limit, and its job.
    fn worst(&self) -> Option<(&'a Measure, &'a Outcome)> {
        let measures = self.outcomes.iter().flat_map(|outcome| match &outcome.verdict {
            Verdict::Passed(measures) => measures.iter().map(|measure| (measure, *outcome)).collect(),
            _ => Vec::new(),
        });
        let share = |m: &Measure| if m.limit > 0.0 { m.error / m.limit } else { 0.0 };
        measures.max_by(|(a, _), (b, _)| share(a).total_cmp(&share(b)))
    }
}

/// Whether all is well.
pub fn all_ok(outcomes: &[Outcome]) -> bool {
    Summary::all(outcomes).iter().all(Summary::ok)
}

/// One line of an outcome that is worth a line of its own.
pub fn line(outcome: &Outcome) -> Option<String> {
    let Outcome { job, verdict } = outcome;
    match verdict {
        Verdict::Failed(why) => {
            Some(format!("FAILED {} case {} in {}: {why}", job.op.name, job.case.name, job.activation.name()))
        }
        _ => None,
    }
}

/// A table of the ops, and why cases were skipped.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<25} {:>5} {:>7} {:>6}  {:<13} {:<22} {:<7} at\n",
        "op", "runs", "skipped", "failed", "types", "worst error / limit", "verdict"
    );
    for summary in Summary::all(outcomes) {
        let (worst, at) = summary.worst().map_or_else(Default::default, |(measure, outcome)| {
            let error = format!("{:.1e} / {:.1e}", measure.error, measure.limit);
            let job = &outcome.job;
            (error, format!("{}, {}, `{}`", job.case.name, job.activation.name(), measure.output))
        });
        text += &format!(
            "{:<25} {:>5} {:>7} {:>6}  {:<13} {:<22} {:<7} {at}\n",
            summary.op.name,
            summary.outcomes.len(),
            summary.count(|v| matches!(v, Verdict::Skipped(_))),
            summary.count(|v| matches!(v, Verdict::Failed(_))),
            summary.types().join(" "),
            worst,
            if summary.ok() { "ok" } else { "FAILED" },
        );
    }
    let mut reasons: Vec<String> = Vec::new();
    for outcome in outcomes {
        if let Verdict::Skipped(why) = &outcome.verdict
            && !reasons.contains(why)
        {
            reasons.push(why.clone());
        }
    }
    for why in reasons {
        text += &format!("skipped: {why}\n");
    }
    text
}

/// The output of each op that is nearest to its limit.
pub fn worst_errors(outcomes: &[Outcome]) -> Vec<Value> {
    let of = |summary: &Summary<'_>| {
        let (measure, outcome) = summary.worst()?;
        let case = &outcome.job.case.name;
        Some(json!({ "op": summary.op.name, "case": case, "error": measure.error, "limit": measure.limit }))
    };
    Summary::all(outcomes).iter().filter_map(of).collect()
}

/// The device as JSON.
pub fn device_json(device: &Device) -> Value {
    json!({
        "name": device.name,
        "compute_capability": format!("{}.{}", device.capability.0, device.capability.1),
        "multiprocessors": device.multiprocessors,
        "clock_khz": device.clock,
        "memory": device.memory,
        "l2": device.l2,
        "driver": device.driver,
        "runtime": device.runtime,
    })
}

/// Everything as JSON.
pub fn to_json(device: &Device, outcomes: &[Outcome]) -> Value {
    let result = |Outcome { job, verdict }: &Outcome| {
        let (word, outputs, why) = match verdict {
            Verdict::Passed(measures) => ("passed", measures.as_slice(), None),
            Verdict::Skipped(why) => ("skipped", [].as_slice(), Some(why)),
            Verdict::Failed(why) => ("failed", [].as_slice(), Some(why)),
        };
        let measure = |m: &Measure| json!({ "output": m.output, "error": m.error, "limit": m.limit });
        json!({
            "op": job.op.name,
            "case": job.case.name,
            "type": job.activation.name(),
            "verdict": word,
            "outputs": outputs.iter().map(measure).collect::<Vec<_>>(),
            "why": why,
        })
    };
    json!({
        "device": device_json(device),
        "ok": all_ok(outcomes),
        "results": outcomes.iter().map(result).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Selection, jobs};

    fn outcomes(verdict: &Verdict) -> Vec<Outcome> {
        let selection = Selection { op: Some("TurboNorm"), small: true, ..Selection::default() };
        let all = jobs(selection).unwrap().into_iter();
        all.map(|job| Outcome { job, verdict: verdict.clone() }).collect()
    }

    #[test]
    fn only_what_ran_is_ok() {
        let measure = Measure { output: "y", error: 1e-3, limit: 4e-3 };
        let passed = outcomes(&Verdict::Passed(vec![measure]));
        assert!(all_ok(&passed));
        assert!(table(&passed).contains("1.0e-3 / 4.0e-3"));
        assert_eq!(worst_errors(&passed)[0]["limit"], 4e-3);
        let skipped = outcomes(&Verdict::Skipped("head size 8".to_string()));
        assert!(!all_ok(&skipped));
        assert_eq!(table(&skipped).matches("head size 8").count(), 1);
        let failed = outcomes(&Verdict::Failed("wrong".to_string()));
        assert!(!all_ok(&failed));
        assert!(line(&failed[0]).is_some_and(|line| line.contains("wrong")));
        assert!(line(&passed[0]).is_none());
    }
}
