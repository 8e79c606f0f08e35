//! The chain: follows lines from the first one, compares each with what it should be, and keeps the
//! intents that still wait for an outcome. Pure; it is fed lines and owns no file.
//!
//! After a fault it goes on from the record as it stands, so one edit is one finding and not a thousand.

use std::collections::HashMap;
use std::fmt;

use crate::head::{Head, RecordHash};
use crate::lines::Line;
use crate::log::MAX_OPEN_INTENTS;
use crate::record::{Record, Subject, Verdict, parse};
use crate::series;

/// How many findings are kept whole; the rest is counted.
const MAX_FINDINGS: usize = 100;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file's name, where it is one that was set aside.
    pub file: Option<String>,
    /// The line in the file; the first is 1.
    pub line: u64,
    /// The number that the record gives itself, where one can be read.
    pub seq: Option<u64>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.file {
            Some(file) => format!("{file}, line {}", self.line),
            None => format!("line {}", self.line),
        };
        match self.seq {
            Some(seq) => write!(f, "record {seq} ({place}): {}", self.problem),
            None => write!(f, "{place}: {}", self.problem),
        }
    }
}

/// What can be wrong with a line or a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The line is no record.
    #[error("it is not a record: {reason}")]
    Unreadable {
        /// Why not.
        reason: String,
    },
    /// The record's bytes do not have the hash that it carries.
    #[error("its content was changed: it carries the hash {stored} but its bytes have {computed}")]
    Hash {
        /// The hash in the record.
        stored: RecordHash,
        /// The hash of its bytes.
        computed: RecordHash,
    },
    /// The record does not follow the one before it.
    #[error("it does not follow the record before it: its prev is {found}, expected {expected}")]
    Prev {
        /// The hash of the record before.
        expected: RecordHash,
        /// What the record says.
        found: RecordHash,
    },
    /// A number is missing, repeated or out of order.
    #[error("{}", describe_sequence(*expected, *found))]
    Sequence {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// The file ends in the middle of a line.
    #[error("the file ends with {bytes} bytes of an unfinished line")]
    Torn {
        /// How many bytes.
        bytes: u64,
    },
    /// The chain ends before the given head.
    #[error("the log was truncated: it ends at record {last}, but the head given is {head}")]
    Truncated {
        /// The last record there is.
        last: u64,
        /// The head that it was compared with.
        head: Head,
    },
    /// The record that the head names has another hash.
    #[error(
        "the log was rewritten: this record has the hash {found}, but the head given is {head}"
    )]
    Rewritten {
        /// The hash in the file.
        found: RecordHash,
        /// The head that it was compared with.
        head: Head,
    },
    /// More intents without an outcome than a writer ever allows.
    #[error("more than {limit} intents have no outcome")]
    TooManyOpen {
        /// The limit.
        limit: usize,
    },
}

fn describe_sequence(expected: u64, found: u64) -> String {
    match found.checked_sub(expected) {
        Some(1) => format!("record {expected} is missing before it"),
        Some(_) => format!(
            "records {expected} to {} are missing before it",
            found.saturating_sub(1)
        ),
        None => format!("it is repeated or out of order: expected record {expected}"),
    }
}

/// An intent without an outcome.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub seq: u64,
    pub subject: Subject,
}

/// Follows a chain line by line.
pub(crate) struct Walker {
    anchor: Option<Head>,
    anchor_met: bool,
    file: Option<String>,
    /// Whether the first record may be one that follows another file.
    midway: bool,
    line: u64,
    pub records: u64,
    pub head: Head,
    pub open: HashMap<String, Open>,
    pub findings: Vec<Finding>,
    pub more_findings: u64,
    /// Where an unfinished last line begins.
    pub torn_at: Option<u64>,
}

impl Walker {
    pub fn new(anchor: Option<Head>) -> Self {
        let mut walker = Self {
            anchor,
            anchor_met: false,
            file: None,
            midway: false,
            line: 0,
            records: 0,
            head: Head::GENESIS,
            open: HashMap::new(),
            findings: Vec::new(),
            more_findings: 0,
            torn_at: None,
        };
        walker.compare_anchor(Head::GENESIS);
        walker
    }

    /// From the beginning of any file of a chain; what was before it is believed.
    pub fn midway() -> Self {
        Self {
            midway: true,
            ..Self::new(None)
        }
    }

    /// To be called before the first line of a file; its name where it was set aside.
    pub fn begin_file(&mut self, name: Option<String>) {
        self.file = name;
        self.line = 0;
    }

    pub fn feed(&mut self, line: &Line) {
        self.line = self.line.saturating_add(1);
        match line {
            Line::Whole(bytes) => match parse(bytes) {
                Ok((record, computed)) => self.record(record, computed),
                Err(reason) => self.find(None, Problem::Unreadable { reason }),
            },
            Line::TooLong => self.find(
                None,
                Problem::Unreadable {
                    reason: "it is longer than any record".to_owned(),
                },
            ),
            Line::Torn { offset, bytes } => {
                self.torn_at = Some(*offset);
                self.find(None, Problem::Torn { bytes: *bytes });
            }
        }
    }

    /// To be called after the last line.
    pub fn end(&mut self) {
        if let Some(head) = self.anchor
            && !self.anchor_met
        {
            let last = self.head.seq;
            self.find(None, Problem::Truncated { last, head });
        }
    }

    fn record(&mut self, record: Record, computed: RecordHash) {
        if self.midway && self.records == 0 && series::continues(&record) {
            self.head = Head {
                seq: record.seq.saturating_sub(1),
                hash: record.prev,
            };
        }
        let seq = Some(record.seq);
        let expected = self.head.seq.saturating_add(1);
        if record.hash != computed {
            self.find(
                seq,
                Problem::Hash {
                    stored: record.hash,
                    computed,
                },
            );
        }
        if record.seq != expected {
            let found = record.seq;
            self.find(seq, Problem::Sequence { expected, found });
        }
        if record.prev != self.head.hash {
            let (expected, found) = (self.head.hash, record.prev);
            self.find(seq, Problem::Prev { expected, found });
        }
        self.records = self.records.saturating_add(1);
        self.head = record.head();
        self.compare_anchor(self.head);
        self.follow_intent(record);
    }

    fn compare_anchor(&mut self, at: Head) {
        let Some(head) = self.anchor.filter(|anchor| anchor.seq == at.seq) else {
            return;
        };
        self.anchor_met = true;
        if head.hash != at.hash {
            let found = at.hash;
            self.find(Some(at.seq), Problem::Rewritten { found, head });
        }
    }

    fn follow_intent(&mut self, record: Record) {
        match record.outcome {
            Verdict::Intent if self.open.len() >= MAX_OPEN_INTENTS => self.find(
                Some(record.seq),
                Problem::TooManyOpen {
                    limit: MAX_OPEN_INTENTS,
                },
            ),
            Verdict::Intent => {
                let subject = Subject {
                    actor: record.actor,
                    action: record.action,
                    target: record.target,
                    channel: record.channel,
                };
                let seq = record.seq;
                self.open.insert(record.id, Open { seq, subject });
            }
            // A refusal without an intent has an id of its own, which nothing waits for.
            Verdict::Ok | Verdict::Failed | Verdict::Unknown | Verdict::Refused => {
                self.open.remove(&record.id);
            }
            Verdict::Note => {}
        }
    }

    fn find(&mut self, seq: Option<u64>, problem: Problem) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding {
                file: self.file.clone(),
                line: self.line,
                seq,
                problem,
            });
        } else {
            self.more_findings = self.more_findings.saturating_add(1);
        }
    }
}
