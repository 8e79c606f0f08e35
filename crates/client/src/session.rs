//! `GET /instances/{name}/session`: one command with its streams open, over a websocket (`api::session`).
//!
//! ```text
//!   SessionInput  ── standard input, window sizes, signals ──▶ command
//!   SessionOutput ◀── output, and exactly one final event ──── command
//! ```
//!
//! Each half can wait for the peer without the other one. When both are dropped, or the input is closed,
//! the command and its whole process tree end. Never reads the end of the stream as a success: whoever
//! gets `None` before `Exit` or `Error` does not know what became of the command.

use std::time::Duration;

use api::InstanceName;
use api::exec::ExecEvent;
use api::session::{
    ACKNOWLEDGED, MESSAGE_MAX_BYTES, SessionControl, SessionStart, Stream, WINDOW_BYTES,
    acknowledged_bytes,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hyper::Method;
use hyper::header::{
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

use crate::connection::Client;
use crate::error::{Error, chain};
use crate::stream::{StreamCall, Tunnel};

type WebSocket = WebSocketStream<Tunnel>;

/// No message of a session is larger, in bytes: output as JSON takes six bytes a byte at worst.
const RECEIVED_MAX_BYTES: usize = 1 << 20;
/// How much output may wait for a peer that does not read, in bytes.
const WAITING_MAX_BYTES: usize = 1 << 20;
const START_DEADLINE: Duration = Duration::from_secs(10);
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// How often the controller hears of a caller whose input waits for the command.
const ALIVE_EVERY: Duration = Duration::from_secs(10);

/// What comes out of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// It started or ended; see `ExecEvent`. After `Exit` or `Error` comes nothing.
    Command(ExecEvent),
    /// It wrote to standard output or to its terminal.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
}

/// The way to the command.
#[derive(Debug)]
pub struct SessionInput {
    sink: SplitSink<WebSocket, Message>,
    /// How much standard input was sent, in bytes.
    sent: u64,
    /// How much of it was taken, if the controller says so.
    taken: Option<watch::Receiver<u64>>,
    tried: String,
}

/// The way from the command.
#[derive(Debug)]
pub struct SessionOutput {
    stream: SplitStream<WebSocket>,
    /// How much standard input was taken, if the controller says so.
    taken: Option<watch::Sender<u64>>,
    tried: String,
}

impl Client {
    /// Starts a command in an instance. An error means that nothing ran, unless its
    /// `outcome_unknown` says otherwise.
    pub async fn session(
        &self,
        instance: &InstanceName,
        start: &SessionStart,
    ) -> Result<(SessionInput, SessionOutput), Error> {
        let first = serde_json::to_string(start).map_err(|e| self.protocol(e.to_string()))?;
        let path = ["instances", instance.as_str(), "session"];
        let key = generate_key();
        let call = StreamCall::new(Method::GET, &path)
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_PROTOCOL, ACKNOWLEDGED)
            .header(SEC_WEBSOCKET_KEY, &key);
        let (head, tunnel) = self.upgrade(call, "websocket").await?;
        let accept = head.headers().get(SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|a| a.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(self.protocol("a websocket for somebody else".to_owned()));
        }
        let protocol = head.headers().get(SEC_WEBSOCKET_PROTOCOL);
        let acknowledges = protocol.is_some_and(|chosen| chosen == ACKNOWLEDGED);
        let taken = acknowledges.then(|| watch::Sender::new(0));
        let config = WebSocketConfig::default()
            .max_message_size(Some(RECEIVED_MAX_BYTES))
            .max_frame_size(Some(RECEIVED_MAX_BYTES))
            .write_buffer_size(0)
            .max_write_buffer_size(WAITING_MAX_BYTES);
        let socket = WebSocketStream::from_raw_socket(tunnel, Role::Client, Some(config)).await;
        let (sink, stream) = socket.split();
        let tried = self.endpoint().to_string();
        let mut input = SessionInput {
            sink,
            sent: 0,
            taken: taken.as_ref().map(watch::Sender::subscribe),
            tried: tried.clone(),
        };
        let sent = timeout(START_DEADLINE, input.send(Message::text(first))).await;
        sent.unwrap_or_else(|_| Err(self.lost("the session was not taken".to_owned())))?;
        let output = SessionOutput {
            stream,
            taken,
            tried,
        };
        Ok((input, output))
    }
}

impl SessionInput {
    /// Gives the command bytes on its standard input. Waits while it does not read them; that it does is
    /// heard by who reads the output.
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(MESSAGE_MAX_BYTES - 1) {
            self.sent += piece.len() as u64;
            while timeout(ALIVE_EVERY, self.room()).await.is_err() {
                self.alive().await?;
            }
            let mut message = BytesMut::with_capacity(piece.len() + 1);
            message.put_u8(Stream::Stdin as u8);
            message.put_slice(piece);
            self.send(Message::Binary(message.freeze())).await?;
        }
        Ok(())
    }

    /// Waits until no more is on the way than may be.
    async fn room(&mut self) {
        let sent = self.sent;
        if let Some(taken) = &mut self.taken {
            let is_room = |taken: &u64| sent <= taken.saturating_add(WINDOW_BYTES);
            if taken.wait_for(is_room).await.is_err() {
                // Whoever read the output is gone, and with it the session: sending says how.
                self.taken = None;
            }
        }
    }

    /// Says something about the session.
    pub async fn control(&mut self, control: SessionControl) -> Result<(), Error> {
        let text = serde_json::to_string(&control).map_err(|e| Error::Protocol {
            tried: self.tried.clone(),
            status: None,
            what: e.to_string(),
        })?;
        self.send(Message::text(text)).await
    }

    /// Says that the caller is still there. The controller takes one for gone that says nothing for 45 s,
    /// and its own pings are answered only while the output is read.
    pub async fn alive(&mut self) -> Result<(), Error> {
        self.send(Message::Ping(Bytes::new())).await
    }

    /// Ends the session, and with it the command if it still runs. Takes two seconds at most.
    pub async fn close(mut self) {
        // Without the message the end of the connection says the same.
        let _ = timeout(CLOSE_DEADLINE, self.sink.close()).await;
    }

    async fn send(&mut self, message: Message) -> Result<(), Error> {
        let sent = self.sink.send(message).await;
        sent.map_err(|e| interrupted(&self.tried, &e))
    }
}

impl SessionOutput {
    /// What comes next; nothing when the session is over.
    pub async fn next(&mut self) -> Result<Option<SessionEvent>, Error> {
        loop {
            match self.stream.next().await {
                None
                | Some(
                    Ok(Message::Close(_))
                    | Err(WebSocketError::ConnectionClosed | WebSocketError::AlreadyClosed),
                ) => return Ok(None),
                Some(Ok(Message::Binary(message))) => {
                    if let Some(event) = self.output(message)? {
                        return Ok(Some(event));
                    }
                }
                Some(Ok(Message::Text(text))) => {
                    let event = serde_json::from_str(&text)
                        .map_err(|e| self.wrong(format!("an event that can't be read: {e}")))?;
                    return Ok(Some(SessionEvent::Command(event)));
                }
                // Answered by the websocket itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(interrupted(&self.tried, &error)),
            }
        }
    }

    fn output(&self, mut message: Bytes) -> Result<Option<SessionEvent>, Error> {
        let stream = message.first().copied().and_then(Stream::of);
        let bytes = message.split_off(message.len().min(1));
        match stream {
            Some(Stream::Stdout) => Ok(Some(SessionEvent::Stdout(bytes))),
            Some(Stream::Stderr) => Ok(Some(SessionEvent::Stderr(bytes))),
            Some(Stream::Stdin) | None => match (&self.taken, acknowledged_bytes(&bytes)) {
                (Some(taken), Some(bytes)) if stream.is_some() => {
                    taken.send_replace(bytes);
                    Ok(None)
                }
                _ => Err(self.wrong("bytes of no stream".to_owned())),
            },
        }
    }

    fn wrong(&self, what: String) -> Error {
        Error::Protocol {
            tried: self.tried.clone(),
            status: None,
            what,
        }
    }
}

fn interrupted(tried: &str, error: &WebSocketError) -> Error {
    Error::Interrupted {
        tried: tried.to_owned(),
        cause: chain(error),
    }
}
