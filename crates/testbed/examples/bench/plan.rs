//! What is to be measured, and against whom: written by `scripts/bench-link`, which starts the peers.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// The whole of it. Paths are those of the virtual host in which this program runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The program `proximity`.
    pub proximity: PathBuf,
    /// The program `proximity-agent`, as guests get it.
    pub agent: PathBuf,
    /// The controller's socket.
    pub socket: PathBuf,
    /// A sandbox that runs; `lxc-attach` and the copies go to it too.
    pub guest: String,
    /// A directory on disk for files of the bench.
    pub disk: PathBuf,
    /// A directory in memory.
    pub memory: PathBuf,
    /// Who else runs `/bin/true`.
    pub exec: Vec<Peer>,
    /// Who else makes a guest of the same root file system and runs a first command in it.
    pub create: Vec<Peer>,
    /// Who else copies files.
    pub copy: Vec<Copier>,
    /// Whether the controller reaches its guests through the relay; then only what goes that way is measured.
    pub through_relay: bool,
}

/// Somebody else who does the same.
#[derive(Debug, Deserialize)]
pub struct Peer {
    /// As it stands in the table.
    pub name: String,
    /// Our median may be at most this part of its; none when no goal was set.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// How often; fewer when it takes long.
    #[serde(default)]
    pub rounds: usize,
    /// How it is done.
    #[serde(flatten)]
    pub way: Way,
}

/// How a peer does it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It can't be measured here, for this reason.
    Missing(String),
    /// By these commands, one after the other, and untimed ones afterwards. `{n}` becomes a number that is
    /// used once.
    Commands {
        timed: Vec<Vec<String>>,
        #[serde(default)]
        after: Vec<Vec<String>>,
    },
    /// By the REST API of Incus (and LXD, from which it descends) on a kept connection.
    Incus { socket: PathBuf, instance: String },
}

/// Somebody else who copies a file. `{from}` and `{to}` are paths here and there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copier {
    /// As it stands in the table.
    pub name: String,
    /// Our throughput must be at least so many times its own.
    pub at_least: f64,
    /// Why it can't be measured here.
    #[serde(default)]
    pub missing: Option<String>,
    /// Copies `{from}` here to `{to}` there.
    #[serde(default)]
    pub up: Vec<String>,
    /// Copies `{from}` there to `{to}` here.
    #[serde(default)]
    pub down: Vec<String>,
}

impl Plan {
    /// Reads a plan.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }
}

/// The words of a command with `{name}` replaced.
pub fn filled(words: &[String], values: &[(&str, &str)]) -> Vec<String> {
    let fill = |word: &String| {
        values.iter().fold(word.clone(), |word, (name, value)| {
            word.replace(&format!("{{{name}}}"), value)
        })
    };
    words.iter().map(fill).collect()
}
