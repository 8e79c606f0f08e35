//! Tokens: short-lived, signed statements of what the controller may ask of one peer.
//!
//! Those for calls are kept until half of their life is over, so that a warm call signs nothing. Those
//! for tunnels hold for one connection and are never kept.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result as JwtResult};
use jsonwebtoken::signature::{Error as SignatureError, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls::SignatureScheme;
use rustls::pki_types::PrivatePkcs8KeyDer;
use wire::agent::{Claims, Scope};
use wire::tunnel::NONCE_BYTES;
use zeroize::Zeroizing;

use crate::identity::IdentityError;

/// How long a token holds, in seconds.
pub const LIFE_S: u64 = 120;
/// Tokens that are kept; more than there are instances on a controller.
const KEPT: usize = 8192;

/// Signs tokens with the controller's key.
pub struct Tokens {
    key: EncodingKey,
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
        install_provider();
        Ok(Self {
            key: EncodingKey::from_ed_der(key.serialized_der()),
            public_key: hex::encode(key.der_bytes()),
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

    fn sign(&self, claims: &Claims) -> Result<String, IdentityError> {
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &self.key)
            .map_err(IdentityError::make("a token"))
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

/// The cryptography of tokens: Ed25519 by ring and nothing else, so that no other algorithm exists that
/// somebody could ask for. It is set for the whole process, hence it can check as well as sign.
fn install_provider() {
    static PROVIDER: OnceLock<CryptoProvider> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| CryptoProvider {
        signer_factory: signer,
        verifier_factory: verifier,
        key_utils: KeyUtils::new_unimplemented(),
    });
    // Refused when there is one already, which then knows Ed25519 too or fails with an error.
    let _ = provider.install_default();
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    if *algorithm != Algorithm::EdDSA {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let key = PrivatePkcs8KeyDer::from(key.as_bytes());
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519)
        .map_err(|_| ErrorKind::InvalidEddsaKey)?;
    Ok(Box::new(Ed25519Signer(Zeroizing::new(pair))))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    if *algorithm != Algorithm::EdDSA {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(Ed25519Verifier(key.try_get_as_bytes()?.to_vec())))
}

struct Ed25519Signer(Zeroizing<KeyPair>);

impl Signer<Vec<u8>> for Ed25519Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        self.0.sign(message).map_err(SignatureError::from_source)
    }
}

impl JwtSigner for Ed25519Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

struct Ed25519Verifier(Vec<u8>);

impl Verifier<Vec<u8>> for Ed25519Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .mapping
            .iter()
            .filter(|(scheme, _)| *scheme == SignatureScheme::ED25519)
            .flat_map(|(_, algorithms)| *algorithms)
            .any(|a| a.verify_signature(&self.0, message, signature).is_ok())
            .then_some(())
            .ok_or_else(SignatureError::new)
    }
}

impl JwtVerifier for Ed25519Verifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}
