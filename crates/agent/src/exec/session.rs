//! A session: a command with its streams open, over a websocket (see `api::session`).
//!
//! ```text
//!   await start ──▶ running ──────────────────▶ final event ─▶ close ─▶ await the peer's close
//!        │             ├─ message not understood ─▶ tree killed, final event: error ─▶ …
//!        │             └─ peer closed, broke off or fell silent ─▶ tree killed
//!        └─ nothing within ten seconds, or nothing that can run ─▶ final event: error ─▶ …
//! ```
//! One task does all of it: [`Hearing`] takes what the peer says, `conduct` runs the command, `talk` is
//! the only one that sends. A peer that takes long to read is not silent; one that answers no ping is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::exec::ExecEvent;
use api::session::{self, SessionStart, WindowSize};
use axum::extract::ws::{Message, WebSocket};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout};

use super::Processes;
use super::failure::Failure;
use super::hearing::{Ears, Hearing};
use super::order::Order;
use super::output::{Outlet, Taker, UNREAD_DEADLINE, read_all};
use super::process::{End, Process};
use super::spawn::{self, Pipes, Refusal, Started};
use super::stream::{exit, started};
use super::terminal::{Keyboard, Terminal, Window};

const START_DEADLINE: Duration = Duration::from_secs(10);
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(15);
/// Messages that wait to be sent.
const WAITING_OUT: usize = 8;
/// Messages on the way from the hearing to the command.
const WAITING_IN: usize = 1;

/// Runs a session to its end.
pub async fn run(processes: Arc<Processes>, socket: WebSocket) {
    let acknowledges = socket.protocol().is_some();
    let (sink, mut stream) = socket.split();
    let (out, queue) = mpsc::channel(WAITING_OUT);
    let sending = AtomicBool::new(false);
    let conversation = async {
        let mut ears = Ears {
            stream: &mut stream,
            sending: &sending,
            acknowledges,
        };
        let heard = converse(&processes, &mut ears, &out).await;
        if let Some(last) = heard {
            let _ = timeout(UNREAD_DEADLINE, out.send(text(&last))).await;
        }
        // With its last sender `talk` ends too.
        drop(out);
    };
    let talk = talk(sink, queue, &sending);
    {
        let mut talk = std::pin::pin!(talk);
        tokio::select! {
            // The peer can't be reached: the conversation is dropped, and its command with it.
            () = &mut talk => return,
            () = conversation => {}
        }
        if timeout(UNREAD_DEADLINE, talk).await.is_err() {
            return;
        }
    }
    // Closing a socket with unread bytes in it would take back what was sent last.
    let farewell = async { while let Some(Ok(_)) = stream.next().await {} };
    let _ = timeout(CLOSE_DEADLINE, farewell).await;
}

/// Sends what is queued, pings in between, and closes when there are no more senders.
async fn talk(
    mut sink: SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<Message>,
    sending: &AtomicBool,
) {
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        let message = tokio::select! {
            message = queue.recv() => message,
            _ = pings.tick() => Some(Message::Ping(Bytes::new())),
        };
        sending.store(true, Ordering::Relaxed);
        let sent = match message {
            Some(message) => sink.send(message).await,
            None => {
                let _ = sink.close().await;
                return;
            }
        };
        sending.store(false, Ordering::Relaxed);
        if sent.is_err() {
            return;
        }
    }
}

/// From the first message to the final event; none when the peer is gone.
async fn converse(
    processes: &Processes,
    ears: &mut Ears<'_>,
    out: &mpsc::Sender<Message>,
) -> Option<ExecEvent> {
    let (order, tty) = match timeout(START_DEADLINE, first(ears.stream)).await {
        Ok(Some(Ok(start))) => start,
        Ok(Some(Err(failure))) => return Some(failure.event()),
        Ok(None) => return None,
        Err(_) => return Some(Failure::request("no start message came in time").event()),
    };
    let (process, streams) = match open(processes, &order, tty) {
        Ok(open) => open,
        Err(Refusal::Failure(failure)) => return Some(failure.event()),
        Err(Refusal::Unrunnable(cause)) => {
            let stream = match tty {
                Some(_) => session::Stream::Stdout,
                None => session::Stream::Stderr,
            };
            out.send(text(&started(0))).await.ok()?;
            let line = cause.line(order.program());
            out.send(binary(stream, line.as_bytes())).await.ok()?;
            return Some(exit(End::unrunnable(cause.exit_code())));
        }
    };
    drop(order);
    let pid = u32::try_from(process.pid().as_raw_nonzero().get()).unwrap_or(0);
    out.send(text(&started(pid))).await.ok()?;
    let (keys, input) = mpsc::channel(WAITING_IN);
    let window = streams.window();
    let mut hearing = Hearing::new(keys, window, process.signaller(), out);
    let outlet = Outlet::new(out.clone(), process.ended());
    let last = tokio::select! {
        end = streams.conduct(process, &outlet, input) => match end {
            _ if outlet.is_unread() => Failure::Unread(UNREAD_DEADLINE.as_secs()).event(),
            Ok(end) => exit(end),
            Err(failure) => failure.event(),
        },
        // In both cases the other branch is dropped, and the command with it.
        gone = hearing.listen(ears) => return gone.map(|message| ExecEvent::Error {
            code: "outcome_unknown".into(),
            message,
        }),
    };
    Some(last)
}

type FirstWord = Result<(Order, Option<WindowSize>), Failure>;

/// The start message, checked; none when the peer went away.
async fn first(stream: &mut SplitStream<WebSocket>) -> Option<FirstWord> {
    loop {
        let start: SessionStart = match stream.next().await?.ok()? {
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(start) => start,
                Err(_) => return Some(Err(Failure::request("the first message is no start"))),
            },
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return None,
            Message::Binary(_) => {
                return Some(Err(Failure::request("the first message must be a start")));
            }
        };
        let (mut exec, tty) = (start.exec, start.tty);
        if exec.stdin.is_some() {
            let what = "a session's input comes by messages: leave stdin out";
            return Some(Err(Failure::request(what)));
        }
        if tty.is_some() {
            let kind = exec.env.entry("TERM".into());
            kind.or_insert_with(|| "xterm-256color".into());
        }
        return Some(Order::open(exec).map(|order| (order, tty)));
    }
}

fn open(
    processes: &Processes,
    order: &Order,
    tty: Option<WindowSize>,
) -> Result<(Process, Streams), Refusal> {
    let slot = processes.slot()?;
    let (started, streams): (Started, Streams) = match tty {
        Some(size) => {
            let (started, terminal) = spawn::with_terminal(order, &slot, size)?;
            (started, Streams::Terminal(terminal))
        }
        None => {
            let (started, pipes) = spawn::with_pipes(order, &slot, true)?;
            (started, Streams::Pipes(pipes))
        }
    };
    Ok((Process::new(started, order, slot), streams))
}

/// A command's streams.
enum Streams {
    Pipes(Pipes),
    Terminal(Terminal),
}

impl Streams {
    fn window(&self) -> Option<Window> {
        match self {
            Self::Pipes(_) => None,
            Self::Terminal(terminal) => Some(terminal.window.clone()),
        }
    }

    async fn conduct(
        self,
        process: Process,
        outlet: &Outlet<Message>,
        input: mpsc::Receiver<Bytes>,
    ) -> Result<End, Failure> {
        let ended = process.ended();
        let to = |stream| Messages {
            outlet: outlet.clone(),
            stream,
        };
        let mut stdout = to(session::Stream::Stdout);
        let mut stderr = to(session::Stream::Stderr);
        match self {
            Self::Pipes(pipes) => {
                let output = async {
                    tokio::join!(
                        read_all(pipes.stdout, ended.clone(), &mut stdout),
                        read_all(pipes.stderr, ended.clone(), &mut stderr),
                    );
                };
                process.conduct(output, feed(pipes.stdin, input)).await
            }
            Self::Terminal(terminal) => {
                let output = read_all(terminal.screen, ended, &mut stdout);
                process
                    .conduct(output, type_in(terminal.keyboard, input))
                    .await
            }
        }
    }
}

/// One stream of a command on its way into messages.
struct Messages {
    outlet: Outlet<Message>,
    stream: session::Stream,
}

impl Taker for Messages {
    async fn take(&mut self, chunk: &[u8]) -> bool {
        self.outlet.send(binary(self.stream, chunk)).await
    }
}

// In both, a command that does not read any more is no error: what comes is dropped.

async fn feed(stdin: Option<pipe::Sender>, mut input: mpsc::Receiver<Bytes>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(bytes) = input.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn type_in(keyboard: Keyboard, mut input: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = input.recv().await {
        if keyboard.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = keyboard.write_end().await;
}

fn text(event: &ExecEvent) -> Message {
    // Events are strings and numbers, which always become JSON.
    Message::Text(serde_json::to_string(event).unwrap_or_default().into())
}

fn binary(stream: session::Stream, chunk: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(chunk.len() + 1);
    message.put_u8(stream as u8);
    message.put_slice(chunk);
    Message::Binary(message.freeze())
}
