//! The relay's TCP port: the first byte decides whether a connection speaks TLS to the gateway API
//! or begins a tunnel. Opened only with a valid identity of the appliance.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use wire::agent::Scope;
use wire::gateway::GatewayState;
use wire::tunnel::MAGIC;

use super::tunnel::{TUNNELS, Tunnels};
use crate::answer::{no_such_method, no_such_path};
use crate::door::{self, Crowd, Limits, Seat};
use crate::guest;
use crate::trust::{Trust, renewal, require};

/// The first byte of every TLS connection: a record with a handshake in it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Tunnels, and callers of the API beside them; prefaces and handshakes that are not done.
const LIMITS: Limits = Limits {
    proven: TUNNELS + 64,
    unproven: 128,
};

/// The open port.
pub struct Door {
    listener: TcpListener,
    callee: Arc<Callee>,
}

/// What is behind it.
struct Callee {
    trust: Arc<Trust>,
    router: Router,
    tunnels: Tunnels,
}

impl Door {
    /// Opens the port. `gateway` are the routes of the gateway API, without a fallback.
    pub fn open(
        address: SocketAddr,
        trust: Arc<Trust>,
        gateway: Router,
        zone: watch::Receiver<Option<Arc<GatewayState>>>,
    ) -> io::Result<Self> {
        let router = guest::health(&trust, Instant::now())
            .merge(renewal::router(&trust))
            .merge(require(gateway, &trust, Scope::Gateway))
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method);
        Ok(Self {
            listener: door::listen(address)?,
            callee: Arc::new(Callee {
                tunnels: Tunnels::new(trust.clone(), zone),
                trust,
                router,
            }),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes connections, for ever.
    pub async fn serve(self) {
        let callee = self.callee;
        door::accept(self.listener, Crowd::new(LIMITS), move |stream, seat| {
            let callee = callee.clone();
            async move { callee.serve(stream, seat).await }
        })
        .await;
    }
}

impl Callee {
    async fn serve(&self, stream: TcpStream, seat: Seat) {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) if first == [TLS_HANDSHAKE] => {
                door::serve_tls(stream, seat, self.trust.clone(), self.router.clone()).await;
            }
            Ok(1) if first.first() == MAGIC.first() => self.tunnels.serve(stream, seat).await,
            _ => tracing::debug!("a connection began with neither TLS nor a tunnel"),
        }
    }
}
