//! Follows an operation to its end over server-sent events.
//!
//! ```text
//!            ┌────────── back-off ◀──────────────┐ cut, silent, 5xx
//!            ▼                                   │
//!        connecting ──▶ reading ──event: step──▶ reading ──event: end──▶ over
//!            │ 4xx          (Last-Event-ID resumes after what was seen)
//!            ▼
//!          error
//! ```
//!
//! A stream that ends without `event: end` is a cut, never an end. Owns the position in the
//! stream; an event is handed out once, whatever the server repeats.

use std::time::Duration;

use api::OperationId;
use api::operation::{Operation, OperationEvent};
use reqwest::Response;
use reqwest::header::ACCEPT;
use tokio::time::{Instant, sleep, timeout};

use crate::connection::{CALL_DEADLINE, Client};
use crate::error::Error;
use crate::sse::{Reader, ServerEvent};

/// How long a watch holds out.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Longest silence on a connection before it is made anew.
    pub silence: Duration,
    /// First pause before connecting again; doubles up to `longest_pause`.
    pub first_pause: Duration,
    /// Longest pause before connecting again.
    pub longest_pause: Duration,
    /// Longest time without a sign of life before the watch gives up.
    pub give_up_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(60),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            give_up_after: Duration::from_secs(120),
        }
    }
}

/// What a watch sees next.
#[derive(Debug)]
pub enum Watched {
    /// Something happened in the operation.
    Step(OperationEvent),
    /// The connection was lost; the next call connects again after a pause.
    Lost(Error),
    /// The operation is over. Nothing comes after it.
    End(Box<Operation>),
}

/// A watch over one operation.
#[derive(Debug)]
pub struct OperationWatch {
    client: Client,
    id: OperationId,
    patience: Patience,
    stream: Option<Response>,
    reader: Reader,
    waiting: std::collections::VecDeque<ServerEvent>,
    last_seq: u32,
    pause: Option<Duration>,
    last_sign: Option<Instant>,
}

impl OperationWatch {
    /// A watch with other limits than the default ones.
    pub fn new(client: Client, id: OperationId, patience: Patience) -> Self {
        Self {
            client,
            id,
            patience,
            stream: None,
            reader: Reader::default(),
            waiting: std::collections::VecDeque::new(),
            last_seq: 0,
            pause: None,
            last_sign: None,
        }
    }

    /// The next thing that happens. An error ends the watch: the controller refused it, or gave no
    /// sign of life for too long. Dropping the future loses no event, but begins a pause or a
    /// connection attempt anew: poll it to its end.
    pub async fn next(&mut self) -> Result<Watched, Error> {
        let started = *self.last_sign.get_or_insert_with(Instant::now);
        loop {
            while let Some(event) = self.waiting.pop_front() {
                if let Some(seen) = self.understand(&event)? {
                    return Ok(seen);
                }
            }
            match self.advance().await {
                Ok(()) => {}
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    let since = self.last_sign.unwrap_or(started).elapsed();
                    if since >= self.patience.give_up_after {
                        return Err(error);
                    }
                    self.lose();
                    return Ok(Watched::Lost(error));
                }
            }
        }
    }

    fn lose(&mut self) {
        self.stream = None;
        self.reader = Reader::default();
        self.pause = Some(match self.pause {
            None => self.patience.first_pause,
            Some(pause) => (pause * 2).min(self.patience.longest_pause),
        });
    }

    /// Connects, or reads one more piece.
    async fn advance(&mut self) -> Result<(), Error> {
        let Some(stream) = &mut self.stream else {
            if let Some(pause) = self.pause {
                sleep(pause).await;
            }
            self.stream = Some(self.connect().await?);
            return Ok(());
        };
        let silence = self.patience.silence;
        let piece = match timeout(silence, stream.chunk()).await {
            Err(_) => return Err(self.cut(format!("silent for {} s", silence.as_secs()))),
            Ok(piece) => piece.map_err(|e| self.client.failed(&e, silence))?,
        };
        let Some(piece) = piece else {
            return Err(self.cut("the stream ended before the operation did".to_owned()));
        };
        let events = self.reader.push(&piece).map_err(|_| {
            self.client
                .protocol("an event longer than 1 MiB".to_owned())
        })?;
        // A sign of life, and only now is the connection worth a short pause again.
        self.last_sign = Some(Instant::now());
        self.pause = None;
        self.waiting.extend(events);
        Ok(())
    }

    async fn connect(&self) -> Result<Response, Error> {
        let path = ["operations", self.id.as_str(), "events"];
        let mut request = self
            .client
            .stream_request(&path)?
            .header(ACCEPT, "text/event-stream, application/problem+json");
        if self.last_seq > 0 {
            request = request.header("Last-Event-ID", self.last_seq);
        }
        let response = timeout(CALL_DEADLINE, request.send())
            .await
            .map_err(|_| self.cut(format!("no answer within {} s", CALL_DEADLINE.as_secs())))?
            .map_err(|e| self.client.failed(&e, CALL_DEADLINE))?;
        timeout(CALL_DEADLINE, self.client.accepted(response))
            .await
            .map_err(|_| self.cut(format!("no answer within {} s", CALL_DEADLINE.as_secs())))?
    }

    fn understand(&mut self, event: &ServerEvent) -> Result<Option<Watched>, Error> {
        let unreadable = |e: serde_json::Error| {
            self.client
                .protocol(format!("event {:?} cannot be read: {e}", event.name))
        };
        match event.name.as_str() {
            "step" => {
                let step: OperationEvent = serde_json::from_str(&event.data).map_err(unreadable)?;
                if step.seq <= self.last_seq {
                    return Ok(None);
                }
                self.last_seq = step.seq;
                Ok(Some(Watched::Step(step)))
            }
            "end" => {
                let operation = serde_json::from_str(&event.data).map_err(unreadable)?;
                Ok(Some(Watched::End(Box::new(operation))))
            }
            // A later server may say more.
            _ => Ok(None),
        }
    }

    fn cut(&self, cause: String) -> Error {
        Error::Interrupted {
            tried: self.client.endpoint().to_string(),
            cause,
        }
    }
}

/// Whether connecting again cannot help.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Endpoint(_) => true,
        Error::Problem(problem) => problem.status < 500 && problem.status != 429,
        Error::Unreachable { .. } | Error::Interrupted { .. } => false,
        // A proxy in front of a controller that starts answers 502 without a problem.
        Error::Protocol { status, .. } => status.is_none_or(|s| s < 500),
    }
}
