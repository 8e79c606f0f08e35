//! Writing: order, correlation, refusals, dropped intents, a second writer, hostile content.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use audit::{Entry, Error, Head, Log, Options, Outcome, Verdict};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Place, exec, run, ticking};

#[tokio::test]
async fn an_intent_stands_on_disk_before_its_outcome() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    assert_eq!(log.head(), Head::GENESIS);
    let intent = log.intent(exec("web")).await.unwrap();
    assert_eq!(place.records().len(), 1, "written before the action");
    assert_eq!(log.head(), intent.head());
    let id = intent.id().to_owned();
    let head = intent
        .finish(Outcome::exited(3).channel("pct").duration_ms(17))
        .await
        .unwrap();
    assert_eq!(log.head(), head);

    let [before, after] = <[_; 2]>::try_from(place.records()).unwrap();
    assert_eq!((before.seq, after.seq), (1, 2));
    assert_eq!((&before.id, &after.id), (&id, &id));
    assert_eq!(
        (before.outcome, after.outcome),
        (Verdict::Intent, Verdict::Failed)
    );
    assert_eq!((before.exit_code, after.exit_code), (None, Some(3)));
    assert_eq!((before.duration_ms, after.duration_ms), (None, Some(17)));
    assert_eq!(before.channel.as_deref(), Some("agent"));
    assert_eq!(after.channel.as_deref(), Some("pct"));
    assert_eq!(after.target, "web");
    assert_eq!(before.prev, Head::GENESIS.hash);
    assert_eq!(after.prev, before.hash);
    assert_eq!(after.head(), head);
}

#[tokio::test]
async fn the_line_is_the_documented_one() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    let entry =
        Entry::new("al\u{202e}ice\n", "instance.exec", "web").detail(json!({"b": 1, "a": "ü"}));
    let intent = log.intent(entry).await.unwrap();
    let expect = format!(
        r#"{{"seq":1,"time":"2026-01-02T03:04:05.000006Z","id":"{}","actor":"al\u202eice\n","action":"instance.exec","target":"web","channel":null,"detail":{{"a":"\u00fc","b":1}},"outcome":"intent","exit_code":null,"duration_ms":null,"prev":"{}""#,
        intent.id(),
        "0".repeat(64),
    );
    let text = place.text();
    let (body, end) = text.split_once(r#","hash":""#).unwrap();
    assert_eq!(body, expect);
    assert_eq!(end, format!("{}\"}}\n", intent.head().hash));
}

#[tokio::test]
async fn a_refused_action_says_why() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    log.refused(exec("web"), "no role").await.unwrap();
    log.refused(Entry::default().detail(json!([1])), "x")
        .await
        .unwrap();
    let records = place.records();
    assert_eq!(records[0].outcome, Verdict::Refused);
    assert_eq!(
        records[0].detail,
        json!({"argv": ["id", "-u"], "refusal": "no role"})
    );
    assert_eq!(records[1].detail, json!({"detail": [1], "refusal": "x"}));
}

#[tokio::test]
async fn a_refusal_closes_its_intent_and_may_name_the_target() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    let refused = log.intent(exec("")).await.unwrap();
    let outcome = Outcome::refused("name_taken").target("web");
    refused.finish(outcome).await.unwrap();
    log.close().await;
    let report = audit::verify(place.path(), None).unwrap();
    assert_eq!((report.is_sound(), report.open_intents), (true, 0));
    // Opening again finds nothing to close.
    place.open().await.unwrap().close().await;
    let records = place.records();
    assert_eq!(records.len(), 2);
    assert_eq!(records[1].id, records[0].id);
    assert_eq!(
        (records[1].outcome, records[1].outcome.as_str()),
        (Verdict::Refused, "refused")
    );
    assert_eq!(
        (records[0].target.as_str(), records[1].target.as_str()),
        ("", "web")
    );
    assert_eq!(records[1].detail, json!({"refusal": "name_taken"}));
}

#[tokio::test]
async fn a_dropped_intent_is_unknown() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    let intent = log.intent(exec("web")).await.unwrap();
    let id = intent.id().to_owned();
    drop(intent);
    log.close().await;
    let records = place.records();
    assert_eq!(records.len(), 2);
    assert_eq!(
        (records[1].outcome, &records[1].id),
        (Verdict::Unknown, &id)
    );
}

#[tokio::test]
async fn a_cancelled_call_leaves_no_open_intent() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    for polls in 0..3 {
        let mut call = Box::pin(log.intent(exec("web")));
        for _ in 0..polls {
            let _ = futures_poll(call.as_mut()).await;
        }
        drop(call);
    }
    // An outcome that nobody waits for is written all the same.
    let intent = log.intent(exec("db")).await.unwrap();
    drop(intent.finish(Outcome::ok()));
    log.close().await;
    let report = audit::verify(place.path(), None).unwrap();
    assert!(report.is_sound(), "{report}");
    assert_eq!(report.open_intents, 0);
    let last = place.records().pop().unwrap();
    assert_eq!((last.target.as_str(), last.outcome), ("db", Verdict::Ok));
}

async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}

#[tokio::test]
async fn an_intent_that_outlives_its_log_is_closed_at_the_next_opening() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    let intent = log.intent(exec("web")).await.unwrap();
    log.close().await;
    let error = intent.finish(Outcome::ok()).await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
    assert_eq!(audit::verify(place.path(), None).unwrap().open_intents, 1);

    place.open().await.unwrap().close().await;
    let records = place.records();
    assert_eq!(records[1].outcome, Verdict::Unknown);
    assert_eq!(records[1].id, records[0].id);
    assert_eq!(records[1].target, "web");
    place.open().await.unwrap().close().await;
    assert_eq!(place.records().len(), 2, "closed once");
}

#[tokio::test]
async fn a_second_writer_is_refused() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    let error = place.open().await.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    log.close().await;
    place.open().await.unwrap();
}

#[tokio::test]
async fn a_broken_chain_is_not_continued() {
    let place = Place::filled(2).await;
    let text = place.text().replacen("alice", "mallo", 1);
    fs::write(place.path(), &text).unwrap();
    let error = place.open().await.unwrap_err().to_string();
    assert!(
        error.contains("record 1 (line 1): its content was changed"),
        "{error}"
    );
    assert_eq!(place.text(), text, "untouched");
}

#[tokio::test]
async fn an_anchor_is_checked_at_opening() {
    let place = Place::filled(2).await;
    let head = place.records()[3].head();
    let with = |anchor| Options {
        anchor: Some(anchor),
        ..ticking()
    };
    Log::open(place.path(), with(head))
        .await
        .unwrap()
        .close()
        .await;
    let text = place.text();
    let cut = text
        .lines()
        .take(2)
        .map(|l| format!("{l}\n"))
        .collect::<String>();
    fs::write(place.path(), cut).unwrap();
    let error = Log::open(place.path(), with(head))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("it ends at record 2"), "{error}");
}

#[tokio::test]
async fn a_file_that_changes_under_the_writer_stops_it() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    log.refused(exec("web"), "no").await.unwrap();
    let moved = place.dir.path().join("moved");
    fs::rename(place.path(), &moved).unwrap();
    let error = log.intent(exec("web")).await.unwrap_err();
    assert!(error.to_string().contains("moved or deleted"), "{error}");
    fs::write(place.path(), "").unwrap();
    let error = log.intent(exec("web")).await.unwrap_err();
    assert!(error.to_string().contains("another file"), "{error}");
    fs::rename(&moved, place.path()).unwrap();
    let intent = log.intent(exec("web")).await.unwrap();
    let text = place.text();
    fs::write(place.path(), format!("{text}x")).unwrap();
    let error = intent.finish(Outcome::ok()).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    fs::write(place.path(), text).unwrap();
    // The outcome that could not be written is written before the next record.
    log.refused(exec("web"), "no").await.unwrap();
    let words: Vec<_> = place.records().iter().map(|r| r.outcome).collect();
    use Verdict::{Intent, Ok, Refused};
    assert_eq!(words, [Refused, Intent, Ok, Refused]);
}

#[tokio::test]
async fn only_the_owner_may_read_and_links_are_refused() {
    let place = Place::new();
    place.open().await.unwrap().close().await;
    let mode = || fs::metadata(place.path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o644)).unwrap();
    place.open().await.unwrap().close().await;
    assert_eq!(mode(), 0o600);
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(place.path(), &link).unwrap();
    for path in [link, place.dir.path().to_owned()] {
        let error = Log::open(path, ticking()).await.unwrap_err();
        assert!(matches!(error, Error::NotAFile { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_make_one_chain() {
    let place = Place::new();
    let log = Log::open(place.path(), Options::default()).await.unwrap();
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    let intent = log.intent(exec(&format!("app{n}"))).await.unwrap();
                    intent.finish(Outcome::ok()).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let head = log.head();
    let report = audit::verify(place.path(), Some(head)).unwrap();
    assert!(report.is_sound(), "{report}");
    assert_eq!(
        (report.records, report.open_intents, head.seq),
        (1000, 0, 1000)
    );
}

#[tokio::test]
async fn as_many_intents_as_may_be_open_can_all_be_finished() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    let mut open = Vec::new();
    for chunk in 0..audit::MAX_OPEN_INTENTS / 64 {
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let log = log.clone();
                tokio::spawn(async move { log.intent(exec(&chunk.to_string())).await.unwrap() })
            })
            .collect();
        for call in calls {
            open.push(call.await.unwrap());
        }
    }
    let error = log.intent(exec("one more")).await.unwrap_err();
    assert!(matches!(error, Error::TooManyOpen { .. }), "{error}");
    log.refused(exec("one more"), "too many").await.unwrap();
    drop(open);
    log.close().await;
    let report = audit::verify(place.path(), None).unwrap();
    assert!(report.is_sound() && report.open_intents == 0, "{report}");
}

#[tokio::test]
async fn nothing_is_too_large_to_be_recorded() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    let huge = "\u{1F600}".repeat(100_000);
    let entry = Entry::new(huge.as_str(), huge.as_str(), huge.as_str())
        .channel(huge.as_str())
        .detail(json!({"argv": [huge]}));
    log.refused(entry, "no").await.unwrap();
    // The largest detail that is kept whole, with the largest names.
    let entry = Entry::new(huge.as_str(), huge.as_str(), huge.as_str())
        .channel(huge.as_str())
        .detail(Value::from("x".repeat(audit::MAX_DETAIL_BYTES - 2)));
    log.intent(entry)
        .await
        .unwrap()
        .finish(Outcome::ok())
        .await
        .unwrap();
    let text = place.text();
    assert!(text.lines().all(|l| l.len() <= audit::MAX_LINE_BYTES));
    let records = place.records();
    assert_eq!(records[0].actor.chars().count(), audit::MAX_NAME_CHARS);
    assert!(records[0].detail["oversize"]["bytes"].as_u64().unwrap() > 1_000_000);
    assert!(records[1].detail.is_string());
    assert!(
        audit::verify(place.path(), Some(log.head()))
            .unwrap()
            .is_sound()
    );
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter),
        "[\n\r\t\"\\\\{},:\u{0}\u{1b}\u{7f}\u{85}\u{9b}\u{2028}\u{202e}a]{0,20}",
        Just("\n{\"seq\":2,\"outcome\":\"ok\"}\n".to_owned()),
    ]
}

fn detail() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(text(), inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_content_comes_back_on_a_line_of_its_own(
        entries in proptest::collection::vec((text(), text(), text(), detail()), 1..4)
    ) {
        let place = Place::new();
        // What the redactor makes of the content is its own business, see the module `redact`.
        let redactor = audit::Redactor::new();
        run(async {
            let log = place.open().await.unwrap();
            for (actor, action, target, detail) in &entries {
                let entry = Entry::new(actor, action, target).channel(target).detail(detail.clone());
                log.intent(entry).await.unwrap().finish(Outcome::ok().detail(detail.clone())).await.unwrap();
            }
            log.close().await;
        });
        let raw = place.text();
        prop_assert!(raw.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)));
        prop_assert_eq!(raw.lines().count(), entries.len() * 2);
        let records = place.records();
        for (pair, (actor, action, target, detail)) in records.chunks(2).zip(&entries) {
            for record in pair {
                prop_assert_eq!(&record.actor, &redactor.name(actor));
                prop_assert_eq!(&record.action, &redactor.name(action));
                prop_assert_eq!(&record.target, &redactor.name(target));
                prop_assert_eq!(record.channel.as_ref(), Some(&redactor.name(target)));
                prop_assert_eq!(&record.detail, &redactor.value(detail.clone()));
            }
        }
    }
}
