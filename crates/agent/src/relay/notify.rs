//! Tells systemd how the relay is (sd_notify(3)): ready, its status, and that it still lives.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Sends a state like `READY=1`; does nothing when systemd did not start us.
pub fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let bytes = path.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|a| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &a));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd could not be notified");
    }
}

/// Tells systemd for ever that the event loop still turns, twice as often as it asks for.
pub async fn watchdog() {
    let asked = std::env::var("WATCHDOG_USEC")
        .ok()
        .and_then(|t| t.parse().ok());
    let Some(period) = asked.filter(|p| *p > 0).map(Duration::from_micros) else {
        return std::future::pending().await;
    };
    loop {
        send("WATCHDOG=1");
        tokio::time::sleep(period / 2).await;
    }
}
