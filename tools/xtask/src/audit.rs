//! Licences of the dependencies.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cargo, root};

/// Licences that an Apache-2.0 program may link.
const ALLOWED: [&str; 14] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "0BSD",
    "CC0-1.0",
    "BSL-1.0",
    "Unlicense",
    "NCSA",
];

/// Fails for a dependency whose licence expression cannot be met by [`ALLOWED`].
pub fn run() -> Result<()> {
    let output = cargo(&["metadata", "--format-version=1", "--locked"]).current_dir(root()).output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut refused = Vec::new();
    for package in packages {
        let name = format!("{} {}", package["name"], package["version"]).replace('"', "");
        match package["license"].as_str() {
            Some(licence) if allowed(licence) => {}
            Some(licence) => refused.push(format!("{name}: {licence}")),
            None => refused.push(format!("{name}: no licence expression")),
        }
        if package["source"].as_str().is_some_and(|source| !source.starts_with("registry+")) {
            refused.push(format!("{name}: not from a registry"));
        }
    }
    if !refused.is_empty() {
        bail!("dependencies that may not be used:\n  {}", refused.join("\n  "));
    }
    println!("{} packages, all licences allowed", packages.len());
    Ok(())
}

/// An SPDX expression without nested meaning: any alternative of which every part is allowed.
fn allowed(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], " ").replace('/', " OR ");
    if flat.contains(" AND ") && flat.contains(" OR ") {
        // `(A OR B) AND C`: every factor needs an allowed alternative.
        return expression.split(" AND ").all(|factor| allowed(factor.trim_matches(['(', ')', ' '])));
    }
    let known =
        |part: &str| ALLOWED.contains(&part.split_whitespace().collect::<Vec<_>>().join(" ").as_str());
    if flat.contains(" AND ") { flat.split(" AND ").all(known) } else { flat.split(" OR ").any(known) }
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn expressions_are_met_or_not() {
        assert!(allowed("MIT OR Apache-2.0"));
        assert!(allowed("MIT/Apache-2.0"));
        assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(allowed("GPL-3.0 OR MIT"));
        assert!(!allowed("GPL-3.0"));
        assert!(!allowed("MIT AND GPL-3.0"));
        assert!(!allowed("(MIT OR Apache-2.0) AND MPL-2.0"));
    }
}
