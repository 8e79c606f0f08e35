//! The relay's API from inside the appliance: what `proximity-agent gateway …` speaks.
//!
//! One request a call over the relay's unix socket. Returns the answer's bytes as they came; what
//! they mean is the caller's business.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// An answer larger than this is not the relay's.
const ANSWER_MAX_BYTES: usize = 32 << 20;
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Longer than the relay's own deadline, whose answer tells more.
const ANSWER_DEADLINE: Duration = Duration::from_secs(200);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing was sent: the relay does not run, or not for us.
    #[error("the relay is not reachable at {}: {source}", path.display())]
    NotReachable {
        /// The relay's socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke after the request may have arrived.
    #[error("the relay did not answer: {0}")]
    Broken(String),
}

/// What the relay said.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body, JSON.
    pub body: Bytes,
}

/// Sends one request to the relay whose socket is `socket`.
pub async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Answer, ClientError> {
    let not_reachable = |source| ClientError::NotReachable {
        path: socket.to_owned(),
        source,
    };
    let stream = timeout(CONNECT_DEADLINE, UnixStream::connect(socket))
        .await
        .map_err(|elapsed| not_reachable(elapsed.into()))?
        .map_err(not_reachable)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "relay")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(broken)?;
    timeout(ANSWER_DEADLINE, exchange(stream, request))
        .await
        .map_err(broken)?
}

async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
) -> Result<Answer, ClientError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
        .collect()
        .await
        .map_err(broken)?
        .to_bytes();
    driver.abort();
    Ok(Answer { status, body })
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}
