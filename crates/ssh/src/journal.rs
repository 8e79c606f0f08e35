//! The audit log of remote actions on this machine: one chain for each writer at a time.
//!
//! A chain has one writer, and two commands may run at once. So the log is a few files, `remote-audit-N.log`; a
//! process takes the first one that nobody writes to. Each is a chain of its own and is verified by itself.
//! A file that has grown is set aside as `remote-audit-N.SEQ.log`, and the chain goes on in its successor. On request each
//! record goes to syslog too.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use audit::{Log, Options, Redactor, Witness};

use crate::error::Error;

/// How many processes of one user can write at the same time.
const SLOTS: u32 = 64;
/// A file that has grown to this is set aside; opening reads all of it.
const ROTATE_BYTES: u64 = 4 * 1024 * 1024;

/// Opens a chain that nobody else writes to.
pub async fn open(dir: &Path, redactor: Redactor) -> Result<Log, Error> {
    open_with(dir, redactor, None).await
}

/// The same, with somebody who hears of every record, such as [`syslog`](crate::syslog()).
pub async fn open_with(
    dir: &Path,
    redactor: Redactor,
    witness: Option<Witness>,
) -> Result<Log, Error> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|source| Error::File {
        what: "make the directory of the audit log",
        path: dir.to_owned(),
        source,
    })?;
    for slot in 0..SLOTS {
        let path = dir.join(format!("remote-audit-{slot}.log"));
        let options = Options {
            redactor: redactor.clone(),
            rotate_bytes: ROTATE_BYTES,
            witness: witness.clone(),
            ..Options::default()
        };
        match Log::open(&path, options).await {
            Ok(log) => return Ok(log),
            Err(audit::Error::Locked { .. }) => {}
            Err(source) => {
                return Err(Error::Audit {
                    vm: "audit".to_owned(),
                    source,
                });
            }
        }
    }
    Err(Error::File {
        what: "find a free audit log in",
        path: dir.to_owned(),
        source: std::io::Error::other(format!("{SLOTS} processes write one each")),
    })
}

/// The chains of the log, by name: for each the file that is written to, whether it is there or only such as were set
/// aside.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |source| Error::File {
        what: "read the directory of the audit log",
        path: dir.to_owned(),
        source,
    };
    let mut slots = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("remote-audit-")?.strip_suffix(".log"))
            .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        slots.extend(number);
    }
    let file = |slot: u32| dir.join(format!("remote-audit-{slot}.log"));
    Ok(slots.into_iter().map(file).collect())
}
