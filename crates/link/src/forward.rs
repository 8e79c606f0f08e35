//! Connections to ports of a guest, carried by its agent.

use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout_at;
use wire::agent::Scope;

use crate::call::{Answer, Call};
use crate::connection::describe;
use crate::error::LinkError;
use crate::link::{Destination, Link, Peer};

/// The agent itself waits five seconds for the port.
const DEADLINE: Duration = Duration::from_secs(10);

/// A stream of bytes in both directions. Dropping it closes the connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Link {
    /// Connects to a TCP port on the guest's loopback. Half-closing is carried in both directions.
    pub async fn forward(&self, peer: &Peer, port: u16) -> Result<Box<dyn Duplex>, LinkError> {
        let call = Call::new(Method::POST, format!("/forward?port={port}"), DEADLINE)
            .scope(Scope::Forward)
            .header(header::CONNECTION, HeaderValue::from_static("upgrade"))
            .header(header::UPGRADE, HeaderValue::from_static("tcp"));
        let answer = self.call(&Destination::agent(peer), call).await?;
        Ok(Box::new(upgraded(answer).await?))
    }
}

/// The stream that an answer with status 101 turns its connection into.
pub(crate) async fn upgraded(answer: Answer) -> Result<TokioIo<Upgraded>, LinkError> {
    let peer = answer.peer();
    match answer.response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {}
        status if status.is_success() => {
            return Err(LinkError::Garbage {
                peer,
                reason: format!("status {status} instead of another protocol"),
            });
        }
        _ => return Err(answer.refusal().await),
    }
    let not_reachable = |reason: String| LinkError::NotReachable { peer, reason };
    let upgrade = hyper::upgrade::on(answer.response);
    // The lease stays until then: it drives the connection.
    match timeout_at(answer.until, upgrade).await {
        Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
        Ok(Err(error)) => Err(not_reachable(describe(&error))),
        Err(_) => Err(not_reachable("the protocol did not change in time".into())),
    }
}
