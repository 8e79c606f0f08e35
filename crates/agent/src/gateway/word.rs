//! The last gate before a value becomes part of another program's configuration.
//!
//! Every value that gets here is a parsed newtype already; the writers still pass each one through
//! [`word`], so that no later change of a newtype can let a newline, a quote or a brace through.

use std::fmt::Display;

/// A value that cannot stand in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} cannot be written to a configuration file")]
pub struct UnsafeWord {
    value: String,
}

/// The text of `value` if it is one word of characters without a meaning in any of our formats.
pub fn word(value: impl Display) -> Result<String, UnsafeWord> {
    let value = value.to_string();
    let harmless = |c: char| c.is_ascii_alphanumeric() || "._:/@-".contains(c);
    if !value.is_empty() && value.chars().all(harmless) {
        Ok(value)
    } else {
        Err(UnsafeWord { value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_has_a_meaning_is_refused() {
        for bad in [
            "", "a b", "a\nb", "a;b", "{x}", "\"", "'", "#", "$x", "a,b", "a=b", "\\", "ü", "*",
        ] {
            assert!(word(bad).is_err(), "{bad:?}");
        }
        for good in [
            "10.20.0.0/24",
            "web.prox.local",
            "52:78:00:01:00:64",
            "/run/x-y_z",
        ] {
            assert_eq!(word(good).unwrap(), good);
        }
    }

    proptest! {
        #[test]
        fn a_word_is_one_word(s in any::<String>()) {
            if let Ok(w) = word(&s) {
                prop_assert_eq!(w.split_ascii_whitespace().count(), 1);
                prop_assert!(!w.contains(|c: char| c.is_control()));
            }
        }
    }
}
