//! A guest's agent and an appliance's relay as small real servers, and a link that knows them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use api::InstanceId;
use async_trait::async_trait;
use axum::Router;
use futures::future::BoxFuture;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use link::{Authority, Kind, Link, LinkError, Locate, Peer};
use rustls::HandshakeKind;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use wire::agent::{Health, Scope};
use wire::identity::Bundle;

use crate::verifier::claims;

pub const GUEST: &str = "i-00000000000000a1";
pub const APPLIANCE: &str = "i-00000000000000b1";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 7);

pub fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

/// What the servers saw.
#[derive(Default)]
pub struct Seen {
    pub tunnels: AtomicUsize,
    /// Tunnels that both sides have closed.
    pub ended: AtomicUsize,
    pub refused: AtomicUsize,
    pub full_handshakes: AtomicUsize,
    pub resumed_handshakes: AtomicUsize,
}

impl Seen {
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::SeqCst)
    }

    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

/// See the module's documentation.
pub struct Lab {
    pub authority: Arc<Authority>,
    pub link: Arc<Link>,
    pub peer: Peer,
    pub seen: Arc<Seen>,
    /// Where the relay's tunnels lead: the agent under test.
    agent: Arc<Mutex<Option<SocketAddr>>>,
    pub inside: Arc<Mutex<Inside>>,
    pub directory: tempfile::TempDir,
}

/// What a connection made inside the guest's own network meets.
#[derive(Default, Clone)]
pub enum Inside {
    /// There is no such way.
    #[default]
    NoWay,
    /// Nobody listens.
    Nobody,
    /// This listener.
    Socket(PathBuf),
}

struct At {
    relay: SocketAddr,
    inside: Arc<Mutex<Inside>>,
}

#[async_trait]
impl Locate for At {
    async fn relay(&self, _appliance: &InstanceId) -> Result<SocketAddr, LinkError> {
        Ok(self.relay)
    }

    async fn inside(&self, _guest: &InstanceId) -> Option<io::Result<UnixStream>> {
        let inside = self.inside.lock().unwrap().clone();
        match inside {
            Inside::NoWay => None,
            Inside::Nobody => Some(Err(io::ErrorKind::ConnectionRefused.into())),
            Inside::Socket(path) => Some(UnixStream::connect(path).await),
        }
    }
}

impl Lab {
    /// A relay without an agent behind it.
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(directory.path()).unwrap());
        let seen = Arc::new(Seen::default());
        let agent = Arc::new(Mutex::new(None));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = listener.local_addr().unwrap();
        tokio::spawn(relays(
            listener,
            authority.tokens().public_key(),
            agent.clone(),
            seen.clone(),
        ));
        Self::with_relay(directory, authority, seen, agent, relay)
    }

    fn with_relay(
        directory: tempfile::TempDir,
        authority: Arc<Authority>,
        seen: Arc<Seen>,
        agent: Arc<Mutex<Option<SocketAddr>>>,
        relay: SocketAddr,
    ) -> Self {
        let inside = Arc::default();
        let ways = At {
            relay,
            inside: Arc::clone(&inside),
        };
        let link = Link::new(authority.clone(), Arc::new(ways)).unwrap();
        Self {
            authority,
            link: Arc::new(link),
            peer: Peer {
                instance: id(GUEST),
                address: ADDRESS,
                appliance: id(APPLIANCE),
            },
            seen,
            agent,
            inside,
            directory,
        }
    }

    /// A relay and an agent with this router.
    pub async fn with(router: Router) -> Self {
        let lab = Self::new().await;
        lab.serve(lab.bundle(), router).await;
        lab
    }

    /// A link whose relay is a server of another kind, reached without a tunnel.
    pub async fn with_gateway(router: Router) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(directory.path()).unwrap());
        let seen = Arc::new(Seen::default());
        let bundle = authority
            .bundle(Kind::Relay, &id(APPLIANCE), SystemTime::now())
            .unwrap();
        let relay = listen(&bundle, seen.clone(), over_http(router)).await;
        Self::with_relay(directory, authority, seen, Arc::default(), relay)
    }

    /// Where the agent under test listens.
    pub fn agent(&self) -> Option<SocketAddr> {
        *self.agent.lock().unwrap()
    }

    /// The guest's identity.
    pub fn bundle(&self) -> Bundle {
        self.authority
            .bundle(Kind::Guest, &self.peer.instance, SystemTime::now())
            .unwrap()
    }

    /// Puts an agent with this identity and router behind the relay.
    pub async fn serve(&self, bundle: Bundle, router: Router) {
        self.serve_with(bundle, over_http(router)).await;
    }

    /// Puts an agent behind the relay that does anything on its connections.
    pub async fn serve_with(&self, bundle: Bundle, conduct: Conduct) {
        self.lead_to(listen(&bundle, self.seen.clone(), conduct).await);
    }

    /// Makes the relay's tunnels lead to this address.
    pub fn lead_to(&self, address: SocketAddr) {
        *self.agent.lock().unwrap() = Some(address);
    }
}

/// What a server does with a connection once TLS is spoken on it.
pub type Conduct = Arc<dyn Fn(TlsStream<TcpStream>) -> BoxFuture<'static, ()> + Send + Sync>;

pub fn conduct<F>(f: impl Fn(TlsStream<TcpStream>) -> F + Send + Sync + 'static) -> Conduct
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |stream| Box::pin(f(stream)))
}

fn over_http(router: Router) -> Conduct {
    conduct(move |stream| {
        let router = router.clone();
        async move {
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
                .with_upgrades()
                .await;
        }
    })
}

async fn listen(bundle: &Bundle, seen: Arc<Seen>, conduct: Conduct) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_slice(bundle.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, seen, conduct) = (tls.clone(), seen.clone(), conduct.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                match stream.get_ref().1.handshake_kind() {
                    Some(HandshakeKind::Resumed) => &seen.resumed_handshakes,
                    _ => &seen.full_handshakes,
                }
                .fetch_add(1, Ordering::SeqCst);
                conduct(stream).await;
            });
        }
    });
    address
}

async fn relays(
    listener: TcpListener,
    public_key: String,
    agent: Arc<Mutex<Option<SocketAddr>>>,
    seen: Arc<Seen>,
) {
    let mut count = 0_u8;
    while let Ok((mut stream, _)) = listener.accept().await {
        count = count.wrapping_add(1);
        let (public_key, agent, seen) = (public_key.clone(), agent.clone(), seen.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true).unwrap();
            let mut magic = [0; 4];
            stream.read_exact(&mut magic).await.unwrap();
            assert_eq!(magic, wire::tunnel::MAGIC);
            let nonce = [count; wire::tunnel::NONCE_BYTES];
            stream.write_all(&nonce).await.unwrap();
            let length = stream.read_u16().await.unwrap();
            assert!(length <= wire::tunnel::TOKEN_MAX_BYTES);
            let mut token = vec![0; usize::from(length)];
            stream.read_exact(&mut token).await.unwrap();
            let claims = claims(&public_key, &String::from_utf8(token).unwrap(), APPLIANCE);
            assert_eq!(claims.scope, [Scope::Tunnel]);
            assert_eq!(claims.nonce, Some(hex::encode(nonce)));
            let target = SocketAddrV4::new(ADDRESS, wire::agent::AGENT_PORT);
            assert_eq!(claims.target, Some(target.to_string()));
            let agent = *agent.lock().unwrap();
            let Some(agent) = agent else {
                seen.refused.fetch_add(1, Ordering::SeqCst);
                let reason = b"connection refused";
                stream.write_u8(wire::tunnel::REFUSED).await.unwrap();
                stream.write_u16(reason.len() as u16).await.unwrap();
                stream.write_all(reason).await.unwrap();
                return;
            };
            seen.tunnels.fetch_add(1, Ordering::SeqCst);
            let mut onward = TcpStream::connect(agent).await.unwrap();
            onward.set_nodelay(true).unwrap();
            stream.write_u8(wire::tunnel::OPEN).await.unwrap();
            let _ = copy_bidirectional(&mut stream, &mut onward).await;
            seen.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

pub fn healthy() -> axum::Json<Health> {
    axum::Json(Health {
        status: "ok".into(),
        version: "1".into(),
        instance: GUEST.into(),
        uptime_ms: 1,
    })
}

/// Waits until something holds; a test that waits for ever is ended by the runner.
pub async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
