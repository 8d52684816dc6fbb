//! `turbo-run bench`: times of an engine file's stages.

use std::io::Write;

use anyhow::Context;
use turbo_engine_file::EngineFile;
use turbo_pipeline::{BenchReport, BenchRequest, Engine, RunError, StageBench};

use crate::arguments::BenchArguments;
use crate::bars::Bars;
use crate::{machine, size};

/// Times stages and prints a table or, as JSON, a [`BenchReport`].
///
/// # Errors
/// Those of the engine file and the backend, as [`RunError`]; standard output that cannot be written.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<()> {
    let file = EngineFile::open(&arguments.engine).map_err(RunError::from)?;
    let (video, _) = size::choose(file.manifest(), arguments.video.size, arguments.video.frames)?;
    let mut bars = Bars::new(arguments.json);
    machine::listen(&bars)?;
    let backend = machine::backend(&file, &arguments.machine)?;
    let request = BenchRequest { video, stages: arguments.stages.clone(), runs: arguments.runs };
    let report = Engine::new(file, backend)?.bench(&request, &mut bars)?;
    bars.finish();
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => tables(&report),
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// The stages, and below them the ops of those whose backend told.
fn tables(report: &BenchReport) -> String {
    let BenchReport { machine, size, frames, runs, stages, steps } = report;
    let all = || stages.iter().chain(steps);
    let head = ["ms", "load", "least", "median", "greatest"].map(str::to_string).to_vec();
    let mut rows: Vec<Vec<String>> = std::iter::once(head).chain(all().map(times)).collect();
    if all().any(|stage| stage.gpu_memory.is_some()) {
        rows[0].extend(["MiB loaded", "activations"].map(str::to_string));
    }
    let mut text = format!("{size}, {frames} frames, {runs} runs: {machine}\n\n{}", table(&rows));
    for stage in all().filter(|stage| !stage.ops.is_empty()) {
        let head = vec![format!("{} by op", stage.name), "ms".to_string(), "share".to_string()];
        let ops = stage.ops.iter().map(|op| {
            vec![op.op.clone(), format!("{:.3}", op.milliseconds), format!("{:.1} %", 100.0 * op.share)]
        });
        text += &format!("\n{}", table(&std::iter::once(head).chain(ops).collect::<Vec<_>>()));
    }
    text
}

fn times(stage: &StageBench) -> Vec<String> {
    let spread = &stage.milliseconds;
    let times = [stage.load_milliseconds, spread.least, spread.median, spread.greatest];
    let mut row = vec![stage.name.clone()];
    row.extend(times.map(|milliseconds| format!("{milliseconds:.3}")));
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    row.extend(
        stage.gpu_memory.iter().flat_map(|memory| [memory.loaded_bytes, memory.activation_bytes].map(mib)),
    );
    row
}

/// Columns as wide as what is in them, the first one to the left.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("  {cell:>width$}"),
        });
        cells.collect::<String>() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use turbo_pipeline::{GpuMemory, OpTime, Spread};

    fn stage(name: &str, median: f64) -> StageBench {
        StageBench {
            name: name.to_string(),
            load_milliseconds: 1234.5,
            milliseconds: Spread { least: median - 0.25, median, greatest: 2.0 * median },
            all_milliseconds: vec![median],
            gpu_memory: None,
            ops: Vec::new(),
        }
    }

    fn report(stages: Vec<StageBench>) -> BenchReport {
        let (machine, size) = ("a machine".to_string(), "832x480".to_string());
        BenchReport { machine, size, frames: 81, runs: 3, stages, steps: Vec::new() }
    }

    #[test]
    fn columns_are_aligned() {
        let report = report(vec![stage("text_encoder", 1.5), stage("dit", 358.0)]);
        let expected = "\
832x480, 81 frames, 3 runs: a machine

ms                load    least   median  greatest
text_encoder  1234.500    1.250    1.500     3.000
dit           1234.500  357.750  358.000   716.000
";
        assert_eq!(tables(&report), expected);
    }

    #[test]
    fn memory_and_ops_are_shown_where_they_are_known() {
        let gpu_memory = Some(GpuMemory { activation_bytes: 512 << 20, loaded_bytes: 3 << 19 });
        let ops = [("TurboW8A8Linear", 3.0, 0.75), ("TensorRT's own", 1.0, 0.25)];
        let ops = ops.map(|(op, milliseconds, share)| OpTime { op: op.to_string(), milliseconds, share });
        let mut report = report(vec![stage("dit_1of2", 2.0)]);
        report.steps = vec![StageBench { gpu_memory, ops: ops.to_vec(), ..stage("step", 4.0) }];
        report.stages[0].gpu_memory = gpu_memory;
        let expected = "\
832x480, 81 frames, 3 runs: a machine

ms            load  least  median  greatest  MiB loaded  activations
dit_1of2  1234.500  1.750   2.000     4.000         1.5        512.0
step      1234.500  3.750   4.000     8.000         1.5        512.0

step by op          ms   share
TurboW8A8Linear  3.000  75.0 %
TensorRT's own   1.000  25.0 %
";
        assert_eq!(tables(&report), expected);
    }
}
