//! What holds of every op on shapes that nobody picked.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rayon::{ThreadPool, ThreadPoolBuilder};
use turbo_ops::cases::rel_l2;
use turbo_ops::common::quant::Format;
use turbo_ops::schema::AttrKind;
use turbo_ops::{
    ALL, AttrValue, Attrs, Case, Data, Dim, Dims, Op, Rng, Tensor, TensorDef, TensorRef, Tol, Ty, find,
};

/// The same cases on every run: whether a value falls on the other side of a tie must not depend on luck.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 24,
        rng_seed: RngSeed::Fixed(20),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Sizes from which each op takes the ones that it has.
#[derive(Clone, Debug)]
struct Draw {
    b: usize,
    rows: [usize; 2],
    heads: usize,
    d: usize,
    blocks: [usize; 2],
    mkn: [usize; 3],
    /// Decides choices, divisors and shares.
    pick: usize,
    seed: u64,
}

/// One, a few, the edges of tiles, or more.
fn size(max: usize) -> impl Strategy<Value = usize> {
    prop_oneof![
        2 => Just(1),
        4 => 2..=max.min(24),
        1 => prop::sample::select(vec![15, 16, 17, 63, 64, 65, 127, 128, 129]).prop_map(move |n| n.min(max)),
        2 => 1..=max,
    ]
}

fn draw() -> impl Strategy<Value = Draw> {
    let attention = (1..=3usize, [size(300), size(300)], 1..=4usize, size(64), [size(140), size(140)]);
    (attention, [size(280), size(280), size(280)], any::<u16>(), any::<u64>()).prop_map(
        |((b, rows, heads, d, blocks), mkn, pick, seed)| Draw {
            b,
            rows,
            heads,
            d,
            blocks,
            mkn,
            pick: pick.into(),
            seed,
        },
    )
}

/// A valid case of the op.
fn case(op: &Op, draw: &Draw) -> Case {
    let pick = draw.pick;
    let [m, k, n] = draw.mkn;
    // A rotation turns pairs of channels.
    let d = if op.name == "TurboNormRope" { 2 * draw.d } else { draw.d };
    let has_heads = op.attrs.iter().any(|def| def.name == "heads");
    let c = if has_heads { draw.heads * d } else { n };
    // Queries and keys are rows of whole sequences.
    let [m, n] = if has_heads { draw.rows.map(|l| draw.b * l) } else { [m, n] };
    // Sums are of 32 rows.
    let blocks =
        if op.name == "TurboBlockMap" { draw.blocks.map(|b| b.next_multiple_of(32)) } else { draw.blocks };
    let keep = 1 + pick % draw.rows[0].div_ceil(blocks[1]);
    let divisors: Vec<usize> = (1..=m).filter(|g| m % g == 0).collect();
    let g = divisors[pick % divisors.len()];
    let axes = [
        ("b", draw.b),
        ("l", draw.rows[0]),
        ("c", c),
        ("g", g),
        ("keep", keep),
        ("m", m),
        ("k", k),
        ("n", n),
    ];
    let attrs = op.attrs.iter().fold(Attrs::new(), |attrs, def| match (def.name, def.kind) {
        ("batch", _) => attrs.int("batch", draw.b),
        ("heads", _) => attrs.int("heads", draw.heads),
        ("tokens", _) => attrs.int("tokens", draw.rows[0]),
        ("block_q", _) => attrs.int("block_q", blocks[0]),
        ("block_k", _) => attrs.int("block_k", blocks[1]),
        ("keep", _) => attrs.int("keep", keep),
        ("eps", _) => attrs.float("eps", [1e-6, 1e-5, 1e-2][pick / 2 % 3]),
        (name, AttrKind::Choice(words)) => attrs.choice(name, words[pick / 4 % words.len()]),
        (name, kind) => panic!("no value for {name}: {kind:?}"),
    });
    let tol = (op.cases)().iter().find(|case| similar(&case.attrs, &attrs)).unwrap().tol.clone();
    Case { name: format!("{draw:?}"), attrs, dims: Dims::of(&axes), seed: draw.seed, tol }
}

/// Tolerances differ by the types of probabilities and of quantised values alone.
fn similar(a: &Attrs, b: &Attrs) -> bool {
    ["pv", "format"].iter().all(|name| a.get(name) == b.get(name))
}

fn try_run(op: &Op, attrs: &Attrs, inputs: &[Tensor]) -> Result<Vec<Tensor>, turbo_ops::OpError> {
    let inputs: Vec<Tensor> = inputs.iter().map(Tensor::for_kernel).collect();
    let views: Vec<TensorRef<'_>> = inputs.iter().map(Tensor::view).collect();
    op.run(attrs, &views)
}

fn run(op: &Op, attrs: &Attrs, inputs: &[Tensor]) -> Vec<Tensor> {
    try_run(op, attrs, inputs).unwrap()
}

fn op(name: &str) -> &'static Op {
    find(name).unwrap()
}

fn f32s(tensor: &Tensor) -> &[f32] {
    match &tensor.data {
        Data::F32(values) => values,
        other => panic!("{other:?} are no f32"),
    }
}

fn format(word: &str) -> Attrs {
    Attrs::new().choice("format", word)
}

fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = Rng::new(seed);
    Tensor::f64(shape, (0..shape.iter().product()).map(|_| rng.normal()).collect())
}

fn filled(shape: &[usize], value: f64) -> Tensor {
    Tensor::f64(shape, vec![value; shape.iter().product()])
}

fn map(tensor: &Tensor, f: impl Fn(f64) -> f64) -> Tensor {
    Tensor::f64(&tensor.shape, tensor.as_f64().iter().map(|&v| f(v)).collect())
}

/// As the tolerance compares, but a tensor of few elements may be close to zero where terms cancel, and may have one
/// tie decided the other way.
fn compare(tol: Tol, def: &TensorDef, found: &Tensor, expected: &Tensor) -> Result<(), String> {
    let elements: usize = expected.shape.iter().product();
    match tol {
        Tol::OffByOne(share, because) => {
            Tol::OffByOne(share.max(1.0 / elements.max(1) as f64), because).compare(found, expected)?;
        }
        Tol::E4m3(bound, because) => {
            // An eighth of a value that is four times the root mean square.
            let one = 0.5 / (elements.max(1) as f64).sqrt();
            Tol::E4m3(bound.max(one), because).compare(found, expected)?;
        }
        Tol::Rel(bound, _) if found.shape == expected.shape && elements < 64 => {
            let (a, b) = (found.to_f64(), expected.to_f64());
            // Outputs of the samples are about one, as are sums of them at least, and their scales a 128th.
            let least = if def.ty == Ty::T || def.name == "sums" { 1.0 } else { 1.0 / 128.0 };
            let norm = b.iter().map(|b| b * b).sum::<f64>().max(least * least * elements as f64).sqrt();
            let distance = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
            if distance.is_nan() || distance > bound * norm {
                return Err(format!(
                    "{distance:.1e} exceeds {bound:.1e} of {norm:.1e}: {a:?}, expected {b:?}"
                ));
            }
        }
        other => {
            other.compare(found, expected)?;
        }
    }
    Ok(())
}

/// Values that are not bf16: those often are exact ties of E4M3, which f32 and f64 decide differently.
fn off_ties(case: &Case, inputs: &mut [Tensor]) {
    if case.attrs.get_choice("pv") != "fp8" {
        return;
    }
    let mut rng = Rng::new(!case.seed);
    if let Data::F64(values) = &mut inputs[2].data {
        values.iter_mut().for_each(|v| *v = f64::from((*v * (1.0 + rng.uniform() / 256.0)) as f32));
    }
}

fn agree(op: &Op, case: &Case, found: &[Tensor], expected: &[Tensor]) -> Result<(), TestCaseError> {
    for (i, def) in op.outputs.iter().enumerate() {
        let outcome = compare(case.tol[i], def, &found[i], &expected[i]);
        prop_assert!(outcome.is_ok(), "{} `{}` {:?}: {outcome:?}", op.name, def.name, case.attrs);
    }
    Ok(())
}

#[test]
fn rows_are_divided_evenly_or_refused() {
    let norm = Attrs::new().choice("kind", "rms").float("eps", 1e-6);
    let rope = Attrs::new().int("heads", 1).float("eps", 1e-6);
    let dense = Attrs::new().int("batch", 2).int("heads", 1);
    let takes = |name: &str, attrs: &Attrs, shapes: &[&[usize]]| op(name).check(attrs, shapes).is_ok();
    for (rows, taken) in [(6, true), (7, false), (0, false)] {
        assert_eq!(takes("TurboAttention", &dense, &[&[rows, 8], &[4, 8], &[4, 8]]), taken, "{rows} queries");
        assert_eq!(takes("TurboAttention", &dense, &[&[4, 8], &[rows, 8], &[rows, 8]]), taken, "{rows} keys");
    }
    for (rows, taken) in [(6, true), (7, false), (0, true)] {
        assert_eq!(takes("TurboNorm", &norm, &[&[rows, 8], &[3, 8], &[3, 8]]), taken, "{rows} rows");
        assert_eq!(
            takes("TurboNormRope", &rope, &[&[rows, 8], &[8], &[3, 4], &[3, 4]]),
            taken,
            "{rows} rows"
        );
    }
}

#[test]
fn block_maps_take_as_many_sums_as_tokens_have() {
    let attrs = Attrs::new().int("tokens", 65).int("heads", 2).int("block_k", 64).int("keep", 2);
    let takes = |block_q: usize, sums: usize, c: usize| {
        let shape = [3, sums, c];
        op("TurboBlockMap").check(&attrs.clone().int("block_q", block_q), &[&shape, &shape]).is_ok()
    };
    assert!(takes(96, 3, 8));
    assert!(!takes(96, 2, 8) && !takes(96, 3, 9) && !takes(80, 3, 8));
}

static POOLS: LazyLock<[ThreadPool; 2]> =
    LazyLock::new(|| [1, 3].map(|n| ThreadPoolBuilder::new().num_threads(n).build().unwrap()));

proptest! {
    #![proptest_config(config())]

    #[test]
    fn kernels_agree_with_their_references_on_any_number_of_threads(draw in draw()) {
        for op in ALL {
            let case = case(op, &draw);
            let mut inputs = (op.sample)(&case);
            off_ties(&case, &mut inputs);
            let [one, three] = [0, 1].map(|i| POOLS[i].install(|| run(op, &case.attrs, &inputs)));
            prop_assert_eq!(&one, &three, "{}: threads", op.name);
            agree(op, &case, &one, &(op.reference)(&case.attrs, &inputs))?;
        }
    }

    #[test]
    fn quantised_values_are_within_half_a_step(draw in draw(), power in -40..=40i32) {
        let [m, k, _] = draw.mkn;
        let x = map(&normal(&[m, k], draw.seed), |v| v * 2f64.powi(power)).for_kernel();
        let out = run(op("TurboQuantize"), &format("int8"), std::slice::from_ref(&x));
        let (x, q, s) = (f32s(&x), out[0].as_i8(), f32s(&out[1]));
        let columns = k.div_ceil(128);
        let mut amax = vec![0.0f32; s.len()];
        let block = |i: usize| i / k / 128 * columns + i % k / 128;
        for (i, &x) in x.iter().enumerate() {
            amax[block(i)] = amax[block(i)].max(x.abs());
        }
        for (&s, &amax) in s.iter().zip(&amax) {
            prop_assert_eq!(s, amax.max(1e-8) / 128.0);
        }
        for (i, (&x, &q)) in x.iter().zip(q).enumerate() {
            let (s, top) = (f64::from(s[block(i)]), amax[block(i)]);
            let distance = (f64::from(q) * s - f64::from(x)).abs();
            // The range ends at 127, half a step and more below the largest value.
            let clipped = (f64::from(x) - 127.0 * s).max(0.0);
            prop_assert!(distance <= (0.5 * s).max(clipped) * (1.0 + 1e-5), "{x} became {q} of {s}");
            if x.abs() == top && top >= 1e-8 {
                prop_assert_eq!(q, if x > 0.0 { 127 } else { -128 });
            }
        }
    }

    /// Half of one of eight steps of the value's power of two, or of the least.
    #[test]
    fn e4m3_values_are_the_nearest(draw in draw(), power in -40..=40i32) {
        let [m, k, _] = draw.mkn;
        let x = map(&normal(&[m, k], draw.seed), |v| v * 2f64.powi(power)).for_kernel();
        let out = run(op("TurboQuantize"), &format("e4m3"), std::slice::from_ref(&x));
        let (x, q, s) = (f32s(&x), out[0].as_i8(), f32s(&out[1]));
        for (i, (&x, &q)) in x.iter().zip(q).enumerate() {
            let s = f64::from(s[i / k / 128 * k.div_ceil(128) + i % k / 128]);
            let exact = f64::from(x) / s;
            let value = f64::from(Format::E4m3.value(q));
            let half = 2f64.powi((exact.abs().max(1.0 / 64.0).log2() + 1e-6).floor() as i32 - 4);
            prop_assert!((value - exact).abs() <= half * (1.0 + 1e-5), "{x} became {value} of {s}");
            prop_assert_eq!(q < 0, x.is_sign_negative());
        }
    }

    /// In INT8 `-1` is `-128 / 128` exactly and `1` comes out as `127 / 128`; in E4M3 both are exact but for their scale.
    #[test]
    fn linear_of_an_identity_gives_the_dequantised_input(draw in draw()) {
        let [m, k, _] = draw.mkn;
        for (word, sign, value) in
            [("int8", -1.0, -1.0), ("int8", 1.0, 127.0 / 128.0), ("e4m3", -1.0, -1.0), ("e4m3", 1.0, 1.0)]
        {
            let x = run(op("TurboQuantize"), &format(word), &[normal(&[m, k], draw.seed)]);
            let (q, s) = (x[0].as_i8(), f32s(&x[1]));
            let attrs = format(word).choice("activation", "none").choice("dtype", "f32");
            let mut identity = vec![0.0; k * k];
            identity.iter_mut().step_by(k + 1).for_each(|v| *v = sign);
            let w = run(op("TurboQuantize"), &format(word), &[Tensor::f64(&[k, k], identity)]);
            let [q_, s_, w, ws] = [&x[0], &x[1], &w[0], &w[1]].map(Tensor::clone);
            let y = run(op("TurboW8A8Linear"), &attrs, &[q_, s_, w, ws, filled(&[k], 0.0)]);
            for (i, &y) in f32s(&y[0]).iter().enumerate() {
                let q = Format::of(&attrs).value(q[i]);
                let expected = q * s[i / k / 128 * k.div_ceil(128) + i % k / 128] * value;
                let near = (y - expected).abs() <= 3e-7 * expected.abs();
                let exact = word == "int8" && sign < 0.0;
                prop_assert!(if exact { y == expected } else { near }, "{y} at {i}, not {expected}");
            }
        }
    }

    #[test]
    fn plain_linear_of_an_identity_adds_the_bias(draw in draw()) {
        let [m, k, _] = draw.mkn;
        let (x, bias) = (normal(&[m, k], draw.seed), normal(&[k], !draw.seed));
        let mut identity = vec![0.0; k * k];
        identity.iter_mut().step_by(k + 1).for_each(|v| *v = 1.0);
        let attrs = Attrs::new().choice("activation", "none");
        let y = run(op("TurboLinear"), &attrs, &[x.clone(), Tensor::f64(&[k, k], identity), bias.clone()]);
        for (i, &y) in f32s(&y[0]).iter().enumerate() {
            prop_assert_eq!(y, x.as_f64()[i] as f32 + bias.as_f64()[i % k] as f32);
        }
    }

    #[test]
    fn fused_quantisation_is_that_of_the_separate_op(draw in draw()) {
        for (fused, first) in
            [("TurboNormQuantize", "TurboNorm"), ("TurboW8A8LinearQuantize", "TurboW8A8Linear")]
        {
            let case = case(op(fused), &draw);
            let inputs = (op(fused).sample)(&case);
            let all = case.attrs.clone().choice("dtype", "f32");
            let own = |op: &Op| {
                let known = all.iter().filter(|(name, _)| op.attrs.iter().any(|def| def.name == *name));
                known.fold(Attrs::new(), |attrs, (name, value)| attrs.with(name, value.clone()))
            };
            let y = run(op(first), &own(op(first)), &inputs).remove(0);
            let found = run(op(fused), &case.attrs, &inputs);
            let quantize = op("TurboQuantize");
            prop_assert_eq!(found, run(quantize, &own(quantize), &[y]), "{}", fused);
        }
    }

    #[test]
    fn queries_keys_and_values_are_three_linears(draw in draw()) {
        let (fused, one) = (op("TurboW8A8LinearQkv"), op("TurboW8A8Linear"));
        let case = case(fused, &draw);
        let inputs = (fused.sample)(&case);
        let found = run(fused, &case.attrs, &inputs);
        let attrs = case.attrs.clone().choice("activation", "none");
        for (i, found) in found.iter().enumerate() {
            let own = [&inputs[..2], &inputs[2 + 3 * i..5 + 3 * i]].concat();
            prop_assert_eq!(found, &run(one, &attrs, &own)[0], "{}", fused.outputs[i].name);
        }
    }

    #[test]
    fn norms_do_not_see_the_scale_nor_the_layer_norm_the_mean(
        draw in draw(), width in 8..300usize, power in -8..=8i32, sum in -8..=8i32,
    ) {
        let shape = [draw.rows[0], width];
        let x = normal(&shape, draw.seed);
        let norm = |kind: &str, eps: f32, x: &Tensor| {
            let attrs = Attrs::new().choice("kind", kind).float("eps", eps);
            run(op("TurboNorm"), &attrs, &[x.clone(), filled(&[1, width], 1.0), filled(&[1, width], 0.0)])
        };
        for kind in ["layer", "rms"] {
            let plain = norm(kind, 0.0, &x);
            // A power of two changes exponents alone.
            prop_assert_eq!(&norm(kind, 0.0, &map(&x, |v| v * 2f64.powi(power))), &plain);
            let negated: Vec<f32> = f32s(&norm(kind, 0.0, &map(&x, |v| -v))[0]).iter().map(|v| -v).collect();
            prop_assert_eq!(&negated, f32s(&plain[0]));
            let rows = f32s(&plain[0]).chunks(width);
            for row in rows {
                let moment = |p| row.iter().map(|&v| f64::from(v).powi(p)).sum::<f64>() / width as f64;
                prop_assert!((moment(2) - 1.0).abs() < 1e-5, "mean square {}", moment(2));
                prop_assert!(kind == "rms" || moment(1).abs() < 1e-5, "mean {}", moment(1));
            }
        }
        let [moved, plain] = [norm("layer", 1e-6, &map(&x, |v| v + f64::from(sum))), norm("layer", 1e-6, &x)]
            .map(|y| y[0].to_f64());
        let error = rel_l2(&moved, &plain);
        prop_assert!(error < 5e-6, "{error:.1e} from a mean of {sum}");
    }

    #[test]
    fn rotation_keeps_the_length_of_pairs(draw in draw()) {
        let op = op("TurboNormRope");
        let case = case(op, &draw);
        let mut inputs = (op.sample)(&case);
        let angles = map(&inputs[2], |v| 3.0 * v);
        (inputs[2], inputs[3]) = (map(&angles, f64::cos), map(&angles, f64::sin));
        let turned = run(op, &case.attrs, &inputs).remove(0);
        (inputs[2], inputs[3]) = (filled(&angles.shape, 1.0), filled(&angles.shape, 0.0));
        let still = run(op, &case.attrs, &inputs).remove(0);
        for (a, b) in f32s(&turned).chunks(2).zip(f32s(&still).chunks(2)) {
            let [a, b] = [a, b].map(|p| f64::from(p[0]).hypot(f64::from(p[1])));
            prop_assert!((a - b).abs() <= 1e-6 * b, "{a} was {b}");
        }
    }

    #[test]
    fn block_maps_hold_as_many_blocks_as_asked(draw in draw()) {
        let op = op("TurboBlockMap");
        let case = case(op, &draw);
        let lut = run(op, &case.attrs, &(op.sample)(&case)).remove(0);
        let [heads, block_q, block_k, keep] =
            ["heads", "block_q", "block_k", "keep"].map(|name| case.attrs.get_int(name));
        let l = draw.rows[0];
        prop_assert_eq!(&lut.shape, &[draw.b, heads, l.div_ceil(block_q), keep]);
        prop_assert_eq!(lut.as_i32().len(), lut.shape.iter().product::<usize>());
        for row in lut.as_i32().chunks(keep) {
            prop_assert!(row.is_sorted_by(|a, b| a < b), "{row:?}");
            prop_assert!(row[0] >= 0 && row[keep - 1] < l.div_ceil(block_k) as i32, "{row:?} of {l}");
        }
    }

    #[test]
    fn attention_stays_among_the_values(draw in draw()) {
        for op in [op("TurboAttention"), op("TurboSageAttention")] {
            let case = case(op, &draw);
            let inputs = (op.sample)(&case);
            let out = run(op, &case.attrs, &inputs).remove(0);
            // E4M3 rounds values by up to 1/16, and probabilities but not their sum by as much.
            let slack = match case.attrs.get_choice("pv") {
                "fp8" => 0.13,
                "f16" => 2e-3,
                _ => 1e-5,
            };
            let (l, s, c) = (draw.rows[0], draw.rows[1], case.dims.get("c"));
            let v = inputs[2].as_f64();
            for (i, &o) in f32s(&out).iter().enumerate() {
                let column = (0..s).map(|j| v[(i / c / l * s + j) * c + i % c]);
                let (low, high) =
                    column.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
                // The least step of f16 is 6e-8.
                let slack = slack * low.abs().max(high.abs()) + 6e-8;
                let within = (low - slack..=high + slack).contains(&f64::from(o));
                prop_assert!(within, "{}: {o} at {i} is outside {low}..{high}", op.name);
            }
        }
    }

    #[test]
    fn all_blocks_kept_and_no_linear_branch_is_dense_attention(draw in draw()) {
        for (sparse, dense) in [("TurboSla", "TurboAttention"), ("TurboSageSla", "TurboSageAttention")] {
            let mut case = case(op(sparse), &draw);
            let (l, c, heads) = (draw.rows[0], case.dims.get("c"), draw.heads);
            let [blocks_q, keep] = draw.blocks.map(|block| l.div_ceil(block));
            case.dims = Dims::of(&[("m", draw.b * l), ("c", c), ("keep", keep)]);
            let mut inputs = (op(sparse).sample)(&case);
            prop_assert_eq!(&inputs[3].shape, &[draw.b, heads, blocks_q, keep]);
            let d = c / heads;
            (inputs[4], inputs[5]) = (filled(&[d, d], 0.0), filled(&[d], 0.0));
            let found = run(op(sparse), &case.attrs, &inputs).remove(0).to_f64();
            let attrs = match dense {
                "TurboAttention" => Attrs::new().int("batch", draw.b).int("heads", heads),
                _ => case.attrs,
            };
            // Keys are smoothed by the last input.
            let sums = inputs.get(6).cloned();
            let inputs: Vec<Tensor> = inputs[..3].iter().cloned().chain(sums).collect();
            let expected = run(op(dense), &attrs, &inputs).remove(0).to_f64();
            let error = rel_l2(&found, &expected);
            prop_assert!(error < 2e-6, "{sparse} is {error:.1e} from {dense}");
        }
    }

    /// A changed size is refused wherever another size depends on it.
    #[test]
    fn wrong_shapes_are_refused(draw in draw(), at: [prop::sample::Index; 2], to in size(300)) {
        for op in ALL {
            let case = case(op, &draw);
            let inputs = (op.sample)(&case);
            let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.shape.clone()).collect();
            let check = |shapes: &[Vec<usize>], attrs: &Attrs| {
                let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
                let dims = op.check(attrs, &shapes)?;
                op.output_shapes(attrs, &dims)
            };
            let outputs = check(&shapes, &case.attrs).unwrap();
            let expected: Vec<_> = (op.reference)(&case.attrs, &inputs).into_iter().map(|x| x.shape).collect();
            prop_assert_eq!(outputs, expected, "{}", op.name);

            let input = at[0].index(shapes.len());
            let axis = at[1].index(shapes[input].len());
            let mut wrong = shapes.clone();
            wrong[input][axis] += to;
            let dim = op.inputs[input].dims[axis];
            let uses = op.inputs.iter().flat_map(|def| def.dims).filter(|other| **other == dim).count();
            let outcome = check(&wrong, &case.attrs);
            prop_assert!(
                outcome.is_err() || uses == 1 && matches!(dim, Dim::Axis(_)),
                "{} takes {wrong:?} with {:?}", op.name, case.attrs
            );

            let mut wrong = shapes.clone();
            wrong[input].push(1);
            prop_assert!(check(&wrong, &case.attrs).is_err(), "{} takes {wrong:?}", op.name);
            wrong[input].truncate(shapes[input].len() - 1);
            prop_assert!(check(&wrong, &case.attrs).is_err(), "{} takes {wrong:?}", op.name);
            prop_assert!(check(&shapes[1..], &case.attrs).is_err(), "{} without an input", op.name);
            prop_assert!(check(&[&shapes[..], &shapes[..1]].concat(), &case.attrs).is_err());

            prop_assert!(check(&shapes, &case.attrs.clone().int("spare", 1)).is_err());
            for def in op.attrs {
                for value in [
                    AttrValue::Int(0), AttrValue::Int(-1), AttrValue::Float(f32::NAN),
                    AttrValue::Float(f32::INFINITY), AttrValue::Choice("fp7".to_string()),
                ] {
                    let attrs = case.attrs.clone().with(def.name, value.clone());
                    let outcome = check(&shapes, &attrs);
                    prop_assert!(outcome.is_err(), "{} takes {} of {value:?}", op.name, def.name);
                }
            }
        }
    }

    /// Whatever is asked: an answer or an error.
    #[test]
    fn checks_do_not_panic(
        shapes in prop::collection::vec(
            prop::collection::vec(prop_oneof![0..4usize, size(300), prop::num::usize::ANY, Just(usize::MAX)], 0..5),
            0..8,
        ),
        int in prop_oneof![1..5i64, prop::num::i64::ANY, Just(i64::MAX)],
        fit: bool,
    ) {
        for op in ALL {
            let mut attrs = Attrs::new();
            for def in op.attrs {
                attrs = match def.kind {
                    AttrKind::Int => attrs.with(def.name, AttrValue::Int(int)),
                    AttrKind::Float => attrs.float(def.name, 1e-6),
                    AttrKind::Choice(words) => attrs.choice(def.name, words[0]),
                };
            }
            // With ranks that fit, so that sizes are looked at.
            let mut shapes = shapes.clone();
            if fit && !shapes.is_empty() {
                let sizes: Vec<usize> = shapes.iter().flatten().copied().chain([usize::MAX]).collect();
                let axis = |dim: &Dim| match dim {
                    Dim::Axis(name) => sizes[name.len() * usize::from(name.as_bytes()[0]) % sizes.len()],
                    _ => sizes[0],
                };
                shapes = op.inputs.iter().map(|def| def.dims.iter().map(axis).collect()).collect();
            }
            let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            let outcome = catch_unwind(|| op.check(&attrs, &views).and_then(|dims| op.output_shapes(&attrs, &dims)));
            prop_assert!(outcome.is_ok(), "{} panics at {shapes:?} with {attrs:?}", op.name);
        }
    }

    #[test]
    fn wrong_types_and_lengths_are_refused(draw in draw(), at: prop::sample::Index) {
        for op in ALL {
            let case = case(op, &draw);
            let inputs = (op.sample)(&case);
            let input = at.index(inputs.len());
            let n: usize = inputs[input].shape.iter().product();
            let others = [Data::F32(vec![0.0; n]), Data::I8(vec![0; n]), Data::I32(vec![0; n])];
            let fits = |data: &Data| {
                matches!(
                    (op.inputs[input].ty, data),
                    (Ty::T | Ty::F32, Data::F32(_)) | (Ty::I8, Data::I8(_)) | (Ty::I32, Data::I32(_))
                )
            };
            let mut wrong: Vec<Data> = others.into_iter().filter(|data| !fits(data)).collect();
            let mut short = inputs[input].for_kernel().data;
            match &mut short {
                Data::F32(v) => drop(v.pop()),
                Data::I8(v) => drop(v.pop()),
                Data::I32(v) => drop(v.pop()),
                Data::F64(v) => drop(v.pop()),
            }
            wrong.push(short);
            for data in wrong {
                let mut inputs = inputs.clone();
                inputs[input].data = data;
                let outcome = catch_unwind(AssertUnwindSafe(|| try_run(op, &case.attrs, &inputs)));
                let refused = matches!(outcome, Ok(Err(_)));
                prop_assert!(refused, "{} takes another `{}`", op.name, op.inputs[input].name);
            }
        }
    }

    /// Empty axes give outputs that are written whole, or an error.
    #[test]
    fn empty_axes_are_no_harm(draw in draw(), axis in prop::sample::select(vec!["b", "c", "l", "m", "k", "n", "g"])) {
        for op in ALL {
            let mut case = case(op, &draw);
            let mut axes: Vec<_> = case.dims.iter().collect();
            axes.iter_mut().filter(|(name, _)| *name == axis).for_each(|(_, size)| *size = 0);
            case.dims = Dims::of(&axes);
            let mut inputs = turbo_ops::cases::sample_inputs(op, &case);
            for input in &mut inputs {
                if let Data::I8(bytes) = &mut input.data {
                    // E4M3 bytes may be NaN.
                    bytes.iter_mut().for_each(|byte| *byte &= 0x3f);
                }
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| try_run(op, &case.attrs, &inputs)));
            let refused = matches!(outcome, Ok(Err(_)));
            prop_assert!(outcome.is_ok(), "{} panics where `{axis}` is empty", op.name);
            // Outputs start as NaN.
            let written = |x: &Tensor| x.to_f64().iter().all(|v| v.is_finite());
            let written = outcome.is_ok_and(|run| run.is_ok_and(|outputs| outputs.iter().all(written)));
            prop_assert!(written || refused, "{} leaves outputs where `{axis}` is empty", op.name);
        }
    }
}
