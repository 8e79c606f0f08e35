//! Where packages come from: the machine's own apt configuration, never an address of ours.

use std::fs;
use std::path::PathBuf;

use crate::program::Program;

/// Settings of the machine's apt that a build needs too: how to reach its mirrors, and whether their
/// dates are checked.
pub(super) async fn apt_options() -> Vec<String> {
    let dump = Program::new("read apt's configuration", "apt-config")
        .arg("dump")
        .run()
        .await;
    let text = dump
        .map(|d| String::from_utf8_lossy(&d.stdout).into_owned())
        .unwrap_or_default();
    text.lines().filter_map(wanted).collect()
}

fn wanted(line: &str) -> Option<String> {
    let (key, rest) = line.split_once(' ')?;
    let value = rest.strip_suffix(';')?;
    let group = ["Acquire::http", "Acquire::https", "Acquire::Check-"];
    let is_wanted = group.iter().any(|g| key.starts_with(g)) && value != "\"\"";
    (is_wanted && !value.chars().any(char::is_control)).then(|| format!("{key} {value}"))
}

/// The files of the machine's sources that offer the suite's `main`. None: mmdebstrap's own choice.
pub(super) fn of_suite(suite: &str) -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    files.extend(parts.map(|e| e.path()));
    files.sort();
    files
        .into_iter()
        .filter(|f| {
            matches!(
                f.extension().and_then(|e| e.to_str()),
                Some("list" | "sources")
            )
        })
        .filter(|f| fs::read_to_string(f).is_ok_and(|text| offers(&text, suite)))
        .collect()
}

/// Whether a sources file offers the suite itself with Debian's `main`, in either of apt's formats.
fn offers(text: &str, suite: &str) -> bool {
    let mut suites = false;
    let mut main = false;
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.split_first() {
            Some((&"deb", rest)) if rest.contains(&suite) && rest.contains(&"main") => return true,
            Some((&"Suites:", rest)) => suites = rest.contains(&suite),
            Some((&"Components:", rest)) => main = rest.contains(&"main"),
            _ => {}
        }
        if suites && main {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_found_in_both_formats() {
        assert!(offers(
            "deb http://mirror.example/debian bookworm main contrib\n",
            "bookworm"
        ));
        assert!(offers(
            "deb [signed-by=/k] http://m.example/debian bookworm main\n",
            "bookworm"
        ));
        assert!(offers(
            "Types: deb\nURIs: http://m.example\nSuites: bookworm bookworm-updates\nComponents: main\n",
            "bookworm"
        ));
        assert!(!offers(
            "# deb http://mirror.example/debian bookworm main\n",
            "bookworm"
        ));
        assert!(!offers(
            "deb http://tools.example/apt tools-bookworm main\n",
            "bookworm"
        ));
        assert!(!offers(
            "deb http://mirror.example/debian trixie main\n",
            "bookworm"
        ));
    }

    #[test]
    fn only_what_reaches_mirrors_is_taken_over() {
        assert_eq!(
            wanted("Acquire::http::Proxy \"http://p.example:3128\";").unwrap(),
            "Acquire::http::Proxy \"http://p.example:3128\""
        );
        assert!(wanted("APT::Architecture \"amd64\";").is_none());
        assert!(wanted("DPkg::Pre-Install-Pkgs:: \"/bin/x\";").is_none());
        assert!(wanted("Acquire::http \"\";").is_none());
    }
}
