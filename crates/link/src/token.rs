//! Tokens: short-lived, signed statements of what the controller may ask of one peer.
//!
//! Those for calls are kept until half of their life is over, so that a warm call signs nothing. Those
//! for tunnels hold for one connection and are never kept.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use wire::agent::{Claims, Scope};
use wire::tunnel::NONCE_BYTES;
use zeroize::Zeroizing;

use crate::identity::IdentityError;

/// How long a token holds, in seconds.
pub const LIFE_S: u64 = 120;
const HEADER: &str = r#"{"typ":"JWT","alg":"EdDSA"}"#;
/// Tokens that are kept; more than there are instances on a controller.
const KEPT: usize = 8192;

/// Signs tokens with the controller's key.
pub struct Tokens {
    key: Zeroizing<KeyPair>,
    public_key: String,
    kept: Mutex<HashMap<(String, Scope), Kept>>,
}

struct Kept {
    header: HeaderValue,
    /// When a new one is signed, in seconds since 1970.
    until_s: u64,
    issued_s: u64,
}

// The key must not get into a log.
impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// From the PEM of an Ed25519 key. The error never quotes it.
    pub(crate) fn load(pem: &Zeroizing<String>) -> Result<Self, String> {
        let key = KeyPair::from_pem(pem)
            .map(Zeroizing::new)
            .map_err(|_| "the key for tokens cannot be read")?;
        if PublicKeyData::algorithm(&*key) != &rcgen::PKCS_ED25519 {
            return Err("the key for tokens is not an Ed25519 key".into());
        }
        Ok(Self {
            public_key: hex::encode(key.der_bytes()),
            key,
            kept: Mutex::default(),
        })
    }

    /// The public key by which tokens are checked, 32 bytes in hex.
    pub fn public_key(&self) -> String {
        self.public_key.clone()
    }

    /// The `Authorization` header for calls to `audience` that need `scope`.
    pub fn bearer(
        &self,
        audience: &str,
        scope: Scope,
        now: SystemTime,
    ) -> Result<HeaderValue, IdentityError> {
        let now_s = seconds(now);
        let slot = (audience.to_owned(), scope);
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            // A clock that was set back must not lead to tokens from the future.
            if let Some(kept) = kept.get(&slot)
                && (kept.issued_s..kept.until_s).contains(&now_s)
            {
                return Ok(kept.header.clone());
            }
        }
        let token = self.sign(&claims(audience, scope, now_s))?;
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(IdentityError::make("a token"))?;
        header.set_sensitive(true);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.retain(|_, kept| kept.until_s > now_s);
        }
        if kept.len() < KEPT {
            let new = Kept {
                header: header.clone(),
                until_s: now_s + LIFE_S / 2,
                issued_s: now_s,
            };
            kept.insert(slot, new);
        }
        Ok(header)
    }

    /// A token for one tunnel: through the relay of `appliance` to `target`, on the connection that got
    /// this nonce.
    pub fn tunnel(
        &self,
        appliance: &str,
        nonce: &[u8; NONCE_BYTES],
        target: SocketAddrV4,
        now: SystemTime,
    ) -> Result<String, IdentityError> {
        self.sign(&Claims {
            nonce: Some(hex::encode(nonce)),
            target: Some(target.to_string()),
            ..claims(appliance, Scope::Tunnel, seconds(now))
        })
    }

    /// Drops what is kept for a peer that is gone.
    pub fn forget(&self, audience: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(kept, _), _| kept != audience);
    }

    /// A JWT (RFC 7515, compact). It is put together here, because the crate that checks tokens on the
    /// other side takes its cryptography from one place for the whole process, where an agent in the
    /// same process may have put one that cannot sign.
    fn sign(&self, claims: &Claims) -> Result<String, IdentityError> {
        let claims = serde_json::to_vec(claims).map_err(IdentityError::make("a token"))?;
        let mut token = URL_SAFE_NO_PAD.encode(HEADER);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self
            .key
            .sign(token.as_bytes())
            .map_err(IdentityError::make("a token"))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

fn claims(audience: &str, scope: Scope, now_s: u64) -> Claims {
    Claims {
        aud: audience.to_owned(),
        scope: vec![scope],
        iat: now_s,
        exp: now_s + LIFE_S,
        nonce: None,
        target: None,
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}
