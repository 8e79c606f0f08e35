//! Checks tokens as an agent does: Ed25519 and nothing else.

use std::sync::LazyLock;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rustls::SignatureScheme;
use wire::agent::Claims;

static ED25519: LazyLock<CryptoProvider> = LazyLock::new(|| CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
});

/// What a token says that the owner of this key signed for this audience.
pub fn claims(public_key: &str, token: &str, audience: &str) -> Claims {
    // All but the first call find it installed.
    let _ = ED25519.install_default();
    let key = DecodingKey::from_ed_der(&hex::decode(public_key).unwrap());
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[audience]);
    jsonwebtoken::decode::<Claims>(token, &key, &validation)
        .unwrap()
        .claims
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    assert_eq!(*algorithm, Algorithm::EdDSA);
    Ok(Box::new(Ed25519(key.try_get_as_bytes()?.to_vec())))
}

struct Ed25519(Vec<u8>);

impl Verifier<Vec<u8>> for Ed25519 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .mapping
            .iter()
            .filter(|(scheme, _)| *scheme == SignatureScheme::ED25519)
            .flat_map(|(_, algorithms)| *algorithms)
            .any(|a| a.verify_signature(&self.0, message, signature).is_ok())
            .then_some(())
            .ok_or_else(Error::new)
    }
}

impl JwtVerifier for Ed25519 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}
