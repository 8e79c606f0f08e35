//! Files that are set aside: the chain goes on, and nothing of it can be missing without being missed.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use audit::{Filter, Log, Options, Outcome, Proof, tail, verify};

use crate::support::{Place, exec, ticking};

fn small() -> Options {
    Options {
        rotate_bytes: 4000,
        ..ticking()
    }
}

/// All files but the one that is written to, the oldest first.
fn older(place: &Place) -> Vec<PathBuf> {
    let seq = |path: &PathBuf| -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("audit.")?
            .strip_suffix(".jsonl")?
            .parse()
            .ok()
    };
    let all = fs::read_dir(place.dir.path())
        .unwrap()
        .map(|e| e.unwrap().path());
    let mut found: Vec<PathBuf> = all.filter(|path| seq(path).is_some()).collect();
    found.sort_by_key(seq);
    found
}

async fn fill(place: &Place, pairs: usize) {
    let log = Log::open(place.path(), small()).await.unwrap();
    for n in 0..pairs {
        let intent = log.intent(exec(&format!("app{n}"))).await.unwrap();
        intent.finish(Outcome::exited(0)).await.unwrap();
    }
    log.close().await;
}

#[tokio::test]
async fn the_chain_goes_on_from_file_to_file() {
    let place = Place::new();
    fill(&place, 30).await;
    fill(&place, 30).await;
    let files = older(&place);
    assert!(files.len() >= 4, "{files:?}");
    for file in files.iter().chain([&place.path()]) {
        use std::os::unix::fs::PermissionsExt as _;
        let meta = fs::metadata(file).unwrap();
        assert!(meta.len() < 6000, "{file:?}");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
    let report = verify(place.path(), None).unwrap();
    assert!(report.is_sound(), "{report}");
    let all = place.records();
    assert_eq!(all.len() as u64, report.records);
    assert!(
        all.windows(2)
            .all(|w| w[1].seq == w[0].seq + 1 && w[1].prev == w[0].hash)
    );
    // Heads of any file prove the log; the tail reaches into older ones.
    for record in [&all[3], &all[60], &all[all.len() - 1]] {
        let report = verify(place.path(), Some(record.head())).unwrap();
        assert_eq!(report.proof, Proof::UpTo(record.head()), "{report}");
    }
    let tail = tail(place.path(), &Filter::default(), 100).unwrap();
    assert_eq!(tail.records, all[all.len() - 100..]);
    let opened = Log::open(
        place.path(),
        Options {
            anchor: Some(all[3].head()),
            ..small()
        },
    )
    .await;
    opened.unwrap().close().await;
}

#[tokio::test]
async fn a_file_that_is_missing_or_changed_is_missed() {
    let check = async |change: &dyn Fn(&[PathBuf]), says: &str| {
        let place = Place::new();
        fill(&place, 60).await;
        let files = older(&place);
        change(&files);
        let report = verify(place.path(), None).unwrap();
        assert!(!report.is_sound(), "{says}");
        assert!(report.to_string().contains(says), "{says}: {report}");
    };
    check(
        &|files| fs::remove_file(&files[1]).unwrap(),
        "are missing before it",
    )
    .await;
    check(
        &|files| fs::remove_file(&files[0]).unwrap(),
        "records 1 to ",
    )
    .await;
    check(
        &|files| {
            fs::copy(&files[0], &files[1]).unwrap();
        },
        "repeated",
    )
    .await;
    check(
        &|files| {
            let text = fs::read_to_string(&files[1]).unwrap();
            let cut = text.trim_end().rfind('\n').unwrap() + 1;
            fs::write(&files[1], &text[..cut]).unwrap();
        },
        "is missing before it",
    )
    .await;
    check(
        &|files| {
            // A clock that is set back in a record: the time is covered by the hash as all else is.
            let text = fs::read_to_string(&files[1]).unwrap();
            fs::write(&files[1], text.replacen("2026-01-02T", "2026-01-01T", 1)).unwrap();
        },
        "its content was changed",
    )
    .await;
    // The current one: that it is gone is an error, and a new one is not begun over what is there.
    let place = Place::new();
    fill(&place, 60).await;
    fs::remove_file(place.path()).unwrap();
    verify(place.path(), None).unwrap_err();
    let error = Log::open(place.path(), small()).await.unwrap_err();
    assert!(error.to_string().contains("does not go on"), "{error}");
}

#[tokio::test]
async fn an_intent_of_an_older_file_is_closed_when_its_writer_was_killed() {
    let place = Place::new();
    let log = Log::open(place.path(), small()).await.unwrap();
    let long = log.intent(exec("long")).await.unwrap();
    let id = long.id().to_owned();
    for n in 0..40 {
        let intent = log.intent(exec(&format!("app{n}"))).await.unwrap();
        intent.finish(Outcome::exited(0)).await.unwrap();
    }
    let clone = log.clone();
    log.close().await;
    drop((long, clone));
    assert!(older(&place).len() >= 2);
    let log = Log::open(place.path(), small()).await.unwrap();
    log.close().await;
    let of_id = Filter {
        id: Some(id),
        ..Filter::default()
    };
    let found = tail(place.path(), &of_id, 10).unwrap().records;
    let outcomes: Vec<_> = found.iter().map(|record| record.outcome.as_str()).collect();
    assert_eq!(outcomes, ["intent", "unknown"]);
    let report = verify(place.path(), None).unwrap();
    assert!(report.is_sound() && report.open_intents == 0, "{report}");
}

#[tokio::test]
async fn what_a_crash_leaves_between_the_steps_is_understood() {
    let place = Place::new();
    fill(&place, 3).await;
    // Killed after the second name was given, and with a half-made successor.
    fs::hard_link(place.path(), place.dir.path().join("audit.6.jsonl")).unwrap();
    fs::write(place.dir.path().join("audit.jsonl.next"), "half").unwrap();
    assert!(verify(place.path(), None).unwrap().is_sound());
    fill(&place, 60).await;
    let report = verify(place.path(), None).unwrap();
    assert!(report.is_sound(), "{report}");
    assert!(!place.dir.path().join("audit.jsonl.next").exists());
}

#[tokio::test]
async fn a_witness_hears_of_every_line_and_a_slice_is_a_part_of_the_chain() {
    let place = Place::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&heard);
    let options = Options {
        witness: Some(Arc::new(move |line: &str| {
            to.lock().unwrap().push(line.to_owned())
        })),
        ..small()
    };
    let log = Log::open(place.path(), options).await.unwrap();
    let mut id = String::new();
    for n in 0..40 {
        let intent = log.intent(exec(&format!("app{n}"))).await.unwrap();
        if n == 20 {
            intent.id().clone_into(&mut id);
        }
        intent.finish(Outcome::exited(0)).await.unwrap();
    }
    log.close().await;
    let mut whole = String::new();
    for file in older(&place).iter().chain([&place.path()]) {
        whole.push_str(&fs::read_to_string(file).unwrap());
    }
    let heard = heard.lock().unwrap();
    assert_eq!(whole.lines().collect::<Vec<_>>(), *heard);
    let slice = audit::slice(place.path(), &id, 1000).unwrap();
    assert!(slice[0].contains(&id) && slice.len() >= 40, "{slice:?}");
    assert_eq!(slice, heard[heard.len() - slice.len()..]);
    assert!(audit::slice(place.path(), &id, 5).unwrap().is_empty());
}
