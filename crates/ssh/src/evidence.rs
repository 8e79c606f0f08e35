//! Evidence of one action, for whoever must show later what was done: a directory of files, there in one step.
//!
//! ```text
//!   DIR/20260102T030405Z-vm01-au-0123456789abcdef/   mode 0700, files 0600
//!       result.json        the result or the error, and what was asked for
//!       transcript.jsonl   of commands: lines of both streams as they came, with milliseconds since the beginning
//!       audit.jsonl        the lines of the audit log from this action's intent on, as they stand
//!       proof.json         where they stand, and the head of the chain: `remote verify --head` takes it
//! ```
//!
//! Secrets are hidden as in the audit log. The directory grows under another name (`.….part`) until all is on disk; an
//! action that cannot have its evidence begun is not done.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use audit::{Log, Redactor};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::command::Chunk;
use crate::error::Error;

/// A longer line is written in parts.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// How much of a command's output a transcript takes.
const MAX_TRANSCRIPT_BYTES: u64 = 64 * 1024 * 1024;
/// How many lines of the audit log are looked through for the action's own.
const MAX_SLICE: usize = 10_000;

/// Evidence that is being gathered. Dropped without [`Evidence::keep`] it leaves nothing.
pub(crate) struct Evidence {
    dir: PathBuf,
    vm: String,
    began: Timestamp,
    draft: PathBuf,
    transcript: Transcript,
}

impl Drop for Evidence {
    fn drop(&mut self) {
        // After it was kept the name is gone; otherwise a draft that stays says by its name what it is.
        let _: io::Result<()> = fs::remove_dir_all(&self.draft);
    }
}

impl Evidence {
    /// Makes the draft. With a transcript where the action has output.
    pub fn begin(
        dir: &Path,
        vm: &str,
        redactor: &Redactor,
        with_output: bool,
    ) -> Result<Self, Error> {
        let began = Timestamp::now();
        let mut random = [0; 8];
        let begun = getrandom::fill(&mut random)
            .map_err(|e| io::Error::other(e.to_string()))
            .and_then(|()| {
                let draft = dir.join(format!(".{vm}-{}.part", hex::encode(random)));
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                DirBuilder::new().mode(0o700).create(&draft)?;
                let file = with_output.then(|| create(&draft.join("transcript.jsonl")));
                Ok((draft, file.transpose()?))
            });
        let (draft, file) = begun.map_err(|source| Error::File {
            what: "write evidence into",
            path: dir.to_owned(),
            source,
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            vm: vm.to_owned(),
            began,
            draft,
            transcript: Transcript::new(file, redactor.clone()),
        })
    }

    /// Where output goes.
    pub fn transcript(&self) -> Transcript {
        self.transcript.clone()
    }

    /// Writes the rest and puts it in place; gives the directory. Blocks.
    pub fn keep(
        &self,
        log: &Log,
        audit_id: Option<&str>,
        result: &Value,
    ) -> Result<PathBuf, Error> {
        let time = self.began.strftime("%Y%m%dT%H%M%SZ");
        let name = format!("{time}-{}-{}", self.vm, audit_id.unwrap_or("unrecorded"));
        let target = self.dir.join(name);
        let kept = self.write(log, audit_id, result, &target);
        kept.map_err(|source| Error::File {
            what: "write evidence into",
            path: self.dir.clone(),
            source,
        })?;
        Ok(target)
    }

    fn write(
        &self,
        log: &Log,
        audit_id: Option<&str>,
        result: &Value,
        target: &Path,
    ) -> io::Result<()> {
        self.transcript.end()?;
        let redacted = log.redactor().value(result.clone());
        put(
            &self.draft.join("result.json"),
            &serde_json::to_vec_pretty(&redacted)?,
        )?;
        let lines = match audit_id {
            Some(id) => audit::slice(log.path(), id, MAX_SLICE).map_err(io::Error::other)?,
            None => Vec::new(),
        };
        let mut slice = lines.join("\n");
        slice.push('\n');
        put(&self.draft.join("audit.jsonl"), slice.as_bytes())?;
        // Heads of the log can be behind the file by what was written meanwhile, never before it.
        let last = lines
            .last()
            .and_then(|line| serde_json::from_str::<Value>(line).ok());
        let field = |name: &str| last.as_ref().and_then(|line| line.get(name)).cloned();
        let head = match (field("seq"), field("hash").as_ref().and_then(Value::as_str)) {
            (Some(seq), Some(hash)) => json!(format!("{seq}:{hash}")),
            _ => Value::Null,
        };
        let proof = json!({
            "audit_id": audit_id,
            "log": log.path(),
            "records": lines.len(),
            "head": head,
        });
        put(
            &self.draft.join("proof.json"),
            &serde_json::to_vec_pretty(&proof)?,
        )?;
        File::open(&self.draft)?.sync_all()?;
        fs::rename(&self.draft, target)?;
        File::open(&self.dir)?.sync_all()
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The lines of both streams of a command as they come. Clones write to the same file.
#[derive(Clone)]
pub(crate) struct Transcript(Arc<Mutex<Lines>>);

struct Lines {
    file: Option<BufWriter<File>>,
    redactor: Redactor,
    began: Instant,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    taken: u64,
    /// Told when the transcript ends; a command does not fail because of it.
    failure: Option<io::Error>,
    audit_id: Option<String>,
}

impl Transcript {
    fn new(file: Option<File>, redactor: Redactor) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            file: file.map(BufWriter::new),
            redactor,
            began: Instant::now(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            taken: 0,
            failure: None,
            audit_id: None,
        })))
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of the action's records, once there is one.
    pub fn recorded_as(&self, audit_id: &str) {
        self.lines().audit_id = Some(audit_id.to_owned());
    }

    pub fn audit_id(&self) -> Option<String> {
        self.lines().audit_id.clone()
    }

    /// Takes a piece of output.
    pub fn take(&self, chunk: &Chunk) {
        let mut lines = self.lines();
        if let Err(e) = lines.take(chunk) {
            lines.failure.get_or_insert(e);
        }
    }

    fn end(&self) -> io::Result<()> {
        let mut lines = self.lines();
        lines.rest()?;
        if let Some(e) = lines.failure.take() {
            return Err(e);
        }
        if let Some(file) = &mut lines.file {
            file.flush()?;
            file.get_ref().sync_all()?;
        }
        Ok(())
    }
}

impl Lines {
    fn take(&mut self, chunk: &Chunk) -> io::Result<()> {
        let (name, data) = match chunk {
            Chunk::Stdout(data) => ("stdout", data),
            Chunk::Stderr(data) => ("stderr", data),
        };
        if self.file.is_none() || self.taken > MAX_TRANSCRIPT_BYTES {
            return Ok(());
        }
        self.taken = self
            .taken
            .saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if self.taken > MAX_TRANSCRIPT_BYTES {
            let said =
                format!("output after {MAX_TRANSCRIPT_BYTES} bytes is not in the transcript");
            return self.line("note", said.as_bytes());
        }
        let mut rest = match name {
            "stdout" => std::mem::take(&mut self.stdout),
            _ => std::mem::take(&mut self.stderr),
        };
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            rest.extend_from_slice(piece);
            if rest.ends_with(b"\n") || rest.len() >= MAX_LINE_BYTES {
                self.line(name, &rest)?;
                rest.clear();
            }
        }
        match name {
            "stdout" => self.stdout = rest,
            _ => self.stderr = rest,
        }
        Ok(())
    }

    /// What came without an end of its line.
    fn rest(&mut self) -> io::Result<()> {
        for name in ["stdout", "stderr"] {
            let rest = match name {
                "stdout" => std::mem::take(&mut self.stdout),
                _ => std::mem::take(&mut self.stderr),
            };
            if !rest.is_empty() {
                self.line(name, &rest)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, stream: &str, line: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let text = String::from_utf8_lossy(line);
        let mut told = json!({
            "at_ms": at_ms,
            "stream": stream,
            "data": self.redactor.text(&text),
        });
        if matches!(text, std::borrow::Cow::Owned(_))
            && let Some(told) = told.as_object_mut()
        {
            // What is not UTF-8 cannot be looked through for secrets as it is.
            told.insert("lossy".to_owned(), Value::Bool(true));
        }
        serde_json::to_writer(&mut *file, &told)?;
        file.write_all(b"\n")
    }
}

impl std::fmt::Debug for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transcript")
    }
}
