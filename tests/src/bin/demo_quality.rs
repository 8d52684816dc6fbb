//! How close the demo comes to the true videos: a table in Markdown and a contact sheet, truth above.
//!
//! `demo_quality ENGINE [SHEET.png]`; `cargo xtask bench --quality` calls it.

use std::path::Path;

use anyhow::{Context, Result};
use turbo_engine_file::EngineFile;
use turbo_media::{Frame, contact_sheet, evenly_spaced, write_png};
use turbo_pipeline::{Engine, backend};
use turbo_tests::demo::{Captions, generate, psnr};

/// Videos in the contact sheet, and frames of each.
const SHEET: (usize, usize) = (8, 8);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let engine = arguments.next().context("usage: demo_quality ENGINE [SHEET.png]")?;
    let sheet = arguments.next();
    let engine = Engine::new(EngineFile::open(Path::new(&engine))?, backend::init(None, None)?)?;
    let captions = Captions::read()?;
    println!("| caption | reference, 4 steps | 4 steps | 3 steps | 2 steps |\n|---|---|---|---|---|");
    let mut rows = Vec::new();
    let mut sums = [0.0; 4];
    for (index, one) in captions.held_out.iter().enumerate() {
        let truth = captions.truth(one)?;
        let reference = one.psnr_reference.get("4").copied().unwrap_or(f64::NAN);
        let mut found = Vec::new();
        for steps in [4, 3, 2] {
            let frames = generate(&engine, &one.captions[0], steps)?;
            found.push(psnr(&frames, &truth));
            if steps == 4 && index < SHEET.0 {
                let pick = |frames: &[Frame]| {
                    evenly_spaced(frames.len(), SHEET.1).into_iter().map(|i| frames[i].clone()).collect()
                };
                rows.push(pick(&truth));
                rows.push(pick(&frames));
            }
        }
        println!(
            "| {} | {reference:.2} | {:.2} | {:.2} | {:.2} |",
            one.captions[0], found[0], found[1], found[2]
        );
        for (sum, value) in sums.iter_mut().zip([reference].into_iter().chain(found)) {
            *sum += value / captions.held_out.len() as f64;
        }
    }
    println!(
        "| **mean of {}** | {:.2} | {:.2} | {:.2} | {:.2} |",
        captions.held_out.len(),
        sums[0],
        sums[1],
        sums[2],
        sums[3]
    );
    if let Some(path) = sheet {
        write_png(Path::new(&path), &contact_sheet(&rows, 1680)?)?;
    }
    Ok(())
}
