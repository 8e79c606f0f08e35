//! `remote shell` and `remote exec -t`: our terminal becomes one on a host.
//!
//! Ours is raw from when the host's is there until this returns, by whichever way. At the beginning of a line `~.`
//! leaves.

use std::io::{self, IsTerminal as _};

use clap::Args;
use ssh::{Chunk, Command, Hosts, Left, Program, Remote, Shown, Typed, Window};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::exec::invalid;
use super::streams::Written;
use super::{LoginArgs, remote};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::session::{Input, start_reading};
use crate::signals::{Signals, received};
use crate::terminal::{Escape, RawMode, size};

/// Becomes the user's own shell as the host knows it; no value of ours is in it.
const LOGIN_SHELL: [&str; 3] = ["/bin/sh", "-c", r#"exec "${SHELL:-/bin/sh}" -l"#];
/// What waits on each side.
const QUEUE: usize = 16;
/// Where nobody says what kind of terminal ours is.
const TERM: &str = "xterm";
/// Where nobody says how large it is.
const WINDOW: Window = Window { rows: 24, cols: 80 };
/// The signal after which a terminal may have been used by others.
const CONTINUED: i32 = 18;

/// `remote shell`
#[derive(Debug, Args)]
#[command(
    override_usage = "proximity remote shell [OPTIONS] <VM> [-- <ARGV>...]",
    after_help = "\
Examples:
  proximity remote shell vm01                     the login shell of the host's user
  proximity remote shell vm01 -u postgres -- psql another user, another program

Every key goes to the host, Ctrl-C too. At the beginning of a line, ~. leaves; ~~ types one ~. What is
left behind gets a hang-up, as on any terminal: nohup and tmux outlive it.

Exit codes: the program's own; 128+N signal N ended it or this command, 130 left by ~.; of ours:
1 failed, 2 wrong use."
)]
pub struct ShellArgs {
    /// The host
    vm: String,
    /// Become this user there (by sudo -n, or by runuser where root logs in)
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    login: LoginArgs,
    /// The program and its arguments instead of the login shell
    #[arg(value_name = "ARGV", last = true)]
    argv: Vec<String>,
}

/// Opens the terminal and stays until it ends.
pub async fn run(args: ShellArgs, hosts: Hosts, screen: &Screen) -> Result<Exit, Failure> {
    let command = match (&args.user, args.argv.as_slice()) {
        (None, []) => None,
        (_, []) => Some(Command::argv(LOGIN_SHELL).map_err(invalid)?),
        (_, argv) => Some(Command::argv(argv.iter().map(String::as_str)).map_err(invalid)?),
    };
    let command = match (command, &args.user) {
        (Some(command), Some(user)) => Some(command.user(user).map_err(invalid)?),
        (command, _) => command,
    };
    let (remote, log) = remote(hosts, Some(&args.login)).await?;
    let program = command.as_ref().map_or(Program::Shell, Program::Command);
    let ended = stay(&remote, &args.vm, program, screen).await;
    // What was interrupted is on its way into the log.
    log.close().await;
    ended
}

/// In a terminal until it ends; its exit code.
pub async fn stay(
    remote: &Remote,
    vm: &str,
    program: Program<'_>,
    screen: &Screen,
) -> Result<Exit, Failure> {
    if !io::stdin().is_terminal() || screen.json() {
        return Err(Failure::usage(
            "a terminal on a host needs one on standard input; nothing was run",
            format!("for scripts: `proximity remote exec {vm} -- sh -c '…'`"),
        ));
    }
    let mut signals = Signals::new()?;
    let term = std::env::var("TERM").unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    let named = !term.is_empty() && term.len() <= 64 && term.chars().all(plain);
    let term = if named { term.as_str() } else { TERM };
    let written = Written::through();
    let (to, typed) = mpsc::channel(QUEUE);
    let (shown, screen_of_host) = mpsc::channel(QUEUE);
    let (open, opened) = oneshot::channel();
    let showing = tokio::spawn(show(screen_of_host, open, written.to.clone()));
    let terminal = remote.terminal(vm, program, (term, window()), typed, shown);
    let left = tokio::select! {
        left = terminal => left.map_err(Failure::from),
        failure = keys(opened, to) => Err(failure),
        failure = signals.next() => Err(failure),
    };
    // It ends with the host's terminal, which is gone, and when all that came is shown.
    let _: Result<(), _> = showing.await;
    written.end().await?;
    match left? {
        Left::Ended(code) => Ok(Exit::of_command(code)),
        Left::Gone => {
            screen.note("session closed");
            Ok(Exit::INTERRUPTED)
        }
    }
}

fn window() -> Window {
    size().map_or(WINDOW, |size| Window {
        rows: size.rows,
        cols: size.cols,
    })
}

/// What the host shows, to our standard output.
async fn show(mut from: mpsc::Receiver<Shown>, open: oneshot::Sender<()>, to: mpsc::Sender<Chunk>) {
    let mut open = Some(open);
    while let Some(shown) = from.recv().await {
        match shown {
            Shown::Opened => {
                // Nobody waits for it when the session is being left.
                let _: Option<Result<(), ()>> = open.take().map(|open| open.send(()));
            }
            Shown::Output(data) => {
                if to.send(Chunk::Stdout(data)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// From when the host's terminal is there, ours is raw and keys go there. Returns only when that fails; leaving drops
/// the sender.
async fn keys(opened: oneshot::Receiver<()>, to: mpsc::Sender<Typed>) -> Failure {
    if opened.await.is_err() {
        return std::future::pending().await;
    }
    let raw = match RawMode::enter() {
        Ok(raw) => raw,
        Err(e) => return Failure::local(format!("cannot use the terminal: {e}")),
    };
    let mut typed = match start_reading(Input::Terminal) {
        Ok(typed) => typed,
        Err(failure) => return failure,
    };
    let mut escape = Escape::Start;
    let mut resized: Option<Signal> = signal(SignalKind::window_change()).ok();
    let mut continued: Option<Signal> = signal(SignalKind::from_raw(CONTINUED)).ok();
    loop {
        let mut left = false;
        let next = tokio::select! {
            piece = typed.recv() => match piece {
                Some(Ok(bytes)) => {
                    let (passed, leaves) = escape.pass(&bytes);
                    left = leaves;
                    Typed::Keys(passed.into())
                }
                Some(Err(e)) => return Failure::local(format!("cannot read standard input: {e}")),
                // The terminal is gone.
                None => break,
            },
            () = received(&mut resized) => Typed::Resize(window()),
            () = received(&mut continued) => {
                // A terminal that is gone says so by a signal.
                let _: io::Result<()> = raw.again();
                Typed::Resize(window())
            }
        };
        if to.send(next).await.is_err() || left {
            break;
        }
    }
    drop(to);
    // Raw until the host's terminal is closed: the guard lives as long as this waits.
    std::future::pending().await
}
