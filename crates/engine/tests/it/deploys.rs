//! Deploys: their steps, their failures, and what they reserve.

use std::collections::BTreeSet;

use api::app::AppStatus;
use api::operation::OperationStatus;
use engine::store::Store;

use crate::ruled::{Ruled, code, events, request};

#[tokio::test]
async fn a_deploy_goes_through_its_steps_in_order() {
    let ruled = Ruled::up().await;
    let id = ruled.deploy("web").await.unwrap();
    let operation = ruled.end(&id).await;
    assert_eq!(operation.status, OperationStatus::Succeeded);
    assert_eq!(
        events(&operation),
        [
            "image started",
            "image progress",
            "image done",
            "publish started",
            "publish done",
            "create started",
            "create done",
            "start started",
            "start done",
            "agent started",
            "agent done",
            "ready started",
            "ready done",
            "route started",
            "route done",
        ]
    );
    let seqs: Vec<u32> = operation.events.iter().map(|e| e.seq).collect();
    assert_eq!(seqs, (1..=15).collect::<Vec<_>>());
    ruled.assert_only("web").await;
    let record = ruled.record("web").await;
    let state = ruled.gateway();
    assert_eq!(state.hosts[0].address, record.address);
    assert_eq!(state.hosts[0].mac.to_string(), "52:78:0a:14:00:64");
    assert_eq!(state.routes[0].instance, record.id);
    assert_eq!(
        (state.routes[0].host.as_str(), state.routes[0].port),
        ("web.prox.local", 80)
    );
    // The image is there now.
    let second = ruled.deploy("web2").await.unwrap();
    let second = ruled.end(&second).await;
    assert_eq!(events(&second)[0], "publish started");
}

#[tokio::test]
async fn a_deploy_that_fails_says_where_and_goes_on_when_asked() {
    for (call, step) in [
        ("image", "image"),
        ("apply", "publish"),
        ("create", "create"),
        ("start", "start"),
        ("probe", "ready"),
    ] {
        let ruled = Ruled::up().await;
        ruled.node.fail(call, "no luck");
        let id = ruled.deploy("web").await.unwrap();
        let operation = ruled.end(&id).await;
        assert_eq!(operation.status, OperationStatus::Failed, "{call}");
        let failure = operation.failure.clone().unwrap();
        assert_eq!(failure.step, step);
        assert!(failure.cause.contains("no luck"), "{call}: {failure:?}");
        assert!(
            failure
                .next
                .ends_with("proximity app deploy nginx web --resume"),
            "{failure:?}"
        );
        assert_eq!(failure.console_tail, ["console"]);
        assert_eq!(
            events(&operation).last().unwrap(),
            &format!("{step} failed")
        );
        let record = ruled.record("web").await;
        assert_eq!(
            (record.status, record.failure),
            (AppStatus::Failed, Some(failure))
        );

        ruled.node.mend(call);
        let mut resume = request("nginx", Some("web"));
        resume.resume = true;
        let (id, _) = ruled.controller.deploy(&resume).await.unwrap();
        let operation = ruled.end(&id).await;
        assert_eq!(operation.failure, None, "{call}");
        assert!(!events(&operation).contains(&"image started".into()) || call == "image");
        ruled.assert_only("web").await;
        assert_eq!(code(ruled.controller.deploy(&resume).await), "wrong_state");
    }
}

#[tokio::test]
async fn a_route_that_cannot_be_opened_is_a_failure_of_its_own() {
    let ruled = Ruled::up().await;
    ruled.node.hold("probe");
    let id = ruled.deploy("web").await.unwrap();
    ruled.node.until_called("probe").await;
    ruled.node.fail("apply", "no luck");
    ruled.node.mend("probe");
    let failure = ruled.end(&id).await.failure.unwrap();
    assert_eq!(failure.step, "route");
}

#[tokio::test]
async fn a_guest_that_stops_by_itself_ends_the_wait() {
    let ruled = Ruled::up().await;
    ruled.node.hold("probe");
    let id = ruled.deploy("web").await.unwrap();
    ruled.node.until_called("probe").await;
    let guest = ruled.id("web").await;
    ruled.node.guests.lock().unwrap().get_mut(&guest).unwrap().1 = false;
    let failure = ruled.end(&id).await.failure.unwrap();
    assert_eq!(failure.step, "ready");
    assert!(failure.cause.contains("stopped by itself"), "{failure:?}");
}

#[tokio::test]
async fn what_cannot_be_deployed_is_refused_and_changes_nothing() {
    let down = Ruled::new().await;
    assert_eq!(code(down.deploy("web").await), "zone_down");

    let ruled = Ruled::with_app("web").await;
    let calls = ruled.node.calls.lock().unwrap().len();
    let deploy = async |recipe: &str, name: Option<&str>| {
        code(ruled.controller.deploy(&request(recipe, name)).await)
    };
    assert_eq!(deploy("nginx", Some("web")).await, "name_taken");
    assert_eq!(deploy("ngnix", Some("a")).await, "unknown_recipe");
    assert_eq!(deploy("static-site", Some("a")).await, "bad_request");
    for name in ["Web", "-a", "a_b", "", "../x", &"a".repeat(64)] {
        assert_eq!(
            deploy("nginx", Some(name)).await,
            "invalid_name",
            "{name:?}"
        );
    }
    for reserved in ["localhost", "prox-appliance"] {
        assert_eq!(
            deploy("nginx", Some(reserved)).await,
            "bad_request",
            "{reserved}"
        );
    }
    let mut other_zone = request("nginx", Some("a"));
    other_zone.zone = Some("nowhere".into());
    assert_eq!(
        code(ruled.controller.deploy(&other_zone).await),
        "unknown_zone"
    );
    let mut huge = request("nginx", Some("a"));
    huge.limits.memory_mb = Some(u32::MAX);
    assert_eq!(code(ruled.controller.deploy(&huge).await), "bad_request");
    let mut strange = request("nginx", Some("a"));
    strange.config.insert("no_such".into(), "x".into());
    assert_eq!(code(ruled.controller.deploy(&strange).await), "bad_request");
    ruled.assert_only("web").await;
    ruled.assert_idle().await;
    let applied = |c: &String| c.starts_with("apply");
    let since = ruled.node.calls.lock().unwrap()[calls..].to_vec();
    assert!(since.iter().all(applied), "{since:?}");
}

#[tokio::test]
async fn many_deploys_at_once_do_not_meet() {
    let ruled = Ruled::up().await;
    // Half of them leave the name to the controller.
    let asked: Vec<_> = (0..20)
        .map(|n| request("nginx", (n % 2 == 0).then(|| format!("web{n}")).as_deref()))
        .collect();
    let begun = asked.iter().map(|request| ruled.controller.deploy(request));
    let begun = futures::future::join_all(begun).await;
    let mut names = BTreeSet::new();
    for accepted in begun {
        let (id, name) = accepted.unwrap();
        assert_eq!(ruled.end(&id).await.failure, None);
        names.insert(name);
    }
    assert_eq!(names.len(), 20);
    let records = ruled.store.instances().await.unwrap();
    let addresses: BTreeSet<_> = records.iter().map(|r| r.address).collect();
    assert_eq!((records.len(), addresses.len()), (20, 20));
    assert!(records.iter().all(|r| r.status == AppStatus::Running));
    let state = ruled.gateway();
    assert_eq!((state.hosts.len(), state.routes.len()), (20, 20));
    let built = ruled.node.calls.lock().unwrap();
    let created = built.iter().filter(|c| c.starts_with("create")).count();
    assert_eq!(created, 21, "each once, and the appliance");
}

#[tokio::test]
async fn a_full_zone_takes_nobody_in() {
    let ruled = Ruled::up().await;
    // All but the last address of the range .100 to .250.
    let zone = engine::fake::zone_spec();
    let (first, last) = zone.dhcp_range();
    let all = u32::from(last) - u32::from(first) + 1;
    for n in 0..all {
        let mut record = engine::fake::instance_record("x");
        let mut bytes = [0xff; 8];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        record.id = api::InstanceId::from_bytes(bytes);
        record.name = format!("x{n}").parse().unwrap();
        record.status = AppStatus::Stopped;
        record.desired = engine::instance::InstanceDesired::Stopped;
        let operation = engine::store::NewOperation {
            id: api::OperationId::from_bytes(bytes),
            kind: "deploy".into(),
            target: record.name.to_string(),
            object: record.id.to_string(),
            at: jiff::Timestamp::now(),
        };
        let store = &ruled.store;
        store
            .begin_deploy(&record, (first, last), &operation)
            .await
            .unwrap();
    }
    assert_eq!(code(ruled.deploy("web").await), "no_address");
    // An address that was just given back rests.
    let gone = ruled.record("x7").await;
    ruled
        .store
        .forget_instance(&gone.id, jiff::Timestamp::now())
        .await
        .unwrap();
    assert_eq!(code(ruled.deploy("web").await), "no_address");
}
