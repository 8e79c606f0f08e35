//! Who we are and whom we believe: the identity bundle, TLS with it, and tokens.
//!
//! ```text
//!   bundle file ──read once──▶ Identity ──┬──▶ certificate of the next handshake   (tls)
//!   PUT /identity ─────────────▶ (checked) └──▶ tokens: audience, controller's key  (token)
//! ```
//! A [`Trust`] exists only with a valid identity: whoever has none opens no socket. A renewal is
//! checked like the first bundle and takes the place of all of it at once. The private key is in
//! memory only, and never in a log or an answer.

pub mod bundle;
pub mod identity;
pub mod renewal;
pub mod require;
pub mod tls;
pub mod token;

pub use require::require;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio_rustls::TlsAcceptor;
use wire::agent::Claims;
use wire::identity::Bundle;

use bundle::BundleError;
use identity::{Identity, IdentityError};
use token::{TokenError, Tokens};

/// The identity of this agent or relay, which can be renewed.
pub struct Trust {
    instance: String,
    acceptor: TlsAcceptor,
    certificate: Arc<tls::Current>,
    holds: RwLock<Arc<Holds>>,
}

/// What a renewal replaces as a whole.
struct Holds {
    not_after: u64,
    tokens: Tokens,
}

impl Trust {
    /// Reads and checks the bundle at `path`.
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        let bundle = bundle::read(path)?;
        Self::new(&bundle).map_err(|source| BundleError::Invalid {
            path: path.to_owned(),
            source,
        })
    }

    /// Checks a bundle.
    pub fn new(bundle: &Bundle) -> Result<Self, IdentityError> {
        let identity = Identity::of(bundle, now())?;
        let certificate = Arc::new(tls::Current::new(identity.certified.clone()));
        let config = tls::config(certificate.clone())
            .map_err(|error| IdentityError::Tls(error.to_string()))?;
        Ok(Self {
            instance: identity.instance.clone(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate,
            holds: RwLock::new(Arc::new(Holds::of(&identity))),
        })
    }

    /// Takes a new bundle of the same instance that does not end before the current one. Open
    /// connections go on; the next handshake shows the new certificate.
    pub fn renew(&self, bundle: &Bundle) -> Result<(), IdentityError> {
        if bundle.instance != self.instance {
            return Err(IdentityError::OtherInstance {
                offered: bundle.instance.clone(),
                own: self.instance.clone(),
            });
        }
        let identity = Identity::of(bundle, now())?;
        let mut holds = self.holds.write().unwrap_or_else(PoisonError::into_inner);
        if identity.not_after < holds.not_after {
            return Err(IdentityError::Older {
                offered: identity.not_after,
                current: holds.not_after,
            });
        }
        *holds = Arc::new(Holds::of(&identity));
        self.certificate.swap(identity.certified);
        Ok(())
    }

    /// Who we are.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// When the current certificate ends, in seconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.holds().not_after
    }

    /// Makes TLS connections of TCP ones.
    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// The claims of a good token; what they allow is still to be looked at.
    pub fn check(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        self.holds().tokens.check(token, now().as_secs())
    }

    /// The same for a token that is bound to one connection.
    pub fn check_once(&self, token: &str) -> Result<Claims, TokenError> {
        self.holds().tokens.check_once(token, now().as_secs())
    }

    fn holds(&self) -> Arc<Holds> {
        let holds = self.holds.read().unwrap_or_else(PoisonError::into_inner);
        holds.clone()
    }
}

impl Holds {
    fn of(identity: &Identity) -> Self {
        Self {
            not_after: identity.not_after,
            tokens: Tokens::new(&identity.instance, &identity.controller),
        }
    }
}

/// Since 1970. A clock before that makes every certificate and token one of the future.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
