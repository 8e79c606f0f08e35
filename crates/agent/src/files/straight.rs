//! Files over the bare socket of a connection of this machine (see [`api::file`], "Straight"): no TLS, no HTTP,
//! no queue. The thread of the request reads and writes the socket itself:
//!
//! ```text
//!   handler: may it? ─▶ thread: open ─▶ handler: 101 ─▶ thread: socket ◀──▶ file
//! ```
//!
//! Only who asked over TLS with a token gets so far, and only on a unix socket: what leaves the machine is
//! never in plain.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use api::file::{GO, STRAIGHT, UploadEnd, Written};
use axum::extract::Request;
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout;

use super::{FileError, IDLE};
use crate::door::{self, Local, Seat};
use crate::upgrade;

/// Between the answer and the socket below it.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);

/// A request that may go straight, until it does.
pub struct Straight {
    upgrade: OnUpgrade,
    to_thread: SyncSender<Connection>,
}

/// Where the thread of such a request waits for its socket.
pub struct Awaited(Receiver<Connection>);

/// The socket. It keeps its seat at the door.
pub struct Connection {
    socket: UnixStream,
    _seat: Seat,
}

/// Whether a request asks for it and came by a way that allows it.
pub fn asked_for(request: &mut Request) -> Option<(Straight, Awaited)> {
    request.extensions().get::<Local>()?;
    upgrade::is_asked_for(request.headers(), STRAIGHT).then_some(())?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>()?;
    let (to_thread, awaited) = sync_channel(1);
    let straight = Straight { upgrade, to_thread };
    Some((straight, Awaited(awaited)))
}

impl Straight {
    /// The answer after which the thread has the socket.
    pub fn go(self) -> Response {
        tokio::spawn(async move {
            let connection = timeout(UPGRADE_DEADLINE, door::straight(self.upgrade)).await;
            match connection.map_err(io::Error::from).flatten() {
                Ok((socket, seat)) => {
                    let connection = Connection {
                        socket,
                        _seat: seat,
                    };
                    // A thread that has ended needs none.
                    let _ = self.to_thread.try_send(connection);
                }
                Err(error) => tracing::debug!(%error, "a file could not go straight"),
            }
        });
        upgrade::switching(STRAIGHT)
    }
}

impl Awaited {
    /// The socket; an error when it does not come, or its handler has gone.
    pub fn wait(self) -> io::Result<Connection> {
        let connection = self.0.recv_timeout(UPGRADE_DEADLINE + IDLE);
        let connection = connection.map_err(|error| match error {
            RecvTimeoutError::Timeout => io::Error::from(io::ErrorKind::TimedOut),
            RecvTimeoutError::Disconnected => io::ErrorKind::ConnectionAborted.into(),
        })?;
        connection.socket.set_read_timeout(Some(IDLE))?;
        connection.socket.set_write_timeout(Some(IDLE))?;
        Ok(connection)
    }
}

impl Connection {
    /// Waits until the client has left HTTP behind.
    pub fn wait_for_go(&mut self) -> io::Result<()> {
        let mut word = [0];
        self.socket.read_exact(&mut word)?;
        if word == [GO] {
            return Ok(());
        }
        Err(io::Error::other("the client said something else"))
    }

    /// What came of it, in `buffer`; never more. The end is an error.
    pub fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.socket.read(buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(length),
        }
    }

    /// The digest behind the bytes.
    pub fn take_digest(&mut self) -> io::Result<super::Sha256> {
        let mut digest = super::Sha256::default();
        self.socket.read_exact(&mut digest)?;
        Ok(digest)
    }

    /// Gives the client bytes.
    pub fn give(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Tells how an upload ended, and ends the connection.
    pub fn end(mut self, outcome: Result<Written, FileError>) -> io::Result<()> {
        let end = match outcome {
            Ok(written) => UploadEnd::Written(written),
            Err(error) => UploadEnd::Problem(error.problem()),
        };
        self.socket.write_all(&serde_json::to_vec(&end)?)
    }
}
