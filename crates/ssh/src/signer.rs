//! Signs a login by a certificate with the private key of a file.
//!
//! russh can do that by itself, but then RSA keys sign with SHA-1, which no server takes any more; here the hash is the one
//! that was agreed on.

use russh::AgentAuthError;
use russh::keys::agent::AgentIdentity;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode as _;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{self, Signature};
use russh::keys::{Error, HashAlg, PrivateKey};

/// A private key in this process, where russh would ask an agent.
pub(crate) struct FileSigner<'a>(pub &'a PrivateKey);

impl russh::Signer for FileSigner<'_> {
    type Error = AgentAuthError;

    /// The signature goes behind what is signed, as the server gets both.
    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        hash: Option<HashAlg>,
        mut signed: Vec<u8>,
    ) -> Result<Vec<u8>, Self::Error> {
        let signature = sign(self.0, hash, &signed).map_err(Error::from)?;
        signature
            .encode(&mut signed)
            .map_err(|e| Error::from(ssh_key::Error::from(e)))?;
        Ok(signed)
    }
}

fn sign(key: &PrivateKey, hash: Option<HashAlg>, data: &[u8]) -> Result<Vec<u8>, ssh_key::Error> {
    let signature: Signature = match key.key_data() {
        KeypairData::Rsa(pair) => (pair, hash).try_sign(data)?,
        other => other.try_sign(data)?,
    };
    let mut encoded = Vec::new();
    signature.encode(&mut encoded)?;
    Ok(encoded)
}
