//! Takes connections and serves HTTP on them: over TLS on TCP, or plainly on a unix socket.
//!
//! What a stranger can cost is bounded before anything of theirs is read: seats ([`crowd`]), time
//! (handshake and header within five seconds) and bytes (16 KiB of header). Who a caller is, is
//! decided behind the door by [`crate::trust::require`], which tells the door through [`Peer`].

pub mod crowd;
pub mod stream;

pub use crowd::{Crowd, Limits, Peer, Seat};

use std::convert::Infallible;
use std::fs::Permissions;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::SocketAddr as SocketName;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bulk_stream::ReadAhead;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tower::ServiceExt;
use wire::agent::AGENT_SOCKET_BUFFER_BYTES;

use crate::durable::{self, FileError};
use crate::trust::Trust;
use stream::Seated;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// A caller with a token may leave its connection unused for so long; others have five seconds.
const IDLE: Duration = Duration::from_secs(120);
const HEADER_MAX_BYTES: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// What is buffered of a request's body at a time.
const BUFFER_MAX_BYTES: usize = 128 << 10;
/// Pause after a connection could not be accepted, mostly for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// When a peer that says nothing is asked whether it is still there, how often, and how many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Begins to listen on TCP.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Begins to listen on a unix socket that only its owner can use: it appears with its mode.
pub fn listen_unix(path: &Path) -> Result<UnixListener, FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let first = path.with_file_name(format!(".{name}.new"));
    durable::remove_if_there(&first)?;
    let listener = UnixListener::bind(&first).map_err(FileError::new("listen on", path))?;
    std::fs::set_permissions(&first, Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&first, path))
        .map_err(FileError::new("place", path))?;
    Ok(listener)
}

/// Begins to listen on an abstract unix socket, which everybody in this network namespace can use.
pub fn listen_abstract(name: &str) -> io::Result<UnixListener> {
    let address = SocketName::from_abstract_name(name)?;
    let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Sends small pieces at once, and notices a peer that vanished.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    // What is made for long ways (BBR) paces each burst by a timer, which within one machine costs more
    // than the sending. A kernel that offers no choice keeps its own.
    let _ = sockopt::set_tcp_congestion(socket, wire::tunnel::CONGESTION);
    Ok(())
}

/// A listener of either kind.
pub trait Listener {
    /// What it gives.
    type Stream: Send + 'static;
    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        tune(&stream)?;
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn next(&self) -> io::Result<Self::Stream> {
        let (stream, _) = self.accept().await?;
        // At most what the node's administrator lets everybody have.
        let _ = sockopt::set_socket_send_buffer_size(stream.as_fd(), AGENT_SOCKET_BUFFER_BYTES);
        Ok(stream)
    }
}

/// Accepts for ever, and gives each connection with its seat to `serve` in a task of its own, which
/// ends when the connection is shown out.
pub async fn accept<L, F, S>(listener: L, crowd: Arc<Crowd>, serve: F)
where
    L: Listener,
    F: Fn(L::Stream, Seat) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    while let Some(room) = crowd.room().await {
        match listener.next().await {
            Ok(stream) => {
                let seat = room.take();
                let peer = seat.peer().clone();
                let served = serve(stream, seat);
                tokio::spawn(async move {
                    tokio::select! {
                        () = served => {}
                        () = peer.shown_out() => tracing::debug!("a caller without a token was shown out"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves HTTP over TLS. The deadline of the handshake is the seat's.
pub async fn serve_tls(
    stream: impl stream::Duplex + 'static,
    seat: Seat,
    trust: Arc<Trust>,
    router: Router,
) {
    // Boxed for the same reason as in `Seated`.
    let stream: Box<dyn stream::Duplex> = Box::new(stream);
    match trust.acceptor().accept(ReadAhead::new(stream)).await {
        Ok(stream) => serve(bulk_stream::of_server(stream), seat, router).await,
        Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
    }
}

/// A request that came over a [local](stream::Duplex::is_local) connection carries this as an extension: it
/// may ask for [`straight`].
#[derive(Debug, Clone, Copy)]
pub struct Local;

/// What is below a local connection whose request asked for an upgrade, with its seat, when the client has
/// its answer. In plain from here on, and blocking, for threads.
pub async fn straight(upgrade: OnUpgrade) -> io::Result<(std::os::unix::net::UnixStream, Seat)> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = upgraded.downcast::<TokioIo<Seated>>();
    let parts = parts.map_err(|_| io::Error::other("no connection of this door"))?;
    let unread = || io::Error::other("the peer did not wait for the answer");
    if !parts.read_buf.is_empty() {
        return Err(unread());
    }
    let (socket, seat) = parts.io.into_inner().into_unix().ok_or_else(unread)?;
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    Ok((socket, seat))
}

/// Serves HTTP on a connection, with upgrades.
pub async fn serve(stream: impl stream::Duplex + 'static, seat: Seat, router: Router) {
    let peer = seat.peer().clone();
    let stream = Seated::new(stream, seat);
    let local = stream.is_local().then_some(Local);
    let io = TokioIo::new(stream);
    let service = service_fn(move |request| answer(router.clone(), peer.clone(), local, request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_header_size(HEADER_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_MAX_BYTES)
        .serve_connection(io, service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a caller's connection ended");
    }
}

async fn answer(
    router: Router,
    peer: Arc<Peer>,
    local: Option<Local>,
    mut request: Request<Incoming>,
) -> Result<Response, Infallible> {
    request.extensions_mut().insert(peer.clone());
    if let Some(local) = local {
        request.extensions_mut().insert(local);
    }
    let mut response = router.oneshot(request.map(Body::new)).await?;
    if peer.answered(response.status() == StatusCode::UNAUTHORIZED) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response)
}
