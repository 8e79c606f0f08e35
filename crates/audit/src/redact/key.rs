//! Which keys, flags and variable names announce a secret. Pure.

/// Anywhere in the name, written in any style: `dbPassword`, `X-Api-Key`, `--access_key`.
const PARTS: &[&str] = &[
    "accesskey",
    "apikey",
    "authorization",
    "bearer",
    "clientkey",
    "cookie",
    "credential",
    "encryptionkey",
    "hmackey",
    "masterkey",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "sessionid",
    "signingkey",
    "token",
];

/// Only as a word of its own: `DB_PASS` but not `compass`.
const WORDS: &[&str] = &[
    "auth", "creds", "jwt", "otp", "pass", "passin", "passout", "psk", "pw", "pwd", "ticket",
];

/// Names are short; of a longer one the end counts.
const MAX_KEY_BYTES: usize = 256;

/// Whether a value under this name is hidden.
pub(super) fn looks_secret(name: &str) -> bool {
    let name = end_of(name);
    let squeezed: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    PARTS.iter().any(|part| squeezed.contains(part)) || words(name).any(|w| is_word(&w))
}

/// Whether the value goes on to the end of its line (`Authorization: Digest a="b", c="d"`).
pub(super) fn takes_line(name: &str) -> bool {
    let name = end_of(name).to_ascii_lowercase();
    ["authorization", "cookie", "passphrase"]
        .iter()
        .any(|part| name.contains(part))
}

fn end_of(name: &str) -> &str {
    let from = name.len().saturating_sub(MAX_KEY_BYTES);
    let from = (from..=name.len()).find(|at| name.is_char_boundary(*at));
    from.and_then(|at| name.get(at..)).unwrap_or(name)
}

fn is_word(word: &str) -> bool {
    WORDS.contains(&word.to_ascii_lowercase().as_str())
}

/// The words of `some_name`, `some-name`, `someName`.
fn words(name: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut lower = false;
    for c in name.chars() {
        if !c.is_ascii_alphanumeric() || (lower && c.is_ascii_uppercase()) {
            words.push(String::new());
        }
        lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        if c.is_ascii_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.push(c);
        }
    }
    words.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_announce_a_secret() {
        for yes in [
            "password",
            "DB_PASSWORD",
            "dbPass",
            "X-Api-Key",
            "--access_key",
            "Authorization",
            "PVEAuthCookie",
            "CSRFPreventionToken",
            "MYSQL_PWD",
            "private-key",
            "client.secret",
            "-passin",
            "rootPw",
            "auth",
        ] {
            assert!(looks_secret(yes), "{yes}");
        }
        for no in [
            "",
            "compass",
            "bypass",
            "author",
            "argv",
            "key",
            "public_key",
            "user",
            "monkey",
            "passed",
            "exit_code",
            "fingerprint",
            "pwned",
        ] {
            assert!(!looks_secret(no), "{no}");
        }
    }
}
