//! The files of one chain: the one that is written to, and those that were set aside when they had grown.
//!
//! ```text
//!   audit.120.jsonl      records 1 to 120
//!   audit.355.jsonl      records 121 to 355; the first one is the note `audit.continues`: the file and head before it
//!   audit.jsonl          356 and on; it is replaced by its successor in one step, so there always is one
//! ```
//!
//! Numbers and hashes go on from file to file, so a file that is missing, or was cut, shows as a gap.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Error;
use crate::record::{Record, Verdict};

/// The action of the note that begins every file but the first.
pub(crate) const CONTINUES: &str = "audit.continues";

/// A file that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetAside {
    /// The number of its last record.
    pub last_seq: u64,
    pub path: PathBuf,
}

/// Where the file goes whose last record has this number.
pub(crate) fn aside_path(path: &Path, last_seq: u64) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}.{last_seq}.{}", extension.to_string_lossy()),
        None => format!("{stem}.{last_seq}"),
    };
    path.with_file_name(name)
}

/// The files that were set aside of this log, the oldest first. A second name of the log itself, which a crash may have
/// left, is none.
pub(crate) fn set_aside(path: &Path) -> Result<Vec<SetAside>, Error> {
    let own = inode(path);
    let mut found = numbered(path)?;
    found.retain(|file| inode(&file.path) != own);
    Ok(found)
}

/// Removes second names of the log itself. Only for its writer.
pub(crate) fn forget_second_names(path: &Path) -> Result<(), Error> {
    let own = inode(path);
    for file in numbered(path)? {
        if inode(&file.path) == own {
            let removed = fs::remove_file(&file.path);
            removed.map_err(|e| Error::io("remove a second name of", path, e))?;
        }
    }
    Ok(())
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino())).ok()
}

fn numbered(path: &Path) -> Result<Vec<SetAside>, Error> {
    let read = |e| Error::io("look for older files of", path, e);
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut found = Vec::new();
    let entries = match fs::read_dir(parent.unwrap_or(Path::new("."))) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(read(e)),
    };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let prefix = format!("{stem}.");
    for entry in entries {
        let entry = entry.map_err(read)?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        let digits = digits.and_then(|rest| match path.extension().and_then(|e| e.to_str()) {
            Some(extension) => rest.strip_suffix(extension)?.strip_suffix('.'),
            None => Some(rest),
        });
        let seq = digits
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        let at = path.with_file_name(&name);
        if let Some(last_seq) = seq
            && at == aside_path(path, last_seq)
        {
            found.push(SetAside { last_seq, path: at });
        }
    }
    found.sort_by_key(|file| file.last_seq);
    Ok(found)
}

/// Whether the record begins a file that follows another one.
pub(crate) fn continues(record: &Record) -> bool {
    record.outcome == Verdict::Note && record.action == CONTINUES && record.seq > 1
}

/// The number of the oldest intent that had no outcome when the file was begun.
pub(crate) fn oldest_open(record: &Record) -> Option<u64> {
    record.detail.get("oldest_open").and_then(Value::as_u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_number_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.jsonl");
        for name in [
            "audit.jsonl",
            "audit.9.jsonl",
            "audit.120.jsonl",
            "audit.x.jsonl",
            "audit.012.jsonl",
            "audit..jsonl",
            "audit.5.log",
            "other.7.jsonl",
            "audit.jsonl.torn-3-1",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::hard_link(&log, dir.path().join("audit.200.jsonl")).unwrap();
        let found = set_aside(&log).unwrap();
        let seqs: Vec<u64> = found.iter().map(|file| file.last_seq).collect();
        assert_eq!(seqs, [9, 120]);
        forget_second_names(&log).unwrap();
        assert!(log.exists() && !dir.path().join("audit.200.jsonl").exists());
        assert_eq!(aside_path(Path::new("/x/log"), 3), Path::new("/x/log.3"));
    }
}
