//! Reads what a command writes, to its end, also when children of the command keep the stream open:
//! after the command itself has ended, what lies in the stream already is read however long its
//! taker needs, and what still comes is waited for at most [`DRAIN`].

use std::future::Future;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

/// How long output may still come after the command itself ended, from children that kept the stream.
const DRAIN: Duration = Duration::from_millis(200);
/// A chunk is at most this long.
const CHUNK_BYTES: usize = 32 << 10;

/// Who takes what a command writes.
pub trait Taker {
    /// Takes a chunk; false when no more is wanted.
    fn take(&mut self, chunk: &[u8]) -> impl Future<Output = bool> + Send;
}

/// Gives every chunk to `taker` until the stream ends, or until it wants no more.
pub async fn read_all<R, T>(mut from: R, mut ended: watch::Receiver<bool>, taker: &mut T)
where
    R: AsyncRead + AsFd + Unpin,
    T: Taker,
{
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    // Once the command ended: until when to wait, and how many bytes lay in the stream by then.
    let mut rest: Option<(Instant, u64)> = None;
    loop {
        chunk.clear();
        let read = match rest {
            Some((until, 0)) => match timeout_at(until, from.read_buf(&mut chunk)).await {
                // Past its time a stream that always has something would never be left.
                Ok(read) if Instant::now() < until || matches!(read, Ok(0)) => read,
                _ => return,
            },
            Some(_) => from.read_buf(&mut chunk).await,
            None => tokio::select! {
                biased;
                () = async { drop(ended.wait_for(|ended| *ended).await) } => {
                    let waiting = rustix::io::ioctl_fionread(&from).unwrap_or(0);
                    rest = Some((Instant::now() + DRAIN, waiting));
                    continue;
                }
                read = from.read_buf(&mut chunk) => read,
            },
        };
        // A stream that can't be read any more has ended.
        let Ok(n @ 1..) = read else { return };
        if let Some((_, waiting)) = &mut rest {
            *waiting = waiting.saturating_sub(u64::try_from(n).unwrap_or(u64::MAX));
        }
        if !taker.take(&chunk).await {
            return;
        }
    }
}

/// How long a caller may take for one message after the command has ended. Until then the command
/// itself waits, and its deadline holds.
pub const UNREAD_DEADLINE: Duration = Duration::from_secs(60);

/// The way to a caller: a bounded queue, so that a caller that does not read slows its own command only.
/// Clones lead to the same caller.
#[derive(Clone)]
pub struct Outlet<T> {
    queue: mpsc::Sender<T>,
    ended: watch::Receiver<bool>,
    unread: Arc<AtomicBool>,
}

impl<T: Send> Outlet<T> {
    /// Into a queue; `ended` as in [`read_all`].
    pub fn new(queue: mpsc::Sender<T>, ended: watch::Receiver<bool>) -> Self {
        Self {
            queue,
            ended,
            unread: Arc::default(),
        }
    }

    /// Queues a message. False when the caller is gone or does not read.
    pub async fn send(&mut self, message: T) -> bool {
        let given_up = async {
            let ended = self.ended.wait_for(|ended| *ended).await;
            // Before the lock of the watched value is waited for by others.
            drop(ended);
            sleep(UNREAD_DEADLINE).await;
        };
        tokio::select! {
            biased;
            sent = self.queue.send(message) => sent.is_ok(),
            () = given_up => {
                self.unread.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// Whether something was dropped because the caller did not read.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }
}
