//! The rules of this source tree that no compiler checks.
//!
//! [`arrows`] says which crate may use which, [`sources`] what a source file must and must not hold,
//! [`dependencies`] that every dependency is explained. Each is a pure function from text to findings,
//! one line for people each; an empty list is a clean tree. Owns no state and changes no file.

pub mod arrows;
pub mod dependencies;
pub mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// The root of the workspace that this program was built from.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Everything that is wrong with the tree at `root`.
pub fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut findings = arrows::findings(&metadata(root)?)?;
    findings.extend(sources::findings_in_tree(root)?);
    let read = |name: &str| {
        let file = root.join(name);
        fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    };
    findings.extend(dependencies::findings(
        &read("Cargo.toml")?,
        &read("docs/dependencies.md")?,
    )?);
    Ok(findings)
}

/// What `cargo metadata` says of the members of the workspace at `root`, and of nothing else.
pub fn metadata(root: &Path) -> anyhow::Result<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("read the output of cargo metadata")
}
