//! Reads quantities as people write them: `0.5` or `500m` of a core, `256M`, `8G`, `30s`.

use std::time::Duration;

/// Thousandths of a core: `0.5`, `2`, `500m`.
pub fn cpu_millis(text: &str) -> Result<u32, String> {
    let wrong = || "write cores like 0.5 or 2, or thousandths like 500m".to_owned();
    let millis = match text.strip_suffix('m') {
        Some(number) => number.parse::<u32>().map_err(|_| wrong())?,
        None => thousandths(text).ok_or_else(wrong)?,
    };
    if millis == 0 {
        return Err("it must be more than nothing".to_owned());
    }
    Ok(millis)
}

/// A decimal number of at most three places, exactly, without floating point.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(places) || places.len() > 3 {
        return None;
    }
    let places: u32 = format!("{places:0<3}").parse().ok()?;
    whole
        .parse::<u32>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(places)
}

/// MiB: `256M`, `256MiB`, `1G`.
pub fn memory_mb(text: &str) -> Result<u32, String> {
    let wrong = || "write MiB or GiB, like 256M or 1G".to_owned();
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor = match unit {
        "M" | "MB" | "Mi" | "MiB" => 1,
        "G" | "GB" | "Gi" | "GiB" => 1024,
        _ => return Err(wrong()),
    };
    positive(number, factor).ok_or_else(wrong)
}

/// GiB: `8G`, `8GiB`.
pub fn disk_gb(text: &str) -> Result<u32, String> {
    let wrong = || "write GiB, like 8G".to_owned();
    match split(text) {
        Some((number, "G" | "GB" | "Gi" | "GiB")) => positive(number, 1).ok_or_else(wrong),
        Some((number, "T" | "TB" | "Ti" | "TiB")) => positive(number, 1024).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// Bytes: `512K`, `10M`, `1G`; a bare number is bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "write a size like 512K, 10M or 1G".to_owned();
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let shift = match unit {
        "" | "B" => 0,
        "K" | "KB" | "Ki" | "KiB" => 10,
        "M" | "MB" | "Mi" | "MiB" => 20,
        "G" | "GB" | "Gi" | "GiB" => 30,
        _ => return Err(wrong()),
    };
    match number {
        0 => Err(wrong()),
        number => Ok(u64::from(number) << shift),
    }
}

/// A duration: `500ms`, `30s`, `5m`, `1h`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration like 500ms, 30s, 5m or 1h".to_owned();
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let millis = positive(number, factor).ok_or_else(wrong)?;
    Ok(Duration::from_millis(u64::from(millis)))
}

fn split(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, unit))
}

fn positive(number: u32, factor: u32) -> Option<u32> {
    number.checked_mul(factor).filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: PartialEq + std::fmt::Debug>(
        parse: impl Fn(&str) -> Result<T, String>,
        good: &[(&str, T)],
        bad: &[&str],
    ) {
        for (text, value) in good {
            assert_eq!(parse(text).as_ref(), Ok(value), "{text}");
        }
        for text in bad {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities() {
        check(
            cpu_millis,
            &[
                ("0.5", 500),
                ("2", 2000),
                ("500m", 500),
                ("1.25", 1250),
                ("0.001", 1),
            ],
            &[
                "", "0", "0m", "m", ".5", "1.", "-1", "1.2345", "1e3", "5000000", "0x1", "+1",
            ],
        );
        check(
            memory_mb,
            &[("256M", 256), ("1G", 1024), ("2GiB", 2048), ("64MB", 64)],
            &["256", "0M", "M", "1.5G", "-1M", "1K", "5000000G", "1g"],
        );
        check(
            disk_gb,
            &[("8G", 8), ("1T", 1024)],
            &["8", "500M", "0G", "G"],
        );
        check(
            duration,
            &[
                ("30", Duration::from_secs(30)),
                ("500ms", Duration::from_millis(500)),
                ("5m", Duration::from_secs(300)),
                ("1h", Duration::from_secs(3600)),
            ],
            &["", "0", "0s", "s", "1d", "1 s", "-1s", "99999999h"],
        );
    }
}
