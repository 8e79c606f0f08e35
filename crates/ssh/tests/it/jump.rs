//! Hosts that are reached through others: each one's key is checked, and nothing goes around.

use std::fs;

use ssh::{Error, HostKeyProblem, Hosts, Remote};

use crate::sshd::{Sshd, can_run, exec};

/// `vm01` is `far`, reached through `near`.
async fn through(near: &Sshd, far: &Sshd) -> Remote {
    let (at, key) = (far.dir.path().display(), near.path("keys/vm01"));
    let key = key.display();
    let config = format!(
        "vms: {{ vm01: {{ ip: {}, ssh_port: {}, ssh_user: root, proxy_jump: door }}, \
         door: {{ ip: {}, ssh_port: {}, ssh_user: root, key_file: {key} }} }}\n\
         remote_execution: {{ known_hosts: {at}/known_hosts, key_storage_path: {at}/keys, audit_dir: {at}/audit, \
         use_agent: false, default_retry: 0 }}\n",
        far.host, far.port, near.host, near.port
    );
    let log = ssh::journal::open(&far.path("audit"), audit::Redactor::default())
        .await
        .unwrap();
    Remote::new(Hosts::parse(&config, None).unwrap(), log, "tester")
}

fn know_both(near: &Sshd, far: &Sshd) {
    let known = [near, far].map(|sshd| fs::read_to_string(sshd.path("known_hosts")).unwrap());
    fs::write(far.path("known_hosts"), known.concat()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_behind_another_is_reached() {
    if !can_run() {
        return;
    }
    let (near, far) = (Sshd::start(""), Sshd::start(""));
    know_both(&near, &far);
    let remote = through(&near, &far).await;
    let script = "echo $SSH_CONNECTION; head -c 5000000 /dev/zero | wc -c";
    let result = exec(&remote, &["sh", "-c", script]).await.unwrap();
    assert!(
        result.stdout.contains(&format!(" {}\n5000000\n", far.port)),
        "{result:?}"
    );
    assert!(near.log().contains("Accepted publickey"), "{}", near.log());
    fs::write(far.path("source"), vec![7; 3_000_000]).unwrap();
    let target = far.path("target").display().to_string();
    remote
        .upload("vm01", &far.path("source"), &target, |_| {})
        .await
        .unwrap();
    assert_eq!(fs::metadata(target).unwrap().len(), 3_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_host_on_the_way_must_be_known() {
    if !can_run() {
        return;
    }
    let (near, far) = (Sshd::start(""), Sshd::start(""));
    let check = async |known: String, vm: &str| {
        fs::write(far.path("known_hosts"), known).unwrap();
        match exec(&through(&near, &far).await, &["true"])
            .await
            .unwrap_err()
        {
            Error::HostKey { vm: found, problem } => {
                assert_eq!(found, vm);
                assert!(
                    matches!(*problem, HostKeyProblem::Unknown { .. }),
                    "{problem}"
                );
            }
            other => panic!("{other}"),
        }
    };
    let far_only = fs::read_to_string(far.path("known_hosts")).unwrap();
    check(far_only, "door").await;
    check(
        fs::read_to_string(near.path("known_hosts")).unwrap(),
        "vm01",
    )
    .await;
    assert!(!far.log().contains("Accepted"), "{}", far.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_does_not_open_says_why() {
    if !can_run() {
        return;
    }
    let (near, far) = (Sshd::start("AllowTcpForwarding no"), Sshd::start(""));
    know_both(&near, &far);
    let refused = exec(&through(&near, &far).await, &["true"])
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::Connect { .. }), "{refused}");
    assert!(refused.to_string().contains("through door"), "{refused}");
}
