//! The `known_hosts` file of OpenSSH: which key belongs to which host.
//!
//! Read as sshd(8) describes it: patterns with `*`, `?` and `!`, `[host]:port`, hashed names,
//! `@cert-authority` and `@revoked`. Keys are compared as bytes, so kinds that nobody here knows are kept.
//! A line that makes no sense is passed over, except one that revokes: then the file is refused.
//!
//! Pure; whoever calls reads and writes the file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// A larger file is refused.
pub const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;

/// What a line is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// The host has this key.
    Key,
    /// This authority vouches for the host.
    Authority,
    /// This key is not to be trusted any more.
    Revoked,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The line; the first is 1.
    pub line: usize,
    /// What it is for.
    pub marker: Marker,
    /// The kind of its key, as it stands there.
    pub key_type: String,
    /// The key in SSH's own encoding.
    pub blob: Vec<u8>,
    hosts: Hosts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
    Patterns(Vec<Pattern>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    negated: bool,
    glob: String,
}

/// A line that cannot be passed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadLine {
    /// The line; the first is 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownHosts {
    entries: Vec<Entry>,
}

impl KnownHosts {
    /// Reads the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadLine> {
        if bytes.len() > MAX_FILE_BYTES {
            return Err(BadLine {
                line: 0,
                reason: "the file is larger than 16 MiB",
            });
        }
        let mut entries = Vec::new();
        for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            let text = std::str::from_utf8(line).unwrap_or_default();
            match entry(number, text.trim()) {
                Some(entry) => entries.push(entry),
                // A key that somebody wanted to be refused must not slip through by a typing error.
                None if starts_with(line, b"@revoked") => {
                    return Err(BadLine {
                        line: number,
                        reason: "it revokes a key, but the key cannot be read",
                    });
                }
                None => {}
            }
        }
        Ok(Self { entries })
    }

    /// The lines that speak of a host, in their order.
    pub fn of(&self, host: &str, port: u16) -> impl Iterator<Item = &Entry> {
        let name = lookup_name(host, port);
        self.entries
            .iter()
            .filter(move |entry| entry.hosts.contain(&name))
    }
}

fn starts_with(line: &[u8], word: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(word)
}

/// How a host is called in the file: lower case, with its port unless that is 22.
pub fn lookup_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 {
        host
    } else {
        format!("[{host}]:{port}")
    }
}

fn entry(line: usize, text: &str) -> Option<Entry> {
    if text.is_empty() || text.starts_with('#') {
        return None;
    }
    let mut words = text.split_ascii_whitespace();
    let first = words.next()?;
    let (marker, hosts) = match first {
        "@cert-authority" => (Marker::Authority, words.next()?),
        "@revoked" => (Marker::Revoked, words.next()?),
        word if word.starts_with('@') => return None,
        hosts => (Marker::Key, hosts),
    };
    let key_type = words.next()?;
    let blob = STANDARD.decode(words.next()?).ok()?;
    // The blob begins with its own kind; a line whose two kinds differ is nobody's key.
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    if rest.get(..length)? != key_type.as_bytes() {
        return None;
    }
    Some(Entry {
        line,
        marker,
        key_type: key_type.to_owned(),
        hosts: Hosts::parse(hosts)?,
        blob,
    })
}

impl Hosts {
    fn parse(text: &str) -> Option<Self> {
        if let Some(hashed) = text.strip_prefix("|1|") {
            let (salt, hash) = hashed.split_once('|')?;
            let salt = STANDARD.decode(salt).ok()?;
            let hash = STANDARD.decode(hash).ok()?;
            return (hash.len() == 20).then_some(Self::Hashed { salt, hash });
        }
        let patterns = text.split(',').filter(|pattern| !pattern.is_empty());
        let patterns: Vec<Pattern> = patterns
            .map(|pattern| match pattern.strip_prefix('!') {
                Some(glob) => Pattern {
                    negated: true,
                    glob: glob.to_ascii_lowercase(),
                },
                None => Pattern {
                    negated: false,
                    glob: pattern.to_ascii_lowercase(),
                },
            })
            .collect();
        (!patterns.is_empty()).then_some(Self::Patterns(patterns))
    }

    fn contain(&self, name: &str) -> bool {
        match self {
            Self::Hashed { salt, hash } => {
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
                hmac::verify(&key, name.as_bytes(), hash).is_ok()
            }
            Self::Patterns(patterns) => {
                let matches = |p: &&Pattern| glob_matches(p.glob.as_bytes(), name.as_bytes());
                let mut found = false;
                for pattern in patterns.iter().filter(matches) {
                    if pattern.negated {
                        return false;
                    }
                    found = true;
                }
                found
            }
        }
    }
}

/// `*` is any text, `?` any one byte. Linear in the product of the lengths, whatever the pattern is; a pattern that is
/// longer than any text it could match costs one look at it.
pub(crate) fn glob_matches(pattern: &[u8], text: &[u8]) -> bool {
    if pattern.iter().filter(|byte| **byte != b'*').count() > text.len() {
        return false;
    }
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                t += 1;
            }
            Some(byte) if text.get(t) == Some(byte) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    p = after;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

/// The line that pins a key. `None` for a host that could not stand in the file.
pub fn line_for(host: &str, port: u16, key_type: &str, blob: &[u8]) -> Option<String> {
    let name = lookup_name(host, port);
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    (!host.is_empty() && host.chars().all(legal))
        .then(|| format!("{name} {key_type} {}\n", STANDARD.encode(blob)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn lines_of(text: &str, host: &str, port: u16) -> Vec<usize> {
        let known = KnownHosts::parse(text.as_bytes()).unwrap();
        known.of(host, port).map(|entry| entry.line).collect()
    }

    #[test]
    fn names_and_patterns_are_matched() {
        let check = |hosts: &str, host: &str, port: u16, expected: bool| {
            let text = format!("{hosts} ssh-ed25519 {KEY} a comment\n");
            assert_eq!(
                !lines_of(&text, host, port).is_empty(),
                expected,
                "{hosts} {host} {port}"
            );
        };
        check("web", "web", 22, true);
        check("web", "WEB", 22, true);
        check("web,192.0.2.1", "192.0.2.1", 22, true);
        check("web", "web2", 22, false);
        check("web", "web", 2222, false);
        check("[web]:2222", "web", 2222, true);
        check("[web]:2222", "web", 22, false);
        check("*.lan", "a.lan", 22, true);
        check("*.lan,!a.lan", "a.lan", 22, false);
        check("!a.lan,*.lan", "a.lan", 22, false);
        check("!a.lan", "b.lan", 22, false);
        check("192.0.2.?", "192.0.2.7", 22, true);
        check("192.0.2.?", "192.0.2.77", 22, false);
        check("*", "anything", 22, true);
    }

    #[test]
    fn hashed_names_are_matched() {
        let salt = STANDARD.encode([7_u8; 20]);
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &[7; 20]);
        let hash = STANDARD.encode(hmac::sign(&key, b"example.com").as_ref());
        let text = format!("|1|{salt}|{hash} ssh-ed25519 {KEY}\n");
        assert_eq!(lines_of(&text, "example.com", 22), [1]);
        assert!(lines_of(&text, "example.org", 22).is_empty());
        assert!(lines_of(&text, "example.com", 23).is_empty());
    }

    #[test]
    fn markers_are_told_apart() {
        let text = format!(
            "# comment\n\n@cert-authority *.lan ssh-ed25519 {KEY}\n@revoked * ssh-ed25519 {KEY}\n@new a.lan ssh-ed25519 {KEY}\n"
        );
        let known = KnownHosts::parse(text.as_bytes()).unwrap();
        let found: Vec<_> = known.of("a.lan", 22).map(|e| (e.line, e.marker)).collect();
        assert_eq!(found, [(3, Marker::Authority), (4, Marker::Revoked)]);
    }

    #[test]
    fn a_line_that_makes_no_sense_is_passed_over_unless_it_revokes() {
        for bad in [
            "web",
            "web ssh-ed25519",
            "web ssh-ed25519 !!!",
            "web ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ",
        ] {
            assert!(lines_of(&format!("{bad}\n"), "web", 22).is_empty(), "{bad}");
            let revoking = KnownHosts::parse(format!("\n@revoked {bad}\n").as_bytes());
            assert_eq!(revoking.unwrap_err().line, 2, "{bad}");
        }
    }

    #[test]
    fn a_pinned_line_is_found_again() {
        let blob = STANDARD.decode(KEY).unwrap();
        for (host, port) in [("web", 22), ("192.0.2.1", 2222), ("fd00::1", 22)] {
            let line = line_for(host, port, "ssh-ed25519", &blob).unwrap();
            assert_eq!(lines_of(&line, host, port), [1]);
        }
        assert_eq!(line_for("a b", 22, "ssh-ed25519", &blob), None);
        assert_eq!(line_for("a,b", 22, "ssh-ed25519", &blob), None);
        assert_eq!(line_for("*", 22, "ssh-ed25519", &blob), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fall(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(known) = KnownHosts::parse(&bytes) {
                let _ = known.of("web", 22).count();
            }
        }

        #[test]
        fn a_glob_with_its_own_text_matches(text in "[a-z.*?]{0,12}") {
            prop_assert!(glob_matches(text.as_bytes(), text.replace(['*', '?'], "x").as_bytes()) );
        }
    }
}
