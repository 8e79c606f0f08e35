//! A connection with its seat: bytes of any kind of socket, and the place that they take until the
//! socket is dropped, even after an upgrade has taken the socket away from HTTP.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bulk_stream::{Filled, ReadAhead};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::crowd::Seat;

/// Anything that carries a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    /// Whether its bytes leave this machine's kernel only to the peer: a unix socket, with or without
    /// TLS on it.
    fn is_local(&self) -> bool {
        false
    }

    /// The unix socket of a local one, in plain from here on. None when bytes were read ahead, too.
    fn into_unix(self: Box<Self>) -> Option<UnixStream> {
        None
    }
}

impl Duplex for TcpStream {}

impl Duplex for UnixStream {
    fn is_local(&self) -> bool {
        true
    }

    fn into_unix(self: Box<Self>) -> Option<UnixStream> {
        Some(*self)
    }
}

/// TLS on one of these.
type Secured = Filled<TlsStream<ReadAhead<Box<dyn Duplex>>>>;

impl Duplex for Secured {
    fn is_local(&self) -> bool {
        self.socket().is_local()
    }

    fn into_unix(self: Box<Self>) -> Option<UnixStream> {
        self.into_socket()?.into_unix()
    }
}

/// A connection and its seat. Boxed, so that there is one copy of the HTTP server in the binary and
/// not one for each kind of socket.
pub struct Seated {
    stream: Box<dyn Duplex>,
    seat: Seat,
}

impl Seated {
    /// Takes both.
    pub fn new(stream: impl Duplex + 'static, seat: Seat) -> Self {
        Self {
            stream: Box::new(stream),
            seat,
        }
    }

    /// Whether the connection is [local](Duplex::is_local).
    pub fn is_local(&self) -> bool {
        self.stream.is_local()
    }

    /// What is below a local connection, and its seat.
    pub fn into_unix(self) -> Option<(UnixStream, Seat)> {
        Some((self.stream.into_unix()?, self.seat))
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Seated {
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
