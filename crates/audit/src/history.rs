//! Reading records: the last ones, or all that match, in bounded memory. It checks nothing of the
//! chain (that is [`crate::verify()`]); a line that is no record is counted or given as an error, never left out.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::chain::{Finding, Problem};
use crate::error::Error;
use crate::lines::{Line, Lines, LinesBack};
use crate::record::{Record, parse};

/// The most records that [`tail`] gives.
pub const MAX_TAIL: usize = 10_000;

/// Which records to give; an empty filter gives all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only of this target.
    pub target: Option<String>,
    /// Only with this correlation id.
    pub id: Option<String>,
    /// Only at this time or later.
    pub since: Option<Timestamp>,
    /// Only before this time.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Whether the record is asked for.
    pub fn matches(&self, record: &Record) -> bool {
        self.target.as_ref().is_none_or(|t| *t == record.target)
            && self.id.as_ref().is_none_or(|id| *id == record.id)
            && self.since.is_none_or(|since| record.time >= since)
            && self.until.is_none_or(|until| record.time < until)
    }
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tail {
    /// The records, the oldest first.
    pub records: Vec<Record>,
    /// How many lines among those looked at are no records. Verify the log if this is not 0.
    pub unreadable: u64,
}

/// The last `n` matching records (at most [`MAX_TAIL`]), read from the end of the file. Blocks.
pub fn tail(path: impl AsRef<Path>, filter: &Filter, n: usize) -> Result<Tail, Error> {
    let path = path.as_ref();
    let n = n.min(MAX_TAIL);
    let read = |e| Error::io("read", path, e);
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let (mut lines, torn) = LinesBack::new(file).map_err(read)?;
    let mut unreadable = u64::from(torn);
    let mut records = VecDeque::new();
    while records.len() < n
        && let Some(line) = lines.next().map_err(read)?
    {
        match record(&line) {
            Ok(record) if filter.matches(&record) => records.push_front(record),
            Ok(_) => {}
            Err(_) => unreadable += 1,
        }
    }
    Ok(Tail {
        records: records.into(),
        unreadable,
    })
}

/// All matching records from the first one on, one at a time. Blocks.
pub fn records(path: impl AsRef<Path>, filter: Filter) -> Result<Records, Error> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    Ok(Records {
        path: path.to_owned(),
        lines: Lines::new(BufReader::new(file)),
        line: 0,
        failed: false,
        filter,
    })
}

/// What [`records`] gives. A line that is no record is [`Error::Broken`], and the next call
/// goes on after it; after a failed read there is no more.
pub struct Records {
    path: PathBuf,
    lines: Lines<BufReader<File>>,
    line: u64,
    failed: bool,
    filter: Filter,
}

impl Iterator for Records {
    type Item = Result<Record, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.failed {
                return None;
            }
            let line = match self.lines.next() {
                Ok(line) => line?,
                Err(e) => {
                    self.failed = true;
                    return Some(Err(Error::io("read", &self.path, e)));
                }
            };
            self.line = self.line.saturating_add(1);
            match record(&line) {
                Ok(record) if self.filter.matches(&record) => return Some(Ok(record)),
                Ok(_) => {}
                Err(problem) => {
                    return Some(Err(Error::Broken {
                        path: self.path.clone(),
                        finding: Box::new(Finding {
                            line: self.line,
                            seq: None,
                            problem,
                        }),
                    }));
                }
            }
        }
    }
}

fn record(line: &Line) -> Result<Record, Problem> {
    match line {
        Line::Whole(bytes) => parse(bytes)
            .map(|(record, _)| record)
            .map_err(|reason| Problem::Unreadable { reason }),
        Line::TooLong => Err(Problem::Unreadable {
            reason: "it is longer than any record".to_owned(),
        }),
        Line::Torn { bytes, .. } => Err(Problem::Torn { bytes: *bytes }),
    }
}
