//! Copies bytes between two TCP connections until both have ended.
//!
//! The end of one direction is passed on while the other goes on (half-close). What is short is copied;
//! when much flows, the kernel moves it through a pipe, and no byte of it comes here:
//!
//! ```text
//!   read a little ▸ write it ─┬─ more may wait ──▶ splice into a pipe ▸ splice out of it, again and again
//!        ▲                    │                          │
//!        └────────────────────┴─────── silence ──────────┘
//! ```
//! Buffer and pipe exist only while bytes flow: a thousand silent tunnels cost their sockets. A side
//! that does not read slows its own tunnel and nobody else's.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::task::coop::consume_budget;
use tokio::time::timeout;

/// What a message rarely is longer than.
const BUFFER_BYTES: usize = 16 << 10;
/// The most that is moved at once; the slots of a pipe hold less.
const SPLICE_BYTES: usize = 1 << 20;
/// For so long a pipe is kept that nothing flows through.
const SILENCE: Duration = Duration::from_millis(50);

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
        let length = match from.try_read_buf(&mut buffer) {
            Ok(0) => return to.shutdown().await,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer).await?;
        drop(buffer);
        if length >= BUFFER_BYTES
            && let Ok(pipe) = Pipe::new()
        {
            pipe.pass(from.as_ref(), to.as_ref()).await?;
        }
    }
}

/// Moves bytes from socket to socket within the kernel.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new() -> rustix::io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer })
    }

    /// Until nothing comes for a while, or the end, which the next read sees again. Leaves nothing in
    /// the pipe.
    async fn pass(&self, from: &TcpStream, to: &TcpStream) -> io::Result<()> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            let taken = from.try_io(Interest::READABLE, || {
                Ok(splice(from, None, &self.writer, None, SPLICE_BYTES, flags)?)
            });
            let mut left = match taken {
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match timeout(SILENCE, from.readable()).await {
                        Ok(readable) => readable?,
                        Err(_) => return Ok(()),
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            if left == 0 {
                return Ok(());
            }
            while left > 0 {
                to.writable().await?;
                let given = to.try_io(Interest::WRITABLE, || {
                    Ok(splice(&self.reader, None, to, None, left, flags)?)
                });
                match given {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(given) => left -= given,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            // Other tunnels want to be served too.
            consume_budget().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (connected.unwrap(), accepted.unwrap().0)
    }

    fn pattern(length: usize, seed: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 251 + n * seed) as u8).collect()
    }

    #[tokio::test]
    async fn much_and_little_pass_both_ways_and_each_end_is_passed_on() {
        let ((near, mut one), (mut other, far)) = (pair().await, pair().await);
        let passage = tokio::spawn(async move { both_ways(&mut one, &mut other).await });
        let (up, down) = (pattern(3_000_001, 3), pattern(5_000_003, 7));
        let says = async |stream: TcpStream, words: &[u8]| {
            let (mut from, mut to) = stream.into_split();
            let mut heard = Vec::new();
            let speak = async {
                for piece in [1, 20_000, 16 << 10, 2_000_000] {
                    to.write_all(&words[..piece]).await.unwrap();
                }
                to.write_all(words).await.unwrap();
                to.shutdown().await.unwrap();
            };
            tokio::join!(speak, async { from.read_to_end(&mut heard).await.unwrap() });
            heard
        };
        let (heard_near, heard_far) = tokio::join!(says(near, &up), says(far, &down));
        let whole = |words: &[u8]| {
            let pieces = [1, 20_000, 16 << 10, 2_000_000].map(|piece| &words[..piece]);
            [pieces.concat(), words.to_vec()].concat()
        };
        assert!(heard_far == whole(&up));
        assert!(heard_near == whole(&down));
        passage.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_does_not_read_holds_up_the_sender_and_loses_nothing() {
        let ((mut near, mut one), (mut other, mut far)) = (pair().await, pair().await);
        let passage = tokio::spawn(async move { both_ways(&mut one, &mut other).await });
        let piece = pattern(1 << 20, 5);
        let (mut sent, most) = (0, 256 << 20);
        // The sockets take some; then nothing more, or this would never end.
        while let Ok(written) = timeout(
            Duration::from_secs(1),
            near.write(&piece[sent % (1 << 20)..]),
        )
        .await
        {
            sent += written.unwrap();
            assert!(sent < most, "it is kept somewhere: {sent} bytes");
        }
        near.shutdown().await.unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len(), sent);
        assert!(
            heard
                .chunks(1 << 20)
                .all(|chunk| chunk == &piece[..chunk.len()])
        );
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
        passage.await.unwrap().unwrap();
    }
}
