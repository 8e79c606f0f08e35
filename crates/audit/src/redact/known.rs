//! The registered values, and a search for all of them at once. Owns the values.
//!
//! Every form of a value is filed under its first bytes, so the time of a search goes with the
//! length of the text and not with how many values there are.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::{MIN_SECRET_BYTES, encoded};

type Begin = [u8; MIN_SECRET_BYTES];

/// All registered values.
#[derive(Default)]
pub(super) struct Known {
    values: BTreeMap<String, Vec<String>>,
    by_begin: HashMap<Begin, Vec<String>>,
}

impl Known {
    /// `value` and so each of its forms has at least [`MIN_SECRET_BYTES`].
    pub fn insert(&mut self, value: &str) {
        if self.values.contains_key(value) {
            return;
        }
        let forms = encoded::forms(value);
        for form in &forms {
            if let Some(begin) = form.as_bytes().first_chunk() {
                let filed = self.by_begin.entry(*begin).or_default();
                // Two values can have a form in common; it is filed once for each.
                filed.push(form.clone());
            }
        }
        self.values.insert(value.to_owned(), forms);
    }

    pub fn remove(&mut self, value: &str) {
        for form in self.values.remove(value).unwrap_or_default() {
            if let Some(begin) = form.as_bytes().first_chunk::<MIN_SECRET_BYTES>()
                && let Some(filed) = self.by_begin.get_mut(begin)
            {
                if let Some(at) = filed.iter().position(|f| *f == form) {
                    filed.swap_remove(at);
                }
                if filed.is_empty() {
                    self.by_begin.remove(begin);
                }
            }
        }
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Where registered values stand in `text`, overlapping ones too.
    pub fn find(&self, text: &str) -> impl Iterator<Item = Range<usize>> {
        let windows = if self.by_begin.is_empty() { "" } else { text };
        let begins = windows.as_bytes().windows(MIN_SECRET_BYTES).enumerate();
        begins.flat_map(move |(at, begin)| {
            let filed = <&Begin>::try_from(begin)
                .ok()
                .and_then(|begin| self.by_begin.get(begin));
            let rest = text.get(at..).unwrap_or_default();
            let found = filed.into_iter().flatten();
            found
                .filter(|form| rest.starts_with(form.as_str()))
                .map(move |form| at..at + form.len())
        })
    }

    pub fn stands_in(&self, text: &str) -> bool {
        self.find(text).next().is_some()
    }
}
