//! The log as its callers see it: a cheap handle to the one thread that writes, and the intent that
//! must be finished. Owns no file; everything goes over one bounded queue.
//!
//! Each open intent holds a place in the queue for its outcome, so an outcome never waits for a place
//! and can be sent from `drop`.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use std::{fmt, thread};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::command::{Closing, Command, Reply};
use crate::entry::{Entry, Outcome, bounded_name, prepare, prepare_detail};
use crate::error::Error;
use crate::head::Head;
use crate::redact::Redactor;
use crate::writer;

/// How many intents may wait for their outcomes at one time.
pub const MAX_OPEN_INTENTS: usize = 4096;
/// Places in the queue for everything that is not the outcome of an open intent.
const QUEUE: usize = 256;

/// Where the time of a record comes from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Hears of each line that was written, without its newline. Called by the writer, so it must never wait.
pub type Witness = Arc<dyn Fn(&str) + Send + Sync>;

/// How large a file grows before it is set aside, in bytes, where nothing else is said.
pub const ROTATE_BYTES: u64 = 64 * 1024 * 1024;

/// How to open a log.
#[derive(Clone)]
pub struct Options {
    /// The time of records; the system's by default.
    pub clock: Clock,
    /// What may not stand in a record. Share one with the whole process and register secrets in it.
    pub redactor: Redactor,
    /// A head kept elsewhere. With it, opening finds truncation and rewriting too.
    pub anchor: Option<Head>,
    /// How large a file grows before it is set aside, in bytes.
    pub rotate_bytes: u64,
    /// Who else hears of the records (syslog).
    pub witness: Option<Witness>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Arc::new(Timestamp::now),
            redactor: Redactor::default(),
            anchor: None,
            rotate_bytes: ROTATE_BYTES,
            witness: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("redactor", &self.redactor)
            .field("anchor", &self.anchor)
            .field("rotate_bytes", &self.rotate_bytes)
            .finish_non_exhaustive()
    }
}

/// An open audit log. Clones are handles to the same writer.
#[derive(Clone)]
pub struct Log {
    path: Arc<Path>,
    commands: mpsc::Sender<Command>,
    seats: Arc<Semaphore>,
    redactor: Redactor,
    heads: watch::Receiver<Head>,
}

impl Log {
    /// Opens or creates the log at `path`, whose directory must exist.
    ///
    /// Reads the whole file, and older ones where they hold intents without an outcome: a broken chain is refused ([`Error::Broken`]) and so is a second writer
    /// ([`Error::Locked`]); an unfinished last line is moved to `PATH.torn-SEQ-K` and a record tells
    /// of it; intents without an outcome are closed as `unknown`.
    pub async fn open(path: impl Into<PathBuf>, options: Options) -> Result<Self, Error> {
        let path: Arc<Path> = path.into().into();
        let redactor = options.redactor.clone();
        let (commands, queue) = mpsc::channel(MAX_OPEN_INTENTS + QUEUE);
        let (ready, opened) = oneshot::channel();
        let writer_path = Arc::clone(&path);
        thread::Builder::new()
            .name("audit-writer".to_owned())
            .spawn(move || writer::run(&writer_path, options, ready, queue))
            .map_err(|e| Error::io("start the writer of", &path, e))?;
        let heads = opened
            .await
            .map_err(|_| Error::closed(&path, "its writer ended while opening"))??;
        Ok(Self {
            path,
            commands,
            seats: Arc::new(Semaphore::new(MAX_OPEN_INTENTS)),
            redactor,
            heads,
        })
    }

    /// Writes and syncs the intent. **If this fails, the action must be refused.**
    ///
    /// When the returned future is dropped before it is ready, the action cannot have begun; an intent
    /// that was written nevertheless is closed as `unknown`.
    pub async fn intent(&self, entry: Entry) -> Result<Intent, Error> {
        let seat = Arc::clone(&self.seats)
            .try_acquire_owned()
            .map_err(|_| Error::TooManyOpen {
                limit: MAX_OPEN_INTENTS,
            })?;
        let id = correlation_id()?;
        let place = self.commands.clone().reserve_owned();
        let place = place.await.map_err(|_| self.closed())?;
        let (subject, detail) = prepare(entry, &self.redactor);
        let (reply, answer) = oneshot::channel();
        // From here on the guard exists: however this future ends, an outcome follows the intent.
        let mut intent = Intent {
            id: id.clone(),
            head: Head::GENESIS,
            place: Some(place),
            began: Instant::now(),
            redactor: self.redactor.clone(),
            path: Arc::clone(&self.path),
            _seat: seat,
        };
        let command = Command::Intent {
            id,
            subject,
            detail,
            reply,
        };
        match self.ask(command, answer).await {
            Ok(head) => {
                intent.head = head;
                intent.began = Instant::now();
                Ok(intent)
            }
            Err(e) => {
                intent.place = None;
                Err(e)
            }
        }
    }

    /// Records that an action was refused, and why; the reason stands in `detail.refusal`.
    pub async fn refused(&self, entry: Entry, reason: &str) -> Result<Head, Error> {
        let id = correlation_id()?;
        let (subject, detail) = prepare(with_refusal(entry, reason), &self.redactor);
        let (reply, answer) = oneshot::channel();
        let command = Command::Refused {
            id,
            subject,
            detail,
            reply,
        };
        self.ask(command, answer).await
    }

    /// The head after the last record. A power cut in the next ten milliseconds may still take an outcome, never
    /// an intent or a refusal.
    pub fn head(&self) -> Head {
        *self.heads.borrow()
    }

    /// The head as it grows, for those that keep it elsewhere.
    pub fn heads(&self) -> watch::Receiver<Head> {
        self.heads.clone()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept out of the records.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Writes what is queued, then closes and unlocks the file. Other handles get [`Error::Closed`];
    /// intents that are still open are closed as `unknown` at the next opening.
    ///
    /// Without this call the file is closed soon after the last handle and the last intent are gone.
    pub async fn close(self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Close { reply }).await.is_ok() {
            // An error means that the writer has ended, which is what was asked for.
            let _: Result<(), _> = answer.await;
        }
    }

    async fn ask(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<Head, Error>>,
    ) -> Result<Head, Error> {
        let sent = self.commands.send(command).await;
        sent.map_err(|_| self.closed())?;
        answer.await.map_err(|_| self.closed())?
    }

    fn closed(&self) -> Error {
        Error::closed(&self.path, "its writer has ended")
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("path", &self.path)
            .field("head", &self.head())
            .finish_non_exhaustive()
    }
}

/// A written intent: the permission to act, and the duty to say how it ended.
///
/// Dropped without [`Intent::finish`] (an early return, a cancelled task, a panic) it is recorded with
/// the outcome `unknown`.
#[must_use = "an intent that is dropped is recorded with the outcome unknown; call finish"]
pub struct Intent {
    id: String,
    head: Head,
    place: Option<OwnedPermit<Command>>,
    began: Instant,
    redactor: Redactor,
    path: Arc<Path>,
    _seat: OwnedSemaphorePermit,
}

impl Intent {
    /// The correlation id that the intent and its outcome share.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The head after the intent's record.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Records how the action ended; the result is the head after that record. The record outlives this
    /// process then; the disk has it ten milliseconds later at most.
    ///
    /// The outcome is on its way as soon as this is called, even if the future is not awaited. If the
    /// write fails, the future says so, and the writer keeps the outcome and writes it before the next
    /// record that it can write.
    pub fn finish(
        mut self,
        outcome: Outcome,
    ) -> impl Future<Output = Result<Head, Error>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let path = Arc::clone(&self.path);
        self.send(outcome, Some(reply));
        async move {
            answer
                .await
                .map_err(|_| Error::closed(&path, "its writer has ended"))?
        }
    }

    fn send(&mut self, outcome: Outcome, reply: Option<Reply>) {
        let Some(place) = self.place.take() else {
            return;
        };
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let name = |s: String| bounded_name(self.redactor.name(&s));
        place.send(Command::Finish {
            id: std::mem::take(&mut self.id),
            closing: Closing {
                verdict: outcome.verdict,
                exit_code: outcome.exit_code,
                duration_ms: Some(outcome.duration_ms.unwrap_or(elapsed)),
                channel: outcome.channel.map(name),
                target: outcome.target.map(name),
                detail: prepare_detail(outcome.detail, &self.redactor),
            },
            reply,
        });
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        self.send(
            Outcome::unknown("the action ended without an outcome"),
            None,
        );
    }
}

impl fmt::Debug for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intent")
            .field("id", &self.id)
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

/// `au-` and 16 hexadecimal digits.
pub(crate) fn correlation_id() -> Result<String, Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| Error::NoRandom {
        reason: e.to_string(),
    })?;
    Ok(format!("au-{}", hex::encode(bytes)))
}

fn with_refusal(mut entry: Entry, reason: &str) -> Entry {
    let mut object = match entry.detail {
        Value::Object(object) => object,
        Value::Null => serde_json::Map::new(),
        other => serde_json::Map::from_iter([("detail".to_owned(), other)]),
    };
    object.insert("refusal".to_owned(), json!(reason));
    entry.detail = Value::Object(object);
    entry
}
