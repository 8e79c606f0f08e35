//! `testbed host -- CMD`: a host for as long as one command runs.
//!
//! Owns the host between start and end. The command enters through a process of its own, so that this
//! one stays on the machine and can end the host whatever becomes of the command.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use crate::enter::{Grace, Signals, attend, runtime};
use crate::error::{During, Result};
use crate::host::{Host, HostOptions};

/// How long a command may take to end after this process was told to.
const GRACE: Duration = Duration::from_secs(10);

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Nothing: the terminal is the command's.
    Quiet,
    /// The host's name, and how long its start and end took.
    Steps,
}

/// Starts a host, runs the command in it (none: only with `keep`), ends the host; the command's exit code.
pub fn run_in_host(options: HostOptions, argv: &[OsString], shown: Shown) -> Result<u8> {
    let say = |text: String| {
        if shown == Shown::Steps {
            eprintln!("testbed: {text}");
        }
    };
    let runtime = runtime()?;
    runtime.block_on(async {
        // Before the start: a Ctrl-C during it must not leave the end to the keeper alone.
        let mut signals = Signals::listen()?;
        let began = Instant::now();
        let host = Host::start(options)?;
        say(format!(
            "host {} up in {} ms, init is pid {}",
            host.name(),
            began.elapsed().as_millis(),
            host.pid()
        ));
        // What was told while the host started was told to us alone.
        let told = tokio::time::timeout(Duration::from_millis(1), signals.next())
            .await
            .ok();
        let code = if let Some(signal) = told {
            u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
        } else if argv.is_empty() {
            0
        } else {
            let child = tokio::process::Command::from(host.command(argv))
                .spawn()
                .during("run", "testbed enter")?;
            attend(child, &mut signals, Grace::Within(GRACE)).await?
        };
        let began = Instant::now();
        let name = host.name().clone();
        host.stop()?;
        say(format!(
            "host {name} done in {} ms, exit code {code}",
            began.elapsed().as_millis()
        ));
        Ok(code)
    })
}
