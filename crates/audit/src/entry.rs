//! What callers hand in: the entry before an action and the outcome after it, and how both are made
//! fit for a record (redacted, then bounded). Pure.

use serde_json::{Value, json};

use crate::head::RecordHash;
use crate::record::{Subject, Verdict, ascii_json};
use crate::redact::Redactor;

/// The longest name (actor, action, target, channel) that a record keeps, in characters.
pub const MAX_NAME_CHARS: usize = 1024;
/// The largest detail that a record keeps whole, in bytes of its JSON text.
pub const MAX_DETAIL_BYTES: usize = 64 * 1024;
/// How much of a larger detail is kept.
const DETAIL_HEAD_BYTES: usize = 4096;

/// What is about to be done: who, what, to which target, by which channel, and the rest as JSON.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Entry {
    /// Who asks for it: a user, a token's name, a part of the system.
    pub actor: String,
    /// What is done, in dotted words (`instance.exec`).
    pub action: String,
    /// To what: an instance, node, host, zone.
    pub target: String,
    /// By which channel, if one is known before the action.
    pub channel: Option<String>,
    /// Anything else (argv, working directory). It is redacted before it is written.
    pub detail: Value,
}

impl Entry {
    /// An entry without channel and detail.
    pub fn new(
        actor: impl Into<String>,
        action: impl Into<String>,
        target: impl Into<String>,
    ) -> Self {
        Self {
            actor: actor.into(),
            action: action.into(),
            target: target.into(),
            ..Self::default()
        }
    }

    /// With the channel.
    #[must_use]
    pub fn channel(mut self, channel: impl Into<String>) -> Self {
        self.channel = Some(channel.into());
        self
    }

    /// With a detail.
    #[must_use]
    pub fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }
}

/// How an action ended; made by [`Outcome::ok`], [`Outcome::exited`], [`Outcome::failed`],
/// [`Outcome::refused`] or [`Outcome::unknown`].
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) exit_code: Option<i32>,
    pub(crate) duration_ms: Option<u64>,
    pub(crate) channel: Option<String>,
    pub(crate) target: Option<String>,
    pub(crate) detail: Value,
}

impl Outcome {
    fn new(verdict: Verdict, exit_code: Option<i32>, detail: Value) -> Self {
        Self {
            verdict,
            exit_code,
            duration_ms: None,
            channel: None,
            target: None,
            detail,
        }
    }

    /// It was done.
    pub fn ok() -> Self {
        Self::new(Verdict::Ok, None, Value::Null)
    }

    /// A command ended with this exit code: `ok` for 0, `failed` for any other.
    pub fn exited(code: i32) -> Self {
        let verdict = if code == 0 {
            Verdict::Ok
        } else {
            Verdict::Failed
        };
        Self::new(verdict, Some(code), Value::Null)
    }

    /// It is known not to have been done, or to have been done wrongly.
    pub fn failed(error: impl Into<String>) -> Self {
        Self::new(Verdict::Failed, None, json!({"error": error.into()}))
    }

    /// What does the action would not: nothing was changed. For what is refused before there is an
    /// intent see [`crate::Log::refused`].
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::new(Verdict::Refused, None, json!({"refusal": reason.into()}))
    }

    /// It may or may not have been done (a channel broke after the start).
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self::new(Verdict::Unknown, None, json!({"reason": reason.into()}))
    }

    /// With a detail in place of the one that the constructor made. It is redacted before it is written.
    #[must_use]
    pub fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    /// With the channel that really ran it, where that is not the entry's.
    #[must_use]
    pub fn channel(mut self, channel: impl Into<String>) -> Self {
        self.channel = Some(channel.into());
        self
    }

    /// With the target, where that was not known before the action (a name that the action chose).
    #[must_use]
    pub fn target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// With a measured duration; otherwise the time since the intent was written is taken.
    #[must_use]
    pub fn duration_ms(mut self, duration_ms: u64) -> Self {
        self.duration_ms = Some(duration_ms);
        self
    }
}

/// The redacted and bounded parts of an entry.
pub(crate) fn prepare(entry: Entry, redactor: &Redactor) -> (Subject, Value) {
    let name = |s: String| bounded_name(redactor.name(&s));
    let subject = Subject {
        actor: name(entry.actor),
        action: name(entry.action),
        target: name(entry.target),
        channel: entry.channel.map(name),
    };
    (subject, prepare_detail(entry.detail, redactor))
}

/// A redacted, sorted and bounded detail.
pub(crate) fn prepare_detail(detail: Value, redactor: &Redactor) -> Value {
    let mut detail = redactor.value(detail);
    detail.sort_all_objects();
    let text = match ascii_json(&detail) {
        Ok(text) => text,
        Err(e) => return json!({"unwritable": e.to_string()}),
    };
    if text.len() <= MAX_DETAIL_BYTES {
        return detail;
    }
    let head = text.get(..DETAIL_HEAD_BYTES).unwrap_or_default();
    json!({"oversize": {
        "bytes": text.len(),
        "sha256": RecordHash::of(&[&text]),
        "head": String::from_utf8_lossy(head),
    }})
}

/// Cut only after redaction, so that no half of a secret stands at the end.
pub(crate) fn bounded_name(name: String) -> String {
    match name.char_indices().nth(MAX_NAME_CHARS) {
        None => name,
        Some(_) => {
            let mut cut: String = name.chars().take(MAX_NAME_CHARS - 1).collect();
            cut.push('…');
            cut
        }
    }
}
