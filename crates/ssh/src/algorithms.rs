//! What is strong enough: key exchanges, ciphers, MACs and keys. There is no switch to accept less.
//!
//! Pure: lists and one check of a public key's size.

use std::borrow::Cow;

use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Preferred, cipher, compression, kex, mac};

/// RSA keys below this many bits are refused, of hosts and of users.
pub const MIN_RSA_BITS: usize = 3072;

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    // Told to the server: extensions, and that the handshake is counted strictly (against Terrapin).
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

/// Where the processor does AES itself: several times as fast as ChaCha20 on both sides, and as safe.
const CIPHERS_OF_HARDWARE: &[cipher::Name] = &[
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

/// Elsewhere AES in software is slow, and its time may tell of its key.
const CIPHERS: &[cipher::Name] = &[
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

fn ciphers() -> &'static [cipher::Name] {
    #[cfg(target_arch = "x86_64")]
    let hardware =
        std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let hardware = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let hardware = false;
    if hardware {
        CIPHERS_OF_HARDWARE
    } else {
        CIPHERS
    }
}

/// Those that sign the ciphertext, without which counter mode would not be good enough.
const MACS: &[mac::Name] = &[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM];

const COMPRESSION: &[compression::Name] = &[compression::NONE];

/// Kinds of host keys, the best one first.
pub fn host_keys() -> Vec<Algorithm> {
    vec![
        Algorithm::Ed25519,
        ecdsa(EcdsaCurve::NistP256),
        ecdsa(EcdsaCurve::NistP384),
        ecdsa(EcdsaCurve::NistP521),
        Algorithm::Rsa {
            hash: Some(HashAlg::Sha512),
        },
        Algorithm::Rsa {
            hash: Some(HashAlg::Sha256),
        },
    ]
}

fn ecdsa(curve: EcdsaCurve) -> Algorithm {
    Algorithm::Ecdsa { curve }
}

/// The kind as it stands in a key's blob, whatever hash it signs with (`ssh-rsa` for all RSA keys).
pub fn key_type(algorithm: &Algorithm) -> String {
    match algorithm {
        Algorithm::Rsa { .. } => "ssh-rsa".to_owned(),
        other => other.to_string(),
    }
}

/// What is said to the server. Of host keys only these kinds; certificates only where an authority is trusted.
pub fn preferred(keys: Vec<Algorithm>, certificates: Vec<Algorithm>) -> Preferred {
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Owned(keys),
        host_key_certificates: Cow::Owned(certificates),
        cipher: Cow::Borrowed(ciphers()),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(COMPRESSION),
    }
}

/// Why a public key is not good enough, if it is not.
pub fn weakness(key: &KeyData) -> Option<String> {
    match key {
        KeyData::Ed25519(_) | KeyData::Ecdsa(_) => None,
        KeyData::Rsa(rsa) => {
            let bits = modulus_bits(rsa.n().as_positive_bytes().unwrap_or_default());
            (bits < MIN_RSA_BITS).then(|| {
                format!("it is an RSA key of {bits} bits, at least {MIN_RSA_BITS} are needed")
            })
        }
        other => Some(format!("keys of kind {} are not used", other.algorithm())),
    }
}

fn modulus_bits(bytes: &[u8]) -> usize {
    let mut digits = bytes.iter().skip_while(|byte| **byte == 0);
    let Some(first) = digits.next() else {
        return 0;
    };
    let whole = digits.count().saturating_mul(8);
    let leading = usize::try_from(8 - first.leading_zeros()).unwrap_or(8);
    whole.saturating_add(leading)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_modulus_are_counted() {
        assert_eq!(modulus_bits(&[]), 0);
        assert_eq!(modulus_bits(&[0, 0]), 0);
        assert_eq!(modulus_bits(&[0, 0x80]), 8);
        assert_eq!(modulus_bits(&[1, 0]), 9);
        assert_eq!(modulus_bits(&[0, 0xff, 0, 0]), 24);
    }

    #[test]
    fn nothing_weak_is_offered() {
        let offered = preferred(host_keys(), Vec::new());
        let names: Vec<&str> = offered
            .kex
            .iter()
            .map(AsRef::as_ref)
            .chain(offered.cipher.iter().map(AsRef::as_ref))
            .chain(offered.mac.iter().map(AsRef::as_ref))
            .collect();
        for name in names {
            assert!(!name.contains("sha1"), "{name}");
            assert!(!name.contains("cbc"), "{name}");
            assert!(!name.contains("group"), "{name}");
        }
        assert!(offered.key.iter().all(|key| key.as_str() != "ssh-rsa"));
    }
}
