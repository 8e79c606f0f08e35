//! `remote keys …` and passphrases, against a real sshd and on a terminal.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use crate::sshd::{Sshd, can_run, keygen};
use crate::terminal::{echoes, terminal, wait_until};
use crate::{Ran, command, finish};

/// A server that reads `home/.ssh/authorized_keys`, where the key `admin` stands.
fn managed() -> Sshd {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    for key in ["host", "admin"] {
        keygen(&at.join(key), &["-t", "ed25519"]);
    }
    fs::create_dir_all(at.join("home/.ssh")).unwrap();
    let file = at.join("home/.ssh/authorized_keys");
    fs::copy(at.join("admin.pub"), &file).unwrap();
    let sshd = Sshd::start_in(dir, &format!("AuthorizedKeysFile {}", file.display()));
    sshd.trust("host");
    fs::remove_file(sshd.path("keys/vm01")).unwrap();
    sshd
}

fn line(sshd: &Sshd, args: &[&str]) -> std::process::Command {
    let config = sshd.path("config.yml");
    fs::write(&config, sshd.config("", "")).unwrap();
    let mut command = command("", &["--config", config.to_str().unwrap(), "remote"]);
    command.args(args).env("PATH", "/usr/bin:/bin");
    command
}

fn remote(sshd: &Sshd, args: &[&str]) -> Ran {
    finish(line(sshd, args), None)
}

#[test]
fn a_key_goes_through_its_life() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let admin = sshd.path("admin").display().to_string();
    let good = |args: &[&str]| {
        let ran = remote(&sshd, args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
        ran
    };
    let status = || good(&["keys", "status", "vm01", "--json"]).json()[0].clone();
    assert_eq!(status()["state"], "missing");
    let made = good(&["keys", "init", "vm01", "--json"]).json();
    assert_eq!(status()["fingerprint"], made["fingerprint"]);
    let early = remote(&sshd, &["keys", "rotate", "vm01"]);
    assert_eq!(early.code, Some(1));
    assert!(
        early.stderr.contains("keys deploy vm01"),
        "{}",
        early.stderr
    );
    let told = good(&["keys", "deploy", "vm01", "--with-key", &admin]);
    assert!(told.out().contains("gets in from now on"), "{}", told.out());
    let rotated = good(&["keys", "rotate", "vm01", "--json"]).json();
    assert_eq!(rotated["refused"], made["fingerprint"]);
    assert_eq!(status()["state"], "good");
    assert!(good(&["keys", "status"]).out().contains("0 of 90 d"));
    let unasked = remote(&sshd, &["keys", "revoke", "vm01"]);
    assert_eq!(unasked.code, Some(2), "{}", unasked.stderr);
    good(&["keys", "revoke", "vm01", "--delete", "--yes"]);
    assert_eq!(status()["state"], "missing");
    let refused = remote(&sshd, &["keys", "init", "off"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    good(&["verify"]);
}

/// Reads what the program shows until it has asked.
fn wait_for(person: &mut File, question: &str) {
    let mut said = Vec::new();
    while !said.ends_with(question.as_bytes()) {
        let mut byte = [0];
        assert_eq!(person.read(&mut byte).unwrap(), 1);
        said.extend_from_slice(&byte);
    }
}

#[test]
fn passphrases_are_asked_for_on_a_terminal_and_never_shown() {
    if !can_run() {
        return;
    }
    let sshd = managed();
    let (mut person, program) = terminal();
    let on_terminal = |args: &[&str]| {
        let mut line = line(&sshd, args);
        line.stdin(Stdio::from(program.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .stderr(Stdio::from(program.try_clone().unwrap()));
        line.spawn().unwrap()
    };
    let child = on_terminal(&["keys", "init", "vm01", "--passphrase"]);
    wait_for(&mut person, "New passphrase of the key of vm01: ");
    wait_until("echo off", || !echoes(&program));
    writeln!(person, "correct horse").unwrap();
    wait_for(&mut person, "The same again: ");
    writeln!(person, "correct horse").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(echoes(&program));

    let admin = sshd.path("admin").display().to_string();
    let key = sshd.path("keys/vm01").display().to_string();
    let child = on_terminal(&["keys", "deploy", "vm01", "--with-key", &admin]);
    wait_for(&mut person, &format!("Passphrase of {key}: "));
    writeln!(person, "correct horse").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());

    let child = on_terminal(&["exec", "vm01", "--", "echo", "in"]);
    wait_for(&mut person, &format!("Passphrase of {key}: "));
    writeln!(person, "wrong").unwrap();
    wait_for(&mut person, "another passphrase");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));

    let child = on_terminal(&["exec", "vm01", "--", "echo", "in"]);
    wait_for(&mut person, &format!("Passphrase of {key}: "));
    writeln!(person, "correct horse").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(0), &b"in\n"[..])
    );

    // Without a terminal a file does it, and nothing hangs.
    let refused = remote(&sshd, &["exec", "vm01", "--", "true"]);
    assert!(
        refused.stderr.contains("--passphrase-file"),
        "{}",
        refused.stderr
    );
    let file = sshd.path("passphrase");
    fs::write(&file, "correct horse\n").unwrap();
    let file = file.display().to_string();
    let ran = remote(
        &sshd,
        &["exec", "vm01", "--passphrase-file", &file, "--", "true"],
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn aliases_of_an_ssh_config_are_hosts_on_request() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let file = sshd.path("home/.ssh/config");
    fs::create_dir_all(sshd.path("home/.ssh")).unwrap();
    let text = format!(
        "Host alias\n HostName {}\n Port {}\n User root\n ForwardAgent yes\n IdentityFile {}\nHost bad\n ProxyCommand x\n",
        sshd.host,
        sshd.port,
        sshd.path("keys/vm01").display()
    );
    fs::write(&file, text).unwrap();
    let run = |args: &[&str]| {
        let mut line = line(&sshd, args);
        line.env("HOME", sshd.path("home")).env("USER", "me");
        finish(line, None)
    };
    let ran = run(&["exec", "alias", "--", "echo", "in"]);
    assert_eq!(ran.code, Some(125), "{}", ran.stderr);
    let ran = run(&["--ssh-config", "exec", "alias", "--", "echo", "in"]);
    assert_eq!((ran.code, ran.out()), (Some(0), "in\n"), "{}", ran.stderr);
    let named = format!("--ssh-config={}", file.display());
    let ran = run(&["hosts", &named]);
    assert!(ran.out().contains("refused"), "{}", ran.out());
    let says = |text: &str| assert!(ran.stderr.contains(text), "{}", ran.stderr);
    says("alias: not used: forwardagent (");
    says(".ssh/config:8)");
    let config = sshd.path("config.yml");
    let text = sshd.config("", ", ssh_config: ~/.ssh/config");
    fs::write(&config, text).unwrap();
    let mut check = command("", &["config", "check", config.to_str().unwrap()]);
    check.env("HOME", sshd.path("home")).env("USER", "me");
    let checked = finish(check, None);
    assert!(
        checked.out().contains("host      vm01\n"),
        "{}",
        checked.stderr
    );
    assert!(
        checked
            .out()
            .contains("host      alias, not used: forwardagent (")
    );
    assert!(
        checked.out().contains("host      bad, refused: "),
        "{}",
        checked.out()
    );
    let ran = run(&["exec", "--ssh-config", "bad", "--", "true"]);
    assert_eq!(ran.code, Some(125));
    assert!(ran.stderr.contains("ProxyCommand"), "{}", ran.stderr);
}
