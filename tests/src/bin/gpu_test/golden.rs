//! The golden suites through TensorRT: what the reference computed, in bf16 and with its own GPU kernels.

use std::path::Path;

use anyhow::bail;
use turbo_tests::golden::{self, SUITES, TensorRt};
use turbo_tests::gpu::Gpu;
use turbo_tests::vectors::use_folder;

use crate::Cli;
use crate::report::Report;

/// Runs the suites over the vectors of a folder, of which the subfolder `gpu` holds the GPU set.
pub fn run(gpu: &Gpu, cli: &Cli, report: &mut Report, folder: &Path) {
    use_folder(folder);
    let (tensorrt, gpu_libraries) = (cli.tensorrt.clone(), cli.gpu_libraries.clone());
    let backend = TensorRt { gpu, tensorrt, gpu_libraries };
    for name in &cli.suites {
        report.case("golden", &format!("there is a suite {name}"), 0.0, || {
            match SUITES.iter().any(|(n, _)| n == name) {
                true => Ok(0.0),
                false => bail!("the suites are {:?}", SUITES.map(|(name, _)| name)),
            }
        });
    }
    for (name, suite) in SUITES {
        if !cli.suites.is_empty() && !cli.suites.iter().any(|chosen| chosen == name) {
            continue;
        }
        let mut cases = Vec::new();
        report.case("golden", &format!("{name}: all of it was tried"), 0.0, || {
            cases = golden::run(name, suite, &backend).into_cases();
            Ok(0.0)
        });
        for case in cases {
            report.case("golden", &format!("{name}: {}", case.name), case.bound, || match case.error {
                Some(error) => Err(error),
                None => Ok(case.found),
            });
        }
    }
}
