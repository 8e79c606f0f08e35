//! TLS connections between controller and agent that move bytes in large pieces.
//!
//! rustls asks its socket for 4 KiB at a time and gives out one record of 16 KiB at a time. A file of
//! 256 MiB is then 80,000 reads, and 16,000 pieces that every stage behind wakes up for. So:
//!
//! ```text
//!   socket ─▶ ReadAhead: 128 KiB a read ─▶ TLS ─▶ Filled: as many records as are there ─▶ HTTP
//!   socket ◀─ 128 KiB a write ◀─────────── TLS ◀──────────────────────────────────────── HTTP
//! ```
//!
//! A connection on which little is said reads as before: nothing is ever waited for once there is
//! something to give, and the buffer exists only while bytes flow. Never looks into the bytes.
//!
//! Between two ends on one machine a large file needs none of it: [`Filled::into_socket`] gives back the
//! socket below TLS, and [`pump`] leads what comes out of one socket into another.

pub mod pump;

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::ConnectionCommon;
use tokio_rustls::{client, server};

/// How much is read ahead of TLS, and how much TLS encrypts before it writes, in bytes. Twice this
/// much fits into a core's own cache.
const PIECE_BYTES: usize = 128 << 10;

/// A client's end of a TLS connection over `S`, made on a [`ReadAhead`].
pub fn of_client<S>(
    mut tls: client::TlsStream<ReadAhead<S>>,
) -> Filled<client::TlsStream<ReadAhead<S>>> {
    tls.get_mut().1.set_buffer_limit(Some(PIECE_BYTES));
    Filled::new(tls)
}

/// A server's end.
pub fn of_server<S>(
    mut tls: server::TlsStream<ReadAhead<S>>,
) -> Filled<server::TlsStream<ReadAhead<S>>> {
    tls.get_mut().1.set_buffer_limit(Some(PIECE_BYTES));
    Filled::new(tls)
}

/// A socket that is read in large pieces by somebody who asks for small ones.
#[derive(Debug)]
pub struct ReadAhead<S> {
    socket: S,
    buffer: Vec<u8>,
    /// How much of the buffer was given out.
    given: usize,
    /// The last read was filled to its end: more is likely to be there.
    flows: bool,
}

impl<S> ReadAhead<S> {
    /// Reads nothing yet.
    pub fn new(socket: S) -> Self {
        Self {
            socket,
            buffer: Vec::new(),
            given: 0,
            flows: false,
        }
    }

    /// The socket, unless something was read of it that nobody has taken.
    fn into_socket(self) -> Option<S> {
        (self.given >= self.buffer.len()).then_some(self.socket)
    }

    /// Gives out what was read ahead, if there is any.
    fn give(&mut self, to: &mut ReadBuf<'_>) -> bool {
        let rest = self.buffer.get(self.given..).unwrap_or_default();
        let length = rest.len().min(to.remaining());
        to.put_slice(rest.get(..length).unwrap_or_default());
        self.given += length;
        length > 0
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if to.remaining() == 0 || this.give(to) {
            return Poll::Ready(Ok(()));
        }
        if !this.flows {
            ready!(Pin::new(&mut this.socket).poll_read(context, to))?;
            this.flows = to.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        this.buffer.clear();
        this.given = 0;
        this.buffer.reserve_exact(PIECE_BYTES);
        let asked = to.remaining();
        match pin!(this.socket.read_buf(&mut this.buffer)).poll(context) {
            Poll::Ready(Ok(length)) => {
                this.flows = length >= asked;
                this.give(to);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                this.buffer = Vec::new();
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

/// A stream of which a read gives everything that is there, not only its next record.
#[derive(Debug)]
pub struct Filled<S> {
    stream: S,
    /// What the stream said after bytes that had to be given out first.
    failed: Option<io::Error>,
}

impl<S> Filled<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            failed: None,
        }
    }
}

impl<S> Filled<client::TlsStream<ReadAhead<S>>> {
    /// The socket below TLS, from here on in plain. None when it can't be had: something was read ahead
    /// of whoever asks, or is still to be written.
    pub fn into_socket(self) -> Option<S> {
        let (socket, mut tls) = self.stream.into_inner();
        (self.failed.is_none() && is_between_words(&mut tls)).then_some(())?;
        socket.into_socket()
    }
}

impl<S> Filled<server::TlsStream<ReadAhead<S>>> {
    /// The socket below TLS.
    pub fn socket(&self) -> &S {
        &self.stream.get_ref().0.socket
    }

    /// As the client's end has it.
    pub fn into_socket(self) -> Option<S> {
        let (socket, mut tls) = self.stream.into_inner();
        (self.failed.is_none() && is_between_words(&mut tls)).then_some(())?;
        socket.into_socket()
    }
}

/// Whether all that TLS took was given out, and all that it was given was written.
fn is_between_words<D>(tls: &mut ConnectionCommon<D>) -> bool {
    tls.process_new_packets()
        .is_ok_and(|state| state.plaintext_bytes_to_read() == 0 && state.tls_bytes_to_write() == 0)
}

impl<S: AsyncRead + Unpin> AsyncRead for Filled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Err(error));
        }
        let begin = to.filled().len();
        loop {
            let before = to.filled().len();
            match Pin::new(&mut this.stream).poll_read(context, to) {
                // The end; the next read says so again.
                Poll::Ready(Ok(())) if to.filled().len() == before => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if to.remaining() > 0 => {}
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Pending if before == begin => return Poll::Pending,
                Poll::Ready(Err(error)) if before == begin => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => {
                    this.failed = Some(error);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Filled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::task::Waker;

    /// Gives what it is told to, in these pieces.
    struct Script(VecDeque<Poll<io::Result<Vec<u8>>>>);

    impl AsyncRead for Script {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            to: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(next) = self.0.pop_front() else {
                return Poll::Ready(Ok(()));
            };
            let bytes = ready!(next)?;
            let (now, later) = bytes.split_at(bytes.len().min(to.remaining()));
            to.put_slice(now);
            if !later.is_empty() {
                self.0.push_front(Poll::Ready(Ok(later.to_vec())));
            }
            Poll::Ready(Ok(()))
        }
    }

    fn bytes(length: usize) -> Poll<io::Result<Vec<u8>>> {
        Poll::Ready(Ok(pattern(length)))
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 253) as u8).collect()
    }

    fn read(from: &mut (impl AsyncRead + Unpin), most: usize) -> Poll<io::Result<Vec<u8>>> {
        let mut space = vec![0; most];
        let mut to = ReadBuf::new(&mut space);
        let mut context = Context::from_waker(Waker::noop());
        ready!(Pin::new(from).poll_read(&mut context, &mut to))?;
        Poll::Ready(Ok(to.filled().to_vec()))
    }

    fn length(polled: Poll<io::Result<Vec<u8>>>) -> Option<usize> {
        match polled {
            Poll::Ready(read) => Some(read.unwrap().len()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn small_reads_of_much_are_one_large_read_and_silence_keeps_no_buffer() {
        let script = [bytes(100), bytes(1 << 20), Poll::Pending, bytes(7)];
        let mut ahead = ReadAhead::new(Script(script.into()));
        assert_eq!(length(read(&mut ahead, 4096)), Some(100));
        assert_eq!(ahead.buffer.capacity(), 0, "little is read as it was");
        let mut taken = Vec::new();
        while taken.len() < 1 << 20 {
            let Poll::Ready(Ok(piece)) = read(&mut ahead, 4096) else {
                panic!("it is all there");
            };
            assert!(!piece.is_empty());
            taken.extend(piece);
            assert!(ahead.buffer.capacity() <= PIECE_BYTES);
        }
        assert!(taken == pattern(1 << 20));
        assert_eq!(length(read(&mut ahead, 4096)), None);
        assert_eq!(ahead.buffer.capacity(), 0);
        assert_eq!(length(read(&mut ahead, 4096)), Some(7));
        assert_eq!(length(read(&mut ahead, 4096)), Some(0), "the end");
    }

    #[test]
    fn a_read_takes_what_is_there_and_an_end_or_an_error_comes_after_it() {
        let records = || [bytes(10), bytes(20), bytes(30)];
        let mut stream = Filled::new(Script(records().into()));
        assert_eq!(length(read(&mut stream, 25)), Some(25));
        assert_eq!(length(read(&mut stream, 100)), Some(35));
        assert_eq!(length(read(&mut stream, 100)), Some(0));

        let script = [bytes(10), Poll::Pending, bytes(20)];
        let mut stream = Filled::new(Script(script.into()));
        assert_eq!(
            length(read(&mut stream, 100)),
            Some(10),
            "it waits for nothing"
        );
        assert_eq!(length(read(&mut stream, 100)), Some(20));

        let cut = Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        let mut stream = Filled::new(Script([bytes(10), cut].into()));
        assert_eq!(length(read(&mut stream, 100)), Some(10));
        let Poll::Ready(Err(error)) = read(&mut stream, 100) else {
            panic!("a cut is no end");
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
