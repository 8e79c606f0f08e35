//! The HTTP API over its unix socket, with an appliance that has no programs: enough for what the
//! API itself promises.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agent::client::{self, Answer, ClientError};
use agent::gateway::dhcp_release::HeldLease;
use agent::gateway::dns_probe;
use agent::gateway::paths::Paths;
use agent::gateway::system::{Command, CommandError, System};
use agent::relay::Relay;
use api::{HostName, Problem};
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::gateway::change::GatewayChange;
use wire::gateway::{GatewayDiff, GatewayReport, GatewayState};

/// A machine on which every command succeeds, every name is gone and nothing listens.
#[derive(Clone, Default)]
pub struct Bare {
    /// The most commands that ran at one time, and those that run now.
    at_once: Arc<Mutex<usize>>,
    now: Arc<AtomicUsize>,
}

impl System for Bare {
    async fn run(&self, command: Command) -> Result<String, CommandError> {
        if command
            .argv
            .first()
            .is_some_and(|program| program == "openssl")
        {
            // Certificate and key, where the last arguments say.
            for file in command.argv.iter().rev().take(3).step_by(2) {
                std::fs::write(file, "made").unwrap();
            }
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        let mut most = self.at_once.lock().unwrap();
        *most = (*most).max(now);
        Ok(String::new())
    }

    async fn ask(&self, _: Ipv4Addr, _: &HostName) -> dns_probe::Answer {
        dns_probe::Answer::None
    }

    async fn release(&self, _: Ipv4Addr, _: &HeldLease) -> std::io::Result<()> {
        Ok(())
    }

    async fn accepts(&self, _: &Path) -> bool {
        true
    }
}

struct Lab {
    paths: Paths,
    system: Bare,
    _root: tempfile::TempDir,
}

/// The files of an appliance that has just been made.
pub fn appliance() -> (tempfile::TempDir, Paths) {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::below(root.path());
    for directory in ["conf/all", "conf/eth1", "neigh/eth1"] {
        let directory = paths.sysctl(&format!("net/ipv4/{directory}"));
        std::fs::create_dir_all(directory).unwrap();
    }
    std::fs::create_dir_all(paths.os_release().parent().unwrap()).unwrap();
    std::fs::write(paths.os_release(), "ID=debian\n").unwrap();
    (root, paths)
}

async fn lab() -> Lab {
    let (root, paths) = appliance();
    let system = Bare::default();
    let relay = Relay::start(paths.clone(), system.clone(), None)
        .await
        .unwrap();
    tokio::spawn(relay.serve());
    Lab {
        paths,
        system,
        _root: root,
    }
}

impl Lab {
    async fn call(&self, method: Method, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        let socket = self.paths.relay_socket();
        client::call(&socket, method, path, body.into())
            .await
            .unwrap()
    }

    async fn problem(&self, method: Method, path: &str, body: impl Into<Vec<u8>>) -> Problem {
        let answer = self.call(method, path, body).await;
        let problem: Problem = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem.status, answer.status.as_u16());
        problem
    }
}

pub fn state() -> GatewayState {
    serde_json::from_str(
        r#"{"network":{"domain":"prox.local","subnet":"10.20.0.0/24","gateway":"10.20.0.1",
        "dhcp_first":"10.20.0.100","dhcp_last":"10.20.0.250","lease_s":43200,
        "upstream_dns":["192.0.2.53"],"wan":"eth0","lan":"eth1"},"hosts":[],"routes":[]}"#,
    )
    .unwrap()
}

#[tokio::test]
async fn a_state_goes_in_and_a_report_comes_out() {
    let lab = lab().await;
    let mode = std::fs::metadata(lab.paths.relay_socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let body = serde_json::to_vec(&state()).unwrap();
    let answer = lab.call(Method::PUT, "/gateway", body.clone()).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let diff: GatewayDiff = serde_json::from_slice(&answer.body).unwrap();
    assert!(
        diff.services_changed
            .contains(&"dnsmasq: restarted".to_owned())
    );
    let answer = lab.call(Method::GET, "/gateway", "").await;
    let report: GatewayReport = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(report.agent_version, agent::VERSION);
    assert_eq!(report.services.len(), 5);
    let answer = lab.call(Method::GET, "/gateway/services", "").await;
    let look: GatewayReport = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(look.services, report.services);
    assert!(look.names.is_empty() && look.routes.is_empty());
    let path = "/gateway/routes/nobody.prox.local";
    assert_eq!(lab.call(Method::GET, path, "").await.status, 404);
    let answer = lab.call(Method::GET, "/health", "").await;
    assert_eq!(
        answer.body,
        format!(r#"{{"status":"ok","version":"{}"}}"#, agent::VERSION)
    );
    let saved = std::fs::metadata(lab.paths.state())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(saved & 0o777, 0o600);
}

#[tokio::test]
async fn errors_are_problems_with_a_code() {
    let lab = lab().await;
    let mut wrong = state();
    wrong.network.gateway = [10, 21, 0, 1].into();
    let problem = lab
        .problem(Method::PUT, "/gateway", serde_json::to_vec(&wrong).unwrap())
        .await;
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (422, "invalid_state")
    );
    assert!(
        problem.detail.contains("10.21.0.1") && problem.hint.is_some(),
        "{problem:?}"
    );
    let newer = serde_json::to_string(&state())
        .unwrap()
        .replacen('{', r#"{"more":1,"#, 1);
    let mut newline = serde_json::to_value(state()).unwrap();
    newline["network"]["domain"] = "prox.local\nconf-script=/bin/sh".into();
    for (method, path, body, status, code) in [
        (Method::PUT, "/gateway", newer, 422, "invalid_state"),
        (
            Method::PUT,
            "/gateway",
            newline.to_string(),
            422,
            "invalid_state",
        ),
        (Method::PUT, "/gateway", "{".to_owned(), 400, "invalid_json"),
        (
            Method::PUT,
            "/gateway",
            "x".repeat(5 << 20),
            413,
            "body_too_large",
        ),
        (
            Method::DELETE,
            "/gateway",
            String::new(),
            405,
            "no_such_method",
        ),
        (Method::GET, "/other", String::new(), 404, "no_such_path"),
        (Method::PATCH, "/gateway", "{}".to_owned(), 428, "no_base"),
    ] {
        let problem = lab.problem(method, path, body).await;
        assert_eq!((problem.status, problem.code.as_str()), (status, code));
    }
    assert!(!lab.paths.state().exists(), "nothing of all that was saved");
}

#[tokio::test]
async fn applies_run_one_at_a_time_and_survive_their_caller() {
    let lab = lab().await;
    let mut callers = Vec::new();
    for lease_s in [200, 300, 400] {
        let mut state = state();
        state.network.lease_s = lease_s;
        let body = serde_json::to_vec(&state).unwrap();
        let socket = lab.paths.relay_socket();
        callers.push(tokio::spawn(async move {
            client::call(&socket, Method::PUT, "/gateway", body).await
        }));
    }
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().status, 200);
    }
    assert_eq!(*lab.system.at_once.lock().unwrap(), 1);

    let body = serde_json::to_string(&state()).unwrap();
    let mut stream = tokio::net::UnixStream::connect(lab.paths.relay_socket())
        .await
        .unwrap();
    let head = format!(
        "PUT /gateway HTTP/1.1\r\nhost: relay\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    while std::fs::read(lab.paths.state()).unwrap() != saved(&state()) {
        tokio::task::yield_now().await;
    }
    drop(stream);
    let text = || std::fs::read_to_string(lab.paths.dnsmasq_conf()).unwrap();
    while !text().contains(",43200\n") {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// One request with further lines in its head, and all that is answered.
async fn raw(lab: &Lab, request: &str, lines: &str, body: &str) -> String {
    let socket = lab.paths.relay_socket();
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\ncontent-length: {length}\r\n{lines}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_change_names_the_state_that_it_is_of() {
    let lab = lab().await;
    let before = state();
    let whole = serde_json::to_string(&before).unwrap();
    let answer = raw(&lab, "PUT /gateway", "", &whole).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let tag_of = |answer: &str| {
        let line = answer.lines().find_map(|l| l.strip_prefix("etag: "));
        line.unwrap().to_owned()
    };
    let tag = tag_of(&answer);
    let mut after = state();
    after.edge.names.push(wire::gateway::NameRecord {
        name: "printer.prox.local".parse().unwrap(),
        address: [10, 20, 0, 9].into(),
    });
    let change = GatewayChange::between(&before, &after).unwrap();
    let change = serde_json::to_string(&change).unwrap();
    let base = format!("if-match: {tag}\r\n");
    // Names are answered by nobody here, so it is saved, and is no success.
    let answer = raw(&lab, "PATCH /gateway", &base, &change).await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    let answer = raw(&lab, "PATCH /gateway", &base, &change).await;
    assert!(answer.starts_with("HTTP/1.1 412 "), "{answer}");
    let answer = raw(&lab, "PUT /gateway", "", &whole).await;
    let base = format!("if-match: {}\r\n", tag_of(&answer));
    let answer = raw(&lab, "PATCH /gateway", &base, "{}").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_ne!(tag_of(&answer), tag);
}

fn saved(state: &GatewayState) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(state).unwrap();
    text.push(b'\n');
    text
}

#[tokio::test]
async fn a_relay_that_does_not_run_is_not_reachable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("relay.sock");
    let error = client::call(&socket, Method::GET, "/gateway", Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::NotReachable { .. }));
    std::fs::write(&socket, "").unwrap();
    let listener = tokio::net::UnixListener::bind(dir.path().join("deaf.sock")).unwrap();
    let hangs_up = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 16]).await.unwrap();
    });
    let deaf = dir.path().join("deaf.sock");
    let error = client::call(&deaf, Method::GET, "/gateway", Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Broken(_)));
    hangs_up.await.unwrap();
}

#[tokio::test]
async fn a_system_of_no_known_family_is_left_alone() {
    let (_root, paths) = appliance();
    for (release, named) in [("ID=fedora\n", "fedora"), ("", "\"\"")] {
        std::fs::write(paths.os_release(), release).unwrap();
        let refused = Relay::start(paths.clone(), Bare::default(), None).await;
        let error = refused.err().unwrap().to_string();
        assert!(
            error.contains(named) && error.contains("debian or alpine"),
            "{error}"
        );
        assert!(!paths.run().exists());
    }
}
