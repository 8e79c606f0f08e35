//! Whether the key that a server shows is the right one. There is no way to accept a key that is not known.
//!
//! Pins come from `known_hosts` only ([`crate::known_hosts`]); this module writes that file in one place,
//! [`pin`], after a person or an expected fingerprint said yes.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey, PublicKeyOrCertificate};

use crate::algorithms;
use crate::error::Error;
use crate::hosts::Vm;
use crate::known_hosts::{Entry, KnownHosts, MAX_FILE_BYTES, Marker, line_for};

/// What is wrong with a server's key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyProblem {
    /// Nobody has said yet which key the host has.
    #[error(
        "the key of {address} is not known: it shows {fingerprint} ({key_type}), and {} has none for it",
        known_hosts.display()
    )]
    Unknown {
        /// Host and port.
        address: String,
        /// The kind of the key that it shows.
        key_type: String,
        /// SHA-256 of the key that it shows.
        fingerprint: String,
        /// Where was looked.
        known_hosts: PathBuf,
    },
    /// The host has another key than the one that is pinned.
    #[error(
        "THE KEY OF {address} HAS CHANGED: it shows {fingerprint} ({key_type}), pinned is {pinned} in {}:{line}. Either the host was installed anew, or somebody stands in between. Nothing was sent",
        known_hosts.display()
    )]
    Changed {
        /// Host and port.
        address: String,
        /// The kind of the key that it shows.
        key_type: String,
        /// SHA-256 of the key that it shows.
        fingerprint: String,
        /// SHA-256 of the key that is pinned.
        pinned: String,
        /// Where that one stands.
        known_hosts: PathBuf,
        /// In which line.
        line: usize,
    },
    /// The key is marked as revoked.
    #[error(
        "the key of {address} is revoked: {fingerprint} stands with @revoked in {}:{line}",
        known_hosts.display()
    )]
    Revoked {
        /// Host and port.
        address: String,
        /// SHA-256 of the key.
        fingerprint: String,
        /// Where it is revoked.
        known_hosts: PathBuf,
        /// In which line.
        line: usize,
    },
    /// The key is too weak.
    #[error("the key of {address} is too weak: {reason}")]
    Weak {
        /// Host and port.
        address: String,
        /// Why.
        reason: String,
    },
    /// The certificate does not hold.
    #[error("the certificate of {address} does not hold: {reason}")]
    Certificate {
        /// Host and port.
        address: String,
        /// Why.
        reason: String,
    },
}

impl HostKeyProblem {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "host_key_unknown",
            Self::Changed { .. } => "host_key_changed",
            Self::Revoked { .. } => "host_key_revoked",
            Self::Weak { .. } => "host_key_weak",
            Self::Certificate { .. } => "host_certificate_invalid",
        }
    }

    /// What to do next.
    pub fn hint(&self, vm: &str) -> String {
        match self {
            Self::Unknown { .. } => format!(
                "compare the fingerprint with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub on its console), then: proximity remote trust {vm}"
            ),
            Self::Changed { known_hosts, line, .. } => format!(
                "ask whoever runs the host. Only if the change is theirs: remove line {line} of {} and run proximity remote trust {vm} --fingerprint with the fingerprint they give",
                known_hosts.display()
            ),
            Self::Revoked { .. } => {
                "the host must get a new key; a revoked one is never used again".to_owned()
            }
            Self::Weak { .. } => {
                "give the host an ed25519 key: ssh-keygen -A, then restart its sshd".to_owned()
            }
            Self::Certificate { .. } => {
                "have the authority sign the host's key again (ssh-keygen -s … -h -n NAME), with the name that vms has".to_owned()
            }
        }
    }
}

/// The key that a server showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownKey {
    /// Its kind.
    pub key_type: String,
    /// `SHA256:` and its digest, as OpenSSH writes it.
    pub fingerprint: String,
    /// The key in SSH's own encoding.
    blob: Vec<u8>,
}

impl ShownKey {
    pub(crate) fn of(key: &PublicKey) -> Option<Self> {
        Some(Self {
            key_type: algorithms::key_type(&key.algorithm()),
            fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
            blob: key.to_bytes().ok()?,
        })
    }
}

/// What is known of one host's keys.
#[derive(Debug, Clone)]
pub struct Trust {
    path: PathBuf,
    address: String,
    host: String,
    entries: Vec<Entry>,
}

impl Trust {
    /// Reads `known_hosts` for a host. A file that is not there knows nobody.
    pub fn read(path: &Path, vm: &Vm) -> Result<Self, Error> {
        let known = read(path)?;
        Ok(Self {
            path: path.to_owned(),
            address: vm.address(),
            host: vm.host.to_ascii_lowercase(),
            entries: known.of(&vm.host, vm.port).cloned().collect(),
        })
    }

    /// The kinds of keys to ask the server for: those that are pinned, all if none is.
    pub fn wanted_keys(&self) -> Vec<Algorithm> {
        let mut all = algorithms::host_keys();
        let pinned: Vec<&str> = self
            .of(Marker::Key)
            .map(|entry| entry.key_type.as_str())
            .collect();
        if !pinned.is_empty() {
            all.retain(|algorithm| pinned.contains(&algorithms::key_type(algorithm).as_str()));
        }
        if all.is_empty() {
            // What is pinned is of a kind that nobody uses any more; the server's better key shows as changed.
            return algorithms::host_keys();
        }
        all
    }

    /// The kinds of certificates to ask for: none unless an authority is trusted for this host.
    pub fn wanted_certificates(&self) -> Vec<Algorithm> {
        if self.of(Marker::Authority).next().is_some() {
            algorithms::host_keys()
        } else {
            Vec::new()
        }
    }

    fn of(&self, marker: Marker) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(move |entry| entry.marker == marker)
    }

    /// Whether the server is the right one.
    pub fn check(&self, shown: &PublicKeyOrCertificate) -> Result<(), Box<HostKeyProblem>> {
        let key = shown.public_key();
        let weak = |reason: String| {
            Box::new(HostKeyProblem::Weak {
                address: self.address.clone(),
                reason,
            })
        };
        let Some(key) = ShownKey::of(&key) else {
            return Err(weak("it cannot be encoded".to_owned()));
        };
        self.check_not_revoked(&key)?;
        if let Some(reason) = algorithms::weakness(shown.public_key().key_data()) {
            return Err(weak(reason));
        }
        match shown {
            PublicKeyOrCertificate::Certificate(certificate) => {
                self.check_certificate(certificate, now_s())
            }
            PublicKeyOrCertificate::PublicKey { .. } => self.check_pinned(&key),
        }
    }

    fn check_not_revoked(&self, key: &ShownKey) -> Result<(), Box<HostKeyProblem>> {
        match self
            .of(Marker::Revoked)
            .find(|entry| entry.blob == key.blob)
        {
            None => Ok(()),
            Some(entry) => Err(Box::new(HostKeyProblem::Revoked {
                address: self.address.clone(),
                fingerprint: key.fingerprint.clone(),
                known_hosts: self.path.clone(),
                line: entry.line,
            })),
        }
    }

    fn check_pinned(&self, key: &ShownKey) -> Result<(), Box<HostKeyProblem>> {
        if self.of(Marker::Key).any(|entry| entry.blob == key.blob) {
            return Ok(());
        }
        // The line of the same kind says most; a host that is known by another kind only has changed as well.
        let same_kind = self.of(Marker::Key).find(|e| e.key_type == key.key_type);
        match same_kind.or_else(|| self.of(Marker::Key).next()) {
            Some(entry) => Err(Box::new(HostKeyProblem::Changed {
                address: self.address.clone(),
                key_type: key.key_type.clone(),
                fingerprint: key.fingerprint.clone(),
                pinned: fingerprint(&entry.blob),
                known_hosts: self.path.clone(),
                line: entry.line,
            })),
            None => Err(Box::new(HostKeyProblem::Unknown {
                address: self.address.clone(),
                key_type: key.key_type.clone(),
                fingerprint: key.fingerprint.clone(),
                known_hosts: self.path.clone(),
            })),
        }
    }

    fn check_certificate(
        &self,
        certificate: &Certificate,
        now_s: u64,
    ) -> Result<(), Box<HostKeyProblem>> {
        let invalid = |reason: &str| {
            Box::new(HostKeyProblem::Certificate {
                address: self.address.clone(),
                reason: reason.to_owned(),
            })
        };
        let authority = PublicKey::new(certificate.signature_key().clone(), "");
        let authority = ShownKey::of(&authority)
            .ok_or_else(|| invalid("its authority's key cannot be encoded"))?;
        self.check_not_revoked(&authority)?;
        if !self
            .of(Marker::Authority)
            .any(|entry| entry.blob == authority.blob)
        {
            return Err(invalid(&format!(
                "its authority {} stands with no @cert-authority for this host",
                authority.fingerprint
            )));
        }
        if let Some(reason) = algorithms::weakness(certificate.signature_key()) {
            return Err(invalid(&format!(
                "its authority's key is too weak: {reason}"
            )));
        }
        if certificate.cert_type() != CertType::Host {
            return Err(invalid("it is a user's, not a host's"));
        }
        // OpenSSH's sshd takes a certificate without names for any host; a client must not.
        let names = certificate.valid_principals();
        if !names
            .iter()
            .any(|name| name.eq_ignore_ascii_case(&self.host))
        {
            return Err(invalid(&format!(
                "it is for {}, not for {}",
                if names.is_empty() {
                    "nobody by name".to_owned()
                } else {
                    names.join(", ")
                },
                self.host
            )));
        }
        if certificate.critical_options().iter().next().is_some() {
            return Err(invalid("it has critical options that nobody here knows"));
        }
        if now_s < certificate.valid_after() {
            return Err(invalid("it is not valid yet; are both clocks right?"));
        }
        if now_s >= certificate.valid_before() {
            return Err(invalid("it has expired"));
        }
        let fingerprint = certificate.signature_key().fingerprint(HashAlg::Sha256);
        certificate
            .validate_at(now_s, [&fingerprint])
            .map_err(|_| invalid("its signature is wrong"))
    }
}

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn fingerprint(blob: &[u8]) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(blob);
    let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest);
    format!("SHA256:{text}")
}

fn read(path: &Path) -> Result<KnownHosts, Error> {
    let file = |source| Error::File {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let opened = match fs::File::open(path) {
        Ok(opened) => opened,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(KnownHosts::default()),
        Err(e) => return Err(file(e)),
    };
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
    opened
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(file)?;
    KnownHosts::parse(&bytes).map_err(|e| Error::Content {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// Adds a host's key to `known_hosts`, which is made with mode 0600 if it is not there. On disk when this returns.
pub fn pin(path: &Path, vm: &Vm, key: &ShownKey) -> Result<(), Error> {
    let file = |what: &'static str| {
        move |source| Error::File {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let line =
        line_for(&vm.host, vm.port, &key.key_type, &key.blob).ok_or_else(|| Error::Content {
            path: path.to_owned(),
            reason: format!("{:?} cannot be written as a host name", vm.host),
        })?;
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(file("make the directory of"))?;
    }
    let mut known = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(file("open"))?;
    known.lock().map_err(file("lock"))?;
    let mut text = String::new();
    let length = known.seek(SeekFrom::End(0)).map_err(file("read"))?;
    if length > 0 {
        let mut last = [0];
        known.seek(SeekFrom::End(-1)).map_err(file("read"))?;
        known.read_exact(&mut last).map_err(file("read"))?;
        if last != *b"\n" {
            text.push('\n');
        }
    }
    text.push_str(&line);
    known.write_all(text.as_bytes()).map_err(file("write"))?;
    known.sync_all().map_err(file("sync"))
}
