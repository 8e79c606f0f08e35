//! Verification: reads a whole log and says what is wrong with it, and how far that is proven.
//! Bounded memory; blocking; changes nothing and takes no lock.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::chain::{Finding, Problem, Walker};
use crate::error::Error;
use crate::head::Head;
use crate::lines::Lines;
use crate::series::{self, SetAside};

/// What a head proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// No head was given: records may be missing at the end, or all of it may have been written anew.
    NoAnchor,
    /// The record of the given head is there: everything up to it is what it was.
    UpTo(Head),
    /// The given head contradicts the file.
    Contradicted(Head),
}

/// What [`verify()`] found; [`fmt::Display`] says it in sentences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How many lines are records.
    pub records: u64,
    /// The last record as it stands.
    pub head: Head,
    /// Intents without an outcome: running actions, or a writer that was killed.
    pub open_intents: usize,
    /// What is wrong, in the order of the file; the first hundred.
    pub findings: Vec<Finding>,
    /// How many findings are left out.
    pub more_findings: u64,
    /// How far the given head reaches.
    pub proof: Proof,
}

impl Report {
    /// Nothing is wrong. Without an anchor that says nothing about the tail, see [`Report::proof`].
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        if self.more_findings > 0 {
            writeln!(f, "and {} more findings", self.more_findings)?;
        }
        let last = self.head.seq;
        if self.is_sound() {
            writeln!(
                f,
                "{} records, each follows the one before it",
                self.records
            )?;
        } else {
            writeln!(f, "{} records; the chain is broken", self.records)?;
        }
        if self.open_intents > 0 {
            writeln!(f, "{} intents have no outcome", self.open_intents)?;
        }
        match self.proof {
            Proof::NoAnchor => write!(
                f,
                "no head was given: that no records are missing after record {last}, and that the log was not written anew, is not provable"
            ),
            Proof::UpTo(head) if head.seq < last => write!(
                f,
                "proven up to record {}; that no records are missing after record {last} is not provable",
                head.seq
            ),
            Proof::UpTo(head) => write!(f, "proven up to its end, record {}", head.seq),
            Proof::Contradicted(head) => {
                write!(f, "the log is not the one that had the head {head}")
            }
        }
    }
}

/// How often a log that ends in the middle of a line is read again, because its writer may be at it.
const TORN_RETRIES: u32 = 3;
const TORN_PAUSE: Duration = Duration::from_millis(20);

/// Reads the log at `path`, with the files of it that were set aside, and finds every edit, gap, repetition and change of order; with a `head`
/// that was kept elsewhere truncation and rewriting too. An error means that it could not be read.
///
/// Blocks; call it from a thread that may.
pub fn verify(path: impl AsRef<Path>, head: Option<Head>) -> Result<Report, Error> {
    let path = path.as_ref();
    let mut report = read(path, head)?;
    for _ in 0..TORN_RETRIES {
        let [
            Finding {
                problem: Problem::Torn { .. },
                ..
            },
            ..,
        ] = report.findings.as_slice()
        else {
            break;
        };
        thread::sleep(TORN_PAUSE);
        report = read(path, head)?;
    }
    Ok(report)
}

/// All files of the log. When one is set aside meanwhile, it begins anew.
fn read(path: &Path, anchor: Option<Head>) -> Result<Report, Error> {
    let mut older = series::set_aside(path)?;
    loop {
        let report = read_files(path, &older, anchor)?;
        let now = series::set_aside(path)?;
        if now == older {
            return Ok(report);
        }
        older = now;
    }
}

fn read_files(path: &Path, older: &[SetAside], anchor: Option<Head>) -> Result<Report, Error> {
    let mut walker = Walker::new(anchor);
    let older = older.iter().map(|file| file.path.as_path());
    for one in older.chain([path]) {
        let name = one
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        walker.begin_file(name.filter(|_| one != path));
        let file = File::open(one).map_err(|e| Error::io("open", one, e))?;
        let mut lines = Lines::new(BufReader::new(file));
        while let Some(line) = lines.next().map_err(|e| Error::io("read", one, e))? {
            walker.feed(&line);
        }
    }
    Ok(report(walker, anchor))
}

/// The same for a log in one piece that comes from anywhere. An end in the middle of a line counts as one.
pub fn verify_reader(log: impl BufRead, anchor: Option<Head>) -> io::Result<Report> {
    let mut lines = Lines::new(log);
    let mut walker = Walker::new(anchor);
    while let Some(line) = lines.next()? {
        walker.feed(&line);
    }
    Ok(report(walker, anchor))
}

/// What was found, when everything has been read.
fn report(mut walker: Walker, anchor: Option<Head>) -> Report {
    walker.end();
    let contradicted = walker.findings.iter().any(|f| {
        matches!(
            f.problem,
            Problem::Truncated { .. } | Problem::Rewritten { .. }
        )
    });
    let proof = match anchor {
        None => Proof::NoAnchor,
        Some(head) if contradicted => Proof::Contradicted(head),
        Some(head) => Proof::UpTo(head),
    };
    Report {
        records: walker.records,
        head: walker.head,
        open_intents: walker.open.len(),
        findings: walker.findings,
        more_findings: walker.more_findings,
        proof,
    }
}
