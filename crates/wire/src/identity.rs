//! The identity that a guest's agent or an appliance's relay is given before it first starts: one
//! JSON file on a read-only mount, readable for the guest's root alone, read once at start. No valid bundle, no socket.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The directory in the guest.
pub const DIRECTORY: &str = "/etc/proximity/identity";
/// The bundle's path in the guest.
pub const PATH: &str = "/etc/proximity/identity/bundle.json";

/// See the module's documentation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The instance's id: the only name in the certificate, and the audience of tokens.
    pub instance: String,
    /// The private key, PKCS #8 in PEM. Overwritten when it is dropped.
    pub key: Zeroizing<String>,
    /// The certificate, PEM: server use only, at most 90 days.
    pub certificate: String,
    /// The authority that signed it, PEM.
    pub authority: String,
    /// When the certificate ends, in seconds since 1970.
    pub not_after: u64,
    /// The controller's Ed25519 public key, by which tokens are checked: 32 bytes in hex.
    pub controller: String,
}

// The key must not get into a log.
impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle")
            .field("instance", &self.instance)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_key() {
        let bundle = Bundle {
            instance: "i-1".into(),
            key: Zeroizing::new("SECRET".into()),
            certificate: String::new(),
            authority: String::new(),
            not_after: 0,
            controller: String::new(),
        };
        assert!(!format!("{bundle:?}").contains("SECRET"));
    }
}
