//! The forms in which a registered value can turn up. Pure.

const HEX: &[u8; 16] = b"0123456789abcdef";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// A shorter piece of Base64 or of a key file would be found by accident.
const MIN_PIECE_BYTES: usize = 8;

/// The value itself and its encodings, without repetition.
pub(super) fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![
        secret.to_owned(),
        percent(secret, b"-_.~"),
        percent(secret, b"-_.~/:@!$&'()*+,;="),
        percent(secret, b"*-._").replace("%20", "+"),
        secret.replace('\'', "'\\''"),
        secret.replace('\n', "\r\n"),
    ];
    if let Ok(json) = serde_json::to_string(secret) {
        let inner = json.strip_prefix('"').and_then(|s| s.strip_suffix('"'));
        forms.extend(inner.map(str::to_owned));
    }
    let hex = hex::encode(secret);
    forms.push(hex.to_ascii_uppercase());
    forms.push(hex);
    for shift in 0..3 {
        let piece = base64_piece(secret.as_bytes(), shift);
        if piece.len() >= MIN_PIECE_BYTES {
            forms.push(piece.replace('+', "-").replace('/', "_"));
            forms.push(piece);
        }
    }
    let lines = secret.lines().map(str::trim);
    forms.extend(
        lines
            .filter(|line| line.len() >= MIN_PIECE_BYTES && !line.starts_with("-----"))
            .map(str::to_owned),
    );
    forms.sort();
    forms.dedup();
    forms
}

fn percent(text: &str, kept: &[u8]) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let digit = |n: u8| HEX.get(usize::from(n)).copied().map_or('0', char::from);
            out.push('%');
            out.push(digit(byte >> 4).to_ascii_uppercase());
            out.push(digit(byte & 15).to_ascii_uppercase());
        }
    }
    out
}

/// The digits that `bytes` make up alone when `shift` other bytes stand before them in the Base64
/// group (as in `user:password`) and anything after them.
fn base64_piece(bytes: &[u8], shift: usize) -> String {
    let bits = |at: usize| {
        let byte = (at / 8).checked_sub(shift).and_then(|i| bytes.get(i));
        byte.is_some_and(|b| b >> (7 - at % 8) & 1 == 1)
    };
    let first = (shift * 8).div_ceil(6);
    let end = (shift + bytes.len()) * 8 / 6;
    (first..end)
        .map(|digit| {
            (0..6).fold(0, |value, bit| {
                value * 2 + usize::from(bits(digit * 6 + bit))
            })
        })
        .filter_map(|value| BASE64.get(value).copied().map(char::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_found_at_every_offset() {
        // "hunter2secret", "x:hunter2secret!" and "xy:…" as the base64 tool encodes them.
        for encoded in [
            "aHVudGVyMnNlY3JldA==",
            "eDpodW50ZXIyc2VjcmV0IQ==",
            "eDpvaHVudGVyMnNlY3JldA==",
            "aGh1bnRlcjJzZWNyZXQ=",
        ] {
            let found = forms("hunter2secret")
                .into_iter()
                .find(|f| encoded.contains(f));
            assert!(found.is_some_and(|f| f.len() >= 14), "{encoded}");
        }
    }

    #[test]
    fn other_encodings() {
        let forms = forms("p\"ä/ x'y");
        for form in [
            "p%22%C3%A4%2F%20x%27y",
            "p\\\"ä/ x'y",
            "p\"ä/ x'\\''y",
            "7022c3a42f20782779",
        ] {
            assert!(
                forms.iter().any(|f| f == form),
                "{form} is not in {forms:?}"
            );
        }
    }
}
