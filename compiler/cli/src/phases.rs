//! How far a build of TensorRT's is, out of what it says of its nested phases.

use turbo_trt::Progress;

/// The phases at work, outermost first.
#[derive(Debug, Default)]
pub(crate) struct Phases(Vec<Phase>);

#[derive(Debug)]
struct Phase {
    name: String,
    steps: u32,
    step: u32,
}

impl Phases {
    /// Takes note of what TensorRT said, and gives the share of the whole that is done.
    pub(crate) fn note(&mut self, said: &Progress<'_>) -> f64 {
        // Phases end unsaid: one that goes on has no phase inside it any more, and one that begins ends its siblings.
        let depth = |name: &str| self.0.iter().position(|phase| phase.name == name);
        let keep = depth(said.phase).or(depth(said.parent).map(|parent| parent + 1)).unwrap_or(0);
        self.0.truncate(keep);
        self.0.push(Phase { name: said.phase.to_string(), steps: said.steps, step: said.step });
        let inner_first = self.0.iter().rev();
        inner_first.fold(0.0, |inner, phase| {
            let done = (f64::from(phase.step) + inner) / f64::from(phase.steps.max(1));
            done.clamp(0.0, 1.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up() {
        let mut phases = Phases::default();
        let mut note = |phase, parent, steps, step| phases.note(&Progress { phase, parent, steps, step });
        assert_eq!(note("build", "", 4, 0), 0.0);
        assert_eq!(note("build", "", 4, 1), 0.25);
        assert_eq!(note("tactics", "build", 2, 0), 0.25);
        assert_eq!(note("tactics", "build", 2, 1), 0.375);
        assert_eq!(note("layer", "tactics", 10, 5), 0.4375);
        assert_eq!(note("tactics", "build", 2, 2), 0.5);
        assert_eq!(note("memory", "build", 2, 1), 0.375);
        assert_eq!(note("build", "", 4, 4), 1.0);
        assert_eq!(note("odd", "unknown", 0, 7), 1.0);
    }
}
