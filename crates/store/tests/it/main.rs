//! The store on a real file: what is written is there after opening it again, and refusals change
//! nothing.

#![expect(
    clippy::unwrap_used,
    reason = "test support may fail by panicking; clippy knows only test functions"
)]

mod cut;

use api::OperationId;
use api::app::AppStatus;
use api::egress::Egress;
use api::operation::{OperationEvent, OperationStatus, StepState};
use engine::fake;
use engine::instance::InstanceDesired;
use engine::store::{IdempotencyKey, KeyClaim, NewOperation, Store, StoreError};
use engine::zone::{ZoneDesired, ZoneRecord};
use jiff::{SignedDuration, Timestamp};
use store::SqliteStore;

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn op(n: u8, kind: &str, object: &str) -> NewOperation {
    NewOperation {
        id: OperationId::from_bytes([n; 8]),
        kind: kind.into(),
        target: "web".into(),
        object: object.into(),
        at: now(),
    }
}

fn zone() -> ZoneRecord {
    ZoneRecord {
        spec: fake::zone_spec(),
        appliance: api::InstanceId::from_bytes([9; 8]),
        desired: ZoneDesired::Up,
        settled: false,
    }
}

async fn open(dir: &tempfile::TempDir) -> SqliteStore {
    SqliteStore::open(&dir.path().join("p.db")).await.unwrap()
}

async fn with_zone(dir: &tempfile::TempDir) -> SqliteStore {
    let store = open(dir).await;
    let first = op(1, "zone_up", "default");
    store.begin_zone(&zone(), &first, false).await.unwrap();
    store
        .finish_operation(&first.id, OperationStatus::Succeeded, None, now())
        .await
        .unwrap();
    store
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_zone(&dir).await;
    let range = fake::zone_spec().dhcp_range();
    let mut record = fake::instance_record("web");
    let deploy = op(2, "deploy", record.id.as_str());
    record = store.begin_deploy(&record, range, &deploy).await.unwrap();
    let event = OperationEvent {
        seq: 0,
        time: now().to_string(),
        step: "create".into(),
        state: StepState::Started,
        message: "line\nbreak \u{1b}[31m".into(),
        elapsed_ms: None,
    };
    assert_eq!(store.append_event(&deploy.id, &event).await.unwrap(), 1);
    assert_eq!(store.append_event(&deploy.id, &event).await.unwrap(), 2);
    record.published = true;
    record.status = AppStatus::Running;
    store.save_progress(&record).await.unwrap();
    store.settle_zone(&record.zone, true).await.unwrap();
    store.close().await;

    let store = open(&dir).await;
    assert_eq!(store.instance(&record.id).await.unwrap().unwrap(), record);
    assert_eq!(
        store.instance_named(&record.name).await.unwrap().unwrap(),
        record
    );
    let (guest, zone) = store.guest_named(&record.name).await.unwrap().unwrap();
    assert_eq!((guest, &zone.spec.name), (record.clone(), &record.zone));
    let nobody = "nobody".parse().unwrap();
    assert_eq!(store.guest_named(&nobody).await.unwrap(), None);
    assert!(store.zone(&record.zone).await.unwrap().unwrap().settled);
    let open_one = store
        .open_operation(record.id.as_str())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(open_one.id, deploy.id);
    let events = store
        .operation(&deploy.id, 1)
        .await
        .unwrap()
        .unwrap()
        .events;
    assert_eq!(events, [OperationEvent { seq: 2, ..event }]);
}

#[tokio::test]
async fn a_taken_name_and_a_second_operation_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_zone(&dir).await;
    let range = fake::zone_spec().dhcp_range();
    let record = fake::instance_record("web");
    store
        .begin_deploy(&record, range, &op(2, "deploy", record.id.as_str()))
        .await
        .unwrap();
    let mut twin = record.clone();
    twin.id = api::InstanceId::from_bytes([7; 8]);
    let refused = store
        .begin_deploy(&twin, range, &op(3, "deploy", twin.id.as_str()))
        .await;
    assert!(
        matches!(refused, Err(StoreError::NameTaken(_))),
        "{refused:?}"
    );
    assert_eq!(store.instances().await.unwrap().len(), 1);
    assert!(
        store
            .operation(&op(3, "", "").id, 0)
            .await
            .unwrap()
            .is_none()
    );

    let mut stop = record.clone();
    stop.desired = InstanceDesired::Stopped;
    let refused = store
        .begin_change(&stop, &op(4, "stop", record.id.as_str()), false)
        .await;
    assert!(
        matches!(refused, Err(StoreError::Busy { .. })),
        "{refused:?}"
    );
    assert_eq!(
        store.instance(&record.id).await.unwrap().unwrap().desired,
        InstanceDesired::Running
    );

    let mut delete = record.clone();
    delete.desired = InstanceDesired::Deleted;
    delete.status = AppStatus::Deleting;
    store
        .begin_change(&delete, &op(5, "delete", record.id.as_str()), true)
        .await
        .unwrap();
    let superseded = store
        .operation(&op(2, "", "").id, 0)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(superseded.status, OperationStatus::Failed);
    // The deploy's late progress no longer says what the instance is, but still what is published.
    let mut late = record.clone();
    late.status = AppStatus::Running;
    late.published = true;
    store.save_progress(&late).await.unwrap();
    let kept = store.instance(&record.id).await.unwrap().unwrap();
    assert_eq!((kept.status, kept.published), (AppStatus::Deleting, true));
}

/// Whoever was told that a sandbox lives longer is right, whatever its worker read before.
#[tokio::test]
async fn an_end_that_was_moved_does_not_come_and_one_that_has_begun_is_not_moved() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_zone(&dir).await;
    let range = fake::zone_spec().dhcp_range();
    let mut record = fake::instance_record("box");
    record.expires_at = Some(now());
    let deploy = op(2, "deploy", record.id.as_str());
    let record = store.begin_deploy(&record, range, &deploy).await.unwrap();
    let mut over = record.clone();
    over.desired = InstanceDesired::Deleted;
    over.status = AppStatus::Deleting;

    let listed: Egress = "*.example.com,8.8.8.8".parse().unwrap();
    assert!(store.set_egress(&record.id, &listed).await.unwrap());
    let kept = store.instance(&record.id).await.unwrap().unwrap();
    assert_eq!(kept.egress, listed);

    let later = now() + SignedDuration::from_secs(60);
    assert!(store.set_expiry(&record.id, later).await.unwrap());
    let expire = op(3, "expire", record.id.as_str());
    assert!(!store.begin_expiry(&over, &expire).await.unwrap());
    let kept = store.instance(&record.id).await.unwrap().unwrap();
    assert_eq!(
        (kept.desired, kept.expires_at),
        (record.desired, Some(later))
    );
    let deploy = store.operation(&deploy.id, 0).await.unwrap().unwrap();
    assert_eq!(deploy.status, OperationStatus::Running);
    assert!(store.operation(&expire.id, 0).await.unwrap().is_none());

    over.expires_at = Some(later);
    assert!(store.begin_expiry(&over, &expire).await.unwrap());
    let kept = store.instance(&record.id).await.unwrap().unwrap();
    assert_eq!(
        (kept.desired, kept.status),
        (InstanceDesired::Deleted, AppStatus::Deleting)
    );
    assert!(!store.set_egress(&record.id, &Egress::Off).await.unwrap());
    let much_later = later + SignedDuration::from_secs(60);
    assert!(!store.set_expiry(&record.id, much_later).await.unwrap());
    let again = op(4, "expire", record.id.as_str());
    assert!(!store.begin_expiry(&over, &again).await.unwrap());
}

#[tokio::test]
async fn addresses_rest_and_the_pool_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_zone(&dir).await;
    let (first, _) = fake::zone_spec().dhcp_range();
    let pool_of_one = (first, first);
    let a = fake::instance_record("a");
    let b = fake::instance_record("b");
    store
        .begin_deploy(&a, pool_of_one, &op(2, "deploy", a.id.as_str()))
        .await
        .unwrap();
    let deploy_b = |n, at| NewOperation {
        at,
        ..op(n, "deploy", b.id.as_str())
    };
    let refused = store
        .begin_deploy(&b, pool_of_one, &deploy_b(3, now()))
        .await;
    assert!(
        matches!(refused, Err(StoreError::NoAddress(_))),
        "{refused:?}"
    );
    store.forget_instance(&a.id, now()).await.unwrap();
    let resting = store
        .begin_deploy(
            &b,
            pool_of_one,
            &deploy_b(4, now() + SignedDuration::from_secs(5)),
        )
        .await;
    assert!(
        matches!(resting, Err(StoreError::NoAddress(_))),
        "{resting:?}"
    );
    let rested = store
        .begin_deploy(
            &b,
            pool_of_one,
            &deploy_b(5, now() + SignedDuration::from_secs(61)),
        )
        .await;
    assert_eq!(rested.unwrap().address, first);
}

#[tokio::test]
async fn a_zone_on_its_way_down_takes_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_zone(&dir).await;
    let down = ZoneRecord {
        desired: ZoneDesired::Down,
        ..zone()
    };
    store
        .begin_zone(&down, &op(2, "zone_down", "default"), false)
        .await
        .unwrap();
    let record = fake::instance_record("web");
    let range = fake::zone_spec().dhcp_range();
    let refused = store
        .begin_deploy(&record, range, &op(3, "deploy", record.id.as_str()))
        .await;
    assert!(
        matches!(refused, Err(StoreError::ZoneDown(_))),
        "{refused:?}"
    );
    assert!(store.instances().await.unwrap().is_empty());
}

#[tokio::test]
async fn idempotency_keys() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let key = IdempotencyKey {
        token: "t".into(),
        key: "k".into(),
        request: [1; 32],
    };
    let other = IdempotencyKey {
        request: [2; 32],
        ..key.clone()
    };
    assert_eq!(store.claim_key(&key, now()).await.unwrap(), KeyClaim::New);
    assert_eq!(
        store.claim_key(&key, now()).await.unwrap(),
        KeyClaim::InFlight
    );
    assert_eq!(
        store.claim_key(&other, now()).await.unwrap(),
        KeyClaim::Mismatch
    );
    store
        .settle_key(&key, Some((202, "{}".into())))
        .await
        .unwrap();
    assert_eq!(
        store.claim_key(&key, now()).await.unwrap(),
        KeyClaim::Answered(202, "{}".into())
    );
    let a_day_later = now() + SignedDuration::from_hours(25);
    assert_eq!(
        store.claim_key(&key, a_day_later).await.unwrap(),
        KeyClaim::New
    );
    // The process ends in the middle of the call.
    let unknown = (502, "unknown".to_owned());
    store.settle_open_keys(unknown.clone()).await.unwrap();
    assert_eq!(
        store.claim_key(&key, a_day_later).await.unwrap(),
        KeyClaim::Answered(unknown.0, unknown.1)
    );
    store.settle_key(&key, None).await.unwrap();
    assert_eq!(
        store.claim_key(&other, a_day_later).await.unwrap(),
        KeyClaim::New
    );
}

#[tokio::test]
async fn a_damaged_database_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.db");
    std::fs::write(
        &path,
        b"not a database, but long enough to be looked at as one",
    )
    .unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(SqliteStore::open(&path).await.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn nobody_else_can_read_the_database() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let store = with_zone_if_none(&dir).await;
        for file in ["p.db", "p.db-wal", "p.db-shm"] {
            let path = dir.path().join(file);
            let mode = |m: std::fs::Metadata| m.permissions().mode() & 0o777;
            assert_eq!(mode(std::fs::metadata(&path).unwrap()), 0o600, "{file}");
            // As an older version left it; the next opening mends it.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        drop(store);
    }
}

async fn with_zone_if_none(dir: &tempfile::TempDir) -> SqliteStore {
    let store = open(dir).await;
    match store.zones().await.unwrap().len() {
        0 => with_zone(dir).await,
        _ => store,
    }
}
