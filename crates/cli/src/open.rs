//! `open`: prints an app's URL and hands it to the desktop's browser.
//!
//! The browser is started where there is one to start: standard output is a terminal, a display is
//! set, and we are not root (a browser has no business to run as root). The URL is printed always.

use std::process::{Command, Stdio};

use client::Client;

use crate::arguments::OpenArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::screen::Screen;

/// Prints, and opens.
pub async fn run(client: &Client, args: &OpenArgs, screen: &Screen) -> Result<Exit, Failure> {
    let app = client.app(&args.name).await?;
    if screen.json() {
        screen.document(&serde_json::json!({ "name": app.name, "url": app.url }))?;
        return Ok(Exit::OK);
    }
    screen.print(&guest_text::line(&app.url))?;
    if !args.print && screen.out().terminal && has_desktop() && is_web(&app.url) {
        let started = Command::new("xdg-open")
            .arg(&app.url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if let Err(e) = started {
            screen.note(&format!("cannot start the browser (xdg-open): {e}"));
        }
    }
    Ok(Exit::OK)
}

fn has_desktop() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    (set("WAYLAND_DISPLAY") || set("DISPLAY")) && !rustix::process::geteuid().is_root()
}

/// Only what a browser should see: no other scheme, nothing that reads as a flag.
fn is_web(url: &str) -> bool {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|r| !r.is_empty() && r.bytes().all(|b| b.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    use super::is_web;

    #[test]
    fn only_web_addresses_are_opened() {
        for (url, yes) in [
            ("https://web.prox.local", true),
            ("http://10.20.0.1:8080/x?y", true),
            ("file:///etc/passwd", false),
            ("--help", false),
            ("https://", false),
            ("https://a\nb", false),
        ] {
            assert_eq!(is_web(url), yes, "{url:?}");
        }
    }
}
