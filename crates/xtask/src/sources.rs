//! What a source file must and must not hold.
//!
//! Reads text, not syntax: a rule here is a word that is easy to find and hard to need by accident.
//! Where programs are started from is the first of them; see [`MAY_RUN_PROGRAMS`].

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where the product may start programs of the machine: the makers of guests, the agent inside them, and
/// `proximity open`, which starts a browser. Everything else reaches a node or a guest through these.
const MAY_RUN_PROGRAMS: &[&str] = &[
    "crates/agent/",
    "crates/backends/src/channel",
    "crates/backends/src/image",
    "crates/backends/src/lxc",
    "crates/backends/src/microvm",
    "crates/backends/src/node_network",
    "crates/backends/src/program",
    "crates/cli/src/open",
    "crates/testbed/",
    "crates/xtask/",
];

/// The longest source file, in lines; a longer one hides a second idea.
const LONGEST: usize = 600;

/// Files that are longer because they are tables.
const TABLES: &[&str] = &[];

/// Words that have no place in any source file, tests included, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("todo", "!("), "finish it, or leave it out"),
    (concat!("unimplemented", "!("), "finish it, or leave it out"),
    (
        concat!("#[", "allow("),
        "write #[expect(lint, reason = \"…\")]",
    ),
    (
        concat!("#![", "allow("),
        "write #![expect(lint, reason = \"…\")]",
    ),
    (
        concat!("danger_", "accept_invalid"),
        "peers are verified by CA or by pinned fingerprint",
    ),
];

/// A test that does not run by itself, but as a process of another one, says so in this way:
/// `…ignore = "a child of the_other_test"]`, and the other one is in the same file.
const IGNORED: &str = concat!("#[", "ignore");
const CHILD: &str = concat!("#[", "ignore = \"a child of ");

/// Findings in every `.rs` file below `root/crates`.
pub fn findings_in_tree(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    collect(&root.join("crates"), &mut files)?;
    files.sort();
    anyhow::ensure!(!files.is_empty(), "no source below {}", root.display());
    let mut findings = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let path = file.strip_prefix(root).unwrap_or(&file);
        let path = path.to_str().context("a path is not UTF-8")?;
        findings.extend(findings_in(path, &text));
    }
    Ok(findings)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .with_context(|| format!("read {}", path.display()))?;
        if kind.is_dir() && entry.file_name() != "target" {
            collect(&path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Findings in one file; `path` is relative to the root, with `/` between its parts.
pub fn findings_in(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (word, instead) in FORBIDDEN {
            if line.contains(word) {
                findings.push(format!("{path}:{}: {word}: {instead}", number + 1));
            }
        }
    }
    for (number, _) in (1..)
        .zip(text.lines())
        .filter(|(_, line)| ignores(line, text))
    {
        findings.push(format!(
            "{path}:{number}: an ignored test: a test runs or is removed; one that can't run here says `SKIPPED: why`"
        ));
    }
    let lines = text.lines().count();
    if lines > LONGEST && !TABLES.contains(&path) {
        findings.push(format!(
            "{path}: {lines} lines, at most {LONGEST}: name the second idea and move it out"
        ));
    }
    if is_test(path, text) {
        return findings;
    }
    if !text.starts_with("//!") {
        findings.push(format!(
            "{path}:1: opens without //!: say what the module is for, what it owns, what it never does"
        ));
    }
    if !MAY_RUN_PROGRAMS.iter().any(|place| path.starts_with(place)) {
        for (number, _) in product_lines(text).filter(|(_, line)| runs_program(line)) {
            findings.push(format!(
                "{path}:{number}: starts a program: only {} may",
                MAY_RUN_PROGRAMS.join(", ")
            ));
        }
    }
    findings
}

fn is_test(path: &str, text: &str) -> bool {
    let mut parts = path.split('/');
    let in_tests =
        parts.any(|part| matches!(part, "tests" | "tests.rs" | "benches" | "examples" | "fuzz"));
    in_tests || text.lines().any(|line| line == "#![cfg(test)]")
}

fn ignores(line: &str, text: &str) -> bool {
    let parent = line
        .trim_start()
        .strip_prefix(CHILD)
        .and_then(|rest| rest.strip_suffix("\"]"));
    let is_child = parent.is_some_and(|parent| text.contains(&format!("fn {parent}(")));
    line.contains(IGNORED) && !is_child
}

fn runs_program(line: &str) -> bool {
    let code = line.trim_start();
    let imports = code.contains("process::{") && code.contains("Command");
    !code.starts_with("//")
        && (imports || code.contains("Command::new(") || code.contains("process::Command"))
}

/// The numbered lines outside the file's own test modules, as rustfmt sets them.
fn product_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut marked = false;
    let mut in_tests = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        if in_tests {
            in_tests = *line != "}";
            return false;
        }
        in_tests = marked && line.starts_with("mod ") && line.ends_with('{');
        marked = *line == "#[cfg(test)]" || (marked && line.starts_with("#["));
        !in_tests
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expect: &[&str]) {
        let found = findings_in(path, text);
        assert_eq!(found.len(), expect.len(), "{path}: {found:?}");
        for (finding, expected) in found.iter().zip(expect) {
            assert!(finding.contains(expected), "{finding} lacks {expected}");
        }
    }

    #[test]
    fn programs_start_only_where_they_may() {
        for line in [
            "let child = Command::new(\"ip\");",
            "use std::process::Command;",
            "use tokio::process::{Child, Command};",
            "let child = std::process::Command::new(program);",
        ] {
            let text = format!("//! A module.\n\n{line}\n");
            check(
                "crates/engine/src/x.rs",
                &text,
                &["x.rs:3: starts a program"],
            );
            check("crates/backends/src/proxmox/x.rs", &text, &[":3:"]);
            check("crates/backends/src/lxc/x.rs", &text, &[]);
            check("crates/backends/src/program.rs", &text, &[]);
            check("crates/agent/src/x.rs", &text, &[]);
            check("crates/cli/src/open.rs", &text, &[]);
            check("crates/engine/tests/it/x.rs", &text, &[]);
        }
        let comment = "//! A module.\n// Command::new() is what is never called here.\n";
        check("crates/engine/src/x.rs", comment, &[]);
    }

    #[test]
    fn test_modules_may_start_programs_and_what_follows_them_may_not() {
        let text = "//! A module.\n#[cfg(test)]\nmod fake;\nfn a() { Command::new(x); }\n\
                    #[cfg(test)]\n#[expect(x)]\nmod tests {\n    Command::new(x)\n}\nfn b() { Command::new(x); }\n";
        check("crates/engine/src/x.rs", text, &["x.rs:4:", "x.rs:10:"]);
    }

    #[test]
    fn forbidden_words_are_found_in_tests_too() {
        for (word, _) in FORBIDDEN {
            let text = format!("//! A module.\n{word}\n");
            check("crates/api/src/lib.rs", &text, &["lib.rs:2: "]);
            check("crates/api/tests/it/main.rs", &text, &["main.rs:2: "]);
        }
    }

    #[test]
    fn a_test_runs_by_itself_or_as_the_child_of_another() {
        let path = "crates/api/tests/it/x.rs";
        let ignored =
            |reason: &str| format!("fn parent() {{}}\n{IGNORED}{reason}]\nfn child() {{}}\n");
        check(path, &ignored(""), &["x.rs:2: an ignored test"]);
        check(path, &ignored(" = \"slow\""), &["x.rs:2:"]);
        check(path, &ignored(" = \"a child of nobody\""), &["x.rs:2:"]);
        check(path, &ignored(" = \"a child of parent\""), &[]);
    }

    #[test]
    fn every_module_says_what_it_is() {
        check("crates/api/src/x.rs", "use std::fs;\n", &["without //!"]);
        check("crates/api/src/x.rs", "", &["without //!"]);
        check("crates/api/build.rs", "fn main() {}\n", &["without //!"]);
        check("crates/api/tests/it/x.rs", "use std::fs;\n", &[]);
        check("crates/api/src/x/tests.rs", "use std::fs;\n", &[]);
    }

    #[test]
    fn long_files_are_found() {
        let text = "//! A line.\n".repeat(LONGEST);
        check("crates/api/src/x.rs", &text, &[]);
        check("crates/api/src/x.rs", &(text + "\n"), &["601 lines"]);
    }
}
