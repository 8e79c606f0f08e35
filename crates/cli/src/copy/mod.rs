//! `cp`: one file to or from an instance, whole or not at all.
//!
//! The bytes are hashed where they are read and where they are written, and compared there; see
//! `upload` and `download`. Never leaves a half-written file, on either side.

mod download;
pub mod meter;
mod upload;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use api::InstanceName;
use clap::Args;
use client::{Client, Sha256};
use serde_json::json;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// How much is read, hashed and passed on at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces between the disk and the connection.
const QUEUE: usize = 4;

/// `cp`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  proximity cp site.conf web:/etc/nginx/conf.d/   a path that ends in / takes the file's name
  proximity cp web:/var/log/app.log .             into this directory
  proximity cp -u app config.yml web:/srv/app/config.yml

One side is NAME:/PATH; a file here whose name holds a colon is written ./NAME. The permissions come
along, the owner does not. The file appears whole and checked, or not at all.

Directories, by tar:
  tar -C DIR -cf - . | proximity exec web -- tar -C /srv -xf -
  proximity exec web -- tar -C /srv -cf - . | tar -C DIR -xf -")]
pub struct CopyArgs {
    /// The file: PATH here, or NAME:/PATH in an instance
    #[arg(value_name = "SRC")]
    pub source: Place,
    /// Where it goes: PATH here, or NAME:/PATH in an instance
    #[arg(value_name = "DST")]
    pub destination: Place,
    /// Read or write as this user of the instance (name or number) [default: root]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Copy directories (comes later; see below how tar does it)
    #[arg(short, long)]
    pub recursive: bool,
}

/// A file here or in an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Here(PathBuf),
    /// In an instance.
    Guest(GuestFile),
}

/// A file in an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// The instance.
    pub name: InstanceName,
    /// The absolute path in it.
    pub path: String,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let guest = text.split_once(':').filter(|(name, _)| !name.contains('/'));
        let Some((name, path)) = guest else {
            return if text.is_empty() {
                Err("a path is missing".to_owned())
            } else {
                Ok(Self::Here(text.into()))
            };
        };
        if !path.starts_with('/') {
            return Err(format!(
                "{path:?} is not absolute: write NAME:/PATH, or ./{text} for a file here"
            ));
        }
        Ok(Self::Guest(GuestFile {
            name: name
                .parse()
                .map_err(|e| format!("{e}; write ./{text} for a file here"))?,
            path: path.to_owned(),
        }))
    }
}

impl GuestFile {
    /// The name at the end of the path; none for a directory.
    fn file_name(&self) -> Option<&str> {
        let (_, name) = self.path.rsplit_once('/')?;
        (!matches!(name, "" | "." | "..")).then_some(name)
    }
}

impl fmt::Display for GuestFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.path)
    }
}

/// What was copied.
struct Copied {
    from: String,
    to: String,
    size_bytes: u64,
    sha256: Sha256,
}

/// Copies one file.
pub async fn run(client: &Client, args: CopyArgs, screen: &Screen) -> Result<Exit, Failure> {
    if args.recursive {
        return Err(directory(
            "`cp -r` comes in a later version; nothing was copied",
        ));
    }
    let user = args.user.as_deref();
    let copied = match (args.source, args.destination) {
        (Place::Here(from), Place::Guest(to)) => upload::run(client, &from, to, user, screen).await,
        (Place::Guest(from), Place::Here(to)) => {
            download::run(client, &from, to, user, screen).await
        }
        (Place::Here(_), Place::Here(_)) => Err(Failure::usage(
            "neither side is in an instance",
            "write one of them as NAME:/PATH",
        )),
        (Place::Guest(_), Place::Guest(_)) => Err(Failure::usage(
            "both sides are in instances",
            "copy to this machine first, then from it",
        )),
    }?;
    let sha256 = hex::encode(copied.sha256);
    if screen.json() {
        screen.document(&json!({
            "source": copied.from, "destination": copied.to,
            "size_bytes": copied.size_bytes, "sha256": sha256,
        }))?;
    } else {
        let (size, to) = (meter::bytes(copied.size_bytes), copied.to);
        screen.note(&format!("{to}: {size}, SHA-256 {sha256}"));
    }
    Ok(Exit::OK)
}

/// What to do with a directory.
fn directory(what: impl Into<String>) -> Failure {
    Failure::usage(
        what,
        "take tar: `tar -C DIR -cf - . | proximity exec NAME -- tar -C /PATH -xf -`, or the other way round",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let check = |text: &str, expect: Option<Place>| {
            assert_eq!(text.parse::<Place>().ok(), expect, "{text}");
        };
        let guest = |path: &str| {
            Some(Place::Guest(GuestFile {
                name: "web".parse().unwrap(),
                path: path.to_owned(),
            }))
        };
        check("web:/a/b", guest("/a/b"));
        check("web:/a:b", guest("/a:b"));
        check("web:/", guest("/"));
        check("file", Some(Place::Here("file".into())));
        check("./web:/a", Some(Place::Here("./web:/a".into())));
        check("/a:b", Some(Place::Here("/a:b".into())));
        for bad in ["", "web:", "web:a", "We_b:/a", ":/a"] {
            check(bad, None);
        }
    }
}
