//! Sandboxes: made without the gateway, ended by a person or by their time, reached by their agent only.

use api::app::AppStatus;
use api::exec::ExecRequest;
use api::sandbox::SandboxRequest;
use engine::{Config, Error};

use crate::ruled::{Ruled, code, events};

fn request(name: &str) -> SandboxRequest {
    SandboxRequest {
        name: Some(name.into()),
        ..SandboxRequest::default()
    }
}

fn argv(words: &[&str], channel: Option<&str>) -> ExecRequest {
    ExecRequest {
        argv: words.iter().map(ToString::to_string).collect(),
        channel: channel.map(Into::into),
        ..ExecRequest::default()
    }
}

#[tokio::test]
async fn made_and_killed_without_the_gateway() {
    let ruled = Ruled::up().await;
    let (operation, name) = ruled
        .controller
        .create_sandbox(&SandboxRequest::default())
        .await
        .unwrap();
    let operation = ruled.end(&operation).await;
    assert_eq!(operation.failure, None);
    let done: Vec<String> = events(&operation)
        .into_iter()
        .filter(|e| e.ends_with("done"))
        .collect();
    assert_eq!(
        done,
        ["image done", "create done", "start done", "agent done"]
    );
    let sandbox = ruled.controller.sandbox(name.as_str()).await.unwrap();
    assert_eq!(sandbox.status, AppStatus::Running);
    assert_eq!(sandbox.ip.to_string(), "10.20.0.2", "a static address");
    assert!((3590..=3600).contains(&sandbox.expires_in_s), "an hour");
    assert!(name.as_str().starts_with("sandbox-"));
    assert!(ruled.gateway().hosts.is_empty());
    assert!(ruled.controller.apps().await.unwrap().is_empty());
    assert_eq!(
        code(ruled.controller.app(name.as_str()).await),
        "unknown_instance"
    );
    assert_eq!(
        code(ruled.controller.delete(name.as_str()).await),
        "bad_request"
    );

    let killed = ruled
        .controller
        .kill_sandbox(sandbox.id.as_str())
        .await
        .unwrap();
    assert_eq!(ruled.end(&killed).await.failure, None);
    assert!(ruled.controller.sandboxes().await.unwrap().is_empty());
    assert!(ruled.guest(&sandbox.id).is_none());
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let ruled = Ruled::with_app("web").await;
    let refused = async |change: fn(&mut SandboxRequest)| {
        let mut asked = request("box");
        change(&mut asked);
        code(ruled.controller.create_sandbox(&asked).await)
    };
    assert_eq!(
        refused(|r| r.image = Some("alpine".into())).await,
        "bad_request"
    );
    assert_eq!(refused(|r| r.ttl_s = Some(1)).await, "bad_request");
    assert_eq!(refused(|r| r.ttl_s = Some(u64::MAX)).await, "bad_request");
    assert_eq!(
        refused(|r| r.name = Some("localhost".into())).await,
        "bad_request"
    );
    assert_eq!(refused(|r| r.name = Some("web".into())).await, "name_taken");
    assert_eq!(
        refused(|r| r.limits.memory_mb = Some(1)).await,
        "bad_request"
    );
    assert!(ruled.controller.sandboxes().await.unwrap().is_empty());
    for error in [
        ruled.controller.sandbox("web").await.err(),
        ruled.controller.extend_sandbox("web", 60).await.err(),
        ruled.controller.kill_sandbox("nobody").await.err(),
    ] {
        assert!(
            matches!(error, Some(Error::UnknownInstance(_))),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn it_ends_when_its_time_is_over_and_not_before() {
    let ruled = Ruled::up().await;
    for name in ["short", "long"] {
        let (operation, _) = ruled
            .controller
            .create_sandbox(&request(name))
            .await
            .unwrap();
        assert_eq!(ruled.end(&operation).await.failure, None);
    }
    let extended = ruled.controller.extend_sandbox("long", 7200).await.unwrap();
    assert!((7190..=7200).contains(&extended.expires_in_s));
    // As if an hour had passed for one of them, while no controller ran.
    let past = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1);
    let id = ruled.id("short").await;
    use engine::store::Store;
    assert!(ruled.store.set_expiry(&id, past).await.unwrap());
    let ruled = ruled.restarted().await;
    ruled
        .until_recorded(|all| all.iter().all(|i| i.name.as_str() == "long"))
        .await;
    ruled
        .node
        .until(|node| !node.guests.lock().unwrap().contains_key(&id))
        .await;
    assert_eq!(ruled.record("long").await.status, AppStatus::Running);
}

/// Extensions that meet the end of each sandbox's time: who is told yes keeps it, who is told no loses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_at_the_last_moment_holds_or_is_refused() {
    use engine::store::Store;
    let ruled = std::sync::Arc::new(Ruled::up().await);
    let mut racers = Vec::new();
    for number in 0..24 {
        let name = format!("box-{number}");
        let (operation, _) = ruled
            .controller
            .create_sandbox(&request(&name))
            .await
            .unwrap();
        assert_eq!(ruled.end(&operation).await.failure, None);
        let ruled = ruled.clone();
        racers.push(tokio::spawn(async move {
            let id = ruled.id(&name).await;
            // Its worker looks at it every 20 ms; the extension comes in any of them.
            let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(5);
            assert!(ruled.store.set_expiry(&id, soon).await.unwrap());
            tokio::time::sleep(std::time::Duration::from_millis(number)).await;
            let extended = ruled.controller.extend_sandbox(&name, 600).await;
            (name, extended)
        }));
    }
    let (mut kept, mut lost) = (Vec::new(), 0);
    for racer in racers {
        match racer.await.unwrap() {
            (name, Ok(sandbox)) => kept.push((name, sandbox.expires_at)),
            (_, Err(Error::UnknownInstance(_))) => lost += 1,
            (_, refused) => {
                assert_eq!(code(refused), "wrong_state");
                lost += 1;
            }
        }
    }
    println!("{} were extended, {lost} ended", kept.len());
    // All that end have ended, and each worker has looked at the others again.
    ruled.until_recorded(|all| all.len() == kept.len()).await;
    let looked = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(100);
    ruled
        .until_recorded(|_| jiff::Timestamp::now() > looked)
        .await;
    for (name, expires_at) in &kept {
        let record = ruled.record(name).await;
        assert_eq!(record.desired, engine::instance::InstanceDesired::Running);
        assert_eq!(record.status, AppStatus::Running, "{name}");
        assert_eq!(record.expires_at.unwrap().to_string(), *expires_at);
    }
    assert_eq!(ruled.store.instances().await.unwrap().len(), kept.len());
}

#[tokio::test]
async fn it_is_warned_of_each_end_once() {
    use engine::store::{NewOperation, Store};
    let ruled = Ruled::up().await;
    let (operation, _) = ruled
        .controller
        .create_sandbox(&request("young"))
        .await
        .unwrap();
    assert_eq!(ruled.end(&operation).await.failure, None);
    // Another one that has lived for an hour.
    let now = jiff::Timestamp::now();
    let mut record = ruled.record("young").await;
    record.id = api::InstanceId::from_bytes([7; 8]);
    record.name = "old".parse().unwrap();
    record.status = AppStatus::Deploying;
    record.created_at = now - jiff::SignedDuration::from_hours(1);
    let end = now + jiff::SignedDuration::from_millis(60_500);
    record.expires_at = Some(end);
    let deploy = NewOperation {
        id: api::OperationId::from_bytes([7; 8]),
        kind: "deploy".into(),
        target: "old".into(),
        object: record.id.to_string(),
        at: now,
    };
    let range = engine::fake::zone_spec().static_range();
    let store = &ruled.store;
    store.begin_deploy(&record, range, &deploy).await.unwrap();
    let ruled = ruled.restarted().await;
    let warnings = async |ruled: &Ruled| {
        let all = ruled.store.operations(100).await.unwrap();
        let found = all.into_iter().filter(|o| o.kind == "warn");
        found.collect::<Vec<_>>()
    };
    let until = async |ruled: &Ruled, count: usize| {
        let mut feed = ruled.controller.feed().subscribe();
        loop {
            feed.mark_unchanged();
            let found = warnings(ruled).await;
            if found.len() >= count {
                return found;
            }
            feed.changed().await.unwrap();
        }
    };
    let warning = until(&ruled, 1).await.remove(0);
    assert!(jiff::Timestamp::now() >= end - jiff::SignedDuration::from_secs(60));
    assert_eq!(warning.target, "old");
    assert_eq!(warning.status, api::operation::OperationStatus::Succeeded);
    let warning = ruled.controller.operation(warning.id.as_str(), 0).await;
    let message = warning.unwrap().events.remove(0).message;
    assert!(message.contains(&end.to_string()), "{message}");
    assert_eq!(
        ruled.controller.sandbox("old").await.unwrap().warned_in_s,
        0
    );
    assert!(ruled.controller.sandbox("young").await.unwrap().warned_in_s > 3500);
    // Neither further looks nor another controller say it again; of another end it is warned anew.
    let ruled = ruled.restarted().await;
    let looked = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(100);
    ruled
        .until_recorded(|_| jiff::Timestamp::now() > looked)
        .await;
    assert_eq!(warnings(&ruled).await.len(), 1);
    ruled.controller.extend_sandbox("old", 30).await.unwrap();
    assert_eq!(until(&ruled, 2).await.len(), 2);
    let record = ruled.record("old").await;
    assert_eq!(record.desired, engine::instance::InstanceDesired::Running);
}

#[tokio::test]
async fn one_on_its_way_out_is_not_extended() {
    let ruled = Ruled::up().await;
    let (operation, _) = ruled
        .controller
        .create_sandbox(&request("box"))
        .await
        .unwrap();
    assert_eq!(ruled.end(&operation).await.failure, None);
    ruled.node.hold("stop");
    let killed = ruled.controller.kill_sandbox("box").await.unwrap();
    ruled.node.until_called("stop").await;
    let refused = ruled.controller.extend_sandbox("box", 600).await;
    let problem = refused.unwrap_err().problem();
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (409, "wrong_state")
    );
    assert!(problem.hint.unwrap().contains("on its way out"));
    ruled.node.mend("stop");
    assert_eq!(ruled.end(&killed).await.failure, None);
}

#[tokio::test]
async fn more_power_than_the_agents_is_used_only_where_the_operator_says_so() {
    let ruled = Ruled::with_app("web").await;
    let (operation, _) = ruled
        .controller
        .create_sandbox(&request("box"))
        .await
        .unwrap();
    assert_eq!(ruled.end(&operation).await.failure, None);
    for name in ["web", "box"] {
        let asked = argv(&["id"], Some("lxc-attach"));
        assert_eq!(
            code(ruled.controller.exec(name, &asked).await),
            "bad_request"
        );
        let ran = ruled
            .controller
            .exec(name, &argv(&["id"], None))
            .await
            .unwrap();
        assert_eq!(ran.channel, "agent");
    }
    let ran = ruled
        .controller
        .exec("prox-appliance", &argv(&["id"], None))
        .await;
    assert_eq!(ran.unwrap().channel, "lxc-attach");

    let text = "nodes: { local: { backend: lxc, channels: [agent, lxc-attach] } }";
    let ruled = ruled.restarted_with(Config::parse(text).unwrap()).await;
    let asked = argv(&["id"], Some("lxc-attach"));
    let ran = ruled.controller.exec("web", &asked).await.unwrap();
    assert_eq!(ran.channel, "lxc-attach");
    assert_eq!(
        code(ruled.controller.exec("box", &asked).await),
        "bad_request"
    );
}
