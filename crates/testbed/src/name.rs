//! The name of a virtual host: part of cgroup and directory names, and the host's own host name.
//!
//! Owns no state. A name never holds a character that means something to a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{During, Error, Result};

const LONGEST: usize = 40;

/// 1 to 40 of `a-z`, `0-9` and `-`, a letter or digit first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// A name that no other host has: `host-` and eight random hexadecimal digits.
    pub fn random() -> Result<Self> {
        let mut bytes = [0_u8; 4];
        getrandom::fill(&mut bytes)
            .map_err(|error| std::io::Error::other(error.to_string()))
            .during("read random bytes for", "a host name")?;
        Ok(Self(format!("host-{:08x}", u32::from_le_bytes(bytes))))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let good = text.len() <= LONGEST
            && !text.is_empty()
            && !text.starts_with('-')
            && text.chars().all(allowed);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::BadName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for HostName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        for good in ["a", "demo", "host-0a1b", "9", &"x".repeat(40)] {
            assert!(good.parse::<HostName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "A",
            "a/b",
            "..",
            "a b",
            "a\n",
            "ä",
            &"x".repeat(41),
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<HostName>("\"../x\"").is_err());
    }

    #[test]
    fn random_names_differ_and_parse() {
        let (a, b) = (HostName::random().unwrap(), HostName::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<HostName>().unwrap(), a);
    }
}
