//! Files over the bare unix socket of a local caller (see [`api::file`], "Straight"): after the `101` its
//! bytes are led into the guest's socket, or out of it, by a thread that looks at none of them.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use api::file::{GO, STRAIGHT, UploadEnd};
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse as _, Response};
use bulk_stream::pump::pump;
use engine::ports::FileSocket;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::time::timeout;

use crate::Peer;

/// Between the answer and the socket below it.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// A caller that neither gives nor takes a byte for so long has gone.
const IDLE: Duration = Duration::from_secs(60);
/// What comes behind the bytes of a file.
const DIGEST_BYTES: u64 = 32;

/// The upgrade of a request that asks for a file's bytes straight, by the unix socket.
pub(crate) fn asked_for(request: &mut Request) -> Option<OnUpgrade> {
    let peer = request.extensions().get::<ConnectInfo<Peer>>()?;
    matches!(peer.0, Peer::Unix { .. }).then_some(())?;
    let protocol = request.headers().get(UPGRADE)?.as_bytes();
    protocol
        .eq_ignore_ascii_case(STRAIGHT.as_bytes())
        .then_some(())?;
    request.extensions_mut().remove::<OnUpgrade>()
}

/// The answer after which the connection is the file's.
pub(crate) fn switching() -> Response {
    let headers = [
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static(STRAIGHT)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// The caller's socket, for threads.
pub(crate) async fn socket(upgrade: OnUpgrade) -> io::Result<UnixStream> {
    let upgraded = timeout(UPGRADE_DEADLINE, upgrade).await?;
    let upgraded = upgraded.map_err(io::Error::other)?;
    let parts = downcast::<TokioIo<tokio::net::UnixStream>>(upgraded);
    let parts = parts.map_err(|_| io::Error::other("no connection of the unix socket"))?;
    if !parts.read_buf.is_empty() {
        return Err(io::Error::other("the caller did not wait for the answer"));
    }
    let socket = parts.io.into_inner().into_std()?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(IDLE))?;
    socket.set_write_timeout(Some(IDLE))?;
    Ok(socket)
}

/// Leads a guest's file to the caller. A file that breaks off ends the connection before its digest.
pub(crate) async fn give(upgrade: OnUpgrade, file: FileSocket) {
    let caller = socket(upgrade).await;
    let led = tokio::task::spawn_blocking(move || {
        let mut caller = caller?;
        let mut word = [0];
        caller.read_exact(&mut word)?;
        if word != [GO] {
            return Err(io::Error::other("the caller said something else"));
        }
        pump(
            &file.socket,
            &caller,
            file.size_bytes.saturating_add(DIGEST_BYTES),
        )
        .map_err(io::Error::other)
    });
    match led.await.map_err(io::Error::other).flatten() {
        Ok(()) => {}
        Err(error) => tracing::debug!(%error, "a file did not reach its caller"),
    }
}

/// Tells the caller how its upload ended. One that has gone hears nothing.
pub(crate) async fn end(mut caller: UnixStream, end: UploadEnd) {
    let told = tokio::task::spawn_blocking(move || {
        let text = serde_json::to_vec(&end)?;
        caller.write_all(&text)
    });
    if let Err(error) = told.await.map_err(io::Error::other).flatten() {
        tracing::debug!(%error, "an upload's caller heard no end");
    }
}
