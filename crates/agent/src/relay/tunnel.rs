//! Tunnels into the zone: a preface as `wire::tunnel` says, then bytes both ways.
//!
//! ```text
//!   magic ▸ nonce ▸ token ─┬─ good: connect ─┬─ connected: 0 ▸ splice until both have ended
//!                          └─ else ──────────┴─ else: 1 + reason ▸ close
//! ```
//! Leads to agent ports inside the zone of the gateway state that holds, nowhere else. Never sees
//! what passes: TLS runs from controller to agent.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use wire::agent::{AGENT_PORT, Scope};
use wire::gateway::{GatewayState, ZoneNetwork};
use wire::tunnel::{MAGIC, NONCE_BYTES, OPEN, REFUSED, TOKEN_MAX_BYTES};

use super::passage;
use crate::door::{self, Seat};
use crate::trust::Trust;
use crate::trust::token::{TokenError, allows};

/// Tunnels open at a time.
pub const TUNNELS: usize = 1024;
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// To tell a caller how it ends, which must not wait for one that does not read.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Why a tunnel is not opened. The caller gets the sentence.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The token is not one of our controller for us.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The token was signed for another connection.
    #[error("the token is not for this connection")]
    Nonce,
    /// The token does not say where to.
    #[error("the token names no target ADDRESS:PORT")]
    NoTarget,
    /// There is no zone yet.
    #[error("the relay has no gateway state yet: apply one first")]
    NoZone,
    /// The target is none of the zone's agents.
    #[error("the target {0} is not the agent port of a guest's address in the zone")]
    NotInZone(SocketAddrV4),
    /// There are too many.
    #[error("{TUNNELS} tunnels are open")]
    Full,
    /// The target does not take the connection.
    #[error("the target {target} cannot be reached: {source}")]
    NotReachable {
        /// Where the tunnel should have led.
        target: SocketAddrV4,
        /// Why it does not.
        #[source]
        source: io::Error,
    },
}

/// Opens tunnels.
pub struct Tunnels {
    trust: Arc<Trust>,
    zone: watch::Receiver<Option<Arc<GatewayState>>>,
    open: Arc<Semaphore>,
}

impl Tunnels {
    /// Into the zone of the state that `zone` shows.
    pub fn new(trust: Arc<Trust>, zone: watch::Receiver<Option<Arc<GatewayState>>>) -> Self {
        Self {
            trust,
            zone,
            open: Arc::new(Semaphore::new(TUNNELS)),
        }
    }

    /// Serves a connection that began with the first byte of [`MAGIC`], which is still to be read.
    /// Until its token is good the deadline is the seat's.
    pub async fn serve(&self, mut stream: TcpStream, seat: Seat) {
        if let Err(error) = self.tunnel(&mut stream, &seat).await {
            // How a peer ended its connection is between it and the other one.
            tracing::debug!(%error, "a tunnel ended");
        }
    }

    async fn tunnel(&self, stream: &mut TcpStream, seat: &Seat) -> io::Result<()> {
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic).await?;
        if magic != MAGIC {
            return Ok(());
        }
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| io::Error::other("the kernel gives no random bytes"))?;
        stream.write_all(&nonce).await?;
        let token = token(stream).await?;
        let opened = match self.target(&token, &nonce) {
            Ok(target) => self.open(target, seat).await,
            Err(refusal) => Err(refusal),
        };
        match opened {
            Ok((mut target, _place)) => {
                timeout(ANSWER_DEADLINE, stream.write_all(&[OPEN])).await??;
                passage::both_ways(stream, &mut target).await
            }
            Err(refusal) => {
                tracing::warn!(reason = %refusal, "a tunnel was refused");
                timeout(ANSWER_DEADLINE, refuse(stream, &refusal)).await?
            }
        }
    }

    /// Where a token leads, if it may.
    fn target(&self, token: &str, nonce: &[u8]) -> Result<SocketAddrV4, Refusal> {
        let claims = self.trust.check_once(token)?;
        allows(&claims, Scope::Tunnel)?;
        if claims.nonce.as_deref() != Some(hex::encode(nonce).as_str()) {
            return Err(Refusal::Nonce);
        }
        let target = claims.target.as_deref().map(str::parse);
        let Some(Ok(target)) = target else {
            return Err(Refusal::NoTarget);
        };
        match self.zone.borrow().as_ref() {
            None => Err(Refusal::NoZone),
            Some(state) if leads_to_an_agent(&state.network, target) => Ok(target),
            Some(_) => Err(Refusal::NotInZone(target)),
        }
    }

    async fn open(
        &self,
        target: SocketAddrV4,
        seat: &Seat,
    ) -> Result<(TcpStream, tokio::sync::OwnedSemaphorePermit), Refusal> {
        let place = self.open.clone().try_acquire_owned();
        let place = place.map_err(|_| Refusal::Full)?;
        if !seat.peer().prove() {
            return Err(Refusal::Full);
        }
        let connected = timeout(CONNECT_DEADLINE, TcpStream::connect(target)).await;
        let stream = connected
            .unwrap_or_else(|elapsed| Err(elapsed.into()))
            .and_then(|stream| door::tune(&stream).map(|()| stream))
            .map_err(|source| Refusal::NotReachable { target, source })?;
        Ok((stream, place))
    }
}

/// Is `target` the agent port of an address that a guest of the zone can have?
fn leads_to_an_agent(network: &ZoneNetwork, target: SocketAddrV4) -> bool {
    target.port() == AGENT_PORT && is_a_guests(network, *target.ip())
}

/// Is `address` in the zone, and neither the gateway's nor one that stands for all of it?
pub fn is_a_guests(network: &ZoneNetwork, address: Ipv4Addr) -> bool {
    let subnet = network.subnet;
    subnet.contains(&address)
        && address != network.gateway
        && address != subnet.network()
        && address != subnet.broadcast()
}

async fn token(stream: &mut TcpStream) -> io::Result<String> {
    let length = stream.read_u16().await?;
    if length > TOKEN_MAX_BYTES {
        return Err(io::Error::other("the token is too long"));
    }
    let mut token = vec![0; usize::from(length)];
    stream.read_exact(&mut token).await?;
    // What is not text is no good token either.
    Ok(String::from_utf8(token).unwrap_or_default())
}

async fn refuse(stream: &mut TcpStream, refusal: &Refusal) -> io::Result<()> {
    let reason = refusal.to_string();
    let length = u16::try_from(reason.len()).unwrap_or(0);
    let mut answer = vec![REFUSED];
    answer.extend_from_slice(&length.to_be_bytes());
    answer.extend_from_slice(reason.as_bytes());
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;

    #[test]
    fn a_tunnel_leads_to_agent_ports_of_guests_only() {
        let network = fake::state().network;
        let check = |target: &str, expect: bool| {
            let found = leads_to_an_agent(&network, target.parse().unwrap());
            assert_eq!(found, expect, "{target}");
        };
        check("10.20.0.2:39383", true);
        check("10.20.0.254:39383", true);
        for other in [
            "10.20.0.1:39383",
            "10.20.0.0:39383",
            "10.20.0.255:39383",
            "10.20.1.2:39383",
            "127.0.0.1:39383",
            "10.20.0.2:39384",
            "10.20.0.2:22",
            "10.20.0.2:0",
        ] {
            check(other, false);
        }
    }
}
