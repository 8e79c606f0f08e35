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

/// The host's key file. `None` if an agent may help: there is no file and none was named, or it is encrypted and nobody
/// gave its passphrase.
pub(crate) fn load(
    vm: &Vm,
    settings: &Settings,
    passphrases: Option<&Passphrases>,
) -> Result<Option<Identity>, Error> {
    let path = key_path(vm, settings);
    if vm.key_file.is_none() && !path.exists() {
        return Ok(None);
    }
    let refuse = |(reason, hint): Unusable| Error::Identity {
        vm: vm.id.to_string(),
        reason: format!("{} {reason}", path.display()),
        hint: hint.to_owned(),
    };
    let mut key = read_key(&path).map_err(refuse)?;
    if key.is_encrypted() {
        let Some(passphrase) = passphrases.and_then(|ask| ask(&path)) else {
            if settings.use_agent && std::env::var_os("SSH_AUTH_SOCK").is_some() {
                return Ok(None);
            }
            return Err(refuse((
                "is encrypted and nobody gave its passphrase".to_owned(),
                "name a file with --passphrase-file, or load the key into an agent",
            )));
        };
        key = key
            .decrypt(passphrase.as_bytes())
            .map_err(|_| refuse(("has another passphrase".to_owned(), "try again")))?;
    }
    if let Some(reason) = algorithms::weakness(key.public_key().key_data()) {
        return Err(refuse((
            format!("is too weak: {reason}"),
            "make an ed25519 key: ssh-keygen -t ed25519",
        )));
    }
    let certificate = certificate(&path, &key).map_err(|reason| Error::Identity {
        vm: vm.id.to_string(),
        reason,
        hint: "remove the file, or have the authority sign the key again".to_owned(),
    })?;
    Ok(Some(Identity {
        path,
        key: Arc::new(key),
        certificate,
    }))
}

/// What is wrong with a key file, and what to do.
type Unusable = (String, &'static str);

fn read_key(path: &Path) -> Result<PrivateKey, Unusable> {
    let unreadable = |e: io::Error| {
        let reason = format!("cannot be read: {e}");
        (
            reason,
            "name a key that is there with key_file, or make one",
        )
    };
    let meta = fs::metadata(path).map_err(unreadable)?;
    if meta.mode() & 0o077 != 0 {
        let reason = format!("can be read by others (mode {:o})", meta.mode() & 0o777);
        let hint = "chmod 600 it, and replace it if anybody may have read it";
        return Err((reason, hint));
    }
    if meta.len() > MAX_KEY_BYTES {
        let reason = "is too large for a key".to_owned();
        return Err((reason, "name a private key in OpenSSH's format"));
    }
    let text = fs::read(path).map(Zeroizing::new).map_err(unreadable)?;
    PrivateKey::from_openssh(text.as_slice()).map_err(|e| {
        let reason = format!("is not a private key in OpenSSH's format: {e}");
        let hint = "ssh-keygen -p -f KEY writes older keys in today's format";
        (reason, hint)
    })
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
