//! Runs the real binary against a controller made of a few lines, and looks at what a user and a
//! script see: output, exit codes, and what was sent.

#![cfg(test)]

mod audit;
mod controller;
mod copy;
mod exec;
mod exec_json;
mod forward;
mod guest;
mod help;
mod output;
mod password;
mod progress;
mod reach;
mod remote;
mod remote_keys;
mod shell;
#[expect(dead_code, reason = "the tests of the crate ssh use more of it")]
#[path = "../../../ssh/tests/it/sshd.rs"]
mod sshd;
mod terminal;

use std::io::Write as _;
use std::process::{Command, Stdio};

/// What a run of the binary left behind.
struct Ran {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("{e}: {:?}", self.out()))
    }
}

/// The binary with an empty environment.
fn command(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proximity"));
    command.args(args).env_clear().stdin(Stdio::null());
    if !url.is_empty() {
        command.env("PROXIMITY_URL", url);
    }
    command
}

/// Runs the binary with nothing on its standard input.
fn proximity(url: &str, args: &[&str]) -> Ran {
    finish(command(url, args), None)
}

/// Runs the binary with `stdin` on its standard input.
fn proximity_with(url: &str, args: &[&str], stdin: &[u8]) -> Ran {
    finish(command(url, args), Some(stdin))
}

fn finish(mut command: Command, stdin: Option<&[u8]>) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if stdin.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().unwrap();
    if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), stdin) {
        let bytes = bytes.to_vec();
        // The binary may stop reading before all is written.
        std::thread::spawn(move || pipe.write_all(&bytes));
    }
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
