//! Which crate of the workspace may depend on which.
//!
//! The table is the architecture: a crate that wants an arrow that is not in it needs another design,
//! or a change here that a reviewer sees. Owns nothing; reads the output of `cargo metadata --no-deps`.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::Value;

/// Crates that belong to the product, in the order in which they build on each other.
const PRODUCT: &[&str] = &[
    "api",
    "wire",
    "audit",
    "process-tree",
    "bulk-stream",
    "agent",
    "link",
    "ssh",
    "pve",
    "engine",
    "backends",
    "store",
    "server",
    "client",
];

/// Only tests may use this one.
const TESTBED: &str = "testbed";

/// What a crate may use in its own code and its build script.
enum May {
    /// These crates.
    Use(&'static [&'static str]),
    /// Any crate.
    UseAnything,
}

const TABLE: &[(&str, May)] = &[
    ("api", May::Use(&[])),
    ("wire", May::Use(&["api"])),
    ("audit", May::Use(&[])),
    ("process-tree", May::Use(&[])),
    ("bulk-stream", May::Use(&[])),
    (
        "agent",
        May::Use(&["api", "wire", "process-tree", "bulk-stream"]),
    ),
    ("link", May::Use(&["api", "wire", "bulk-stream"])),
    ("ssh", May::Use(&["audit"])),
    ("pve", May::Use(&[])),
    ("engine", May::Use(&["api", "audit", "wire"])),
    (
        "backends",
        May::Use(&[
            "api",
            "engine",
            "wire",
            "link",
            "ssh",
            "pve",
            "process-tree",
        ]),
    ),
    ("store", May::Use(&["api", "engine"])),
    (
        "server",
        May::Use(&["api", "engine", "audit", "bulk-stream"]),
    ),
    ("client", May::Use(&["api"])),
    ("cli", May::Use(PRODUCT)),
    (TESTBED, May::UseAnything),
    ("xtask", May::UseAnything),
];

/// Everything in the metadata that breaks the table. Dev-dependencies are free: tests may use any crate.
pub fn findings(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let packages = list(metadata, "packages")?;
    let members: BTreeSet<&str> = packages
        .iter()
        .map(|package| text(package, "name"))
        .collect::<anyhow::Result<_>>()?;
    let mut findings = Vec::new();
    for package in packages {
        let name = text(package, "name")?;
        let Some((_, may)) = TABLE.iter().find(|(row, _)| *row == name) else {
            findings.push(format!(
                "crate {name} is unknown: add it to the table in crates/xtask/src/arrows.rs"
            ));
            continue;
        };
        let mut used = BTreeSet::new();
        for dependency in list(package, "dependencies")? {
            let target = text(dependency, "name")?;
            // "kind" is null for a normal dependency, else "dev" or "build".
            let in_tests = dependency.get("kind").and_then(Value::as_str) == Some("dev");
            if members.contains(target) && !in_tests {
                used.insert(target);
            }
        }
        findings.extend(
            used.into_iter()
                .filter_map(|target| refusal(name, may, target)),
        );
    }
    Ok(findings)
}

fn refusal(name: &str, may: &May, target: &str) -> Option<String> {
    let allowed = match may {
        May::UseAnything => return None,
        May::Use(allowed) => *allowed,
    };
    if allowed.contains(&target) {
        return None;
    }
    if target == TESTBED {
        return Some(format!(
            "crate {name} may use testbed in its tests only: move it to [dev-dependencies]"
        ));
    }
    let allowed = if allowed.is_empty() {
        "no other crate".to_owned()
    } else {
        allowed.join(", ")
    };
    Some(format!(
        "crate {name} may not depend on {target}: by the table in crates/xtask/src/arrows.rs it may use {allowed}"
    ))
}

fn list<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a Vec<Value>> {
    value
        .get(key)
        .and_then(Value::as_array)
        .with_context(|| format!("cargo metadata: no list `{key}`"))
}

fn text<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    value
        .get(key)
        .and_then(Value::as_str)
        .with_context(|| format!("cargo metadata: no text `{key}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Findings in a workspace of `api`, `engine`, `testbed` and `name`, which has one dependency.
    fn check(name: &str, target: &str, kind: Option<&str>) -> Vec<String> {
        let others = ["api", "engine", "testbed"].into_iter();
        let mut packages: Vec<Value> = others
            .filter(|other| *other != name)
            .map(|other| json!({ "name": other, "dependencies": [] }))
            .collect();
        packages.push(json!({
            "name": name,
            "dependencies": [{ "name": target, "kind": kind }, { "name": "serde", "kind": null }],
        }));
        findings(&json!({ "packages": packages })).unwrap()
    }

    #[test]
    fn arrows_of_the_table_pass() {
        for (from, to) in [
            ("store", "engine"),
            ("cli", "engine"),
            ("testbed", "engine"),
            ("xtask", "api"),
        ] {
            assert!(check(from, to, None).is_empty(), "{from} to {to}");
        }
    }

    #[test]
    fn other_arrows_are_found() {
        for (from, to, kind) in [
            ("api", "engine", None),
            ("client", "engine", None),
            ("engine", "engine", Some("build")),
            ("cli", "testbed", None),
        ] {
            let found = check(from, to, kind);
            assert_eq!(found.len(), 1, "{from} to {to}: {found:?}");
            assert!(
                found[0].contains(from) && found[0].contains(to),
                "{found:?}"
            );
        }
    }

    #[test]
    fn tests_may_use_any_crate() {
        assert!(check("api", "testbed", Some("dev")).is_empty());
        assert!(check("client", "engine", Some("dev")).is_empty());
    }

    #[test]
    fn a_crate_without_a_row_is_found() {
        let found = check("misc", "api", None);
        assert!(found[0].contains("add it to the table"), "{found:?}");
    }

    #[test]
    fn metadata_of_another_shape_is_an_error() {
        assert!(findings(&json!({})).is_err());
        assert!(findings(&json!({ "packages": [{ "name": "api" }] })).is_err());
    }

    #[test]
    fn the_table_names_no_crate_that_has_no_row() {
        for (name, may) in TABLE {
            let May::Use(allowed) = may else { continue };
            for target in *allowed {
                assert!(
                    TABLE.iter().any(|(row, _)| row == target),
                    "{name}: {target}"
                );
            }
        }
    }
}
