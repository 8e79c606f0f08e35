//! A real sshd for one test: its own address, port, host key, user key, configuration and home directory.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use audit::{Log, Redactor};
use ssh::{Command, Error, ExecutionResult, Hosts, Input, Output, Remote};

pub struct Sshd {
    pub dir: tempfile::TempDir,
    pub host: String,
    pub port: u16,
    child: Child,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this machine can run these tests; otherwise it is said, as CONTRIBUTING.md wants.
pub fn can_run() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|m| {
        use std::os::unix::fs::MetadataExt as _;
        m.uid() == 0
    });
    let there = Path::new("/usr/sbin/sshd").exists();
    if !root || !there {
        println!("SKIPPED: tests with sshd need root and the package openssh-server");
    }
    root && there
}

pub fn keygen(path: &Path, arguments: &[&str]) {
    let made = Process::new("ssh-keygen")
        .args(["-q", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

impl Sshd {
    /// With an ed25519 host key that stands in `known_hosts`, and a user's key that may log in as root.
    pub fn start(lines: &str) -> Self {
        let sshd = Self::start_untrusted(lines);
        sshd.trust("host");
        sshd
    }

    pub fn start_untrusted(lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        keygen(&dir.path().join("host"), &["-t", "ed25519"]);
        Self::start_in(dir, lines)
    }

    /// With what `dir` holds: `host` is the host key.
    pub fn start_in(dir: tempfile::TempDir, lines: &str) -> Self {
        // Where sshd keeps its unprivileged part; Debian makes it when the service starts.
        fs::create_dir_all("/run/sshd").unwrap();
        let at = dir.path().to_owned();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(at.join("home")).unwrap();
        fs::create_dir_all(at.join("keys")).unwrap();
        if !at.join("keys/vm01").exists() {
            keygen(&at.join("keys/vm01"), &["-t", "ed25519"]);
        }
        if !at.join("authorized").exists() {
            fs::copy(at.join("keys/vm01.pub"), at.join("authorized")).unwrap();
        }
        let host = "127.0.0.1".to_owned();
        for _ in 0..10 {
            let free = TcpListener::bind((host.as_str(), 0)).unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            if let Some(child) = spawn(&at, &host, port, lines) {
                return Self {
                    dir,
                    host,
                    port,
                    child,
                };
            }
        }
        panic!(
            "sshd did not start: {}",
            fs::read_to_string(at.join("log")).unwrap()
        );
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the public key of a private key file into `known_hosts`.
    pub fn trust(&self, key: &str) {
        self.know("", key);
    }

    pub fn know(&self, marker: &str, key: &str) {
        let key = fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
        let old = fs::read_to_string(self.path("known_hosts")).unwrap_or_default();
        let line = format!("{old}{marker}[{}]:{} {key}", self.host, self.port);
        fs::write(self.path("known_hosts"), line).unwrap();
    }

    pub fn config(&self, vm: &str, settings: &str) -> String {
        let at = self.dir.path().display();
        format!(
            "vms: {{ vm01: {{ ip: {}, ssh_port: {}, ssh_user: root{vm} }}, off: {{ ip: x, ssh_user: root, enabled: false }} }}\n\
             remote_execution: {{ known_hosts: {at}/known_hosts, key_storage_path: {at}/keys, audit_dir: {at}/audit, use_agent: false, default_retry: 0{settings} }}\n",
            self.host, self.port
        )
    }

    pub async fn remote(&self) -> Remote {
        self.remote_with("", "").await
    }

    pub async fn remote_with(&self, vm: &str, settings: &str) -> Remote {
        let hosts = Hosts::parse(&self.config(vm, settings), None).unwrap();
        let log: Log = ssh::journal::open(&self.path("audit"), Redactor::default())
            .await
            .unwrap();
        Remote::new(hosts, log, "tester")
    }

    /// The processes that serve connections: descendants of this server that are servers themselves.
    pub fn sessions(&self) -> Vec<u32> {
        let mut family = vec![self.child.id()];
        let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| {
                let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                let (name, rest) = stat.rsplit_once(") ")?;
                let parent = rest.split(' ').nth(1)?.parse().ok()?;
                name.contains("(sshd").then_some((pid, parent))
            })
            .collect();
        let mut at = 0;
        while let Some(of) = family.get(at).copied() {
            family.extend(
                parents
                    .iter()
                    .filter(|(_, parent)| *parent == of)
                    .map(|(pid, _)| *pid),
            );
            at += 1;
        }
        family.remove(0);
        family
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn audit(&self) -> String {
        fs::read_to_string(self.path("audit/remote-audit-0.log")).unwrap_or_default()
    }
}

fn spawn(at: &Path, host: &str, port: u16, lines: &str) -> Option<Child> {
    let dir = at.display();
    // The first value of a key counts, so a test's own lines come first.
    let config = format!(
        "{lines}\nListenAddress {host}\nPort {port}\nHostKey {dir}/host\nPidFile none\nUsePAM no\n\
         AuthorizedKeysFile {dir}/authorized\nStrictModes no\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPermitRootLogin yes\nSetEnv HOME={dir}/home\nLogLevel VERBOSE\n\
         MaxStartups 200\nSubsystem sftp internal-sftp\n"
    );
    fs::write(at.join("sshd_config"), config).unwrap();
    let log = fs::File::create(at.join("log")).unwrap();
    let mut child = Process::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f"])
        .arg(at.join("sshd_config"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if let Ok(stream) = TcpStream::connect((host, port)) {
            let mut banner = String::new();
            let _ = BufReader::new(stream).read_line(&mut banner);
            if banner.starts_with("SSH-2.0-OpenSSH") {
                return Some(child);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Runs argv on `vm01` and collects its output.
pub async fn exec(remote: &Remote, argv: &[&str]) -> Result<ExecutionResult, Error> {
    let command = Command::argv(argv.iter().copied()).unwrap();
    remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(40), "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
