//! Leads bytes from one socket into another without looking at them: `splice` moves the kernel's own pages
//! through a pipe.
//!
//! For threads that may wait: the sockets block, and their own time limits end a wait. A source that gives
//! a little again and again is ended too: it may take [`SLACK`] beyond what its bytes need at
//! [`SLOWEST_BYTES_S`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What the pipe holds, in bytes, where the system lets us choose.
const PIPE_BYTES: usize = 1 << 20;

/// How long a source may be waited for, beyond what its bytes need.
const SLACK: Duration = Duration::from_secs(60);
/// The least that a source gives in a second, in bytes.
const SLOWEST_BYTES_S: u64 = 16 << 10;

/// Why not all bytes went over.
#[derive(Debug)]
pub enum PumpError {
    /// There is no pipe to be had. Nothing was moved.
    Pipe(io::Error),
    /// The socket that gives them ended or failed.
    Source(io::Error),
    /// The socket that takes them failed.
    Sink(io::Error),
}

impl std::fmt::Display for PumpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pipe(error) => write!(f, "no pipe can be had: {error}"),
            Self::Source(error) => write!(f, "its source broke off: {error}"),
            Self::Sink(error) => write!(f, "nobody takes it any more: {error}"),
        }
    }
}

impl std::error::Error for PumpError {}

/// Moves exactly so many bytes. What comes after them stays in `from`.
pub fn pump(from: impl AsFd, to: impl AsFd, count: u64) -> Result<(), PumpError> {
    let made = pipe_with(PipeFlags::CLOEXEC);
    let (out_of, into) = made.map_err(|e| PumpError::Pipe(e.into()))?;
    // A smaller one does it too.
    let _ = fcntl_setpipe_size(&into, PIPE_BYTES);
    let mut left = count;
    let mut waited = Duration::ZERO;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIPE_BYTES).min(PIPE_BYTES);
        let begun = Instant::now();
        let moved = spliced(&from, &into, most).map_err(PumpError::Source)?;
        waited += begun.elapsed();
        if waited > SLACK + Duration::from_secs(count.saturating_sub(left) / SLOWEST_BYTES_S) {
            return Err(PumpError::Source(io::ErrorKind::TimedOut.into()));
        }
        if moved == 0 {
            return Err(PumpError::Source(io::ErrorKind::UnexpectedEof.into()));
        }
        empty(&out_of, &to, moved).map_err(PumpError::Sink)?;
        left = left.saturating_sub(moved as u64);
    }
    Ok(())
}

fn empty(pipe: &OwnedFd, to: impl AsFd, mut left: usize) -> io::Result<()> {
    while left > 0 {
        let moved = spliced(pipe, &to, left)?;
        if moved == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        left = left.saturating_sub(moved);
    }
    Ok(())
}

fn spliced(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    loop {
        match splice(&from, None, &to, None, most, SpliceFlags::MOVE) {
            Err(Errno::INTR) => {}
            moved => return Ok(moved?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn moves_as_many_as_it_is_told_and_leaves_the_rest() {
        let (mut feeder, from) = UnixStream::pair().unwrap();
        let (to, mut taker) = UnixStream::pair().unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let sent = content.clone();
        let feeding = thread::spawn(move || {
            feeder.write_all(&sent).unwrap();
            feeder.write_all(b"and more").unwrap();
        });
        let count = content.len() as u64;
        let mut rest = from.try_clone().unwrap();
        let pumping = thread::spawn(move || pump(&from, &to, count).unwrap());
        let mut found = Vec::new();
        taker.read_to_end(&mut found).unwrap();
        assert!(found == content);
        pumping.join().unwrap();
        feeding.join().unwrap();
        let mut after = Vec::new();
        rest.read_to_end(&mut after).unwrap();
        assert_eq!(after, b"and more");
    }

    #[test]
    fn says_which_side_failed() {
        let (mut feeder, from) = UnixStream::pair().unwrap();
        let (to, _taker) = UnixStream::pair().unwrap();
        feeder.write_all(b"short").unwrap();
        drop(feeder);
        assert!(matches!(pump(&from, &to, 6), Err(PumpError::Source(_))));

        let (mut feeder, from) = UnixStream::pair().unwrap();
        let (to, taker) = UnixStream::pair().unwrap();
        feeder.write_all(b"bytes").unwrap();
        drop(taker);
        assert!(matches!(pump(&from, &to, 5), Err(PumpError::Sink(_))));

        let (_feeder, from) = UnixStream::pair().unwrap();
        let (to, _taker) = UnixStream::pair().unwrap();
        from.set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        assert!(matches!(pump(&from, &to, 1), Err(PumpError::Source(_))));
    }
}
