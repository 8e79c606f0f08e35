//! A new key: ed25519 from the system's random bytes, in OpenSSH's format.

use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{Cipher, Kdf, LineEnding};
use russh::keys::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::{keys_error, now_text};
use crate::error::Error;
use crate::hosts::Vm;

/// Rounds of bcrypt, as `ssh-keygen` does today.
const ROUNDS: u32 = 24;

/// Both halves of a key.
pub struct Fresh {
    /// The text of the file.
    pub private: Zeroizing<String>,
    pub public: PublicKey,
}

/// Its comment says whose it is and when it was made, in the host's `authorized_keys` too.
pub fn make(vm: &Vm, passphrase: Option<&Zeroizing<String>>) -> Result<Fresh, Error> {
    let failed = |e: String| {
        let reason = format!("no key could be made: {e}");
        keys_error(vm, reason, "try again")
    };
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).map_err(|e| failed(e.to_string()))?;
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    let comment = format!("proximity {} {}", vm.id, now_text());
    let key = PrivateKey::new(pair, comment).map_err(|e| failed(e.to_string()))?;
    let public = key.public_key().clone();
    let key = match passphrase {
        None => key,
        Some(passphrase) => {
            let mut random = [0; 20];
            getrandom::fill(&mut random).map_err(|e| failed(e.to_string()))?;
            let [a, b, c, d, salt @ ..] = random;
            let kdf = Kdf::Bcrypt {
                salt: salt.to_vec(),
                rounds: ROUNDS,
            };
            let check = u32::from_be_bytes([a, b, c, d]);
            key.encrypt_with(Cipher::Aes256Ctr, kdf, check, passphrase.as_bytes())
                .map_err(|e| failed(e.to_string()))?
        }
    };
    let private = key
        .to_openssh(LineEnding::LF)
        .map_err(|e| failed(e.to_string()))?;
    Ok(Fresh { private, public })
}
