//! The keys that we log in with: private key files, their certificates, and those of an SSH agent.
//!
//! A key that others can read, or that is too weak, is refused, not passed over: whoever named it must hear of it.
//! Keys in memory are wiped by the crate that holds them; they are never printed.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::{Certificate, PrivateKey};
use zeroize::Zeroizing;

use crate::algorithms;
use crate::error::Error;
use crate::hosts::{Settings, Vm};

/// A larger file is no key.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// Gives the passphrase of an encrypted key file; `None` when nobody knows it.
pub type Passphrases = Arc<dyn Fn(&Path) -> Option<Zeroizing<String>> + Send + Sync>;

/// A key to try.
#[derive(Clone)]
pub(crate) struct Identity {
    /// Where it comes from, for messages.
    pub path: PathBuf,
    pub key: Arc<PrivateKey>,
    /// Shown instead of the bare key where there is one.
    pub certificate: Option<Certificate>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// The file of a host's key: what the configuration names, else the host's own in the key directory.
pub fn key_path(vm: &Vm, settings: &Settings) -> PathBuf {
    vm.key_file
        .clone()
        .unwrap_or_else(|| settings.key_dir.join(vm.id.as_str()))
}

/// The host's key file. `None` if there is none and none was named: an agent may help then.
pub(crate) fn load(
    vm: &Vm,
    settings: &Settings,
    passphrases: Option<&Passphrases>,
) -> Result<Option<Identity>, Error> {
    let path = key_path(vm, settings);
    let refuse = |reason: String, hint: &str| Error::Identity {
        vm: vm.id.to_string(),
        reason,
        hint: hint.to_owned(),
    };
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound && vm.key_file.is_none() => return Ok(None),
        Err(e) => {
            return Err(refuse(
                format!("the key {} cannot be read: {e}", path.display()),
                "name a key that is there with key_file, or make one",
            ));
        }
    };
    if meta.mode() & 0o077 != 0 {
        return Err(refuse(
            format!(
                "the key {} can be read by others (mode {:o})",
                path.display(),
                meta.mode() & 0o777
            ),
            "chmod 600 it, and replace it if anybody may have read it",
        ));
    }
    if meta.len() > MAX_KEY_BYTES {
        return Err(refuse(
            format!("{} is too large for a key", path.display()),
            "name a private key in OpenSSH's format",
        ));
    }
    let text = fs::read(&path)
        .map(Zeroizing::new)
        .map_err(|source| Error::File {
            what: "read",
            path: path.clone(),
            source,
        })?;
    let key = PrivateKey::from_openssh(text.as_slice()).map_err(|e| {
        refuse(
            format!(
                "{} is not a private key in OpenSSH's format: {e}",
                path.display()
            ),
            "ssh-keygen -p -f KEY writes older keys in today's format",
        )
    })?;
    let key = if key.is_encrypted() {
        let passphrase = passphrases.and_then(|ask| ask(&path)).ok_or_else(|| {
            refuse(
                format!("the key {} is encrypted and nobody gave its passphrase", path.display()),
                "run it on a terminal, name a file with --passphrase-file, or load the key into an agent",
            )
        })?;
        key.decrypt(passphrase.as_bytes()).map_err(|_| {
            refuse(
                format!("the passphrase of {} is wrong", path.display()),
                "try again",
            )
        })?
    } else {
        key
    };
    if let Some(reason) = algorithms::weakness(key.public_key().key_data()) {
        return Err(refuse(
            format!("the key {} is too weak: {reason}", path.display()),
            "make an ed25519 key: ssh-keygen -t ed25519",
        ));
    }
    let certificate = certificate(&path, &key).map_err(|reason| {
        refuse(
            reason,
            "remove the file, or have the authority sign the key again",
        )
    })?;
    Ok(Some(Identity {
        path,
        key: Arc::new(key),
        certificate,
    }))
}

/// The certificate beside a key: `KEY-cert.pub`.
fn certificate(path: &Path, key: &PrivateKey) -> Result<Option<Certificate>, String> {
    let mut name = path.as_os_str().to_owned();
    name.push("-cert.pub");
    let path = PathBuf::from(name);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            return Err(format!(
                "the certificate {} cannot be read: {e}",
                path.display()
            ));
        }
    };
    let certificate = Certificate::from_openssh(text.trim())
        .map_err(|e| format!("{} is no certificate: {e}", path.display()))?;
    if certificate.public_key() != key.public_key().key_data() {
        return Err(format!(
            "the certificate {} is for another key",
            path.display()
        ));
    }
    Ok(Some(certificate))
}
