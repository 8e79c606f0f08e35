//! A directory with all that is in it, as both sides speak of it: paths, kinds, modes, times, sizes.
//!
//! A tree has been checked when it exists, wherever its entries come from: every path is relative and leads below the
//! top without `..`, every parent is a directory of the tree, nothing is there twice, and there is not too much of it.
//! Links are kept as links and never followed. Pure but for [`walk`], which looks at this machine.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// How many entries a tree may have.
pub(super) const MAX_ENTRIES: usize = 200_000;
/// The longest path below the top, in bytes; Linux takes 4096 of a whole path.
const MAX_PATH_BYTES: usize = 3072;
/// The longest name.
const MAX_NAME_BYTES: usize = 255;
/// The longest text of a link.
const MAX_LINK_BYTES: usize = 4095;
/// A larger file travels by itself, so that a cut connection does not begin it anew.
const LARGE_BYTES: u64 = 4 * 1024 * 1024;

/// What an entry is. Anything else (devices, sockets, pipes) is in no tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Link,
}

/// One thing below the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the top, without `./`; any bytes but NUL. Empty for the top itself.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub time_s: u64,
    /// Of a file; 0 for others.
    pub size: u64,
    /// What a link says; empty for others.
    pub link: Vec<u8>,
}

impl Entry {
    /// Whether it is a file that travels with many others.
    pub fn is_small(&self) -> bool {
        self.kind == Kind::File && self.size <= LARGE_BYTES
    }

    /// Whether it is a file that travels by itself.
    pub fn is_large(&self) -> bool {
        self.kind == Kind::File && self.size > LARGE_BYTES
    }

    /// Its place below a directory of this machine.
    pub fn below(&self, top: &Path) -> PathBuf {
        top.join(OsStr::from_bytes(&self.path))
    }
}

/// The checked tree: parents before what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    pub top: Entry,
    pub entries: Vec<Entry>,
    /// Devices, sockets and pipes, which are left out.
    pub skipped: u64,
}

impl Tree {
    /// Checks entries that may come from a stranger. The error says what is wrong with them.
    pub fn new(found: Vec<Entry>, skipped: u64) -> Result<Self, String> {
        let (mut tops, mut entries): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|entry| entry.path.is_empty());
        let top = tops.pop().filter(|top| top.kind == Kind::Directory);
        let Some(top) = top.filter(|_| tops.is_empty()) else {
            return Err("it is not one directory".to_owned());
        };
        if entries.len() > MAX_ENTRIES {
            return Err(format!(
                "there are more than {MAX_ENTRIES} entries; move its parts one by one"
            ));
        }
        // By names and not by bytes: whatever is in a directory follows it before anything else does.
        fn names(entry: &Entry) -> impl Iterator<Item = &[u8]> {
            entry.path.split(|byte| *byte == b'/')
        }
        entries.sort_by(|a, b| names(a).cmp(names(b)));
        let mut directories = HashSet::new();
        let mut last: Option<&[u8]> = None;
        for entry in &entries {
            let shown = || shown(&entry.path);
            let Some(parent) = parent_of(&entry.path) else {
                return Err(format!("{} leads out of it", shown()));
            };
            if !parent.is_empty() && !directories.contains(parent) {
                return Err(format!("{} is in no directory of it", shown()));
            }
            if last == Some(&entry.path) {
                return Err(format!("{} is there twice", shown()));
            }
            let bad_link = entry.link.is_empty()
                || entry.link.len() > MAX_LINK_BYTES
                || entry.link.contains(&0);
            if entry.kind == Kind::Link && bad_link {
                return Err(format!("{} is no link that can be", shown()));
            }
            if entry.kind == Kind::Directory {
                directories.insert(entry.path.as_slice());
            }
            last = Some(&entry.path);
        }
        drop(directories);
        Ok(Self {
            top,
            entries,
            skipped,
        })
    }

    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        let sizes = self.entries.iter().map(|entry| entry.size);
        sizes.fold(0, u64::saturating_add)
    }

    pub fn count(&self, kind: Kind) -> u64 {
        let of_kind = self.entries.iter().filter(|entry| entry.kind == kind);
        u64::try_from(of_kind.count()).unwrap_or(u64::MAX)
    }

    /// A number for all that is known of it: another one when anything differs.
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha256::new();
        for entry in std::iter::once(&self.top).chain(&self.entries) {
            digest.update(entry.path.len().to_be_bytes());
            digest.update(&entry.path);
            digest.update([entry.kind as u8]);
            digest.update(entry.mode.to_be_bytes());
            digest.update(entry.time_s.to_be_bytes());
            digest.update(entry.size.to_be_bytes());
            digest.update(entry.link.len().to_be_bytes());
            digest.update(&entry.link);
        }
        hex::encode(digest.finalize())
    }

    /// What is said of what was left out.
    pub fn warnings(&self) -> Vec<String> {
        match self.skipped {
            0 => Vec::new(),
            n => vec![format!(
                "{n} devices, sockets or pipes were left out: only files, directories and links are copied"
            )],
        }
    }
}

/// The directory that a path of a tree is in, if it is such a path.
fn parent_of(path: &[u8]) -> Option<&[u8]> {
    if path.len() > MAX_PATH_BYTES || path.contains(&0) {
        return None;
    }
    let good = |name: &[u8]| {
        !name.is_empty() && name != b"." && name != b".." && name.len() <= MAX_NAME_BYTES
    };
    if !path.split(|byte| *byte == b'/').all(good) {
        return None;
    }
    let at = path.iter().rposition(|byte| *byte == b'/');
    Some(at.and_then(|at| path.get(..at)).unwrap_or_default())
}

/// A path as messages may hold it: cut, and without anything that a terminal acts on.
pub(super) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let text: String = text.chars().take(300).collect();
    text.escape_debug().to_string()
}

/// The digest of the lines that `sha256sum` prints for all files and links (of a link's text), by path: two trees of
/// one content have one number.
pub(super) fn manifest(tree: &Tree, sums: &[Option<String>]) -> String {
    let mut digest = Sha256::new();
    for (entry, sum) in tree.entries.iter().zip(sums) {
        if let Some(sum) = sum {
            digest.update(sum.as_bytes());
            digest.update(b"  ");
            digest.update(&entry.path);
            digest.update(b"\n");
        }
    }
    hex::encode(digest.finalize())
}

/// Everything below a directory of this machine. Blocks.
pub(super) fn walk(top: &Path) -> io::Result<Result<Tree, String>> {
    let mut found = Vec::from_iter(entry(Vec::new(), &fs::metadata(top)?, Vec::new()));
    let mut skipped = 0;
    let mut waiting = vec![(top.to_owned(), Vec::new())];
    while let Some((directory, prefix)) = waiting.pop() {
        for one in fs::read_dir(&directory)? {
            let one = one?;
            if found.len() > MAX_ENTRIES.saturating_add(1) {
                return Ok(Tree::new(found, skipped));
            }
            let mut path = prefix.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(one.file_name().as_bytes());
            let meta = one.metadata()?;
            if meta.is_dir() {
                waiting.push((one.path(), path.clone()));
            }
            let link = if meta.is_symlink() {
                fs::read_link(one.path())?.into_os_string().into_vec()
            } else {
                Vec::new()
            };
            match entry(path, &meta, link) {
                Some(entry) => found.push(entry),
                None => skipped += 1,
            }
        }
    }
    Ok(Tree::new(found, skipped))
}

/// `None` for what is in no tree.
fn entry(path: Vec<u8>, meta: &Metadata, link: Vec<u8>) -> Option<Entry> {
    let kind = match meta.file_type() {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_file() => Kind::File,
        kind if kind.is_symlink() => Kind::Link,
        _ => return None,
    };
    Some(Entry {
        path,
        kind,
        mode: meta.permissions().mode() & 0o7777,
        time_s: meta.mtime().max(0).unsigned_abs(),
        size: if kind == Kind::File { meta.size() } else { 0 },
        link,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(path: &str, kind: Kind) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind,
            mode: 0o644,
            time_s: 1,
            size: 0,
            link: if kind == Kind::Link {
                b"x".to_vec()
            } else {
                Vec::new()
            },
        }
    }

    fn tree(entries: &[(&str, Kind)]) -> Result<Tree, String> {
        let made = entries.iter().map(|(path, kind)| made(path, *kind));
        Tree::new(made.collect(), 0)
    }

    #[test]
    fn parents_come_first() {
        let entries = [
            ("a/b", Kind::File),
            ("", Kind::Directory),
            ("a-b", Kind::File),
            ("a", Kind::Directory),
        ];
        let tree = tree(&entries).unwrap();
        let paths: Vec<_> = tree.entries.iter().map(|e| shown(&e.path)).collect();
        assert_eq!(paths, ["a", "a/b", "a-b"]);
    }

    #[test]
    fn what_leads_out_is_refused() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for bad in [
            "..",
            "../x",
            "/etc/passwd",
            "a/../b",
            "a//b",
            ".",
            "a/",
            "a\0b",
            &long,
        ] {
            let entries = [
                ("", Kind::Directory),
                ("a", Kind::Directory),
                (bad, Kind::File),
            ];
            assert!(tree(&entries).is_err(), "{bad:?}");
        }
        // A file below a link, below a file, below nothing; twice; no top; a top that is a link.
        let top = ("", Kind::Directory);
        for entries in [
            vec![top, ("l", Kind::Link), ("l/x", Kind::File)],
            vec![top, ("f", Kind::File), ("f/x", Kind::File)],
            vec![top, ("n/x", Kind::File)],
            vec![top, ("f", Kind::File), ("f", Kind::Link)],
            vec![("f", Kind::File)],
            vec![("", Kind::Link)],
            vec![top, top],
        ] {
            assert!(tree(&entries).is_err(), "{entries:?}");
        }
    }

    #[test]
    fn a_directory_is_walked_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "hello").unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("d/up")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let tree = walk(dir.path()).unwrap().unwrap();
        let seen = tree
            .entries
            .iter()
            .map(|e| (shown(&e.path), e.kind, e.size));
        let seen: Vec<_> = seen.collect();
        let expected = [
            ("d".to_owned(), Kind::Directory, 0),
            ("d/f".to_owned(), Kind::File, 5),
            ("d/up".to_owned(), Kind::Link, 0),
        ];
        assert_eq!(seen, expected);
        assert_eq!((tree.skipped, tree.bytes()), (1, 5));
    }
}
