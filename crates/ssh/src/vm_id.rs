//! The id of a host, which is also the name of its key's file. Pure.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::hosts::InvalidHosts;

/// The id of a host: its key under `vms`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct VmId(String);

impl VmId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VmId {
    type Err = InvalidHosts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins && text.len() <= 64 && text.chars().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidHosts::new(
                format!("{text:?} is not a host id"),
                "write 1 to 64 letters, digits and - _ . that begin with a letter or a digit",
            ))
        }
    }
}

impl TryFrom<String> for VmId {
    type Error = InvalidHosts;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
