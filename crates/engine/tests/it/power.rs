//! Starting, stopping and restarting, and what the timer mends by itself.

use api::app::AppStatus;
use engine::controller::Power;

use crate::ruled::{Ruled, code, events};

#[tokio::test]
async fn stop_start_and_restart() {
    let ruled = Ruled::with_app("web").await;
    let id = ruled.id("web").await;
    let power = async |kind| {
        let operation = ruled.controller.set_power("web", kind).await.unwrap();
        let operation = ruled.end(&operation).await;
        assert_eq!(operation.failure, None, "{kind:?}");
        let done = events(&operation)
            .into_iter()
            .filter(|e| e.ends_with("done"));
        done.map(|e| e.split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(power(Power::Stop).await, ["unroute", "stop"]);
    assert_eq!(ruled.record("web").await.status, AppStatus::Stopped);
    assert_eq!(ruled.guest(&id), Some(false));
    assert_eq!(
        ruled.published(),
        (vec!["web".into()], vec![]),
        "the address stays its own"
    );
    assert!(power(Power::Stop).await.is_empty(), "it is stopped");
    assert_eq!(
        power(Power::Start).await,
        ["publish", "start", "agent", "ready", "route"]
    );
    ruled.assert_only("web").await;
    assert!(power(Power::Start).await.is_empty(), "it runs");
    assert_eq!(
        power(Power::Restart).await,
        [
            "unroute", "stop", "publish", "start", "agent", "ready", "route"
        ]
    );
    ruled.assert_only("web").await;
    power(Power::Stop).await;
    assert_eq!(
        power(Power::Restart).await,
        ["publish", "start", "agent", "ready", "route"]
    );
    ruled.assert_only("web").await;
}

#[tokio::test]
async fn one_thing_at_a_time() {
    let ruled = Ruled::with_app("web").await;
    ruled.node.hold("stop");
    let stop = ruled
        .controller
        .set_power("web", Power::Stop)
        .await
        .unwrap();
    ruled.node.until_called("stop").await;
    let refused = ruled.controller.set_power("web", Power::Start).await;
    let problem = refused.unwrap_err().problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "busy"));
    assert!(problem.hint.unwrap().contains(stop.as_str()));
    ruled.node.mend("stop");
    assert_eq!(ruled.end(&stop).await.failure, None);
    assert_eq!(
        code(ruled.controller.set_power("nobody", Power::Stop).await),
        "unknown_instance"
    );
}

#[tokio::test]
async fn a_start_that_fails_names_the_step() {
    let ruled = Ruled::with_app("web").await;
    let stop = ruled
        .controller
        .set_power("web", Power::Stop)
        .await
        .unwrap();
    ruled.end(&stop).await;
    ruled.node.fail("start", "no memory");
    let start = ruled
        .controller
        .set_power("web", Power::Start)
        .await
        .unwrap();
    assert_eq!(ruled.end(&start).await.failure.unwrap().step, "start");
    assert_eq!(ruled.record("web").await.status, AppStatus::Failed);
    assert_eq!(
        code(ruled.controller.set_power("web", Power::Start).await),
        "wrong_state"
    );
}

#[tokio::test]
async fn a_guest_that_died_is_started_again_by_the_timer() {
    let ruled = Ruled::with_app("web").await;
    let id = ruled.id("web").await;
    ruled.node.guests.lock().unwrap().get_mut(&id).unwrap().1 = false;
    ruled
        .node
        .until(|node| node.guests.lock().unwrap()[&id].1)
        .await;
    ruled
        .until_recorded(|r| r[0].status == AppStatus::Running)
        .await;
    ruled.assert_idle().await;
}

#[tokio::test]
async fn a_repair_that_failed_is_told_and_forgotten_when_it_succeeds() {
    for call in ["apply", "start", "probe"] {
        let ruled = Ruled::with_app("web").await;
        let id = ruled.id("web").await;
        ruled.node.fail(call, "not now");
        ruled.node.guests.lock().unwrap().get_mut(&id).unwrap().1 = false;
        ruled.until_recorded(|r| r[0].failure.is_some()).await;
        assert_eq!(
            ruled.record("web").await.status,
            AppStatus::Running,
            "{call}"
        );
        ruled.node.mend(call);
        ruled.until_recorded(|r| r[0].failure.is_none()).await;
        ruled.assert_only("web").await;
    }
}

#[tokio::test]
async fn a_guest_that_vanished_is_lost_and_not_made_again() {
    for stopped in [false, true] {
        let ruled = Ruled::with_app("web").await;
        if stopped {
            let stop = ruled
                .controller
                .set_power("web", Power::Stop)
                .await
                .unwrap();
            ruled.end(&stop).await;
        }
        let id = ruled.id("web").await;
        ruled.node.guests.lock().unwrap().remove(&id);
        if stopped {
            // Nobody looks for a stopped guest before it is wanted.
            let start = ruled
                .controller
                .set_power("web", Power::Start)
                .await
                .unwrap();
            ruled.end(&start).await;
        }
        ruled
            .until_recorded(|r| r[0].status == AppStatus::Lost)
            .await;
        let failure = ruled.record("web").await.failure.unwrap();
        assert!(
            failure.next.contains("proximity app delete web"),
            "{failure:?}"
        );
        assert_eq!(ruled.guest(&id), None);
        for kind in [Power::Start, Power::Stop, Power::Restart] {
            assert_eq!(
                code(ruled.controller.set_power("web", kind).await),
                "wrong_state"
            );
        }
        // No route leads to an address without a guest.
        ruled
            .node
            .until(|n| {
                n.gateways
                    .lock()
                    .unwrap()
                    .values()
                    .all(|g| g.routes.is_empty())
            })
            .await;
        let delete = ruled.controller.delete("web").await.unwrap();
        assert_eq!(ruled.end(&delete).await.failure, None);
        ruled.assert_no_apps().await;
    }
}
