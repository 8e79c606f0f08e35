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
use crate::record::{Record, Verdict, parse};
use crate::series;

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

/// The last `n` matching records (at most [`MAX_TAIL`]), read from the end of the log, through older files where it must.
/// Blocks.
pub fn tail(path: impl AsRef<Path>, filter: &Filter, n: usize) -> Result<Tail, Error> {
    let path = path.as_ref();
    let n = n.min(MAX_TAIL);
    let mut unreadable = 0;
    let mut records = VecDeque::new();
    for one in newest_first(path)? {
        let read = |e| Error::io("read", &one, e);
        let file = File::open(&one).map_err(|e| Error::io("open", &one, e))?;
        let (mut lines, torn) = LinesBack::new(file).map_err(read)?;
        unreadable += u64::from(torn);
        while records.len() < n
            && let Some(line) = lines.next().map_err(read)?
        {
            match record(&line) {
                Ok(record) if filter.matches(&record) => records.push_front(record),
                Ok(_) => {}
                Err(_) => unreadable += 1,
            }
        }
        if records.len() >= n {
            break;
        }
    }
    Ok(Tail {
        records: records.into(),
        unreadable,
    })
}

/// The lines of the log, as they stand, from the intent with this id to the last record, the oldest first: a part of
/// the chain that anybody can check. Only those of the last `max` lines, and nothing where the intent is not among them.
/// Blocks.
pub fn slice(path: impl AsRef<Path>, id: &str, max: usize) -> Result<Vec<String>, Error> {
    let mut found = VecDeque::new();
    for one in newest_first(path.as_ref())? {
        let read = |e| Error::io("read", &one, e);
        let file = File::open(&one).map_err(|e| Error::io("open", &one, e))?;
        let (mut lines, _) = LinesBack::new(file).map_err(read)?;
        while found.len() < max
            && let Some(line) = lines.next().map_err(read)?
        {
            let Line::Whole(bytes) = &line else {
                continue;
            };
            found.push_front(String::from_utf8_lossy(bytes).into_owned());
            let begins = |record: &Record| record.id == id && record.outcome == Verdict::Intent;
            if record(&line).is_ok_and(|record| begins(&record)) {
                return Ok(found.into());
            }
        }
    }
    Ok(Vec::new())
}

fn newest_first(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let older = series::set_aside(path)?.into_iter().rev();
    let mut files = vec![path.to_owned()];
    files.extend(older.map(|file| file.path));
    Ok(files)
}

/// All matching records from the first one on, one at a time. Blocks.
pub fn records(path: impl AsRef<Path>, filter: Filter) -> Result<Records, Error> {
    let mut waiting = newest_first(path.as_ref())?;
    let path = waiting.pop().unwrap_or_default();
    Ok(Records {
        lines: open(&path)?,
        path,
        waiting,
        line: 0,
        failed: false,
        filter,
    })
}

fn open(path: &Path) -> Result<Lines<BufReader<File>>, Error> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    Ok(Lines::new(BufReader::new(file)))
}

/// What [`records`] gives. A line that is no record is [`Error::Broken`], and the next call
/// goes on after it; after a failed read there is no more.
pub struct Records {
    path: PathBuf,
    lines: Lines<BufReader<File>>,
    /// Newer files, the next one last.
    waiting: Vec<PathBuf>,
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
                Ok(Some(line)) => line,
                Ok(None) => {
                    self.path = self.waiting.pop()?;
                    self.line = 0;
                    match open(&self.path) {
                        Ok(lines) => self.lines = lines,
                        Err(e) => {
                            self.failed = true;
                            return Some(Err(e));
                        }
                    }
                    continue;
                }
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
                            file: None,
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
