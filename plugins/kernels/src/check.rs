//! Runs test cases on the kernels and compares with the references.

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use turbo_ops::{Case, Op, Tensor, TensorDef, Ty};

use crate::elements::{self, Element, activations, attrs_for};
use crate::library::Library;
use crate::memory::Block;
use crate::model_cases::model_cases;
use crate::node::{Argument, Call, Node};
use crate::tolerance::{Against, limit, tolerance};

/// Jobs whose references are computed at the same time.
const BATCH: usize = 15;
/// What outputs and workspace hold before each run: NaN in every floating-point type, then other values, so that
/// what is not written, or is read before it is written, differs between the runs.
const POISON: [u8; 3] = [0xff, 0x7f, 0x3c];

/// Which cases to run, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'a> {
    /// Only this op.
    pub op: Option<&'a str>,
    /// Only cases whose name contains this.
    pub case: Option<&'a str>,
    /// Only the ops' own cases.
    pub small: bool,
    /// Only a part of what is selected otherwise.
    pub part: Option<Part>,
    /// Exact allocations, nothing poisoned, a single run: compute-sanitizer sees what the kernel alone does.
    pub bare: bool,
}

/// Every `count`th case, from the `index`th on: what one of several processes runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1 to `count`.
    index: usize,
    count: usize,
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Part { index, count }),
            _ => Err("expected I/N with I from 1 to N, such as 2/5".to_string()),
        }
    }
}

/// A case to run with one activation type.
#[derive(Clone)]
pub struct Job {
    /// The op.
    pub op: &'static Op,
    /// The case.
    pub case: Case,
    /// The activation type.
    pub activation: Element,
    /// What the outputs are compared with.
    pub against: Against,
}

/// An output that was compared.
#[derive(Clone, Debug)]
pub struct Measure {
    /// Its name.
    pub output: &'static str,
    /// Relative error, or share of elements that differ by 1.
    pub error: f64,
    /// The largest that is allowed.
    pub limit: f64,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// All outputs are right.
    Passed(Vec<Measure>),
    /// The kernel does not take it, and need not.
    Skipped(String),
    /// Why not.
    Failed(String),
}

/// A job and how it ended.
pub struct Outcome {
    /// The job.
    pub job: Job,
    /// How it ended.
    pub verdict: Verdict,
}

/// Inputs as the device holds them, and what is expected of the outputs.
struct Prepared {
    inputs: Vec<Tensor>,
    bytes: Vec<Vec<u8>>,
    expected: Vec<Tensor>,
}

/// The jobs of a selection.
///
/// # Errors
/// An op that does not exist, a selection without cases.
pub fn jobs(selection: Selection<'_>) -> Result<Vec<Job>> {
    if let Some(name) = selection.op {
        turbo_ops::find(name).with_context(|| format!("there is no op `{name}`"))?;
    }
    let ops = turbo_ops::ALL.iter().copied().filter(|op| selection.op.is_none_or(|name| name == op.name));
    let cases = ops.flat_map(|op| {
        let own = (op.cases)().into_iter().map(move |case| (op, case, Against::Reference));
        let large = if selection.small { Vec::new() } else { model_cases(op) };
        own.chain(large.into_iter().map(move |case| (op, case, Against::CpuKernel)))
    });
    let cases = cases.filter(|(_, case, _)| selection.case.is_none_or(|text| case.name.contains(text)));
    let Part { index, count } = selection.part.unwrap_or(Part { index: 1, count: 1 });
    let jobs: Vec<Job> = cases
        .skip(index - 1)
        .step_by(count)
        .flat_map(|(op, case, against)| {
            activations(op).iter().map(move |&activation| Job { op, case: case.clone(), activation, against })
        })
        .collect();
    ensure!(!jobs.is_empty(), "there is no such case");
    Ok(jobs)
}

/// Runs jobs in order; `report` hears of each outcome at once.
///
/// # Errors
/// The device is lost: a kernel broke it for all that would follow.
pub fn run(
    library: &Library,
    jobs: &[Job],
    bare: bool,
    mut report: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(jobs.len());
    for batch in jobs.chunks(BATCH) {
        let asked: Vec<(&Job, Option<String>)> =
            batch.iter().map(|job| (job, refusal(library, job))).collect();
        let groups: Vec<&[(&Job, Option<String>)]> = asked.chunk_by(|(a, _), (b, _)| alike(a, b)).collect();
        let prepared: Vec<Option<Result<Prepared>>> = groups
            .par_iter()
            .map(|group| group.iter().any(|(_, refusal)| refusal.is_none()).then(|| prepare(group[0].0)))
            .collect();
        let jobs = groups.iter().zip(&prepared);
        let jobs = jobs.flat_map(|(group, prepared)| group.iter().map(move |asked| (asked, prepared)));
        for ((job, refusal), prepared) in jobs {
            let verdict = match (refusal, prepared) {
                (Some(why), _) if may_refuse(job) => Verdict::Skipped(why.clone()),
                (Some(why), _) => Verdict::Failed(why.clone()),
                (None, Some(Ok(prepared))) => match execute(library, job, prepared, bare) {
                    Ok(measures) => Verdict::Passed(measures),
                    Err(error) => Verdict::Failed(format!("{error:#}")),
                },
                (None, Some(Err(error))) => Verdict::Failed(format!("{error:#}")),
                (None, None) => Verdict::Failed("was not prepared".to_string()),
            };
            let failed = matches!(verdict, Verdict::Failed(_));
            outcomes.push(Outcome { job: (*job).clone(), verdict });
            outcomes.last().into_iter().for_each(&mut report);
            if failed {
                library.synchronize().with_context(|| {
                    format!(
                        "{} case {} broke the device; nothing after it was run",
                        job.op.name, job.case.name
                    )
                })?;
            }
        }
    }
    Ok(outcomes)
}

/// Whether jobs differ in the activation type alone and no input has it, so that what is expected is the same.
fn alike(a: &Job, b: &Job) -> bool {
    let same = std::ptr::eq(a.op, b.op) && a.case.name == b.case.name && a.against == b.against;
    same && a.op.inputs.iter().all(|def| def.ty != Ty::T)
}

/// Tensor cores multiply 16-bit types: products of activations need not take f32. Every other kernel takes all.
fn may_refuse(job: &Job) -> bool {
    let multiplies = |def: &TensorDef| def.ty == Ty::T && matches!(def.name, "v" | "w");
    job.activation == Element::F32 && job.op.inputs.iter().any(multiplies)
}

/// Why the kernel does not take a job.
fn refusal(library: &Library, job: &Job) -> Option<String> {
    let ask = || -> Result<usize> {
        let inputs = input_shapes(job.op, &job.case)?;
        let outputs = output_shapes(job.op, &job.case, &inputs)?;
        let call = Call::new(
            &arguments(job.op.inputs, job.activation, &inputs, None),
            &arguments(job.op.outputs, job.activation, &outputs, None),
            None,
        )?;
        Node::new(library, job.op, &job.case.attrs, job.activation)?.prepare(&call)
    };
    ask().err().map(|error| format!("{error:#}"))
}

/// Shapes of the inputs of a case.
///
/// # Errors
/// A size that is not whole.
pub fn input_shapes(op: &Op, case: &Case) -> Result<Vec<Vec<usize>>> {
    let size = |dim: &turbo_ops::Dim| {
        dim.eval(&case.attrs, &case.dims).with_context(|| format!("`{dim}` is not a size in {}", case.name))
    };
    op.inputs.iter().map(|def| def.dims.iter().map(size).collect()).collect()
}

/// Shapes of the outputs of a case.
///
/// # Errors
/// As [`Op::check`].
pub fn output_shapes(op: &Op, case: &Case, inputs: &[Vec<usize>]) -> Result<Vec<Vec<usize>>> {
    let views: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
    let dims = op.check(&case.attrs, &views)?;
    Ok(op.output_shapes(&case.attrs, &dims)?)
}

/// Tensors of a call, with their memory where `blocks` gives it.
pub fn arguments<'a>(
    defs: &[turbo_ops::TensorDef],
    activation: Element,
    shapes: &'a [Vec<usize>],
    blocks: Option<&'a [Block<'a>]>,
) -> Vec<Argument<'a>> {
    let argument = |(i, def): (usize, &turbo_ops::TensorDef)| Argument {
        element: Element::of(def.ty, activation),
        shape: &shapes[i],
        block: blocks.map(|blocks| &blocks[i]),
    };
    defs.iter().enumerate().map(argument).collect()
}

/// Makes the inputs of a job and computes what is expected.
fn prepare(job: &Job) -> Result<Prepared> {
    let attrs = attrs_for(job.op, &job.case.attrs, job.activation);
    let mut inputs = (job.op.sample)(&job.case);
    let mut bytes = Vec::with_capacity(inputs.len());
    for (def, tensor) in job.op.inputs.iter().zip(&mut inputs) {
        let element = Element::of(def.ty, job.activation);
        elements::round(tensor, element);
        bytes.push(elements::encode(tensor, element));
    }
    let expected = match job.against {
        Against::Reference => (job.op.reference)(&attrs, &inputs),
        Against::CpuKernel => {
            let floats: Vec<Tensor> = inputs.iter().map(Tensor::for_kernel).collect();
            let views: Vec<_> = floats.iter().map(Tensor::view).collect();
            job.op.run(&attrs, &views)?
        }
    };
    Ok(Prepared { inputs, bytes, expected })
}

/// Runs a job and compares.
fn execute(library: &Library, job: &Job, prepared: &Prepared, bare: bool) -> Result<Vec<Measure>> {
    let Job { op, case, activation, against } = job;
    let allocate = if bare { Block::new } else { Block::guarded };
    let in_shapes: Vec<Vec<usize>> = prepared.inputs.iter().map(|x| x.shape.clone()).collect();
    let out_shapes: Vec<Vec<usize>> = prepared.expected.iter().map(|x| x.shape.clone()).collect();
    // Inputs have no guard bands, so that the sanitizer's memcheck sees reads beyond their ends.
    let inputs: Vec<Block<'_>> = prepared
        .bytes
        .iter()
        .map(|bytes| {
            let block = Block::new(library, bytes.len())?;
            block.upload(bytes)?;
            Ok(block)
        })
        .collect::<Result<_>>()?;
    let outputs: Vec<Block<'_>> = (op.outputs.iter().zip(&out_shapes))
        .map(|(def, shape)| {
            allocate(library, shape.iter().product::<usize>() * Element::of(def.ty, *activation).size())
        })
        .collect::<Result<_>>()?;
    let node = Node::new(library, op, &case.attrs, *activation)?;
    let (ins, outs) = (
        arguments(op.inputs, *activation, &in_shapes, Some(&inputs)),
        arguments(op.outputs, *activation, &out_shapes, Some(&outputs)),
    );
    let workspace = allocate(library, node.prepare(&Call::new(&ins, &outs, None)?)?)?;
    let call = Call::new(&ins, &outs, Some(&workspace))?;
    let once = |poison: u8, captured: bool| -> Result<Vec<Vec<u8>>> {
        if !bare {
            outputs.iter().chain([&workspace]).try_for_each(|block| block.fill(poison))?;
        }
        if captured {
            node.replay(&call)?
        } else {
            node.run(&call)?
        }
        outputs.iter().map(Block::download).collect()
    };
    let first = once(POISON[0], false)?;
    let mut measures = Vec::with_capacity(first.len());
    for (i, (bytes, expected)) in first.iter().zip(&prepared.expected).enumerate() {
        let def = &op.outputs[i];
        let found = elements::decode(bytes, &out_shapes[i], Element::of(def.ty, *activation));
        let allowed = tolerance(op, i, case.tol[i], *activation, *against)
            .with_context(|| format!("no tolerance for `{}`", def.name))?;
        let error = allowed
            .compare(&found, expected)
            .map_err(|what| anyhow::anyhow!("output `{}`: {what}", def.name))?;
        measures.push(Measure { output: def.name, error, limit: limit(allowed) });
    }
    if bare {
        return Ok(measures);
    }
    expect_same("a second run", op, &first, &once(POISON[1], false)?)?;
    expect_same("a CUDA graph", op, &first, &once(POISON[2], true)?)?;
    for (def, block) in op.outputs.iter().zip(&outputs) {
        block.check_guards().with_context(|| format!("output `{}`", def.name))?;
    }
    workspace.check_guards().context("workspace")?;
    for ((def, block), bytes) in op.inputs.iter().zip(&inputs).zip(&prepared.bytes) {
        ensure!(block.download()? == *bytes, "input `{}` was written", def.name);
    }
    Ok(measures)
}

fn expect_same(what: &str, op: &Op, first: &[Vec<u8>], again: &[Vec<u8>]) -> Result<()> {
    for ((def, a), b) in op.outputs.iter().zip(first).zip(again) {
        if let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) {
            let count = a.iter().zip(b).filter(|(a, b)| a != b).count();
            bail!("output `{}`: {what} differs in {count} bytes, the first at {at}", def.name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections() {
        let all = jobs(Selection::default()).unwrap();
        let small = jobs(Selection { small: true, ..Selection::default() }).unwrap();
        assert!(small.len() < all.len());
        assert!(small.iter().all(|job| job.against == Against::Reference));
        let one = Selection { op: Some("TurboNorm"), case: Some("rms tiny"), ..Selection::default() };
        let types: Vec<_> = jobs(one).unwrap().iter().map(|job| job.activation.name()).collect();
        assert_eq!(types, ["bf16", "f16", "f32"]);
        assert!(jobs(Selection { op: Some("Norm"), ..Selection::default() }).is_err());
        assert!(jobs(Selection { case: Some("no such case"), ..Selection::default() }).is_err());
    }

    #[test]
    fn parts_are_disjoint_and_leave_nothing_out() {
        let names = |part: Option<&str>| -> Vec<String> {
            let part = part.map(|part| part.parse().unwrap());
            let jobs = jobs(Selection { op: Some("TurboNorm"), part, ..Selection::default() }).unwrap();
            jobs.iter().map(|job| format!("{} {}", job.case.name, job.activation.name())).collect()
        };
        let mut parts = [names(Some("1/3")), names(Some("2/3")), names(Some("3/3"))].concat();
        let mut all = names(None);
        parts.sort();
        all.sort();
        assert_eq!(parts, all);
        for wrong in ["", "1", "0/3", "4/3", "1/0", "-1/2", "a/b", "1/3/5", "18446744073709551616/2"] {
            assert!(wrong.parse::<Part>().unwrap_err().contains("such as 2/5"), "{wrong}");
        }
    }

    #[test]
    fn products_alone_may_refuse_f32() {
        let all = jobs(Selection::default()).unwrap();
        let mut names: Vec<&str> = all.iter().filter(|job| may_refuse(job)).map(|job| job.op.name).collect();
        names.dedup();
        assert_eq!(
            names,
            ["TurboAttention", "TurboLinear", "TurboSageAttention", "TurboSageSla", "TurboSla"]
        );
        assert!(all.iter().all(|job| !may_refuse(job) || job.activation == Element::F32));
    }

    /// The CPU kernels, encoded as a GPU would give them, are within the tolerances: so are right results.
    #[test]
    fn rounded_results_pass() {
        let names = [
            "TurboNorm",
            "TurboQuantize",
            "TurboLinear",
            "TurboW8A8Linear",
            "TurboW8A8LinearQkv",
            "TurboBlockMap",
            "TurboNormQuantize",
        ];
        for name in names {
            let selection = Selection { op: Some(name), small: true, ..Selection::default() };
            for job in jobs(selection).unwrap() {
                let prepared = prepare(&job).unwrap();
                for (i, (def, expected)) in job.op.outputs.iter().zip(&prepared.expected).enumerate() {
                    let element = Element::of(def.ty, job.activation);
                    let found =
                        elements::decode(&elements::encode(expected, element), &expected.shape, element);
                    let allowed = tolerance(job.op, i, job.case.tol[i], job.activation, job.against).unwrap();
                    allowed.compare(&found, expected).unwrap();
                }
            }
        }
    }
}
