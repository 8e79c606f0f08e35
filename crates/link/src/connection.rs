//! One HTTP/1.1 connection to a peer. It ends when it is dropped, whatever the peer does.

use std::io;
use std::time::Duration;

use bulk_stream::{Filled, ReadAhead};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// A connection made inside a guest's own network.
pub(crate) type Inside = Filled<TlsStream<ReadAhead<UnixStream>>>;

/// The body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The headers of an answer, and its trailers, are at most this long.
const HEADER_MAX_BYTES: usize = 16 << 10;
/// The most that is read ahead of whoever takes the body.
const BUFFER_MAX_BYTES: usize = 256 << 10;
/// A connection that was just used is ready as soon as its task has run; one that is not by then has
/// something unfinished on it.
const READY_WITHIN: Duration = Duration::from_millis(20);

/// Why a request has no answer.
pub(crate) enum SendError {
    /// Not a byte of it was sent; here it is again.
    Unsent(Box<Request<Body>>),
    /// It was sent, at least in part.
    Broken(String),
}

/// See the module's documentation.
pub(crate) struct Connection {
    sender: SendRequest<Body>,
    driver: AbortHandle,
}

impl Connection {
    /// Begins to speak HTTP on a stream. Sends nothing.
    pub async fn over<S>(stream: S) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = Builder::new()
            .max_header_size(HEADER_MAX_BYTES)
            .max_buf_size(BUFFER_MAX_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an agent ended");
            }
        })
        .abort_handle();
        Ok(Self { sender, driver })
    }

    /// Whether it can take a request: not closed by the peer, nothing unfinished on it.
    pub async fn is_ready(&mut self) -> bool {
        matches!(timeout(READY_WITHIN, self.sender.ready()).await, Ok(Ok(())))
    }

    /// Sends a request and waits for the head of its answer. Has no deadline of its own: dropping the
    /// connection ends it.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        self.sender
            .try_send_request(request)
            .await
            .map_err(|mut failed| match failed.take_message() {
                Some(request) => SendError::Unsent(Box::new(request)),
                None => SendError::Broken(describe(&failed.into_error())),
            })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What hyper says, with the causes below, which hold what really happened.
pub(crate) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
