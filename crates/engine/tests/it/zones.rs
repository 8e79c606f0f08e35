//! Zones: up, down, what is refused, and what is mended.

use api::operation::OperationStatus;
use engine::Config;
use engine::store::Store;

use crate::ruled::{Ruled, code, events};

#[tokio::test]
async fn up_and_down_leave_all_and_nothing() {
    let ruled = Ruled::new().await;
    let up = ruled.controller.zone_up(None).await.unwrap();
    let up = ruled.end(&up).await;
    let done: Vec<_> = events(&up)
        .into_iter()
        .filter(|e| e.ends_with("done"))
        .collect();
    assert_eq!(
        done,
        [
            "bridge done",
            "appliance done",
            "services done",
            "health done"
        ]
    );
    let infrastructure = ruled.controller.infrastructure(None).await.unwrap();
    assert!(infrastructure.available, "{infrastructure:?}");
    let calls = ruled.node.calls.lock().unwrap().len();
    let again = ruled.controller.zone_up(None).await.unwrap();
    assert_eq!(ruled.end(&again).await.failure, None);
    let since = ruled.node.calls.lock().unwrap()[calls..].to_vec();
    assert!(
        since.iter().all(|c| c.starts_with("apply")),
        "only compared: {since:?}"
    );

    let down = ruled.down(false).await.unwrap();
    assert_eq!(ruled.end(&down).await.failure, None);
    assert!(ruled.node.guests.lock().unwrap().is_empty());
    assert!(ruled.node.networks.lock().unwrap().is_empty());
    assert!(ruled.store.zones().await.unwrap().is_empty());
    ruled.assert_idle().await;
    assert_eq!(code(ruled.down(false).await), "zone_down");
    let up = ruled.controller.zone_up(None).await.unwrap();
    assert_eq!(ruled.end(&up).await.failure, None);
}

#[tokio::test]
async fn what_is_in_the_way_is_named_and_nothing_changes() {
    let ruled = Ruled::new().await;
    ruled
        .node
        .conflicts
        .lock()
        .unwrap()
        .push("10.20.0.0/24 is routed by eth0".into());
    let problem = ruled.controller.zone_up(None).await.unwrap_err().problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "conflict"));
    assert!(problem.detail.contains("eth0") && problem.hint.unwrap().contains("default"));
    assert!(ruled.store.zones().await.unwrap().is_empty());
    assert_eq!(
        code(ruled.controller.zone_up(Some("nowhere")).await),
        "unknown_zone"
    );
    ruled.assert_idle().await;
}

#[tokio::test]
async fn a_network_cannot_move_while_it_is_up() {
    let ruled = Ruled::with_app("web").await;
    let moved = Config::parse("zones: { default: { subnet: 10.99.0.0/24, domain: else.local } }");
    let ruled = ruled.restarted_with(moved.unwrap()).await;
    let problem = ruled.controller.zone_up(None).await.unwrap_err().problem();
    assert_eq!(problem.code, "conflict");
    assert!(problem.detail.contains("subnet, domain"), "{problem:?}");
    // What runs goes on as it was; what is taken down is what was made.
    ruled.assert_only("web").await;
    let down = ruled.down(true).await.unwrap();
    assert_eq!(ruled.end(&down).await.failure, None);
    assert!(ruled.node.networks.lock().unwrap().is_empty());
    let up = ruled.controller.zone_up(None).await.unwrap();
    ruled.end(&up).await;
    assert_eq!(ruled.gateway().network.subnet.to_string(), "10.99.0.0/24");
}

#[tokio::test]
async fn a_zone_that_left_the_configuration_can_be_taken_down() {
    let ruled = Ruled::up().await;
    let other = Config::parse("zones: { lab: {} }").unwrap();
    let ruled = ruled.restarted_with(other).await;
    let options = engine::controller::DownOptions::default();
    let down = ruled
        .controller
        .zone_down(Some("default"), options)
        .await
        .unwrap();
    assert_eq!(ruled.end(&down).await.failure, None);
    assert!(ruled.node.networks.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_zone_with_instances_stays_unless_they_go_too() {
    let ruled = Ruled::with_app("web").await;
    let other = ruled.deploy("db").await.unwrap();
    ruled.end(&other).await;
    let problem = ruled.down(false).await.unwrap_err().problem();
    assert_eq!(problem.code, "zone_has_instances");
    assert!(problem.detail.contains("db, web"), "{problem:?}");
    ruled.node.hold("destroy");
    let down = ruled.down(true).await.unwrap();
    ruled.node.until_called("destroy").await;
    assert_eq!(code(ruled.deploy("late").await), "zone_down");
    assert_eq!(code(ruled.controller.zone_up(None).await), "busy");
    ruled.node.mend("destroy");
    assert_eq!(ruled.end(&down).await.failure, None);
    assert!(ruled.node.guests.lock().unwrap().is_empty());
    assert!(ruled.store.instances().await.unwrap().is_empty());
    ruled.assert_idle().await;
}

#[tokio::test]
async fn an_instance_that_does_not_go_fails_the_down_until_it_does() {
    let ruled = Ruled::with_app("web").await;
    ruled.node.fail("destroy", "device is busy");
    let down = ruled.down(true).await.unwrap();
    let failure = ruled.end(&down).await.failure.unwrap();
    assert_eq!(failure.step, "instances");
    assert!(
        failure.cause.contains("web") && failure.cause.contains("device is busy"),
        "{failure:?}"
    );
    ruled.node.mend("destroy");
    ruled
        .node
        .until(|n| n.networks.lock().unwrap().is_empty())
        .await;
    assert!(ruled.node.guests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_step_that_fails_is_named_and_tried_again() {
    for (call, step) in [
        ("network", "bridge"),
        ("image", "appliance"),
        ("create", "appliance"),
        ("start", "appliance"),
        ("apply", "services"),
    ] {
        let ruled = Ruled::new().await;
        ruled.node.fail(call, "no luck");
        let up = ruled.controller.zone_up(None).await.unwrap();
        let up = ruled.end(&up).await;
        assert_eq!(up.status, OperationStatus::Failed);
        let failure = up.failure.unwrap();
        assert_eq!(failure.step, step, "{call}");
        assert!(failure.cause.contains("no luck"), "{failure:?}");
        assert!(
            !ruled
                .controller
                .infrastructure(None)
                .await
                .unwrap()
                .available
        );
        ruled.node.mend(call);
        // It stays wanted: nobody has to ask again.
        ruled
            .node
            .until(|n| !n.gateways.lock().unwrap().is_empty())
            .await;
        let name = "default".parse().unwrap();
        while !ruled.store.zone(&name).await.unwrap().unwrap().settled {
            tokio::task::yield_now().await;
        }
        assert!(
            ruled
                .controller
                .infrastructure(None)
                .await
                .unwrap()
                .available,
            "{call}"
        );
    }
}

#[tokio::test]
async fn a_down_that_fails_goes_on_and_tells_all() {
    let ruled = Ruled::up().await;
    ruled.node.fail("destroy", "device is busy");
    ruled.node.fail("unnetwork", "bridge is in use");
    let down = ruled.down(false).await.unwrap();
    let failure = ruled.end(&down).await.failure.unwrap();
    assert!(failure.cause.contains("device is busy"), "{failure:?}");
    assert!(failure.cause.contains("bridge is in use"), "{failure:?}");
    assert_eq!(code(ruled.deploy("web").await), "zone_down");
    ruled.node.mend("destroy");
    ruled.node.mend("unnetwork");
    while !ruled.store.zones().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(ruled.node.guests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_timer_puts_a_zone_right() {
    let ruled = Ruled::with_app("web").await;
    // Somebody empties the gateway, stops the appliance, takes the bridge away.
    for gateway in ruled.node.gateways.lock().unwrap().values_mut() {
        gateway.hosts.clear();
        gateway.routes.clear();
    }
    let routed = |n: &engine::fake::FakeNode| {
        n.gateways
            .lock()
            .unwrap()
            .values()
            .all(|g| g.routes.len() == 1)
    };
    ruled.node.until(routed).await;
    let appliance = ruled.store.zones().await.unwrap()[0].appliance.clone();
    ruled
        .node
        .guests
        .lock()
        .unwrap()
        .get_mut(&appliance)
        .unwrap()
        .1 = false;
    ruled
        .node
        .until(|n| n.guests.lock().unwrap()[&appliance].1)
        .await;
    ruled.node.networks.lock().unwrap().clear();
    ruled
        .node
        .until(|n| n.networks.lock().unwrap().len() == 1)
        .await;
    ruled.assert_only("web").await;
    ruled.assert_idle().await;
}

#[tokio::test]
async fn a_relay_that_is_silent_is_restarted_and_then_its_appliance() {
    let ruled = Ruled::with_app("web").await;
    let appliance = ruled.store.zones().await.unwrap()[0].appliance.clone();
    for call in ["apply", "read"] {
        ruled.node.fail(call, "nobody listens");
    }
    // Its unit first, by the channel that does not need it.
    ruled.node.until_called("exec").await;
    let stopped = format!("stop {appliance}");
    let restarts = |node: &engine::fake::FakeNode| -> (usize, usize) {
        let calls = node.calls.lock().unwrap();
        let before = calls.iter().take_while(|call| **call != stopped);
        let units = before.filter(|call| *call == "exec systemctl").count();
        (units, calls.iter().filter(|call| **call == stopped).count())
    };
    ruled.node.until(|node| restarts(node).1 == 1).await;
    assert_eq!(restarts(&ruled.node).0, 2, "two looks at the unit first");
    // What is said of it meanwhile.
    let drift = loop {
        let status = ruled.controller.status().await.unwrap();
        let of_zone = |d: &api::status::Drift| d.kind == "zone";
        match status.drift.into_iter().find(of_zone) {
            Some(drift) if drift.repair.as_ref().is_some_and(|r| r.failed_attempts > 2) => {
                break drift;
            }
            _ => tokio::task::yield_now().await,
        }
    };
    assert_eq!(drift.name, "default");
    assert!(
        drift.differs[0].starts_with("the relay does not answer"),
        "{drift:?}"
    );
    let cause = drift.repair.unwrap().last_cause.unwrap();
    assert!(cause.contains("nobody listens"), "{cause}");

    for call in ["apply", "read"] {
        ruled.node.mend(call);
    }
    while !ruled.controller.status().await.unwrap().drift.is_empty() {
        tokio::task::yield_now().await;
    }
    ruled.assert_only("web").await;
}

#[tokio::test]
async fn an_orphan_is_told_of_and_goes_only_when_asked() {
    let ruled = Ruled::with_app("web").await;
    let known = ruled.record("web").await;
    let mut stray = known.guest(&engine::fake::zone_spec());
    stray.id = api::InstanceId::from_bytes([9; 8]);
    let id = stray.id.clone();
    let guests = &ruled.node.guests;
    guests.lock().unwrap().insert(id.clone(), (stray, true));
    let orphans = ruled.controller.status().await.unwrap().orphans;
    assert_eq!(orphans.len(), 1);
    assert_eq!(
        (&orphans[0].id, orphans[0].state.as_str()),
        (&id, "running")
    );
    // Some looks later it is still there.
    let calls = || ruled.node.calls.lock().unwrap().len();
    let now = calls();
    ruled.node.until(|_| calls() > now + 3).await;
    assert_eq!(ruled.guest(&id), Some(true));

    // What stands in a record is no orphan.
    let appliance = ruled.store.zones().await.unwrap()[0].appliance.clone();
    for recorded in [known.id.as_str(), appliance.as_str(), "nonsense"] {
        let refused = ruled.controller.remove_orphan(recorded).await;
        assert_eq!(code(refused), "unknown_orphan", "{recorded}");
    }
    ruled.controller.remove_orphan(id.as_str()).await.unwrap();
    assert_eq!(ruled.guest(&id), None);
    assert_eq!(ruled.controller.status().await.unwrap().orphans, []);
    ruled.assert_only("web").await;
}
