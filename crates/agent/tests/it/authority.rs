//! Who signs in tests: an authority for certificates and a controller for tokens.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use wire::agent::{Claims, Scope};
use wire::identity::Bundle;
use zeroize::Zeroizing;

pub const INSTANCE: &str = "i-00000000000000a1";

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
    pub controller: Controller,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
            controller: Controller::new(),
        }
    }

    /// A bundle for `instance` that ends `life_s` from now.
    pub fn bundle(&self, instance: &str, life_s: i64) -> Bundle {
        let mut params = CertificateParams::new(vec![instance.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let end = now().saturating_add_signed(life_s);
        params.not_before = (SystemTime::now() - Duration::from_secs(864_000)).into();
        params.not_after = (SystemTime::UNIX_EPOCH + Duration::from_secs(end)).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Bundle {
            instance: instance.to_owned(),
            key: Zeroizing::new(key.serialize_pem()),
            certificate: certificate.pem(),
            authority: self.certificate.clone(),
            not_after: end,
            controller: hex::encode(self.controller.0.public_key()),
        }
    }
}

/// An Ed25519 key that signs tokens, good ones and all others.
pub struct Controller(Ed25519KeyPair);

impl Controller {
    pub fn new() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap())
    }

    pub fn public_key(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// A good token.
    pub fn token(&self, audience: &str, scope: &[Scope]) -> String {
        self.sign(&claims(audience, scope))
    }

    pub fn sign(&self, claims: &Claims) -> String {
        self.sign_text(
            r#"{"typ":"JWT","alg":"EdDSA"}"#,
            &serde_json::to_string(claims).unwrap(),
        )
    }

    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let message = unsigned(header, claims);
        let signature = self.0.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Header and claims of a token, without the last point.
pub fn unsigned(header: &str, claims: &str) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{claims}")
}

pub fn claims(audience: &str, scope: &[Scope]) -> Claims {
    Claims {
        aud: audience.to_owned(),
        scope: scope.to_vec(),
        iat: now(),
        exp: now() + 120,
        nonce: None,
        target: None,
    }
}

pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// Writes a bundle as its file should be.
pub fn write(directory: &Path, bundle: &Bundle) -> PathBuf {
    let path = directory.join("bundle.json");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    serde_json::to_writer(file, bundle).unwrap();
    path
}
