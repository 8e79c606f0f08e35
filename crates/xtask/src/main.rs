//! `cargo xtask check`: the rules of the source tree, for a person at a terminal.
//!
//! Owns no state. The same rules run as tests of this crate, so `make test` needs no call of it.

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask check    says what breaks a rule of the source tree";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["check"] => check(),
        ["--help" | "-h" | "help"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}

fn check() -> anyhow::Result<ExitCode> {
    let findings = xtask::check(&xtask::root())?;
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("xtask: {} found", findings.len());
    Ok(ExitCode::FAILURE)
}
