//! `remote exec` and `remote script`: what the command is, on which hosts, and how its end becomes an exit code.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ssh::{Command, Error, ExecutionResult, Hosts, Input, InvalidCommand, Output, Program, Remote};

use super::streams::{self, Written};
use super::{EvidenceArgs, LoginArgs, fleet, remote, shell};
use crate::deploy::pair;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::progress::elapsed;
use crate::quantity;
use crate::screen::Screen;
use crate::signals::Signals;

/// A larger script is refused: it travels as one argument.
const MAX_SCRIPT_BYTES: u64 = 100 * 1024;

/// How a command is run, whatever it is.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Run as this user there (by sudo -n, or by runuser where root logs in)
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Run in this directory [default: the user's home]
    #[arg(short = 'w', long, value_name = "DIR")]
    workdir: Option<String>,
    /// Set a variable; may be given again
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// End the command and all its children after this time [default: default_timeout]
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    timeout: Option<Duration>,
    /// Try a failed connection again this often [default: default_retry]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=20))]
    retry: Option<u32>,
    /// Running it twice does no harm: try again after a lost connection too
    #[arg(long)]
    may_run_twice: bool,
    #[command(flatten)]
    login: LoginArgs,
    #[command(flatten)]
    evidence: EvidenceArgs,
}

/// `remote exec`
#[derive(Debug, Args)]
#[command(
    override_usage = "proximity remote exec [OPTIONS] <VM[,VM…]> -- <ARGV>...\n       proximity remote exec [OPTIONS] --role ROLE -- <ARGV>...\n       proximity remote exec [OPTIONS] --all -- <ARGV>...",
    after_help = "\
Examples:
  proximity remote exec vm01 -- uptime
  proximity remote exec vm01 -u postgres -- psql -c 'select 1'
  proximity remote exec vm01 -- sh -c 'ls | wc -l'     a shell, where one is wanted
  proximity remote exec vm01 -- tar x -C /srv < a.tar  standard input, of any size
  proximity remote exec vm01,vm02 -- df -h /           several hosts: lines are labelled
  proximity remote exec --role ingest -- systemctl is-active nginx
  proximity remote exec -t vm01 -- top                 in a terminal

Arguments arrive as they are, whatever shell the user has there. Ctrl-C and the deadline end the
command and all its children on the host.

Exit codes: the command's own; 124 its deadline passed, 126 it cannot be executed, 127 it is not
there, 128+N signal N ended it; of ours: 125 nothing ran, 123 nobody knows whether it ran or how
it ended (it is never run again by itself). On several hosts 0 if all are 0, else 1."
)]
pub struct ExecArgs {
    /// Hosts by id, and after -- the program and its arguments
    #[arg(value_name = "VM", value_delimiter = ',')]
    vms: Vec<String>,
    /// All hosts of this role
    #[arg(long, value_name = "ROLE", conflicts_with_all = ["vms", "all"])]
    role: Option<String>,
    /// All hosts that may be used
    #[arg(long, conflicts_with = "vms")]
    all: bool,
    /// On several hosts: how many at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// In a terminal, on one host: keys go to the program, and what it shows comes back
    #[arg(short, long, conflicts_with_all = ["no_stdin", "timeout", "retry", "may_run_twice", "role", "all"])]
    tty: bool,
    /// Give the command no standard input (it is read unless it is a terminal)
    #[arg(short = 'n', long)]
    no_stdin: bool,
    #[command(flatten)]
    run: RunArgs,
    /// The program and its arguments; no shell touches them
    #[arg(value_name = "ARGV", required = true, last = true)]
    argv: Vec<String>,
}

/// `remote script`
#[derive(Debug, Args)]
pub struct ScriptArgs {
    /// The host
    vm: String,
    /// The script, a file of this machine
    file: PathBuf,
    /// Its arguments
    #[arg(
        value_name = "ARGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    args: Vec<String>,
    /// Run it with this program
    #[arg(long, value_name = "PATH", default_value = "/bin/sh")]
    shell: String,
    #[command(flatten)]
    run: RunArgs,
}

pub fn invalid(e: InvalidCommand) -> Failure {
    Failure::usage(
        format!("{e}; nothing was run"),
        "see: proximity remote exec --help",
    )
}

impl RunArgs {
    fn command(&self, argv: Vec<String>) -> Result<Command, Failure> {
        let mut command = Command::argv(argv).map_err(invalid)?;
        for (name, value) in &self.env {
            command = command.env(name, value.as_str()).map_err(invalid)?;
        }
        if let Some(dir) = &self.workdir {
            command = command.cwd(dir.as_str()).map_err(invalid)?;
        }
        if let Some(user) = &self.user {
            command = command.user(user).map_err(invalid)?;
        }
        command.timeout = self.timeout;
        command.retry = self.retry;
        command.may_run_twice = self.may_run_twice;
        Ok(command)
    }
}

/// Runs a command.
pub async fn run(args: ExecArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let command = args.run.command(args.argv.clone())?;
    let chosen = chosen(&args, &hosts)?;
    if args.tty {
        let [vm] = chosen.as_slice() else {
            return Err(Failure::usage(
                "a terminal is on one host; nothing was run",
                "name one, or leave --tty out",
            ));
        };
        let (remote, log) = remote(hosts, Some(&args.run.login)).await?;
        let ended = shell::stay(&remote, vm, Program::Command(&command), screen).await;
        log.close().await;
        return ended;
    }
    let (remote, log) = remote(hosts, Some(&args.run.login)).await?;
    let remote = args.run.evidence.of(remote);
    let ended = if let [vm] = chosen.as_slice() {
        one(&remote, vm, &command, args.no_stdin, screen).await
    } else {
        // Standard input cannot be read by several, so nobody reads it.
        fleet::run(&remote, chosen, command, args.parallel, screen).await
    };
    // What was interrupted is on its way into the log.
    log.close().await;
    ended
}

fn chosen(args: &ExecArgs, hosts: &Hosts) -> Result<Vec<String>, Failure> {
    if args.role.is_none() && !args.all {
        let mut seen = std::collections::BTreeSet::new();
        let vms = args.vms.iter().filter(|vm| seen.insert(vm.as_str()));
        let vms: Vec<String> = vms.cloned().collect();
        if vms.is_empty() {
            return Err(Failure::usage(
                "no host is named; nothing was run",
                "name one, or --role, or --all; all of them: proximity remote hosts",
            ));
        }
        return Ok(vms);
    }
    let of_role = |vm: &&ssh::Vm| args.role.is_none() || vm.role == args.role;
    let usable = hosts.vms.values().filter(of_role);
    let usable = usable.filter(|vm| hosts.permitted(vm.id.as_str()).is_ok());
    let ids: Vec<String> = usable.map(|vm| vm.id.to_string()).collect();
    if ids.is_empty() {
        return Err(Failure::usage(
            "no host that may be used is meant; nothing was run",
            "see: proximity remote hosts",
        ));
    }
    Ok(ids)
}

/// Runs a script of this machine.
pub async fn script(args: ScriptArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let meta = fs::metadata(&args.file);
    let too_large = meta.is_ok_and(|meta| meta.len() > MAX_SCRIPT_BYTES);
    let text = fs::read_to_string(&args.file)
        .map_err(|e| Failure::local(format!("{} can't be read: {e}", args.file.display())))?;
    if too_large || text.contains('\0') {
        return Err(Failure::usage(
            format!(
                "{} is no script of at most 100 KiB; nothing was run",
                args.file.display()
            ),
            "upload it and run it there",
        ));
    }
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let mut argv = vec![args.shell.clone(), "-c".to_owned(), text, name.into_owned()];
    argv.extend(args.args.iter().cloned());
    let command = args.run.command(argv)?;
    let (remote, log) = remote(hosts, Some(&args.run.login)).await?;
    let remote = args.run.evidence.of(remote);
    let ended = one(&remote, &args.vm, &command, true, screen).await;
    log.close().await;
    ended
}

/// On one host: its streams are ours, its exit code too.
async fn one(
    remote: &Remote,
    vm: &str,
    command: &Command,
    no_stdin: bool,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let input = streams::input(no_stdin);
    if screen.json() {
        let result = tokio::select! {
            result = remote.execute(vm, command, input, Output::Collect) => result?,
            failure = signals.next() => return Err(failure),
        };
        screen.document(&result)?;
        return Ok(told(&result, screen));
    }
    let written = Written::through();
    let ran = through(remote, vm, command, input, &written);
    let result = tokio::select! {
        result = ran => result,
        failure = signals.next() => return Err(failure),
    };
    written.end().await?;
    Ok(told(&result?, screen))
}

async fn through(
    remote: &Remote,
    vm: &str,
    command: &Command,
    input: Input,
    written: &Written,
) -> Result<ExecutionResult, Error> {
    let output = Output::Stream(written.to.clone());
    remote.execute(vm, command, input, output).await
}

/// Says what a person should hear, and gives the exit code.
pub fn told(result: &ExecutionResult, screen: &Screen) -> Exit {
    for warning in &result.warnings {
        screen.warn(&format!("proximity: {}: {warning}", result.vm_id));
    }
    if result.timed_out {
        let took = elapsed(Duration::from_secs_f64(result.execution_time.max(0.0)));
        screen.warn(&format!(
            "proximity: {}: the deadline ended the command and all its children after {took}",
            result.vm_id
        ));
        return Exit::DEADLINE;
    }
    if result.truncated {
        screen.warn("proximity: output was dropped");
    }
    Exit::of_command(result.exit_code)
}
