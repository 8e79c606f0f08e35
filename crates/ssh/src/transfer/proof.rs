//! The second read of many files: the host's own program reads each of them, and says its digests in one answer.

use std::time::Duration;

use super::far::{Far, first_line};
use super::tree::{Entry, Kind, Tree};
use super::upload::sum_limit;
use crate::command::Input;
use crate::error::Error;

/// `$1` the top; names by standard input, each ended by NUL. One line for each file that is there: digest, two
/// characters, name.
const PLAIN: &str = "cd -- \"$1\" || exit 1; \
    if command -v sha256sum >/dev/null 2>&1; then exec xargs -0 sha256sum --; \
    elif command -v shasum >/dev/null 2>&1; then exec xargs -0 shasum -a 256 --; \
    else exec xargs -0 openssl dgst -sha256 -r; fi";

/// The same for links, of which the text is read, and for names that these programs print otherwise than they are: one
/// line for each, in order, with a digest or none.
const ODD: &str = "cd -- \"$1\" || exit 1; \
    if command -v sha256sum >/dev/null 2>&1; then s=sha256sum; \
    elif command -v shasum >/dev/null 2>&1; then s=\"shasum -a 256\"; else s=\"openssl dgst -sha256 -r\"; fi; \
    exec xargs -0 sh -c 'for f do if [ -L \"$f\" ]; then readlink \"$f\" | $0; \
    elif [ -f \"$f\" ]; then $0 <\"$f\"; else echo none; fi; done' \"$s\"";

/// How many entries a second a host proves at least.
const SLOWEST_ENTRIES: u64 = 50;

/// What the host reads in each entry below `top`: a digest for files (and links) that are there, in the order of the
/// tree's entries.
pub(super) async fn read(
    far: &Far<'_>,
    top: &[u8],
    tree: &Tree,
    wanted: impl Fn(&Entry) -> bool,
) -> Result<Vec<Option<String>>, Error> {
    let is_odd = |entry: &Entry| entry.kind == Kind::Link || is_odd_name(&entry.path);
    let proved = |entry: &&Entry| entry.kind != Kind::Directory && wanted(entry);
    let chosen: Vec<&Entry> = tree.entries.iter().filter(proved).collect();
    let (odd, plain): (Vec<&Entry>, Vec<&Entry>) = chosen.iter().partition(|entry| is_odd(entry));
    let bytes = chosen.iter().map(|entry| entry.size);
    let count = u64::try_from(chosen.len()).unwrap_or(u64::MAX);
    let limit = sum_limit(bytes.fold(0, u64::saturating_add))
        .saturating_add(Duration::from_secs(count / SLOWEST_ENTRIES));
    let said = ask(far, PLAIN, top, &plain, limit).await?;
    let mut plain_sums = plain_sums(&said, &plain).into_iter();
    let said = ask(far, ODD, top, &odd, limit).await?;
    let mut odd_sums = said.split(|byte| *byte == b'\n').map(digest_at_start);
    let sum_of = |entry: &Entry| {
        if !(entry.kind != Kind::Directory && wanted(entry)) {
            None
        } else if is_odd(entry) {
            odd_sums.next().flatten()
        } else {
            plain_sums.next().flatten()
        }
    };
    Ok(tree.entries.iter().map(sum_of).collect())
}

async fn ask(
    far: &Far<'_>,
    script: &'static str,
    top: &[u8],
    entries: &[&Entry],
    limit: Duration,
) -> Result<Vec<u8>, Error> {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let names = names(entries.iter().copied());
    // Digest, name (a changed one in shasum's way at most) and what stands between.
    let max = names
        .len()
        .saturating_mul(2)
        .saturating_add(entries.len().saturating_mul(80));
    let input = Input::Bytes(names.into());
    let answer = far.gather(script, &[top], input, max, limit).await?;
    // 123: it could not read some of them, which shows in what is missing.
    if !matches!(answer.exit_code, 0 | 123) {
        let said = first_line(answer.complaint.as_bytes());
        let reason = format!("the host could not read it a second time: {said}");
        return Err(far.failed(&super::tree::shown(top), reason, None));
    }
    Ok(answer.out)
}

/// Names as `xargs -0` reads them; none is an option.
pub(super) fn names<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
    let mut names = Vec::new();
    for entry in entries {
        names.extend_from_slice(b"./");
        names.extend_from_slice(&entry.path);
        names.push(0);
    }
    names
}

/// Whether programs that print digests print this name with marks of their own.
fn is_odd_name(path: &[u8]) -> bool {
    path.iter()
        .any(|byte| matches!(byte, b'\n' | b'\r' | b'\\'))
}

/// The digests of these entries, out of lines in the same order, some of which may be missing.
fn plain_sums(said: &[u8], entries: &[&Entry]) -> Vec<Option<String>> {
    let mut lines = said.split(|byte| *byte == b'\n').peekable();
    let sum_of = |entry: &&Entry| {
        let line = lines.peek()?;
        let name = line.get(66..)?.strip_prefix(b"./")?;
        if name != entry.path {
            return None;
        }
        lines.next().and_then(digest_at_start)
    };
    entries.iter().map(sum_of).collect()
}

fn digest_at_start(line: &[u8]) -> Option<String> {
    let digest = line.get(..64)?;
    let ends = line.get(64).is_none_or(|byte| *byte == b' ');
    let text = String::from_utf8(digest.to_ascii_lowercase()).ok()?;
    (ends && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind: Kind::File,
            mode: 0,
            time_s: 0,
            size: 0,
            link: Vec::new(),
        }
    }

    #[test]
    fn lines_belong_to_names_and_missing_ones_are_missed() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let entries = [file("x"), file("gone"), file("y z")];
        let entries: Vec<&Entry> = entries.iter().collect();
        let said = format!("{a}  ./x\n{b} *./y z\n");
        let sums = plain_sums(said.as_bytes(), &entries);
        assert_eq!(sums, [Some(a), None, Some(b.clone())]);
        // Not hexadecimal; of another file; nothing at all.
        for said in [
            format!("{}  ./x\n", "g".repeat(64)),
            format!("{b}  ./q\n"),
            String::new(),
        ] {
            assert_eq!(
                plain_sums(said.as_bytes(), &entries),
                [None, None, None],
                "{said}"
            );
        }
    }
}
