//! Logins by a real ssh-agent. Its address stands in the environment of a process, so each login is a process of its own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use crate::sshd::{Sshd, can_run, exec, keygen};

struct Agent {
    dir: tempfile::TempDir,
    child: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Process::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(dir.path().join("socket"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { dir, child };
        let begun = Instant::now();
        while UnixStream::connect(agent.socket()).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "no ssh-agent");
            std::thread::sleep(Duration::from_millis(10));
        }
        agent
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("socket")
    }

    fn add(&self, key: &Path) {
        let added = Process::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", self.socket())
            .output()
            .unwrap();
        assert!(
            added.status.success(),
            "{}",
            String::from_utf8_lossy(&added.stderr)
        );
    }

    /// Logs in to a host in a process that sees this agent; what the process says.
    fn login(&self, sshd: &Sshd) -> String {
        let ran = Process::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "agent::logs_in_as_a_process",
                "--ignored",
                "--nocapture",
            ])
            .env("SSH_AUTH_SOCK", self.socket())
            .env(
                "AGENT_CONFIG",
                sshd.config("", "")
                    .replace("use_agent: false", "use_agent: true"),
            )
            .env("AGENT_AUDIT", sshd.path("audit"))
            .output()
            .unwrap();
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child of keys_of_an_agent_log_in"]
async fn logs_in_as_a_process() {
    let hosts = ssh::Hosts::parse(&std::env::var("AGENT_CONFIG").unwrap(), None).unwrap();
    let audit = std::env::var("AGENT_AUDIT").unwrap();
    let log = ssh::journal::open(Path::new(&audit), audit::Redactor::default())
        .await
        .unwrap();
    let never: ssh::Passphrases = std::sync::Arc::new(|_: &Path| {
        println!("ASKED");
        None
    });
    let remote = ssh::Remote::new(hosts, log, "child").passphrases(never);
    match exec(&remote, &["true"]).await {
        Ok(result) => println!("CODE {}", result.exit_code),
        Err(error) => println!("ERROR {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_agent_log_in() {
    if !can_run() {
        return;
    }
    let (sshd, agent) = (Sshd::start(""), Agent::start());
    let key = sshd.path("keys/vm01");
    let aside = sshd.path("vm01-aside");
    fs::rename(&key, &aside).unwrap();
    let said = agent.login(&sshd);
    assert!(said.contains("no SSH agent with keys"), "{said}");
    agent.add(&aside);
    let said = agent.login(&sshd);
    assert!(said.contains("CODE 0"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_key_that_the_agent_has_comes_first_and_nobody_is_asked() {
    if !can_run() {
        return;
    }
    let (sshd, agent) = (Sshd::start("MaxAuthTries 2"), Agent::start());
    // More keys than are tried, and one that is too weak, before the right one.
    for number in 0..6 {
        let other = sshd.path(&format!("other-{number}"));
        keygen(&other, &["-t", "ed25519"]);
        agent.add(&other);
    }
    let weak = sshd.path("weak");
    keygen(&weak, &["-t", "rsa", "-b", "2048"]);
    agent.add(&weak);
    let key = sshd.path("keys/vm01");
    agent.add(&key);
    let lock = |passphrase: &str| {
        let locked = Process::new("ssh-keygen")
            .args(["-q", "-p", "-P", "", "-N", passphrase, "-f"])
            .arg(&key)
            .status();
        assert!(locked.unwrap().success());
    };
    lock("correct horse");
    let said = agent.login(&sshd);
    assert!(said.contains("CODE 0") && !said.contains("ASKED"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_an_agent_log_in() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for key in ["host", "ca"] {
        keygen(&dir.path().join(key), &["-t", "ed25519"]);
    }
    fs::write(dir.path().join("authorized"), "").unwrap();
    let lines = format!("TrustedUserCAKeys {}", dir.path().join("ca.pub").display());
    let (sshd, agent) = (Sshd::start_in(dir, &lines), Agent::start());
    sshd.trust("host");
    for kind in [
        &["-t", "ed25519"][..],
        &["-t", "ecdsa"],
        &["-t", "rsa", "-b", "3072"],
    ] {
        let key = sshd.path("aside");
        for name in ["aside", "aside.pub", "aside-cert.pub", "keys/vm01"] {
            let _ = fs::remove_file(sshd.path(name));
        }
        keygen(&key, kind);
        let signed = Process::new("ssh-keygen")
            .args(["-q", "-s"])
            .arg(sshd.path("ca"))
            .args(["-I", "test", "-n", "root", "-V", "+1h"])
            .arg(sshd.path("aside.pub"))
            .status();
        assert!(signed.unwrap().success());
        let agent = Agent::start();
        agent.add(&key);
        let said = agent.login(&sshd);
        assert!(said.contains("CODE 0"), "{kind:?}: {said}");
    }
    let said = agent.login(&sshd);
    assert!(said.contains("ERROR"), "{said}");
}
