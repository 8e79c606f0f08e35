//! The file of one chain: opened with mode 0600, locked against a second writer, appended to in whole
//! records only. Owns the open file and how long its good part is; knows nothing of records.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::head::RecordHash;

/// Why an append did not happen.
pub(crate) enum NotAppended {
    /// Nothing was written.
    Refused(Error),
    /// Something was written and cut off again; the file is as it was.
    Undone {
        /// How many bytes were cut off.
        bytes: u64,
        /// Why the write failed.
        error: Error,
    },
    /// What is on disk is uncertain; nothing may be appended until the file was read again.
    Uncertain(Error),
}

/// The locked file.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    len: u64,
    synced: bool,
}

impl Drop for LogFile {
    fn drop(&mut self) {
        // Closing is not enough while a child between fork and exec holds a copy of the descriptor.
        // Should this fail, closing the last copy unlocks as well.
        let _: io::Result<()> = self.file.unlock();
    }
}

/// A torn tail that was moved into a file of its own.
pub(crate) struct SetAside {
    pub path: PathBuf,
    pub bytes: u64,
    pub sha256: RecordHash,
    pub head: String,
}

impl LogFile {
    /// Opens or creates, locks, and makes sure that the name itself is on disk.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |what| move |e| Error::io(what, path, e);
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.is_file() => {
                return Err(Error::NotAFile {
                    path: path.to_owned(),
                });
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", path, e)),
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path, e)),
        }
        let meta = file.metadata().map_err(io("look at"))?;
        if meta.mode() & 0o777 != 0o600 {
            file.set_permissions(Permissions::from_mode(0o600))
                .map_err(io("protect"))?;
        }
        sync_directory(path).map_err(io("sync the directory of"))?;
        let log = Self {
            path: path.to_owned(),
            file,
            len: meta.len(),
            synced: true,
        };
        log.check_unchanged()?;
        Ok(log)
    }

    /// How long it is, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A new, locked file under another name, to take this one's place.
    pub fn successor(&self) -> Result<Self, Error> {
        let path = with_suffix(&self.path, ".next");
        let made = match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => OpenOptions::new()
                .read(true)
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(&path),
        };
        let file = made.map_err(|e| Error::io("make the successor of", &self.path, e))?;
        file.try_lock()
            .map_err(|e| Error::io("lock the successor of", &self.path, e.into()))?;
        Ok(Self {
            path,
            file,
            len: 0,
            synced: true,
        })
    }

    /// Keeps this file under another name and gives its own to the successor. The name always leads to one of them.
    pub fn hand_over(&mut self, mut next: Self, aside: &Path) -> Result<(), Error> {
        self.check_unchanged()?;
        fs::hard_link(&self.path, aside).map_err(|e| Error::io("set aside", &self.path, e))?;
        if let Err(e) = fs::rename(&next.path, &self.path) {
            // Both names are this file's still, which the next opening understands too.
            let _: io::Result<()> = fs::remove_file(aside);
            return Err(Error::io(
                "put the successor in the place of",
                &self.path,
                e,
            ));
        }
        next.path.clone_from(&self.path);
        *self = next;
        Ok(())
    }

    /// Has what became of the log's name on the disk.
    pub fn sync_name(&self) -> Result<(), Error> {
        sync_directory(&self.path).map_err(|e| Error::io("sync the directory of", &self.path, e))
    }

    /// The file from its beginning, for reading.
    pub fn rewound(&mut self) -> Result<&File, Error> {
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(|e| Error::io("read", &self.path, e))?;
        Ok(&self.file)
    }

    /// Appends whole records. They outlive this process; a power cut they outlive after [`Self::sync`].
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), NotAppended> {
        self.check_unchanged().map_err(NotAppended::Refused)?;
        if let Err(e) = self.file.write_all(bytes) {
            return Err(self.undo(Error::io("write to", &self.path, e)));
        }
        self.len = self.len.saturating_add(bytes.len() as u64);
        self.synced = false;
        Ok(())
    }

    /// Whether everything that was appended is on disk.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Puts on disk what was appended.
    pub fn sync(&mut self) -> Result<(), NotAppended> {
        self.file
            .sync_data()
            .map_err(|e| NotAppended::Uncertain(Error::io("sync", &self.path, e)))?;
        self.synced = true;
        Ok(())
    }

    fn undo(&mut self, error: Error) -> NotAppended {
        let cut = || -> io::Result<u64> {
            let bytes = self.file.metadata()?.len().saturating_sub(self.len);
            self.file.set_len(self.len)?;
            self.file.sync_data()?;
            Ok(bytes)
        };
        match cut() {
            Ok(bytes) => NotAppended::Undone { bytes, error },
            Err(e) => {
                NotAppended::Uncertain(Error::io("cut a half-written record from", &self.path, e))
            }
        }
    }

    /// The name still leads to our file, and nobody else changed its length.
    fn check_unchanged(&self) -> Result<(), Error> {
        let changed = |change: String| Error::Changed {
            path: self.path.clone(),
            change,
        };
        let named = match fs::symlink_metadata(&self.path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(changed("it was moved or deleted".to_owned()));
            }
            Err(e) => return Err(Error::io("look at", &self.path, e)),
        };
        let ours = self
            .file
            .metadata()
            .map_err(|e| Error::io("look at", &self.path, e))?;
        if (named.dev(), named.ino()) != (ours.dev(), ours.ino()) {
            return Err(changed("another file stands in its place".to_owned()));
        }
        if ours.len() != self.len {
            return Err(changed(format!(
                "it has {} bytes, expected {}",
                ours.len(),
                self.len
            )));
        }
        Ok(())
    }

    /// Moves everything from `offset` on into a file of its own, then cuts it off here.
    pub fn set_tail_aside(&mut self, offset: u64, next_seq: u64) -> Result<(), Error> {
        let aside = (1..=MAX_SET_ASIDE)
            .map(|k| set_aside_path(&self.path, next_seq, k))
            .find(|path| fs::symlink_metadata(path).is_err())
            .ok_or_else(|| {
                let many = io::Error::other("there are too many torn tails beside it already");
                Error::io("set aside the torn tail of", &self.path, many)
            })?;
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |e| Error::io(what, &path, e)
        };
        // Written under another name first: the final name exists only with the whole tail in it.
        let draft = with_suffix(&aside, ".part");
        let mut to = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(io("set aside the torn tail of", &self.path))?;
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(io("read", &self.path))?;
        io::copy(&mut &self.file, &mut to)
            .and_then(|_| to.sync_all())
            .and_then(|()| fs::rename(&draft, &aside))
            .and_then(|()| sync_directory(&aside))
            .map_err(io("set aside the torn tail of", &self.path))?;
        self.file
            .set_len(offset)
            .and_then(|()| self.file.sync_all())
            .map_err(io("cut the torn tail from", &self.path))?;
        self.len = offset;
        Ok(())
    }

    /// The tails that were set aside at `next_seq` and are not told of in the chain yet.
    pub fn set_aside(&self, next_seq: u64) -> Result<Vec<SetAside>, Error> {
        let mut found = Vec::new();
        for k in 1..=MAX_SET_ASIDE {
            match SetAside::read(set_aside_path(&self.path, next_seq, k)) {
                Ok(tail) => found.push(tail),
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(Error::io("read the torn tail of", &self.path, e)),
            }
        }
        Ok(found)
    }
}

impl SetAside {
    fn read(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let bytes = file.metadata()?.len();
        let mut beginning = Vec::new();
        file.take(SET_ASIDE_HASHED_BYTES)
            .read_to_end(&mut beginning)?;
        let head = beginning.get(..SET_ASIDE_HEAD_BYTES).unwrap_or(&beginning);
        Ok(Self {
            bytes,
            sha256: RecordHash::of(&[&beginning]),
            head: String::from_utf8_lossy(head).into_owned(),
            path,
        })
    }
}

/// A torn tail is a part of one batch; of anything larger the digest covers the beginning only.
const SET_ASIDE_HASHED_BYTES: u64 = 16 * 1024 * 1024;
const SET_ASIDE_HEAD_BYTES: usize = 512;
/// Crashes in a row, each while the record about the last one was written.
const MAX_SET_ASIDE: u32 = 16;

/// `PATH.torn-SEQ-K`, where SEQ is the record that tells of it.
fn set_aside_path(path: &Path, next_seq: u64, k: u32) -> PathBuf {
    with_suffix(path, &format!(".torn-{next_seq}-{k}"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
