//! The testbed on the real thing: namespaces, cgroups, dnsmasq, lxcfs and LXC. Needs root, and says so.
//!
//! Owns hosts with random names in state directories of its own, so that tests run beside each other and
//! beside other work on the machine.
#![cfg(test)]

mod container;
mod e2e;
mod flood;
mod lifetime;
mod network;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testbed::{Host, HostName, HostOptions};

const PATIENCE: Duration = Duration::from_secs(20);

/// A place for hosts that no other test looks at.
struct Place {
    dir: TempDir,
    name: HostName,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            name: HostName::random().unwrap(),
        }
    }

    /// `testbed ARGS…` for hosts in this place.
    fn testbed(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
        command
            .args(args)
            .env(testbed::STATE_DIR_VARIABLE, self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.testbed(args).output().unwrap()
    }

    fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The state, the lock and the cgroups of the host, as far as they are there.
    fn traces(&self) -> Vec<PathBuf> {
        let name = self.name();
        let mut traces = vec![
            self.dir.path().join(name),
            Path::new("/run/proximity-testbed").join(format!("{name}.lock")),
        ];
        let group = format!("proximity-testbed-{name}");
        let root = Path::new("/sys/fs/cgroup");
        traces.push(root.join(&group));
        for hierarchy in fs::read_dir(root).unwrap().flatten() {
            traces.push(hierarchy.path().join(&group));
        }
        traces.retain(|path| path.exists());
        traces
    }
}

/// A host for one test.
fn start() -> (Place, Host) {
    let place = Place::new();
    let options = HostOptions {
        name: Some(place.name.clone()),
        state_dir: Some(place.dir.path().to_path_buf()),
        ..HostOptions::default()
    };
    let host = Host::start(options).unwrap();
    (place, host)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a shell script in the host prints; the test fails when the script does.
fn script(host: &Host, script: &str) -> String {
    let output = host.run(["sh", "-euc", script]).unwrap();
    assert!(output.status.success(), "{script}\n{output:?}");
    text(&output.stdout)
}

/// The body that an HTTP server gives to a client in the host.
fn get(host: &Host, address: &str, port: u16, path: &str) -> String {
    let request = format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | busybox nc {address} {port}");
    let answer = script(host, &request);
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{address}: {answer:?}"));
    body.trim_end().to_owned()
}

/// Waits for a condition; the test fails when it does not come true.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}
