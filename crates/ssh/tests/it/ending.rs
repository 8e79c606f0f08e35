//! Ends: deadlines, callers and connections that go away. What is claimed of the far side is looked at there, which
//! is this machine.

use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ssh::{Command, Error, Hosts, Input, Output, Remote};

use crate::relay::{Relay, through};
use crate::sshd::{Sshd, can_run, eventually, exec};

/// A number that stands in the arguments of one test's processes only.
pub fn unique() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{}.{}{next}",
        100_000 + std::process::id(),
        std::process::id()
    )
}

/// The processes that have this argument.
fn processes(argument: &str) -> Vec<String> {
    let has_it = |process: &fs::DirEntry| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|word| word == argument.as_bytes())
    };
    let all = fs::read_dir("/proc").unwrap().flatten().filter(has_it);
    all.map(|process| process.file_name().into_string().unwrap())
        .collect()
}

pub fn alive(argument: &str) -> usize {
    processes(argument).len()
}

pub fn kill(argument: &str) {
    let kill = std::process::Command::new("kill")
        .args(processes(argument))
        .status();
    assert!(kill.unwrap().success());
}

/// A tree that does not want to end: it ignores TERM, leaves its session and family, and clears its environment.
pub fn stubborn(mark: &str) -> Command {
    let script = format!(
        "trap '' TERM; sleep {mark} & setsid sleep {mark} & env -i sleep {mark} & \
         (setsid env -i sleep {mark} >/dev/null 2>&1 &); wait; sleep {mark}"
    );
    Command::shell(script).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_whole_tree() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let mark = unique();
    let command = stubborn(&mark).timeout(Duration::from_secs(2));
    let begun = Instant::now();
    let running = tokio::spawn({
        let remote = remote.clone();
        async move {
            remote
                .execute("vm01", &command, Input::None, Output::Collect)
                .await
        }
    });
    eventually("the tree is there", || alive(&mark) >= 4).await;
    let result = running.await.unwrap().unwrap();
    assert!(result.timed_out && !result.success, "{result:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?}",
        begun.elapsed()
    );
    eventually("the tree is gone", || alive(&mark) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_asks_before_it_forces() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let said = sshd.path("said");
    let script = format!(
        "trap 'echo bye >{}; exit 5' TERM; while :; do sleep 0.1; done",
        said.display()
    );
    for input in [Input::None, Input::Bytes("x".into())] {
        let _ = fs::remove_file(&said);
        let command = Command::shell(script.clone())
            .unwrap()
            .timeout(Duration::from_secs(1));
        let result = remote
            .execute("vm01", &command, input, Output::Collect)
            .await
            .unwrap();
        assert!(result.timed_out, "{result:?}");
        assert_eq!(fs::read_to_string(&said).unwrap(), "bye\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_takes_the_tree_along() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    for input in [Input::None, Input::Bytes("x".into())] {
        let mark = unique();
        let command = stubborn(&mark).timeout(Duration::from_secs(600));
        let running = tokio::spawn({
            let remote = remote.clone();
            async move {
                remote
                    .execute("vm01", &command, input, Output::Collect)
                    .await
            }
        });
        eventually("the tree is there", || alive(&mark) >= 4).await;
        running.abort();
        eventually("the tree is gone", || alive(&mark) == 0).await;
    }
    // The record says that nobody knows.
    eventually("the outcome is recorded", || {
        sshd.audit().matches("\"outcome\":\"unknown\"").count() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_leaves_on_purpose_stays() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let mark = unique();
    let script = format!("setsid sleep {mark} >/dev/null 2>&1 </dev/null & echo started");
    let result = exec(&remote, &["sh", "-c", &script]).await.unwrap();
    assert_eq!(result.stdout, "started\n");
    assert!(result.warnings.is_empty(), "{result:?}");
    assert_eq!(alive(&mark), 1);
    // One that holds the output open does not hold the caller.
    let script = format!("sleep {mark} & echo started");
    let begun = Instant::now();
    let result = exec(&remote, &["sh", "-c", &script]).await.unwrap();
    assert_eq!((result.stdout.as_str(), result.exit_code), ("started\n", 0));
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(
        result.warnings[0].contains("holds its output open"),
        "{result:?}"
    );
    kill(&mark);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_on_the_way_is_an_unknown_outcome() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let relay = Relay::to(&sshd.host, sshd.port, 0);
    let remote = through(&sshd, &relay).await;
    let (mark, count) = (unique(), sshd.path("count"));
    let script = format!("echo ran >>{}; sleep {mark}", count.display());
    let mut command = Command::shell(script).unwrap();
    command.retry = Some(5);
    let running = tokio::spawn(async move {
        remote
            .execute("vm01", &command, Input::None, Output::Collect)
            .await
    });
    eventually("it runs", || alive(&mark) == 1).await;
    relay.cut.store(true, Ordering::Relaxed);
    let error = running.await.unwrap().unwrap_err();
    assert!(error.may_have_run(), "{error}");
    assert!(
        sshd.audit().contains("\"outcome\":\"unknown\""),
        "{}",
        sshd.audit()
    );
    // It was not run a second time, and what was left behind has been ended.
    eventually("the command is gone", || alive(&mark) == 0).await;
    assert_eq!(fs::read_to_string(&count).unwrap(), "ran\n");
    assert_eq!(relay.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fail_are_tried_again() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let relay = Relay::to(&sshd.host, sshd.port, 3);
    let remote = through(&sshd, &relay).await;
    let mut command = Command::argv(["echo", "once"]).unwrap();
    command.retry = Some(1);
    let failed = remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await;
    assert!(matches!(failed.unwrap_err(), Error::Handshake { .. }));
    assert_eq!(relay.connections.load(Ordering::Relaxed), 2);
    command.retry = Some(2);
    let result = remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await
        .unwrap();
    assert_eq!((result.stdout.as_str(), result.attempts), ("once\n", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_meets_the_deadline() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let config = sshd.config("", ", connect_timeout: 1").replace(
        &format!("ssh_port: {},", sshd.port),
        &format!("ssh_port: {port},"),
    );
    let log = ssh::journal::open(&sshd.path("audit"), audit::Redactor::default())
        .await
        .unwrap();
    let remote = Remote::new(Hosts::parse(&config, None).unwrap(), log, "tester");
    let begun = Instant::now();
    let error = exec(&remote, &["true"]).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    drop(silent);
    let error = exec(&remote, &["true"]).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}
