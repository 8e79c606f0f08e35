//! The agent by itself, beside a bare start of the same program: no controller, no relay, no guest.
//! It is the real program with an identity and tokens as in a guest.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use api::InstanceId;
use link::{Authority, Kind};
use rustls::ClientConfig;
use wire::agent::Scope;

use crate::caller::Caller;
use crate::table::{Goal, Table};
use crate::timing::{Contestant, contest, rate, timed};

const ROUNDS: usize = 2000;
const CALLERS: usize = 64;
const ROUNDS_OF_A_CALLER: usize = 40;
/// Rates are taken so often, in turns; the median counts.
const RATES: usize = 5;
const STARTS: usize = 20;
const START_DEADLINE: Duration = Duration::from_secs(5);
const SIZE_MAX_BYTES: u64 = 4_718_592;
const MEMORY_MAX_BYTES: u64 = 4 << 20;
const START_MAX_MS: u64 = 5;

/// Measures all of it.
pub fn measure(program: &Path, memory: &Path, table: &mut Table) -> anyhow::Result<()> {
    let place = Place::new(program, memory)?;
    let size = place.program.metadata().map(|data| data.len());
    let size = size.context("the agent's size");
    table.bound("agent: bytes on disk", &size, Some(SIZE_MAX_BYTES), mib);
    let starts = contest(vec![Contestant::new(STARTS, || place.start_once())]);
    for starts in &starts {
        table.bound_times("agent: start to first answer", starts, Some(START_MAX_MS));
    }
    let agent = place.start()?;
    let idle = agent.resident_bytes();
    table.bound("agent: memory, idle", &idle, Some(MEMORY_MAX_BYTES), mib);
    commands(&place, table)?;
    at_a_time(&place, table)?;
    let after = agent.resident_bytes();
    table.bound("agent: memory, after all of this", &after, None, mib);
    Ok(())
}

fn commands(place: &Place, table: &mut Table) -> anyhow::Result<()> {
    let mut unix = place.unix()?;
    let mut tls = place.tls()?;
    let times = contest(vec![
        Contestant::new(ROUNDS, || Ok(timed(bare)?.0)),
        Contestant::new(ROUNDS, || Ok(timed(|| run_true(&mut unix))?.0)),
        Contestant::new(ROUNDS, || Ok(timed(|| run_true(&mut tls))?.0)),
    ]);
    if let [bare, unix, tls] = &times[..] {
        let peer = "posix_spawn and wait";
        let over = "true: agent over a unix socket";
        table.times(over, unix, peer, bare, Goal::AtMost(1.5));
        let over = "true: agent over TLS";
        table.times(over, tls, peer, bare, Goal::AtMost(2.0));
    }
    Ok(())
}

fn at_a_time(place: &Place, table: &mut Table) -> anyhow::Result<()> {
    let (mut ours, mut its) = (Vec::new(), Vec::new());
    for _ in 0..RATES {
        its.push(rate(CALLERS, ROUNDS_OF_A_CALLER, || Ok(bare))?);
        ours.push(rate(CALLERS, ROUNDS_OF_A_CALLER, || {
            let mut caller = place.unix()?;
            Ok(move || run_true(&mut caller))
        })?);
    }
    table.compare(
        "true: 64 at a time, over a unix socket",
        &Ok(median(ours)),
        "posix_spawn, 64 threads",
        &Ok(median(its)),
        Goal::AtLeast(0.6),
        |rate| *rate,
        |rate| format!("{rate:.0}/s"),
    );
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

fn bare() -> anyhow::Result<()> {
    let status = Command::new("/bin/true").stdin(Stdio::null()).status()?;
    ensure!(status.success(), "/bin/true failed");
    Ok(())
}

fn run_true(caller: &mut Caller) -> anyhow::Result<()> {
    let answer = caller.ok("POST", "/exec", r#"{"argv":["/bin/true"]}"#)?;
    ensure!(
        String::from_utf8_lossy(&answer).contains(r#""exit_code":0"#),
        "the agent's /bin/true failed"
    );
    Ok(())
}

fn mib(bytes: &u64) -> String {
    format!("{:.2} MiB", *bytes as f64 / f64::from(1 << 20))
}

/// Where an agent of ours is, and how it is talked to.
struct Place {
    program: PathBuf,
    bundle: PathBuf,
    socket: PathBuf,
    tcp: SocketAddr,
    name: String,
    headers: String,
    tls: Arc<ClientConfig>,
}

impl Place {
    fn new(program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let authority = Authority::open(&directory.join("keys"))?;
        let id = InstanceId::from_bytes([7; 8]);
        let now = SystemTime::now();
        let identity = authority.bundle(Kind::Guest, &id, now)?;
        let bundle = directory.join("bundle.json");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&bundle)
            .context("make the identity's file")?;
        serde_json::to_writer(file, &identity)?;
        let token = authority.tokens().bearer(id.as_str(), Scope::Exec, now)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(authority.roots(Kind::Guest))
            .with_no_client_auth();
        // Free until the agent takes it: nobody else is in this network.
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Ok(Self {
            program: program.to_owned(),
            bundle,
            socket: directory.join("agent.sock"),
            tcp,
            name: wire::agent::server_name(&id),
            headers: format!("authorization: {}\r\n", token.to_str()?),
            tls: Arc::new(tls),
        })
    }

    fn unix(&self) -> anyhow::Result<Caller> {
        Caller::unix(&self.socket, &self.headers)
    }

    fn tls(&self) -> anyhow::Result<Caller> {
        Caller::tls(self.tcp, &self.name, &self.tls, &self.headers)
    }

    fn start_once(&self) -> anyhow::Result<Duration> {
        let (time, agent) = timed(|| self.start())?;
        drop(agent);
        Ok(time)
    }

    /// Returns when the agent has answered.
    fn start(&self) -> anyhow::Result<Agent> {
        let began = Instant::now();
        let child = Command::new(&self.program)
            .args(["serve", "--bundle"])
            .arg(&self.bundle)
            .arg("--unix")
            .arg(&self.socket)
            .args(["--listen", &self.tcp.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let mut agent = Agent(child);
        loop {
            match self.unix().and_then(|mut c| c.ok("GET", "/health", "")) {
                Ok(_) => return Ok(agent),
                Err(error) if began.elapsed() > START_DEADLINE => {
                    return Err(error.context("the agent does not answer"));
                }
                Err(_) => {}
            }
            if let Some(status) = agent.0.try_wait()? {
                bail!("the agent ended at its start: {status}");
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A running agent; dropped, it is gone.
struct Agent(Child);

impl Agent {
    fn resident_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.0.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: u64 = kib.context("no VmRSS")?.parse()?;
        Ok(kib << 10)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let ended: io::Result<_> = self.0.kill().and_then(|()| self.0.wait());
        if let Err(error) = ended {
            eprintln!("bench: the agent did not end: {error}");
        }
    }
}
