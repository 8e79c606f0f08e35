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

use russh::keys::ssh_key::Kdf;
use russh::keys::{Certificate, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::agent::Agent;
use crate::algorithms;
use crate::error::Error;
use crate::hosts::{Settings, Vm};

/// A larger file is no key.
const MAX_KEY_BYTES: u64 = 64 * 1024;
/// More rounds of bcrypt would take minutes; `ssh-keygen` writes 16 to 24.
const MAX_ROUNDS: u32 = 1024;

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

/// Which keys are shown to the host itself. Those on the way get what is configured for them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Offer<'a> {
    /// The configured file, then an agent's.
    Configured,
    /// This file and its certificate only.
    File(&'a Path),
    /// This file only, even if it has a certificate.
    Bare(&'a Path),
}

/// What a login can show.
pub(crate) struct Keys {
    pub identity: Option<Identity>,
    /// The configured key where it is encrypted: of an agent's keys it comes first.
    pub locked: Option<PublicKey>,
    pub use_agent: bool,
}

impl Keys {
    /// Reads the files that are meant; asks an agent only whether it has the one that is encrypted.
    pub async fn of(
        vm: &Vm,
        settings: &Settings,
        passphrases: Option<&Passphrases>,
        offer: Offer<'_>,
    ) -> Result<Self, Error> {
        let path = match offer {
            Offer::Configured => None,
            Offer::File(path) | Offer::Bare(path) => Some(path),
        };
        if let Some(path) = path {
            let identity = open(vm, path, passphrases)?;
            let bare = matches!(offer, Offer::Bare(_));
            return Ok(Self {
                identity: Some(if bare { identity.bare() } else { identity }),
                locked: None,
                use_agent: false,
            });
        }
        let use_agent = settings.use_agent && std::env::var_os("SSH_AUTH_SOCK").is_some();
        let mut asked = passphrases;
        let mut locked = None;
        if use_agent && let Some(key) = locked_half(vm, settings) {
            // Nobody is asked for the passphrase of a key that the agent has.
            let agent = Agent::connect().await;
            asked = asked.filter(|_| !agent.is_some_and(|agent| agent.holds(&key)));
            locked = Some(key);
        }
        Ok(Self {
            identity: load(vm, settings, asked)?,
            locked,
            use_agent,
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// The key without its certificate.
    pub fn bare(mut self) -> Self {
        self.certificate = None;
        self
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
fn load(
    vm: &Vm,
    settings: &Settings,
    passphrases: Option<&Passphrases>,
) -> Result<Option<Identity>, Error> {
    let path = key_path(vm, settings);
    if vm.key_file.is_none() && !path.exists() {
        return Ok(None);
    }
    match unlock(vm, &path, passphrases)? {
        Some(key) => usable(vm, path, key).map(Some),
        None if settings.use_agent && std::env::var_os("SSH_AUTH_SOCK").is_some() => Ok(None),
        None => Err(locked(vm, &path)),
    }
}

/// A key file that is named; no agent can stand in for it.
pub(crate) fn open(
    vm: &Vm,
    path: &Path,
    passphrases: Option<&Passphrases>,
) -> Result<Identity, Error> {
    let key = unlock(vm, path, passphrases)?.ok_or_else(|| locked(vm, path))?;
    usable(vm, path.to_owned(), key)
}

/// The public half of a private key file, encrypted or not, and whether it is.
pub(crate) fn public_half(vm: &Vm, path: &Path) -> Result<(PublicKey, bool), Error> {
    let key = read_key(path).map_err(|unusable| refusal(vm, path, unusable))?;
    Ok((key.public_key().clone(), key.is_encrypted()))
}

/// The public half of a host's key file if that is there and encrypted.
fn locked_half(vm: &Vm, settings: &Settings) -> Option<PublicKey> {
    let path = key_path(vm, settings);
    // What is wrong with the file is told when it is used.
    let (key, encrypted) = public_half(vm, &path).ok()?;
    encrypted.then_some(key)
}

fn refusal(vm: &Vm, path: &Path, (reason, hint): Unusable) -> Error {
    Error::Identity {
        vm: vm.id.to_string(),
        reason: format!("{} {reason}", path.display()),
        hint: hint.to_owned(),
    }
}

fn locked(vm: &Vm, path: &Path) -> Error {
    let reason = "is encrypted and nobody gave its passphrase".to_owned();
    let hint = "name a file with --passphrase-file, or load the key into an agent";
    refusal(vm, path, (reason, hint))
}

/// `None` for an encrypted key whose passphrase nobody gives.
fn unlock(
    vm: &Vm,
    path: &Path,
    passphrases: Option<&Passphrases>,
) -> Result<Option<PrivateKey>, Error> {
    let key = read_key(path).map_err(|unusable| refusal(vm, path, unusable))?;
    if !key.is_encrypted() {
        return Ok(Some(key));
    }
    let Some(passphrase) = passphrases.and_then(|ask| ask(path)) else {
        return Ok(None);
    };
    let opened = key.decrypt(passphrase.as_bytes());
    let wrong = |_| refusal(vm, path, ("has another passphrase".to_owned(), "try again"));
    opened.map(Some).map_err(wrong)
}

fn usable(vm: &Vm, path: PathBuf, key: PrivateKey) -> Result<Identity, Error> {
    if let Some(reason) = algorithms::weakness(key.public_key().key_data()) {
        let reason = format!("is too weak: {reason}");
        let hint = "make an ed25519 key: proximity remote keys init";
        return Err(refusal(vm, &path, (reason, hint)));
    }
    let certificate = certificate(&path, &key).map_err(|reason| Error::Identity {
        vm: vm.id.to_string(),
        reason,
        hint: "remove the file, or have the authority sign the key again".to_owned(),
    })?;
    Ok(Identity {
        path,
        key: Arc::new(key),
        certificate,
    })
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
    let key = PrivateKey::from_openssh(text.as_slice()).map_err(|e| {
        let reason = format!("is not a private key in OpenSSH's format: {e}");
        let hint = "ssh-keygen -p -f KEY writes older keys in today's format";
        (reason, hint)
    })?;
    match key.kdf() {
        Kdf::Bcrypt { rounds, .. } if *rounds > MAX_ROUNDS => {
            let reason = format!("asks for {rounds} rounds to make its key of the passphrase");
            Err((reason, "ssh-keygen -p -a 64 -f KEY writes it with fewer"))
        }
        _ => Ok(key),
    }
}

/// Where the certificate of a key is: `KEY-cert.pub`.
pub(crate) fn certificate_path(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push("-cert.pub");
    PathBuf::from(name)
}

/// The certificate beside a key.
fn certificate(path: &Path, key: &PrivateKey) -> Result<Option<Certificate>, String> {
    let path = certificate_path(path);
    let large = fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_KEY_BYTES);
    if large {
        return Err(format!("{} is too large for a certificate", path.display()));
    }
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
