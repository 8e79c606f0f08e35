//! Verification: every edit is found, and nothing is promised that is not proven.

use std::fs;
use std::sync::LazyLock;

use audit::{Head, Problem, Proof, Report, verify};
use proptest::prelude::*;

use crate::support::{Place, exec, run};

fn rewritten(place: &Place, lines: &[&str]) -> Report {
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    fs::write(place.path(), text).unwrap();
    verify(place.path(), None).unwrap()
}

#[tokio::test]
async fn gaps_repetitions_and_order() {
    let place = Place::filled(3).await;
    let text = place.text();
    let all: Vec<&str> = text.lines().collect();
    let check = |order: &[usize], expect: &str| {
        let lines: Vec<&str> = order.iter().map(|n| all[n - 1]).collect();
        let report = rewritten(&place, &lines);
        assert!(!report.is_sound(), "{order:?}");
        assert!(report.to_string().contains(expect), "{order:?}: {report}");
    };
    check(&[1, 3, 4, 5, 6], "record 3 (line 2): record 2 is missing");
    check(
        &[1, 2, 5, 6],
        "record 5 (line 3): records 3 to 4 are missing",
    );
    check(&[2, 3, 4, 5, 6], "record 2 (line 1): record 1 is missing");
    check(&[1, 2, 2, 3, 4, 5, 6], "record 2 (line 3): it is repeated");
    check(
        &[1, 3, 2, 4, 5, 6],
        "record 2 (line 3): it is repeated or out of order",
    );
    assert!(rewritten(&place, &all).is_sound());
}

#[tokio::test]
async fn truncation_needs_a_head() {
    let place = Place::filled(3).await;
    let records = place.records();
    let text = place.text();
    let head = records[5].head();

    let report = verify(place.path(), None).unwrap();
    assert!(report.is_sound() && report.proof == Proof::NoAnchor);
    assert!(report.to_string().contains("not provable"), "{report}");
    let report = verify(place.path(), Some(head)).unwrap();
    assert_eq!((report.head, report.proof), (head, Proof::UpTo(head)));
    assert!(
        report
            .to_string()
            .ends_with("proven up to its end, record 6"),
        "{report}"
    );
    let older = records[2].head();
    let report = verify(place.path(), Some(older)).unwrap();
    assert!(
        report.is_sound() && report.to_string().contains("proven up to record 3"),
        "{report}"
    );

    let short = rewritten(&place, &text.lines().take(4).collect::<Vec<_>>());
    assert!(short.is_sound(), "only a head can tell");
    let report = verify(place.path(), Some(head)).unwrap();
    assert_eq!(report.proof, Proof::Contradicted(head));
    assert_eq!(
        report.findings[0].problem,
        Problem::Truncated { last: 4, head }
    );
    rewritten(&place, &[]);
    assert!(!verify(place.path(), Some(head)).unwrap().is_sound());
}

#[tokio::test]
async fn a_chain_written_anew_needs_a_head_too() {
    let place = Place::filled(3).await;
    let head = place.records()[3].head();
    let other = Place::filled(3).await;
    assert!(verify(other.path(), None).unwrap().is_sound());
    let report = verify(other.path(), Some(head)).unwrap();
    assert!(
        matches!(report.findings[0].problem, Problem::Rewritten { .. }),
        "{report}"
    );
    assert_eq!(report.findings[0].seq, Some(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_can_be_verified_while_it_is_written() {
    let place = Place::new();
    let log = place.open().await.unwrap();
    let path = place.path();
    let head = log.heads();
    let reader = tokio::task::spawn_blocking(move || {
        // The watch ends with the writer.
        while head.has_changed().is_ok() {
            let anchor = *head.borrow();
            let report = verify(&path, Some(anchor)).unwrap();
            assert!(report.is_sound(), "{report}");
        }
    });
    for _ in 0..500 {
        log.refused(exec(&"x".repeat(900)), "no").await.unwrap();
    }
    log.close().await;
    reader.await.unwrap();
}

#[tokio::test]
async fn findings_are_bounded() {
    let place = Place::new();
    fs::write(place.path(), "x\n".repeat(1000)).unwrap();
    let report = verify(place.path(), None).unwrap();
    assert_eq!((report.findings.len(), report.more_findings), (100, 900));
}

#[test]
fn heads_print_and_parse() {
    let text = format!("12:{}", "0a".repeat(32));
    let head: Head = text.parse().unwrap();
    assert_eq!((head.seq, head.to_string()), (12, text.clone()));
    let json = serde_json::to_string(&head).unwrap();
    assert_eq!(
        json,
        format!(r#"{{"seq":12,"hash":"{}"}}"#, "0a".repeat(32))
    );
    assert_eq!(serde_json::from_str::<Head>(&json).unwrap(), head);
    for bad in [
        "",
        "12",
        "12:",
        ":",
        "+1:00",
        &text.to_uppercase(),
        &format!("{text}0"),
        &format!(" {text}"),
    ] {
        assert!(bad.parse::<Head>().is_err(), "{bad:?}");
    }
    let plus = format!("+{text}");
    assert!(plus.parse::<Head>().is_err());
}

#[test]
fn any_change_of_any_byte_is_found() {
    let place = run(Place::filled(1));
    let good = fs::read(place.path()).unwrap();
    for at in 0..good.len() {
        for with in [good[at] ^ 1, good[at] ^ 0x20, b'\n', b' ', b'0', 0, 0xff] {
            if with != good[at] {
                let mut bad = good.clone();
                bad[at] = with;
                fs::write(place.path(), bad).unwrap();
                let report = verify(place.path(), None).unwrap();
                assert!(!report.is_sound(), "byte {at} as {with}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_edit_is_found_given_the_head(
        at in any::<prop::sample::Index>(),
        cut in 0usize..40,
        put in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        static GOOD: LazyLock<Vec<u8>> =
            LazyLock::new(|| fs::read(run(Place::filled(2)).path()).unwrap());
        let place = Place::new();
        let good = GOOD.clone();
        fs::write(place.path(), &good).unwrap();
        let head = verify(place.path(), None).unwrap().head;
        let at = at.index(good.len());
        let mut bad = good.clone();
        bad.splice(at..(at + cut).min(good.len()), put);
        fs::write(place.path(), &bad).unwrap();
        let report = verify(place.path(), Some(head)).unwrap();
        prop_assert_eq!(report.is_sound(), bad == good, "{}", report);
    }
}
