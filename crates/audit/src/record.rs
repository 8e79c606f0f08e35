//! One record: its parts, its canonical line and its hash. Pure: no files, no clock.

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::head::{Head, RecordHash};

/// The word in a record's `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The action is about to begin; another record with the same id says how it ended.
    Intent,
    /// Done.
    Ok,
    /// Not done, or done wrongly.
    Failed,
    /// Not allowed, or not possible as asked: nothing was changed.
    Refused,
    /// Nobody knows whether it was done.
    Unknown,
    /// Said by the log about itself (a torn tail, a write that was undone).
    Note,
}

impl Verdict {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Note => "note",
        }
    }
}

/// A record as it stands in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number; the first is 1.
    pub seq: u64,
    /// When it was written.
    #[serde(serialize_with = "microseconds")]
    pub time: Timestamp,
    /// The correlation id: `au-` and 16 hexadecimal digits, the same in an intent and its outcome.
    pub id: String,
    /// Who.
    pub actor: String,
    /// Did what.
    pub action: String,
    /// To what.
    pub target: String,
    /// By which channel.
    pub channel: Option<String>,
    /// The rest, redacted.
    pub detail: Value,
    /// Intent or how it ended.
    pub outcome: Verdict,
    /// The exit code of a command that ran to its end.
    pub exit_code: Option<i32>,
    /// From the written intent to the outcome.
    pub duration_ms: Option<u64>,
    /// The hash of the record before.
    pub prev: RecordHash,
    /// The hash of this record.
    pub hash: RecordHash,
}

impl Record {
    /// The head of the chain when this record was its last.
    pub fn head(&self) -> Head {
        Head {
            seq: self.seq,
            hash: self.hash,
        }
    }
}

fn microseconds<S: serde::Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{time:.6}"))
}

/// Who, what, where and how: the part that an intent and its outcome have in common.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Subject {
    pub actor: String,
    pub action: String,
    pub target: String,
    pub channel: Option<String>,
}

/// A redacted, bounded record that has no place in the chain yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draft {
    pub time: Timestamp,
    pub id: String,
    pub subject: Subject,
    pub detail: Value,
    pub verdict: Verdict,
    pub exit_code: Option<i32>,
    pub duration_ms: Option<u64>,
}

impl Draft {
    /// The line (with its newline) that follows `head`, and the head after it.
    pub fn seal(&self, head: Head) -> io::Result<(Vec<u8>, Head)> {
        #[derive(Serialize)]
        struct Body<'a> {
            seq: u64,
            #[serde(serialize_with = "microseconds")]
            time: Timestamp,
            id: &'a str,
            actor: &'a str,
            action: &'a str,
            target: &'a str,
            channel: Option<&'a str>,
            detail: &'a Value,
            outcome: Verdict,
            exit_code: Option<i32>,
            duration_ms: Option<u64>,
            prev: RecordHash,
        }
        let seq = head.seq.saturating_add(1);
        let mut line = ascii_json(&Body {
            seq,
            time: self.time,
            id: &self.id,
            actor: &self.subject.actor,
            action: &self.subject.action,
            target: &self.subject.target,
            channel: self.subject.channel.as_deref(),
            detail: &self.detail,
            outcome: self.verdict,
            exit_code: self.exit_code,
            duration_ms: self.duration_ms,
            prev: head.hash,
        })?;
        let hash = RecordHash::of(&[&line]);
        line.pop();
        line.extend_from_slice(format!("{HASH_KEY}{hash}\"}}\n").as_bytes());
        Ok((line, Head { seq, hash }))
    }
}

const HASH_KEY: &str = ",\"hash\":\"";
/// The key, 64 digits and `"}`.
const HASH_BYTES: usize = HASH_KEY.len() + 64 + 2;

/// How much of a parser's complaint is kept; it may quote what stands in the line.
const MAX_REASON_CHARS: usize = 200;

/// The record in a line (without its newline), and the hash that its bytes really have.
pub(crate) fn parse(line: &[u8]) -> Result<(Record, RecordHash), String> {
    if !line.iter().all(|b| (b' '..=b'~').contains(b)) {
        return Err("it holds bytes that no record has".to_owned());
    }
    let record: Record = serde_json::from_slice(line).map_err(|e| {
        let reason = e.to_string();
        reason.chars().take(MAX_REASON_CHARS).collect::<String>()
    })?;
    let end = format!("{HASH_KEY}{}\"}}", record.hash);
    let body = line
        .len()
        .checked_sub(HASH_BYTES)
        .and_then(|at| line.split_at_checked(at))
        .filter(|(_, tail)| *tail == end.as_bytes())
        .map(|(body, _)| body)
        .ok_or("it does not end with its hash")?;
    Ok((record, RecordHash::of(&[body, b"}"])))
}

/// JSON without spaces in which every character outside printable ASCII is escaped.
pub(crate) fn ascii_json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    struct Ascii;
    impl serde_json::ser::Formatter for Ascii {
        fn write_string_fragment<W: ?Sized + io::Write>(
            &mut self,
            to: &mut W,
            fragment: &str,
        ) -> io::Result<()> {
            for c in fragment.chars() {
                if (' '..='~').contains(&c) {
                    write!(to, "{c}")?;
                } else {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(to, "\\u{unit:04x}")?;
                    }
                }
            }
            Ok(())
        }
    }
    let mut bytes = Vec::with_capacity(512);
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut bytes, Ascii,
    ))?;
    Ok(bytes)
}
