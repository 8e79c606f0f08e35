//! Evidence: what was done, as files that others can check, without secrets; and copies of the records for syslog.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use serde_json::Value;
use ssh::{Command, Hosts, Input, Output, Remote};

use crate::sshd::{Sshd, can_run};

fn kept(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    found.sort();
    found
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn lines(path: PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_leaves_its_result_transcript_and_records() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let dir = sshd.path("evidence/of/today");
    let remote = sshd.remote().await.evidence(&dir);
    let script = "echo one; sleep 0.3; echo two >&2; printf 'password=hunter2hunter2'; printf '\\377' >&2; exit 3";
    let command = Command::shell(script).unwrap();
    for output in [true, false] {
        let (to, mut from) = tokio::sync::mpsc::channel(8);
        tokio::spawn(async move { while from.recv().await.is_some() {} });
        let output = if output {
            Output::Stream(to)
        } else {
            Output::Collect
        };
        let result = remote
            .execute("vm01", &command, Input::None, output)
            .await
            .unwrap();
        assert!(result.warnings.is_empty(), "{result:?}");
        let at = kept(&dir).into_iter().find(|path| {
            path.to_str()
                .unwrap()
                .ends_with(&format!("Z-vm01-{}", result.audit_id))
        });
        let at = at.unwrap();
        assert_eq!(
            fs::metadata(&at).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let names: Vec<PathBuf> = kept(&at);
        assert_eq!(names.len(), 4, "{names:?}");
        for name in &names {
            assert_eq!(
                fs::metadata(name).unwrap().permissions().mode() & 0o777,
                0o600
            );
            let text = fs::read_to_string(name).unwrap();
            assert!(!text.contains("hunter2"), "{name:?}: {text}");
        }
        assert_eq!(json(at.join("result.json"))["exit_code"], 3);
        let transcript = lines(at.join("transcript.jsonl"));
        assert_eq!(
            (&transcript[0]["data"], &transcript[0]["stream"]),
            (&"one\n".into(), &"stdout".into())
        );
        assert_eq!(
            (&transcript[1]["data"], &transcript[1]["stream"]),
            (&"two\n".into(), &"stderr".into())
        );
        assert!(transcript[1]["at_ms"].as_u64() >= transcript[0]["at_ms"].as_u64());
        assert_eq!(transcript.len(), 4);
        assert_eq!(transcript[3]["lossy"], true);
        // The slice is a part of the chain, from the intent to the outcome, and its head is the log's.
        let slice = lines(at.join("audit.jsonl"));
        assert_eq!(
            (&slice[0]["outcome"], &slice[1]["outcome"]),
            (&"intent".into(), &"failed".into())
        );
        assert_eq!(
            (&slice[0]["id"], &slice[1]["prev"]),
            (&Value::from(result.audit_id), &slice[0]["hash"])
        );
        let proof = json(at.join("proof.json"));
        let head = proof["head"].as_str().unwrap().parse().unwrap();
        let report = audit::verify(sshd.path("audit/remote-audit-0.log"), Some(head)).unwrap();
        assert_eq!(report.proof, audit::Proof::UpTo(head), "{report}");
    }
    assert_eq!(kept(&dir).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_transfers_have_evidence_too() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let dir = sshd.path("evidence");
    let remote = sshd.remote().await.evidence(&dir);
    fs::write(sshd.path("source"), "content").unwrap();
    let far = sshd.path("far").display().to_string();
    remote
        .upload("vm01", &sshd.path("source"), &far, |_| {})
        .await
        .unwrap();
    let none = sshd.path("none").display().to_string();
    remote
        .download("vm01", &none, &sshd.path("x"), |_| {})
        .await
        .unwrap_err();
    let all = kept(&dir);
    let results: Vec<Value> = all.iter().map(|at| json(at.join("result.json"))).collect();
    assert!(
        results.iter().any(|result| result["bytes"] == 7),
        "{results:?}"
    );
    assert!(
        results
            .iter()
            .any(|r| r["error"]["code"] == "transfer_failed"),
        "{results:?}"
    );
    for at in &all {
        assert!(lines(at.join("audit.jsonl")).len() >= 2);
        assert!(!at.join("transcript.jsonl").exists());
    }
    // A directory that cannot be written to: nothing is done at all.
    let blocked = sshd.path("source").join("below");
    let remote = sshd.remote_with("", "").await.evidence(blocked);
    let command = Command::argv(["touch", sshd.path("touched").to_str().unwrap()]).unwrap();
    let ran = remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await;
    assert!(ran.unwrap_err().to_string().contains("evidence"));
    assert!(!sshd.path("touched").exists());
    // What is refused has its record, and no evidence.
    let remote = sshd.remote().await.evidence(&dir);
    let ran = remote
        .execute("../x", &command, Input::None, Output::Collect)
        .await;
    assert!(ran.is_err());
    assert_eq!(kept(&dir).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_go_to_syslog_when_that_is_wanted_and_never_wait_for_it() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let socket = sshd.path("devlog");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let settings = format!(", syslog: true, syslog_socket: {}", socket.display());
    let hosts = Hosts::parse(&sshd.config("", &settings), None).unwrap();
    let witness = hosts.settings.syslog.clone().map(ssh::syslog);
    let (dir, redactor) = (sshd.path("audit"), audit::Redactor::default());
    let log = ssh::journal::open_with(&dir, redactor, witness);
    let remote = Remote::new(hosts, log.await.unwrap(), "tester");
    let command = Command::argv(["true"]).unwrap();
    remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await
        .unwrap();
    let mut heard = Vec::new();
    for _ in 0..2 {
        let mut datagram = vec![0; 100_000];
        let length = listener.recv(&mut datagram).unwrap();
        let text = String::from_utf8(datagram[..length].to_vec()).unwrap();
        heard.push(text.split_once("]: ").unwrap().1.to_owned());
    }
    assert_eq!(sshd.audit().lines().collect::<Vec<_>>(), heard);
    // With nobody there it goes on all the same.
    drop(listener);
    fs::remove_file(&socket).unwrap();
    remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await
        .unwrap();
    assert_eq!(sshd.audit().lines().count(), 4);
}
