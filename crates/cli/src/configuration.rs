//! Reads the configuration file with all its rules, and the recipes beside it. For the commands
//! that are the controller; clients need one key of it only (see [`crate::connection`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use engine::Config;
use engine::catalog::Catalog;
use engine::config::DEFAULT_PATH;

use crate::failure::Failure;

/// The file that counts: `named`, else `PROXIMITY_CONFIG`, else the default one.
pub fn path(named: Option<&Path>) -> (PathBuf, bool) {
    let variable = || std::env::var_os("PROXIMITY_CONFIG").filter(|v| !v.is_empty());
    match named
        .map(Path::to_owned)
        .or_else(|| variable().map(PathBuf::from))
    {
        Some(path) => (path, true),
        None => (PathBuf::from(DEFAULT_PATH), false),
    }
}

/// The configuration. A file that was named must be there; without the default one the built-in
/// configuration holds.
pub fn load(named: Option<&Path>) -> Result<Config, Failure> {
    let (path, must_be_there) = path(named);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !must_be_there => String::new(),
        Err(e) => {
            return Err(Failure::local(format!(
                "{} can't be read: {e}",
                path.display()
            )));
        }
    };
    Config::parse(&text).map_err(|e| {
        let failure = Failure::local(format!("{}: {e}", path.display()));
        match e.hint {
            Some(hint) => failure.next(hint),
            None => failure,
        }
    })
}

/// The built-in recipes and those of the configuration's catalog directory.
pub fn catalog(config: &Config) -> Result<Catalog, Failure> {
    let mut further = Vec::new();
    let entries = match fs::read_dir(&config.catalog_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return built(&further),
        Err(e) => {
            return Err(Failure::local(format!(
                "{} can't be read: {e}",
                config.catalog_dir.display()
            )));
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("yml" | "yaml")
        ) {
            let text = fs::read_to_string(&path)
                .map_err(|e| Failure::local(format!("{} can't be read: {e}", path.display())))?;
            further.push((path.display().to_string(), text));
        }
    }
    built(&further)
}

fn built(further: &[(String, String)]) -> Result<Catalog, Failure> {
    Catalog::new(further).map_err(|e| {
        Failure::local(format!("a recipe can't be used: {e}"))
            .next("how recipes are written: docs/catalog.md")
    })
}
