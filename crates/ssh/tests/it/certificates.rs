//! Certificates of users and hosts that `ssh-keygen` signs, good and bad, by authorities of every kind.

use std::fs;
use std::path::Path;
use std::process::Command as Process;

use ssh::{Error, KeyState, key_status};

use crate::sshd::{Sshd, can_run, exec, keygen};

/// Signs `KEY.pub` with an authority.
fn sign(authority: &Path, key: &Path, arguments: &[&str]) {
    let signed = Process::new("ssh-keygen")
        .args(["-q", "-s"])
        .arg(authority)
        .args(["-I", "test"])
        .args(arguments)
        .arg(key.with_extension("pub"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&signed.stderr);
    assert!(signed.status.success(), "{said}");
}

/// A server that lets in whoever has a certificate of `ca`, and no bare key.
fn for_certificates(authority: &[&str]) -> Sshd {
    let dir = tempfile::tempdir().unwrap();
    keygen(&dir.path().join("host"), &["-t", "ed25519"]);
    keygen(&dir.path().join("ca"), authority);
    fs::write(dir.path().join("authorized"), "").unwrap();
    let lines = format!("TrustedUserCAKeys {}", dir.path().join("ca.pub").display());
    let sshd = Sshd::start_in(dir, &lines);
    sshd.trust("host");
    sshd
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_every_kind_log_in_while_their_certificates_hold() {
    if !can_run() {
        return;
    }
    for kind in [
        &["-t", "ed25519"][..],
        &["-t", "ecdsa", "-b", "384"],
        &["-t", "rsa", "-b", "3072"],
    ] {
        let sshd = for_certificates(kind);
        let key = sshd.path("keys/vm01");
        for name in ["keys/vm01", "keys/vm01.pub"] {
            fs::remove_file(sshd.path(name)).unwrap();
        }
        keygen(&key, kind);
        let remote = sshd.remote().await;
        let check = async |arguments: &[&str], works: bool| {
            sign(&sshd.path("ca"), &key, arguments);
            match exec(&remote, &["true"]).await {
                Ok(result) => assert!(works && result.success, "{kind:?} {arguments:?}"),
                Err(Error::Login { reason, .. }) => {
                    assert!(!works, "{kind:?} {arguments:?}: {reason}");
                    assert!(reason.contains("vm01-cert.pub"), "{reason}");
                }
                Err(other) => panic!("{kind:?} {arguments:?}: {other}"),
            }
        };
        check(&["-n", "root", "-V", "+1h"], true).await;
        check(&["-n", "somebody"], false).await;
        check(&["-n", "root", "-V", "20200101:20210101"], false).await;
        check(&["-h", "-n", "root"], false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_shown_with_an_encrypted_key_and_is_not_rotated() {
    if !can_run() {
        return;
    }
    let sshd = for_certificates(&["-t", "ed25519"]);
    for name in ["keys/vm01", "keys/vm01.pub"] {
        fs::remove_file(sshd.path(name)).unwrap();
    }
    let knows: ssh::Passphrases =
        std::sync::Arc::new(|_: &Path| Some("correct horse".to_owned().into()));
    let remote = sshd.remote().await.passphrases(knows);
    let passphrase = "correct horse".to_owned().into();
    remote.init_key("vm01", Some(&passphrase)).await.unwrap();
    sign(
        &sshd.path("ca"),
        &sshd.path("keys/vm01"),
        &["-n", "root", "-V", "+2d"],
    );
    assert!(exec(&remote, &["true"]).await.unwrap().success);
    let status = key_status(remote.hosts()).remove(1);
    assert_eq!(status.state, KeyState::Good);
    assert!(status.certificate_expires.is_some(), "{status:?}");
    let refused = remote.rotate_key("vm01", false).await.unwrap_err();
    assert!(refused.to_string().contains("vm01-cert.pub"), "{refused}");

    // Of another key's certificate nobody is told that it does not work: it is refused here.
    keygen(&sshd.path("other"), &["-t", "ed25519"]);
    sign(&sshd.path("ca"), &sshd.path("other"), &["-n", "root"]);
    fs::copy(sshd.path("other-cert.pub"), sshd.path("keys/vm01-cert.pub")).unwrap();
    let refused = exec(&remote, &["true"]).await.unwrap_err();
    assert!(refused.to_string().contains("for another key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_of_hosts_of_every_kind_hold_unless_they_are_revoked_or_weak() {
    if !can_run() {
        return;
    }
    let check = async |kind: &[&str], revoked: bool, says: Option<&str>| {
        let dir = tempfile::tempdir().unwrap();
        for (name, kind) in [("host", &["-t", "ed25519"][..]), ("ca", kind)] {
            keygen(&dir.path().join(name), kind);
        }
        sign(
            &dir.path().join("ca"),
            &dir.path().join("host"),
            &["-h", "-n", "127.0.0.1"],
        );
        let lines = format!(
            "HostCertificate {}",
            dir.path().join("host-cert.pub").display()
        );
        let sshd = Sshd::start_in(dir, &lines);
        sshd.know("@cert-authority ", "ca");
        if revoked {
            sshd.know("@revoked ", "ca");
        }
        match (exec(&sshd.remote().await, &["true"]).await, says) {
            (Ok(result), None) => assert!(result.success),
            (Err(error), Some(says)) => {
                assert!(matches!(error, Error::HostKey { .. }), "{error}");
                assert!(error.to_string().contains(says), "{kind:?}: {error}");
                assert!(!sshd.log().contains("Accepted"), "{}", sshd.log());
            }
            (ended, _) => panic!("{kind:?} {revoked}: {ended:?}"),
        }
    };
    check(&["-t", "ed25519"], false, None).await;
    check(&["-t", "ecdsa", "-b", "256"], false, None).await;
    check(&["-t", "rsa", "-b", "3072"], false, None).await;
    check(&["-t", "rsa", "-b", "2048"], false, Some("too weak")).await;
    check(&["-t", "ed25519"], true, Some("revoked")).await;
}

/// A key file that would take hours to open is refused before anybody waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_costs_hours_to_open_is_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let key = sshd.path("keys/vm01");
    let locked = Process::new("ssh-keygen")
        .args([
            "-q",
            "-p",
            "-P",
            "",
            "-N",
            "correct horse",
            "-a",
            "16",
            "-f",
        ])
        .arg(&key)
        .status();
    assert!(locked.unwrap().success());
    let text = fs::read_to_string(&key).unwrap();
    let (head, rest) = text.split_once('\n').unwrap();
    let (body, end) = rest.split_once("-----").unwrap();
    let mut bytes = STANDARD.decode(body.replace('\n', "")).unwrap();
    // The options of the derivation: 16 bytes of salt behind their length, then the rounds.
    let at = bytes.windows(6).position(|w| w == b"bcrypt").unwrap() + 6 + 4 + 4 + 16;
    assert_eq!(bytes[at..at + 4], [0, 0, 0, 16]);
    bytes[at] = 0x7f;
    let body: Vec<String> = STANDARD
        .encode(bytes)
        .as_bytes()
        .chunks(70)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    fs::write(&key, format!("{head}\n{}\n-----{end}", body.join("\n"))).unwrap();
    let knows: ssh::Passphrases =
        std::sync::Arc::new(|_: &Path| Some("correct horse".to_owned().into()));
    let refused = exec(&sshd.remote().await.passphrases(knows), &["true"])
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("rounds"), "{refused}");
}
