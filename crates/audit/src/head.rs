//! The hash of a record and the head of a chain, as parsed newtypes that print themselves.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The SHA-256 of a record: 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RecordHash([u8; 32]);

impl RecordHash {
    /// What stands in `prev` of the first record: zeros.
    pub const GENESIS: Self = Self([0; 32]);

    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        parts.iter().for_each(|part| hasher.update(part));
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RecordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RecordHash {
    type Err = InvalidHead;

    fn from_str(s: &str) -> Result<Self, InvalidHead> {
        let invalid = || InvalidHead {
            value: s.chars().take(100).collect(),
        };
        if s.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(s, &mut bytes).map_err(|_| invalid())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for RecordHash {
    type Error = InvalidHead;

    fn try_from(s: String) -> Result<Self, InvalidHead> {
        s.parse()
    }
}

impl From<RecordHash> for String {
    fn from(hash: RecordHash) -> String {
        hash.to_string()
    }
}

/// The end of a chain at some moment, printed and parsed as `SEQ:HASH`. Kept elsewhere (by a client,
/// in the journal) it is the anchor that shows truncation and rewriting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Head {
    /// The number of the last record; 0 for an empty chain.
    pub seq: u64,
    /// Its hash.
    pub hash: RecordHash,
}

impl Head {
    /// The head of an empty chain.
    pub const GENESIS: Self = Self {
        seq: 0,
        hash: RecordHash::GENESIS,
    };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

/// A string that should be a head or a hash and is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} is not an audit head; it must look like SEQ:HASH with 64 lower-case hexadecimal digits"
)]
pub struct InvalidHead {
    /// The refused string, shortened to 100 characters.
    pub value: String,
}

impl FromStr for Head {
    type Err = InvalidHead;

    fn from_str(s: &str) -> Result<Self, InvalidHead> {
        let invalid = || InvalidHead {
            value: s.chars().take(100).collect(),
        };
        let (seq, hash) = s.split_once(':').ok_or_else(invalid)?;
        if !seq.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        Ok(Self {
            seq: seq.parse().map_err(|_| invalid())?,
            hash: hash.parse().map_err(|_| invalid())?,
        })
    }
}
