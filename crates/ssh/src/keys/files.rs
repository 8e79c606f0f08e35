//! The files of one host's key on this machine: the key, a new one while it is replaced, the old one until it is proved
//! useless, and how far a replacement is.
//!
//! ```text
//!   ID, ID.pub     the key that logs in            ID~rotation   how far its replacement is
//!   ID~next        the one that will               ID~lock       held by whoever changes any of these
//!   ID~old         the one that did                ID~revoked-…  a key that was taken away
//! ```
//! No id of a host holds `~`, so none of these names is another host's key. Every file is whole or not there: written
//! beside, synced, then linked or renamed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use russh::keys::PublicKey;

use crate::error::Error;
use crate::hosts::{Settings, Vm};
use crate::identity;

/// A state file or a public key that is larger is none.
const MAX_BYTES: u64 = 64 * 1024;

/// Where the files of one host lie.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
    id: String,
}

/// Held while somebody changes a host's keys.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "held to keep the lock")] File);

impl Files {
    /// Of this host, in the configured directory.
    pub fn of(vm: &Vm, settings: &Settings) -> Self {
        Self {
            dir: settings.key_dir.clone(),
            id: vm.id.to_string(),
        }
    }

    fn named(&self, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}{suffix}", self.id))
    }

    /// The key that logs in.
    pub fn current(&self) -> PathBuf {
        self.named("")
    }

    /// Its public half.
    pub fn public(&self) -> PathBuf {
        self.named(".pub")
    }

    /// Its certificate.
    pub fn certificate(&self) -> PathBuf {
        self.named("-cert.pub")
    }

    /// The key that will log in.
    pub fn next(&self) -> PathBuf {
        self.named("~next")
    }

    /// The key that did.
    pub fn old(&self) -> PathBuf {
        self.named("~old")
    }

    /// How far a replacement is.
    pub fn rotation(&self) -> PathBuf {
        self.named("~rotation")
    }

    /// Where a revoked key goes.
    pub fn revoked(&self, when: &str) -> PathBuf {
        self.named(&format!("~revoked-{when}"))
    }

    /// Makes the directory, and takes the lock; an error if somebody else has it.
    pub fn hold(&self) -> Result<Held, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(failed("make", &self.dir))?;
        let path = self.named("~lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Held(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Keys {
                vm: self.id.clone(),
                reason: "another process changes its keys right now".to_owned(),
                hint: format!(
                    "wait for it; proximity remote keys status {} says more",
                    self.id
                ),
            }),
            Err(TryLockError::Error(e)) => Err(failed("lock", &path)(e)),
        }
    }

    /// The public half of a key file with the comment of `ID.pub`, where that belongs to it.
    pub fn public_half(&self, vm: &Vm, path: &Path) -> Result<PublicKey, Error> {
        let (key, _) = identity::public_half(vm, path)?;
        let told = self.told_public();
        Ok(told
            .filter(|told| told.key_data() == key.key_data())
            .unwrap_or(key))
    }

    /// What `ID.pub` says.
    pub fn told_public(&self) -> Option<PublicKey> {
        let text = read_bounded(&self.public()).ok()?;
        PublicKey::from_openssh(text.trim()).ok()
    }

    /// Puts a private key where none may be.
    pub fn write_private(&self, path: &Path, text: &str) -> Result<(), Error> {
        let part = self.write_part(text, 0o600)?;
        let linked = fs::hard_link(&part, path).map_err(failed("make", path));
        fs::remove_file(&part).map_err(failed("remove", &part))?;
        linked?;
        self.sync()
    }

    /// Puts `ID.pub` in the place of what is there.
    pub fn write_public(&self, key: &PublicKey) -> Result<(), Error> {
        let text = key.to_openssh().map_err(|e| Error::Content {
            path: self.public(),
            reason: format!("the public key cannot be written: {e}"),
        })?;
        self.replace(&self.public(), &format!("{text}\n"), 0o644)
    }

    /// Puts a file in the place of what is there.
    pub fn replace(&self, path: &Path, text: &str, mode: u32) -> Result<(), Error> {
        let part = self.write_part(text, mode)?;
        self.rename(&part, path)
    }

    /// Renames; on disk when this returns.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::rename(from, to).map_err(failed("rename", from))?;
        self.sync()
    }

    /// A second name for a file, unless it has it.
    pub fn link(&self, from: &Path, to: &Path) -> Result<(), Error> {
        match fs::hard_link(from, to) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("link", to)(e)),
            _ => self.sync(),
        }
    }

    /// Removes a file if it is there.
    pub fn remove(&self, path: &Path) -> Result<(), Error> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
            _ => self.sync(),
        }
    }

    fn write_part(&self, text: &str, mode: u32) -> Result<PathBuf, Error> {
        // The lock is held, so nobody else writes here.
        let path = self.named("~part");
        self.remove(&path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(failed("make", &path))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &path))?;
        Ok(path)
    }

    fn sync(&self) -> Result<(), Error> {
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed("sync", &self.dir))
    }
}

/// A small file's text.
pub fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::Error::other("it is larger than 64 KiB"));
    }
    fs::read_to_string(path)
}

/// Names what was tried with a file.
pub fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}
