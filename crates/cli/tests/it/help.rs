//! Help texts, and what is said to a wrong command line.

use crate::proximity;

#[test]
fn help_texts() {
    let mut all = String::new();
    for line in [
        "",
        "serve",
        "up",
        "down",
        "status",
        "doctor",
        "infrastructure",
        "app",
        "app catalog",
        "app deploy",
        "app delete",
        "app logs",
        "exec",
        "shell",
        "cp",
        "forward",
        "open",
        "route",
        "route add",
        "port publish",
        "dns",
        "dns setup",
        "lease reserve",
        "appliance ca",
        "image build",
        "operation",
        "operation watch",
        "appliance password",
        "audit tail",
        "audit verify",
        "remote",
        "remote exec",
        "remote shell",
        "remote forward",
        "remote trust",
        "remote keys",
        "remote keys rotate",
        "config check",
        "completions",
    ] {
        let words: Vec<&str> = line
            .split(' ')
            .filter(|w| !w.is_empty())
            .chain(["--help"])
            .collect();
        let ran = proximity("", &words);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{line}");
        let text = if line.is_empty() {
            ran.out().to_owned()
        } else {
            without_globals(ran.out())
        };
        all.push_str(&format!("$ proximity {}\n{text}\n", words.join(" ")));
    }
    insta::assert_snapshot!(all);
}

/// The global options stand in every text; once is enough to look at.
fn without_globals(text: &str) -> String {
    let is_global = |paragraph: &&str| {
        [
            "Global options:",
            "      --config",
            "      --json",
            "  -q, --quiet",
        ]
        .iter()
        .any(|start| paragraph.starts_with(start))
    };
    let paragraphs: Vec<&str> = text.split("\n\n").filter(|p| !is_global(p)).collect();
    paragraphs.join("\n\n").trim_end().to_owned() + "\n"
}

#[test]
fn a_wrong_word_gets_the_right_one_suggested() {
    let ran = proximity("", &["ap", "list"]);
    assert_eq!((ran.code, ran.out()), (Some(2), ""));
    assert!(ran.stderr.contains("'app'"), "{}", ran.stderr);
    let ran = proximity("", &["app", "deplo", "nginx", "--json"]);
    assert_eq!(ran.code, Some(2));
    assert_eq!(ran.json()["error"]["code"], "usage");
    assert!(ran.stderr.contains("'deploy'"), "{}", ran.stderr);
}

#[test]
fn wrong_names_are_refused_before_anything_is_sent() {
    let ran = proximity("http://127.0.0.1:1", &["app", "show", "../x"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr.contains("is not a valid instance name"),
        "{}",
        ran.stderr
    );
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = proximity("", &["completions", shell]);
        assert_eq!(ran.code, Some(0), "{shell}");
        assert!(ran.out().contains("infrastructure"), "{shell}");
    }
}
