//! Sessions: a command in a guest with its streams open, over a websocket (see [`api::session`]).
//!
//! ```text
//!  input  ──▶ writer task ──▶ websocket ──▶ agent
//!  output ◀── reader task ◀── websocket ◀── agent
//! ```
//! The two tasks don't wait for each other: a command that does not read its input still gets rid of its
//! output. All channels are bounded, so whoever is slow slows its own stream only. No more input is sent than
//! the agent keeps for a command that does not read ([`WINDOW_BYTES`]), so that signals, which have a channel
//! of their own, never wait behind it. Whatever happens,
//! the output's last message is [`SessionOutput::Ended`] or [`SessionOutput::Failed`], and dropping the
//! output ends the session and with it the command.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::exec::ExecEvent;
use api::session::{
    ACKNOWLEDGED, MESSAGE_MAX_BYTES, SessionControl, SessionStart, Stream, WINDOW_BYTES,
    WindowSize, acknowledged_bytes,
};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use wire::agent::Scope;

use crate::call::{Call, cut};
use crate::connection::describe;
use crate::error::{LinkError, wire_code};
use crate::forward::upgraded;
use crate::link::{Destination, Link, Peer};

const OPEN_DEADLINE: Duration = Duration::from_secs(10);
const START_DEADLINE: Duration = Duration::from_secs(15);
/// Often enough that an agent which ends silent sessions after 45 seconds hears of us, even while
/// nobody takes the output.
const PING_EVERY: Duration = Duration::from_secs(10);
/// An agent that has read all of the input and then says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Messages on their way in each direction, of at most [`MESSAGE_MAX_BYTES`] each.
const QUEUE: usize = 16;
/// Agents take messages of at most this size.
const START_MAX_BYTES: usize = 128 << 10;
/// A binary message and the byte before it.
const FRAME_MAX_BYTES: usize = MESSAGE_MAX_BYTES + 1;

/// What a caller tells a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionInput {
    /// Bytes for its standard input, of any length.
    Stdin(Bytes),
    /// Nothing more will come.
    StdinEof,
    /// The window of its terminal changed.
    Resize(WindowSize),
}

/// What a running command tells. After `Ended` or `Failed` comes nothing.
#[derive(Debug, Clone)]
pub enum SessionOutput {
    /// From its standard output or its terminal.
    Stdout(Bytes),
    /// From its standard error.
    Stderr(Bytes),
    /// It ended.
    Ended {
        /// Its exit code; none when a signal or the deadline ended it.
        exit_code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
        /// Whether the deadline ended it.
        timed_out: bool,
        /// How long it ran.
        duration_ms: u64,
    },
    /// Its end is not known, or the agent failed.
    Failed(LinkError),
}

/// A running command with its streams open. Dropping `output` ends it and its process tree; dropping
/// `input` alone does not.
#[derive(Debug)]
pub struct AgentSession {
    /// Its process id as the guest counts.
    pub pid: u32,
    /// To the command. Full means that it does not read: wait.
    pub input: mpsc::Sender<SessionInput>,
    /// Signals, 1 to 64, for its process group; they do not wait behind input.
    pub signals: mpsc::Sender<i32>,
    /// From the command.
    pub output: mpsc::Receiver<SessionOutput>,
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

impl Link {
    /// Starts a command and returns when it runs.
    pub async fn session(
        &self,
        peer: &Peer,
        start: &SessionStart,
    ) -> Result<AgentSession, LinkError> {
        let name = peer.instance.as_str();
        let start = serde_json::to_string(start).map_err(|e| LinkError::NothingRan {
            peer: name.to_owned(),
            reason: format!("the request cannot be written as JSON: {e}"),
        })?;
        if start.len() > START_MAX_BYTES {
            return Err(LinkError::NothingRan {
                peer: name.to_owned(),
                reason: format!("a session's command has at most {START_MAX_BYTES} bytes as JSON"),
            });
        }
        let (mut socket, acknowledges) = self.socket(peer).await?;
        let unknown = |reason: String| LinkError::OutcomeUnknown {
            peer: name.to_owned(),
            reason,
        };
        let pid = timeout(START_DEADLINE, async {
            let sent = socket.send(Message::Text(start.into())).await;
            sent.map_err(|e| unknown(describe(&e)))?;
            started(&mut socket, name).await
        })
        .await
        .map_err(|_| unknown("the command did not start in time".into()))??;
        let (sink, stream) = socket.split();
        let (input, inputs) = mpsc::channel(QUEUE);
        let (signals, signalled) = mpsc::channel(QUEUE);
        let (outputs, output) = mpsc::channel(QUEUE);
        let backlog = Arc::new(Backlog::default());
        let taken = acknowledges.then(|| watch::Sender::new(0));
        let writer = Writer {
            sink,
            backlog: backlog.clone(),
            stdin: Bytes::new(),
            sent_bytes: 0,
            taken: taken.as_ref().map(watch::Sender::subscribe),
        };
        let writer = tokio::spawn(writer.write(inputs, signalled)).abort_handle();
        let reader = Reader {
            stream,
            backlog,
            taken,
            peer: name.to_owned(),
            _writer: EndsWith(writer),
        };
        tokio::spawn(read(reader, outputs));
        Ok(AgentSession {
            pid,
            input,
            signals,
            output,
        })
    }

    /// A websocket to the agent, and whether the agent acknowledges input. Nothing runs before its first
    /// message, so opening it may be repeated.
    async fn socket(&self, peer: &Peer) -> Result<(Socket, bool), LinkError> {
        let key = generate_key();
        let accept = derive_accept_key(key.as_bytes());
        let key = HeaderValue::try_from(key).map_err(|e| LinkError::NothingRan {
            peer: peer.instance.as_str().to_owned(),
            reason: format!("a websocket needs a key: {e}"),
        })?;
        let call = Call::new(Method::GET, "/session", OPEN_DEADLINE)
            .scope(Scope::Exec)
            .header(header::CONNECTION, HeaderValue::from_static("upgrade"))
            .header(header::UPGRADE, HeaderValue::from_static("websocket"))
            .header(
                header::SEC_WEBSOCKET_VERSION,
                HeaderValue::from_static("13"),
            )
            .header(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(ACKNOWLEDGED),
            )
            .header(header::SEC_WEBSOCKET_KEY, key);
        let answer = match self.call(&Destination::agent(peer), call).await {
            Err(LinkError::OutcomeUnknown { peer, reason }) => {
                return Err(LinkError::NotReachable { peer, reason });
            }
            answer => answer?,
        };
        let headers = answer.response.headers();
        let protocol = headers.get(header::SEC_WEBSOCKET_PROTOCOL);
        let acknowledges = protocol.is_some_and(|chosen| chosen == ACKNOWLEDGED);
        let accepted = headers.get(header::SEC_WEBSOCKET_ACCEPT);
        let is_websocket = accepted.is_some_and(|sent| sent.as_bytes() == accept.as_bytes());
        if answer.response.status() == StatusCode::SWITCHING_PROTOCOLS && !is_websocket {
            return Err(LinkError::NotReachable {
                peer: answer.peer(),
                reason: "it opens no websocket".into(),
            });
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(FRAME_MAX_BYTES))
            .max_frame_size(Some(FRAME_MAX_BYTES))
            .write_buffer_size(0)
            .max_write_buffer_size(4 * FRAME_MAX_BYTES);
        // Whatever went wrong so far, no command was named yet.
        let stream = upgraded(answer).await.map_err(|error| {
            if !error.may_have_run() {
                return error;
            }
            LinkError::NothingRan {
                peer: peer.instance.as_str().to_owned(),
                reason: error.to_string(),
            }
        })?;
        let socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await;
        Ok((socket, acknowledges))
    }
}

/// How much of the input the agent has read, in messages: while it has not read all, its silence means
/// that the command does not read, and says nothing about the agent.
#[derive(Default)]
struct Backlog {
    sent: AtomicU64,
    read: AtomicU64,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.read.load(Ordering::Acquire) >= self.sent.load(Ordering::Acquire)
    }
}

/// Ends a task when it is dropped.
struct EndsWith(AbortHandle);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The first event of a session.
async fn started(socket: &mut Socket, peer: &str) -> Result<u32, LinkError> {
    loop {
        match next(socket.next().await, peer)? {
            Said::Event(ExecEvent::Started { pid, .. }) => return Ok(pid),
            Said::Event(ExecEvent::Error { code, message }) => {
                return Err(failed(peer, &code, message));
            }
            Said::Pong(_) => {}
            Said::Event(_) | Said::Bytes(..) => {
                return Err(garbage(peer, "it did not say first that the command runs"));
            }
        }
    }
}

/// The way to the agent.
struct Writer {
    sink: SplitSink<Socket, Message>,
    backlog: Arc<Backlog>,
    /// Input that is to be sent.
    stdin: Bytes,
    sent_bytes: u64,
    /// How much of it the agent has taken, if it says so.
    taken: Option<watch::Receiver<u64>>,
}

type Sent = Result<(), tokio_tungstenite::tungstenite::Error>;

impl Writer {
    async fn write(
        mut self,
        mut inputs: mpsc::Receiver<SessionInput>,
        mut signals: mpsc::Receiver<i32>,
    ) {
        let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut open, mut signalled) = (true, true);
        loop {
            let is_sending = !self.stdin.is_empty();
            let sent = tokio::select! {
                signal = signals.recv(), if signalled => match signal {
                    Some(signal) => self.control(SessionControl::Signal { signal }).await,
                    None => {
                        signalled = false;
                        Ok(())
                    }
                },
                () = self.room(), if is_sending => self.piece().await,
                input = inputs.recv(), if open && !is_sending => match input {
                    Some(input) => self.input(input).await,
                    None => {
                        open = false;
                        Ok(())
                    }
                },
                _ = pings.tick() => {
                    let count = self.backlog.sent.load(Ordering::Acquire);
                    let payload = Bytes::copy_from_slice(&count.to_be_bytes());
                    self.sink.send(Message::Ping(payload)).await
                }
            };
            // The reader sees the same end and tells it.
            if sent.is_err() {
                return;
            }
        }
    }

    /// Waits until more input may be on the way.
    async fn room(&mut self) {
        let sent_bytes = self.sent_bytes;
        if let Some(taken) = &mut self.taken {
            let is_room = |taken: &u64| sent_bytes < taken.saturating_add(WINDOW_BYTES);
            // Without a reader nothing is sent any more.
            let _ = taken.wait_for(is_room).await;
        }
    }

    async fn piece(&mut self) -> Sent {
        let on_the_way = self
            .taken
            .as_ref()
            .map_or(0, |taken| self.sent_bytes.saturating_sub(*taken.borrow()));
        let room = usize::try_from(WINDOW_BYTES.saturating_sub(on_the_way)).unwrap_or(usize::MAX);
        let most = self.stdin.len().min(MESSAGE_MAX_BYTES).min(room);
        let part = self.stdin.split_to(most);
        if part.is_empty() {
            return Ok(());
        }
        self.sent_bytes += part.len() as u64;
        let mut message = BytesMut::with_capacity(part.len() + 1);
        message.put_u8(Stream::Stdin as u8);
        message.put(part);
        self.sink.send(Message::Binary(message.freeze())).await
    }

    async fn input(&mut self, input: SessionInput) -> Sent {
        match input {
            SessionInput::Stdin(bytes) => {
                self.backlog.sent.fetch_add(1, Ordering::AcqRel);
                self.stdin = bytes;
                Ok(())
            }
            SessionInput::StdinEof => self.control(SessionControl::StdinEof).await,
            SessionInput::Resize(WindowSize { rows, cols }) => {
                self.control(SessionControl::Resize { rows, cols }).await
            }
        }
    }

    async fn control(&mut self, control: SessionControl) -> Sent {
        self.backlog.sent.fetch_add(1, Ordering::AcqRel);
        let json = serde_json::to_string(&control).map_err(std::io::Error::other)?;
        self.sink.send(Message::Text(json.into())).await
    }
}

struct Reader {
    stream: SplitStream<Socket>,
    backlog: Arc<Backlog>,
    /// How much of the input the agent has taken, if it says so.
    taken: Option<watch::Sender<u64>>,
    peer: String,
    _writer: EndsWith,
}

/// Carries output until the end. Returning drops both halves of the websocket, which ends the session.
async fn read(mut reader: Reader, outputs: mpsc::Sender<SessionOutput>) {
    // Room for the next message first: a websocket is not read for whom nobody listens.
    while let Ok(room) = outputs.reserve().await {
        let said = tokio::select! {
            () = outputs.closed() => return,
            said = reader.hear() => said,
        };
        match said {
            Ok(Some(output)) => {
                let last = matches!(output, SessionOutput::Ended { .. });
                room.send(output);
                if last {
                    return;
                }
            }
            Ok(None) => {}
            Err(error) => {
                room.send(SessionOutput::Failed(error));
                return;
            }
        }
    }
}

impl Reader {
    /// The next message, if it is for the caller.
    async fn hear(&mut self) -> Result<Option<SessionOutput>, LinkError> {
        let said = loop {
            match timeout(SILENCE_MAX, self.stream.next()).await {
                Ok(said) => break next(said, &self.peer)?,
                Err(_) if !self.backlog.is_empty() => {}
                Err(_) => {
                    return Err(LinkError::OutcomeUnknown {
                        peer: self.peer.clone(),
                        reason: format!("it was silent for {} s", SILENCE_MAX.as_secs()),
                    });
                }
            }
        };
        match said {
            Said::Bytes(Stream::Stdout, bytes) => Ok(Some(SessionOutput::Stdout(bytes))),
            Said::Bytes(Stream::Stderr, bytes) => Ok(Some(SessionOutput::Stderr(bytes))),
            Said::Pong(count) => {
                self.backlog.read.fetch_max(count, Ordering::AcqRel);
                Ok(None)
            }
            Said::Event(ExecEvent::Exit {
                exit_code,
                signal,
                timed_out,
                duration_ms,
            }) => Ok(Some(SessionOutput::Ended {
                exit_code,
                signal,
                timed_out,
                duration_ms,
            })),
            Said::Event(ExecEvent::Error { message, .. }) => Err(LinkError::OutcomeUnknown {
                peer: self.peer.clone(),
                reason: cut(message, 2000),
            }),
            Said::Bytes(Stream::Stdin, bytes) => match (&self.taken, acknowledged_bytes(&bytes)) {
                (Some(taken), Some(bytes)) => {
                    taken.send_replace(bytes);
                    Ok(None)
                }
                _ => Err(self.misplaced()),
            },
            Said::Event(_) => Err(self.misplaced()),
        }
    }

    fn misplaced(&self) -> LinkError {
        garbage(&self.peer, "this message has no place in a session")
    }
}

/// What an agent says in a session.
enum Said {
    Event(ExecEvent),
    Bytes(Stream, Bytes),
    /// How many inputs it had read.
    Pong(u64),
}

type Received = Option<Result<Message, tokio_tungstenite::tungstenite::Error>>;

fn next(received: Received, peer: &str) -> Result<Said, LinkError> {
    let broke_off = |reason: String| LinkError::OutcomeUnknown {
        peer: peer.to_owned(),
        reason,
    };
    match received {
        Some(Ok(Message::Text(text))) => event(&text, peer),
        Some(Ok(Message::Binary(mut bytes))) => {
            let stream = bytes.first().copied().and_then(Stream::of);
            let Some(stream) = stream else {
                return Err(garbage(peer, "a message of no known stream"));
            };
            Ok(Said::Bytes(stream, bytes.split_off(1)))
        }
        // Our own pings hold eight bytes; others say that it lives, and no more.
        Some(Ok(Message::Pong(payload))) => Ok(Said::Pong(
            payload.as_ref().try_into().map_or(0, u64::from_be_bytes),
        )),
        Some(Ok(Message::Ping(_) | Message::Frame(_))) => Ok(Said::Pong(0)),
        Some(Ok(Message::Close(_))) | None => Err(broke_off(
            "the session ended without saying what became of the command".into(),
        )),
        Some(Err(error)) => Err(broke_off(format!(
            "the session broke: {}",
            describe(&error)
        ))),
    }
}

fn event(text: &Utf8Bytes, peer: &str) -> Result<Said, LinkError> {
    serde_json::from_str(text)
        .map(Said::Event)
        .map_err(|e| garbage(peer, &cut(e.to_string(), 200)))
}

fn garbage(peer: &str, reason: &str) -> LinkError {
    LinkError::Garbage {
        peer: peer.to_owned(),
        reason: reason.to_owned(),
    }
}

fn failed(peer: &str, code: &str, message: String) -> LinkError {
    let (peer, reason) = (peer.to_owned(), cut(message, 2000));
    if code == wire_code::NOTHING_RAN {
        LinkError::NothingRan { peer, reason }
    } else {
        LinkError::OutcomeUnknown { peer, reason }
    }
}
