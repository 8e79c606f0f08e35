//! `remote …` against a real sshd: streams, exit codes, documents and refusals.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use crate::sshd::{Sshd, can_run, keygen};
use crate::terminal::{echoes, terminal, wait_until};
use crate::{Ran, command, finish};

/// Runs the binary with the host's configuration.
fn remote(sshd: &Sshd, args: &[&str], stdin: Option<&[u8]>) -> Ran {
    let config = sshd.path("config.yml");
    fs::write(&config, sshd.config(", role: web", "")).unwrap();
    let mut command = command("", &["--config", config.to_str().unwrap(), "remote"]);
    command.args(args).env("PATH", "/usr/bin:/bin");
    finish(command, stdin)
}

#[test]
fn a_command_passes_its_streams_and_its_code_through() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let ran = remote(
        &sshd,
        &[
            "exec",
            "vm01",
            "--",
            "sh",
            "-c",
            "cat; echo err >&2; exit 7",
        ],
        Some(b"a\0b\n"),
    );
    assert_eq!(
        (ran.code, ran.stdout.as_slice(), ran.stderr.as_str()),
        (Some(7), &b"a\0b\n"[..], "err\n")
    );
    let ran = remote(
        &sshd,
        &["exec", "vm01", "--timeout", "500ms", "--", "sleep", "60"],
        None,
    );
    assert_eq!(ran.code, Some(124), "{}", ran.stderr);
    assert!(ran.stderr.contains("deadline"), "{}", ran.stderr);
    let ran = remote(
        &sshd,
        &["exec", "vm01", "--json", "--", "echo", "it's"],
        None,
    );
    let result = ran.json();
    assert_eq!(
        (ran.code, result["stdout"].as_str()),
        (Some(0), Some("it's\n"))
    );
    assert_eq!(result["command"], "echo 'it'\\''s'");
    for field in [
        "stderr",
        "exit_code",
        "execution_time",
        "timestamp",
        "vm_id",
        "success",
        "attempts",
    ] {
        assert!(!result[field].is_null(), "{field}: {result}");
    }
    let script = sshd.path("script.sh");
    fs::write(&script, "echo \"$0 $1\"; exit 3\n").unwrap();
    let ran = remote(
        &sshd,
        &["script", "vm01", script.to_str().unwrap(), "-x"],
        None,
    );
    assert_eq!(
        (ran.code, ran.out()),
        (Some(3), "script.sh -x\n"),
        "{}",
        ran.stderr
    );
}

#[test]
fn what_does_not_run_is_125_and_says_why() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start_untrusted("");
    let check = |args: &[&str], says: &str| {
        let ran = remote(&sshd, args, None);
        assert_eq!(ran.code, Some(125), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{args:?}: {}", ran.stderr);
    };
    check(&["exec", "vm01", "--", "id"], "proximity remote trust vm01");
    check(&["exec", "off", "--", "id"], "disabled");
    check(&["exec", "vm02", "--", "id"], "did you mean vm01?");
    check(&["exec", "vm01"], "ARGV");
    check(&["exec", "--", "id"], "no host is named");
    check(
        &["exec", "vm01", "-e", "A B=x", "--", "id"],
        "environment variable",
    );
    let ran = remote(&sshd, &["exec", "vm01", "--json", "--", "id"], None);
    assert_eq!(ran.json()["error"]["code"], "host_key_unknown");
}

#[test]
fn a_key_is_trusted_by_its_fingerprint_only() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start_untrusted("");
    let ran = remote(&sshd, &["trust", "vm01"], None);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("nobody to ask"), "{}", ran.stderr);
    let wrong = remote(&sshd, &["trust", "vm01", "--fingerprint", "SHA256:x"], None);
    assert_eq!(wrong.code, Some(1), "{}", wrong.stderr);
    assert!(!sshd.path("known_hosts").exists());
    let shown = wrong
        .stderr
        .split_whitespace()
        .find(|word| word.starts_with("SHA256:"))
        .unwrap();
    let ran = remote(&sshd, &["trust", "vm01", "--fingerprint", shown], None);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(
        remote(&sshd, &["exec", "vm01", "--", "true"], None).code,
        Some(0)
    );
    // Somebody else's key in its place stops everything, trust too.
    keygen(&sshd.path("other"), &["-t", "ed25519"]);
    fs::remove_file(sshd.path("known_hosts")).unwrap();
    sshd.trust("other");
    for args in [
        &["exec", "vm01", "--", "true"][..],
        &["trust", "vm01", "--fingerprint", shown],
    ] {
        let ran = remote(&sshd, args, None);
        assert!(
            ran.stderr.contains("HAS CHANGED"),
            "{args:?}: {}",
            ran.stderr
        );
        assert_ne!(ran.code, Some(0));
    }
}

#[test]
fn many_hosts_have_labels_a_table_and_one_code() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let config = sshd.config(", role: web", "");
    let one = config
        .split("vm01: {")
        .nth(1)
        .unwrap()
        .split('}')
        .next()
        .unwrap();
    let config = config.replace(
        "vms: {",
        &format!("vms: {{ vm02: {{{one}}}, vm03: {{{one}}},"),
    );
    for vm in ["vm02", "vm03"] {
        fs::copy(sshd.path("keys/vm01"), sshd.path(&format!("keys/{vm}"))).unwrap();
    }
    let file = sshd.path("many.yml");
    fs::write(&file, config).unwrap();
    let run = |args: &[&str]| {
        let mut command = command("", &["--config", file.to_str().unwrap(), "remote", "exec"]);
        command.args(args);
        finish(command, None)
    };
    let ran = run(&[
        "--role",
        "web",
        "--parallel",
        "2",
        "--",
        "printf",
        "a\\nb\\033[2J",
    ]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let mut lines: Vec<&str> = ran.out().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert_eq!(lines[..2], ["vm01: a", "vm01: b\\x1b[2J"]);
    assert_eq!(ran.stderr.lines().count(), 4, "{}", ran.stderr);
    let ran = run(&["vm01,off,vm03", "--json", "--", "true"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let told = ran.json();
    assert_eq!(told[0]["result"]["success"], true);
    assert_eq!(told[1]["error"]["code"], "refused");
}

#[test]
fn files_go_and_come_and_the_log_is_sound() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    fs::write(sshd.path("source"), "content\n").unwrap();
    let path = |name: &str| sshd.path(name).to_str().unwrap().to_owned();
    let ran = remote(
        &sshd,
        &["upload", "vm01", &path("source"), &path("far")],
        None,
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = remote(
        &sshd,
        &["download", "vm01", &path("far"), &path("back"), "--json"],
        None,
    );
    assert_eq!(ran.json()["bytes"], 8, "{}", ran.stderr);
    assert_eq!(fs::read_to_string(sshd.path("back")).unwrap(), "content\n");
    let ran = remote(
        &sshd,
        &["download", "vm01", &path("none"), &path("back")],
        None,
    );
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let ran = remote(&sshd, &["hosts", "--json"], None);
    assert_eq!(ran.json()[1]["vm_id"], "vm01");
    fs::create_dir_all(sshd.path("tree/inner")).unwrap();
    fs::write(sshd.path("tree/inner/f"), "deep\n").unwrap();
    let ran = remote(&sshd, &["upload", "vm01", &path("tree"), &path("t")], None);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("give -r"), "{}", ran.stderr);
    let ran = remote(
        &sshd,
        &["upload", "-r", "vm01", &path("tree"), &path("t")],
        None,
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.out().contains("1 files, 1 directories"),
        "{}",
        ran.out()
    );
    let ran = remote(
        &sshd,
        &["download", "-r", "vm01", &path("t"), &path("u"), "--json"],
        None,
    );
    assert_eq!(ran.json()["files"], 1, "{}", ran.stderr);
    assert_eq!(fs::read(sshd.path("u/inner/f")).unwrap(), b"deep\n");
    let evidence = path("evidence");
    let exec = [
        "exec",
        "vm01",
        "--evidence",
        &evidence,
        "--",
        "echo",
        "seen",
    ];
    let ran = remote(&sshd, &exec, None);
    assert_eq!((ran.code, ran.out()), (Some(0), "seen\n"));
    let kept = fs::read_dir(&evidence).unwrap().next().unwrap().unwrap();
    let kept = kept.path();
    let transcript = fs::read_to_string(kept.join("transcript.jsonl")).unwrap();
    assert!(transcript.contains("seen"), "{transcript}");
    let proof = fs::read_to_string(kept.join("proof.json")).unwrap();
    let proof: serde_json::Value = serde_json::from_str(&proof).unwrap();
    let head = proof["head"].as_str().unwrap();
    let ran = remote(&sshd, &["verify", "--head", head, "--json"], None);
    assert_eq!(ran.code, Some(0), "{}", ran.out());
    assert_eq!(ran.json()["head_found"], true);
    let other = format!("3:{}", "0".repeat(64));
    let ran = remote(&sshd, &["verify", "--head", &other], None);
    assert_eq!(ran.code, Some(1), "{}", ran.out());
    let ran = remote(&sshd, &["verify"], None);
    assert_eq!(ran.code, Some(0), "{}", ran.out());
    let log = sshd.path("audit/remote-audit-0.log");
    let edited = fs::read_to_string(&log)
        .unwrap()
        .replacen("upload", "delete", 1);
    fs::write(&log, edited).unwrap();
    let ran = remote(&sshd, &["verify"], None);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out().contains("NOT SOUND"), "{}", ran.out());
}

/// The binary with a terminal of its own.
fn in_terminal(sshd: &Sshd, terminal: &fs::File, args: &[&str]) -> Child {
    let config = sshd.path("config.yml");
    fs::write(&config, sshd.config("", "")).unwrap();
    let ours = command("", &[]);
    let mut run = Command::new("setsid");
    run.arg("--ctty")
        .arg(ours.get_program())
        .args(["--config", config.to_str().unwrap(), "remote"])
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TERM", "screen");
    let stream = || Stdio::from(terminal.try_clone().unwrap());
    run.stdin(stream()).stdout(stream()).stderr(Stdio::piped());
    run.spawn().unwrap()
}

/// Gathers what is shown, for as long as the terminal is there.
fn gather(person: &fs::File) -> Arc<Mutex<String>> {
    let seen = Arc::new(Mutex::new(String::new()));
    let (mut person, to) = (person.try_clone().unwrap(), Arc::clone(&seen));
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = person.read(&mut piece) {
            *to.lock().unwrap() += &String::from_utf8_lossy(&piece[..read]);
        }
    });
    seen
}

#[test]
fn a_terminal_is_raw_while_it_lasts_and_as_before_afterwards() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let shell: &[&str] = &["shell", "vm01"];
    let program: &[&str] = &[
        "exec",
        "-t",
        "vm01",
        "--",
        "sh",
        "-c",
        "echo rea''dy; exec sh",
    ];
    for (args, first, then, code) in [
        (shell, "echo rea''dy\r", "exit 5\r", Some(5)),
        (shell, "echo rea''dy\r", "~.", Some(130)),
        (program, "\r", "exit 6\r", Some(6)),
    ] {
        let (mut person, program) = terminal();
        let mut child = in_terminal(&sshd, &program, args);
        wait_until("raw", || !echoes(&program));
        let seen = gather(&person);
        person.write_all(first.as_bytes()).unwrap();
        wait_until("the program answers", || {
            seen.lock().unwrap().contains("ready")
        });
        person.write_all(then.as_bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), code, "{then:?}");
        assert!(echoes(&program), "{then:?}");
    }
    // A signal restores it too.
    let (_person, program) = terminal();
    let mut child = in_terminal(&sshd, &program, shell);
    wait_until("raw", || !echoes(&program));
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(echoes(&program));
    let ran = remote(&sshd, shell, Some(b""));
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
}

#[test]
fn a_port_leads_through_a_host_until_ctrl_c() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let config = sshd.path("config.yml");
    fs::write(&config, sshd.config("", "")).unwrap();
    let mut run = command("", &["--config", config.to_str().unwrap(), "remote"]);
    // What it leads to is the sshd itself, which speaks first.
    let ports = format!("0:127.0.0.1:{}", sshd.port);
    run.args(["forward", "vm01", &ports, "--json"])
        .env("PATH", "/usr/bin:/bin");
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = run.spawn().unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    while serde_json::from_str::<serde_json::Value>(&said).is_err() {
        assert_ne!(stdout.read_line(&mut said).unwrap(), 0, "{said}");
    }
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["listen"], "127.0.0.1");
    let local = u16::try_from(told["local_port"].as_u64().unwrap()).unwrap();
    for _ in 0..2 {
        let stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
        let mut banner = String::new();
        BufReader::new(stream).read_line(&mut banner).unwrap();
        assert!(banner.starts_with("SSH-2.0-OpenSSH"), "{banner}");
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let audit = sshd.audit();
    assert!(
        audit.contains("remote.forward") && !audit.contains("unknown"),
        "{audit}"
    );
}
