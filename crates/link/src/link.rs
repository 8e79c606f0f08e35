//! Calls to agents and relays over kept connections.
//!
//! ```text
//!  call ── idle connection? ──yes──▶ send ──▶ answer
//!              │ no                    │ unsent, or broken and repeatable
//!              ▼                       ▼
//!          locate, dial, TLS ────────▶ send ──▶ answer
//! ```
//! To a guest of this machine a connection is made inside the guest's own network; to all others, and when
//! that way fails, through the relay of their zone. It is the same TLS with the same peer either way.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::InstanceId;
use async_trait::async_trait;
use bulk_stream::ReadAhead;
use http::Method;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use wire::agent::{AGENT_PORT, Health, Scope};
use wire::identity::Bundle;

use crate::call::{Answer, Call, Lease, after};
use crate::connection::{Connection, SendError, describe};
use crate::error::LinkError;
use crate::gateway::GivenStates;
use crate::identity::{Authority, IdentityError, Kind};
use crate::pool::{Key, Pool};
use crate::relay::{self, DialError};

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// For the way into a guest of this machine: a question to its monitor, and a connection.
const INSIDE_DEADLINE: Duration = Duration::from_millis(400);
const TLS_DEADLINE: Duration = Duration::from_secs(5);
const SHORT_CALL: Duration = Duration::from_secs(10);
/// While a guest starts, a packet that is lost must not cost the second after which TCP sends it again.
const WAITING_CONNECT_DEADLINE: Duration = Duration::from_millis(250);
const WAITING_CALL: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
const SHORT_ANSWER_MAX_BYTES: usize = 64 << 10;
/// Peers whose TLS sessions are remembered.
const SESSIONS: usize = 1024;

/// Knows the ways to guests.
#[async_trait]
pub trait Locate: Send + Sync {
    /// The address of an appliance's relay.
    async fn relay(&self, appliance: &InstanceId) -> Result<SocketAddr, LinkError>;

    /// A connection made inside the network of a guest that runs on this very machine, to the socket
    /// [`wire::agent::AGENT_SOCKET`] there. None for guests elsewhere.
    async fn inside(&self, _guest: &InstanceId) -> Option<io::Result<UnixStream>> {
        None
    }
}

/// A guest, and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id: the name in its certificate, and for whom tokens are.
    pub instance: InstanceId,
    /// Its address in its zone.
    pub address: Ipv4Addr,
    /// The zone's appliance, whose relay leads to it.
    pub appliance: InstanceId,
}

/// Calls agents and relays. Cheap to share: put it in an `Arc`.
pub struct Link {
    authority: Arc<Authority>,
    locate: Arc<dyn Locate>,
    pool: Arc<Pool>,
    guests: TlsConnector,
    relays: TlsConnector,
    pub(crate) given: GivenStates,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// Whom a call is for, and how a connection to it is made.
pub(crate) struct Destination {
    key: Key,
    appliance: InstanceId,
    /// Behind the relay; none for the relay itself.
    target: Option<SocketAddrV4>,
    connect: Duration,
    tls: Duration,
}

impl Destination {
    pub fn agent(peer: &Peer) -> Self {
        Self {
            key: (Kind::Guest, peer.instance.clone()),
            appliance: peer.appliance.clone(),
            target: Some(SocketAddrV4::new(peer.address, AGENT_PORT)),
            connect: CONNECT_DEADLINE,
            tls: TLS_DEADLINE,
        }
    }

    pub fn relay(appliance: &InstanceId) -> Self {
        Self {
            key: (Kind::Relay, appliance.clone()),
            appliance: appliance.clone(),
            target: None,
            connect: CONNECT_DEADLINE,
            tls: TLS_DEADLINE,
        }
    }

    pub fn name(&self) -> &str {
        self.key.1.as_str()
    }
}

impl Link {
    /// A link for the peers of this authority. Connects to nobody.
    pub fn new(authority: Arc<Authority>, locate: Arc<dyn Locate>) -> Result<Self, LinkError> {
        Ok(Self {
            guests: connector(&authority, Kind::Guest)?,
            relays: connector(&authority, Kind::Relay)?,
            given: GivenStates::default(),
            authority,
            locate,
            pool: Arc::default(),
        })
    }

    /// Asks an agent how it is.
    pub async fn health(&self, peer: &Peer) -> Result<Health, LinkError> {
        let call = Call::new(Method::GET, "/health", SHORT_CALL);
        self.healthy(&Destination::agent(peer), call).await
    }

    /// Waits until the agent of a guest that starts answers, at most `patience`; the error is the last
    /// cause. The connection is kept, so that the first command needs no handshake.
    pub async fn wait_ready(&self, peer: &Peer, patience: Duration) -> Result<Health, LinkError> {
        let until = after(patience);
        let to = Destination {
            connect: WAITING_CONNECT_DEADLINE,
            tls: WAITING_CALL,
            ..Destination::agent(peer)
        };
        let mut pause = FIRST_PAUSE;
        let mut last = LinkError::NotReachable {
            peer: to.name().to_owned(),
            reason: format!(
                "its agent did not answer within {} ms",
                patience.as_millis()
            ),
        };
        loop {
            let call = Call::new(Method::GET, "/health", WAITING_CALL);
            match timeout_at(until, self.healthy(&to, call)).await {
                Ok(Ok(health)) => return Ok(health),
                Ok(Err(error)) => last = error,
                Err(_) => return Err(last),
            }
            if Instant::now() + pause >= until {
                return Err(last);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Gives a guest a new identity. Its old certificate is gone afterwards, and with it the
    /// connections that were made by it.
    pub async fn renew(&self, peer: &Peer, bundle: &Bundle) -> Result<(), LinkError> {
        self.tell_identity(&Destination::agent(peer), bundle).await
    }

    /// Gives an appliance's relay a new identity, as [`Link::renew`] does a guest.
    pub async fn renew_relay(
        &self,
        appliance: &InstanceId,
        bundle: &Bundle,
    ) -> Result<(), LinkError> {
        self.tell_identity(&Destination::relay(appliance), bundle)
            .await
    }

    async fn tell_identity(&self, to: &Destination, bundle: &Bundle) -> Result<(), LinkError> {
        let call = Call::new(Method::PUT, "/identity", SHORT_CALL)
            .scope(Scope::Identity)
            .json(to.name(), bundle)?;
        self.call(to, call)
            .await?
            .body(SHORT_ANSWER_MAX_BYTES)
            .await?;
        self.pool.forget(&to.key);
        Ok(())
    }

    /// Closes the idle connections to an instance that is deleted, and drops its tokens.
    pub fn forget(&self, instance: &InstanceId) {
        for kind in [Kind::Guest, Kind::Relay] {
            self.pool.forget(&(kind, instance.clone()));
        }
        self.authority.tokens().forget(instance.as_str());
    }

    async fn healthy(&self, to: &Destination, call: Call) -> Result<Health, LinkError> {
        let health: Health = self
            .call(to, call)
            .await?
            .json(SHORT_ANSWER_MAX_BYTES)
            .await?;
        if health.status == "ok" && health.instance == to.name() {
            return Ok(health);
        }
        Err(LinkError::Garbage {
            peer: to.name().to_owned(),
            reason: "it does not say that it is well".into(),
        })
    }

    /// Sends a request and returns the head of its answer, over a kept connection where there is one.
    pub(crate) async fn call(&self, to: &Destination, mut call: Call) -> Result<Answer, LinkError> {
        let bearer = match call.scope {
            Some(scope) => {
                let tokens = self.authority.tokens();
                Some(tokens.bearer(to.name(), scope, SystemTime::now())?)
            }
            None => None,
        };
        let mut request = call.request(to.name(), bearer.as_ref())?;
        let mut broken = None;
        while let Some(mut connection) = self.pool.take(&to.key) {
            if !connection.is_ready().await {
                continue;
            }
            let until = after(call.deadline);
            match timeout_at(until, connection.send(request)).await {
                Ok(Ok(response)) => return Ok(self.answer(to, connection, response, until)),
                Ok(Err(SendError::Unsent(unsent))) => request = *unsent,
                Ok(Err(SendError::Broken(reason))) if call.repeatable => {
                    request = call.request(to.name(), bearer.as_ref())?;
                    broken = Some(reason);
                    break;
                }
                Ok(Err(SendError::Broken(reason))) => return Err(unknown(to, reason)),
                Err(_) => return Err(late(to, call.deadline)),
            }
        }
        let mut connection = match (self.open(to).await, broken) {
            (Ok(connection), _) => connection,
            // What went over the kept connection may have been carried out.
            (Err(_), Some(reason)) => return Err(unknown(to, reason)),
            (Err(error), None) => return Err(error),
        };
        let until = after(call.deadline);
        match timeout_at(until, connection.send(request)).await {
            Ok(Ok(response)) => Ok(self.answer(to, connection, response, until)),
            Ok(Err(SendError::Unsent(_))) => Err(LinkError::NotReachable {
                peer: to.name().to_owned(),
                reason: "it closed the connection before the request was sent".into(),
            }),
            Ok(Err(SendError::Broken(reason))) => Err(unknown(to, reason)),
            Err(_) => Err(late(to, call.deadline)),
        }
    }

    fn answer(
        &self,
        to: &Destination,
        connection: Connection,
        response: http::Response<hyper::body::Incoming>,
        until: Instant,
    ) -> Answer {
        Answer {
            response,
            lease: Lease {
                connection,
                pool: self.pool.clone(),
                key: to.key.clone(),
            },
            until,
        }
    }

    /// Sends a request over a new connection made inside the guest's network. None when there is no such
    /// way; nothing was sent then.
    pub(crate) async fn call_inside(
        &self,
        to: &Destination,
        mut call: Call,
    ) -> Result<Option<Answer>, LinkError> {
        let Some(mut connection) = self.inside(to).await else {
            return Ok(None);
        };
        let tokens = self.authority.tokens();
        let bearer = call
            .scope
            .map(|scope| tokens.bearer(to.name(), scope, SystemTime::now()))
            .transpose()?;
        let request = call.request(to.name(), bearer.as_ref())?;
        let until = after(call.deadline);
        match timeout_at(until, connection.send(request)).await {
            Ok(Ok(response)) => Ok(Some(self.answer(to, connection, response, until))),
            Ok(Err(SendError::Unsent(_))) => Ok(None),
            Ok(Err(SendError::Broken(reason))) => Err(unknown(to, reason)),
            Err(_) => Err(late(to, call.deadline)),
        }
    }

    async fn open(&self, to: &Destination) -> Result<Connection, LinkError> {
        if let Some(connection) = self.inside(to).await {
            return Ok(connection);
        }
        let stream = self.dial(to).await?;
        self.secured(to, stream).await
    }

    /// A connection made inside the network of a guest of this machine, if there is a way.
    async fn inside(&self, to: &Destination) -> Option<Connection> {
        to.target?;
        match timeout(INSIDE_DEADLINE, self.locate.inside(&to.key.1)).await {
            Ok(None) => None,
            Ok(Some(Ok(stream))) => {
                let secured = self.secured(to, stream).await;
                // Any process of the guest can have taken the socket's name before the agent.
                secured
                    .inspect_err(
                        |error| tracing::debug!(%error, "not by the socket inside; by the relay"),
                    )
                    .ok()
            }
            // Also when nobody listens there: an agent of an older version has its port alone, and so has
            // one that found the name taken.
            Ok(Some(Err(error))) => {
                tracing::debug!(peer = to.name(), %error, "no way inside; by the relay");
                None
            }
            Err(_) => {
                tracing::debug!(peer = to.name(), "no way inside in time; by the relay");
                None
            }
        }
    }

    /// TLS with whoever is at the other end, who must be the one that is meant.
    async fn secured<S>(&self, to: &Destination, stream: S) -> Result<Connection, LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // By the id and nothing else: an address says nothing about who answers there.
        let name = ServerName::try_from(wire::agent::server_name(&to.key.1))
            .map_err(|e| not_reachable(to, e.to_string()))?;
        let tls = match to.target {
            Some(_) => &self.guests,
            None => &self.relays,
        };
        let stream = match timeout(to.tls, tls.connect(name, ReadAhead::new(stream))).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let wrong_certificate = error
                    .get_ref()
                    .and_then(|e| e.downcast_ref::<rustls::Error>())
                    .is_some_and(|e| matches!(e, rustls::Error::InvalidCertificate(_)));
                if wrong_certificate {
                    return Err(LinkError::Untrusted {
                        peer: to.name().to_owned(),
                        reason: error.to_string(),
                    });
                }
                return Err(not_reachable(to, format!("no TLS with it: {error}")));
            }
            Err(_) => {
                let ms = to.tls.as_millis();
                return Err(not_reachable(to, format!("no TLS with it within {ms} ms")));
            }
        };
        Connection::over(bulk_stream::of_client(stream))
            .await
            .map_err(|e| not_reachable(to, describe(&e)))
    }

    async fn dial(&self, to: &Destination) -> Result<TcpStream, LinkError> {
        let relay = timeout(CONNECT_DEADLINE, self.locate.relay(&to.appliance))
            .await
            .map_err(|_| not_reachable(to, "its relay was not found in time".into()))??;
        let dialled = match to.target {
            Some(target) => {
                let tokens = self.authority.tokens();
                relay::dial(tokens, relay, &to.appliance, target, to.connect).await
            }
            None => relay::connect(relay, to.connect).await,
        };
        dialled.map_err(|error| match error {
            DialError::Identity(error) => LinkError::Identity(error),
            error => not_reachable(to, error.to_string()),
        })
    }
}

fn not_reachable(to: &Destination, reason: String) -> LinkError {
    LinkError::NotReachable {
        peer: to.name().to_owned(),
        reason,
    }
}

fn unknown(to: &Destination, reason: String) -> LinkError {
    LinkError::OutcomeUnknown {
        peer: to.name().to_owned(),
        reason: format!("the connection broke: {reason}"),
    }
}

fn late(to: &Destination, deadline: Duration) -> LinkError {
    LinkError::OutcomeUnknown {
        peer: to.name().to_owned(),
        reason: format!("no answer within {} ms", deadline.as_millis()),
    }
}

fn connector(authority: &Authority, kind: Kind) -> Result<TlsConnector, LinkError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(IdentityError::make("a TLS configuration"))?
        .with_root_certificates(authority.roots(kind))
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(TlsConnector::from(Arc::new(config)))
}
