//! `exec`: runs a command in an instance. Standard input, output, error and the exit code pass
//! through unchanged, as they come; what goes wrong on our side has codes of its own and is said on
//! standard error.
//!
//! With `--json` it is one call with one answer; otherwise a session, which ends with us.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _};
use std::time::Duration;

use api::InstanceName;
use api::exec::{ExecRequest, ExecResult};
use api::session::{SessionStart, WindowSize};
use clap::Args;
use client::{Client, STDIN_LIMIT};

use crate::deploy::pair;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::progress::elapsed;
use crate::quantity;
use crate::screen::Screen;
use crate::session::{self, Input};
use crate::terminal;

/// `exec`
#[derive(Debug, Args)]
#[command(
    override_usage = "proximity exec [OPTIONS] <NAME> -- <ARGV>...",
    after_help = "\
Examples:
  proximity exec web -- nginx -v
  proximity exec web -u www-data -w /srv -e LEVEL=debug -- ./job --fast
  proximity exec web -- sh -c 'ls | wc -l'        a shell, where one is wanted
  proximity exec db -- psql < dump.sql            standard input, of any size
  proximity exec web -t -- top                    a terminal; ~. at the beginning of a line leaves

Ctrl-C ends the command and all its children. With --json input and output are at most 8 MiB each.

Exit codes: the command's own; 124 its deadline passed, 126 it cannot be executed, 127 it is not
there, 128+N signal N ended it; of ours: 125 nothing ran, 123 nobody knows whether it ran or how
it ended (it is never run again by itself)."
)]
pub struct ExecArgs {
    /// The instance
    pub name: InstanceName,
    /// Use this channel only, not the instance's own list
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<String>,
    #[command(flatten)]
    pub command: CommandArgs,
}

/// A command and what it is given.
#[derive(Debug, Args)]
pub struct CommandArgs {
    /// Run as this user (name or number) [default: root]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Run in this directory [default: the user's home]
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Set a variable; may be given again
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// End the command and all its children after this time [default: none; 10m with --json]
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    pub timeout: Option<Duration>,
    /// Give the command no standard input (it is read unless it is a terminal)
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// The program and its arguments; no shell touches them
    #[arg(value_name = "ARGV", required = true, trailing_var_arg = true)]
    pub argv: Vec<String>,
}

/// Runs a command in an instance.
pub async fn run(client: &Client, args: ExecArgs, screen: &Screen) -> Result<Exit, Failure> {
    let input = args.command.input(screen)?;
    args.command
        .run(client, &args.name, args.channel, input, false, screen)
        .await
}

impl CommandArgs {
    /// Runs it to its end; its exit code. With `warned`, it is said when its sandbox is about to end.
    pub async fn run(
        self,
        client: &Client,
        name: &InstanceName,
        channel: Option<String>,
        input: Input,
        warned: bool,
        screen: &Screen,
    ) -> Result<Exit, Failure> {
        let request = ExecRequest {
            argv: self.argv,
            env: self.env.into_iter().collect::<BTreeMap<_, _>>(),
            cwd: self.workdir,
            user: self.user,
            timeout_ms: self
                .timeout
                .map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
            channel,
            ..ExecRequest::default()
        };
        if screen.json() {
            return call(client, name, request, input, screen).await;
        }
        let start = start(request, input);
        session::run(client, name, &start, input, warned, screen).await
    }

    /// What it will read; what can't be is refused before anything runs.
    pub fn input(&self, screen: &Screen) -> Result<Input, Failure> {
        input(self.tty, self.no_stdin, screen)
    }
}

fn input(tty: bool, no_stdin: bool, screen: &Screen) -> Result<Input, Failure> {
    let typed = io::stdin().is_terminal();
    match tty {
        true if screen.json() => Err(Failure::usage(
            "a terminal and --json exclude each other; nothing was run",
            "leave one of them out",
        )),
        true if no_stdin || !typed => Err(Failure::usage(
            "-t needs a terminal on standard input; nothing was run",
            "leave -t out: input and output pass through without a terminal",
        )),
        true => Ok(Input::Terminal),
        // Without -t a person would type into nothing.
        false if no_stdin || typed => Ok(Input::None),
        false => Ok(Input::Streamed),
    }
}

/// A session for a command; one with a terminal learns its kind and size.
pub fn start(mut exec: ExecRequest, input: Input) -> SessionStart {
    let tty = (input == Input::Terminal).then(|| {
        let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
        let term = term.unwrap_or_else(|| "xterm".to_owned());
        exec.env.entry("TERM".to_owned()).or_insert(term);
        terminal::size().unwrap_or(WindowSize { rows: 24, cols: 80 })
    });
    SessionStart { exec, tty }
}

/// One call with one answer, printed as JSON.
async fn call(
    client: &Client,
    name: &InstanceName,
    mut request: ExecRequest,
    input: Input,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let stdin = match input {
        Input::Streamed => standard_input()?,
        Input::None | Input::Terminal => None,
    };
    (request.stdin, request.stdin_encoding) = stdin.map(client::encoded).unzip();
    let result = client.exec(name, &request).await?;
    let exit = exit_of(&result)?;
    if result.timed_out {
        let took = elapsed(Duration::from_millis(result.duration_ms));
        screen.warn(&format!(
            "proximity: the deadline ended the command after {took}"
        ));
    }
    if result.truncated {
        screen.warn("proximity: output past 8 MiB was dropped");
    }
    screen.document(&result)?;
    Ok(exit)
}

/// All of standard input.
fn standard_input() -> Result<Option<Vec<u8>>, Failure> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    let read = stdin
        .lock()
        .take(STDIN_LIMIT as u64 + 1)
        .read_to_end(&mut bytes);
    match read {
        // Closed altogether, as some supervisors leave it.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BADF.raw_os_error()) => Ok(None),
        Err(e) => Err(Failure::local(format!(
            "cannot read standard input: {e}; nothing was run"
        ))),
        Ok(_) if bytes.len() > STDIN_LIMIT => Err(Failure::local(
            "standard input is larger than 8 MiB; nothing was run",
        )),
        Ok(_) if bytes.is_empty() => Ok(None),
        Ok(_) => Ok(Some(bytes)),
    }
}

/// The exit code of a command. An answer without a final status is not success.
fn exit_of(result: &ExecResult) -> Result<Exit, Failure> {
    match (result.timed_out, result.exit_code, result.signal) {
        (true, ..) => Ok(Exit::DEADLINE),
        (_, Some(code), None) => Ok(Exit::of_command(code)),
        (_, None, Some(signal)) => Ok(Exit::of_signal(signal)),
        (_, Some(_), Some(_)) | (_, None, None) => Err(Failure::OutcomeUnknown {
            what: "the controller did not say how the command ended".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::exec::Encoding;

    fn result(exit_code: Option<i32>, signal: Option<i32>, timed_out: bool) -> ExecResult {
        ExecResult {
            stdout: String::new(),
            stderr: String::new(),
            stdout_encoding: Encoding::Utf8,
            stderr_encoding: Encoding::Utf8,
            exit_code,
            signal,
            timed_out,
            truncated: false,
            duration_ms: 1,
            channel: "lxc-attach".to_owned(),
        }
    }

    #[test]
    fn every_end_has_its_code() {
        let check = |r: ExecResult, code: u8| {
            let exit = exit_of(&r).unwrap_or_else(|f| f.exec_exit());
            assert_eq!(exit.code(), code, "{r:?}");
        };
        check(result(Some(0), None, false), 0);
        check(result(Some(7), None, false), 7);
        check(result(Some(127), None, false), 127);
        check(result(None, Some(9), false), 137);
        check(result(None, Some(9), true), 124);
        check(result(None, None, true), 124);
        check(result(None, None, false), 123);
        check(result(Some(0), Some(9), false), 123);
    }
}
