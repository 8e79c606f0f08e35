//! Secrets among the words of a command: the word after `--token`, the rest of `-pSECRET`. Pure.

use super::key::looks_secret;

/// A part of a word to hide: from this byte to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hidden {
    pub word: usize,
    pub from: usize,
}

/// Short flags that take a secret, by program. Each hides the next word and what is attached to it.
const SHORT_FLAGS: &[(&str, &[&str])] = &[
    ("curl", &["-u", "--user", "-U", "--proxy-user"]),
    ("ldapsearch", &["-w"]),
    ("mariadb", &["-p"]),
    ("mariadb-dump", &["-p"]),
    ("mysql", &["-p"]),
    ("mysqladmin", &["-p"]),
    ("mysqldump", &["-p"]),
    ("redis-cli", &["-a"]),
    ("smbclient", &["-U"]),
    ("sshpass", &["-p"]),
];

/// What to hide in these words. The program may stand anywhere before its flag (`sudo`, `env`, `timeout`).
pub(super) fn hidden(words: &[&str]) -> Vec<Hidden> {
    let mut found = Vec::new();
    let mut flags: Vec<&str> = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if let Some(secret) = flags.iter().find_map(|flag| attached(word, flag)) {
            if secret == word.len() {
                found.push(Hidden {
                    word: at + 1,
                    from: 0,
                });
            } else {
                found.push(Hidden {
                    word: at,
                    from: secret,
                });
            }
        } else if word.starts_with('-')
            && !word.contains(['=', ':'])
            && !word.chars().any(char::is_whitespace)
            && !word.starts_with("--no-")
            && looks_secret(word)
        {
            found.push(Hidden {
                word: at + 1,
                from: 0,
            });
        }
        let program = word.rsplit('/').next().unwrap_or_default();
        let known = SHORT_FLAGS.iter().find(|(name, _)| *name == program);
        for flag in known.iter().flat_map(|(_, flags)| *flags) {
            if !flags.contains(flag) {
                flags.push(flag);
            }
        }
    }
    found.retain(|hidden| hidden.word < words.len());
    found
}

/// Where the secret begins if `word` is this flag: at its end if the secret is the next word.
fn attached(word: &str, flag: &str) -> Option<usize> {
    let rest = word.strip_prefix(flag)?;
    if rest.is_empty() {
        Some(word.len())
    } else if !flag.starts_with("--") {
        Some(flag.len())
    } else {
        rest.starts_with('=').then_some(flag.len() + 1)
    }
}
