//! One line of an ssh_config(5) file as a keyword and its arguments.
//!
//! Pure. Quotes, backslashes and comments as OpenSSH reads them; a test compares with it.

/// The keyword in lower case, and what stands behind it. `None` for an empty line or a comment.
pub fn keyword(line: &str) -> Option<(String, &str)> {
    let line = line.trim_matches(blank);
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line
        .find(|c: char| blank(c) || c == '=' || c == '"')
        .unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start_matches(blank);
    let rest = rest.strip_prefix('=').unwrap_or(rest);
    Some((keyword.to_ascii_lowercase(), rest.trim_start_matches(blank)))
}

fn blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '\x0c')
}

/// The arguments, up to a comment. `None` if a quote is not closed.
pub fn arguments(rest: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut left = rest.chars().peekable();
    loop {
        while left.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
        match left.peek() {
            None | Some('#') => return Some(words),
            Some(_) => words.push(word(&mut left)?),
        }
    }
}

fn word(left: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let mut word = String::new();
    let mut quote = None;
    while let Some(c) = left.next_if(|c| quote.is_some() || !matches!(c, ' ' | '\t')) {
        match (c, quote) {
            ('\\', _) => {
                let plain = quote.is_none();
                let escaped =
                    left.next_if(|c| matches!(c, '\'' | '"' | '\\') || (plain && *c == ' '));
                word.push(escaped.unwrap_or('\\'));
            }
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, _) => word.push(c),
        }
    }
    quote.is_none().then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_into_words() {
        let check = |line: &str, key: &str, words: &[&str]| {
            let (found, rest) = keyword(line).unwrap();
            assert_eq!(found, key, "{line:?}");
            assert_eq!(arguments(rest).unwrap(), words, "{line:?}");
        };
        check("Host a b", "host", &["a", "b"]);
        check("\tPort=22 ", "port", &["22"]);
        check("Port = 22 # x", "port", &["22"]);
        check("User a#b", "user", &["a#b"]);
        check(
            "IdentityFile \"a b\" 'c d'",
            "identityfile",
            &["a b", "c d"],
        );
        check(r"IdentityFile a\ b", "identityfile", &["a b"]);
        check(
            r#"IdentityFile "a\"b" c\d"#,
            "identityfile",
            &["a\"b", r"c\d"],
        );
        check("Host \"\"", "host", &[""]);
        check("HostName==x", "hostname", &["=x"]);
        assert!(keyword("  # Host a").is_none());
        assert!(keyword(" \t").is_none());
        assert!(arguments("\"open").is_none());
    }
}
