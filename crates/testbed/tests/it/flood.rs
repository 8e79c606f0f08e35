//! A hundred thousand requests of strangers to the agent as it goes into guests: its memory stays flat, and
//! somebody with a token is heard all the while. On 127.0.0.1; the agent's own tests crowd its door with more
//! strangers than there are seats.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use link::{Authority, Kind};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use wire::agent::Scope;

use crate::e2e::agent_binary;

/// Connections of strangers, each new and with a whole handshake where it is over TLS, and the requests
/// that come on one: a stranger is shown out after sixteen refusals.
const CALLS: [(Way, usize, usize); 3] = [
    (Way::Tls, 2_000, 1),
    (Way::Tls, 500, 16),
    (Way::Unix, 5_625, 16),
];
/// Strangers at a time: fewer than there are seats, so that their connections last.
const AT_ONCE: usize = 8;
/// What the agent may grow by in all: buffers of the connections at a time, and its allocator's spare pages.
const GROWTH_MAX_KIB: u64 = 4 << 10;
/// What the last three quarters may add to the first: a hundred bytes a request would be 7,500.
const FLAT_KIB: u64 = 512;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Way {
    Tls,
    Unix,
}

struct Agent {
    process: Child,
    address: SocketAddr,
    socket: PathBuf,
    name: String,
    authority: Authority,
    tls: Arc<ClientConfig>,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("keys")).unwrap();
        let id = api::InstanceId::from_bytes([0xf1; 8]);
        let bundle = authority.bundle(Kind::Guest, &id, SystemTime::now());
        let file = dir.path().join("bundle.json");
        write_private(&file, &serde_json::to_vec(&bundle.unwrap()).unwrap());
        let socket = dir.path().join("agent.sock");
        let mut process = Command::new(agent_binary())
            .args(["serve", "--listen", "127.0.0.1:0", "--bundle"])
            .arg(file)
            .arg("--unix")
            .arg(&socket)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let ready = log.next().unwrap().unwrap();
        std::thread::spawn(move || log.count());
        let (_, address) = ready.split_once("listen=Some(").expect("an address");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(authority.roots(Kind::Guest))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls.resumption = Resumption::disabled();
        Self {
            process,
            address: address.trim_end_matches(')').parse().unwrap(),
            socket,
            name: wire::agent::server_name(&id),
            authority,
            tls: Arc::new(tls),
            _dir: dir,
        }
    }

    /// What the agent answers to these bytes until it hangs up, on a connection of its own.
    fn answer(&self, way: Way, request: &[u8]) -> io::Result<Vec<u8>> {
        match way {
            Way::Tls => {
                let stream = TcpStream::connect(self.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let name = self.name.clone().try_into().map_err(io::Error::other)?;
                let tls = ClientConnection::new(self.tls.clone(), name);
                let tls = tls.map_err(io::Error::other)?;
                all_of(StreamOwned::new(tls, stream), request)
            }
            Way::Unix => {
                let stream = UnixStream::connect(&self.socket)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                all_of(stream, request)
            }
        }
    }

    /// Requests without a token, all on one connection; each is refused.
    fn strange(&self, way: Way, requests: usize) {
        let one = b"PUT /identity HTTP/1.1\r\nhost: agent\r\ncontent-length: 0\r\n\r\n".to_vec();
        let last = b"PUT /identity HTTP/1.1\r\nhost: agent\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let mut all = one.repeat(requests - 1);
        all.extend(last);
        let answer = self.answer(way, &all).unwrap();
        let refused = answer
            .windows(12)
            .filter(|head| *head == b"HTTP/1.1 401")
            .count();
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(refused, requests, "{way:?}: {text}");
    }

    /// How long it takes until somebody with a token is heard.
    fn hears(&self) -> Duration {
        let began = Instant::now();
        let tokens = self.authority.tokens();
        let now = SystemTime::now();
        let bearer = tokens.bearer(&self.name, Scope::Identity, now).unwrap();
        let bearer = bearer.to_str().unwrap();
        let request = format!(
            "PUT /identity HTTP/1.1\r\nhost: agent\r\nauthorization: {bearer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let answer = self.answer(Way::Tls, request.as_bytes()).unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("invalid_identity"), "{text}");
        began.elapsed()
    }

    /// Memory that the agent has in use, in KiB.
    fn resident_kib(&self) -> u64 {
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

/// Says that it is over, also when a stranger was not answered as it should be.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write_private(path: &Path, content: &[u8]) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.unwrap().write_all(content).unwrap();
}

fn all_of(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // An end without TLS's own last word; the answers are counted.
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(e),
        _ => Ok(answer),
    }
}

#[test]
fn a_hundred_thousand_strangers_cost_no_memory() {
    let requests: usize = CALLS.iter().map(|(_, count, each)| count * each).sum();
    assert_eq!(requests, 100_000);
    let agent = Agent::start();
    agent.hears();
    let (before, began) = (agent.resident_kib(), Instant::now());
    // Every stranger does the same, a part of all: what comes first and last is of the same kind.
    let quarter = |agent: &Agent| {
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    for (way, count, each) in CALLS {
                        for _ in 0..count.div_ceil(4 * AT_ONCE) {
                            agent.strange(way, each);
                        }
                    }
                });
            }
        });
        agent.resident_kib()
    };
    let over = AtomicBool::new(false);
    let (after, heard) = std::thread::scope(|scope| {
        let known = scope.spawn(|| {
            let mut heard = Vec::new();
            while !over.load(Ordering::Relaxed) {
                heard.push(agent.hears());
                std::thread::sleep(Duration::from_millis(20));
            }
            heard
        });
        let after: Vec<u64> = {
            let _over = Over(&over);
            (0..4).map(|_| quarter(&agent)).collect()
        };
        (after, known.join().unwrap())
    });
    println!(
        "{requests} requests in {:?}; resident {before} KiB, then {after:?}; {} callers with a token, the slowest heard after {:?}",
        began.elapsed(),
        heard.len(),
        heard.iter().max()
    );
    let peak = *after.iter().max().unwrap();
    assert!(peak < before + GROWTH_MAX_KIB, "{before}, then {after:?}");
    assert!(peak < after[0] + FLAT_KIB, "{before}, then {after:?}");
}
