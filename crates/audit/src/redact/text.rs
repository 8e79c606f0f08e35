//! Secrets in text that their surroundings give away. Pure; works in one pass per kind of surroundings.

use std::ops::Range;

use super::key::{looks_secret, takes_line};
use super::words;

type Spans = Vec<Range<usize>>;

/// Beginnings of tokens that say what they are.
const PREFIXES: &[&str] = &[
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "sk-ant-",
    "eyJ",
];
/// A shorter run after such a beginning is a word.
const MIN_TOKEN_BYTES: usize = 16;

/// Everything that is or looks like a secret.
pub(super) fn spans(text: &str) -> Spans {
    let mut spans = certain_spans(text);
    bearers(text, &mut spans);
    assignments(text, &mut spans);
    flags(text, &mut spans);
    spans
}

/// Only what is a secret by its form.
pub(super) fn certain_spans(text: &str) -> Spans {
    let mut spans = Vec::new();
    private_keys(text, &mut spans);
    user_info(text, &mut spans);
    known_tokens(text, &mut spans);
    spans
}

fn from(text: &str, at: usize) -> &str {
    text.get(at..).unwrap_or_default()
}

/// Where `stop` first holds at or after `at`.
fn until(text: &str, at: usize, stop: impl Fn(char) -> bool) -> usize {
    from(text, at).find(stop).map_or(text.len(), |n| at + n)
}

/// `-----BEGIN … PRIVATE KEY…-----` to the end of its block, or of the text if the block has none.
fn private_keys(text: &str, spans: &mut Spans) {
    let mut at = 0;
    while let Some(begin) = from(text, at).find("-----BEGIN ").map(|n| at + n) {
        let label = begin + "-----BEGIN ".len();
        at = label;
        let Some(label_end) = from(text, label).find("-----").map(|n| label + n) else {
            return;
        };
        if !text
            .get(label..label_end)
            .is_some_and(|l| l.contains("PRIVATE KEY"))
        {
            continue;
        }
        let end = from(text, label_end)
            .find("-----END ")
            .map(|n| label_end + n + "-----END ".len())
            .and_then(|end| from(text, end).find("-----").map(|n| end + n + 5))
            .unwrap_or(text.len());
        spans.push(begin..end);
        at = end;
    }
}

/// The `user:password` of `scheme://user:password@host`.
fn user_info(text: &str, spans: &mut Spans) {
    let separator = "://";
    let mut urls = text.match_indices(separator).peekable();
    while let Some((scheme, _)) = urls.next() {
        let begin = scheme + separator.len();
        // The next URL in the same word has its own turn.
        let end = urls.peek().map_or(text.len(), |(next, _)| *next);
        let rest = text.get(begin..end).unwrap_or_default();
        let stop = |c: char| c.is_whitespace() || matches!(c, '"' | '<' | '>');
        let word = rest.split(stop).next().unwrap_or_default();
        let authority = word.split(['/', '?', '#']).next().unwrap_or_default();
        // A password with a slash in it: what stands after the colon is no port.
        let port = authority.rsplit_once(':').map(|(_, port)| port);
        let is_host =
            port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) || p.ends_with(']'));
        let searched = if authority.contains('@') || is_host {
            authority
        } else {
            word
        };
        if let Some(at) = searched.rfind('@') {
            spans.push(begin..begin + at);
        }
    }
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '/' | '=' | '~')
}

fn known_tokens(text: &str, spans: &mut Spans) {
    for prefix in PREFIXES {
        let mut seen = 0;
        for (at, _) in text.match_indices(prefix) {
            if at < seen {
                continue;
            }
            let before = text.get(..at).and_then(|t| t.chars().next_back());
            if before.is_some_and(|c| c.is_ascii_alphanumeric()) {
                continue;
            }
            let end = until(text, at, |c| !is_token_char(c));
            seen = end;
            if end - at >= prefix.len() + MIN_TOKEN_BYTES {
                spans.push(at..end);
            }
        }
    }
    // Proxmox VE: a ticket (PVE:user@realm:TIME::SIGNATURE) and an API token's value.
    let mut seen = 0;
    for (at, _) in text.match_indices("PVE:") {
        if at < seen {
            continue;
        }
        let end = until(text, at, |c| c.is_whitespace() || matches!(c, '"' | ';'));
        seen = end;
        if text.get(at..end).is_some_and(|t| t.contains("::")) {
            spans.push(at..end);
        }
    }
}

fn bearers(text: &str, spans: &mut Spans) {
    let lower = text.to_ascii_lowercase();
    for (at, word) in lower.match_indices("bearer ") {
        let begin = at + word.len();
        spans.push(
            begin..until(text, begin, |c| {
                c.is_whitespace() || matches!(c, '"' | '\'')
            }),
        );
    }
}

fn is_key_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

/// `key=value`, `key: value`, `"key": "value"`, `\"key\": \"value\"` where the key announces a secret.
fn assignments(text: &str, spans: &mut Spans) {
    let mut covered = 0;
    for (at, sign) in text.match_indices(['=', ':']) {
        if at < covered {
            continue;
        }
        let before = text.get(..at).unwrap_or_default();
        let before = before.trim_end_matches([' ', '\t']);
        let before = before.trim_end_matches(['"', '\'', '\\']);
        let Some((key_at, _)) = before
            .char_indices()
            .rev()
            .take_while(|(_, c)| is_key_char(*c))
            .last()
        else {
            continue;
        };
        let key = from(before, key_at);
        if !looks_secret(key) {
            continue;
        }
        let begin = until(text, at, |c| !matches!(c, ' ' | '\t' | '=' | ':' | '>'));
        let end = if key_at == 0 && sign == "=" {
            // A variable or a flag that is an argument of its own: all the rest is its value.
            text.len()
        } else {
            let quote_before_key = text.get(..key_at).and_then(|t| t.chars().next_back());
            value_end(text, begin, takes_line(key), quote_before_key)
        };
        spans.push(begin..end);
        covered = end;
    }
}

fn value_end(text: &str, begin: usize, takes_line: bool, before_key: Option<char>) -> usize {
    let value = from(text, begin);
    let opening = value.trim_start_matches('\\');
    let escaped = opening.len() < value.len();
    if let Some(quote) = opening.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let inner = begin + (value.len() - opening.len()) + 1;
        return closing_quote(text, inner, quote, escaped);
    }
    if !takes_line {
        return until(text, begin, char::is_whitespace);
    }
    match before_key.filter(|c| matches!(c, '"' | '\'')) {
        // curl -H "Authorization: Basic abc" URL
        Some(quote) => until(text, begin, |c| c == quote || c == '\n'),
        None => until(text, begin, |c| c == '\n'),
    }
}

/// After the quote that ends what began at `at`; a quote behind a backslash does not, unless the
/// opening one was escaped as well.
fn closing_quote(text: &str, at: usize, quote: char, escaped: bool) -> usize {
    let mut behind_backslash = false;
    for (n, c) in from(text, at).char_indices() {
        if c == quote && behind_backslash == escaped {
            return at + n + 1;
        }
        behind_backslash = c == '\\' && (escaped || !behind_backslash);
    }
    text.len()
}

/// A command line in one string: the same rules as for argv.
fn flags(text: &str, spans: &mut Spans) {
    let mut at = 0;
    let mut begins = Vec::new();
    let mut list = Vec::new();
    while at < text.len() {
        let begin = until(text, at, |c| !c.is_whitespace());
        at = until(text, begin, char::is_whitespace);
        if begin < at {
            begins.push(begin);
            list.push(text.get(begin..at).unwrap_or_default());
        }
    }
    let mut covered = 0;
    for hidden in words::hidden(&list) {
        let (Some(word), Some(begin)) = (list.get(hidden.word), begins.get(hidden.word)) else {
            continue;
        };
        let (begin, end) = (begin + hidden.from, begin + word.len());
        if begin < covered {
            continue;
        }
        let quote = from(text, begin).chars().next();
        let end = match quote.filter(|c| matches!(c, '"' | '\'')) {
            Some(quote) => closing_quote(text, begin + 1, quote, false).max(end),
            None => end,
        };
        spans.push(begin..end);
        covered = end;
    }
}
