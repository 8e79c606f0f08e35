//! Copies of audit records for the machine's own log: one datagram of RFC 3164 for each to the socket that journald and
//! syslog daemons listen on.
//!
//! Never waits and never fails what is recorded: whatever goes wrong is a warning, said once until it works again. The
//! file in `audit_dir` is the record; this is a copy in other hands.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use audit::Witness;
use jiff::Timestamp;

/// Facility `authpriv`, severity `notice`.
const PRIORITY: u8 = 10 * 8 + 5;
/// What a record may have besides what the datagram needs; more is cut, and whoever wants it all reads the file.
const MAX_MESSAGE_BYTES: usize = 32 * 1024;

/// Sends each line of the log to this socket.
pub fn syslog(socket: PathBuf) -> Witness {
    let failing = AtomicBool::new(false);
    let sender = UnixDatagram::unbound().and_then(|sender| {
        sender.set_nonblocking(true)?;
        Ok(sender)
    });
    Arc::new(move |line: &str| {
        let sent = match &sender {
            Ok(sender) => sender
                .send_to(message(line).as_bytes(), &socket)
                .map(|_| ()),
            Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
        };
        let failed_before = failing.swap(sent.is_err(), Ordering::Relaxed);
        if let Err(error) = sent
            && !failed_before
        {
            let socket = socket.display();
            tracing::warn!(%socket, %error, "audit records do not reach syslog; they are in the log file all the same");
        }
    })
}

fn message(line: &str) -> String {
    let time = Timestamp::now().strftime("%b %e %H:%M:%S");
    let process = std::process::id();
    // Records are ASCII, so no character is cut.
    let line = line.get(..MAX_MESSAGE_BYTES).unwrap_or(line);
    format!("<{PRIORITY}>{time} proximity-remote[{process}]: {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_bounded_datagram() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("log");
        let witness = syslog(socket.clone());
        // Nobody listens: nothing happens.
        witness("{\"seq\":1}");
        let listener = UnixDatagram::bind(&socket).unwrap();
        witness("{\"seq\":2}");
        witness(&"x".repeat(100_000));
        let mut datagram = vec![0; 200_000];
        let length = listener.recv(&mut datagram).unwrap();
        let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
        assert!(text.starts_with("<85>"), "{text}");
        assert!(
            text.contains(" proximity-remote[") && text.ends_with("]: {\"seq\":2}"),
            "{text}"
        );
        assert!(listener.recv(&mut datagram).unwrap() < 40_000);
        // A listener that does not listen holds nobody up.
        (0..10_000).for_each(|_| witness("{\"seq\":3}"));
    }
}
