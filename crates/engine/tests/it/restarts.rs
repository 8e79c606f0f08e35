//! A controller that ends at any point, and the next one that goes on: all agree at the end.

use api::app::AppStatus;
use api::operation::OperationStatus;
use engine::controller::Power;
use engine::store::Store;

use crate::ruled::Ruled;

/// Waits until a call that hangs has begun, ends the controller in the middle of it, and lets the next
/// one do its work.
async fn interrupted(ruled: Ruled, call: &'static str, calls: usize) -> Ruled {
    let begun = |n: &engine::fake::FakeNode| {
        let all = n.calls.lock().unwrap();
        all[calls..]
            .iter()
            .any(|c| c.split(' ').next() == Some(call))
    };
    ruled.node.until(begun).await;
    ruled.controller.stop();
    ruled.node.mend(call);
    ruled.restarted().await
}

#[tokio::test]
async fn a_deploy_goes_on_from_every_step() {
    for call in ["image", "apply", "create", "start", "probe"] {
        let ruled = Ruled::up().await;
        let calls = ruled.node.calls.lock().unwrap().len();
        ruled.node.hold(call);
        let id = ruled.deploy("web").await.unwrap();
        let ruled = interrupted(ruled, call, calls).await;
        let operation = ruled.end(&id).await;
        assert_eq!(operation.failure, None, "{call}");
        ruled.assert_only("web").await;
        ruled.assert_idle().await;
    }
}

#[tokio::test]
async fn a_delete_goes_on_from_every_step() {
    for call in ["apply", "stop", "destroy"] {
        let ruled = Ruled::with_app("web").await;
        let calls = ruled.node.calls.lock().unwrap().len();
        ruled.node.hold(call);
        let id = ruled.controller.delete("web").await.unwrap();
        let ruled = interrupted(ruled, call, calls).await;
        assert_eq!(ruled.end(&id).await.failure, None, "{call}");
        ruled.assert_no_apps().await;
        ruled.assert_idle().await;
    }
}

#[tokio::test]
async fn a_restart_goes_on_from_every_step() {
    for call in ["apply", "stop", "start", "probe"] {
        let ruled = Ruled::with_app("web").await;
        let calls = ruled.node.calls.lock().unwrap().len();
        ruled.node.hold(call);
        let id = ruled
            .controller
            .set_power("web", Power::Restart)
            .await
            .unwrap();
        let ruled = interrupted(ruled, call, calls).await;
        assert_eq!(ruled.end(&id).await.failure, None, "{call}");
        ruled.assert_only("web").await;
        ruled.assert_idle().await;
    }
}

#[tokio::test]
async fn a_zone_goes_on_from_every_step() {
    for call in ["network", "image", "create", "start", "apply"] {
        let ruled = Ruled::new().await;
        ruled.node.hold(call);
        let id = ruled.controller.zone_up(None).await.unwrap();
        let ruled = interrupted(ruled, call, 0).await;
        assert_eq!(ruled.end(&id).await.failure, None, "{call}");
        assert!(
            ruled
                .controller
                .infrastructure(None)
                .await
                .unwrap()
                .available
        );
        assert_eq!(ruled.node.guests.lock().unwrap().len(), 1);
        ruled.assert_idle().await;
    }
    for call in ["stop", "destroy", "unnetwork"] {
        let ruled = Ruled::with_app("web").await;
        let calls = ruled.node.calls.lock().unwrap().len();
        ruled.node.hold(call);
        let id = ruled.down(true).await.unwrap();
        let ruled = interrupted(ruled, call, calls).await;
        assert_eq!(ruled.end(&id).await.failure, None, "{call}");
        assert!(ruled.node.guests.lock().unwrap().is_empty(), "{call}");
        assert!(ruled.node.networks.lock().unwrap().is_empty(), "{call}");
        assert!(ruled.store.instances().await.unwrap().is_empty(), "{call}");
        ruled.assert_idle().await;
        let up = ruled.controller.zone_up(None).await.unwrap();
        assert_eq!(ruled.end(&up).await.failure, None, "{call}");
    }
}

/// The last write of a delete forgets the instance and ends its operation in one.
#[tokio::test]
async fn forgetting_and_the_end_of_the_operation_are_one() {
    let ruled = Ruled::with_app("web").await;
    ruled.node.hold("destroy");
    let delete = ruled.controller.delete("web").await.unwrap();
    ruled.node.until_called("destroy").await;
    ruled.controller.stop();
    let record = ruled.record("web").await;
    let now = jiff::Timestamp::now();
    ruled.store.forget_instance(&record.id, now).await.unwrap();
    let ended = ruled.end(&delete).await;
    assert_eq!(ended.status, OperationStatus::Succeeded);
    assert!(ended.finished_at.is_some());

    let ruled = Ruled::up().await;
    ruled.node.hold("unnetwork");
    let down = ruled.down(false).await.unwrap();
    ruled.node.until_called("unnetwork").await;
    ruled.controller.stop();
    let zone = "default".parse().unwrap();
    ruled.store.forget_zone(&zone, now).await.unwrap();
    assert_eq!(ruled.end(&down).await.status, OperationStatus::Succeeded);
}

#[tokio::test]
async fn a_stopped_controller_does_nothing_more() {
    let ruled = Ruled::with_app("web").await;
    ruled.controller.stop();
    let calls = ruled.node.calls.lock().unwrap().len();
    // What is asked for is kept for the next one.
    let stop = ruled
        .controller
        .set_power("web", Power::Stop)
        .await
        .unwrap();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ruled.node.calls.lock().unwrap().len(), calls);
    assert_eq!(ruled.record("web").await.status, AppStatus::Running);
    let ruled = ruled.restarted().await;
    assert_eq!(ruled.end(&stop).await.failure, None);
    assert_eq!(ruled.record("web").await.status, AppStatus::Stopped);
}

#[tokio::test]
async fn a_store_that_lost_its_last_words_is_brought_into_agreement() {
    let ruled = Ruled::with_app("web").await;
    for name in ["db", "mail"] {
        let deploy = ruled.deploy(name).await.unwrap();
        assert_eq!(ruled.end(&deploy).await.failure, None);
    }
    let delete = ruled.controller.delete("db").await.unwrap();
    assert_eq!(ruled.end(&delete).await.failure, None);
    ruled.controller.stop();
    let length = ruled.log().len();
    for part in 0..=12 {
        let left = length * part / 12;
        let cut = ruled.with_log_cut_at(left).await;
        // Nothing stays half done: what is recorded runs, or is said to be lost; what is not is an orphan.
        loop {
            let operations = cut.store.operations(100).await.unwrap();
            let instances = cut.store.instances().await.unwrap();
            let settled = instances.iter().all(|i| match i.status {
                AppStatus::Running => cut.guest(&i.id) == Some(true),
                AppStatus::Lost => cut.guest(&i.id).is_none(),
                _ => false,
            });
            let open = |o: &api::operation::Operation| o.status == OperationStatus::Running;
            if settled && !operations.iter().any(open) {
                break;
            }
            tokio::task::yield_now().await;
        }
        let status = cut.controller.status().await.unwrap();
        let instances = cut.store.instances().await.unwrap();
        let zones = cut.store.zones().await.unwrap();
        for id in cut.node.guests.lock().unwrap().keys() {
            let recorded = instances.iter().any(|i| i.id == *id);
            let appliance = zones.iter().any(|zone| zone.appliance == *id);
            let orphan = status.orphans.iter().any(|orphan| orphan.id == *id);
            assert!((recorded || appliance) ^ orphan, "{left} of {length}: {id}");
        }
        if left == length {
            assert_eq!((instances.len(), status.orphans.len()), (2, 0));
        }
    }
}
