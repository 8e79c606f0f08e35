//! The signals that ask a long command to end, so that it can tidy up first: put the terminal back,
//! remove a half-written file, end what runs in the guest.
//!
//! A signal that was ignored when the program started stays ignored, as `nohup` and shells want for what
//! runs in the background.

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;
use crate::failure::Failure;

const HANGUP: i32 = 1;
const INTERRUPT: i32 = 2;
const QUIT: i32 = 3;
const TERMINATE: i32 = 15;

/// Signals that end the program.
pub struct Signals([Option<Signal>; 4]);

impl Signals {
    /// From now on they are reported and do not end the program by themselves.
    pub fn new() -> Result<Self, Failure> {
        let ignored = fs::read_to_string("/proc/self/status")
            .map(|status| ignored_in(&status))
            .unwrap_or_default();
        let open = |number: i32| match ignored >> (number - 1) & 1 {
            1 => Ok(None),
            _ => signal(SignalKind::from_raw(number)).map(Some),
        };
        let all = || {
            Ok([
                open(HANGUP)?,
                open(INTERRUPT)?,
                open(QUIT)?,
                open(TERMINATE)?,
            ])
        };
        all()
            .map(Self)
            .map_err(|e: std::io::Error| Failure::local(format!("cannot receive signals: {e}")))
    }

    /// Waits for one of them; the failure with which the command ends then.
    pub async fn next(&mut self) -> Failure {
        let [hangup, interrupt, quit, terminate] = &mut self.0;
        let number = tokio::select! {
            () = received(hangup) => HANGUP,
            () = received(interrupt) => INTERRUPT,
            () = received(quit) => QUIT,
            () = received(terminate) => TERMINATE,
        };
        if number == INTERRUPT {
            Failure::Interrupted { hint: None }
        } else {
            Failure::Reported(Exit::of_signal(number))
        }
    }
}

/// Returns when the signal came; never, when it is not listened for.
pub async fn received(signal: &mut Option<Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// The mask of ignored signals in `/proc/PID/status`.
fn ignored_in(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::ignored_in;

    #[test]
    fn ignored_signals_are_read() {
        assert_eq!(ignored_in("Name:\tx\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored_in("Name:\tx\n"), 0);
    }
}
