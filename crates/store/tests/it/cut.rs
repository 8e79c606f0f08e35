//! A store whose write-ahead log was cut off anywhere, as a power cut or a dying disk leaves it: it opens, and what
//! it holds is what it held after one of its transactions.

use std::fs;
use std::path::Path;

use api::app::AppStatus;
use api::operation::{OperationEvent, OperationStatus, StepState};
use engine::fake;
use engine::instance::InstanceDesired;
use engine::store::Store;
use store::SqliteStore;

use crate::{now, op, with_zone};

/// All that a store holds, as text.
async fn held(store: &SqliteStore) -> String {
    let mut operations = Vec::new();
    for operation in store.operations(100).await.unwrap() {
        operations.push(store.operation(&operation.id, 0).await.unwrap());
    }
    let leases = store.leases(&fake::zone_spec().name).await.unwrap();
    format!(
        "{:?} {:?} {operations:?} {leases:?}",
        store.zones().await.unwrap(),
        store.instances().await.unwrap()
    )
}

/// Opens a copy of the database with so much of the log of the other, and something behind it.
async fn reopened(dir: &Path, log: &[u8], behind: &[u8]) -> SqliteStore {
    let copy = dir.join("cut");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir(&copy).unwrap();
    fs::copy(dir.join("p.db"), copy.join("p.db")).unwrap();
    fs::write(copy.join("p.db-wal"), [log, behind].concat()).unwrap();
    SqliteStore::open(&copy.join("p.db")).await.unwrap()
}

#[tokio::test]
async fn a_log_that_is_cut_anywhere_gives_one_of_the_states_that_were() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_zone(&dir).await;
    // The log begins anew, so that every cut lies behind the schema.
    store.close().await;
    let store = SqliteStore::open(&dir.path().join("p.db")).await.unwrap();
    let range = fake::zone_spec().dhcp_range();
    let mut states = vec![held(&store).await];
    for (n, name) in (10u8..).step_by(4).zip(["web", "db", "mail"]) {
        let record = fake::instance_record(name);
        let deploy = op(n, "deploy", record.id.as_str());
        let mut record = store.begin_deploy(&record, range, &deploy).await.unwrap();
        states.push(held(&store).await);
        for step in ["publish", "create", "start"] {
            let event = OperationEvent {
                seq: 0,
                time: now().to_string(),
                step: step.into(),
                state: StepState::Done,
                message: step.repeat(200),
                elapsed_ms: None,
            };
            store.append_event(&deploy.id, &event).await.unwrap();
            states.push(held(&store).await);
        }
        record.published = true;
        record.status = AppStatus::Running;
        store.save_progress(&record).await.unwrap();
        states.push(held(&store).await);
        let ended = OperationStatus::Succeeded;
        let finished = store.finish_operation(&deploy.id, ended, None, now());
        finished.await.unwrap();
        states.push(held(&store).await);
        if name != "db" {
            record.desired = InstanceDesired::Deleted;
            let delete = op(n + 1, "delete", record.id.as_str());
            store.begin_change(&record, &delete, true).await.unwrap();
            states.push(held(&store).await);
            store.forget_instance(&record.id, now()).await.unwrap();
            states.push(held(&store).await);
        }
    }
    let log = fs::read(dir.path().join("p.db-wal")).unwrap();
    assert!(log.len() > 100_000, "{} bytes", log.len());

    // A stride that is prime to pages, frames and their headers: cuts of every kind.
    let mut seen = 0;
    let cuts = (0..log.len()).step_by(2_503).chain([31, 32, 33, log.len()]);
    for cut in cuts {
        let garbage = vec![0xA5; cut % 5_000];
        let reopened = reopened(dir.path(), &log[..cut], &garbage).await;
        let now = held(&reopened).await;
        let at = states.iter().position(|state| *state == now);
        let at = at.unwrap_or_else(|| panic!("cut at {cut}: no state that ever was: {now}"));
        if cut == log.len() {
            assert_eq!(at, states.len() - 1, "nothing was cut");
        }
        seen = seen.max(at);
        // It can be written, and the name of what is not there is free.
        let record = fake::instance_record("new");
        let deploy = op(99, "deploy", record.id.as_str());
        let made = reopened.begin_deploy(&record, range, &deploy).await;
        made.unwrap();
        reopened.close().await;
    }
    assert_eq!(seen, states.len() - 1);
    store.close().await;
}
