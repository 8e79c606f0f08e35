//! The staging directory of this machine in which a downloaded tree grows, and its way to the target.
//!
//! It is ours alone (mode 0700, our own directory, no link), every path in it has been checked (`tree`), and links are
//! made last: so nothing leads out of it while it is written to.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps};
use sha2::{Digest as _, Sha256};

use super::download::{hold, parent_of};
use super::tree::{Entry, Kind, Tree};
use super::{Meter, Progress, digest_of};

/// The directory, while it is not in place.
#[derive(Debug, Clone)]
pub(super) struct Staging {
    path: PathBuf,
    /// Locked as long as we write into it.
    _held: Arc<File>,
}

impl Staging {
    /// Makes it beside the target, with the tree's directories, or takes that of an earlier try. Also gives the digests
    /// of the files that are in it in full, in the order of the tree's entries. Blocks.
    pub fn open(
        target: &Path,
        name: &[u8],
        tree: &Tree,
    ) -> io::Result<(Self, Vec<Option<String>>)> {
        match fs::symlink_metadata(target) {
            Ok(meta) if !meta.is_dir() => {
                return Err(io::Error::other("it is there and is no directory"));
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let path = target.with_file_name(OsStr::from_bytes(name));
        let own = |meta: &fs::Metadata| {
            meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw()
        };
        let again = fs::symlink_metadata(&path).is_ok_and(|meta| own(&meta));
        let make = |path: &Path| DirBuilder::new().mode(0o700).create(path);
        if again {
            fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        } else {
            make(&path)?;
        }
        let held = File::open(&path)?;
        hold(&held, &path)?;
        let mut there = Vec::with_capacity(tree.entries.len());
        for entry in &tree.entries {
            let at = entry.below(&path);
            match entry.kind {
                Kind::Directory => match fs::symlink_metadata(&at) {
                    Ok(meta) if own(&meta) => {
                        fs::set_permissions(&at, Permissions::from_mode(0o700))?;
                    }
                    Ok(_) => return Err(io::Error::other("its staging directory was changed")),
                    Err(_) => make(&at)?,
                },
                Kind::Link => {}
                Kind::File => {
                    there.push(again.then(|| whole(&at, entry)).flatten());
                    continue;
                }
            }
            there.push(None);
        }
        let staging = Self {
            path,
            _held: Arc::new(held),
        };
        Ok((staging, there))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    pub fn discard(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }

    /// Links, modes and times, then the disk, then its place. Blocks.
    pub fn place(&self, target: &Path, tree: &Tree) -> io::Result<()> {
        for entry in tree.entries.iter().rev() {
            let at = entry.below(&self.path);
            match entry.kind {
                Kind::File => {}
                Kind::Directory => {
                    dress(&at, entry)?;
                }
                Kind::Link => {
                    let text = OsStr::from_bytes(&entry.link);
                    match std::os::unix::fs::symlink(text, &at) {
                        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                        made => made?,
                    }
                    touch(&at, entry.time_s)?;
                }
            }
        }
        // One order for all of the file system instead of one for each file.
        rustix::fs::syncfs(File::open(&self.path)?)?;
        let parent = parent_of(target);
        dress(&self.path, &tree.top)?;
        match rustix::fs::renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                fs::set_permissions(&self.path, Permissions::from_mode(0o700))?;
                self.merge(target, tree)?;
            }
            Err(e) => return Err(e.into()),
        }
        File::open(parent)?.sync_all()
    }

    /// Into a directory that is there: nothing is touched unless everything has room; then new directories are renamed
    /// whole, and files one by one.
    fn merge(&self, target: &Path, tree: &Tree) -> io::Result<()> {
        for entry in std::iter::once(&tree.top).chain(&tree.entries) {
            let at = entry.below(target);
            let in_the_way = match fs::symlink_metadata(&at) {
                Ok(meta) => meta.is_dir() != (entry.kind == Kind::Directory),
                Err(_) => false,
            };
            if in_the_way {
                let at = at.display();
                return Err(io::Error::other(format!(
                    "nothing was put in place: {at} is in the way"
                )));
            }
        }
        let mut moved: Option<&[u8]> = None;
        for entry in &tree.entries {
            let within = |top: &[u8]| {
                entry
                    .path
                    .strip_prefix(top)
                    .is_some_and(|rest| rest.starts_with(b"/"))
            };
            if moved.is_some_and(within) {
                continue;
            }
            let (from, to) = (entry.below(&self.path), entry.below(target));
            if entry.kind != Kind::Directory {
                fs::rename(from, to)?;
            } else if fs::symlink_metadata(&to).is_err() {
                // Its `..` changes, which needs the right to write to it.
                fs::set_permissions(&from, Permissions::from_mode(0o700))?;
                fs::rename(from, &to)?;
                dress(&to, entry)?;
                moved = Some(&entry.path);
            }
        }
        rustix::fs::syncfs(File::open(target)?)?;
        self.discard()
    }
}

/// The digest of a file that has its size.
fn whole(path: &Path, entry: &Entry) -> Option<String> {
    let meta = fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.size() != entry.size {
        return None;
    }
    let (digest, _) = digest_of(File::open(path).ok()?).ok()?;
    Some(hex::encode(digest.finalize()))
}

fn dress(path: &Path, entry: &Entry) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(entry.mode & 0o777))?;
    touch(path, entry.time_s)
}

/// Of the link itself, where it is one.
fn touch(path: &Path, time_s: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(time_s).unwrap_or_default(),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Cuts a stream into files by their sizes.
pub(super) struct Writer {
    /// The files that are still to come, the next one last, with their place in the tree.
    waiting: Vec<(usize, PathBuf, Entry)>,
    current: Option<Current>,
    sums: Vec<Option<String>>,
    progress: Progress,
    meter: Meter,
}

struct Current {
    index: usize,
    entry: Entry,
    file: File,
    digest: Sha256,
    rest: u64,
}

impl Writer {
    /// For the wanted files of a tree.
    pub fn new(
        staging: &Staging,
        tree: &Tree,
        wanted: &[bool],
        begun: Progress,
        meter: &Meter,
    ) -> Self {
        let files = tree.entries.iter().zip(wanted).enumerate();
        let files = files.filter(|(_, (_, wanted))| **wanted);
        let mut waiting: Vec<_> = files
            .map(|(index, (entry, _))| (index, entry.below(&staging.path), entry.clone()))
            .collect();
        waiting.reverse();
        Self {
            waiting,
            current: None,
            sums: vec![None; tree.entries.len()],
            progress: begun,
            meter: meter.clone(),
        }
    }

    /// Writes what came. More than all files' sizes is an error.
    pub fn take(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            self.settle()?;
            let Some(current) = &mut self.current else {
                return Err(io::Error::other(
                    "the host sends more than the files' sizes",
                ));
            };
            let length = usize::try_from(current.rest)
                .unwrap_or(usize::MAX)
                .min(data.len());
            let (piece, rest) = data.split_at_checked(length).unwrap_or((data, &[]));
            current.file.write_all(piece)?;
            current.digest.update(piece);
            let written = u64::try_from(length).unwrap_or(u64::MAX);
            current.rest = current.rest.saturating_sub(written);
            self.progress.done_bytes = self.progress.done_bytes.saturating_add(written);
            data = rest;
        }
        (self.meter)(self.progress);
        Ok(())
    }

    /// Finishes the file that is full, and empty ones behind it; opens the next one.
    pub fn settle(&mut self) -> io::Result<()> {
        loop {
            if self
                .current
                .as_ref()
                .is_some_and(|current| current.rest > 0)
            {
                return Ok(());
            }
            if let Some(full) = self.current.take() {
                full.file
                    .set_permissions(Permissions::from_mode(full.entry.mode & 0o777))?;
                let time = UNIX_EPOCH + Duration::from_secs(full.entry.time_s);
                full.file.set_modified(time)?;
                let sum = hex::encode(full.digest.finalize());
                if let Some(place) = self.sums.get_mut(full.index) {
                    *place = Some(sum);
                }
            }
            let Some((index, path, entry)) = self.waiting.pop() else {
                return Ok(());
            };
            // Of an earlier try, and not whole.
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut options = OpenOptions::new();
            let file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            self.current = Some(Current {
                index,
                file,
                digest: Sha256::new(),
                rest: entry.size,
                entry,
            });
        }
    }

    /// Whether all of it came.
    pub fn is_complete(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    pub fn done_bytes(&self) -> u64 {
        self.progress.done_bytes
    }

    /// The digests of what came, in the order of the tree's entries.
    pub fn sums(self) -> Vec<Option<String>> {
        self.sums
    }
}
