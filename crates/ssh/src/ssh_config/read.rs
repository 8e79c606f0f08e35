//! Files into lines. What is included is read here too, so many files at most, so deep at most.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BadConfig, Criterion, Line, Pattern, Place, Says, SshConfig, words};

/// A larger file is refused.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;
/// How deep files may include others.
const MAX_DEPTH: usize = 8;
/// How many files there may be in all.
const MAX_FILES: usize = 64;
/// How many lines there may be in all that say something; each alias is compared with all of them.
const MAX_LINES: usize = 20_000;
/// How many patterns one line may have; each is compared with each alias.
const MAX_WORDS: usize = 1024;

/// What is read besides the file itself: text by path. Tests give their own.
type Source<'a> = &'a mut dyn FnMut(&str) -> io::Result<Vec<(PathBuf, Vec<u8>)>>;

/// Reads a file and what it includes. `home` stands for `~`.
pub fn read(path: &Path, home: Option<&Path>) -> Result<SshConfig, BadConfig> {
    let bytes = bounded(path).map_err(|e| BadConfig {
        place: at(&Arc::new(path.to_owned()), 0),
        reason: format!("cannot be read: {e}"),
    })?;
    parse(&bytes, path, &mut |pattern| included(pattern, home))
}

/// Reads a file's bytes. `source` gives the files that an `Include` names.
pub fn parse(bytes: &[u8], path: &Path, source: Source<'_>) -> Result<SshConfig, BadConfig> {
    file(bytes, path, source, 0, &mut Read { files: 1, lines: 0 })
}

/// How much has been read.
struct Read {
    files: usize,
    lines: usize,
}

fn at(file: &Arc<PathBuf>, line: usize) -> Place {
    Place {
        file: Arc::clone(file),
        line,
    }
}

fn file(
    bytes: &[u8],
    path: &Path,
    source: Source<'_>,
    depth: usize,
    read: &mut Read,
) -> Result<SshConfig, BadConfig> {
    let path = Arc::new(path.to_owned());
    let mut lines = Vec::new();
    if bytes.len() > MAX_FILE_BYTES {
        let (place, reason) = (at(&path, 0), "it is larger than 1 MiB".to_owned());
        return Err(BadConfig { place, reason });
    }
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let place = at(&path, number);
        let bad = |reason: &str| BadConfig {
            place: place.clone(),
            reason: reason.to_owned(),
        };
        let line = std::str::from_utf8(line).map_err(|_| bad("it is not UTF-8"))?;
        let Some((name, rest)) = words::keyword(line) else {
            continue;
        };
        read.lines = read.lines.saturating_add(1);
        if read.lines > MAX_LINES {
            return Err(bad("there are more than 20000 lines"));
        }
        if name.is_empty() {
            return Err(bad("there is no keyword"));
        }
        // These take the rest of the line as it is; quotes in it are the shell's.
        let raw = matches!(
            name.as_str(),
            "proxycommand" | "localcommand" | "remotecommand"
        );
        let words = if raw {
            vec![rest.to_owned()]
        } else {
            words::arguments(rest).ok_or_else(|| bad("a quote is not closed"))?
        };
        if words.is_empty() || words.iter().all(String::is_empty) {
            return Err(bad(&format!("{name} has no value")));
        }
        if words.len() > MAX_WORDS {
            return Err(bad("it has more than 1024 words"));
        }
        let says = match name.as_str() {
            "host" => Says::Host(words.iter().map(|word| Pattern::new(word)).collect()),
            "match" => Says::Match(criteria(&words).map_err(|reason| bad(&reason))?),
            "include" => {
                if depth == MAX_DEPTH {
                    return Err(bad("files include each other more than 8 deep"));
                }
                let mut below = Vec::new();
                for word in &words {
                    let found = source(word).map_err(|e| bad(&format!("Include {word}: {e}")))?;
                    for (path, bytes) in found {
                        read.files = read.files.saturating_add(1);
                        if read.files > MAX_FILES {
                            return Err(bad("more than 64 files are included"));
                        }
                        below.push(file(&bytes, &path, &mut *source, depth + 1, read)?);
                    }
                }
                Says::Include(below)
            }
            _ => Says::Option { name, words },
        };
        lines.push(Line { place, says });
    }
    Ok(SshConfig { lines })
}

/// Only what compares names. Everything else depends on programs, on networks or on a second pass.
fn criteria(words: &[String]) -> Result<Vec<Criterion>, String> {
    let mut words = words.iter();
    let mut all = Vec::new();
    while let Some(word) = words.next() {
        let criterion = word.to_ascii_lowercase();
        let mut list = || {
            let list = words.next().ok_or(format!("Match {word} has no value"))?;
            // Names are compared in lower case, as OpenSSH does it here.
            let patterns = list.split(',').filter(|one| !one.is_empty());
            Ok::<_, String>(
                patterns
                    .map(|one| Pattern::new(&one.to_ascii_lowercase()))
                    .collect(),
            )
        };
        all.push(match criterion.as_str() {
            "all" => Criterion::All,
            "host" => Criterion::Host(list()?),
            "originalhost" => Criterion::OriginalHost(list()?),
            _ => {
                return Err(format!(
                    "Match {word} is refused: only all, host and originalhost are read; nothing is run to read a file"
                ));
            }
        });
    }
    Ok(all)
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
    File::open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The files that an `Include` names: a path, or a directory's files by `*` and `?` in the last part. What is not there
/// is passed over, as OpenSSH does.
fn included(pattern: &str, home: Option<&Path>) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let refused = |why: &str| Err(io::Error::other(format!("refused: {why}")));
    if pattern.contains(['[', '{', '$', '%', '\\']) {
        return refused("only * and ? are read in its last part");
    }
    let path = match (pattern.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        (None, _) if pattern.starts_with('/') => PathBuf::from(pattern),
        (None, Some(home)) if !pattern.starts_with('~') => home.join(".ssh").join(pattern),
        _ => return refused("nobody knows whose home is meant"),
    };
    let (Some(dir), Some(last)) = (path.parent(), path.file_name()) else {
        return refused("it names no file");
    };
    if dir.to_string_lossy().contains(['*', '?']) {
        return refused("only * and ? in its last part are read");
    }
    let last = last.to_string_lossy();
    let mut paths = Vec::new();
    if last.contains(['*', '?']) {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let name = entry?.file_name();
            let text = name.to_string_lossy();
            // As a shell has it: what is hidden must be named.
            let hidden = text.starts_with('.') && !last.starts_with('.');
            if !hidden && crate::known_hosts::glob_matches(last.as_bytes(), text.as_bytes()) {
                paths.push(dir.join(&name));
            }
            if paths.len() > MAX_FILES {
                return refused("more than 64 files match");
            }
        }
        paths.sort();
    } else {
        paths.push(path);
    }
    let mut found = Vec::new();
    for path in paths {
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {
                let bytes = bounded(&path)?;
                found.push((path, bytes));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}
