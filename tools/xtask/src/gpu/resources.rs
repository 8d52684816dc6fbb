//! Registers, shared memory, stack and spills of every kernel, out of what ptxas said while compiling.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Of one kernel on one architecture; all but registers in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    registers: u32,
    shared: u32,
    stack: u32,
    spills: u32,
}

/// Where a kernel with a stack or spills fails the build. Elsewhere they are only listed: a thread has 255 registers at
/// most, and some variants of SageAttention with block_k = 128 need more on sm_80 and sm_90a.
const STRICT: &str = "sm_120a";

/// Usage by op, mangled kernel and architecture.
type Usages = BTreeMap<(String, String), BTreeMap<String, Usage>>;

/// Prints the table and writes it to a file; fails where a kernel may not have a stack or spills and does.
pub fn report(logs: &Path, file: &Path) -> Result<()> {
    let mut usages = Usages::new();
    for op in std::fs::read_dir(logs).with_context(|| format!("cannot list {}", logs.display()))? {
        let op = op?;
        let log = op.path().join("kernel.cu.o.log");
        let text = std::fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
        parse(&op.file_name().to_string_lossy(), &text, &mut usages);
    }
    ensure!(!usages.is_empty(), "ptxas said nothing in {}", logs.display());
    let names = demangle(usages.keys().map(|(_, kernel)| kernel.as_str()))?;
    let (listed, refused) = spilling(&usages, &names);
    let mut table = table(&usages, &names);
    if !listed.is_empty() {
        table.push_str(&format!("\nWith a stack or spills, in bytes:\n\n{}", listed.concat()));
    }
    print!("{table}");
    std::fs::write(file, &table).with_context(|| format!("cannot write {}", file.display()))?;
    ensure!(refused.is_empty(), "registers are spilled:\n{}", refused.concat());
    Ok(())
}

/// One line for each kernel with a stack or spills: those that are only listed, then those that fail the build.
fn spilling(usages: &Usages, names: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut listed, mut refused) = (Vec::new(), Vec::new());
    for (((op, _), usage), name) in usages.iter().zip(names) {
        for (arch, usage) in usage.iter().filter(|(_, usage)| usage.stack > 0 || usage.spills > 0) {
            let line = format!("- {op} `{name}` on {arch}: stack {}, spills {}\n", usage.stack, usage.spills);
            if arch == STRICT { &mut refused } else { &mut listed }.push(line);
        }
    }
    (listed, refused)
}

/// Reads a log of `ptxas -v`. Figures of functions that a kernel calls count as the kernel's.
fn parse(op: &str, log: &str, usages: &mut Usages) {
    let mut usage = &mut Usage::default();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let kernel = quoted.next().unwrap_or_default().to_string();
            let arch = quoted.nth(1).unwrap_or_default().to_string();
            usage = usages.entry((op.to_string(), kernel)).or_default().entry(arch).or_default();
        } else {
            usage.registers = usage.registers.max(before(line, " registers"));
            usage.shared = usage.shared.max(before(line, " bytes smem"));
            usage.stack = usage.stack.max(before(line, " bytes stack frame"));
            usage.spills += before(line, " bytes spill stores") + before(line, " bytes spill loads");
        }
    }
}

/// The number that stands before a phrase; 0 where the phrase is missing.
fn before(line: &str, phrase: &str) -> u32 {
    let number = line.split_once(phrase).and_then(|(head, _)| head.rsplit([' ', ',']).next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// One row for each kernel, one column for each architecture.
fn table(usages: &Usages, names: &[String]) -> String {
    let archs: BTreeSet<&String> = usages.values().flat_map(BTreeMap::keys).collect();
    let mut archs: Vec<&String> = archs.into_iter().collect();
    archs.sort_by_key(|arch| arch.len());
    let mut text =
        String::from("registers / bytes of static shared memory / stack / spills, as ptxas counts them\n\n");
    let mut row = |cells: Vec<String>| {
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    };
    let heads = ["op".to_string(), "kernel".to_string()];
    row(heads.iter().chain(archs.iter().copied()).cloned().collect());
    row(vec!["---".to_string(); archs.len() + 2]);
    for (((op, _), usage), name) in usages.iter().zip(names) {
        let cell = |arch: &&String| match usage.get(*arch) {
            Some(u) => format!("{} / {} / {} / {}", u.registers, u.shared, u.stack, u.spills),
            None => "-".to_string(),
        };
        row([op.clone(), format!("`{name}`")].into_iter().chain(archs.iter().map(cell)).collect());
    }
    text
}

/// Readable names of kernels, in the same order.
fn demangle<'a>(kernels: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let filter = Command::new("c++filt").args(kernels).output().context("c++filt of binutils is needed")?;
    Ok(String::from_utf8_lossy(&filter.stdout).lines().map(short).collect())
}

/// A kernel's name with its template arguments, without namespaces of ours, result and parameters.
fn short(name: &str) -> String {
    let mut name = name.strip_prefix("void ").unwrap_or(name).replace("(anonymous namespace)::", "");
    while let Some(at) = name.find("_GLOBAL__N__") {
        let Some(length) = name[at..].find("::") else { break };
        name.replace_range(at..at + length + 2, "");
    }
    let mut depth = 0;
    let parameters = name.char_indices().find(|&(_, c)| {
        depth += i32::from(c == '<') - i32::from(c == '>');
        depth == 0 && c == '('
    });
    let end = parameters.map_or(name.len(), |(at, _)| at);
    name[..end].replace("turbo::", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read() {
        let log = "ptxas info    : Compiling entry function 'k' for 'sm_90a'\n\
                   ptxas info    : Function properties for k\n\
                   \x20   16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
                   ptxas info    : Used 114 registers, used 1 barriers, 256 bytes smem\n";
        let mut usages = Usages::new();
        parse("norm", log, &mut usages);
        let usage = usages[&("norm".to_string(), "k".to_string())]["sm_90a"];
        assert_eq!(usage, Usage { registers: 114, shared: 256, stack: 16, spills: 12 });
    }

    #[test]
    fn spills_are_listed_and_on_some_architectures_refused() {
        let key = |kernel: &str| ("sage".to_string(), kernel.to_string());
        let on = |arch: &str, stack, spills| (arch.to_string(), Usage { stack, spills, ..Usage::default() });
        let usages = Usages::from([
            (key("a"), BTreeMap::from([on("sm_90a", 80, 208), on("sm_120a", 0, 0)])),
            (key("b"), BTreeMap::from([on("sm_80", 0, 0), on("sm_120a", 16, 0)])),
        ]);
        let (listed, refused) = spilling(&usages, &["a".to_string(), "b".to_string()]);
        assert_eq!(listed, ["- sage `a` on sm_90a: stack 80, spills 208\n"]);
        assert_eq!(refused, ["- sage `b` on sm_120a: stack 16, spills 0\n"]);
    }

    #[test]
    fn names_are_short() {
        assert_eq!(
            short("void turbo::attn::run<__half, (turbo::Kind)1>(turbo::Shape, int)"),
            "attn::run<__half, (Kind)1>"
        );
        assert_eq!(short("turbo::_GLOBAL__N__1_2_kernel_cu_3::norm(int)"), "norm");
    }
}
