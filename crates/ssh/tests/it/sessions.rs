//! Kept connections: shared, replaced when dead, within the server's limits, closed when unused; and commands that a
//! warden watches over keep every promise.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ssh::{Chunk, Command, Error, Input, Output, Remote};
use tokio::sync::mpsc;

use crate::ending::{alive, stubborn, unique};
use crate::relay::{Relay, through};
use crate::sshd::{Sshd, can_run, eventually, exec};

fn logins(sshd: &Sshd) -> usize {
    sshd.log().matches("Accepted publickey").count()
}

/// Until the connection's warden watches over commands.
async fn warm(remote: &Remote) {
    for _ in 0..400 {
        let said = exec(remote, &["printenv", "PROXIMITY_RUN"]).await.unwrap();
        if said.stdout.contains('.') {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no warden");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_share_a_connection() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    for _ in 0..5 {
        assert!(exec(&remote, &["true"]).await.unwrap().success);
    }
    let many = (0..6).map(|_| {
        let remote = remote.clone();
        tokio::spawn(async move { exec(&remote, &["sh", "-c", "sleep 0.2; echo $PPID"]).await })
    });
    let mut parents = std::collections::BTreeSet::new();
    for one in many.collect::<Vec<_>>() {
        parents.insert(one.await.unwrap().unwrap().stdout);
    }
    assert_eq!((logins(&sshd), parents.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_one_session_for_each_connection_serves_many_commands() {
    if !can_run() {
        return;
    }
    for max in [1, 2] {
        let sshd = Sshd::start(&format!("MaxSessions {max}"));
        let remote = sshd.remote().await;
        for _ in 0..6 {
            assert!(exec(&remote, &["true"]).await.unwrap().success);
        }
        let many = (0..12).map(|number: i32| {
            let remote = remote.clone();
            let script = format!("sleep 0.2; echo {number}");
            tokio::spawn(async move { exec(&remote, &["sh", "-c", &script]).await })
        });
        for (number, one) in many.collect::<Vec<_>>().into_iter().enumerate() {
            let result = one.await.unwrap().unwrap();
            assert_eq!((result.stdout, result.attempts), (format!("{number}\n"), 1));
        }
        assert!(logins(&sshd) <= 20, "{}", logins(&sshd));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_connection_is_replaced_silently() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let relay = Relay::to(&sshd.host, sshd.port, 0);
    let remote = through(&sshd, &relay).await;
    warm(&remote).await;
    for _ in 0..3 {
        relay.cut.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(120)).await;
        relay.cut.store(false, Ordering::Relaxed);
        let result = exec(&remote, &["echo", "there"]).await.unwrap();
        assert_eq!((result.stdout.as_str(), result.attempts), ("there\n", 1));
    }
    assert_eq!(relay.connections.load(Ordering::Relaxed), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_connections_are_closed_and_changed_trust_leaves_them() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote_with("", ", idle_timeout: 1").await;
    warm(&remote).await;
    eventually("the connection is closed", || {
        sshd.log().contains("disconnected by user") || sshd.log().contains("Received disconnect")
    })
    .await;
    assert!(exec(&remote, &["true"]).await.unwrap().success);
    let kept = sshd.remote().await;
    assert!(exec(&kept, &["true"]).await.unwrap().success);
    fs::write(sshd.path("known_hosts"), "").unwrap();
    let refused = exec(&kept, &["true"]).await.unwrap_err();
    assert!(matches!(refused, Error::HostKey { .. }), "{refused}");
    let none = sshd.remote_with("", ", idle_timeout: 0").await;
    sshd.trust("host");
    let before = logins(&sshd);
    for _ in 0..2 {
        assert!(exec(&none, &["true"]).await.unwrap().success);
    }
    assert_eq!(logins(&sshd), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_stalls_nobody() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let (to, mut from) = mpsc::channel(1);
    let slow = tokio::spawn({
        let remote = remote.clone();
        async move {
            let command = Command::argv(["head", "-c", "30000000", "/dev/zero"]).unwrap();
            remote
                .execute("vm01", &command, Input::None, Output::Stream(to))
                .await
        }
    });
    let mut read = 0;
    if let Some(Chunk::Stdout(data)) = from.recv().await {
        read += data.len();
    }
    for _ in 0..5 {
        assert!(exec(&remote, &["true"]).await.unwrap().success);
    }
    while let Some(chunk) = from.recv().await {
        if let Chunk::Stdout(data) = chunk {
            read += data.len();
        }
    }
    assert_eq!(
        (read, slow.await.unwrap().unwrap().exit_code),
        (30_000_000, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_command_is_exact() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    warm(&remote).await;
    let every: Vec<u8> = (1..=255).collect();
    let command = Command::argv([
        b"printf".to_vec(),
        b"%s|%s".to_vec(),
        every.clone(),
        b"a\n".to_vec(),
    ])
    .unwrap()
    .env("SECRET", "it's\n$x")
    .unwrap()
    .cwd("/usr")
    .unwrap();
    let (to, mut from) = mpsc::channel(64);
    let ran = remote.execute("vm01", &command, Input::None, Output::Stream(to));
    let read = async {
        let mut all = Vec::new();
        while let Some(chunk) = from.recv().await {
            if let Chunk::Stdout(data) = chunk {
                all.extend_from_slice(&data);
            }
        }
        all
    };
    let (result, all) = tokio::join!(ran, read);
    assert_eq!(result.unwrap().exit_code, 0);
    assert_eq!(all, [every.as_slice(), b"|a\n"].concat());
    let run = async |script: &str, input: Input| {
        let command = Command::shell(script).unwrap();
        let command = command
            .env("SECRET", "it's\n$x")
            .unwrap()
            .cwd("/usr")
            .unwrap();
        remote
            .execute("vm01", &command, input, Output::Collect)
            .await
            .unwrap()
    };
    let result = run(
        "pwd; echo \"$SECRET\"; cat; echo e >&2; exit 7",
        Input::None,
    )
    .await;
    assert_eq!(result.stdout, "/usr\nit's\n$x\n");
    assert_eq!((result.stderr.as_str(), result.exit_code), ("e\n", 7));
    let input = Bytes::from(every.repeat(20_000));
    let result = run("sha256sum; kill -9 $$", Input::Bytes(input.clone())).await;
    let digest = hex::encode(sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        &input,
    )));
    assert!(result.stdout.starts_with(&digest), "{result:?}");
    assert_eq!(
        (result.exit_code, result.signal.as_deref()),
        (137, Some("KILL"))
    );
    let absent = exec(&remote, &["/no/such/program"]).await.unwrap();
    assert_eq!(absent.exit_code, 127);
    let command = Command::argv(["true"]).unwrap().cwd("/no/such").unwrap();
    let refused = remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::NotStarted { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warden_ends_trees_at_the_deadline_and_when_the_caller_leaves() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    warm(&remote).await;
    let (mark, other) = (unique(), unique());
    let neighbour = tokio::spawn({
        let (remote, other) = (remote.clone(), other.clone());
        async move { exec(&remote, &["sleep", &other]).await }
    });
    eventually("the neighbour runs", || alive(&other) == 1).await;
    for input in [Input::None, Input::Bytes("x".into())] {
        let command = stubborn(&mark).timeout(Duration::from_secs(2));
        let result = remote
            .execute("vm01", &command, input, Output::Collect)
            .await
            .unwrap();
        assert!(result.timed_out, "{result:?}");
        eventually("the tree is gone", || alive(&mark) == 0).await;
    }
    let command = stubborn(&mark).timeout(Duration::from_secs(600));
    let running = tokio::spawn({
        let remote = remote.clone();
        async move {
            remote
                .execute("vm01", &command, Input::None, Output::Collect)
                .await
        }
    });
    eventually("the tree is there", || alive(&mark) >= 4).await;
    running.abort();
    eventually("the tree is gone", || alive(&mark) == 0).await;
    // Nobody else's was touched, and its caller takes it along too.
    assert_eq!(alive(&other), 1);
    neighbour.abort();
    eventually("the neighbour is gone", || alive(&other) == 0).await;
    assert_eq!(logins(&sshd), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warden_ends_what_runs_when_the_connection_breaks_and_leaves_what_stays_on_purpose() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let relay = Relay::to(&sshd.host, sshd.port, 0);
    let remote = through(&sshd, &relay).await;
    warm(&remote).await;
    let (mark, bare, stays) = (unique(), unique(), unique());
    let script = format!("setsid sleep {stays} >/dev/null 2>&1 </dev/null & echo started");
    assert!(exec(&remote, &["sh", "-c", &script]).await.unwrap().success);
    let start = |command: Command| {
        let remote = remote.clone();
        tokio::spawn(async move {
            remote
                .execute("vm01", &command, Input::None, Output::Collect)
                .await
        })
    };
    let tree = start(stubborn(&mark));
    let plain = start(Command::argv(["env", "-i", "sleep", &bare]).unwrap());
    eventually("both run", || alive(&mark) >= 4 && alive(&bare) == 1).await;
    relay.cut.store(true, Ordering::Relaxed);
    for one in [tree, plain] {
        let error = one.await.unwrap().unwrap_err();
        assert!(error.may_have_run(), "{error}");
    }
    eventually("the trees are gone", || alive(&mark) + alive(&bare) == 0).await;
    assert_eq!(alive(&stays), 1);
    crate::ending::kill(&stays);
}
