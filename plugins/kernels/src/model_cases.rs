//! Cases at the sizes of Wan and at the edges of tiles, too large for the f64 references.

use turbo_ops::common::quant::FORMAT;
use turbo_ops::{AttrKind, Attrs, Case, Dims, Op};

/// Tokens of the cases of ops that work by rows: no multiple of a tile.
const ROWS: usize = 1000;
/// Widths of Wan's blocks and their number of heads.
const WIDTHS: [(usize, usize); 2] = [(1536, 12), (5120, 40)];
/// Rows of the linears: one, around a tile, and of several tiles.
const LINEAR_ROWS: [usize; 4] = [1, 127, 129, 300];
/// Rows of more tiles than those that run together, for the smallest of the linears.
const MANY_ROWS: usize = 2177;
/// Widths of norms whose rows a warp holds in part, and one that is too wide for it, with heads.
const NORM_EDGES: [(usize, usize); 2] = [(1000, 5), (1544, 1)];
/// Rows wider than Wan's; the last two are of the widest kind, with accesses of 16 bytes and without.
const ROPE_EDGES: [(usize, usize); 3] = [(5128, 1), (8200, 1), (8202, 1)];
/// Outputs and inputs of the linears: Wan's, and what is no multiple of a tile or even of 16 bytes.
const LINEARS: [[usize; 2]; 9] = [
    [1536, 1536],
    [8960, 1536],
    [1536, 8960],
    [5120, 5120],
    [1536, 200],
    [200, 1536],
    [1536, 17],
    [17, 1536],
    [17, 200],
];
/// Few steps of many tiles, up to where one warpgroup goes no longer so far ahead; the last of [`LINEAR_ROWS`] only.
const STEPS: [[usize; 2]; 5] = [[8960, 128], [8960, 256], [8960, 384], [8960, 2048], [8960, 2176]];
/// Rows of a query and a key block.
const TILINGS: [[usize; 2]; 2] = [[128, 64], [64, 128]];

/// The large cases of an op.
pub fn model_cases(op: &Op) -> Vec<Case> {
    match op.name {
        "TurboNorm" | "TurboNormQuantize" => norms(op),
        "TurboNormRope" => ropes(op),
        "TurboQuantize" => quantize(op),
        "TurboAttention" | "TurboSageAttention" => dense(op),
        "TurboBlockMap" => [sparse(op, 5000, 12), vec![many_blocks(op)]].concat(),
        "TurboSla" | "TurboSageSla" => sparse(op, 2000, 3),
        _ => linears(op),
    }
}

/// A case named by its sizes; its tolerances are those of the op's own cases with the same types.
fn case(op: &Op, attrs: Attrs, axes: &[(&'static str, usize)]) -> Case {
    let own = (op.cases)();
    let alike =
        own.iter().find(|case| ["pv", "format"].iter().all(|name| case.attrs.get(name) == attrs.get(name)));
    let mut name = "model".to_string();
    axes.iter().for_each(|(axis, size)| name += &format!(" {axis}={size}"));
    for attr in ["batch", "tokens", "keep", "kind", "activation", "block_q", "pv", "format"] {
        match attrs.get(attr) {
            Some(turbo_ops::AttrValue::Choice(word)) => name += &format!(" {word}"),
            Some(turbo_ops::AttrValue::Int(value)) => name += &format!(" {attr}={value}"),
            _ => {}
        }
    }
    let tol = alike.map(|case| case.tol.clone()).unwrap_or_default();
    Case { name, attrs, dims: Dims::of(axes), seed: 77, tol }
}

fn norms(op: &Op) -> Vec<Case> {
    let mut all = Vec::new();
    for kind in ["layer", "rms"] {
        for attrs in formats(op, Attrs::new().choice("kind", kind).float("eps", 1e-6)) {
            for (c, _) in WIDTHS {
                // More tiles of 128 rows of the wider one than run at a time.
                let long = if c == 5120 { vec![[2200, 2]] } else { Vec::new() };
                for [m, g] in [vec![[ROWS, 1], [666, 2], [666, 1]], long].concat() {
                    all.push(case(op, attrs.clone(), &[("m", m), ("c", c), ("g", g)]));
                }
            }
            for (c, _) in NORM_EDGES {
                all.push(case(op, attrs.clone(), &[("m", 333), ("c", c), ("g", 1)]));
            }
        }
    }
    all
}

/// More key blocks than a warp holds in registers, and more scores than pass through the workspace at once.
fn many_blocks(op: &Op) -> Case {
    let attrs = Attrs::new().int("tokens", 90_000).int("heads", 64).int("block_q", 128).int("block_k", 64);
    case(op, attrs.int("keep", 140), &[("b", 1), ("c", 64 * 8)])
}

/// Both formats of quantised values, as far as the op has them.
fn formats(op: &Op, attrs: Attrs) -> Vec<Attrs> {
    match op.attrs.iter().find(|def| def.name == FORMAT.name).map(|def| def.kind) {
        Some(AttrKind::Choice(words)) => {
            words.iter().map(|word| attrs.clone().choice(FORMAT.name, word)).collect()
        }
        _ => vec![attrs],
    }
}

fn ropes(op: &Op) -> Vec<Case> {
    let size = |(c, heads): (usize, usize)| {
        [[1, ROWS], [2, 333]].map(|[b, l]| {
            let attrs = Attrs::new().int("heads", heads).float("eps", 1e-6);
            case(op, attrs, &[("m", b * l), ("l", l), ("c", c)])
        })
    };
    WIDTHS.into_iter().chain(NORM_EDGES).chain(ROPE_EDGES).flat_map(size).collect()
}

fn quantize(op: &Op) -> Vec<Case> {
    let sizes = [[ROWS, 1536], [ROWS, 5120], [ROWS, 8960], [999, 1537], [1, 5120]];
    let of = |attrs: Attrs| sizes.map(|[m, k]| case(op, attrs.clone(), &[("m", m), ("k", k)]));
    formats(op, Attrs::new()).into_iter().flat_map(of).collect()
}

fn linears(op: &Op) -> Vec<Case> {
    let has = |name: &str| op.attrs.iter().any(|def| def.name == name);
    let mut all = Vec::new();
    let sizes = LINEARS.into_iter().map(|linear| (linear, &LINEAR_ROWS[..]));
    let sizes = sizes.chain(STEPS.into_iter().map(|linear| (linear, &LINEAR_ROWS[LINEAR_ROWS.len() - 1..])));
    for (i, ([n, k], rows)) in sizes.enumerate() {
        let many = (i == 0).then_some(MANY_ROWS);
        for (j, m) in rows.iter().copied().chain(many).enumerate() {
            let mut attrs = Attrs::new();
            let mut axes = vec![("m", m), ("n", n), ("k", k)];
            if has("activation") {
                attrs = attrs.choice("activation", ["none", "gelu_tanh"][(i + j) % 2]);
            }
            if has("dtype") {
                attrs = attrs.choice("dtype", "f32");
            }
            if op.inputs.iter().any(|def| def.name == "gate") {
                axes.push(("g", if m % 2 == 0 { 2 } else { 1 }));
            }
            all.extend(formats(op, attrs).into_iter().map(|attrs| case(op, attrs, &axes)));
        }
    }
    all
}

fn dense(op: &Op) -> Vec<Case> {
    let mut sizes = vec![[1, ROWS, 512, 12], [2, 333, 77, 2], [1, 777, 777, 3]];
    if op.name == "TurboAttention" {
        // More blocks of queries than a GPU has multiprocessors, each with one to three tiles of keys.
        sizes.extend([[2, 300, 100, 120], [1, 2200, 300, 40], [1, 2200, 256, 40]]);
    }
    let mut all = Vec::new();
    for [b, l, s, heads] in sizes {
        let axes = [("m", b * l), ("n", b * s), ("c", heads * 128)];
        let attrs = Attrs::new().int("batch", b).int("heads", heads);
        all.extend(forms(op, attrs).into_iter().map(|attrs| case(op, attrs, &axes)));
    }
    all
}

/// Both tilings, a tenth of the key blocks and all of them, and a batch.
fn sparse(op: &Op, l: usize, heads: usize) -> Vec<Case> {
    let mut all = Vec::new();
    for attrs in forms(op, Attrs::new().int("heads", heads)) {
        let blocks = |l: usize| l.div_ceil(attrs.get_int("block_k"));
        let (tenth, few) = ((blocks(l) / 10).max(1), blocks(l / 3).min(4));
        for (b, l, keep) in [(1, l, tenth), (1, l, blocks(l)), (2, l / 3, few)] {
            let c = ("c", heads * 128);
            all.push(if op.attrs.iter().any(|def| def.name == "keep") {
                case(op, attrs.clone().int("tokens", l).int("keep", keep), &[("b", b), c])
            } else {
                case(op, attrs.clone().int("batch", b), &[("m", b * l), c, ("keep", keep)])
            });
        }
    }
    all
}

/// Every tiling and type of probabilities, as far as the op has them.
fn forms(op: &Op, attrs: Attrs) -> Vec<Attrs> {
    let has = |name: &str| op.attrs.iter().any(|def| def.name == name);
    if !has("block_q") {
        return vec![attrs];
    }
    let tiled = TILINGS.map(|[q, k]| attrs.clone().int("block_q", q).int("block_k", k));
    if !has("pv") {
        return tiled.into();
    }
    tiled.iter().flat_map(|attrs| ["fp8", "f16"].map(|pv| attrs.clone().choice("pv", pv))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_has_large_cases_that_fit_its_definition() {
        for op in turbo_ops::ALL {
            let cases = model_cases(op);
            assert!(!cases.is_empty(), "{}", op.name);
            for case in &cases {
                let shapes = crate::check::input_shapes(op, case).unwrap();
                let views: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
                op.check(&case.attrs, &views).unwrap();
                assert_eq!(case.tol.len(), op.outputs.len(), "{} {}", op.name, case.name);
            }
            let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), cases.len(), "{}: names repeat", op.name);
        }
    }
}
