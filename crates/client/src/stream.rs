//! Connections of their own, for what does not fit into a request and its answer: sessions, files of any
//! size, tunnels.
//!
//! Speaks HTTP/1.1 over the controller's unix socket, TCP or TLS, with the same token and the same
//! trust as the other calls. Goes straight to the controller: a proxy of the environment is not asked.
//! A connection may be silent for long, so it is TCP that finds a dead peer (keep-alive, and a limit
//! for what is not acknowledged): two minutes at most. Never sends anything twice.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, HOST, HeaderName, UPGRADE, USER_AGENT};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::connection::{CALL_DEADLINE, CONNECT_DEADLINE, Client, PROBLEM_LIMIT};
use crate::endpoint::Endpoint;
use crate::error::{Error, chain};

/// Silence after which TCP asks whether the peer is there, and how often it asks.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_PROBES: u32 = 3;
/// What is not acknowledged for so long ends the connection.
const UNACKNOWLEDGED_MS: u32 = 120_000;

/// A connection that was a request before.
pub type Tunnel = TokioIo<Upgraded>;

/// The body of a request on such a connection.
pub(crate) type StreamBody = BoxBody<Bytes, io::Error>;

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket, if it is the unix one.
    fn into_unix(self: Box<Self>) -> Option<UnixStream> {
        None
    }
}

impl Transport for UnixStream {
    fn into_unix(self: Box<Self>) -> Option<UnixStream> {
        Some(*self)
    }
}
impl Transport for TcpStream {}
impl Transport for TlsStream<TcpStream> {}

/// The unix socket below an answer with status 101, blocking, for threads.
pub(crate) async fn unix_below(response: Response<Incoming>) -> io::Result<StdUnixStream> {
    let upgraded = timeout(CALL_DEADLINE, hyper::upgrade::on(response)).await?;
    let upgraded = upgraded.map_err(io::Error::other)?;
    let parts = upgraded.downcast::<TokioIo<Box<dyn Transport>>>();
    let parts = parts.map_err(|_| io::Error::other("no connection of ours"))?;
    let socket = parts.io.into_inner().into_unix();
    let socket = socket.filter(|_| parts.read_buf.is_empty());
    let socket = socket.ok_or_else(|| io::Error::other("the server did not wait"))?;
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// A request before it is sent.
pub(crate) struct StreamCall<'a> {
    pub method: Method,
    pub path: Vec<&'a str>,
    pub query: Vec<(&'static str, String)>,
    pub headers: Vec<(HeaderName, String)>,
    pub body: StreamBody,
    /// How long the head of the answer may take; a body that is still sent counts.
    pub deadline: Option<Duration>,
}

impl<'a> StreamCall<'a> {
    pub(crate) fn new(method: Method, path: &[&'a str]) -> Self {
        Self {
            method,
            path: path.to_vec(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Empty::new().map_err(|never| match never {}).boxed(),
            deadline: Some(CALL_DEADLINE),
        }
    }

    pub(crate) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|v| (name, v.to_string())));
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

impl Client {
    /// Sends a request on a connection of its own. What is neither a success nor 101 becomes an error.
    pub(crate) async fn stream(&self, call: StreamCall<'_>) -> Result<Response<Incoming>, Error> {
        let mut url = self.endpoint().url(&call.path)?;
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let mut sender = self.open(&url).await?;
        let deadline = call.deadline;
        let request = self.head(&url, call)?;
        let answer = sender.send_request(request);
        let answer = match deadline {
            None => answer.await,
            Some(deadline) => timeout(deadline, answer)
                .await
                .map_err(|_| self.lost(format!("no answer within {} s", deadline.as_secs())))?,
        };
        let response = answer.map_err(|e| self.lost(chain(&e)))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), PROBLEM_LIMIT).collect();
        let body = match timeout(CALL_DEADLINE, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(e)) => return Err(self.lost(chain(e.as_ref()))),
            Err(_) => return Err(self.lost("the answer broke off".to_owned())),
        };
        Err(self.refusal(status.as_u16(), &body))
    }

    /// Asks for another protocol on a connection of its own.
    pub(crate) async fn upgrade(
        &self,
        call: StreamCall<'_>,
        protocol: &str,
    ) -> Result<(Response<()>, Tunnel), Error> {
        let call = call.header(CONNECTION, "Upgrade").header(UPGRADE, protocol);
        let response = self.stream(call).await.map_err(|error| match error {
            // What is upgraded has not begun: nothing was carried out.
            Error::Interrupted { cause, .. } => self.unreachable(cause, None),
            error => error,
        })?;
        let upgraded = response
            .headers()
            .get(UPGRADE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.eq_ignore_ascii_case(protocol));
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !upgraded {
            let status = response.status();
            return Err(self.protocol(format!("{status} where `{protocol}` was asked for")));
        }
        let (head, body) = response.into_parts();
        let response = Response::from_parts(head.clone(), body);
        let upgraded = timeout(CALL_DEADLINE, hyper::upgrade::on(response))
            .await
            .map_err(|_| self.unreachable("the connection was not upgraded".to_owned(), None))?
            .map_err(|e| self.unreachable(chain(&e), None))?;
        Ok((Response::from_parts(head, ()), TokioIo::new(upgraded)))
    }

    fn head(&self, url: &Url, call: StreamCall<'_>) -> Result<Request<StreamBody>, Error> {
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let mut request = Request::builder()
            .method(call.method)
            .uri(target)
            .header(HOST, host)
            .header(USER_AGENT, concat!("proximity/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*");
        if let Some(token) = self.token() {
            request = request.header(AUTHORIZATION, token.header()?);
        }
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        request
            .body(call.body)
            .map_err(|e| self.protocol(e.to_string()))
    }

    async fn open(&self, url: &Url) -> Result<SendRequest<StreamBody>, Error> {
        let transport = timeout(CONNECT_DEADLINE, self.transport(url))
            .await
            .unwrap_or_else(|elapsed| Err(elapsed.into()))
            .map_err(|e| self.unreachable(chain(&e), Some(e.kind())))?;
        let (sender, connection) = http1::handshake(TokioIo::new(transport))
            .await
            .map_err(|e| self.unreachable(chain(&e), None))?;
        // Ends with the connection; what goes wrong is seen by whoever uses it.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    async fn transport(&self, url: &Url) -> io::Result<Box<dyn Transport>> {
        if let Endpoint::Unix(path) = self.endpoint() {
            return Ok(Box::new(UnixStream::connect(path).await?));
        }
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or_default();
        let tcp = TcpStream::connect((host, port)).await?;
        keep_alive(&tcp)?;
        if !self.endpoint().is_tls() {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let config = rustls::ClientConfig::builder()
            .with_platform_verifier()
            .map_err(io::Error::other)?
            .with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Box::new(tls.connect(name, tcp).await?))
    }

    /// The request may have been carried out.
    pub(crate) fn lost(&self, cause: String) -> Error {
        Error::Interrupted {
            tried: self.endpoint().to_string(),
            cause,
        }
    }

    fn unreachable(&self, cause: String, kind: Option<io::ErrorKind>) -> Error {
        Error::Unreachable {
            tried: self.endpoint().to_string(),
            cause,
            next: self.next_step(kind),
        }
    }
}

fn keep_alive(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(tcp, KEEP_ALIVE)?;
    sockopt::set_tcp_keepcnt(tcp, KEEP_ALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(tcp, UNACKNOWLEDGED_MS)?;
    Ok(())
}
