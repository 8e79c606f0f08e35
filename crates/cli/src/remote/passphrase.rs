//! Passphrases of encrypted keys: from the file that was named, else from the person at the terminal, asked once for
//! each key.
//!
//! Held in memory until the program ends, wiped then; never printed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use ssh::Passphrases;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::password;

/// A larger file is no passphrase.
const MAX_FILE_BYTES: u64 = 4096;

/// Who is asked; nobody where there is neither a file nor a terminal.
pub fn source(file: Option<&Path>) -> Result<Option<Passphrases>, Failure> {
    if let Some(file) = file {
        let passphrase = read(file)?;
        return Ok(Some(Arc::new(move |_: &Path| Some(passphrase.clone()))));
    }
    if !password::can_ask() {
        return Ok(None);
    }
    let known: Mutex<HashMap<PathBuf, Option<Zeroizing<String>>>> = Mutex::default();
    Ok(Some(Arc::new(move |key: &Path| {
        // Held while a person types, so that no two questions stand on the terminal at once.
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = known
            .entry(key.to_owned())
            .or_insert_with(|| ask(&format!("Passphrase of {}: ", key.display())));
        answer.clone()
    })))
}

/// The first line of a file.
pub fn read(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let failed =
        |e: std::io::Error| Failure::local(format!("{} can't be read: {e}", file.display()));
    if fs::metadata(file).map_err(failed)?.len() > MAX_FILE_BYTES {
        return Err(Failure::local(format!(
            "{} is too large for a passphrase",
            file.display()
        )));
    }
    let text = fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(failed)?;
    let line = text.lines().next().unwrap_or_default();
    Ok(Zeroizing::new(line.to_owned()))
}

/// In a thread with a runtime of its own: whoever wants to know cannot wait, and signals must still be heard.
fn ask(question: &str) -> Option<Zeroizing<String>> {
    let question = question.to_owned();
    let asking = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .ok()?;
        let answer = runtime.block_on(password::ask(&question));
        // The thread that reads keys may still wait for one.
        runtime.shutdown_background();
        answer.ok().map(Zeroizing::new)
    });
    asking.join().ok().flatten()
}
