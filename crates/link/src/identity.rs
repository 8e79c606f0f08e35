//! Who guests, relays and nodes are: the controller's certificate authorities, and the key by which it
//! signs tokens.
//!
//! There are three authorities, so that a certificate of a guest is worth nothing as that of a relay.
//! All keys are in one file, `authority.json`, which is made in one step at the first start and never
//! again: a key that is lost or damaged is an error with a hint, because new ones would orphan every
//! guest. Keys are overwritten in memory when they are dropped, and `Debug` shows none.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::InstanceId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use wire::identity::Bundle;
use zeroize::Zeroizing;

use crate::key_file;
use crate::token::Tokens;

/// How long a certificate of an instance holds: 90 days.
pub const LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// When less than this is left of it, it should be renewed: 30 days.
pub const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A certificate holds from a little before now, for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
const FILE: &str = "authority.json";
const VERSION: u32 = 1;

/// Why there is no authority, certificate or token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// The directory or the file of the keys could not be used.
    #[error("cannot {action} {}: {reason}", path.display())]
    File {
        /// What was tried ("read").
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        reason: String,
    },
    /// The file of the keys is open to others than its owner.
    #[error(
        "{} has mode {mode:04o}, so others could read the controller's keys; if nobody did, set it to 0600 (chmod 600), else every identity must be made anew",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file of the keys is damaged.
    #[error(
        "{} is damaged ({reason}); restore it from a backup: new keys would not be known to any guest, so none are made",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never a part of its content.
        reason: String,
    },
    /// A key, certificate or token could not be made.
    #[error("cannot make {what}: {reason}")]
    Make {
        /// What should have been made.
        what: &'static str,
        /// Why it failed.
        reason: String,
    },
}

impl IdentityError {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File {
            action,
            path,
            reason: error.to_string(),
        }
    }

    pub(crate) fn make<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Make {
            what,
            reason: error.to_string(),
        }
    }
}

/// What a certificate is for; each kind has an authority of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The agent in a guest.
    Guest,
    /// The relay on an appliance.
    Relay,
    /// The agent on a node.
    Node,
}

impl Kind {
    /// The name in the authority's certificate. It may never change: certificates point to it.
    fn authority_name(self) -> &'static str {
        match self {
            Self::Guest => "Proximity guests",
            Self::Relay => "Proximity relays",
            Self::Node => "Proximity nodes",
        }
    }
}

/// The file as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    guests: StoredPair,
    relays: StoredPair,
    nodes: StoredPair,
    /// PKCS #8 in PEM, Ed25519.
    tokens: Zeroizing<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPair {
    /// PKCS #8 in PEM, ECDSA P-256.
    key: Zeroizing<String>,
    /// PEM.
    certificate: String,
}

/// One authority, ready to sign.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    roots: RootCertStore,
}

/// The controller's authorities and its key for tokens.
pub struct Authority {
    guests: Signer,
    relays: Signer,
    nodes: Signer,
    tokens: Tokens,
}

// The keys must not get into a log.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("controller", &self.tokens.public_key())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Loads the keys from `dir`, or makes directory (0700) and keys (0600) when there are none yet. Two
    /// controllers that start at a time get the same keys. Blocks for some milliseconds.
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        let dir = key_file::Directory::open(dir)?;
        let content = match dir.read(FILE)? {
            Some(content) => content,
            None => {
                let stored = Stored::make()?;
                let json = serde_json::to_vec_pretty(&stored)
                    .map(Zeroizing::new)
                    .map_err(IdentityError::make("the file of keys"))?;
                dir.create(FILE, &json)?;
                json
            }
        };
        Self::parse(&content).map_err(|reason| IdentityError::Damaged {
            path: dir.path(FILE),
            reason,
        })
    }

    /// The reason of a failure never quotes the content.
    fn parse(content: &[u8]) -> Result<Self, String> {
        let stored: Stored = serde_json::from_slice(content).map_err(|e| {
            let what = if e.is_eof() {
                "it ends too early"
            } else {
                "it is not the JSON of keys"
            };
            format!("{what}, line {} column {}", e.line(), e.column())
        })?;
        if stored.version != VERSION {
            return Err(format!(
                "it has version {}, this controller knows {VERSION}",
                stored.version
            ));
        }
        Ok(Self {
            guests: Signer::load(Kind::Guest, &stored.guests)?,
            relays: Signer::load(Kind::Relay, &stored.relays)?,
            nodes: Signer::load(Kind::Node, &stored.nodes)?,
            tokens: Tokens::load(&stored.tokens)?,
        })
    }

    /// Makes an identity for `id`: a new key, and a server certificate with the id as its only name that
    /// holds from five minutes before `now` for [`LIFE`].
    pub fn bundle(
        &self,
        kind: Kind,
        id: &InstanceId,
        now: SystemTime,
    ) -> Result<Bundle, IdentityError> {
        let signer = self.signer(kind);
        let key = new_key().map_err(IdentityError::make("a key"))?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let not_after = now.saturating_add(LIFE);
        let mut params = CertificateParams::new([wire::agent::server_name(id)])
            .map_err(IdentityError::make("a certificate"))?;
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + now.saturating_sub(BACKDATED);
        params.not_after = epoch + Duration::from_secs(not_after.as_secs());
        // The name stands in the SAN alone; that of the subject is for nobody.
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&*key, &signer.issuer)
            .map_err(IdentityError::make("a certificate"))?;
        Ok(Bundle {
            instance: id.as_str().to_owned(),
            key: Zeroizing::new(key.serialize_pem()),
            certificate: certificate.pem(),
            authority: signer.certificate.clone(),
            not_after: not_after.as_secs(),
            controller: self.tokens.public_key(),
        })
    }

    /// The certificates that peers of this kind must descend from.
    pub fn roots(&self, kind: Kind) -> RootCertStore {
        self.signer(kind).roots.clone()
    }

    /// Signs tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn signer(&self, kind: Kind) -> &Signer {
        match kind {
            Kind::Guest => &self.guests,
            Kind::Relay => &self.relays,
            Kind::Node => &self.nodes,
        }
    }
}

/// Whether an identity should be renewed: less than [`RENEW_BEFORE`] is left of it.
pub fn bundle_is_due(bundle: &Bundle, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(bundle.not_after) < now.saturating_add(RENEW_BEFORE)
}

impl Stored {
    fn make() -> Result<Self, IdentityError> {
        Ok(Self {
            version: VERSION,
            guests: StoredPair::make(Kind::Guest)?,
            relays: StoredPair::make(Kind::Relay)?,
            nodes: StoredPair::make(Kind::Node)?,
            tokens: KeyPair::generate_for(&rcgen::PKCS_ED25519)
                .map(|key| Zeroizing::new(key.serialize_pem()))
                .map_err(IdentityError::make("the key for tokens"))?,
        })
    }
}

impl StoredPair {
    fn make(kind: Kind) -> Result<Self, IdentityError> {
        let key = new_key().map_err(IdentityError::make("an authority's key"))?;
        let certificate = authority_params(kind)
            .self_signed(&*key)
            .map_err(IdentityError::make("an authority's certificate"))?;
        Ok(Self {
            key: Zeroizing::new(key.serialize_pem()),
            certificate: certificate.pem(),
        })
    }
}

impl Signer {
    fn load(kind: Kind, stored: &StoredPair) -> Result<Self, String> {
        let name = kind.authority_name();
        let key = KeyPair::from_pem(&stored.key)
            .map_err(|_| format!("the key of {name} cannot be read"))?;
        let der = CertificateDer::from_pem_slice(stored.certificate.as_bytes())
            .map_err(|_| format!("the certificate of {name} cannot be read"))?;
        let mut roots = RootCertStore::empty();
        roots
            .add(der)
            .map_err(|_| format!("the certificate of {name} cannot be read"))?;
        let belongs = roots.roots.first().is_some_and(|root| {
            root.subject_public_key_info.ends_with(key.der_bytes())
                && root.subject.ends_with(name.as_bytes())
        });
        if !belongs {
            return Err(format!("key and certificate of {name} are no pair"));
        }
        Ok(Self {
            issuer: Issuer::new(authority_params(kind), key),
            certificate: stored.certificate.clone(),
            roots,
        })
    }
}

/// An ECDSA P-256 key, which is overwritten when it is dropped.
fn new_key() -> Result<Zeroizing<KeyPair>, rcgen::Error> {
    KeyPair::generate().map(Zeroizing::new)
}

fn authority_params(kind: Kind) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, kind.authority_name());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
