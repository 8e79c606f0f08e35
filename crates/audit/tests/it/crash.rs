//! Crashes: a torn last line, a killed process, a full disk, a second process. The other process is
//! this test binary, started again with one of the ignored tests below.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use audit::{Error, Outcome, Verdict, verify};
use serde_json::json;

use crate::support::{Place, exec, run};

const PATH: &str = "AUDIT_TEST_PATH";

#[tokio::test]
async fn a_torn_tail_is_set_aside_and_told() {
    let place = Place::filled(2).await;
    let whole = place.text();
    for torn in ["{\"seq\":5,\"time\":\"2026", "\0\0\0\0", "x"] {
        fs::write(place.path(), format!("{whole}{torn}")).unwrap();
        let report = verify(place.path(), None).unwrap();
        assert!(report.to_string().contains("unfinished line"), "{report}");
        place.open().await.unwrap().close().await;

        assert!(place.text().starts_with(&whole));
        let records = place.records();
        assert_eq!(records.len(), 5);
        let note = &records[4];
        assert_eq!(
            (note.action.as_str(), note.outcome),
            ("audit.truncated-tail", Verdict::Note)
        );
        let tail = &note.detail["tails"][0];
        assert_eq!(
            (&tail["bytes"], &tail["head"]),
            (&json!(torn.len()), &json!(torn))
        );
        let aside = place.dir.path().join(tail["file"].as_str().unwrap());
        assert_eq!(fs::read_to_string(&aside).unwrap(), torn);
        fs::remove_file(aside).unwrap();
        assert!(verify(place.path(), None).unwrap().is_sound());
        place.open().await.unwrap().close().await;
        assert_eq!(place.records().len(), 5, "told once");
    }
}

#[tokio::test]
async fn a_crash_between_cutting_and_telling_loses_nothing() {
    let place = Place::filled(1).await;
    let whole = place.text();
    // The first tail was cut off but not told of; telling of it was torn as well.
    fs::write(place.dir.path().join("audit.jsonl.torn-3-1"), "first").unwrap();
    fs::write(place.path(), format!("{whole}second")).unwrap();
    place.open().await.unwrap().close().await;
    let tails = &place.records()[2].detail["tails"];
    assert_eq!(
        (&tails[0]["head"], &tails[1]["head"]),
        (&json!("first"), &json!("second"))
    );
}

#[tokio::test]
async fn an_intent_cut_in_half_does_not_count_and_a_lost_outcome_is_unknown() {
    let place = Place::filled(1).await;
    let whole = place.text();
    let cut = whole.len() - 10;
    fs::write(place.path(), &whole[..cut]).unwrap();
    place.open().await.unwrap().close().await;
    let words: Vec<_> = place.records().iter().map(|r| r.outcome).collect();
    assert_eq!(words, [Verdict::Intent, Verdict::Note, Verdict::Unknown]);
}

fn start(test: &str, place: &Place, shell: Option<&str>) -> Child {
    let binary = std::env::current_exe().unwrap();
    let mut command = match shell {
        None => Command::new(binary),
        Some(before) => {
            let mut shell = Command::new("sh");
            shell
                .arg("-c")
                .arg(format!("{before}; exec \"$0\" \"$@\""))
                .arg(binary);
            shell
        }
    };
    command
        .args([
            "--exact",
            test,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(PATH, place.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn path() -> String {
    std::env::var(PATH).unwrap()
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let place = Place::new();
    for round in 0..5 {
        let mut child = start("crash::child_writes_until_killed", &place, None);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = None;
        for line in lines.map_while(Result::ok) {
            if let Some(head) = line.split_once("head ").map(|(_, head)| head.to_owned()) {
                acknowledged = Some(head);
                if child.try_wait().unwrap().is_none() && count(&acknowledged) % 40 > 20 + round {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let head = acknowledged.unwrap().parse().unwrap();
        run(async {
            place.open().await.unwrap().close().await;
        });
        let report = verify(place.path(), Some(head)).unwrap();
        assert!(report.is_sound() && report.open_intents == 0, "{report}");
    }
}

fn count(head: &Option<String>) -> u64 {
    let seq = head
        .as_deref()
        .and_then(|h| h.split_once(':'))
        .map(|(seq, _)| seq);
    seq.unwrap().parse().unwrap()
}

#[test]
#[ignore = "a child of what_was_acknowledged_survives_a_kill"]
fn child_writes_until_killed() {
    run(async {
        let log = audit::Log::open(path(), audit::Options::default())
            .await
            .unwrap();
        loop {
            let intent = log.intent(exec("web")).await.unwrap();
            println!("head {}", intent.head());
            let head = intent.finish(Outcome::ok()).await.unwrap();
            println!("head {head}");
        }
    });
}

#[test]
fn another_process_is_refused() {
    let place = Place::new();
    let mut child = start("crash::child_holds_the_log", &place, None);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("open")));
    let error = run(place.open()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    run(place.open()).unwrap();
}

#[test]
#[ignore = "a child of another_process_is_refused"]
fn child_holds_the_log() {
    let _log = run(audit::Log::open(path(), audit::Options::default())).unwrap();
    println!("\nopen");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_full_disk_refuses_intents_and_owes_outcomes() {
    let place = Place::new();
    // No file of this process may grow beyond its limit: a write fails in the middle, as on a full disk.
    let limit = "trap '' XFSZ; ulimit -S -f 16";
    let mut child = start("crash::child_fills_the_disk", &place, Some(limit));
    assert!(child.wait().unwrap().success());
    let report = verify(place.path(), None).unwrap();
    assert!(report.is_sound() && report.open_intents == 0, "{report}");
    let records = place.records();
    let note = records
        .iter()
        .position(|r| r.action == "audit.undone-write")
        .unwrap();
    assert!(records[note].detail["bytes"].as_u64().unwrap() > 0);
    assert!(records[note].detail["times"].as_u64().unwrap() >= 2);
    let after: Vec<_> = records[note + 1..]
        .iter()
        .map(|r| (r.outcome, r.target.as_str()))
        .collect();
    assert_eq!(
        after,
        [(Verdict::Failed, "held"), (Verdict::Refused, "last")]
    );
}

#[test]
#[ignore = "a child of a_full_disk_refuses_intents_and_owes_outcomes"]
fn child_fills_the_disk() {
    run(async {
        let log = audit::Log::open(path(), audit::Options::default())
            .await
            .unwrap();
        let held = log.intent(exec("held")).await.unwrap();
        while log.refused(exec("filler"), "x").await.is_ok() {}
        let error = log.intent(exec("web")).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Io {
                    operation: "write to",
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            verify(path(), Some(log.head())).unwrap().is_sound(),
            "cut back to whole records"
        );
        held.finish(Outcome::exited(7)).await.unwrap_err();

        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Fsize).maximum;
        setrlimit(
            Resource::Fsize,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
        .unwrap();
        log.refused(exec("last"), "x").await.unwrap();
        log.close().await;
    });
}

#[tokio::test]
async fn a_foreign_line_at_the_end_is_not_ours_to_cut() {
    let place = Place::filled(1).await;
    let mut file = OpenOptions::new().append(true).open(place.path()).unwrap();
    file.write_all(b"{\"seq\":3}\n").unwrap();
    let error = place.open().await.unwrap_err();
    assert!(
        error.to_string().contains("line 3: it is not a record"),
        "{error}"
    );
}
