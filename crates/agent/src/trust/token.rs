//! Tokens of the controller: which are good, and for how long.
//!
//! A token is an EdDSA-signed JWT over [`Claims`]. The algorithm is ours to choose, never the
//! token's: what its header says must be EdDSA, and the only key there is checks nothing else. Good
//! tokens are remembered by their exact bytes, so that one that comes again costs no signature
//! check; how long it holds is looked at each time. Keeps no secret: the key is a public one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use ring::signature::{ED25519, UnparsedPublicKey};
use wire::agent::{Claims, LEEWAY_S, Scope, TOKEN_MAX_LIFE_S};
use wire::tunnel::TOKEN_MAX_BYTES;

/// Tokens that are remembered; a controller uses a handful at a time.
const REMEMBERED: usize = 64;

/// Why a token does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token of our controller for us.
    #[error("the token is not valid: {0}")]
    Invalid(&'static str),
    /// It was good once.
    #[error("the token has expired {0} s ago")]
    Expired(u64),
    /// It is good for something else.
    #[error("the token does not allow {0}")]
    Scope(&'static str),
}

/// Checks tokens for one audience against one controller.
pub struct Tokens {
    audience: String,
    key: DecodingKey,
    validation: Validation,
    remembered: Mutex<HashMap<Box<str>, Arc<Claims>>>,
}

impl Tokens {
    /// Tokens for `audience` that are signed by the holder of the public key `controller`.
    pub fn new(audience: &str, controller: &[u8]) -> Self {
        // Whoever else installed a provider in this process made the same choice of algorithm
        // possible; one that cannot check EdDSA makes every token invalid, never valid.
        let _ = ED25519_BY_RING.install_default();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["exp", "aud"]);
        validation.set_audience(&[audience]);
        // Times are looked at here, for remembered tokens as well: see `in_time`.
        validation.validate_exp = false;
        Self {
            audience: audience.to_owned(),
            key: DecodingKey::from_ed_der(controller),
            validation,
            remembered: Mutex::default(),
        }
    }

    /// The claims of a token that is good at `now`, in seconds since 1970.
    pub fn check(&self, token: &str, now: u64) -> Result<Arc<Claims>, TokenError> {
        let known = self.remembered().get(token).cloned();
        if let Some(claims) = known {
            in_time(&claims, now)?;
            return Ok(claims);
        }
        let claims = Arc::new(self.check_once(token, now)?);
        self.remember(token, &claims, now);
        Ok(claims)
    }

    /// The same for a token that nobody may show again, which is not worth remembering.
    pub fn check_once(&self, token: &str, now: u64) -> Result<Claims, TokenError> {
        if token.len() > usize::from(TOKEN_MAX_BYTES) {
            return Err(TokenError::Invalid("it is too long"));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| refused(&error))?
            .claims;
        // The library looks whether we are among the audience; here nobody else may be.
        if claims.aud != self.audience {
            return Err(TokenError::Invalid("it is for somebody else"));
        }
        in_time(&claims, now)?;
        Ok(claims)
    }

    fn remember(&self, token: &str, claims: &Arc<Claims>, now: u64) {
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED {
            remembered.retain(|_, claims| in_time(claims, now).is_ok());
        }
        if remembered.len() >= REMEMBERED {
            let first = remembered.iter().min_by_key(|(_, claims)| claims.exp);
            if let Some(token) = first.map(|(token, _)| token.clone()) {
                remembered.remove(&token);
            }
        }
        remembered.insert(token.into(), claims.clone());
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<Box<str>, Arc<Claims>>> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does a token allow what a route needs?
pub fn allows(claims: &Claims, scope: Scope) -> Result<(), TokenError> {
    if claims.scope.contains(&scope) {
        Ok(())
    } else {
        Err(TokenError::Scope(word(scope)))
    }
}

fn word(scope: Scope) -> &'static str {
    match scope {
        Scope::Exec => "exec",
        Scope::Files => "files",
        Scope::Forward => "forward",
        Scope::Identity => "identity",
        Scope::Gateway => "gateway",
        Scope::Tunnel => "tunnel",
    }
}

fn in_time(claims: &Claims, now: u64) -> Result<(), TokenError> {
    if claims.exp.saturating_add(LEEWAY_S) < now {
        return Err(TokenError::Expired(now - claims.exp));
    }
    if claims.iat > now.saturating_add(LEEWAY_S) {
        return Err(TokenError::Invalid("it was issued in the future"));
    }
    match claims.exp.checked_sub(claims.iat) {
        Some(0..=TOKEN_MAX_LIFE_S) => Ok(()),
        Some(_) => Err(TokenError::Invalid("its life is too long")),
        None => Err(TokenError::Invalid("it ends before it begins")),
    }
}

fn refused(error: &Error) -> TokenError {
    TokenError::Invalid(match error.kind() {
        ErrorKind::InvalidSignature => "it was not signed by our controller",
        ErrorKind::InvalidAlgorithm => "its algorithm is not EdDSA",
        ErrorKind::InvalidAudience => "it is for somebody else",
        ErrorKind::MissingRequiredClaim(_) => "a claim is missing",
        ErrorKind::Json(_) => "its content is not what we know",
        _ => "it is malformed",
    })
}

/// The library's hook for cryptography: Ed25519 by ring, which TLS brings anyway, and nothing else.
static ED25519_BY_RING: CryptoProvider = CryptoProvider {
    // The agent signs nothing.
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

fn verifier(
    algorithm: &Algorithm,
    key: &DecodingKey,
) -> jsonwebtoken::errors::Result<Box<dyn JwtVerifier>> {
    match algorithm {
        Algorithm::EdDSA => Ok(Box::new(Ed25519(key.try_get_as_bytes()?.to_vec()))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

struct Ed25519(Vec<u8>);

impl Verifier<Vec<u8>> for Ed25519 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Ed25519 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use ring::rand::SystemRandom;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    const NOW: u64 = 1_000_000;

    fn sign(key: &Ed25519KeyPair, exp: u64, number: usize) -> String {
        let claims = Claims {
            aud: "i-1".into(),
            scope: vec![Scope::Exec],
            iat: NOW,
            exp,
            nonce: Some(number.to_string()),
            target: None,
        };
        let claims = serde_json::to_vec(&claims).unwrap();
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#);
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    fn key() -> Ed25519KeyPair {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()
    }

    #[test]
    fn a_remembered_token_ends_like_any_other() {
        let key = key();
        let tokens = Tokens::new("i-1", key.public_key().as_ref());
        let token = sign(&key, NOW + 100, 0);
        let first = tokens.check(&token, NOW).unwrap();
        let second = tokens.check(&token, NOW + 130).unwrap();
        assert!(Arc::ptr_eq(&first, &second), "it was remembered");
        assert_eq!(
            tokens.check(&token, NOW + 131),
            Err(TokenError::Expired(31))
        );
        // A clock that is set back makes it one of the future.
        assert!(tokens.check(&token, NOW - 31).is_err());
        let mut changed = token.clone();
        changed.pop();
        assert!(tokens.check(&changed, NOW).is_err());
    }

    #[test]
    fn only_few_tokens_are_remembered_and_bad_ones_never() {
        let key = key();
        let tokens = Tokens::new("i-1", key.public_key().as_ref());
        for number in 0..REMEMBERED + 10 {
            let exp = NOW + 100 + u64::try_from(number).unwrap();
            tokens.check(&sign(&key, exp, number), NOW).unwrap();
        }
        assert_eq!(tokens.remembered().len(), REMEMBERED);
        let first = sign(&key, NOW + 100, 0);
        assert!(
            !tokens.remembered().contains_key(first.as_str()),
            "the first to end goes first"
        );
        let later = sign(&key, NOW + 290, 0);
        tokens.check(&later, NOW + 250).unwrap();
        assert_eq!(tokens.remembered().len(), 1, "ended ones make room");
        let other = Tokens::new("i-1", self::key().public_key().as_ref());
        assert!(other.check(&later, NOW).is_err());
        assert!(other.remembered().is_empty());
    }
}
