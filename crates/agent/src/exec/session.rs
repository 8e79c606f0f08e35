//! A session: a command with its streams open, over a websocket (see `api::session`).
//!
//! ```text
//!   await start ──▶ running ──────────────────▶ final event ─▶ close ─▶ await the peer's close
//!        │             ├─ message not understood ─▶ tree killed, final event: error ─▶ …
//!        │             └─ peer closed, broke off or fell silent ─▶ tree killed
//!        └─ nothing within ten seconds, or nothing that can run ─▶ final event: error ─▶ …
//! ```
//! One task does all of it: `listen` takes what the peer says, `conduct` runs the command, `talk` is
//! the only one that sends. A peer that takes long to read is not silent; one that answers no ping is.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::exec::ExecEvent;
use api::session::{self, SessionControl, SessionStart, WindowSize};
use axum::extract::ws::{Message, WebSocket};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout, timeout_at};

use super::Processes;
use super::failure::Failure;
use super::fork;
use super::order::Order;
use super::output::{Outlet, Taker, UNREAD_DEADLINE, read_all};
use super::process::{End, Process};
use super::spawn::{self, Pipes, Refusal, Started};
use super::stream::{exit, started};
use super::terminal::{Keyboard, Terminal, Window};

const START_DEADLINE: Duration = Duration::from_secs(10);
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(15);
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Messages that wait to be sent.
const WAITING_OUT: usize = 8;
/// Messages that wait for the command to read.
const WAITING_IN: usize = 16;

/// Runs a session to its end.
pub async fn run(processes: Arc<Processes>, socket: WebSocket) {
    let (sink, mut stream) = socket.split();
    let (out, queue) = mpsc::channel(WAITING_OUT);
    let sending = AtomicBool::new(false);
    let conversation = async {
        let heard = converse(&processes, &mut stream, &out, &sending).await;
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
    stream: &mut SplitStream<WebSocket>,
    out: &mpsc::Sender<Message>,
    sending: &AtomicBool,
) -> Option<ExecEvent> {
    let (order, tty) = match timeout(START_DEADLINE, first(stream)).await {
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
    let mut hearing = Hearing {
        keys: Some(keys),
        window: streams.window(),
        signal: Box::new(process.signaller()),
    };
    let outlet = Outlet::new(out.clone(), process.ended());
    let last = tokio::select! {
        end = streams.conduct(process, &outlet, input) => match end {
            _ if outlet.is_unread() => Failure::Unread(UNREAD_DEADLINE.as_secs()).event(),
            Ok(end) => exit(end),
            Err(failure) => failure.event(),
        },
        // In both cases the other branch is dropped, and the command with it.
        gone = hearing.listen(stream, sending) => return gone.map(|message| ExecEvent::Error {
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

/// What the peer's messages act on.
struct Hearing {
    keys: Option<mpsc::Sender<Bytes>>,
    window: Option<Window>,
    signal: Box<dyn Fn(Signal) + Send + Sync>,
}

impl Hearing {
    /// Does what the peer says until it is gone (`None`), or says what is not understood. While the
    /// command does not take its input the peer is not heard either, so it is not silent then.
    async fn listen(
        &mut self,
        stream: &mut SplitStream<WebSocket>,
        sending: &AtomicBool,
    ) -> Option<String> {
        loop {
            let message = match timeout_at(Instant::now() + SILENCE_MAX, stream.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(_) => return None,
                // It has not taken yet what we sent; whether it is there at all TCP finds out.
                Err(_) if sending.load(Ordering::Relaxed) => continue,
                Err(_) => return None,
            };
            match self.hear(message).await {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(gone) => return gone,
            }
        }
    }

    async fn hear(&mut self, message: Message) -> ControlFlow<Option<String>> {
        match message {
            Message::Binary(bytes) => {
                let stream = bytes.first().copied().and_then(session::Stream::of);
                if stream != Some(session::Stream::Stdin)
                    || bytes.len() > session::MESSAGE_MAX_BYTES + 1
                {
                    let what = "a binary message is not standard input or is too long";
                    return ControlFlow::Break(Some(what.into()));
                }
                if let Some(keys) = &self.keys
                    && keys.send(bytes.slice(1..)).await.is_err()
                {
                    self.keys = None;
                }
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(control) => return self.obey(control),
                Err(_) => {
                    let what = "a text message is no control message";
                    return ControlFlow::Break(Some(what.into()));
                }
            },
            Message::Close(_) => return ControlFlow::Break(None),
            Message::Ping(_) | Message::Pong(_) => {}
        }
        ControlFlow::Continue(())
    }

    fn obey(&mut self, control: SessionControl) -> ControlFlow<Option<String>> {
        match control {
            SessionControl::Resize { rows, cols } => {
                if let Some(window) = &self.window {
                    window.resize(WindowSize { rows, cols });
                }
            }
            SessionControl::StdinEof => self.keys = None,
            SessionControl::Signal { signal } => match fork::signal(signal) {
                Some(signal) => (self.signal)(signal),
                None => {
                    return ControlFlow::Break(Some(format!("there is no signal {signal}")));
                }
            },
        }
        ControlFlow::Continue(())
    }
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
