//! The audit log of remote actions on this machine: one chain for each writer at a time.
//!
//! A chain has one writer, and two commands may run at once. So the log is a few files, `remote-audit-N.log`; a
//! process takes the first one that nobody writes to. Each is a chain of its own and is verified by itself.
//! A file that has grown is set aside as `remote-audit-N.SEQ.log`, and its successor's first record names it and
//! its head, so a missing or changed predecessor shows.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use audit::{Entry, Log, Options, Outcome, Redactor};
use serde_json::json;

use crate::error::Error;

/// How many processes of one user can write at the same time.
const SLOTS: u32 = 64;
/// A file that is larger when it is opened is set aside; opening reads all of it.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Opens a chain that nobody else writes to.
pub async fn open(dir: &Path, redactor: Redactor) -> Result<Log, Error> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|source| Error::File {
        what: "make the directory of the audit log",
        path: dir.to_owned(),
        source,
    })?;
    let failed = |source| Error::Audit {
        vm: "audit".to_owned(),
        source,
    };
    for slot in 0..SLOTS {
        let path = dir.join(format!("remote-audit-{slot}.log"));
        let options = || Options {
            redactor: redactor.clone(),
            ..Options::default()
        };
        let log = match Log::open(&path, options()).await {
            Ok(log) => log,
            Err(audit::Error::Locked { .. }) => continue,
            Err(e) => return Err(failed(e)),
        };
        let grown = fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_FILE_BYTES);
        if !grown {
            return Ok(log);
        }
        return rotate(dir, slot, log, options()).await;
    }
    Err(Error::File {
        what: "find a free audit log in",
        path: dir.to_owned(),
        source: std::io::Error::other(format!("{SLOTS} processes write one each")),
    })
}

async fn rotate(dir: &Path, slot: u32, log: Log, options: Options) -> Result<Log, Error> {
    let failed = |source| Error::Audit {
        vm: "audit".to_owned(),
        source,
    };
    let path = log.path().to_owned();
    let head = log.head();
    let aside = dir.join(format!("remote-audit-{slot}.{}.log", head.seq));
    // While this process holds the lock nobody else renames. Who opened the old name meanwhile fails on its lock.
    fs::rename(&path, &aside).map_err(|source| Error::File {
        what: "set aside",
        path: path.clone(),
        source,
    })?;
    let next = Log::open(&path, options).await.map_err(failed)?;
    let name = aside.file_name().unwrap_or_default().to_string_lossy();
    let detail = json!({"file": name, "head": head.to_string()});
    let entry = Entry::new("proximity", "audit.continues", "audit").detail(detail);
    let intent = next.intent(entry).await.map_err(failed)?;
    intent.finish(Outcome::ok()).await.map_err(failed)?;
    log.close().await;
    Ok(next)
}

/// All files of the log, those set aside too, by name.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |source| Error::File {
        what: "read the directory of the audit log",
        path: dir.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("remote-audit-") && name.ends_with(".log") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
