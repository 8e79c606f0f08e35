//! Redaction: what is known to be a secret, and what looks like one, never reaches a record.
//!
//! Two nets. Values that were *registered* are hidden wherever they stand, also percent-encoded, in
//! JSON text, in hexadecimal and in Base64. What was not registered is hidden where its surroundings
//! give it away: keys, flags, environment, headers, URLs, private key blocks, tokens with known
//! prefixes. The second net guesses and rather hides too much; only the first one is a promise.
//!
//! Holds the registered values in memory; never prints them.

mod encoded;
mod key;
mod known;
mod text;
mod words;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde_json::{Map, Value};

use known::Known;

/// What stands in place of something hidden.
pub const REDACTED: &str = "***";
/// The shortest secret that can be registered, in bytes.
const MIN_SECRET_BYTES: usize = 4;
/// Deeper values are hidden whole.
const MAX_DEPTH: usize = 64;

/// A value that is too short to be registered: hiding it would garble every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a secret of fewer than {MIN_SECRET_BYTES} bytes cannot be kept out of the audit log; use a longer one"
)]
pub struct WeakSecret;

/// Hides secrets. Clones share what is registered, so one can serve a whole process.
#[derive(Clone, Default)]
pub struct Redactor {
    known: Arc<RwLock<Known>>,
}

impl Redactor {
    /// A redactor that knows no value yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on hides `secret` wherever it stands. White space around it does not count; of a value
    /// with several lines (a key file) each longer line is hidden by itself too.
    pub fn register(&self, secret: &str) -> Result<(), WeakSecret> {
        let secret = secret.trim();
        if secret.len() < MIN_SECRET_BYTES {
            return Err(WeakSecret);
        }
        self.known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(secret);
        Ok(())
    }

    /// Stops looking for a value that is no secret any more (its instance is gone).
    pub fn forget(&self, secret: &str) {
        self.known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(secret.trim());
    }

    /// Free text (a message, a command line, a header): both nets.
    pub fn text(&self, text: &str) -> String {
        let mut spans = text::spans(text);
        spans.extend(self.known().find(text));
        self.hide(text, spans)
    }

    /// A name (of a user, an action, a target): registered values, URLs with a password, private keys
    /// and known tokens, but no guessing by keys, because `token:ci` may be a fine name.
    pub fn name(&self, name: &str) -> String {
        let mut spans = text::certain_spans(name);
        spans.extend(self.known().find(name));
        self.hide(name, spans)
    }

    /// The arguments of a command: each as text, and the values of flags that take a secret.
    pub fn argv<S: AsRef<str>>(&self, argv: &[S]) -> Vec<String> {
        let words: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
        let mut redacted: Vec<String> = words.iter().map(|word| self.text(word)).collect();
        for hidden in words::hidden(&words) {
            if let (Some(word), Some(to)) = (words.get(hidden.word), redacted.get_mut(hidden.word))
            {
                *to = self.hide(word, std::iter::once(hidden.from..word.len()).collect());
            }
        }
        redacted
    }

    /// A JSON value: every string as text, arrays as argv, and whole values by their keys.
    pub fn value(&self, value: Value) -> Value {
        self.value_at(value, 0)
    }

    fn value_at(&self, value: Value, depth: usize) -> Value {
        match value {
            Value::Null | Value::Bool(_) => value,
            _ if depth > MAX_DEPTH => Value::from(REDACTED),
            Value::String(text) => Value::from(self.text(&text)),
            Value::Number(number) => {
                let text = number.to_string();
                if self.known().stands_in(&text) {
                    Value::from(REDACTED)
                } else {
                    Value::Number(number)
                }
            }
            Value::Array(values) => self.array(values, depth),
            Value::Object(object) => self.object(object, depth),
        }
    }

    fn array(&self, values: Vec<Value>, depth: usize) -> Value {
        let words: Vec<&str> = values
            .iter()
            .map(|v| v.as_str().unwrap_or_default())
            .collect();
        let argv = self.argv(&words);
        let hidden = words::hidden(&words);
        values
            .iter()
            .zip(argv)
            .enumerate()
            .map(|(at, (value, word))| match value {
                Value::String(_) => Value::from(word),
                Value::Null | Value::Bool(_) => value.clone(),
                // The value of a flag need not be a string: ["--pin", 1234].
                _ if hidden.iter().any(|h| h.word == at) => Value::from(REDACTED),
                other => self.value_at(other.clone(), depth + 1),
            })
            .collect()
    }

    fn object(&self, object: Map<String, Value>, depth: usize) -> Value {
        // {"name": "DB_PASSWORD", "value": "…"}: the key stands in a value.
        let named_secret = ["name", "key"]
            .iter()
            .any(|k| matches!(object.get(*k), Some(Value::String(s)) if key::looks_secret(s)));
        let redacted = object.into_iter().map(|(name, value)| {
            let secret = key::looks_secret(&name) || (named_secret && name == "value");
            let value = match value {
                Value::Null | Value::Bool(_) => value,
                _ if secret => Value::from(REDACTED),
                value => self.value_at(value, depth + 1),
            };
            (self.name(&name), value)
        });
        Value::Object(redacted.collect())
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts [`REDACTED`] in place of the spans; touching and overlapping ones become one.
    fn hide(&self, text: &str, mut spans: Vec<Range<usize>>) -> String {
        spans.sort_by_key(|span| (span.start, span.end));
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        let mut spans = spans.into_iter().peekable();
        while let Some(mut span) = spans.next() {
            while let Some(next) = spans.next_if(|next| next.start <= span.end) {
                span.end = span.end.max(next.end);
            }
            out.push_str(text.get(at..span.start).unwrap_or_default());
            out.push_str(REDACTED);
            at = span.end;
        }
        out.push_str(text.get(at..).unwrap_or_default());
        // What is left and right of a hidden part can make up a registered value together with it.
        if !self.known().stands_in(&out) {
            out
        } else if !self.known().stands_in(REDACTED) {
            REDACTED.to_owned()
        } else {
            String::new()
        }
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor")
            .field("registered", &self.known().len())
            .finish()
    }
}
