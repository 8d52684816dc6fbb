use super::*;

/// The sample engine file with its transformer in three parts, and a time of each.
fn split() -> (Manifest, Vec<StageBench>) {
    let sample = include_bytes!("../../../engine-file/tests/sample.json");
    let mut manifest = turbo_engine_file::parse_manifest(sample).unwrap();
    manifest.experts.low = None;
    manifest.experts.high.steps = ["dit_1of3", "dit_2of3", "dit_3of3"].map(str::to_string).to_vec();
    let stages = (1..=3).map(|part| timed(&format!("dit_{part}of3"), f64::from(part), 1 << part)).collect();
    (manifest, stages)
}

fn timed(name: &str, first: f64, bytes: u64) -> StageBench {
    let times = vec![first, 10.0 * first, 4.0 * first];
    StageBench {
        name: name.to_string(),
        load_milliseconds: 100.0 * first,
        milliseconds: Spread::of(&times),
        all_milliseconds: times,
        gpu_memory: Some(GpuMemory { activation_bytes: 100 * bytes, loaded_bytes: bytes }),
        ops: report::by_op([("TurboSla".to_string(), first), ("TurboNorm".to_string(), 1.0)]),
    }
}

#[test]
fn medians_are_in_the_middle() {
    let spread = |times: &[f64]| {
        let Spread { least, median, greatest } = Spread::of(times);
        (least, median, greatest)
    };
    assert_eq!(spread(&[]), (0.0, 0.0, 0.0));
    assert_eq!(spread(&[3.0]), (3.0, 3.0, 3.0));
    assert_eq!(spread(&[4.0, 1.0]), (1.0, 2.5, 4.0));
    assert_eq!(spread(&[9.0, 1.0, 2.0]), (1.0, 2.0, 9.0));
    assert_eq!(spread(&[9.0, 1.0, 2.0, 4.0]), (1.0, 3.0, 9.0));
}

#[test]
fn layers_are_added_up_by_op_and_the_longest_comes_first() {
    let layers = [("b", 1.0), ("a", 2.0), ("b", 5.0)].map(|(op, time)| (op.to_string(), time));
    let found: Vec<(String, f64, f64)> =
        report::by_op(layers).into_iter().map(|op| (op.op, op.milliseconds, op.share)).collect();
    assert_eq!(found, [("b".to_string(), 6.0, 0.75), ("a".to_string(), 2.0, 0.25)]);
    assert_eq!(report::by_op([("idle".to_string(), 0.0)])[0].share, 0.0);
    assert!(report::by_op(Vec::new()).is_empty());
}

#[test]
fn the_parts_of_a_transformer_are_added_up_run_by_run() {
    let (manifest, stages) = split();
    let [step] = &steps(&manifest, &stages)[..] else { panic!("one step") };
    assert_eq!((step.name.as_str(), step.load_milliseconds), ("step", 600.0));
    assert_eq!(step.all_milliseconds, [6.0, 60.0, 24.0]);
    assert_eq!(step.milliseconds, Spread { least: 6.0, median: 24.0, greatest: 60.0 });
    assert_eq!(step.gpu_memory, Some(GpuMemory { activation_bytes: 800, loaded_bytes: 14 }));
    let ops: Vec<(&str, f64)> = step.ops.iter().map(|op| (op.op.as_str(), op.milliseconds)).collect();
    assert_eq!(ops, [("TurboSla", 6.0), ("TurboNorm", 3.0)]);
}

#[test]
fn a_step_needs_all_its_parts_and_more_than_one() {
    let (mut manifest, stages) = split();
    assert!(steps(&manifest, &stages[1..]).is_empty());
    manifest.experts.low = Some(manifest.experts.high.clone());
    let names: Vec<String> = steps(&manifest, &stages).into_iter().map(|step| step.name).collect();
    assert_eq!(names, ["step_high", "step_low"]);
    manifest.experts.high.steps.truncate(1);
    let names: Vec<String> = steps(&manifest, &stages).into_iter().map(|step| step.name).collect();
    assert_eq!(names, ["step_low"]);
}

#[test]
fn stages_are_chosen_by_name_for_one_video() {
    let (mut manifest, _) = split();
    let names = |manifest: &Manifest, video: usize, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        choose(manifest, video, &names).map(|s| s.iter().map(|s| s.name.clone()).collect::<Vec<_>>())
    };
    let all = names(&manifest, 0, &[]).unwrap();
    assert_eq!(all.len(), manifest.stages.len());
    assert_eq!(names(&manifest, 0, &[&all[1], &all[0], &all[1]]).unwrap(), all[..2], "each once, in order");
    manifest.stages[0].video = Some(1);
    assert_eq!(names(&manifest, 0, &[]).unwrap(), all[1..]);
    let error = names(&manifest, 0, &[&all[1], &all[0]]).unwrap_err();
    let said = format!(
        "the engine file has no stage `{}` for this video\nhint: its stages are {}",
        all[0],
        all[1..].join(", ")
    );
    assert_eq!(error.to_string(), said);
    assert!(matches!(error, RunError::Usage { .. }));
}
