//! Which controller to talk to: `--url`, else `PROXIMITY_URL`, else the socket in the data
//! directory that the configuration names.

use std::path::{Path, PathBuf};

use client::{Client, Endpoint, Secret};
use serde::Deserialize;

use crate::arguments::Globals;
use crate::failure::Failure;

const CONFIG: &str = "/etc/proximity/config.yml";
const DATA_DIR: &str = "/var/lib/proximity";
const SOCKET: &str = "proximity.sock";

/// A client of the controller that flags and environment name. Connects to nothing yet.
pub fn client(globals: &Globals) -> Result<Client, Failure> {
    let url = globals.url.clone().or_else(|| variable("PROXIMITY_URL"));
    let endpoint = match url {
        Some(url) => Endpoint::parse(&url).map_err(client::Error::from)?,
        None => Endpoint::Unix(data_dir(globals)?.join(SOCKET)),
    };
    let token = variable("PROXIMITY_TOKEN")
        .map(|text| Secret::parse(&text))
        .transpose()
        .map_err(client::Error::from)?;
    Ok(Client::new(endpoint, token)?)
}

// An empty variable means the same as none.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// The one key of the configuration that a client needs. The rest is the controller's business:
/// `config check` and `serve` read it with all its rules.
#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    server: Server,
}

#[derive(Default, Deserialize)]
struct Server {
    data_dir: Option<PathBuf>,
}

/// The controller's data directory. A file that was named must be readable; the default one may
/// be missing, closed to us or broken, for most clients run where no controller does.
pub fn data_dir(globals: &Globals) -> Result<PathBuf, Failure> {
    let read = match &globals.config {
        Some(path) => read(path).map_err(|what| {
            Failure::usage(what, "see what is wrong with it: `proximity config check`")
        })?,
        None => read(Path::new(CONFIG)).unwrap_or_default(),
    };
    Ok(read
        .server
        .data_dir
        .unwrap_or_else(|| PathBuf::from(DATA_DIR)))
}

fn read(path: &Path) -> Result<Configuration, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot read {}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
    // An empty file is a configuration with nothing but defaults.
    let read: Option<Configuration> = serde_saphyr::from_str(&text).map_err(|e| failed(&e))?;
    Ok(read.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_of(text: &str) -> Option<PathBuf> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path()).unwrap().server.data_dir
    }

    #[test]
    fn the_data_directory_is_found_among_other_keys() {
        assert_eq!(
            dir_of("server: { listen: 127.0.0.1:1, data_dir: /srv/p }\nzones: { a: { b: c } }\n"),
            Some("/srv/p".into())
        );
        assert_eq!(dir_of("nodes: {}\n"), None);
        assert_eq!(dir_of(""), None);
    }
}
