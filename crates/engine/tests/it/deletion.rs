//! Deleting: whatever goes on, whatever fails, and as often as it is asked for.

use api::app::AppStatus;
use api::operation::OperationStatus;
use engine::store::Store;

use crate::ruled::{Ruled, events};

#[tokio::test]
async fn a_delete_goes_backwards_and_leaves_nothing() {
    let ruled = Ruled::with_app("web").await;
    let id = ruled.controller.delete("web").await.unwrap();
    let operation = ruled.end(&id).await;
    let done: Vec<_> = events(&operation)
        .into_iter()
        .filter(|e| e.ends_with("done"))
        .collect();
    assert_eq!(
        done,
        ["unroute done", "stop done", "destroy done", "withdraw done"]
    );
    ruled.assert_no_apps().await;
    ruled.assert_idle().await;
    let calls = ruled.node.calls.lock().unwrap().clone();
    let routed = |c: &String| c == "apply 1 hosts, 1 routes";
    let calls = &calls[calls.iter().rposition(routed).unwrap()..];
    let at = |call: &str| calls.iter().position(|c| c.starts_with(call)).unwrap();
    let order = [
        "apply 1 hosts, 0 routes",
        "stop",
        "destroy",
        "apply 0 hosts",
    ]
    .map(at);
    assert!(order.is_sorted(), "{calls:?}");
    // The name is free again; the address rests.
    let again = ruled.deploy("web").await.unwrap();
    ruled.end(&again).await;
    assert_eq!(ruled.record("web").await.address.octets()[3], 101);
}

#[tokio::test]
async fn a_delete_stops_a_deploy_at_any_step() {
    for call in ["image", "apply", "create", "start", "probe"] {
        let ruled = Ruled::up().await;
        let calls = ruled.node.calls.lock().unwrap().len();
        ruled.node.hold(call);
        let deploy = ruled.deploy("web").await.unwrap();
        ruled
            .node
            .until(|n| {
                n.calls.lock().unwrap()[calls..]
                    .iter()
                    .any(|c| c.starts_with(call))
            })
            .await;
        let delete = ruled.controller.delete("web").await.unwrap();
        ruled.node.mend(call);
        let failure = ruled.end(&deploy).await.failure.unwrap();
        assert_eq!(failure.step, "superseded", "{call}");
        assert_eq!(failure.cause, "delete of web was asked for meanwhile");
        assert!(failure.next.ends_with(delete.as_str()), "{failure:?}");
        assert_eq!(ruled.end(&delete).await.failure, None, "{call}");
        ruled.assert_no_apps().await;
        ruled.assert_idle().await;
    }
}

#[tokio::test]
async fn a_delete_goes_on_without_the_appliance() {
    let ruled = Ruled::with_app("web").await;
    ruled.node.fail("apply", "the relay does not answer");
    let id = ruled.controller.delete("web").await.unwrap();
    let operation = ruled.end(&id).await;
    assert_eq!(operation.status, OperationStatus::Succeeded);
    assert!(events(&operation).contains(&"withdraw failed".into()));
    assert!(ruled.store.instances().await.unwrap().is_empty());
    assert_eq!(ruled.published().0, ["web"], "nobody could tell it yet");
    ruled.node.mend("apply");
    ruled.assert_no_apps().await;
}

#[tokio::test]
async fn what_cannot_be_destroyed_is_kept_and_tried_again() {
    for call in ["stop", "destroy"] {
        let ruled = Ruled::with_app("web").await;
        ruled.node.fail(call, "device is busy");
        let id = ruled.controller.delete("web").await.unwrap();
        let failure = ruled.end(&id).await.failure.unwrap();
        assert_eq!(failure.step, call);
        assert!(failure.cause.contains("device is busy"), "{failure:?}");
        assert!(
            failure.next.contains("proximity app delete web"),
            "{failure:?}"
        );
        let record = ruled.record("web").await;
        assert_eq!(
            (record.status, record.failure),
            (AppStatus::Deleting, Some(failure))
        );
        // Nothing leads to it meanwhile, and its name stays taken.
        assert!(ruled.published().1.is_empty());
        assert!(ruled.deploy("web").await.is_err());
        ruled.node.mend(call);
        ruled.until_recorded(|records| records.is_empty()).await;
        ruled.assert_no_apps().await;
        ruled.assert_idle().await;
    }
}

#[tokio::test]
async fn the_second_of_two_deletes_ends_too() {
    let ruled = Ruled::with_app("web").await;
    ruled.node.hold("destroy");
    let first = ruled.controller.delete("web").await.unwrap();
    ruled.node.until_called("destroy").await;
    let second = ruled.controller.delete("web").await.unwrap();
    ruled.node.mend("destroy");
    assert_eq!(ruled.end(&first).await.failure.unwrap().step, "superseded");
    assert_eq!(ruled.end(&second).await.failure, None);
    ruled.assert_no_apps().await;
    ruled.assert_idle().await;
}

#[tokio::test]
async fn a_failed_deploy_can_be_deleted() {
    let ruled = Ruled::up().await;
    ruled.node.fail("probe", "no answer");
    let deploy = ruled.deploy("web").await.unwrap();
    ruled.end(&deploy).await;
    let delete = ruled.controller.delete("web").await.unwrap();
    assert_eq!(ruled.end(&delete).await.failure, None);
    ruled.assert_no_apps().await;
}
