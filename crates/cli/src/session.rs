//! Runs one command in a guest with its streams open: what `exec` and `shell` have in common.
//!
//! ```text
//!   thread: standard input ──▶ queue ──▶ feed ──▶ session ──▶ watch ──▶ queue ──▶ thread: standard output
//!                                                                                    and standard error
//! ```
//!
//! Each side has a short queue, so a command that does not read, or a reader of ours that does not, holds
//! back its own side and never the signals. The session is closed on every way out, and with it the
//! command and its whole process tree end. Success needs the command's final event.

use std::io;
use std::thread;
use std::time::Duration;

use api::InstanceName;
use api::exec::{Encoding, ExecEvent};
use api::session::{SessionControl, SessionStart};
use bytes::Bytes;
use client::{Client, SessionEvent, SessionInput, SessionOutput};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::ending;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::progress::elapsed;
use crate::screen::Screen;
use crate::signals::{Signals, received};
use crate::terminal::{self, Escape, RawMode};

/// What is read at once, in bytes: one message of a session.
const PIECE_BYTES: usize = (64 << 10) - 1;
/// Pieces that wait on each side.
const QUEUE: usize = 4;
/// The signal after which a terminal may have been used by others.
const CONTINUED: i32 = 18;
const BROKEN_PIPE: i32 = 13;
/// How often the controller hears that we are there: well within the 45 s after which we would be gone.
const ALIVE_EVERY: Duration = Duration::from_secs(10);

/// What the command reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    None,
    /// Our standard input, byte for byte.
    Streamed,
    /// Keys, from our terminal in raw mode.
    Terminal,
}

/// How a session ended.
enum End {
    /// With the command's final event.
    Command(ExecEvent),
    /// The person left by `~.`.
    Left,
    /// Whoever read our standard output has gone.
    ReaderGone,
}

/// Runs the command to its end; its exit code. With `warned`, whoever waits hears when its sandbox is about
/// to end.
pub async fn run(
    client: &Client,
    name: &InstanceName,
    start: &SessionStart,
    input: Input,
    warned: bool,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let mut signals = Signals::new()?;
    let (to_command, from_command) = tokio::select! {
        opened = client.session(name, start) => opened.map_err(Failure::NothingRan)?,
        failure = signals.next() => return Err(failure),
    };
    let raw = match input {
        Input::Terminal => Some(RawMode::enter().map_err(|e| {
            Failure::local(format!(
                "cannot use the terminal: {e}; the command was ended"
            ))
        })?),
        Input::None | Input::Streamed => None,
    };
    let (output, shown) = start_writing()?;
    let outcome = {
        let mut to_command = to_command;
        let warn = async {
            match warned {
                true => ending::announce(client, name, raw.is_some(), screen).await,
                false => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            end = watch(from_command, output) => end,
            fed = feed(&mut to_command, input, raw.as_ref()) => fed,
            failure = signals.next() => Err(failure),
            never = warn => match never {},
        };
        to_command.close().await;
        outcome
    };
    if let Err(failure @ (Failure::Interrupted { .. } | Failure::Reported(_))) = outcome {
        return Err(failure);
    }
    // All that came is shown, however slow its reader is.
    let shown = tokio::select! {
        shown = shown => shown.unwrap_or(Ok(())),
        failure = signals.next() => return Err(failure),
    };
    drop(raw);
    match (outcome?, shown) {
        (End::Left, _) => {
            screen.note("session closed");
            Ok(Exit::INTERRUPTED)
        }
        (_, Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        (End::ReaderGone, _) => Ok(Exit::of_signal(BROKEN_PIPE)),
        // A reader that went away does not change the command's own exit code.
        (End::Command(event), _) => exit_of(&event, screen),
    }
}

/// The exit code of a final event.
fn exit_of(event: &ExecEvent, screen: &Screen) -> Result<Exit, Failure> {
    match event {
        ExecEvent::Exit {
            timed_out: true,
            duration_ms,
            ..
        } => {
            let took = elapsed(Duration::from_millis(*duration_ms));
            screen.warn(&format!(
                "proximity: the deadline ended the command after {took}"
            ));
            Ok(Exit::DEADLINE)
        }
        ExecEvent::Exit {
            exit_code: Some(code),
            signal: None,
            ..
        } => Ok(Exit::of_command(*code)),
        ExecEvent::Exit {
            exit_code: None,
            signal: Some(signal),
            ..
        } => Ok(Exit::of_signal(*signal)),
        ExecEvent::Error { code, message } => {
            let problem = api::Problem::new(502, code, message.clone());
            let error = client::Error::Problem(Box::new(problem));
            Err(if code == "nothing_ran" {
                Failure::NothingRan(error)
            } else {
                Failure::OutcomeUnknown {
                    what: message.clone(),
                }
            })
        }
        _ => Err(Failure::OutcomeUnknown {
            what: "the controller did not say how the command ended".to_owned(),
        }),
    }
}

/// Reads the session to its final event.
async fn watch(mut from: SessionOutput, to: mpsc::Sender<Piece>) -> Result<End, Failure> {
    loop {
        let piece = match from.next().await? {
            None => {
                return Err(Failure::OutcomeUnknown {
                    what: "the session ended, and nobody said how the command did".to_owned(),
                });
            }
            Some(SessionEvent::Stdout(bytes)) => Piece::Out(bytes),
            Some(SessionEvent::Stderr(bytes)) => Piece::Err(bytes),
            Some(SessionEvent::Command(event)) => match event {
                ExecEvent::Started { .. } => continue,
                ExecEvent::Stdout { data, encoding } => Piece::Out(decoded(data, encoding)?),
                ExecEvent::Stderr { data, encoding } => Piece::Err(decoded(data, encoding)?),
                ExecEvent::Exit { .. } | ExecEvent::Error { .. } => return Ok(End::Command(event)),
            },
        };
        if to.send(piece).await.is_err() {
            return Ok(End::ReaderGone);
        }
    }
}

fn decoded(data: String, encoding: Encoding) -> Result<Bytes, Failure> {
    client::bytes_of(data, encoding)
        .map(Bytes::from)
        .map_err(|e| Failure::OutcomeUnknown {
            what: format!("the controller sent output that cannot be read: {e}"),
        })
}

/// Passes input on for as long as the command runs. Returns only when the person leaves or standard
/// input can't be read: that the session ended is seen where its output is read.
async fn feed(to: &mut SessionInput, input: Input, raw: Option<&RawMode>) -> Result<End, Failure> {
    let mut escape = Escape::Start;
    let mut typed = match input {
        Input::None => None,
        Input::Streamed | Input::Terminal => Some(start_reading(input)?),
    };
    if typed.is_none() {
        let _ = to.control(SessionControl::StdinEof).await;
    }
    let (mut resized, mut continued) = match raw {
        Some(_) => (
            signal(SignalKind::window_change()).ok(),
            signal(SignalKind::from_raw(CONTINUED)).ok(),
        ),
        None => (None, None),
    };
    // Not by the side that reads: that one waits while whoever reads our output does not.
    let mut alive = interval_at(Instant::now() + ALIVE_EVERY, ALIVE_EVERY);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let sent = tokio::select! {
            _ = alive.tick() => to.alive().await,
            piece = next(&mut typed) => match piece {
                Some(Ok(bytes)) if raw.is_some() => {
                    let (passed, left) = escape.pass(&bytes);
                    let sent = to.stdin(&passed).await;
                    if left {
                        return Ok(End::Left);
                    }
                    sent
                }
                Some(Ok(bytes)) => to.stdin(&bytes).await,
                Some(Err(e)) => return Err(Failure::OutcomeUnknown {
                    what: format!("cannot read standard input: {e}; the command was ended"),
                }),
                None => {
                    typed = None;
                    to.control(SessionControl::StdinEof).await
                }
            },
            () = received(&mut resized) => resize(to).await,
            () = received(&mut continued) => {
                if let Some(raw) = raw {
                    // A terminal that is gone says so by a signal.
                    let _ = raw.again();
                }
                resize(to).await
            }
        };
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn resize(to: &mut SessionInput) -> Result<(), client::Error> {
    match terminal::size() {
        Some(size) => {
            let (rows, cols) = (size.rows, size.cols);
            to.control(SessionControl::Resize { rows, cols }).await
        }
        None => Ok(()),
    }
}

async fn next(from: &mut Option<mpsc::Receiver<io::Result<Bytes>>>) -> Option<io::Result<Bytes>> {
    match from {
        Some(from) => from.recv().await,
        None => std::future::pending().await,
    }
}

/// A thread of its own, because nothing can wake it from a read; it ends with the process.
pub fn start_reading(input: Input) -> Result<mpsc::Receiver<io::Result<Bytes>>, Failure> {
    let (to, from) = mpsc::channel(QUEUE);
    let read = move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            match rustix::io::read(rustix::stdio::stdin(), &mut *piece) {
                // Closed altogether, as some supervisors leave it.
                Ok(0) | Err(rustix::io::Errno::BADF) => return,
                // The terminal is gone.
                Err(rustix::io::Errno::IO) if input == Input::Terminal => return,
                Ok(length) => {
                    piece.truncate(length);
                    if to.blocking_send(Ok(piece.into())).is_err() {
                        return;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let _ = to.blocking_send(Err(error.into()));
                    return;
                }
            }
        }
    };
    thread::Builder::new()
        .name("stdin".into())
        .spawn(read)
        .map_err(|e| Failure::local(format!("cannot start a thread: {e}")))?;
    Ok(from)
}

/// What is written to our streams.
enum Piece {
    Out(Bytes),
    Err(Bytes),
}

/// A thread of its own, because a reader that does not read must not hold back signals. What comes of it
/// is how writing ended; it ends early only when standard output takes nothing more.
fn start_writing() -> Result<(mpsc::Sender<Piece>, oneshot::Receiver<io::Result<()>>), Failure> {
    let (to, mut from) = mpsc::channel(QUEUE);
    let (ended, end) = oneshot::channel();
    let write = move || {
        let mut outcome = Ok(());
        while let Some(piece) = from.blocking_recv() {
            let written = match piece {
                Piece::Out(bytes) => write_all(io::stdout().lock(), &bytes),
                // Who closed standard error does not want to read it.
                Piece::Err(bytes) => write_all(io::stderr().lock(), &bytes).or(Ok(())),
            };
            if written.is_err() {
                outcome = written;
                break;
            }
        }
        drop(from);
        let _ = ended.send(outcome);
    };
    thread::Builder::new()
        .name("stdout".into())
        .spawn(write)
        .map_err(|e| Failure::local(format!("cannot start a thread: {e}")))?;
    Ok((to, end))
}

fn write_all(mut to: impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_code() {
        let screen = Screen::new(false, true);
        let check = |exit_code, signal, timed_out, code: u8| {
            let event = ExecEvent::Exit {
                exit_code,
                signal,
                timed_out,
                duration_ms: 1,
            };
            let exit = exit_of(&event, &screen).unwrap_or_else(|f| f.exec_exit());
            assert_eq!(exit.code(), code, "{event:?}");
        };
        check(Some(0), None, false, 0);
        check(Some(7), None, false, 7);
        check(None, Some(9), false, 137);
        check(None, Some(9), true, 124);
        check(None, None, false, 123);
        check(Some(0), Some(9), false, 123);
    }
}
