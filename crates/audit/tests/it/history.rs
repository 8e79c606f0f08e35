//! Reading: the end of a log, and what matches a filter.

use std::fs;

use audit::Filter;

use crate::support::Place;

#[tokio::test]
async fn reading_filters_and_ends() {
    let place = Place::filled(20).await;
    let all = Filter::default();
    let tail = audit::tail(place.path(), &all, 3).unwrap();
    assert_eq!(
        tail.records.iter().map(|r| r.seq).collect::<Vec<_>>(),
        [38, 39, 40]
    );
    let target = Filter {
        target: Some("app3".into()),
        ..Filter::default()
    };
    let of_target = audit::tail(place.path(), &target, 10).unwrap().records;
    assert_eq!(of_target.iter().map(|r| r.seq).collect::<Vec<_>>(), [7, 8]);
    let by_id = Filter {
        id: Some(of_target[0].id.clone()),
        ..Filter::default()
    };
    let listed: Vec<_> = audit::records(place.path(), by_id)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(listed, of_target);
    let between = Filter {
        since: Some("2026-01-02T03:04:10Z".parse().unwrap()),
        until: Some("2026-01-02T03:04:12.000006Z".parse().unwrap()),
        ..Filter::default()
    };
    let seqs: Vec<_> = audit::records(place.path(), between)
        .unwrap()
        .map(|r| r.unwrap().seq)
        .collect();
    assert_eq!(seqs, [6, 7]);

    let text = place.text().replacen('{', "[", 1);
    fs::write(place.path(), format!("{text}half")).unwrap();
    let tail = audit::tail(place.path(), &all, 100).unwrap();
    assert_eq!((tail.records.len(), tail.unreadable), (39, 2));
    let faults = audit::records(place.path(), all)
        .unwrap()
        .filter(Result::is_err)
        .count();
    assert_eq!(faults, 2);
}
