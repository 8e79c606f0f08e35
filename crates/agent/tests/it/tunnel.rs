//! The relay's TCP port: the gateway API behind TLS and tokens, and tunnels into a zone. The zone is
//! a network of loopback addresses, in which this test is every guest.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent::client;
use agent::relay::Relay;
use agent::trust::Trust;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wire::agent::{AGENT_PORT, Claims, Health, Scope};
use wire::gateway::{ProbeRequest, Readiness};
use wire::tunnel::{MAGIC, NONCE_BYTES, OPEN, REFUSED};

use crate::api::{Bare, appliance, state};
use crate::authority::{Authority, Controller, claims, write};
use crate::caller::{Caller, connector, tls};

type Change = fn(&mut Claims);

const APPLIANCE: &str = "i-00000000000000ff";
const DEADLINE: Duration = Duration::from_secs(10);

struct Lab {
    authority: Authority,
    connector: TlsConnector,
    address: SocketAddr,
    /// The first three bytes of the zone's addresses, which nobody else on this machine uses.
    zone: [u8; 3],
    _root: tempfile::TempDir,
}

/// A relay with a zone.
async fn lab() -> Lab {
    let lab = lab_without_zone().await;
    let [a, b, c] = lab.zone;
    let mut state = state();
    let address = |last| Ipv4Addr::new(a, b, c, last);
    state.network.subnet = format!("{}/24", address(0)).parse().unwrap();
    state.network.gateway = address(1);
    state.network.dhcp_first = address(100);
    state.network.dhcp_last = address(250);
    let token = lab.token(&[Scope::Gateway]);
    let bearer = format!("Bearer {token}");
    let body = serde_json::to_vec(&state).unwrap();
    let mut caller = lab.caller().await;
    let answer = caller
        .call("PUT", "/gateway", &[("authorization", &bearer)], body)
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    lab
}

async fn lab_without_zone() -> Lab {
    let authority = Authority::new();
    let (root, paths) = appliance();
    let mut relay = Relay::start(paths, Bare::default(), None).await.unwrap();
    let trust = Trust::new(&authority.bundle(APPLIANCE, 3600)).unwrap();
    let listen = ([127, 0, 0, 1], 0).into();
    let address = relay.open(Arc::new(trust), listen).unwrap();
    tokio::spawn(relay.serve());
    let process = std::process::id();
    let [.., b, c] = process.to_be_bytes();
    Lab {
        connector: connector(&authority.certificate),
        authority,
        address,
        zone: [127, b | 0x80, c],
        _root: root,
    }
}

impl Lab {
    fn token(&self, scope: &[Scope]) -> String {
        self.authority.controller.token(APPLIANCE, scope)
    }

    async fn caller(&self) -> Caller {
        Caller::new(&self.connector, APPLIANCE, self.address)
            .await
            .unwrap()
    }

    fn guest(&self, last: u8) -> SocketAddr {
        let [a, b, c] = self.zone;
        ([a, b, c, last], AGENT_PORT).into()
    }

    /// A connection that has got its nonce.
    async fn greeted(&self) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(&MAGIC).await.unwrap();
        let mut nonce = [0; NONCE_BYTES];
        stream.read_exact(&mut nonce).await.unwrap();
        (stream, hex::encode(nonce))
    }

    fn claims(&self, nonce: &str, target: &str) -> Claims {
        Claims {
            nonce: Some(nonce.to_owned()),
            target: Some(target.to_owned()),
            ..claims(APPLIANCE, &[Scope::Tunnel])
        }
    }

    async fn tunnel(&self, target: &str) -> Result<TcpStream, String> {
        let (stream, nonce) = self.greeted().await;
        let claims = self.claims(&nonce, target);
        show(stream, &self.authority.controller.sign(&claims)).await
    }
}

/// Shows a token; the tunnel, or why there is none.
async fn show(mut stream: TcpStream, token: &str) -> Result<TcpStream, String> {
    let length = u16::try_from(token.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).await.unwrap();
    stream.write_all(token.as_bytes()).await.unwrap();
    let answer = timeout(DEADLINE, stream.read_u8()).await.unwrap();
    match answer.unwrap() {
        OPEN => Ok(stream),
        REFUSED => {
            let length = stream.read_u16().await.unwrap();
            let mut reason = String::new();
            stream.read_to_string(&mut reason).await.unwrap();
            assert_eq!(reason.len(), usize::from(length));
            Err(reason)
        }
        other => panic!("the relay answered {other}"),
    }
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_half_closes() {
    let lab = lab().await;
    let guest = TcpListener::bind(lab.guest(100)).await.unwrap();
    let mut caller = lab.tunnel(&lab.guest(100).to_string()).await.unwrap();
    let (mut guest, _) = guest.accept().await.unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let called = async {
        caller.write_all(&large).await.unwrap();
        caller.shutdown().await.unwrap();
        caller.read_to_end(&mut down).await.unwrap();
    };
    let answered = async {
        guest.read_to_end(&mut up).await.unwrap();
        guest.write_all(&up).await.unwrap();
        guest.shutdown().await.unwrap();
    };
    let both = async { tokio::join!(called, answered) };
    timeout(DEADLINE, both).await.unwrap();
    assert!(up == large && down == large);
}

#[tokio::test]
async fn an_agent_is_reached_through_the_relay_with_one_tls_session() {
    let lab = lab().await;
    let instance = "i-00000000000000a1";
    let trust = Trust::new(&lab.authority.bundle(instance, 3600)).unwrap();
    let options = agent::guest::Options {
        bundle: "/".into(),
        listen: Some(lab.guest(101)),
        inside: None,
        unix: None,
    };
    let began = std::time::Instant::now();
    let guest = agent::guest::Guest::start(&options, Arc::new(trust), began).unwrap();
    tokio::spawn(guest.serve());
    let tunnel = lab.tunnel(&lab.guest(101).to_string()).await.unwrap();
    let stream = tls(&lab.connector, instance, tunnel).await.unwrap();
    let mut caller = Caller::over(stream).await.unwrap();
    let answer = caller.call("GET", "/health", &[], "").await.unwrap();
    let health: Health = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(health.instance, instance);
}

#[tokio::test]
async fn a_preface_counts_once_for_one_relay_and_one_target() {
    let lab = lab().await;
    let _guest = TcpListener::bind(lab.guest(102)).await.unwrap();
    let target = lab.guest(102).to_string();
    let controller = &lab.authority.controller;
    let (first, nonce) = lab.greeted().await;
    let token = controller.sign(&lab.claims(&nonce, &target));
    let (second, _) = lab.greeted().await;
    assert_eq!(
        show(second, &token).await.unwrap_err(),
        "the token is not for this connection"
    );
    show(first, &token).await.unwrap();
    let changed: [(Change, &str); 5] = [
        (|c| c.aud = "i-00000000000000a1".into(), "somebody else"),
        (|c| c.scope = vec![Scope::Gateway], "does not allow tunnel"),
        (|c| c.nonce = None, "not for this connection"),
        (|c| c.target = None, "names no target"),
        (|c| (c.iat, c.exp) = (c.iat - 200, c.iat - 40), "expired"),
    ];
    for (change, expect) in changed {
        let (stream, nonce) = lab.greeted().await;
        let mut claims = lab.claims(&nonce, &target);
        change(&mut claims);
        let reason = show(stream, &controller.sign(&claims)).await.unwrap_err();
        assert!(reason.contains(expect), "{reason:?} lacks {expect:?}");
    }
    let (stream, nonce) = lab.greeted().await;
    let forged = Controller::new().sign(&lab.claims(&nonce, &target));
    let reason = show(stream, &forged).await.unwrap_err();
    assert!(reason.contains("not signed by our controller"), "{reason}");
    let (stream, _) = lab.greeted().await;
    assert!(show(stream, "").await.is_err());
}

#[tokio::test]
async fn tunnels_lead_to_agents_in_the_zone_only() {
    let lab = lab().await;
    let [a, b, c] = lab.zone;
    for target in [
        format!("{a}.{b}.{c}.1:39383"),
        format!("{a}.{b}.{c}.0:39383"),
        format!("{a}.{b}.{c}.255:39383"),
        format!("{a}.{b}.{c}.100:39384"),
        format!("{a}.{b}.{c}.100:22"),
        format!("127.0.0.1:{}", lab.address.port()),
        "127.0.0.1:39383".into(),
        "10.20.0.100:39383".into(),
    ] {
        let reason = lab.tunnel(&target).await.unwrap_err();
        assert!(
            reason.contains("is not the agent port"),
            "{target}: {reason}"
        );
    }
    for target in ["web.prox.local:39383", "[::1]:39383", "", "\n"] {
        let reason = lab.tunnel(target).await.unwrap_err();
        assert!(reason.contains("names no target"), "{target}: {reason}");
    }
    let reason = lab.tunnel(&lab.guest(200).to_string()).await.unwrap_err();
    assert!(reason.contains("refused"), "nobody listens: {reason}");
    let lab = lab_without_zone().await;
    let reason = lab.tunnel(&lab.guest(100).to_string()).await.unwrap_err();
    assert!(reason.contains("no gateway state yet"), "{reason}");
}

#[tokio::test]
async fn the_gateway_needs_its_own_scope() {
    let lab = lab().await;
    let mut caller = lab.caller().await;
    let answer = caller.call("GET", "/gateway", &[], "").await.unwrap();
    assert_eq!(answer.code(), "no_token");
    let exec = lab.token(&[Scope::Exec, Scope::Tunnel]);
    for (method, path) in [("GET", "/gateway"), ("PUT", "/gateway"), ("POST", "/probe")] {
        let answer = caller.with_token(method, path, &exec).await;
        assert_eq!(answer.code(), "missing_scope");
    }
    let gateway = lab.token(&[Scope::Gateway]);
    let answer = caller.with_token("GET", "/gateway", &gateway).await;
    assert_eq!(answer.status, 200);
    let answer = caller.call("GET", "/health", &[], "").await.unwrap();
    let health: Health = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(health.instance, APPLIANCE);
}

#[tokio::test]
async fn a_probe_waits_for_an_instance_and_ends_with_its_caller() {
    let lab = lab().await;
    let bearer = format!("Bearer {}", lab.token(&[Scope::Gateway]));
    let headers = [("authorization", bearer.as_str())];
    let request = |last: u8, deadline_ms| {
        let SocketAddr::V4(guest) = lab.guest(last) else {
            panic!("not IPv4");
        };
        serde_json::to_vec(&ProbeRequest {
            address: *guest.ip(),
            port: guest.port(),
            readiness: Readiness::Http { path: "/".into() },
            deadline_ms,
        })
        .unwrap()
    };
    let mut caller = lab.caller().await;
    for (body, expect) in [
        (request(103, 30), "not_ready"),
        (request(1, 30), "not_in_zone"),
        (b"{}".to_vec(), "invalid_probe"),
    ] {
        let answer = caller.call("POST", "/probe", &headers, body).await;
        assert_eq!(answer.unwrap().code(), expect);
    }
    let guest = TcpListener::bind(lab.guest(103)).await.unwrap();
    let probe = caller.call("POST", "/probe", &headers, request(103, 60_000));
    let answers = async {
        let (mut stream, _) = guest.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(ok).await.unwrap();
    };
    let (answer, ()) = tokio::join!(probe, answers);
    assert_eq!(answer.unwrap().status, 204);

    // A guest that takes connections and says nothing; the probe's connection to it must end.
    let mut caller = lab.caller().await;
    let body = request(103, 60_000);
    let silent = async {
        let (mut stream, _) = guest.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        stream
    };
    let mut stream = {
        let probe = caller.call("POST", "/probe", &headers, body);
        tokio::select! {
            _ = probe => panic!("the probe has no answer to give"),
            stream = silent => stream,
        }
    };
    drop(caller);
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(3), stream.read_to_end(&mut rest));
    let _ = ended.await.expect("the probe goes on without its caller");
}

/// A relay process on an appliance that has just been made, until its log tells how its port is.
fn relay_process(directory: &Path, bundle: &Path) -> (Child, String) {
    std::fs::create_dir_all(directory.join("etc")).unwrap();
    std::fs::write(directory.join("etc/os-release"), "ID=debian\n").unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_proximity-agent"))
        .args(["relay", "--listen", "127.0.0.1:0", "--bundle"])
        .arg(bundle)
        .arg("--root")
        .arg(directory)
        .arg("--state")
        .arg(directory.join("gateway.json"))
        .arg("--run")
        .arg(directory.join("run"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    let mut seen = String::new();
    while !seen.contains("the relay is ready") {
        let line = log.next().expect("the relay goes on").unwrap();
        seen.push_str(&line);
    }
    std::thread::spawn(move || log.count());
    (process, seen)
}

#[tokio::test]
async fn without_an_identity_the_relay_serves_root_on_the_appliance_only() {
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bundle.json");
    for valid in [false, true] {
        if valid {
            write(directory.path(), &Authority::new().bundle(APPLIANCE, 3600));
        }
        let (mut process, log) = relay_process(directory.path(), &bundle);
        assert_eq!(log.contains("TCP port stays closed"), !valid, "{log}");
        assert_eq!(log.contains("open to its controller"), valid, "{log}");
        let socket = directory.path().join("run/relay.sock");
        let answer = client::call(&socket, hyper::Method::GET, "/health", Vec::new()).await;
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(answer.unwrap().status, 200);
    }
}
