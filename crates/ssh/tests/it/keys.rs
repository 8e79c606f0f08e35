//! Keys of hosts against a real sshd: made, deployed, replaced, revoked; cut at every step and taken on from there.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ssh::{Error, KeyState, Passphrases, Remote, key_status};

use crate::sshd::{Sshd, can_run, exec, keygen};

const FOREIGN: &[u8] = b"# ours, by hand\n\nno-pty junk \xff\xfe\n";

/// A server that reads `home/.ssh/authorized_keys`, in which the key `admin` stands; `vm01` has no key yet.
fn managed() -> Sshd {
    managed_with("")
}

fn managed_with(lines: &str) -> Sshd {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    keygen(&at.join("host"), &["-t", "ed25519"]);
    keygen(&at.join("admin"), &["-t", "ed25519"]);
    let dot_ssh = at.join("home/.ssh");
    fs::create_dir_all(&dot_ssh).unwrap();
    fs::set_permissions(&dot_ssh, fs::Permissions::from_mode(0o700)).unwrap();
    let authorized = [FOREIGN, &fs::read(at.join("admin.pub")).unwrap()].concat();
    fs::write(dot_ssh.join("authorized_keys"), authorized).unwrap();
    let lines = format!(
        "{lines}\nAuthorizedKeysFile {}/authorized_keys",
        dot_ssh.display()
    );
    let sshd = Sshd::start_in(dir, &lines);
    sshd.trust("host");
    for name in ["keys/vm01", "keys/vm01.pub"] {
        fs::remove_file(sshd.path(name)).unwrap();
    }
    sshd
}

fn authorized(sshd: &Sshd) -> Vec<u8> {
    fs::read(sshd.path("home/.ssh/authorized_keys")).unwrap()
}

fn lines_of_ours(sshd: &Sshd) -> usize {
    let text = authorized(sshd);
    String::from_utf8_lossy(&text)
        .lines()
        .filter(|line| line.contains("proximity vm01 "))
        .count()
}

/// What lies in the directory of keys, without the lock.
fn key_files(sshd: &Sshd) -> Vec<String> {
    let names = fs::read_dir(sshd.path("keys")).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "vm01~lock")
        .collect();
    names.sort();
    names
}

async fn deployed(sshd: &Sshd) -> Remote {
    let remote = sshd.remote().await;
    remote.init_key("vm01", None).await.unwrap();
    let admin = sshd.path("admin");
    remote.deploy_key("vm01", Some(&admin)).await.unwrap();
    remote
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_deployed_and_revoked() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let remote = sshd.remote().await;
    let before = authorized(&sshd);
    let missing = remote.deploy_key("vm01", None).await.unwrap_err();
    assert!(
        missing.hint().unwrap().contains("keys init vm01"),
        "{missing}"
    );

    let made = remote.init_key("vm01", None).await.unwrap();
    let mode = |name: &str| fs::metadata(sshd.path(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("keys/vm01"), mode("keys/vm01.pub")), (0o600, 0o644));
    let listed = Process::new("ssh-keygen")
        .arg("-lf")
        .arg(sshd.path("keys/vm01"))
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains(&made.fingerprint) && listed.contains("ED25519"),
        "{listed}"
    );
    let again = remote.init_key("vm01", None).await.unwrap_err();
    assert!(again.to_string().contains("has a key already"), "{again}");

    let deployed = remote
        .deploy_key("vm01", Some(&sshd.path("admin")))
        .await
        .unwrap();
    assert!(deployed.added);
    assert_eq!(deployed.fingerprint, made.fingerprint);
    let after = authorized(&sshd);
    let line = fs::read(sshd.path("keys/vm01.pub")).unwrap();
    assert_eq!(after, [before.as_slice(), &line].concat());
    assert!(exec(&remote, &["true"]).await.unwrap().success);
    let twice = remote.deploy_key("vm01", None).await.unwrap();
    assert!(!twice.added);
    assert_eq!(authorized(&sshd), after);

    let revoked = remote.revoke_key("vm01", None, false).await.unwrap();
    assert_eq!(revoked.line_removed, Some(true));
    assert_eq!(authorized(&sshd), before);
    assert!(Path::new(&revoked.kept.unwrap()).exists());
    assert!(!sshd.path("keys/vm01").exists());
    let audit = sshd.audit();
    for action in ["init", "deploy", "revoke"] {
        assert!(audit.contains(&format!("remote.keys.{action}")), "{audit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_owners_and_links_on_the_host_stay() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let file = sshd.path("home/.ssh/authorized_keys");
    let real = sshd.path("home/elsewhere");
    fs::rename(&file, &real).unwrap();
    std::os::unix::fs::symlink(&real, &file).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&real, Some(0), Some(12)).unwrap();
    let remote = deployed(&sshd).await;
    assert!(fs::symlink_metadata(&file).unwrap().is_symlink());
    let meta = fs::metadata(&real).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.gid()), (0o640, 12));
    assert_eq!(lines_of_ours(&sshd), 1);
    let left = fs::read_dir(sshd.path("home")).unwrap().count();
    assert_eq!(left, 2, "something was left beside the file");

    // Where nothing is, what is made is for its owner only. The login comes from elsewhere.
    fs::remove_dir_all(sshd.path("home/.ssh")).unwrap();
    drop(remote);
    let fresh = managed_with(&format!(
        "TrustedUserCAKeys {}",
        sshd.path("admin.pub").display()
    ));
    fs::remove_dir_all(fresh.path("home/.ssh")).unwrap();
    let signed = Process::new("ssh-keygen")
        .args(["-q", "-s"])
        .arg(sshd.path("admin"))
        .args(["-I", "test", "-n", "root"])
        .arg(fresh.path("admin.pub"))
        .status();
    assert!(signed.unwrap().success());
    deployed(&fresh).await;
    let mode = |name: &str| fs::metadata(fresh.path(name)).unwrap().mode() & 0o777;
    assert_eq!(mode("home/.ssh"), 0o700);
    assert_eq!(mode("home/.ssh/authorized_keys"), 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_does_not_get_in_leaves_no_line() {
    if !can_run() {
        return;
    }
    // The server takes certificates of an authority only; lines in the file count for nothing.
    let ca = tempfile::tempdir().unwrap();
    keygen(&ca.path().join("ca"), &["-t", "ed25519"]);
    let lines = format!(
        "TrustedUserCAKeys {}\nAuthorizedKeysFile none",
        ca.path().join("ca.pub").display()
    );
    let sshd = managed_with(&lines);
    let signed = Process::new("ssh-keygen")
        .args(["-q", "-s"])
        .arg(ca.path().join("ca"))
        .args(["-I", "test", "-n", "root"])
        .arg(sshd.path("admin.pub"))
        .status();
    assert!(signed.unwrap().success());
    let before = authorized(&sshd);
    let remote = sshd.remote().await;
    remote.init_key("vm01", None).await.unwrap();
    let refused = remote
        .deploy_key("vm01", Some(&sshd.path("admin")))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("taken away again"),
        "{refused}"
    );
    assert_eq!(authorized(&sshd), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_that_still_gets_in_is_told() {
    if !can_run() {
        return;
    }
    let extra = tempfile::tempdir().unwrap();
    let second = extra.path().join("second");
    let lines = format!("AuthorizedKeysFile {0} %h/.ssh/none {0}", second.display());
    let sshd = managed_with(&lines);
    fs::copy(sshd.path("admin.pub"), &second).unwrap();
    let remote = sshd.remote().await;
    remote.init_key("vm01", None).await.unwrap();
    fs::copy(sshd.path("keys/vm01.pub"), &second).unwrap();
    let refused = remote.revoke_key("vm01", None, true).await.unwrap_err();
    assert!(
        refused.to_string().contains("still it lets in"),
        "{refused}"
    );
    assert!(sshd.path("keys/vm01").exists(), "the only key was deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_one_factor_of_two_is_not_taken_for_a_refused_one() {
    if !can_run() {
        return;
    }
    let extra = tempfile::tempdir().unwrap();
    let elsewhere = extra.path().join("keys");
    let sshd = managed_with(&format!(
        "AuthenticationMethods publickey,password\nPasswordAuthentication yes\nAuthorizedKeysFile {}",
        elsewhere.display()
    ));
    let remote = sshd.remote().await;
    remote.init_key("vm01", None).await.unwrap();
    fs::copy(sshd.path("keys/vm01.pub"), &elsewhere).unwrap();
    let kept = remote.revoke_key("vm01", None, true).await.unwrap_err();
    assert!(kept.to_string().contains("second factor"), "{kept}");
    assert!(sshd.path("keys/vm01").exists(), "it was deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_hosts_have_no_keys() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let remote = sshd.remote().await;
    let admin = sshd.path("admin");
    for refused in [
        remote.init_key("off", None).await.map(|_| ()),
        remote.deploy_key("off", Some(&admin)).await.map(|_| ()),
        remote.rotate_key("nobody", false).await.map(|_| ()),
        remote.revoke_key("off", None, true).await.map(|_| ()),
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    }
    let records = sshd.audit().matches("\"outcome\":\"refused\"").count();
    assert_eq!(records, 4, "{}", sshd.audit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_replaced_and_keeps_its_options_and_passphrase() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let knows: Passphrases = Arc::new(|path: &Path| {
        assert!(
            path.ends_with("vm01") || path.ends_with("admin"),
            "{path:?}"
        );
        Some("correct horse".to_owned().into())
    });
    let remote = sshd.remote().await.passphrases(knows);
    let passphrase = "correct horse".to_owned().into();
    remote.init_key("vm01", Some(&passphrase)).await.unwrap();
    let admin = sshd.path("admin");
    remote.deploy_key("vm01", Some(&admin)).await.unwrap();
    let text = String::from_utf8_lossy(&authorized(&sshd)).into_owned();
    let options = "from=\"127.0.0.0/8\",environment=\"A=b c\"";
    let line = fs::read_to_string(sshd.path("keys/vm01.pub")).unwrap();
    fs::write(
        sshd.path("home/.ssh/authorized_keys"),
        text.replace(&line, &format!("{options} {line}{options} {line}")),
    )
    .unwrap();

    let rotated = remote.rotate_key("vm01", false).await.unwrap();
    assert_ne!(Some(&rotated.fingerprint), rotated.refused.as_ref());
    assert_eq!(key_files(&sshd), ["vm01", "vm01.pub"]);
    let new = fs::read_to_string(sshd.path("keys/vm01.pub")).unwrap();
    let text = String::from_utf8_lossy(&authorized(&sshd)).into_owned();
    assert!(text.ends_with(&format!("\n{options} {new}")), "{text}");
    assert_eq!(lines_of_ours(&sshd), 1);
    assert!(exec(&remote, &["true"]).await.unwrap().success);
    let locked = sshd.remote_with("", "").await;
    let refused = exec(&locked, &["true"]).await.unwrap_err();
    assert!(refused.to_string().contains("encrypted"), "{refused}");
    let none = remote.rotate_key("vm01", true).await.unwrap_err();
    assert!(none.to_string().contains("no replacement"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_that_does_not_get_in_is_taken_back() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let remote = deployed(&sshd).await;
    let before = authorized(&sshd);
    let key = fs::read(sshd.path("keys/vm01")).unwrap();
    // The host takes the new line, and then not the key: it has expired there.
    let (points, mut child) = cut(&sshd, "stage done", false);
    let staged = authorized(&sshd);
    let staged = [
        &before,
        b"expiry-time=\"20200101\" ".as_slice(),
        &staged[before.len()..],
    ];
    fs::write(sshd.path("home/.ssh/authorized_keys"), staged.concat()).unwrap();
    fs::write(points.path().join("hold"), "").unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(authorized(&sshd), before);
    assert_eq!(fs::read(sshd.path("keys/vm01")).unwrap(), key);
    assert_eq!(key_files(&sshd), ["vm01", "vm01.pub"]);
    assert!(exec(&remote, &["true"]).await.unwrap().success);
}

/// A process that replaces the key and stands still at a point.
fn cut(sshd: &Sshd, point: &str, roll_back: bool) -> (tempfile::TempDir, Child) {
    let points = tempfile::tempdir().unwrap();
    fs::write(points.path().join("hold"), point).unwrap();
    let child = Process::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "keys::rotates_as_a_process",
            "--ignored",
            "--nocapture",
        ])
        .env("PROXIMITY_FAULT_POINTS", points.path())
        .env("ROTATE_CONFIG", sshd.config("", ""))
        .env("ROTATE_AUDIT", sshd.path("child-audit"))
        .env("ROTATE_BACK", roll_back.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    let passed = || fs::read_to_string(points.path().join("passed")).unwrap_or_default();
    while !passed().lines().any(|line| line == point) {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "never at {point}: {}",
            passed()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    (points, child)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child of a_replacement_that_is_killed_goes_on"]
async fn rotates_as_a_process() {
    let hosts = ssh::Hosts::parse(&std::env::var("ROTATE_CONFIG").unwrap(), None).unwrap();
    let audit = std::env::var("ROTATE_AUDIT").unwrap();
    let log = ssh::journal::open(Path::new(&audit), audit::Redactor::default())
        .await
        .unwrap();
    let remote = Remote::new(hosts, log, "child");
    let back = std::env::var("ROTATE_BACK").unwrap() == "true";
    remote.rotate_key("vm01", back).await.unwrap();
}

/// Kills at a point; whoever comes next finds a way in, and ends with one key and one line.
async fn killed_at(sshd: &Sshd, remote: &Remote, point: &str, backwards: bool, roll_back: bool) {
    let before = fs::read(sshd.path("keys/vm01")).unwrap();
    let (_points, mut child) = cut(sshd, point, backwards);
    child.kill().unwrap();
    child.wait().unwrap();
    let status = key_status(remote.hosts()).remove(1);
    assert_eq!(status.state, KeyState::Pending, "{point}: {status:?}");
    assert!(
        exec(remote, &["true"]).await.unwrap().success,
        "{point}: locked out"
    );

    let rotated = remote.rotate_key("vm01", roll_back).await;
    let rotated = rotated.unwrap_or_else(|e| panic!("{point}, back: {roll_back}: {e}"));
    assert!(rotated.resumed_at.is_some());
    assert_eq!(key_files(sshd), ["vm01", "vm01.pub"], "{point}");
    assert_eq!(lines_of_ours(sshd), 1, "{point}");
    assert!(authorized(sshd).starts_with(FOREIGN), "{point}");
    assert!(exec(remote, &["true"]).await.unwrap().success, "{point}");
    let same = fs::read(sshd.path("keys/vm01")).unwrap() == before;
    assert_eq!(same, rotated.rolled_back, "{point}");
    assert_eq!(rotated.rolled_back, backwards || roll_back, "{point}");
}

const FORWARD: &[&str] = &[
    "make",
    "stage",
    "prove-new",
    "swap",
    "remove-old",
    "prove-old-fails",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_is_killed_goes_on() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let remote = deployed(&sshd).await;
    for step in FORWARD.iter().chain(&["finish"]) {
        for when in ["begin", "done"] {
            killed_at(&sshd, &remote, &format!("{step} {when}"), false, false).await;
        }
    }
    // Every step of every try is in a log that holds together.
    let log = sshd.path("child-audit/remote-audit-0.log");
    assert!(audit::verify(&log, None).unwrap().is_sound());
    let text = fs::read_to_string(&log).unwrap();
    for step in FORWARD {
        assert!(text.contains(&format!("\"step\":\"{step}\"")), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_is_killed_can_be_taken_back() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let remote = deployed(&sshd).await;
    for step in FORWARD {
        for when in ["begin", "done"] {
            killed_at(&sshd, &remote, &format!("{step} {when}"), false, true).await;
        }
    }
    // Not any more when the old key is going.
    let (_points, mut child) = cut(&sshd, "finish begin", false);
    child.kill().unwrap();
    child.wait().unwrap();
    let late = remote.rotate_key("vm01", true).await.unwrap_err();
    assert!(late.to_string().contains("deleted already"), "{late}");
    assert!(!remote.rotate_key("vm01", false).await.unwrap().rolled_back);
    assert_eq!(key_files(&sshd), ["vm01", "vm01.pub"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_back_that_is_killed_goes_on() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let remote = deployed(&sshd).await;
    for step in [
        "back-swap",
        "back-restore",
        "back-remove-new",
        "back-finish",
    ] {
        for when in ["begin", "done"] {
            // Cut late on the way forward, so that there is most to take back.
            let (_points, mut child) = cut(&sshd, "prove-old-fails begin", false);
            child.kill().unwrap();
            child.wait().unwrap();
            let key = fs::read(sshd.path("keys/vm01~old")).unwrap();
            let (_points, mut child) = cut(&sshd, &format!("{step} {when}"), true);
            child.kill().unwrap();
            child.wait().unwrap();
            let rotated = remote.rotate_key("vm01", false).await.unwrap();
            assert!(rotated.rolled_back, "{step} {when}");
            assert_eq!(fs::read(sshd.path("keys/vm01")).unwrap(), key);
            assert_eq!(key_files(&sshd), ["vm01", "vm01.pub"]);
            assert_eq!(lines_of_ours(&sshd), 1);
            assert!(exec(&remote, &["true"]).await.unwrap().success);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replacements_do_not_run_at_once() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let remote = deployed(&sshd).await;
    let (_points, mut child) = cut(&sshd, "swap begin", false);
    let refused = remote.rotate_key("vm01", false).await.unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    child.kill().unwrap();
    child.wait().unwrap();
    remote.rotate_key("vm01", true).await.unwrap();
}

/// Two who change the file at the same time: nobody's line is lost, and nothing of the host's own.
#[tokio::test(flavor = "multi_thread")]
async fn several_keys_are_deployed_to_one_machine_at_once() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let config = sshd.config("", "");
    let vm01 = format!(
        "vm01: {{ ip: {}, ssh_port: {}, ssh_user: root }}",
        sshd.host, sshd.port
    );
    let many: Vec<String> = (2..6)
        .map(|n| vm01.replace("vm01", &format!("vm0{n}")))
        .collect();
    let config = config.replace(&vm01, &format!("{vm01}, {}", many.join(", ")));
    let hosts = ssh::Hosts::parse(&config, None).unwrap();
    let log = ssh::journal::open(&sshd.path("audit"), audit::Redactor::default())
        .await
        .unwrap();
    let remote = Remote::new(hosts, log, "tester");
    let admin = sshd.path("admin");
    let mut deploying = tokio::task::JoinSet::new();
    for number in 1..6 {
        let (remote, admin) = (remote.clone(), admin.clone());
        deploying.spawn(async move {
            let id = format!("vm0{number}");
            remote.init_key(&id, None).await.unwrap();
            // Somebody else may have been quicker with a whole file; then it is said, and the next try does it.
            while let Err(error) = remote.deploy_key(&id, Some(&admin)).await {
                assert!(matches!(error, Error::Keys { .. }), "{error}");
            }
        });
    }
    while let Some(ended) = deploying.join_next().await {
        ended.unwrap();
    }
    let text = authorized(&sshd);
    assert!(text.starts_with(FOREIGN));
    let text = String::from_utf8_lossy(&text).into_owned();
    for number in 1..6 {
        let lines = text.matches(&format!("proximity vm0{number} ")).count();
        assert_eq!(lines, 1, "vm0{number}: {text}");
    }
    assert!(text.contains(fs::read_to_string(sshd.path("admin.pub")).unwrap().as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn ages_are_told_from_the_comment() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let remote = sshd.remote().await;
    let of = |remote: &Remote| key_status(remote.hosts()).remove(1);
    assert_eq!(of(&remote).state, KeyState::Missing);
    remote.init_key("vm01", None).await.unwrap();
    let status = of(&remote);
    assert_eq!((status.state, status.age_days), (KeyState::Good, Some(0)));
    let public = fs::read_to_string(sshd.path("keys/vm01.pub")).unwrap();
    let old = public.rsplit_once(' ').unwrap().0;
    fs::write(
        sshd.path("keys/vm01.pub"),
        format!("{old} 2020-01-01T00:00:00Z\n"),
    )
    .unwrap();
    let status = of(&remote);
    assert_eq!(status.state, KeyState::Due);
    assert!(status.age_days.unwrap() > 2000);
    assert_eq!(status.created.as_deref(), Some("2020-01-01T00:00:00Z"));
}
