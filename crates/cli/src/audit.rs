//! `audit tail` and `audit verify`: what the audit log says, and whether it is what was written.
//!
//! `tail` asks the controller. `verify` reads the file itself, so it needs no controller and trusts none.

use std::path::Path;

use ::audit::{Head, Proof, Report};
use api::audit::{AuditRecord, AuditTail};
use clap::{Args, Subcommand};
use client::Client;
use serde::Serialize;

use crate::arguments::Globals;
use crate::connection;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::screen::Screen;
use crate::table::Table;

/// The log's name in the data directory.
pub const FILE: &str = "audit.log";
/// How much of a detail a table shows.
const DETAIL_CHARS: usize = 100;

/// `audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show the last records, the newest last
    ///
    /// An action has two: its intent, and what became of it. With --json the records are whole.
    #[command(
        after_help = "Examples:\n  proximity audit tail\n  proximity audit tail -n 500 --target web --json"
    )]
    Tail(TailArgs),
    /// Check that nobody changed the log on this machine
    ///
    /// Finds every edit, gap and change of order. That nothing was cut off at the end is provable
    /// with a head only: every answer of the API carries one (proximity-audit-head), and the
    /// controller tells one when it starts and stops. Exit code 1 if anything is wrong.
    #[command(
        after_help = "Examples:\n  sudo proximity audit verify\n  sudo proximity audit verify --head 42:9f86d081…"
    )]
    Verify(VerifyArgs),
}

/// `audit tail`
#[derive(Debug, Args)]
pub struct TailArgs {
    /// How many
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 20,
        value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub lines: u16,
    /// Only about this instance or zone
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
}

/// `audit verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A head that was kept: the log must still have the record it names
    #[arg(long, value_name = "SEQ:HASH")]
    pub head: Option<Head>,
}

/// Shows the last records.
pub async fn tail(client: &Client, args: &TailArgs, screen: &Screen) -> Result<Exit, Failure> {
    let tail = client
        .audit(args.target.as_deref(), usize::from(args.lines))
        .await?;
    if screen.json() {
        screen.document(&tail)?;
    } else if tail.records.is_empty() {
        screen.note("the audit log has no such records");
    } else {
        screen.print(&table(&tail))?;
    }
    if tail.unreadable > 0 {
        screen.warn(&format!(
            "{} lines are no records: sudo proximity audit verify",
            tail.unreadable
        ));
    }
    Ok(Exit::OK)
}

fn table(tail: &AuditTail) -> String {
    let mut table = Table::new(&[
        "SEQ", "TIME", "ACTOR", "ACTION", "TARGET", "OUTCOME", "EXIT", "MS", "CHANNEL", "DETAIL",
    ]);
    let number = |n: Option<String>| n.unwrap_or_default();
    for record in &tail.records {
        table.row([
            record.seq.to_string(),
            record.time.clone(),
            record.actor.clone(),
            record.action.clone(),
            record.target.clone(),
            record.outcome.clone(),
            number(record.exit_code.map(|c| c.to_string())),
            number(record.duration_ms.map(|ms| ms.to_string())),
            record.channel.clone().unwrap_or_default(),
            detail(record),
        ]);
    }
    table.text()
}

fn detail(record: &AuditRecord) -> String {
    if record.detail.is_null() {
        return String::new();
    }
    let text = record.detail.to_string();
    match text.char_indices().nth(DETAIL_CHARS) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

/// What `verify --json` prints.
#[derive(Serialize)]
struct Verified {
    sound: bool,
    file: String,
    records: u64,
    head: String,
    open_intents: usize,
    findings: Vec<Found>,
    more_findings: u64,
    /// Up to which record the given head proves the log.
    proven_up_to: Option<u64>,
}

#[derive(Serialize)]
struct Found {
    line: u64,
    seq: Option<u64>,
    problem: String,
}

/// Checks the log in the data directory of this machine.
pub fn verify(args: &VerifyArgs, globals: &Globals, screen: &Screen) -> Result<Exit, Failure> {
    let path = connection::data_dir(globals)?.join(FILE);
    let report = ::audit::verify(&path, args.head).map_err(|e| {
        let cause = std::error::Error::source(&e).map(|c| format!(": {c}"));
        Failure::local(format!("{e}{}", cause.unwrap_or_default())).next(
            "the log belongs to root of the controller's machine: sudo proximity audit verify",
        )
    })?;
    if screen.json() {
        screen.document(&verified(&path, &report))?;
    } else {
        screen.print(&guest_text::lines(&report.to_string()))?;
        screen.note(&format!("its head is {}", report.head));
    }
    if report.is_sound() {
        Ok(Exit::OK)
    } else {
        Err(Failure::Reported(Exit::FAILED))
    }
}

fn verified(path: &Path, report: &Report) -> Verified {
    let found = |f: &::audit::Finding| Found {
        line: f.line,
        seq: f.seq,
        problem: f.problem.to_string(),
    };
    Verified {
        sound: report.is_sound(),
        file: path.display().to_string(),
        records: report.records,
        head: report.head.to_string(),
        open_intents: report.open_intents,
        findings: report.findings.iter().map(found).collect(),
        more_findings: report.more_findings,
        proven_up_to: match report.proof {
            Proof::UpTo(head) => Some(head.seq),
            Proof::NoAnchor | Proof::Contradicted(_) => None,
        },
    }
}
