//! The directory of the controller's keys: files that only their owner can read, that are there as a
//! whole or not at all, and that are never replaced.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::identity::IdentityError;

/// Keys are some kilobytes; a file above this is none of ours.
const FILE_MAX_BYTES: u64 = 256 << 10;
const OTHERS: u32 = 0o077;

/// The directory, locked against other controllers until it is dropped.
pub struct Directory {
    path: PathBuf,
    handle: File,
}

impl Directory {
    /// Makes the directory when it is missing, sets its mode to 0700, and waits for its lock.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(IdentityError::file("make directory", path))?;
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(IdentityError::file("set the mode of", path))?;
        let handle = File::open(path).map_err(IdentityError::file("open", path))?;
        handle.lock().map_err(IdentityError::file("lock", path))?;
        Ok(Self {
            path: path.to_owned(),
            handle,
        })
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The content of a file, or `None` when there is none. One that others may read is an error.
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(IdentityError::file("open", &path)(e)),
        };
        let metadata = file
            .metadata()
            .map_err(IdentityError::file("read", &path))?;
        let mode = metadata.mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(IdentityError::Open { path, mode });
        }
        // Room for all of it beforehand, so that no half of it stays behind in memory.
        let room = metadata.len().min(FILE_MAX_BYTES) as usize + 1;
        let mut content = Zeroizing::new(Vec::with_capacity(room));
        file.take(FILE_MAX_BYTES)
            .read_to_end(&mut content)
            .map_err(IdentityError::file("read", &path))?;
        Ok(Some(content))
    }

    /// Writes a file that is not there yet. A crash leaves all of it or nothing but a file that begins
    /// with a dot, which the next call overwrites.
    pub fn create(&self, name: &str, content: &[u8]) -> Result<(), IdentityError> {
        let temporary = self.path(&format!(".{name}.new"));
        let path = self.path(name);
        write(&temporary, content).map_err(IdentityError::file("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(IdentityError::file("place", &path))?;
        self.handle
            .sync_all()
            .map_err(IdentityError::file("flush", &self.path))
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    // The mode given to open counts only for a new file.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()
}
