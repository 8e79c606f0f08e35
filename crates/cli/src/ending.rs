//! Says to whoever works in a sandbox that its time is nearly over: one line, once for each end.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use api::InstanceName;
use client::Client;
use tokio::time::sleep;

use crate::progress::elapsed;
use crate::screen::Screen;

/// How often the sandbox is asked about while the controller can't be reached.
const RETRY: Duration = Duration::from_secs(10);
/// The longest time between two looks: somebody may have changed its end.
const LONGEST: Duration = Duration::from_secs(600);

/// Watches the sandbox for as long as this is awaited. What is no sandbox is not watched. In raw mode the
/// terminal does not return to the beginning of a line by itself.
pub async fn announce(
    client: &Client,
    name: &InstanceName,
    raw: bool,
    screen: &Screen,
) -> Infallible {
    let mut warned_of = String::new();
    loop {
        let pause = match client.sandbox(name.as_str()).await {
            Ok(sandbox) if sandbox.warned_in_s > 0 => Duration::from_secs(sandbox.warned_in_s),
            Ok(sandbox) => {
                if warned_of != sandbox.expires_at {
                    let left = elapsed(Duration::from_secs(sandbox.expires_in_s));
                    let text = format!(
                        "proximity: {name} ends in {left}; more time: proximity sandbox extend {name}"
                    );
                    let (before, after) = if raw { ("\r\n", "\r") } else { ("", "") };
                    screen.note(&format!("{before}{text}{after}"));
                    warned_of = sandbox.expires_at;
                }
                Duration::from_secs(sandbox.expires_in_s.max(1))
            }
            Err(client::Error::Problem(_)) => return pending().await,
            Err(_) => RETRY,
        };
        sleep(pause.min(LONGEST)).await;
    }
}
