//! How far a copy is: one living line on a terminal, nothing anywhere else.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::interval;

use crate::screen::Screen;

const FRAME: Duration = Duration::from_millis(100);

/// Counts the bytes of one copy and shows them.
pub struct Meter {
    done: Arc<AtomicU64>,
    total: Option<u64>,
    shown: bool,
    start: Instant,
}

impl Meter {
    /// For a copy of `total` bytes, if that is known.
    pub fn new(total: Option<u64>, screen: &Screen) -> Self {
        Self {
            done: Arc::default(),
            total,
            shown: screen.progress().is_some_and(|look| look.terminal),
            start: Instant::now(),
        }
    }

    /// Where the bytes are counted.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }

    /// Shows the line again and again; never returns.
    pub async fn show(&self) -> Infallible {
        if !self.shown {
            return std::future::pending().await;
        }
        let mut frames = interval(FRAME);
        loop {
            frames.tick().await;
            let done = self.done.load(Ordering::Relaxed);
            let line = line(done, self.total, self.start.elapsed());
            // Progress that can't be shown is no failure.
            let _ = write!(io::stderr().lock(), "\r\x1b[2K{line}");
        }
    }
}

// The line goes, whatever the copy came to.
impl Drop for Meter {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr().lock(), "\r\x1b[2K");
        }
    }
}

fn line(done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let of = total.map(|total| format!(" of {}", bytes(total)));
    let seconds = elapsed.as_secs().max(1);
    format!(
        "{}{}, {}/s",
        bytes(done),
        of.unwrap_or_default(),
        bytes(done.checked_div(seconds).unwrap_or(0))
    )
}

/// A size for people: `12 bytes`, `1.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in units {
        if bytes >> shift > 0 {
            let tenths = (bytes >> (shift - 10)).saturating_mul(10) >> 10;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |size: u64, text: &str| assert_eq!(bytes(size), text);
        check(0, "0 bytes");
        check(1023, "1023 bytes");
        check(1536, "1.5 KiB");
        check(50 << 20, "50.0 MiB");
        check((3 << 30) - 1, "2.9 GiB");
        assert_eq!(
            line(3 << 20, Some(6 << 20), Duration::from_secs(3)),
            "3.0 MiB of 6.0 MiB, 1.0 MiB/s"
        );
    }
}
