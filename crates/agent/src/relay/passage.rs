//! Copies bytes between two TCP connections until both have ended.
//!
//! The end of one direction is passed on while the other goes on (half-close). A buffer exists only
//! while bytes flow: a thousand silent tunnels cost their sockets. A side that does not read slows
//! its own tunnel and nobody else's.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// Large enough that the system calls are a small part of the work, and small enough that the
/// allocator has it at hand.
const BUFFER_BYTES: usize = 64 << 10;

/// Passes everything on. An error of either side ends both: a connection that broke must not look
/// like one that ended.
pub async fn both_ways(one: &mut TcpStream, other: &mut TcpStream) -> io::Result<()> {
    let (from_one, to_one) = one.split();
    let (from_other, to_other) = other.split();
    tokio::try_join!(pass(from_one, to_other), pass(from_other, to_one))?;
    Ok(())
}

async fn pass(from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        loop {
            buffer.clear();
            match from.try_read_buf(&mut buffer) {
                Ok(0) => return to.shutdown().await,
                Ok(_) => to.write_all(&buffer).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}
