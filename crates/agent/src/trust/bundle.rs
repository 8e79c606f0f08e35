//! Reads the identity bundle from its file. Refuses a file that anybody else could have written or
//! read; never says anything of its content but what is wrong with it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use wire::identity::Bundle;
use zeroize::Zeroizing;

use super::identity::IdentityError;

/// Key, two certificates and a few words; ten times what that needs.
pub const BUNDLE_MAX_BYTES: usize = 64 << 10;

/// Why there is no identity. Without one no socket is opened.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file is missing or cannot be read.
    #[error("the identity bundle {} cannot be read: {source}", path.display())]
    Read {
        /// The bundle's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not one that only we could have written and read.
    #[error("the identity bundle {} is not safe: {fault}", path.display())]
    NotOurs {
        /// The bundle's file.
        path: PathBuf,
        /// What is wrong, with how it should be.
        fault: String,
    },
    /// The file does not hold a bundle. The parser's own words are left out: they may quote the key.
    #[error("the identity bundle {} is malformed at line {line}, column {column}", path.display())]
    Malformed {
        /// The bundle's file.
        path: PathBuf,
        /// Where reading stopped, from 1.
        line: usize,
        /// Where in that line, from 1.
        column: usize,
    },
    /// The bundle contradicts itself or has ended.
    #[error("the identity bundle {} is not valid: {source}", path.display())]
    Invalid {
        /// The bundle's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: IdentityError,
    },
}

/// Reads a bundle: a regular file of our own that nobody else may touch.
pub fn read(path: &Path) -> Result<Bundle, BundleError> {
    let text = content(path)?;
    serde_json::from_slice(&text).map_err(|error| BundleError::Malformed {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>, BundleError> {
    let unreadable = |source| BundleError::Read {
        path: path.to_owned(),
        source,
    };
    // Not through a link, and without waiting for the other end of a pipe. What is checked is the
    // open file, so that nothing can be put in its place afterwards.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(unreadable)?;
    if let Some(fault) = fault(&file).map_err(unreadable)? {
        return Err(BundleError::NotOurs {
            path: path.to_owned(),
            fault,
        });
    }
    // The room is taken at once: a buffer that grows leaves copies of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(BUNDLE_MAX_BYTES + 1));
    let limit = u64::try_from(BUNDLE_MAX_BYTES + 1).unwrap_or(u64::MAX);
    file.take(limit)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    if text.len() > BUNDLE_MAX_BYTES {
        return Err(BundleError::NotOurs {
            path: path.to_owned(),
            fault: format!("it is larger than {BUNDLE_MAX_BYTES} bytes"),
        });
    }
    Ok(text)
}

/// The user that stands for all that this user namespace does not know: among them the node's root.
const NOBODY_HERE: u32 = 65_534;

fn fault(file: &File) -> io::Result<Option<String>> {
    let metadata = file.metadata()?;
    let us = rustix::process::geteuid().as_raw();
    let our_group = rustix::process::getegid().as_raw();
    Ok(if metadata.is_file() {
        let owner = (metadata.uid(), metadata.gid());
        fault_of(owner, metadata.mode() & 0o7777, (us, our_group))
    } else {
        Some("it is no regular file".into())
    })
}

/// Fine is a file of ours that nobody else may touch, and one of the node that our group may only read:
/// that one a guest can't change even if it makes the mount writable.
fn fault_of((owner, group): (u32, u32), mode: u32, (us, our_group): (u32, u32)) -> Option<String> {
    let is_nodes = owner == NOBODY_HERE && us != NOBODY_HERE && group == our_group;
    if is_nodes && mode & 0o337 == 0 {
        None
    } else if owner != us {
        Some(format!("it belongs to user {owner}, not to us ({us})"))
    } else if mode & 0o077 != 0 {
        Some(format!("its mode is {mode:04o}, not 0600"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_ours_or_the_nodes() {
        let check = |owner, mode, fine: bool| {
            let fault = fault_of(owner, mode, (0, 0));
            assert_eq!(fault.is_none(), fine, "{owner:?} {mode:o}: {fault:?}");
        };
        check((0, 0), 0o600, true);
        check((0, 5), 0o400, true);
        check((NOBODY_HERE, 0), 0o440, true);
        check((0, 0), 0o640, false);
        check((1000, 0), 0o600, false);
        check((NOBODY_HERE, 0), 0o640, false);
        check((NOBODY_HERE, 0), 0o460, false);
        check((NOBODY_HERE, 0), 0o444, false);
        check((NOBODY_HERE, 5), 0o440, false);
    }
}
