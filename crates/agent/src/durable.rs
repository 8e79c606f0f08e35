//! Files that are either the old one or the new one, never a half of each.
//!
//! A file is written under a name that begins with a dot, in the same directory, and renamed over
//! its target. A crash leaves at most that dot file, which the next write of the same file
//! overwrites and which dnsmasq and Caddy's import globs ignore. Never writes to a target in place.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file operation that failed, with the file it was about.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried ("write").
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For use with `map_err`.
    pub fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }
}

/// Whether a replaced file must survive a power failure the moment the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// File and directory are flushed to the disk.
    Durable,
    /// The file can be made again from what is durable elsewhere; no flush.
    Derived,
}

/// Replaces `path` by `content` with the given mode.
pub fn replace(path: &Path, content: &[u8], mode: u32, keep: Keep) -> Result<(), FileError> {
    let temporary = temporary_name(path)?;
    write_temporary(&temporary, content, mode, keep)
        .map_err(FileError::new("write", &temporary))?;
    fs::rename(&temporary, path).map_err(FileError::new("replace", path))?;
    if keep == Keep::Durable {
        flush_directory_of(path)?;
    }
    Ok(())
}

/// Has what became of the name of a file on the disk when it returns: made, replaced, or removed.
pub fn flush_directory_of(path: &Path) -> Result<(), FileError> {
    path.parent().map_or(Ok(()), |directory| {
        File::open(directory)
            .and_then(|d| d.sync_all())
            .map_err(FileError::new("flush", directory))
    })
}

/// Replaces `path` only when it does not hold `content` already; says whether it did.
pub fn replace_if_changed(
    path: &Path,
    content: &[u8],
    mode: u32,
    keep: Keep,
) -> Result<bool, FileError> {
    if read_if_there(path)?.as_deref() == Some(content) {
        return Ok(false);
    }
    replace(path, content, mode, keep)?;
    Ok(true)
}

/// The content of a file, or `None` when there is none.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new("read", path)(e)),
    }
}

/// Removes a file; one that is gone already is fine. Says whether it was there.
pub fn remove_if_there(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(FileError::new("remove", path)(e)),
    }
}

/// Makes a directory and its parents; the directory itself gets exactly `mode`.
pub fn directory(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::new("make directory", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(FileError::new("set the mode of", path))
}

fn temporary_name(path: &Path) -> Result<PathBuf, FileError> {
    match path.file_name().and_then(|n| n.to_str()) {
        Some(name) => Ok(path.with_file_name(format!(".{name}.new"))),
        None => Err(FileError::new("write", path)(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it has no file name",
        ))),
    }
}

fn write_temporary(path: &Path, content: &[u8], mode: u32, keep: Keep) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    // The mode given to open counts only for a new file and is cut by the umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    if keep == Keep::Durable {
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_its_content_and_mode_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        fs::write(
            dir.path().join(".state.json.new"),
            "left by a crash, longer",
        )
        .unwrap();
        assert!(replace_if_changed(&path, b"one", 0o600, Keep::Durable).unwrap());
        assert!(!replace_if_changed(&path, b"one", 0o600, Keep::Durable).unwrap());
        assert!(replace_if_changed(&path, b"two", 0o600, Keep::Derived).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(remove_if_there(&path).unwrap());
        assert!(!remove_if_there(&path).unwrap());
    }
}
