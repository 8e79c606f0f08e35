//! `version`: this program's, and the controller's if it answers.

use std::time::Duration;

use client::Client;
use serde_json::json;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::screen::Screen;

const PATIENCE: Duration = Duration::from_secs(3);

/// Prints both versions. That no controller answers is no failure here.
pub async fn run(client: Result<Client, Failure>, screen: &Screen) -> Result<Exit, Failure> {
    let ours = env!("CARGO_PKG_VERSION");
    let theirs = match client {
        Err(failure) => Err(failure.to_string()),
        Ok(client) => match tokio::time::timeout(PATIENCE, client.health()).await {
            Ok(Ok(health)) => Ok(health.version),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        },
    };
    if screen.json() {
        let (server, reason) = match theirs {
            Ok(version) => (Some(version), None),
            Err(reason) => (None, Some(reason)),
        };
        let document = json!({ "client": ours, "server": server, "server_unreachable": reason });
        screen.document(&document)?;
        return Ok(Exit::OK);
    }
    let server = match theirs {
        Ok(version) => guest_text::line(&version),
        Err(reason) => format!("- ({})", guest_text::line(&reason)),
    };
    screen.print(&format!("proximity   {ours}\ncontroller  {server}"))?;
    Ok(Exit::OK)
}
