//! `exec`: runs a command in an instance. Standard input, output, error and the exit code pass
//! through unchanged; what goes wrong on our side has codes of its own and is said on standard
//! error.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _};
use std::time::Duration;

use api::InstanceName;
use api::exec::{ExecRequest, ExecResult};
use clap::Args;
use client::{Client, STDIN_LIMIT};

use crate::deploy::pair;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::progress::elapsed;
use crate::quantity;
use crate::screen::Screen;

/// `exec`
#[derive(Debug, Args)]
#[command(
    override_usage = "proximity exec [OPTIONS] <NAME> -- <ARGV>...",
    after_help = "\
Examples:
  proximity exec web -- nginx -v
  proximity exec web -u www-data -w /srv -e LEVEL=debug -- ./job --fast
  proximity exec web -- sh -c 'ls | wc -l'        a shell, where one is wanted
  proximity exec db -- psql < dump.sql            standard input, at most 8 MiB

Exit codes: the command's own; 124 its deadline passed, 126 it cannot be executed, 127 it is not
there, 128+N signal N ended it; of ours: 125 nothing ran, 123 nobody knows whether it ran or how
it ended (it is never run again by itself)."
)]
pub struct ExecArgs {
    /// The instance
    pub name: InstanceName,
    /// Run as this user (name or number) [default: root]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Run in this directory [default: the user's home]
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Set a variable; may be given again
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// End the command and all its children after this time [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    pub timeout: Option<Duration>,
    /// Use this channel only, not the instance's own list
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<String>,
    /// Give the command no standard input (it is read unless it is a terminal)
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
    /// Give the command a terminal (comes later)
    #[arg(short, long)]
    pub tty: bool,
    /// The program and its arguments; no shell touches them
    #[arg(value_name = "ARGV", required = true, trailing_var_arg = true)]
    pub argv: Vec<String>,
}

/// Runs a command in an instance.
pub async fn run(client: &Client, args: ExecArgs, screen: &Screen) -> Result<Exit, Failure> {
    if args.tty {
        return Err(Failure::usage(
            "`exec -t` comes in a later version; nothing was run",
            "leave -t out: input and output pass through without a terminal",
        ));
    }
    let stdin = if args.no_stdin {
        None
    } else {
        standard_input()?
    };
    let (stdin, stdin_encoding) = stdin.map(client::encoded).unzip();
    let request = ExecRequest {
        argv: args.argv,
        command: None,
        env: args.env.into_iter().collect::<BTreeMap<_, _>>(),
        cwd: args.workdir,
        user: args.user,
        stdin,
        stdin_encoding,
        timeout_ms: args
            .timeout
            .map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        channel: args.channel,
    };
    let result = client.exec(&args.name, &request).await?;
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
    if screen.json() {
        screen.document(&result)?;
        return Ok(exit);
    }
    pass_on(result)?;
    Ok(exit)
}

/// What is waiting on standard input, unless a person would have to type it.
fn standard_input() -> Result<Option<Vec<u8>>, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(None);
    }
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

/// Writes both streams as the command wrote them. A reader that went away does not change the
/// command's exit code.
fn pass_on(result: ExecResult) -> Result<(), Failure> {
    let decoded = |text, encoding| {
        client::bytes_of(text, encoding).map_err(|e| Failure::OutcomeUnknown {
            what: format!("the controller sent output that cannot be read: {e}"),
        })
    };
    let stdout = decoded(result.stdout, result.stdout_encoding)?;
    let stderr = decoded(result.stderr, result.stderr_encoding)?;
    let written = write_all(io::stdout().lock(), &stdout);
    write_all(io::stderr().lock(), &stderr).and(written)
}

fn write_all(mut to: impl io::Write, bytes: &[u8]) -> Result<(), Failure> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(e)),
        _ => Ok(()),
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
