//! Host keys and logins: nothing unknown, changed, revoked or weak is accepted, and each refusal says why.

use std::fs;
use std::process::Command as Process;

use ssh::{Error, HostKeyProblem};

use crate::sshd::{Sshd, can_run, exec, keygen};

fn problem(error: Error) -> HostKeyProblem {
    match error {
        Error::HostKey { problem, .. } => *problem,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_refused_until_it_is_pinned() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start_untrusted("");
    let remote = sshd.remote().await;
    let refused = problem(exec(&remote, &["touch", "/ran"]).await.unwrap_err());
    assert!(
        matches!(refused, HostKeyProblem::Unknown { .. }),
        "{refused}"
    );
    assert!(
        !sshd.log().contains("Accepted"),
        "a login was tried: {}",
        sshd.log()
    );

    let found = remote.look_at_key("vm01").await.unwrap();
    let listed = Process::new("ssh-keygen")
        .arg("-lf")
        .arg(sshd.path("host.pub"))
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains(&found.shown.fingerprint),
        "{listed} {found:?}"
    );
    remote.pin_key("vm01", &found, "test").await.unwrap();
    assert!(exec(&remote, &["true"]).await.unwrap().success);
    // OpenSSH itself finds what was written.
    let name = format!("[{}]:{}", sshd.host, sshd.port);
    let known = Process::new("ssh-keygen")
        .args(["-F", &name, "-f"])
        .arg(sshd.path("known_hosts"))
        .output()
        .unwrap();
    assert!(known.status.success());
    assert_eq!(remote.look_at_key("vm01").await.unwrap().problem, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_stops_everything() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start_untrusted("");
    for kind in ["ed25519", "ecdsa"] {
        let _ = fs::remove_file(sshd.path("known_hosts"));
        let other = format!("other-{kind}");
        keygen(&sshd.path(&other), &["-t", kind]);
        sshd.trust(&other);
        let remote = sshd.remote().await;
        let refused = exec(&remote, &["true"]).await.unwrap_err();
        // A server that has no key of the pinned kind any more is as changed as one with another key.
        match refused {
            Error::HostKey { problem, .. } => {
                assert!(
                    matches!(*problem, HostKeyProblem::Changed { line: 1, .. }),
                    "{problem}"
                );
                let found = remote.look_at_key("vm01").await.unwrap();
                assert!(remote.pin_key("vm01", &found, "test").await.is_err());
            }
            Error::WeakServer { kind, .. } => assert_eq!(kind, "host key"),
            other => panic!("{other}"),
        }
        assert!(!sshd.log().contains("Accepted"), "{}", sshd.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_even_when_it_is_pinned() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    sshd.know("@revoked ", "host");
    let remote = sshd.remote().await;
    let refused = problem(exec(&remote, &["true"]).await.unwrap_err());
    assert!(
        matches!(refused, HostKeyProblem::Revoked { line: 2, .. }),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hashed_names_written_by_openssh_are_known() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let hashed = Process::new("ssh-keygen")
        .args(["-H", "-f"])
        .arg(sshd.path("known_hosts"))
        .output()
        .unwrap();
    assert!(hashed.status.success());
    assert!(
        fs::read_to_string(sshd.path("known_hosts"))
            .unwrap()
            .starts_with("|1|")
    );
    assert!(exec(&sshd.remote().await, &["true"]).await.unwrap().success);
}

/// Signs the host's key with an authority; `arguments` say for whom and how long.
fn sign(sshd: &Sshd, key: &str, arguments: &[&str]) {
    let signed = Process::new("ssh-keygen")
        .args(["-q", "-s"])
        .arg(sshd.path("ca"))
        .args(["-I", "test"])
        .args(arguments)
        .arg(sshd.path(&format!("{key}.pub")))
        .output()
        .unwrap();
    assert!(
        signed.status.success(),
        "{}",
        String::from_utf8_lossy(&signed.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_hosts_are_checked() {
    if !can_run() {
        return;
    }
    let check = async |arguments: &[&str], expected: Option<&str>| {
        let first = Sshd::start_untrusted("");
        keygen(&first.path("ca"), &["-t", "ed25519"]);
        sign(&first, "host", arguments);
        let lines = format!("HostCertificate {}", first.path("host-cert.pub").display());
        // The same directory, served again with the certificate.
        let copy = tempfile::tempdir().unwrap();
        for name in ["host", "host.pub", "ca", "ca.pub", "host-cert.pub"] {
            fs::copy(first.path(name), copy.path().join(name)).unwrap();
        }
        let lines = lines.replace(
            &first.dir.path().display().to_string(),
            &copy.path().display().to_string(),
        );
        let sshd = Sshd::start_in(copy, &lines);
        sshd.know("@cert-authority ", "ca");
        let ended = exec(&sshd.remote().await, &["true"]).await;
        match (ended, expected) {
            (Ok(result), None) => assert!(result.success),
            (Err(error), Some(says)) => {
                let problem = problem(error);
                assert!(problem.to_string().contains(says), "{problem}");
            }
            (ended, _) => panic!("{arguments:?}: {ended:?}"),
        }
    };
    check(&["-h", "-n", "127.0.0.1"], None).await;
    check(&["-h", "-n", "other.lan"], Some("it is for other.lan")).await;
    check(&["-h"], Some("nobody by name")).await;
    check(
        &["-h", "-n", "127.0.0.1", "-V", "20200101:20210101"],
        Some("expired"),
    )
    .await;
    check(
        &["-h", "-n", "127.0.0.1", "-V", "+1d:+2d"],
        Some("not valid yet"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_user_logs_in() {
    if !can_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    keygen(&dir.path().join("host"), &["-t", "ed25519"]);
    keygen(&dir.path().join("ca"), &["-t", "ed25519"]);
    fs::write(dir.path().join("authorized"), "").unwrap();
    let lines = format!("TrustedUserCAKeys {}", dir.path().join("ca.pub").display());
    let sshd = Sshd::start_in(dir, &lines);
    sshd.trust("host");
    let remote = sshd.remote().await;
    assert!(matches!(
        exec(&remote, &["true"]).await.unwrap_err(),
        Error::Login { .. }
    ));
    sign(&sshd, "keys/vm01", &["-n", "root"]);
    assert!(exec(&remote, &["true"]).await.unwrap().success);
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_servers_are_refused_by_name() {
    if !can_run() {
        return;
    }
    for (lines, kind) in [
        ("KexAlgorithms diffie-hellman-group14-sha1", "key exchange"),
        ("Ciphers aes128-cbc", "cipher"),
        ("Ciphers aes128-ctr\nMACs hmac-sha1", "MAC"),
    ] {
        let sshd = Sshd::start(lines);
        match exec(&sshd.remote().await, &["true"]).await.unwrap_err() {
            Error::WeakServer {
                kind: found,
                offered,
                ..
            } => {
                assert_eq!(found, kind);
                assert!(lines.contains(&offered), "{offered}");
            }
            other => panic!("{lines}: {other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_key_logs_in_and_short_rsa_does_not() {
    if !can_run() {
        return;
    }
    let check = async |arguments: &[&str], works: bool| {
        let dir = tempfile::tempdir().unwrap();
        keygen(&dir.path().join("host"), &["-t", "ed25519"]);
        fs::create_dir(dir.path().join("keys")).unwrap();
        keygen(&dir.path().join("keys/vm01"), arguments);
        let sshd = Sshd::start_in(dir, "");
        sshd.trust("host");
        match exec(&sshd.remote().await, &["true"]).await {
            Ok(result) => assert!(works && result.success, "{arguments:?}"),
            Err(Error::Identity { reason, .. }) => {
                assert!(
                    !works && reason.contains("too weak"),
                    "{arguments:?} {reason}"
                );
            }
            Err(other) => panic!("{arguments:?}: {other}"),
        }
    };
    check(&["-t", "ecdsa", "-b", "256"], true).await;
    check(&["-t", "ecdsa", "-b", "521"], true).await;
    check(&["-t", "rsa", "-b", "3072"], true).await;
    check(&["-t", "rsa", "-b", "2048"], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_that_fail_say_why() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    fs::write(sshd.path("authorized"), "").unwrap();
    let refused = exec(&sshd.remote().await, &["true"]).await.unwrap_err();
    assert!(matches!(refused, Error::Login { .. }), "{refused}");
    assert!(refused.to_string().contains("keys/vm01"), "{refused}");

    let sshd = Sshd::start("PubkeyAuthentication no\nPasswordAuthentication yes");
    let refused = exec(&sshd.remote().await, &["true"]).await.unwrap_err();
    assert!(refused.to_string().contains("only password"), "{refused}");

    fs::remove_file(sshd.path("keys/vm01")).unwrap();
    let refused = exec(&sshd.remote().await, &["true"]).await.unwrap_err();
    assert!(matches!(refused, Error::Identity { .. }), "{refused}");

    keygen(&sshd.path("keys/vm01"), &["-t", "ed25519"]);
    Process::new("chmod")
        .arg("644")
        .arg(sshd.path("keys/vm01"))
        .status()
        .unwrap();
    let refused = exec(&sshd.remote().await, &["true"]).await.unwrap_err();
    assert!(
        refused.to_string().contains("can be read by others"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_key_needs_its_passphrase() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let key = sshd.path("keys/vm01");
    let locked = Process::new("ssh-keygen")
        .args(["-q", "-p", "-P", "", "-N", "correct horse", "-f"])
        .arg(&key)
        .status();
    assert!(locked.unwrap().success());
    let remote = sshd.remote().await;
    let refused = exec(&remote, &["true"]).await.unwrap_err();
    assert!(refused.to_string().contains("encrypted"), "{refused}");
    let knows = |passphrase: &'static str| -> ssh::Passphrases {
        std::sync::Arc::new(move |_: &std::path::Path| Some(passphrase.to_owned().into()))
    };
    let wrong = exec(&remote.clone().passphrases(knows("wrong")), &["true"])
        .await
        .unwrap_err();
    assert!(wrong.to_string().contains("passphrase"), "{wrong}");
    assert!(
        exec(&remote.passphrases(knows("correct horse")), &["true"])
            .await
            .unwrap()
            .success
    );
}
