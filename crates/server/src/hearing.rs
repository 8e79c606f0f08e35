//! What the caller of a session says while its command runs. Input, and with it the size of the window, is
//! kept until the channel to the guest takes it; signals and the caller's end are passed on at once and do not
//! wait behind input that the command does not read.
//!
//! The websocket is read on as long as what is kept stays within bounds, which a caller that heeds
//! acknowledgements (`api::session`) never fills.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use api::session::{KEPT_MAX_BYTES, SessionControl, Stream, WindowSize};
use axum::extract::ws::{Message, WebSocket};
use engine::ports::SessionInput;
use futures::StreamExt;
use futures::stream::SplitStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// A caller that answers no ping for so long is gone.
const SILENCE: Duration = Duration::from_secs(45);
/// What a message costs beyond its bytes.
const MESSAGE_BYTES: usize = 128;

/// See the module's documentation.
pub(crate) struct Hearing {
    input: Option<mpsc::Sender<SessionInput>>,
    signals: mpsc::Sender<i32>,
    kept: VecDeque<SessionInput>,
    /// What is kept costs so much.
    kept_bytes: usize,
    /// How many bytes of input were passed on.
    taken: watch::Sender<u64>,
}

/// The caller is gone, or has said something that is not understood.
type Gone = Option<&'static str>;

impl Hearing {
    pub(crate) fn new(
        input: mpsc::Sender<SessionInput>,
        signals: mpsc::Sender<i32>,
        taken: watch::Sender<u64>,
    ) -> Self {
        Self {
            input: Some(input),
            signals,
            kept: VecDeque::new(),
            kept_bytes: 0,
            taken,
        }
    }

    /// From the caller to the command. Returns when the caller is gone, or with what is not understood.
    pub(crate) async fn listen(&mut self, mut from: SplitStream<WebSocket>) -> Gone {
        let mut heard = Instant::now();
        loop {
            let is_room = self.kept_bytes < KEPT_MAX_BYTES;
            tokio::select! {
                message = from.next(), if is_room => {
                    heard = Instant::now();
                    let Some(Ok(message)) = message else { return None };
                    if let ControlFlow::Break(gone) = self.hear(message) {
                        return gone;
                    }
                }
                () = has_room(&self.input), if !self.kept.is_empty() => {
                    self.pass_on();
                    if !is_room {
                        // It could not be heard meanwhile.
                        heard = Instant::now();
                    }
                }
                () = sleep_until(heard + SILENCE), if is_room => return None,
            }
        }
    }

    fn hear(&mut self, message: Message) -> ControlFlow<Gone> {
        match message {
            Message::Binary(bytes) if bytes.first() == Some(&(Stream::Stdin as u8)) => {
                self.keep(SessionInput::Stdin(bytes.slice(1..)));
            }
            Message::Text(text) => match serde_json::from_str(text.as_str()) {
                Ok(SessionControl::Resize { rows, cols }) => {
                    self.keep(SessionInput::Resize(WindowSize { rows, cols }));
                }
                Ok(SessionControl::StdinEof) => self.keep(SessionInput::StdinEof),
                Ok(SessionControl::Signal { signal }) => {
                    // The way takes some at a time. Who sends more before the first arrives means no more by it.
                    let _ = self.signals.try_send(signal);
                }
                Err(_) => {
                    let what = "a text message is no control message; the command was ended";
                    return ControlFlow::Break(Some(what));
                }
            },
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(_) => {
                let what = "a binary message is not standard input; the command was ended";
                return ControlFlow::Break(Some(what));
            }
            Message::Close(_) => return ControlFlow::Break(None),
        }
        ControlFlow::Continue(())
    }

    fn keep(&mut self, said: SessionInput) {
        if self.input.is_none() {
            self.taken.send_modify(|bytes| *bytes += bytes_of(&said));
        } else {
            self.kept_bytes += cost(&said);
            self.kept.push_back(said);
        }
    }

    /// Passes on what was kept first. A command that has ended or reads no more is no reason to hang up:
    /// what comes is dropped.
    fn pass_on(&mut self) {
        let Some(said) = self.kept.pop_front() else {
            return;
        };
        self.kept_bytes = self.kept_bytes.saturating_sub(cost(&said));
        let mut taken = bytes_of(&said);
        // There is room, unless nobody takes it.
        let passed = self.input.as_ref().map(|input| input.try_send(said));
        if !matches!(passed, Some(Ok(()))) {
            self.input = None;
            self.kept_bytes = 0;
            taken += self.kept.drain(..).map(|s| bytes_of(&s)).sum::<u64>();
        }
        self.taken.send_modify(|bytes| *bytes += taken);
    }
}

/// Waits until something can be passed on, or never can.
async fn has_room(input: &Option<mpsc::Sender<SessionInput>>) {
    if let Some(input) = input {
        // Nobody else takes it.
        drop(input.reserve().await);
    }
}

fn bytes_of(said: &SessionInput) -> u64 {
    match said {
        SessionInput::Stdin(bytes) => bytes.len() as u64,
        SessionInput::StdinEof | SessionInput::Resize(_) => 0,
    }
}

fn cost(said: &SessionInput) -> usize {
    let bytes = match said {
        SessionInput::Stdin(bytes) => bytes.len(),
        SessionInput::StdinEof | SessionInput::Resize(_) => 0,
    };
    bytes + MESSAGE_BYTES
}
