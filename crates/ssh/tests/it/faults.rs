//! Servers that die or stand still in the middle of something.

use std::fs;
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ssh::{Command, Error, Input, Output, Progress};

use crate::sshd::{Sshd, can_run, eventually, exec};

/// Sends a signal to these processes.
fn signal(name: &str, pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    let sent = Process::new("kill")
        .arg(format!("-{name}"))
        .args(pids)
        .status();
    assert!(sent.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_of_an_upload_leaves_the_old_file() {
    if !can_run() {
        return;
    }
    let sshd = Arc::new(Sshd::start(""));
    let (source, far) = (sshd.path("source"), sshd.path("far"));
    fs::write(&source, vec![5; 48 * 1024 * 1024]).unwrap();
    fs::write(&far, "old").unwrap();
    let killing = |sshd: &Arc<Sshd>| {
        let (sshd, killed) = (Arc::clone(sshd), AtomicBool::new(false));
        move |progress: Progress| {
            if progress.done_bytes > 24 << 20 && !killed.swap(true, Ordering::Relaxed) {
                signal("KILL", &sshd.sessions());
            }
        }
    };
    let target = far.to_str().unwrap();
    let remote = sshd.remote().await;
    let error = remote
        .upload("vm01", &source, target, killing(&sshd))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Transfer { .. }), "{error}");
    assert_eq!(fs::read(&far).unwrap(), b"old");
    // With tries left it goes on by itself.
    let remote = sshd.remote_with("", "").await;
    let sent = remote
        .upload("vm01", &source, target, |_| {})
        .await
        .unwrap();
    assert!(sent.resumed_bytes > 0, "{sent:?}");
    fs::remove_file(&far).unwrap();
    let config = sshd
        .config("", "")
        .replace("default_retry: 0", "default_retry: 3");
    let hosts = ssh::Hosts::parse(&config, None).unwrap();
    let log = ssh::journal::open(&sshd.path("audit"), audit::Redactor::default())
        .await
        .unwrap();
    let remote = ssh::Remote::new(hosts, log, "tester");
    let sent = remote
        .upload("vm01", &source, target, killing(&sshd))
        .await
        .unwrap();
    assert_eq!(sent.attempts, 2, "{sent:?}");
    assert_eq!(fs::metadata(&far).unwrap().len(), 48 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_before_the_exit_status_is_an_unknown_outcome() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let error = exec(&remote, &["sh", "-c", "echo out; kill -9 $PPID"])
        .await
        .unwrap_err();
    assert!(error.may_have_run(), "{error}");
    // The same for a file that has been put in place when its host dies: nobody knows, and that is said.
    let dir = tempfile::tempdir().unwrap();
    crate::sshd::keygen(&dir.path().join("host"), &["-t", "ed25519"]);
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let mv =
        "#!/bin/sh\n/bin/mv \"$@\"\nread -r a b c server rest </proc/$PPID/stat\nkill -9 $server\n";
    fs::write(bin.join("mv"), mv).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(bin.join("mv"), mode).unwrap();
    let at = dir.path().display().to_string();
    let path = format!("SetEnv HOME={at}/home PATH={at}/bin:/usr/bin:/bin");
    let sshd = Sshd::start_in(dir, &path);
    sshd.trust("host");
    let remote = sshd.remote().await;
    fs::write(sshd.path("source"), "new").unwrap();
    let target = sshd.path("far").display().to_string();
    let error = remote
        .upload("vm01", &sshd.path("source"), &target, |_| {})
        .await
        .unwrap_err();
    assert!(error.may_have_run(), "{error}");
    assert!(error.to_string().contains("being put in place"), "{error}");
    assert_eq!(fs::read(sshd.path("far")).unwrap(), b"new");
    assert!(sshd.audit().contains("\"outcome\":\"unknown\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_meets_the_deadline() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let begun = sshd.path("begun");
    let script = format!("touch {}; sleep 300", begun.display());
    let command = Command::shell(script)
        .unwrap()
        .timeout(Duration::from_secs(6));
    let running = tokio::spawn(async move {
        remote
            .execute("vm01", &command, Input::None, Output::Collect)
            .await
    });
    eventually("the command runs", || begun.exists()).await;
    let sessions = sshd.sessions();
    signal("STOP", &sessions);
    let waiting = Instant::now();
    let ended = running.await.unwrap();
    signal("CONT", &sessions);
    // It cannot end what it cannot reach, and says so.
    assert!(ended.as_ref().is_err_and(Error::may_have_run), "{ended:?}");
    assert!(waiting.elapsed() < Duration::from_secs(60));
}
