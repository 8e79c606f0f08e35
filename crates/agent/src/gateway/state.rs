//! The last accepted state on the disk, so that an appliance that restarts needs no controller.

use std::io;

use wire::gateway::GatewayState;

use super::paths::Paths;
use crate::durable::{self, FileError, Keep};

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

/// The last accepted state, if there is one.
pub fn load(paths: &Paths) -> Result<Option<GatewayState>, LoadError> {
    match durable::read_if_there(paths.state())? {
        Some(text) => Ok(Some(serde_json::from_slice(&text)?)),
        None => Ok(None),
    }
}

/// Saves a state; when this returns, no crash loses it any more.
pub fn save(paths: &Paths, state: &GatewayState) -> Result<(), FileError> {
    let path = paths.state();
    if let Some(parent) = path.parent() {
        // dnsmasq reads its host directories below it as a user of its own.
        durable::directory(parent, 0o755)?;
    }
    let mut text = serde_json::to_vec_pretty(state)
        .map_err(|e| FileError::new("encode", path)(io::Error::other(e)))?;
    text.push(b'\n');
    durable::replace_if_changed(path, &text, 0o600, Keep::Durable).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;

    #[test]
    fn a_saved_state_comes_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        assert!(load(&paths).unwrap().is_none());
        save(&paths, &fake::state()).unwrap();
        assert_eq!(load(&paths).unwrap(), Some(fake::state()));
        std::fs::write(paths.state(), "{\"network\":").unwrap();
        assert!(matches!(load(&paths), Err(LoadError::Content(_))));
    }
}
