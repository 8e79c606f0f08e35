//! The last accepted state on the disk, so that an appliance that restarts needs no controller.
//!
//! A whole state is a file; a change of it is a line behind it in another file, so that one more route writes a line.
//! The first of these lines says by its digest which state the changes are of:
//!
//! ```text
//! gateway.json     the state as it was when it was last saved whole
//! gateway.changes  {"of":"SHA-256 of gateway.json"}
//!                  {"routes":{"at":3,"remove":0,"insert":[…]}}      each flushed before anything is done
//! ```
//!
//! A crash between the two files leaves changes of another state, which mean nothing; one within a line leaves a line
//! without an end, which nobody was told is saved.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wire::gateway::GatewayState;
use wire::gateway::change::GatewayChange;

use super::paths::Paths;
use crate::durable::{self, FileError, Keep};

/// After so many changes the state is saved whole: reading it again must not take long.
const MOST_CHANGES: u32 = 500;

/// Why the last state could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file holds something else: damage, or the state of a newer agent.
    #[error("the saved state cannot be understood: {0}")]
    Content(#[from] serde_json::Error),
}

/// The first line of the changes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    of: String,
}

/// Saves states; knows what of the disk it has written itself.
#[derive(Debug, Default)]
pub struct Saver {
    /// None before the first whole state, and after a failure: then the next one is saved whole.
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    /// Of the file with the whole state.
    digest: String,
    /// How many changes are behind it.
    changes: u32,
    /// By which the state is told from every other one that this process has saved or will save.
    tag: String,
}

impl Written {
    fn new(digest: String, changes: u32) -> Self {
        let mut tag = [0; 16];
        // A tag that chance did not give matches nothing: the next state must be a whole one.
        let tag = getrandom::fill(&mut tag).map_or(String::new(), |()| hex::encode(tag));
        Self {
            digest,
            changes,
            tag,
        }
    }
}

impl Saver {
    /// The tag of the state that was saved last; none when that failed.
    pub fn tag(&self) -> Option<&str> {
        let tag = self.written.as_ref().map(|w| w.tag.as_str());
        tag.filter(|tag| !tag.is_empty())
    }

    /// Saves a whole state; when this returns, no crash loses it any more.
    pub fn whole(&mut self, paths: &Paths, state: &GatewayState) -> Result<(), FileError> {
        self.written = None;
        let path = paths.state();
        if let Some(parent) = path.parent() {
            // dnsmasq reads its host directories below it as a user of its own.
            durable::directory(parent, 0o755)?;
        }
        let mut text = serde_json::to_vec_pretty(state)
            .map_err(|e| FileError::new("encode", path)(io::Error::other(e)))?;
        text.push(b'\n');
        durable::replace_if_changed(path, &text, 0o600, Keep::Durable)?;
        // The file may be what it was: then changes of it would still count.
        let changes = paths.state_changes();
        if durable::remove_if_there(&changes)? {
            durable::flush_directory_of(&changes)?;
        }
        self.written = Some(Written::new(digest(&text), 0));
        Ok(())
    }

    /// The same for a state of which the last one differs by `change`.
    pub fn changed(
        &mut self,
        paths: &Paths,
        change: &GatewayChange,
        state: &GatewayState,
    ) -> Result<(), FileError> {
        let written = self.written.take();
        let Some(Written {
            digest, changes, ..
        }) = written.filter(|w| w.changes < MOST_CHANGES)
        else {
            return self.whole(paths, state);
        };
        let path = paths.state_changes();
        let line = |text: Result<String, serde_json::Error>| {
            text.map(|text| text + "\n")
                .map_err(|e| FileError::new("encode", &path)(io::Error::other(e)))
        };
        let mut lines = line(serde_json::to_string(change))?;
        if changes == 0 {
            let of = digest.clone();
            lines = line(serde_json::to_string(&Base { of }))? + &lines;
        }
        append(&path, lines.as_bytes()).map_err(FileError::new("write", &path))?;
        if changes == 0 {
            durable::flush_directory_of(&path)?;
        }
        self.written = Some(Written::new(digest, changes + 1));
        Ok(())
    }
}

fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o600).open(path)?;
    file.write_all(lines)?;
    file.sync_data()
}

fn digest(text: &[u8]) -> String {
    hex::encode(Sha256::digest(text))
}

/// The last accepted state, if there is one.
pub fn load(paths: &Paths) -> Result<Option<GatewayState>, LoadError> {
    let Some(text) = durable::read_if_there(paths.state())? else {
        return Ok(None);
    };
    let mut state: GatewayState = serde_json::from_slice(&text)?;
    let changes = durable::read_if_there(&paths.state_changes())?.unwrap_or_default();
    // What has no end was never told to be saved.
    let mut lines = changes
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| line.ends_with(b"\n"));
    let base = lines
        .next()
        .and_then(|line| serde_json::from_slice(line).ok());
    if base.is_some_and(|base: Base| base.of == digest(&text)) {
        for line in lines {
            let change: GatewayChange = serde_json::from_slice(line)?;
            change
                .apply(&mut state)
                .map_err(<serde_json::Error as serde::de::Error>::custom)?;
        }
    }
    Ok(Some(state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake::{self, route};

    /// A directory, what saves into it, and the state that was saved whole.
    fn lab() -> (tempfile::TempDir, Paths, Saver, GatewayState) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        let mut saver = Saver::default();
        saver.whole(&paths, &fake::state()).unwrap();
        (dir, paths, saver, fake::state())
    }

    fn one_more(saver: &mut Saver, paths: &Paths, state: &mut GatewayState, host: &str) {
        let before = state.clone();
        state.routes.push(route(host, 1, 80));
        let change = GatewayChange::between(&before, state).unwrap();
        saver.changed(paths, &change, state).unwrap();
    }

    #[test]
    fn a_saved_state_comes_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        assert!(load(&paths).unwrap().is_none());
        Saver::default().whole(&paths, &fake::state()).unwrap();
        assert_eq!(load(&paths).unwrap(), Some(fake::state()));
        std::fs::write(paths.state(), "{\"network\":").unwrap();
        assert!(matches!(load(&paths), Err(LoadError::Content(_))));
    }

    #[test]
    fn changes_come_back_wherever_the_file_was_cut() {
        let (_dir, paths, mut saver, mut state) = lab();
        let mut states = vec![state.clone()];
        for host in ["x.prox.local", "y.prox.local"] {
            one_more(&mut saver, &paths, &mut state, host);
            assert_eq!(load(&paths).unwrap(), Some(state.clone()));
            states.push(state.clone());
        }
        let whole = std::fs::read(paths.state_changes()).unwrap();
        for end in 0..=whole.len() {
            std::fs::write(paths.state_changes(), &whole[..end]).unwrap();
            let lines = whole[..end].iter().filter(|b| **b == b'\n').count();
            let wanted = &states[lines.saturating_sub(1)];
            assert_eq!(load(&paths).unwrap().as_ref(), Some(wanted), "cut at {end}");
        }
    }

    #[test]
    fn changes_of_another_state_mean_nothing() {
        let (_dir, paths, mut saver, mut state) = lab();
        one_more(&mut saver, &paths, &mut state, "x.prox.local");
        let changes = std::fs::read(paths.state_changes()).unwrap();
        let mut next = fake::state();
        next.routes.clear();
        saver.whole(&paths, &next).unwrap();
        assert!(!paths.state_changes().exists());
        // As after a crash between the two files.
        std::fs::write(paths.state_changes(), &changes).unwrap();
        assert_eq!(load(&paths).unwrap(), Some(next));
        // The whole state that is there already takes its changes back, too.
        saver.whole(&paths, &fake::state()).unwrap();
        one_more(&mut saver, &paths, &mut state, "y.prox.local");
        saver.whole(&paths, &fake::state()).unwrap();
        assert_eq!(load(&paths).unwrap(), Some(fake::state()));
    }

    #[test]
    fn changes_do_not_become_endless_and_a_failure_is_followed_by_a_whole_state() {
        let (_dir, paths, mut saver, mut state) = lab();
        for n in 0..=MOST_CHANGES {
            one_more(&mut saver, &paths, &mut state, &format!("r{n}.prox.local"));
        }
        assert!(!paths.state_changes().exists());
        assert_eq!(load(&paths).unwrap(), Some(state.clone()));
        std::fs::create_dir(paths.state_changes()).unwrap();
        let change = GatewayChange::default();
        saver.changed(&paths, &change, &state).unwrap_err();
        std::fs::remove_dir(paths.state_changes()).unwrap();
        state.routes.clear();
        saver.changed(&paths, &change, &state).unwrap();
        assert_eq!(load(&paths).unwrap(), Some(state), "it was saved whole");
    }
}
