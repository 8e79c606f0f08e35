//! What the peer of a session says while its command runs: input, which is kept until the command reads it,
//! and everything else, which is done at once.
//!
//! ```text
//!   websocket ─┬─ input ───────▶ kept ──as the command reads──▶ keys ──▶ command
//!              ├─ signal, size ─▶ done        └─▶ acknowledged, if the peer wants to know
//!              └─ close ────────▶ the session ends
//! ```
//! The websocket is read on as long as what is kept stays within bounds. A peer that heeds
//! acknowledgements never fills them, so its signals and its end are always heard. Whether one that does not
//! is there still is seen by `talk`, whose pings can't be sent some time after it has gone.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::session::{self, KEPT_MAX_BYTES, SessionControl, WINDOW_BYTES, WindowSize};
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::SplitStream;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::fork;
use super::terminal::Window;

const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Much less than may be on the way, so that the peer never waits for nothing.
const ACKNOWLEDGED_EVERY_BYTES: u64 = WINDOW_BYTES / 4;
/// What a message costs beyond its bytes.
const MESSAGE_BYTES: usize = 128;

/// Where the peer is heard.
pub struct Ears<'a> {
    /// Its messages.
    pub stream: &'a mut SplitStream<WebSocket>,
    /// Whether it is taking something just now.
    pub sending: &'a AtomicBool,
    /// Whether it wants to know how much of its input was taken.
    pub acknowledges: bool,
}

/// What the peer's messages act on.
pub struct Hearing<'a> {
    keys: Option<mpsc::Sender<Bytes>>,
    window: Option<Window>,
    signal: Box<dyn Fn(Signal) + Send + Sync>,
    out: &'a mpsc::Sender<Message>,
    kept: VecDeque<Bytes>,
    /// What is kept costs so much.
    kept_bytes: usize,
    /// Nothing comes after what is kept.
    at_end: bool,
    taken: u64,
    acknowledged: u64,
}

impl<'a> Hearing<'a> {
    /// Gives input to `keys` and says through `out` what was taken.
    pub fn new(
        keys: mpsc::Sender<Bytes>,
        window: Option<Window>,
        signal: impl Fn(Signal) + Send + Sync + 'static,
        out: &'a mpsc::Sender<Message>,
    ) -> Self {
        Self {
            keys: Some(keys),
            window,
            signal: Box::new(signal),
            out,
            kept: VecDeque::new(),
            kept_bytes: 0,
            at_end: false,
            taken: 0,
            acknowledged: 0,
        }
    }

    /// Does what the peer says until it is gone (`None`), or says what is not understood.
    pub async fn listen(&mut self, ears: &mut Ears<'_>) -> Option<String> {
        let mut heard = Instant::now();
        loop {
            let is_room = self.kept_bytes < KEPT_MAX_BYTES;
            let to_say = self.taken.saturating_sub(self.acknowledged);
            let is_due = ears.acknowledges && to_say >= ACKNOWLEDGED_EVERY_BYTES;
            tokio::select! {
                message = ears.stream.next(), if is_room => {
                    heard = Instant::now();
                    let Some(Ok(message)) = message else { return None };
                    if let ControlFlow::Break(gone) = self.hear(message) {
                        return gone;
                    }
                }
                () = has_room(&self.keys), if !self.kept.is_empty() => {
                    self.pass_on();
                    if !is_room {
                        // It could not be heard meanwhile.
                        heard = Instant::now();
                    }
                }
                room = self.out.reserve(), if is_due => {
                    let Ok(room) = room else { return None };
                    let message = session::acknowledgement(self.taken);
                    room.send(Message::Binary(Bytes::copy_from_slice(&message)));
                    self.acknowledged = self.taken;
                }
                () = sleep_until(heard + SILENCE_MAX), if is_room => {
                    // It may not have taken yet what we sent; whether it is there at all TCP finds out.
                    if !ears.sending.load(Ordering::Relaxed) {
                        return None;
                    }
                    heard = Instant::now();
                }
            }
        }
    }

    fn hear(&mut self, message: Message) -> ControlFlow<Option<String>> {
        match message {
            Message::Binary(bytes) => {
                let stream = bytes.first().copied().and_then(session::Stream::of);
                if stream != Some(session::Stream::Stdin)
                    || bytes.len() > session::MESSAGE_MAX_BYTES + 1
                {
                    let what = "a binary message is not standard input or is too long";
                    return ControlFlow::Break(Some(what.into()));
                }
                self.keep(bytes.slice(1..));
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

    fn keep(&mut self, bytes: Bytes) {
        if self.keys.is_none() || self.at_end {
            self.taken += bytes.len() as u64;
        } else if !bytes.is_empty() {
            self.kept_bytes += cost(&bytes);
            self.kept.push_back(bytes);
        }
    }

    /// Gives the command what was kept first. One that does not read any more is no error: what comes is
    /// dropped.
    fn pass_on(&mut self) {
        let Some(bytes) = self.kept.pop_front() else {
            return;
        };
        self.kept_bytes = self.kept_bytes.saturating_sub(cost(&bytes));
        self.taken += bytes.len() as u64;
        // There is room, unless nobody reads.
        let passed = self.keys.as_ref().map(|keys| keys.try_send(bytes));
        if !matches!(passed, Some(Ok(()))) {
            self.keys = None;
            self.kept_bytes = 0;
            self.taken += self.kept.drain(..).map(|b| b.len() as u64).sum::<u64>();
        }
        self.end_if_all_is_taken();
    }

    fn end_if_all_is_taken(&mut self) {
        if self.at_end && self.kept.is_empty() {
            self.keys = None;
        }
    }

    fn obey(&mut self, control: SessionControl) -> ControlFlow<Option<String>> {
        match control {
            SessionControl::Resize { rows, cols } => {
                if let Some(window) = &self.window {
                    window.resize(WindowSize { rows, cols });
                }
            }
            SessionControl::StdinEof => {
                self.at_end = true;
                self.end_if_all_is_taken();
            }
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

/// Waits until something can be passed on, or never can.
async fn has_room(keys: &Option<mpsc::Sender<Bytes>>) {
    if let Some(keys) = keys {
        // Nobody else takes it.
        drop(keys.reserve().await);
    }
}

fn cost(bytes: &Bytes) -> usize {
    bytes.len() + MESSAGE_BYTES
}
