//! What the machine says about memory, for reports and for the check whether an engine file fits; the one module
//! of this crate that knows an operating system.

/// Highest resident memory of this process so far, in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// Memory that can be had without swapping, in bytes, where the system tells.
pub fn available_memory() -> Option<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// A `Name:  123 kB` line of one of Linux's text files; absent elsewhere.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
