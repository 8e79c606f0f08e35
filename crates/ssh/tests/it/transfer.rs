//! Files: whole, proved and in one step, or not at all.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command as Process;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use ssh::{Error, Remote, Transferred};

use crate::relay::{Relay, through};
use crate::sshd::{Sshd, can_run};

fn fill(path: &Path, bytes: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(bytes);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    fs::write(path, &content).unwrap();
    content
}

async fn up(remote: &Remote, source: &Path, target: &Path) -> Result<Transferred, Error> {
    remote
        .upload("vm01", source, target.to_str().unwrap(), |_| {})
        .await
}

async fn down(remote: &Remote, source: &Path, target: &Path) -> Result<Transferred, Error> {
    remote
        .download("vm01", source.to_str().unwrap(), target, |_| {})
        .await
}

fn parts(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".part")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_whole_with_mode_and_time() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("Subsystem none /bin/false");
    let remote = sshd.remote().await;
    let (source, far, back) = (
        sshd.path("it's a $file\n"),
        sshd.path("far -x"),
        sshd.path("back"),
    );
    for bytes in [0, 1, 3_000_001] {
        let content = fill(&source, bytes);
        fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::File::options()
            .write(true)
            .open(&source)
            .unwrap()
            .set_modified(time)
            .unwrap();
        fs::write(&far, "old").unwrap();
        let sent = up(&remote, &source, &far).await.unwrap();
        assert_eq!(sent.bytes, bytes as u64);
        let got = down(&remote, &far, &back).await.unwrap();
        assert_eq!(sent.sha256, got.sha256);
        for path in [&far, &back] {
            assert_eq!(fs::read(path).unwrap(), content);
            let meta = fs::metadata(path).unwrap();
            assert_eq!(
                (meta.mode() & 0o7777, meta.mtime()),
                (0o640, 1_000_000_000),
                "{path:?}"
            );
        }
        let summed = Process::new("sha256sum").arg(&far).output().unwrap();
        assert!(String::from_utf8_lossy(&summed.stdout).contains(&sent.sha256));
    }
    assert!(parts(sshd.dir.path()).is_empty());
    let audit = sshd.audit();
    assert!(
        audit.contains("remote.upload") && audit.contains("remote.download"),
        "{audit}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_leaves_the_target() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let source = sshd.path("source");
    fill(&source, 10);
    let check = |error: Error, says: &str| {
        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.may_have_run());
    };
    check(
        up(&remote, &source, &sshd.path("home")).await.unwrap_err(),
        "directory",
    );
    check(
        up(&remote, &source, &sshd.path("none/x"))
            .await
            .unwrap_err(),
        "could not write",
    );
    check(
        up(&remote, &sshd.path("home"), &sshd.path("x"))
            .await
            .unwrap_err(),
        "no plain file",
    );
    check(
        up(&remote, &sshd.path("none"), &sshd.path("x"))
            .await
            .unwrap_err(),
        "cannot open",
    );
    check(
        down(&remote, &sshd.path("none"), &sshd.path("x"))
            .await
            .unwrap_err(),
        "no such file",
    );
    check(
        down(&remote, &sshd.path("home"), &sshd.path("x"))
            .await
            .unwrap_err(),
        "directory",
    );
    check(
        down(&remote, &source, &sshd.path("home"))
            .await
            .unwrap_err(),
        "directory",
    );
    assert!(!sshd.path("x").exists());
    assert!(parts(sshd.dir.path()).is_empty());
}

/// What is mounted is mounted in a namespace of the test's own, with its server in it.
#[test]
fn a_full_disk_leaves_the_old_file() {
    if !can_run() {
        return;
    }
    let ran = Process::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "transfer::with_a_full_disk",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let complained = String::from_utf8_lossy(&ran.stderr);
    if complained.contains("unshare failed") {
        println!("SKIPPED: a full disk needs a mount namespace: {complained}");
        return;
    }
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}{complained}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child of a_full_disk_leaves_the_old_file"]
async fn with_a_full_disk() {
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let small = sshd.path("small");
    fs::create_dir(&small).unwrap();
    let mounted = Process::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&small)
        .status();
    assert!(mounted.unwrap().success());
    fs::write(small.join("x"), "old").unwrap();
    fill(&sshd.path("source"), 4_000_000);
    let error = up(&remote, &sshd.path("source"), &small.join("x"))
        .await
        .unwrap_err();
    let (left, old) = (parts(&small), fs::read(small.join("x")).unwrap());
    let here = down(&remote, &sshd.path("source"), &small.join("y"))
        .await
        .unwrap_err();
    // The same for a directory.
    fs::create_dir(sshd.path("tree")).unwrap();
    fill(&sshd.path("tree/a"), 3_000_000);
    fs::create_dir(small.join("old")).unwrap();
    let (tree, to) = (sshd.path("tree"), small.join("old"));
    let far = to.to_str().unwrap();
    let tree_error = remote
        .upload_tree("vm01", &tree, far, |_| {})
        .await
        .unwrap_err();
    let from = tree.to_str().unwrap();
    let tree_here = remote
        .download_tree("vm01", from, &to, |_| {})
        .await
        .unwrap_err();
    let tree_left = parts(&small);
    let unmounted = Process::new("umount").arg(&small).status();
    // `tar` says "No space left" or how little it could write.
    assert!(
        tree_error.to_string().contains("could not write it"),
        "{tree_error}"
    );
    assert!(
        tree_here.to_string().contains("cannot write"),
        "{tree_here}"
    );
    assert!(tree_left.is_empty(), "{tree_left:?}");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(here.to_string().contains("cannot write"), "{here}");
    assert_eq!((left, old), (Vec::new(), b"old".to_vec()));
    assert!(unmounted.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_transfer_goes_on_where_it_stopped() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let (source, far, back) = (sshd.path("source"), sshd.path("far"), sshd.path("back"));
    let content = fill(&source, 48 * 1024 * 1024);
    fs::write(&far, "old").unwrap();
    // Cut in the middle, with nobody to try again: the old file stays, and what came stays beside it.
    let relay = Relay::to(&sshd.host, sshd.port, 0);
    relay.cut_after(20 * 1024 * 1024);
    let remote = through(&sshd, &relay).await;
    let error = up(&remote, &source, &far).await.unwrap_err();
    assert!(matches!(error, Error::Transfer { .. }), "{error}");
    assert_eq!(fs::read(&far).unwrap(), b"old");
    assert_eq!(parts(sshd.dir.path()).len(), 1);
    relay.cut_after(usize::MAX);
    let sent = up(&remote, &source, &far).await.unwrap();
    assert!(sent.resumed_bytes > 5 * 1024 * 1024, "{sent:?}");
    assert!(fs::read(&far).unwrap() == content);

    relay.cut_after(20 * 1024 * 1024);
    let error = down(&remote, &far, &back).await.unwrap_err();
    assert!(matches!(error, Error::Transfer { .. }), "{error}");
    assert!(!back.exists());
    relay.cut_after(usize::MAX);
    let got = down(&remote, &far, &back).await.unwrap();
    assert!(got.resumed_bytes > 5 * 1024 * 1024, "{got:?}");
    assert!(fs::read(&back).unwrap() == content);
    assert!(parts(sshd.dir.path()).is_empty());
    assert!(relay.connections.load(Ordering::Relaxed) >= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_on_the_way_is_never_put_in_place() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let (source, far) = (sshd.path("source"), sshd.path("far"));
    fill(&source, 30 * 1024 * 1024);
    let relay = Relay::to(&sshd.host, sshd.port, 0);
    relay.cut_after(20 * 1024 * 1024);
    let remote = through(&sshd, &relay).await;
    up(&remote, &source, &far).await.unwrap_err();
    relay.cut_after(usize::MAX);
    // A part that is not the source's beginning is not gone on with.
    let part = sshd.path(&parts(sshd.dir.path())[0]);
    let length = fs::metadata(&part).unwrap().len();
    fs::write(&part, vec![0; usize::try_from(length).unwrap()]).unwrap();
    let sent = up(&remote, &source, &far).await.unwrap();
    assert_eq!(sent.resumed_bytes, 0);
    assert!(fs::read(&far).unwrap() == fs::read(&source).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_checksum_nothing_is_transferred() {
    if !can_run() {
        return;
    }
    // A host whose PATH has a shell's needs, and nothing that makes checksums.
    let dir = tempfile::tempdir().unwrap();
    crate::sshd::keygen(&dir.path().join("host"), &["-t", "ed25519"]);
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["grep", "sleep", "dd", "cat", "rm", "mv", "wc", "stat", "ls"] {
        let found = ["/bin", "/usr/bin"]
            .iter()
            .map(|d| Path::new(d).join(program))
            .find(|p| p.exists());
        std::os::unix::fs::symlink(found.unwrap(), bin.join(program)).unwrap();
    }
    // The first SetEnv counts alone, so both values stand in it.
    let at = dir.path().display().to_string();
    let sshd = Sshd::start_in(dir, &format!("SetEnv HOME={at}/home PATH={at}/bin"));
    sshd.trust("host");
    let remote = sshd.remote().await;
    fill(&sshd.path("source"), 10);
    for error in [
        up(&remote, &sshd.path("source"), &sshd.path("far"))
            .await
            .unwrap_err(),
        down(&remote, &sshd.path("source"), &sshd.path("back"))
            .await
            .unwrap_err(),
    ] {
        assert!(error.to_string().contains("sha256sum"), "{error}");
    }
    assert!(!sshd.path("far").exists() && !sshd.path("back").exists());
    // Whoever does not want it proved gets it, and is told.
    let remote = sshd.remote_with("", ", verify_checksum: false").await;
    let sent = up(&remote, &sshd.path("source"), &sshd.path("far")).await;
    assert!(
        matches!(&sent, Err(e) if e.to_string().contains("put it in place")),
        "a host without chmod and touch: {sent:?}"
    );
    let got = down(&remote, &sshd.path("source"), &sshd.path("back"))
        .await
        .unwrap();
    assert!(got.warnings[0].contains("a second time"), "{got:?}");
    for program in ["chmod", "touch", "sync"] {
        let found = Path::new("/usr/bin").join(program);
        std::os::unix::fs::symlink(found, sshd.path("bin").join(program)).unwrap();
    }
    let sent = up(&remote, &sshd.path("source"), &sshd.path("far"))
        .await
        .unwrap();
    assert!(sent.warnings[0].contains("a second time"), "{sent:?}");
    assert_eq!(
        fs::read(sshd.path("far")).unwrap(),
        fs::read(sshd.path("back")).unwrap()
    );
    let other = Sshd::start("");
    let remote = other.remote_with("", ", verify_checksum: false").await;
    let sent = up(&remote, &sshd.path("source"), &other.path("far"))
        .await
        .unwrap();
    assert!(sent.warnings[0].contains("all the same"), "{sent:?}");
}
