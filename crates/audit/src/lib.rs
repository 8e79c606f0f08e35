//! Hash-chained audit records: who did what to which target, when, with what outcome.
//!
//! ```text
//!   Log::open ─▶ verify all, set a torn tail aside, close open intents as unknown
//!      │
//!      ├─ intent(entry)  ─▶ record "intent", synced ─▶ the action ─▶ finish(outcome) ─▶ record, synced soon
//!      └─ refused(entry, reason) ─▶ record "refused", synced
//! ```
//!
//! **The rule for callers:** write the intent first; if [`Log::intent`] returns an error, the action
//! must be refused. An [`Intent`] that is dropped is recorded with the outcome `unknown`.
//!
//! # The file
//!
//! One JSON object a line, in printable ASCII only (everything else is escaped, so no content of a
//! field can begin a line), fields in this order, no spaces between them:
//!
//! ```text
//! {"seq":1,"time":"2026-01-02T03:04:05.000006Z","id":"au-0123456789abcdef","actor":"alice","action":"exec",
//!  "target":"web","channel":"agent","detail":{…},"outcome":"intent","exit_code":null,"duration_ms":null,
//!  "prev":"<64 hex digits>","hash":"<64 hex digits>"}
//! ```
//!
//! * `seq` begins at 1 and grows by one; `prev` is the `hash` of the record before, 64 zeros for the first.
//! * `hash` is the SHA-256 of the line without its end `,"hash":"…"}` and with `}` in its place; so it
//!   covers every other byte, `prev` too, and anybody can check it without parsing numbers.
//! * `time` is RFC 3339 in UTC with six decimals; the keys of objects in `detail` are sorted.
//! * `id` joins an intent with its outcome. `outcome` is `intent`, `ok`, `failed`, `refused`, `unknown`,
//!   or `note` for what the log says of itself.
//! * A line has at most [`MAX_LINE_BYTES`]; names are cut at [`MAX_NAME_CHARS`] characters, a larger
//!   detail than [`MAX_DETAIL_BYTES`] is replaced by its size, digest and beginning.
//!
//! A file that has grown to [`Options::rotate_bytes`] is set aside as `NAME.SEQ.EXT`, where SEQ is its last record, and
//! replaced in one step by its successor, in which the chain goes on: its first record is the note `audit.continues`.
//! Reading and verifying a log go through all of its files.
//!
//! A chain proves that nothing *inside* it was changed. Whoever can write the file can still cut its end
//! or write all of it anew; only a [`Head`] kept elsewhere shows that (see [`verify()`]).
//!
//! This crate never runs an action, and never sees a network.

mod chain;
mod command;
mod entry;
mod error;
mod file;
mod head;
mod history;
mod lines;
mod log;
mod record;
mod redact;
mod series;
mod verify;
mod writer;

pub use chain::{Finding, Problem};
pub use entry::{Entry, MAX_DETAIL_BYTES, MAX_NAME_CHARS, Outcome};
pub use error::Error;
pub use head::{Head, InvalidHead, RecordHash};
pub use history::{Filter, MAX_TAIL, Records, Tail, records, slice, tail};
pub use lines::MAX_LINE_BYTES;
pub use log::{Clock, Intent, Log, MAX_OPEN_INTENTS, Options, ROTATE_BYTES, Witness};
pub use record::{Record, Verdict};
pub use redact::{REDACTED, Redactor, WeakSecret};
pub use verify::{Proof, Report, verify, verify_reader};
