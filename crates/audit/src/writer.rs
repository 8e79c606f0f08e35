//! The one thread that writes. Owns the file, the head and the open intents; takes commands from the
//! queue, writes all that are waiting as one batch with one sync, then answers each.
//!
//! ```text
//!   opened ──batch──▶ write ok, sync ok ─▶ answers
//!                       │  │     └ sync failed ─▶ stopped: what is on disk is uncertain, open again
//!                       │  └ nothing but outcomes ─▶ answers; sync with the next batch, or soon if none comes
//!                       └ write failed ─▶ cut back to whole records ─▶ errors; outcomes are kept ("owed")
//!                                         and written, after a note of the failure, with the next batch
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::chain::{Open, Problem, Walker};
use crate::command::{Command, Reply};
use crate::error::Error;
use crate::file::{LogFile, NotAppended};
use crate::head::Head;
use crate::lines::{Line, Lines};
use crate::log::{Clock, MAX_OPEN_INTENTS, Options, Witness, correlation_id};
use crate::record::{Draft, Subject, Verdict, parse};
use crate::series;

/// How many records are written with one sync.
const BATCH: usize = 64;

/// How long an outcome that was answered may wait to be synced together with what comes next.
const SETTLED_AFTER: Duration = Duration::from_millis(10);

/// Opens the log, says whether that worked, and serves the queue to its end.
pub(crate) fn run(
    path: &Arc<Path>,
    options: Options,
    ready: oneshot::Sender<Result<watch::Receiver<Head>, Error>>,
    mut queue: mpsc::Receiver<Command>,
) {
    let mut writer = match Writer::open(path, options) {
        Ok(writer) => writer,
        Err(e) => {
            // Nobody is there to be told when the opener has gone away.
            let _: Result<(), _> = ready.send(Err(e));
            return;
        }
    };
    if ready.send(Ok(writer.heads.subscribe())).is_err() {
        return;
    }
    let mut close = None;
    while close.is_none()
        && let Some(first) = writer.next_command(&mut queue)
    {
        let waiting = std::iter::from_fn(|| queue.try_recv().ok()).take(BATCH - 1);
        let mut batch = Vec::new();
        for command in std::iter::once(first).chain(waiting) {
            match command {
                Command::Close { reply } => {
                    close = Some(reply);
                    break;
                }
                command => batch.push(command),
            }
        }
        writer.commit(batch);
    }
    drop(queue);
    writer.settle();
    drop(writer);
    if let Some(reply) = close {
        // Whoever asked may have stopped waiting; the file is closed all the same.
        let _: Result<(), _> = reply.send(());
    }
}

struct Writer {
    timer: Runtime,
    path: Arc<Path>,
    file: LogFile,
    head: Head,
    clock: Clock,
    open: HashMap<String, Open>,
    heads: watch::Sender<Head>,
    owed: Vec<Draft>,
    undone: Option<Undone>,
    stopped: Option<Error>,
    rotate_bytes: u64,
    /// The size at which setting aside is tried; later than `rotate_bytes` after it failed.
    rotate_at: u64,
    witness: Option<Witness>,
}

/// Writes that were cut off again since the last one that worked.
struct Undone {
    bytes: u64,
    times: u64,
    error: String,
}

/// A draft on its way into the file.
struct Step {
    kind: Kind,
    draft: Draft,
    reply: Option<Reply>,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Kind {
    Intent,
    Outcome,
    Refused,
    Note,
}

impl Writer {
    fn open(path: &Arc<Path>, options: Options) -> Result<Self, Error> {
        let timer = runtime::Builder::new_current_thread().enable_time().build();
        let timer = timer.map_err(|e| Error::io("make a timer for", path, e))?;
        let mut file = LogFile::open(path)?;
        series::forget_second_names(path)?;
        let mut walker = walk(path, &mut file, options.anchor)?;
        walker.end();
        let mut findings = walker.findings.iter();
        if let Some(finding) = findings.find(|f| !matches!(f.problem, Problem::Torn { .. })) {
            return Err(Error::Broken {
                path: path.to_path_buf(),
                finding: Box::new(finding.clone()),
            });
        }
        let next_seq = walker.head.seq.saturating_add(1);
        if let Some(offset) = walker.torn_at {
            file.set_tail_aside(offset, next_seq)?;
        }
        let mut writer = Self {
            timer,
            path: Arc::clone(path),
            file,
            head: walker.head,
            clock: options.clock,
            open: HashMap::new(),
            heads: watch::Sender::new(walker.head),
            owed: Vec::new(),
            undone: None,
            stopped: None,
            rotate_bytes: options.rotate_bytes,
            rotate_at: options.rotate_bytes,
            witness: options.witness,
        };
        writer.recover(next_seq, walker.open)?;
        writer.rotate();
        Ok(writer)
    }

    /// Tells of a torn tail and closes the intents of the last writer.
    fn recover(&mut self, next_seq: u64, open: HashMap<String, Open>) -> Result<(), Error> {
        let mut drafts = Vec::new();
        let tails = self.file.set_aside(next_seq)?;
        if !tails.is_empty() {
            let tails: Vec<_> = tails
                .iter()
                .map(|tail| {
                    let name = tail.path.file_name().unwrap_or_default();
                    json!({"file": name.to_string_lossy(), "bytes": tail.bytes,
                           "sha256": tail.sha256, "head": tail.head})
                })
                .collect();
            drafts.push(self.note("audit.truncated-tail", json!({"tails": tails}))?);
        }
        let mut open: Vec<_> = open.into_iter().collect();
        open.sort_by_key(|(_, intent)| intent.seq);
        drafts.extend(open.into_iter().map(|(id, intent)| Draft {
            time: (self.clock)(),
            id,
            subject: intent.subject,
            detail: json!({"reason": "no outcome was written before the log was opened again"}),
            verdict: Verdict::Unknown,
            exit_code: None,
            duration_ms: None,
        }));
        if drafts.is_empty() {
            return Ok(());
        }
        match self.write(drafts.iter()).and_then(|_| self.file.sync()) {
            Ok(()) => {
                self.heads.send_replace(self.head);
                Ok(())
            }
            Err(
                NotAppended::Refused(e)
                | NotAppended::Undone { error: e, .. }
                | NotAppended::Uncertain(e),
            ) => Err(e),
        }
    }

    fn note(&self, action: &str, detail: Value) -> Result<Draft, Error> {
        Ok(Draft {
            time: (self.clock)(),
            id: correlation_id()?,
            subject: Subject {
                actor: "proximity".to_owned(),
                action: action.to_owned(),
                target: "audit".to_owned(),
                channel: None,
            },
            detail,
            verdict: Verdict::Note,
            exit_code: None,
            duration_ms: None,
        })
    }

    fn commit(&mut self, commands: Vec<Command>) {
        let mut steps = self.owed_steps();
        steps.extend(commands.into_iter().filter_map(|c| self.stage(c)));
        if steps.is_empty() {
            return;
        }
        let written = match self.stopped.clone() {
            Some(e) => Err(NotAppended::Refused(e)),
            None => self.write(steps.iter().map(|step| &step.draft)),
        };
        // Nobody acts on an outcome, so nobody waits for the disk with one.
        let synced = match written {
            Ok(heads) if steps.iter().all(|step| step.kind == Kind::Outcome) => Ok(heads),
            Ok(heads) => self.file.sync().map(|()| heads),
            Err(e) => Err(e),
        };
        match synced {
            Ok(heads) => {
                self.heads.send_replace(self.head);
                self.undone = None;
                for (step, head) in steps.into_iter().zip(heads) {
                    if let Some(open) = self.open.get_mut(&step.draft.id) {
                        open.seq = head.seq;
                    }
                    answer(step.reply, Ok(head));
                }
                self.rotate();
            }
            Err(NotAppended::Refused(error)) => self.give_up(steps, &error),
            Err(NotAppended::Undone { bytes, error }) => {
                let before = self.undone.take();
                self.undone = Some(Undone {
                    bytes: before.as_ref().map_or(0, |u| u.bytes).saturating_add(bytes),
                    times: before.as_ref().map_or(0, |u| u.times).saturating_add(1),
                    error: with_cause(&error),
                });
                self.give_up(steps, &error);
            }
            Err(NotAppended::Uncertain(error)) => {
                self.stop(&error);
                self.give_up(steps, &error);
            }
        }
    }

    /// Sets the file aside when it has grown. When that fails the log goes on in the same file, and it is tried again
    /// when that has grown by an eighth more.
    fn rotate(&mut self) {
        // An outcome that is owed belongs to an intent of this file, and is known to this process only.
        if self.file.len() < self.rotate_at || self.stopped.is_some() || !self.owed.is_empty() {
            return;
        }
        self.settle();
        if self.stopped.is_some() {
            return;
        }
        self.rotate_at = match self.hand_over() {
            Ok(()) => self.rotate_bytes,
            Err(_) => self.file.len().saturating_add(self.rotate_bytes / 8),
        };
    }

    fn hand_over(&mut self) -> Result<(), Error> {
        let refused = |e: NotAppended| match e {
            NotAppended::Refused(e)
            | NotAppended::Undone { error: e, .. }
            | NotAppended::Uncertain(e) => e,
        };
        let aside = series::aside_path(&self.path, self.head.seq);
        let name = aside.file_name().unwrap_or_default().to_string_lossy();
        let oldest_open = self.open.values().map(|open| open.seq).min();
        let detail =
            json!({"file": name, "head": self.head.to_string(), "oldest_open": oldest_open});
        let note = self.note(series::CONTINUES, detail)?;
        let sealed = note.seal(self.head);
        let (line, head) = sealed.map_err(|e| Error::io("encode a record for", &self.path, e))?;
        let mut next = self.file.successor()?;
        next.append(&line).map_err(refused)?;
        next.sync().map_err(refused)?;
        self.file.hand_over(next, &aside)?;
        // From here on the chain goes on in the successor, whatever else fails.
        self.tell(&line);
        self.head = head;
        self.heads.send_replace(head);
        if let Err(error) = self.file.sync_name() {
            // A power cut could bring the older file back under the name, and what follows would be lost.
            self.stop(&error);
        }
        Ok(())
    }

    fn tell(&self, lines: &[u8]) {
        if let Some(witness) = &self.witness {
            let lines = std::str::from_utf8(lines).unwrap_or_default();
            lines.lines().for_each(|line| witness(line));
        }
    }

    fn stop(&mut self, error: &Error) {
        self.stopped = Some(Error::closed(
            &self.path,
            &format!("an earlier write failed: {}", with_cause(error)),
        ));
    }

    /// Syncs outcomes that have been answered. If that fails, the next intent hears of it.
    fn settle(&mut self) {
        if self.file.is_synced() || self.stopped.is_some() {
            return;
        }
        if let Err(
            NotAppended::Refused(e)
            | NotAppended::Undone { error: e, .. }
            | NotAppended::Uncertain(e),
        ) = self.file.sync()
        {
            self.stop(&e);
        }
    }

    /// The next command, if there ever is one. What waits for the disk waits for it too, but not for long:
    /// who calls again at once would wait for the last call's sync before that of his own.
    fn next_command(&mut self, queue: &mut mpsc::Receiver<Command>) -> Option<Command> {
        if !self.file.is_synced() {
            let soon = async { timeout(SETTLED_AFTER, queue.recv()).await };
            if let Ok(command) = self.timer.block_on(soon) {
                return command;
            }
            self.settle();
        }
        queue.blocking_recv()
    }

    fn owed_steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some(undone) = &self.undone {
            let detail =
                json!({"bytes": undone.bytes, "times": undone.times, "error": undone.error});
            // Without random bytes for its id the note waits for the next batch.
            if let Ok(draft) = self.note("audit.undone-write", detail) {
                steps.push(Step {
                    kind: Kind::Note,
                    draft,
                    reply: None,
                });
            }
        }
        steps.extend(self.owed.drain(..).map(|draft| Step {
            kind: Kind::Outcome,
            draft,
            reply: None,
        }));
        steps
    }

    fn stage(&mut self, command: Command) -> Option<Step> {
        let time = (self.clock)();
        let draft = |id, subject, detail, verdict| Draft {
            time,
            id,
            subject,
            detail,
            verdict,
            exit_code: None,
            duration_ms: None,
        };
        match command {
            Command::Intent {
                id,
                subject,
                detail,
                reply,
            } => {
                if self.open.len().saturating_add(self.owed.len()) >= MAX_OPEN_INTENTS {
                    let limit = MAX_OPEN_INTENTS;
                    answer(Some(reply), Err(Error::TooManyOpen { limit }));
                    return None;
                }
                let open = Open {
                    seq: 0,
                    subject: subject.clone(),
                };
                self.open.insert(id.clone(), open);
                Some(Step {
                    kind: Kind::Intent,
                    draft: draft(id, subject, detail, Verdict::Intent),
                    reply: Some(reply),
                })
            }
            Command::Finish { id, closing, reply } => {
                // An intent that was given up before it was sent has nothing to close.
                let mut subject = self.open.remove(&id)?.subject;
                subject.channel = closing.channel.or(subject.channel);
                subject.target = closing.target.unwrap_or(subject.target);
                let mut draft = draft(id, subject, closing.detail, closing.verdict);
                draft.exit_code = closing.exit_code;
                draft.duration_ms = closing.duration_ms;
                Some(Step {
                    kind: Kind::Outcome,
                    draft,
                    reply,
                })
            }
            Command::Refused {
                id,
                subject,
                detail,
                reply,
            } => Some(Step {
                kind: Kind::Refused,
                draft: draft(id, subject, detail, Verdict::Refused),
                reply: Some(reply),
            }),
            Command::Close { .. } => None,
        }
    }

    /// Writes all or nothing; gives the head after each.
    fn write<'a>(
        &mut self,
        drafts: impl Iterator<Item = &'a Draft>,
    ) -> Result<Vec<Head>, NotAppended> {
        let mut head = self.head;
        let mut bytes = Vec::new();
        let mut heads = Vec::new();
        for draft in drafts {
            let (line, next) = draft.seal(head).map_err(|e| {
                NotAppended::Refused(Error::io("encode a record for", &self.path, e))
            })?;
            bytes.extend_from_slice(&line);
            heads.push(next);
            head = next;
        }
        self.file.append(&bytes)?;
        self.tell(&bytes);
        self.head = head;
        Ok(heads)
    }

    /// Tells everybody that nothing was written, and keeps the outcomes of written intents.
    fn give_up(&mut self, steps: Vec<Step>, error: &Error) {
        let mut never_written = HashSet::new();
        for step in steps {
            match step.kind {
                Kind::Intent => {
                    self.open.remove(&step.draft.id);
                    never_written.insert(step.draft.id);
                }
                Kind::Outcome if !never_written.contains(&step.draft.id) => {
                    self.owed.push(step.draft);
                }
                Kind::Outcome | Kind::Refused | Kind::Note => {}
            }
            answer(step.reply, Err(error.clone()));
        }
    }
}

/// Follows the chain through the file, and through those before it as far as they matter: to the oldest intent that
/// may have no outcome, or to the beginning where an anchor is to be found.
fn walk(path: &Path, file: &mut LogFile, anchor: Option<Head>) -> Result<Walker, Error> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |e| Error::io("read", &path, e)
    };
    let older = series::set_aside(path)?;
    let first = Lines::new(BufReader::new(file.rewound()?)).next();
    let first = first.map_err(read(path))?;
    if let (Some(last), None) = (older.last(), &first) {
        return Err(Error::Changed {
            path: path.to_owned(),
            change: format!(
                "it is empty and does not go on where {} ends",
                last.path.display()
            ),
        });
    }
    let first = match first {
        Some(Line::Whole(line)) => parse(&line).ok().map(|(record, _)| record),
        _ => None,
    };
    let first = first.filter(series::continues);
    let since = match anchor {
        Some(_) => Some(0),
        None => first.as_ref().and_then(series::oldest_open),
    };
    let mut walker = match anchor {
        Some(_) => Walker::new(anchor),
        None => Walker::midway(),
    };
    let needed = older
        .iter()
        .filter(|file| since.is_some_and(|seq| file.last_seq >= seq));
    for one in needed {
        let name = one
            .path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        walker.begin_file(name);
        let opened = File::open(&one.path).map_err(|e| Error::io("open", &one.path, e))?;
        let mut lines = Lines::new(BufReader::new(opened));
        while let Some(line) = lines.next().map_err(read(&one.path))? {
            walker.feed(&line);
        }
        // Where a file ends in the middle of a line, it is not the one that is cut.
        walker.torn_at = None;
    }
    walker.begin_file(None);
    let mut lines = Lines::new(BufReader::new(file.rewound()?));
    while let Some(line) = lines.next().map_err(read(path))? {
        walker.feed(&line);
    }
    Ok(walker)
}

fn answer(reply: Option<Reply>, result: Result<Head, Error>) {
    if let Some(reply) = reply {
        // A caller that stopped waiting is served by its guard, see `log::Intent`.
        let _: Result<(), _> = reply.send(result);
    }
}

fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
