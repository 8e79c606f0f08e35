//! Measures remote execution beside others who do the same, in one run on this machine: OpenSSH's `ssh` and `scp`, a
//! bare channel of the same library, and a Python client. Started by `scripts/bench-remote`; needs root and sshd.
//!
//! Arguments name the parts: exec fresh fleet copy memory; all by default. Every server is an sshd of its own on an
//! address of 127.0.0.0/8, with a home of its own. Exit code 1 when a goal is missed.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use audit::Redactor;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, Preferred, cipher, client};
use ssh::{Command, Hosts, Input, Output, Remote};

const PORT: u16 = 22_022;
const FLEET: u8 = 32;
const COMMANDS: usize = 10;
const COPY_BYTES: u64 = 256 << 20;
const LARGE_BYTES: u64 = 4 << 30;
const MAX_RSS_KIB: u64 = 64 << 10;

/// The servers, which end with it, and the directory in which all of it lies.
struct Servers {
    dir: tempfile::TempDir,
    all: Vec<Child>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.all {
            // One that has ended is what is wanted.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn run(program: &mut Process) -> Result<()> {
    let out = program.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{program:?}: {said}");
    Ok(())
}

fn address(number: u8) -> String {
    format!("127.0.77.{number}")
}

impl Servers {
    fn start(count: u8) -> Result<Self> {
        fs::create_dir_all("/run/sshd")?;
        let dir = tempfile::tempdir()?;
        let at = dir.path();
        fs::set_permissions(at, Permissions::from_mode(0o755))?;
        fs::create_dir(at.join("home"))?;
        for key in ["host", "user"] {
            let mut keygen = Process::new("ssh-keygen");
            run(keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(at.join(key)))?;
        }
        fs::copy(at.join("user.pub"), at.join("authorized"))?;
        let host_key = fs::read_to_string(at.join("host.pub"))?;
        let (mut known, mut vms) = (String::new(), String::new());
        let mut servers = Self {
            all: Vec::new(),
            dir,
        };
        for number in 1..=count {
            let host = address(number);
            known.push_str(&format!("[{host}]:{PORT} {host_key}"));
            let key = servers.path("user");
            let key = key.display();
            vms.push_str(&format!(
                "  vm{number}: {{ ip: {host}, ssh_port: {PORT}, ssh_user: root, key_file: {key} }}\n"
            ));
            servers.all.push(servers.sshd(&host)?);
        }
        fs::write(servers.path("known_hosts"), known)?;
        let at = servers.dir.path().display();
        let settings = format!(
            "remote_execution: {{ known_hosts: {at}/known_hosts, key_storage_path: {at}, audit_dir: {at}/audit, use_agent: false, default_timeout: 600 }}"
        );
        fs::write(
            servers.path("config.yml"),
            format!("vms:\n{vms}{settings}\n"),
        )?;
        fs::write(
            servers.path("ssh_config"),
            format!(
                "Host *\n Port {PORT}\n User root\n IdentityFile {at}/user\n IdentitiesOnly yes\n \
                 UserKnownHostsFile {at}/known_hosts\n StrictHostKeyChecking yes\n KexAlgorithms curve25519-sha256\n"
            ),
        )?;
        for number in 1..=count {
            let until = Instant::now() + Duration::from_secs(20);
            while TcpStream::connect((address(number), PORT)).is_err() {
                ensure!(Instant::now() < until, "sshd {number} does not serve");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(servers)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sshd(&self, host: &str) -> Result<Child> {
        let at = self.dir.path().display();
        let config = self.path(&format!("sshd-{host}"));
        fs::write(
            &config,
            format!(
                "ListenAddress {host}\nPort {PORT}\nHostKey {at}/host\nPidFile none\nUsePAM no\nStrictModes no\n\
                 AuthorizedKeysFile {at}/authorized\nPermitRootLogin yes\nSetEnv HOME={at}/home\nLogLevel ERROR\n\
                 MaxStartups 200\nSubsystem sftp internal-sftp\n"
            ),
        )?;
        let mut sshd = Process::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(config);
        let sshd = sshd.stdin(Stdio::null()).stdout(Stdio::null());
        sshd.stderr(Stdio::null()).spawn().context("start sshd")
    }

    async fn remote(&self) -> Result<Remote> {
        remote(self.dir.path()).await
    }

    fn ssh(&self, program: &str) -> Process {
        let mut ssh = Process::new(program);
        ssh.arg("-F").arg(self.path("ssh_config"));
        ssh
    }
}

async fn remote(at: &Path) -> Result<Remote> {
    let text = fs::read_to_string(at.join("config.yml"))?;
    let hosts = Hosts::parse(&text, None)?;
    let log = ssh::journal::open(&hosts.settings.audit_dir, Redactor::default()).await?;
    Ok(Remote::new(hosts, log, "bench"))
}

async fn ours(remote: &Remote, vm: &str) -> Result<Duration> {
    let command = Command::argv(["/bin/true"])?;
    let began = Instant::now();
    let result = remote
        .execute(vm, &command, Input::None, Output::Collect)
        .await?;
    ensure!(result.success, "{result:?}");
    Ok(began.elapsed())
}

fn timed(program: &mut Process) -> Result<Duration> {
    let began = Instant::now();
    run(program)?;
    Ok(began.elapsed())
}

/// Believes the one key that all servers of this run have.
struct Door(String);

impl client::Handler for Door {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let shown = key.public_key().to_openssh().unwrap_or_default();
        let shown: Vec<&str> = shown.split(' ').take(2).collect();
        Ok(self.0.starts_with(&shown.join(" ")))
    }
}

async fn raw_connection(servers: &Servers) -> Result<client::Handle<Door>> {
    let config = client::Config {
        nodelay: true,
        preferred: Preferred {
            cipher: vec![cipher::CHACHA20_POLY1305].into(),
            ..Preferred::default()
        },
        ..client::Config::default()
    };
    let door = Door(fs::read_to_string(servers.path("host.pub"))?);
    let mut handle = client::connect(Arc::new(config), (address(1), PORT), door).await?;
    let key = PrivateKey::from_openssh(fs::read(servers.path("user"))?)?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    let answer = handle.authenticate_publickey("root", key).await?;
    ensure!(answer.success(), "the raw connection was not let in");
    Ok(handle)
}

async fn raw(handle: &client::Handle<Door>) -> Result<Duration> {
    let began = Instant::now();
    let mut channel = handle.channel_open_session().await?;
    channel.exec(true, "/bin/true").await?;
    let mut code = None;
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    ensure!(code == Some(0), "{code:?}");
    Ok(began.elapsed())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times
        .get(times.len() / 2)
        .copied()
        .unwrap_or_default()
        .as_secs_f64()
        * 1e3
}

/// Rows of the table, and whether all goals were reached.
struct Table {
    missed: bool,
}

impl Table {
    /// `most` bounds ours / peer, in milliseconds each.
    fn row(&mut self, what: &str, peer: &str, ours: f64, theirs: f64, most: f64) {
        let ratio = ours / theirs;
        let told = if ratio <= most { "" } else { "  MISSED" };
        self.missed |= ratio > most;
        println!(
            "{what:<28} {peer:<24} {ours:>10.2} {theirs:>10.2} {ratio:>7.2} {most:>7.2}{told}"
        );
    }

    fn missing(&mut self, what: &str, peer: &str, why: &str) {
        self.missed = true;
        println!("{what:<28} {peer:<24} IS MISSING: {why}");
    }
}

async fn exec(servers: &Servers, table: &mut Table) -> Result<()> {
    let remote = servers.remote().await?;
    let handle = raw_connection(servers).await?;
    let control = servers.path("control");
    let master = || {
        let mut ssh = servers.ssh("ssh");
        ssh.arg("-o")
            .arg(format!("ControlPath={}", control.display()));
        ssh
    };
    run(master().args(["-f", "-N", "-M", &address(1)]))?;
    let (mut our, mut bare, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..230 {
        let one = ours(&remote, "vm1").await?;
        let two = raw(&handle).await?;
        let three = timed(master().args([&address(1), "/bin/true"]))?;
        // The first ones are for the warden and the caches.
        if round >= 30 {
            our.push(one);
            bare.push(two);
            theirs.push(three);
        }
    }
    run(master().args(["-O", "exit", &address(1)]))?;
    let our = median(our);
    table.row(
        "exec, warm (ms)",
        "ssh, ControlMaster",
        our,
        median(theirs),
        1.0 / 3.0,
    );
    table.row("exec, warm (ms)", "a bare channel", our, median(bare), 1.2);
    Ok(())
}

async fn fresh(servers: &Servers, table: &mut Table) -> Result<()> {
    let (mut our, mut theirs) = (Vec::new(), Vec::new());
    let log = ssh::journal::open(&servers.path("audit"), Redactor::default()).await?;
    let text = fs::read_to_string(servers.path("config.yml"))?;
    for round in 0..35 {
        let remote = Remote::new(Hosts::parse(&text, None)?, log.clone(), "bench");
        let one = ours(&remote, "vm1").await?;
        drop(remote);
        let mut ssh = servers.ssh("ssh");
        let home = servers.path("home");
        let two = timed(ssh.env("HOME", home).args([&address(1), "/bin/true"]))?;
        if round >= 5 {
            our.push(one);
            theirs.push(two);
        }
    }
    table.row(
        "connect + exec (ms)",
        "ssh",
        median(our),
        median(theirs),
        0.8,
    );
    Ok(())
}

async fn fleet(servers: &Servers, table: &mut Table) -> Result<()> {
    let what = format!("{FLEET} hosts x {COMMANDS} (ms)");
    let mut times = Vec::new();
    for _ in 0..3 {
        let remote = servers.remote().await?;
        let began = Instant::now();
        let mut all = tokio::task::JoinSet::new();
        for number in 1..=FLEET {
            let remote = remote.clone();
            all.spawn(async move {
                for _ in 0..COMMANDS {
                    ours(&remote, &format!("vm{number}")).await?;
                }
                Ok::<(), anyhow::Error>(())
            });
        }
        while let Some(one) = all.join_next().await {
            one??;
        }
        times.push(began.elapsed());
    }
    let our = median(times);
    let Some(python) = std::env::var_os("BENCH_PYTHON") else {
        table.missing(
            &what,
            "a Python client",
            "BENCH_PYTHON names no interpreter",
        );
        return Ok(());
    };
    for client in ["paramiko", "asyncssh"] {
        let mut times = Vec::new();
        for _ in 0..3 {
            let mut program = Process::new(&python);
            let key = servers.path("user");
            let hosts: Vec<String> = (1..=FLEET).map(address).collect();
            program.arg(std::env::var_os("BENCH_FLEET").unwrap_or_default());
            let program = program.args([client, &PORT.to_string()]).arg(key);
            let program = program.arg(servers.path("known_hosts"));
            let out = program.arg(COMMANDS.to_string()).args(hosts).output()?;
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            let Ok(ms) = said.trim().parse::<f64>() else {
                table.missing(&what, client, String::from_utf8_lossy(&out.stderr).trim());
                return Ok(());
            };
            times.push(Duration::from_secs_f64(ms / 1e3));
        }
        table.row(&what, client, our, median(times), 0.2);
    }
    Ok(())
}

async fn copy(servers: &Servers, table: &mut Table) -> Result<()> {
    let remote = servers.remote().await?;
    let (source, target) = (servers.path("source"), servers.path("target"));
    fill(&source, COPY_BYTES)?;
    let far = |path: &Path| format!("{}:{}", address(1), path.display());
    let (mut up, mut down) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..5 {
        let there = target.display().to_string();
        let began = Instant::now();
        remote.upload("vm1", &source, &there, |_| {}).await?;
        up.0.push(began.elapsed());
        let mut scp = servers.ssh("scp");
        up.1.push(timed(scp.arg("-q").arg(&source).arg(far(&target)))?);
        let began = Instant::now();
        let here = source.display().to_string();
        remote.download("vm1", &here, &target, |_| {}).await?;
        down.0.push(began.elapsed());
        let mut scp = servers.ssh("scp");
        down.1
            .push(timed(scp.arg("-q").arg(far(&source)).arg(&target))?);
    }
    table.row(
        "256 MiB up (ms)",
        "scp",
        median(up.0),
        median(up.1),
        1.0 / 1.5,
    );
    table.row(
        "256 MiB down (ms)",
        "scp",
        median(down.0),
        median(down.1),
        1.0 / 1.2,
    );
    Ok(())
}

fn fill(path: &Path, bytes: u64) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let piece: Vec<u8> = (0_u32..1 << 18)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    for _ in 0..bytes >> 20 {
        file.write_all(&piece)?;
    }
    Ok(())
}

/// In a process of its own, whose memory nothing else has used.
fn memory(servers: &Servers, table: &mut Table) -> Result<()> {
    let source = servers.path("large");
    fs::File::create(&source)?.set_len(LARGE_BYTES)?;
    for way in ["up", "down"] {
        let mut program = Process::new(std::env::current_exe()?);
        let out = program
            .arg("--transfer")
            .arg(way)
            .arg(servers.dir.path())
            .output()?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let Ok(peak) = said.trim().parse::<u32>() else {
            bail!("{}", String::from_utf8_lossy(&out.stderr));
        };
        let what = format!("4 GiB {way}: peak RSS (MiB)");
        let most = f64::from(u32::try_from(MAX_RSS_KIB)?) / 1024.0;
        table.row(&what, "the bound", f64::from(peak) / 1024.0, most, 1.0);
        fs::remove_file(servers.path("landed"))?;
    }
    Ok(())
}

async fn transfer(way: &str, at: &Path) -> Result<()> {
    let remote = remote(at).await?;
    let (large, landed) = (at.join("large"), at.join("landed"));
    if way == "up" {
        let target = landed.display().to_string();
        remote.upload("vm1", &large, &target, |_| {}).await?;
    } else {
        let source = large.display().to_string();
        remote.download("vm1", &source, &landed, |_| {}).await?;
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|line| line.split_whitespace().next());
    println!("{}", peak.context("no VmHWM")?);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, way, at] = parts.as_slice()
        && flag == "--transfer"
    {
        return transfer(way, Path::new(at)).await;
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|one| one == part);
    let servers = Servers::start(if wanted("fleet") { FLEET } else { 1 })?;
    let load = fs::read_to_string("/proc/loadavg")?;
    println!("load before: {}", load.trim());
    println!(
        "{:<28} {:<24} {:>10} {:>10} {:>7} {:>7}",
        "WHAT", "BESIDE", "OURS", "THEIRS", "RATIO", "MOST"
    );
    let mut table = Table { missed: false };
    if wanted("exec") {
        exec(&servers, &mut table).await?;
    }
    if wanted("fresh") {
        fresh(&servers, &mut table).await?;
    }
    if wanted("fleet") {
        fleet(&servers, &mut table).await?;
    }
    if wanted("copy") {
        copy(&servers, &mut table).await?;
    }
    if wanted("memory") {
        memory(&servers, &mut table)?;
    }
    drop(servers);
    ensure!(!table.missed, "a goal was missed");
    Ok(())
}
