//! What strangers can do to a real agent process: nothing lasting.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wire::agent::Scope;

use crate::authority::{Authority, INSTANCE, write};
use crate::caller::{Caller, connector, tls};

/// A connection with or without TLS.
trait Ends: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Ends for T {}

/// A running `proximity-agent serve`.
pub struct Agent {
    process: Child,
    pub address: SocketAddr,
    pub authority: Authority,
    pub connector: TlsConnector,
    directory: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Self {
        let authority = Authority::new();
        let directory = tempfile::tempdir().unwrap();
        let bundle = write(directory.path(), &authority.bundle(INSTANCE, 3600));
        let mut process = Command::new(env!("CARGO_BIN_EXE_proximity-agent"))
            .args(["serve", "--listen", "127.0.0.1:0", "--bundle"])
            .arg(bundle)
            .arg("--unix")
            .arg(directory.path().join("agent.sock"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let ready = log.next().unwrap().unwrap();
        // Read on, so that the agent never waits for its log.
        std::thread::spawn(move || log.count());
        let (_, address) = ready.split_once("listen=Some(").expect("an address");
        Self {
            process,
            address: address.trim_end_matches(')').parse().unwrap(),
            connector: connector(&authority.certificate),
            authority,
            directory,
        }
    }

    pub fn token(&self) -> String {
        self.authority
            .controller
            .token(INSTANCE, &[Scope::Identity])
    }

    pub async fn caller(&self) -> std::io::Result<Caller> {
        Caller::new(&self.connector, INSTANCE, self.address).await
    }

    /// The same without TLS.
    pub async fn plain_caller(&self) -> std::io::Result<Caller> {
        Caller::over(UnixStream::connect(self.socket()).await?).await
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// A caller with a token is heard; how long that took.
    pub async fn answers(&self) -> Duration {
        let began = Instant::now();
        let call = async {
            let mut caller = self.caller().await.unwrap();
            caller.with_token("PUT", "/identity", &self.token()).await
        };
        let answer = timeout(Duration::from_secs(10), call).await.unwrap();
        assert_eq!(answer.code(), "invalid_identity");
        began.elapsed()
    }

    /// Memory that the agent has in use, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Where bytes leave the machine they are never in plain: who asks for it by TCP is answered as ever.
#[tokio::test]
async fn a_file_goes_straight_by_a_unix_socket_only() {
    let agent = Agent::start();
    let controller = &agent.authority.controller;
    let bearer = format!("Bearer {}", controller.token(INSTANCE, &[Scope::Files]));
    let headers = [
        ("authorization", bearer.as_str()),
        ("connection", "upgrade"),
        ("upgrade", api::file::STRAIGHT),
        ("x-file-size", "0"),
    ];
    let mut answers = Vec::new();
    for method in ["GET", "PUT"] {
        let path = match method {
            "GET" => "/files?path=/etc/hosts".to_owned(),
            _ => format!("/files?path={}/new", agent.directory.path().display()),
        };
        let mut tcp = agent.caller().await.unwrap();
        let tcp = tcp.call(method, &path, &headers, "").await.unwrap();
        let mut unix = agent.plain_caller().await.unwrap();
        let unix = unix.call(method, &path, &headers, "").await.unwrap();
        answers.push((tcp.status.as_u16(), unix.status.as_u16()));
    }
    assert_eq!(answers, [(200, 101), (400, 101)]);
    assert!(!agent.directory.path().join("new").exists());
}

/// Reads until the agent ends the connection; false when it does not in time.
async fn ends(stream: &mut (impl AsyncReadExt + Unpin), within: Duration) -> bool {
    let mut rest = Vec::new();
    timeout(within, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_connection_without_a_token_does_not_last() {
    let agent = Agent::start();
    let within = Duration::from_secs(8);
    let silent = async {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        ends(&mut stream, within).await
    };
    let half_a_header = async {
        let stream = TcpStream::connect(agent.address).await.unwrap();
        let mut stream = tls(&agent.connector, INSTANCE, stream).await.unwrap();
        stream.write_all(b"GET /health HT").await.unwrap();
        ends(&mut stream, within).await
    };
    let only_health = async {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        let mut stream = tls(&agent.connector, INSTANCE, &mut stream).await.unwrap();
        let request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        ends(&mut stream, within).await
    };
    let with_a_token = async {
        let mut caller = agent.caller().await.unwrap();
        let token = agent.token();
        caller.with_token("PUT", "/identity", &token).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let answer = caller.with_token("PUT", "/identity", &token).await;
        assert_eq!(answer.code(), "invalid_identity");
    };
    let (silent, half, health, ()) = tokio::join!(silent, half_a_header, only_health, with_a_token);
    assert!(silent && half && health, "{silent} {half} {health}");
}

#[tokio::test]
async fn refusals_and_headers_are_counted() {
    let agent = Agent::start();
    let mut caller = agent.caller().await.unwrap();
    for _ in 0..15 {
        let answer = caller.call("PUT", "/identity", &[], "").await.unwrap();
        assert!(!answer.headers.contains_key("connection"));
    }
    let answer = caller.call("PUT", "/identity", &[], "").await.unwrap();
    assert_eq!(answer.headers["connection"], "close");
    assert!(caller.call("PUT", "/identity", &[], "").await.is_err());
    let long = "x".repeat(17 << 10);
    let mut caller = agent.caller().await.unwrap();
    let answer = caller.call("GET", "/health", &[("x", &long)], "").await;
    assert_eq!(answer.unwrap().status, 431);
    agent.answers().await;
}

#[tokio::test]
async fn many_silent_connections_keep_nobody_outside() {
    let agent = Agent::start();
    let mut silent = Vec::new();
    let mut known = agent.caller().await.unwrap();
    let token = agent.token();
    known.with_token("PUT", "/identity", &token).await;
    for _ in 0..700 {
        silent.push(TcpStream::connect(agent.address).await.unwrap());
    }
    let took = agent.answers().await;
    let answer = known.with_token("PUT", "/identity", &token).await;
    assert_eq!(answer.code(), "invalid_identity", "after {took:?}");
    drop(silent);
}

#[tokio::test]
async fn the_unix_socket_serves_the_same_and_needs_tokens_too() {
    use std::os::unix::fs::PermissionsExt;
    let agent = Agent::start();
    let mode = std::fs::metadata(agent.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut caller = agent.plain_caller().await.unwrap();
    let answer = caller.call("PUT", "/identity", &[], "").await.unwrap();
    assert_eq!(answer.code(), "no_token");
    let answer = caller.with_token("PUT", "/identity", &agent.token()).await;
    assert_eq!(answer.code(), "invalid_identity");
}

#[test]
fn no_bytes_at_all_end_the_listener() {
    let agent = Agent::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        // What looks like the beginning of a TLS record, of a request, of a tunnel.
        proptest::collection::vec(any::<u8>(), 0..600).prop_map(|rest| [
            &[0x16, 3, 1, 2, 0, 1][..],
            &rest
        ]
        .concat()),
        "GET /[a-z]{0,9} HTTP/1.[01]\r\n([a-z]{1,9}: [ -~]{0,40}\r\n){0,9}(\r\n)?"
            .prop_map(String::into_bytes),
        Just(b"PXT1".to_vec()),
    ];
    let config = ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let case = (proptest::collection::vec(piece, 1..4), any::<bool>());
    runner
        .run(&case, |(pieces, encrypted)| {
            runtime.block_on(async {
                let stream = TcpStream::connect(agent.address).await.unwrap();
                let mut stream: Box<dyn Ends> = if encrypted {
                    Box::new(tls(&agent.connector, INSTANCE, stream).await.unwrap())
                } else {
                    Box::new(stream)
                };
                for piece in &pieces {
                    // The agent may have hung up already.
                    let _ = stream.write_all(piece).await;
                }
                let _ = stream.shutdown().await;
                assert!(ends(&mut stream, Duration::from_secs(8)).await);
            });
            Ok(())
        })
        .unwrap();
    runtime.block_on(agent.answers());
}
