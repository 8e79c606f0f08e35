//! Every dependency of the workspace is explained in `docs/dependencies.md`, with the version that is asked for.
//!
//! Owns nothing. Reads the one-line entries of `[workspace.dependencies]` and the rows of the page's tables.

use std::collections::BTreeMap;

use anyhow::Context;

const SECTION: &str = "[workspace.dependencies]";

/// Dependencies of the manifest that have no row on the page, or one with another version.
pub fn findings(manifest: &str, page: &str) -> anyhow::Result<Vec<String>> {
    let rows = rows(page);
    let mut findings = Vec::new();
    for (name, version) in required(manifest)? {
        match rows.get(name) {
            None => findings.push(format!(
                "docs/dependencies.md: no row for {name}: say why it is needed and what else was considered"
            )),
            Some(row) if *row != version => findings.push(format!(
                "docs/dependencies.md: the row of {name} says version {row}, Cargo.toml {version}"
            )),
            Some(_) => {}
        }
    }
    Ok(findings)
}

/// Name and version of each dependency that is not a crate of ours.
fn required(manifest: &str) -> anyhow::Result<Vec<(&str, &str)>> {
    let (_, section) = manifest
        .split_once(SECTION)
        .with_context(|| format!("Cargo.toml has no {SECTION}"))?;
    let entries = section
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut required = Vec::new();
    for entry in entries {
        let (name, value) = entry
            .split_once(" = ")
            .with_context(|| format!("Cargo.toml: `{entry}` is no entry on one line"))?;
        if value.contains("path = ") {
            continue;
        }
        let version = match value.split_once("version = ") {
            Some((_, rest)) => rest,
            None => value,
        };
        let version = version
            .split('"')
            .nth(1)
            .with_context(|| format!("Cargo.toml: no version in `{entry}`"))?;
        required.push((name, version));
    }
    Ok(required)
}

/// First cell without backticks to second cell, for every row of every table.
fn rows(page: &str) -> BTreeMap<&str, &str> {
    page.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            Some((cells.next()?.trim_matches('`'), cells.next()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[workspace]\n\n# Why.\n[workspace.dependencies]\napi = { path = \"crates/api\" }\n\n\
        bytes = \"1.12\"\nclap = { version = \"4.6\", features = [\"std\"] }\n\n[profile.release]\nlto = \"thin\"\n";

    #[test]
    fn explained_dependencies_pass() {
        let page = "| crate | version |\n|---|---|\n| `bytes` | 1.12 | x |\n| `clap` | 4.6 | x |\n";
        assert_eq!(findings(MANIFEST, page).unwrap(), [""; 0]);
    }

    #[test]
    fn a_missing_row_and_another_version_are_found() {
        let found = findings(MANIFEST, "| `clap` | 4.5 |\n").unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("no row for bytes"), "{found:?}");
        assert!(found[1].contains("clap says version 4.5"), "{found:?}");
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_an_error() {
        for bad in [
            "",
            "[workspace.dependencies]\nx = 1\n",
            "[workspace.dependencies]\nx\n",
        ] {
            assert!(findings(bad, "").is_err(), "{bad:?}");
        }
    }
}
