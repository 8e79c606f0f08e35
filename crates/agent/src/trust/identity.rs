//! What a bundle means: a certificate that is really ours, and whose tokens count. Pure, but for the
//! cryptography: the time is given.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::{default_provider, sign};
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use wire::identity::Bundle;
use zeroize::Zeroizing;

/// Length of an Ed25519 public key in bytes.
const PUBLIC_KEY_BYTES: usize = 32;

/// What is wrong with a bundle. No variant quotes the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The instance's id cannot stand in a certificate.
    #[error("the instance id {0:?} is not one DNS label")]
    Instance(String),
    /// The private key cannot be read.
    #[error("the private key is not PKCS #8 in PEM, or of a kind we cannot use")]
    Key,
    /// A certificate cannot be read.
    #[error("the {0} is not a certificate in PEM")]
    Certificate(&'static str),
    /// The controller's key cannot be read.
    #[error("the controller's public key is not 32 bytes in hex")]
    Controller,
    /// The private key belongs to another certificate.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// The certificate has ended.
    #[error(
        "the certificate has expired: it ended at {not_after}, now is {now} (seconds since 1970)"
    )]
    Expired {
        /// Its end, in seconds since 1970.
        not_after: u64,
        /// The machine's time, in seconds since 1970.
        now: u64,
    },
    /// The certificate is not what the bundle says of it: other authority, name, use or end.
    #[error("the certificate does not hold for {instance:?}: {cause}")]
    Untrusted {
        /// The instance of the bundle.
        instance: String,
        /// What the verifier found.
        cause: String,
    },
    /// A renewal is for somebody else.
    #[error("the bundle is for {offered:?}, and this is {own:?}")]
    OtherInstance {
        /// The instance it is for.
        offered: String,
        /// Who we are.
        own: String,
    },
    /// A renewal ends before what is there.
    #[error(
        "the bundle ends at {offered}, before the current one at {current} (seconds since 1970)"
    )]
    Older {
        /// The end of the offered certificate, in seconds since 1970.
        offered: u64,
        /// The end of the current one, in seconds since 1970.
        current: u64,
    },
    /// TLS cannot be set up on this machine.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// A bundle that was checked.
pub struct Identity {
    /// Who we are: the name in the certificate, and the audience of tokens.
    pub instance: String,
    /// When the certificate ends, in seconds since 1970.
    pub not_after: u64,
    /// The controller's Ed25519 public key.
    pub controller: [u8; PUBLIC_KEY_BYTES],
    /// Certificate and private key, ready for handshakes.
    pub certified: Arc<CertifiedKey>,
}

impl Identity {
    /// Checks a bundle as of `now` (since 1970).
    pub fn of(bundle: &Bundle, now: Duration) -> Result<Self, IdentityError> {
        let instance = bundle.instance.clone();
        let controller = hex::decode(&bundle.controller)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(IdentityError::Controller)?;
        let certified = CertifiedKey::new(
            certificates(&bundle.certificate, "certificate")?,
            private_key(&bundle.key)?,
        );
        certified
            .keys_match()
            .map_err(|_| IdentityError::Mismatch)?;
        if bundle.not_after <= now.as_secs() {
            return Err(IdentityError::Expired {
                not_after: bundle.not_after,
                now: now.as_secs(),
            });
        }
        // Now, and at the end that the bundle claims: otherwise that claim could not be trusted.
        let end = Duration::from_secs(bundle.not_after);
        for time in [now, end] {
            verify(bundle, &certified.cert, time)?;
        }
        Ok(Self {
            instance,
            not_after: bundle.not_after,
            controller,
            certified: Arc::new(certified),
        })
    }
}

fn private_key(pem: &str) -> Result<Arc<dyn rustls::sign::SigningKey>, IdentityError> {
    let (kind, der) =
        <(SectionKind, Vec<u8>)>::from_pem_slice(pem.as_bytes()).map_err(|_| IdentityError::Key)?;
    let der = Zeroizing::new(der);
    if kind != SectionKind::PrivateKey {
        return Err(IdentityError::Key);
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice()));
    sign::any_supported_type(&key).map_err(|_| IdentityError::Key)
}

fn certificates(
    pem: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    match CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(IdentityError::Certificate(what)),
    }
}

/// Looks at the certificate as the controller will: its authority, its name, its use and its time.
fn verify(
    bundle: &Bundle,
    chain: &[CertificateDer<'static>],
    time: Duration,
) -> Result<(), IdentityError> {
    let untrusted = |cause: String| IdentityError::Untrusted {
        instance: bundle.instance.clone(),
        cause,
    };
    let name = match ServerName::try_from(bundle.instance.as_str()) {
        Ok(name @ ServerName::DnsName(_)) if !bundle.instance.contains('.') => name,
        _ => return Err(IdentityError::Instance(bundle.instance.clone())),
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates(&bundle.authority, "authority")? {
        roots
            .add(authority)
            .map_err(|_| IdentityError::Certificate("authority"))?;
    }
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| untrusted(error.to_string()))?;
    let (own, others) = chain
        .split_first()
        .ok_or(IdentityError::Certificate("certificate"))?;
    let time = UnixTime::since_unix_epoch(time);
    verifier
        .verify_server_cert(own, others, &name, &[], time)
        .map(|_| ())
        .map_err(|error| untrusted(error.to_string()))
}
