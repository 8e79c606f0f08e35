//! What people add to a gateway: written first, told then, gone with what it leads to.

use api::app::DeployRequest;
use api::entry::{
    PortRequest, Protocol, RecordRequest, ReservationRequest, RouteAuthRequest, RouteSettings,
};
use api::{HostName, InstanceName};
use engine::gateway::entry::{Entry, EntryStore};
use engine::{Config, Error};

use crate::ruled::Ruled;

fn settings(instance: &str, port: u16) -> RouteSettings {
    RouteSettings {
        instance: instance.parse().unwrap(),
        port,
        redirect_https: false,
        auth: None,
        max_body_bytes: None,
        timeout_ms: None,
    }
}

fn host(text: &str) -> HostName {
    text.parse().unwrap()
}

fn code(error: &Error) -> String {
    error.problem().code
}

async fn entries(ruled: &Ruled) -> Vec<Entry> {
    let zone = ruled.controller.zone_name(None).unwrap();
    ruled.store.entries(zone).await.unwrap()
}

#[tokio::test]
async fn a_route_is_there_at_once_and_the_same_again_is_the_same() {
    let ruled = Ruled::with_app("web").await;
    let put = async |to: &RouteSettings, replace| {
        let host = host("api.prox.local");
        ruled.controller.put_route(None, &host, to, replace).await
    };
    let (view, new) = put(&settings("web", 8080), false).await.unwrap();
    assert!(new && view.health == "healthy" && !view.builtin, "{view:?}");
    assert!(!put(&settings("web", 8080), false).await.unwrap().1);
    let other = put(&settings("web", 8081), false).await.unwrap_err();
    assert_eq!(code(&other), "taken");
    assert_eq!(
        put(&settings("web", 8081), true).await.unwrap().0.port,
        8081
    );
    let state = ruled.gateway();
    let hosts: Vec<_> = state.routes.iter().map(|r| r.host.as_str()).collect();
    assert_eq!(hosts, ["api.prox.local", "web.prox.local"]);
    assert_eq!(state.edge.names[0].address, state.network.gateway);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let ruled = Ruled::with_app("web").await;
    let controller = &ruled.controller;
    for (name, to, expected) in [
        ("api.prox.local", settings("nobody", 80), "unknown_instance"),
        ("api.prox.local", settings("web", 0), "bad_request"),
        ("api.prox.local", settings("web", 39383), "bad_request"),
        ("wpad.prox.local", settings("web", 80), "bad_request"),
        ("a.b.prox.local", settings("web", 80), "bad_request"),
        ("web.localhost", settings("web", 80), "bad_request"),
    ] {
        let put = controller.put_route(None, &host(name), &to, true).await;
        assert_eq!(code(&put.unwrap_err()), expected, "{name} {to:?}");
    }
    let mut weak = settings("web", 80);
    weak.auth = Some(RouteAuthRequest::Token {
        token: "short".into(),
    });
    let put = controller
        .put_route(None, &host("api.prox.local"), &weak, true)
        .await;
    assert_eq!(code(&put.unwrap_err()), "bad_request");
    let port = |listen: u16| PortRequest {
        instance: "web".parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        listen: Some(listen),
    };
    // The fake node listens on port 22.
    for (listen, expected) in [(443, "bad_request"), (22, "conflict")] {
        let publish = controller.publish_port(None, &port(listen)).await;
        assert_eq!(code(&publish.unwrap_err()), expected, "{listen}");
    }
    assert!(entries(&ruled).await.is_empty());
}

#[tokio::test]
async fn names_and_addresses_are_nobody_elses() {
    let ruled = Ruled::with_app("web").await;
    let controller = &ruled.controller;
    let record = |name: &str| RecordRequest {
        name: host(name),
        address: Some([192, 0, 2, 9].into()),
        instance: None,
    };
    assert!(
        controller
            .add_record(None, &record("nas.prox.local"))
            .await
            .unwrap()
    );
    assert!(
        !controller
            .add_record(None, &record("nas.prox.local"))
            .await
            .unwrap()
    );
    let taken = controller.add_record(None, &record("web.prox.local")).await;
    assert_eq!(code(&taken.unwrap_err()), "taken");
    let nas = host("nas.prox.local");
    let taken = controller
        .put_route(None, &nas, &settings("web", 80), true)
        .await;
    assert_eq!(code(&taken.unwrap_err()), "taken");
    assert_eq!(code(&ruled.deploy("nas").await.unwrap_err()), "taken");
    let kept = |mac: &str, last: u8| ReservationRequest {
        mac: mac.parse().unwrap(),
        address: [10, 20, 0, last].into(),
        name: format!("m{last}").parse::<InstanceName>().unwrap(),
    };
    let web = ruled.record("web").await.address.octets()[3];
    for (mac, last, expected) in [
        ("02:00:00:00:00:07", web, "taken"),
        ("02:00:00:00:00:07", 1, "bad_request"),
        ("52:78:0a:14:00:65", 251, "bad_request"),
        ("ff:ff:ff:ff:ff:ff", 251, "bad_request"),
    ] {
        let reserve = controller.reserve(None, &kept(mac, last)).await;
        assert_eq!(code(&reserve.unwrap_err()), expected, "{mac} {last}");
    }
    // The next app does not get an address that is kept.
    controller
        .reserve(None, &kept("02:00:00:00:00:07", web + 1))
        .await
        .unwrap();
    let next = ruled.deploy("next").await.unwrap();
    ruled.end(&next).await;
    assert_eq!(ruled.record("next").await.address.octets()[3], web + 2);
}

#[tokio::test]
async fn entries_survive_a_restart_and_go_with_their_app() {
    let ruled = Ruled::with_app("web").await;
    let controller = &ruled.controller;
    let api = host("api.prox.local");
    controller
        .put_route(None, &api, &settings("web", 8080), false)
        .await
        .unwrap();
    let port = PortRequest {
        instance: "web".parse().unwrap(),
        port: 5432,
        protocol: Protocol::Tcp,
        listen: Some(15432),
    };
    controller.publish_port(None, &port).await.unwrap();
    let published = |ruled: &Ruled| ruled.node.published.lock().unwrap()["default"].clone();
    assert_eq!(published(&ruled), [(Protocol::Tcp, 15432)]);
    let ruled = ruled.restarted().await;
    assert_eq!(
        ruled
            .controller
            .route(None, "api.prox.local")
            .await
            .unwrap()
            .port,
        8080
    );
    assert_eq!(entries(&ruled).await.len(), 2);
    let id = ruled.controller.delete("web").await.unwrap();
    ruled.end(&id).await;
    assert!(entries(&ruled).await.is_empty());
    assert!(published(&ruled).is_empty());
    let state = ruled.gateway();
    assert!(
        state.routes.is_empty() && state.edge.is_empty(),
        "{state:?}"
    );
}

#[tokio::test]
async fn what_the_appliance_could_not_be_told_stands_all_the_same() {
    let ruled = Ruled::with_app("web").await;
    ruled.node.fail("apply", "the relay is gone");
    let api = host("api.prox.local");
    let put = ruled
        .controller
        .put_route(None, &api, &settings("web", 8080), false)
        .await;
    let problem = put.unwrap_err().problem();
    assert_eq!(problem.status, 502);
    assert!(problem.hint.unwrap().contains("written down"));
    assert_eq!(entries(&ruled).await.len(), 1);
    ruled.node.mend("apply");
    let put = ruled
        .controller
        .put_route(None, &api, &settings("web", 8080), false)
        .await;
    assert!(!put.unwrap().1);
}

#[tokio::test]
async fn a_port_of_the_node_leads_to_one_zone() {
    let config =
        "zones: { default: {}, lab: { bridge: lab-lan, subnet: 10.21.0.0/24, domain: lab.local } }";
    let ruled = Ruled::with(Config::parse(config).unwrap()).await;
    let controller = &ruled.controller;
    for (zone, name) in [("default", "web"), ("lab", "db")] {
        let up = controller.zone_up(Some(zone)).await.unwrap();
        assert_eq!(ruled.end(&up).await.failure, None);
        let request = DeployRequest {
            app_id: "nginx".into(),
            instance_name: Some(name.into()),
            zone: Some(zone.into()),
            config: Default::default(),
            limits: Default::default(),
            egress: Default::default(),
            resume: false,
        };
        let (deployed, _) = controller.deploy(&request).await.unwrap();
        assert_eq!(ruled.end(&deployed).await.failure, None);
    }
    let port = |instance: &str, protocol| PortRequest {
        instance: instance.parse().unwrap(),
        port: 80,
        protocol,
        listen: Some(8080),
    };
    // Both at the same time: one of them has it, whichever comes first.
    let (web, db) = (port("web", Protocol::Tcp), port("db", Protocol::Tcp));
    let (first, second) = tokio::join!(
        controller.publish_port(Some("default"), &web),
        controller.publish_port(Some("lab"), &db),
    );
    assert_ne!(first.is_ok(), second.is_ok(), "{first:?} {second:?}");
    let (winner, loser, late) = match &first {
        Ok(_) => ("default", "lab", &db),
        Err(_) => ("lab", "default", &web),
    };
    let refused = first.err().or(second.err()).unwrap().problem();
    assert_eq!(refused.code, "taken");
    let told = "tcp port 8080 of the node";
    assert!(
        refused.detail.contains(told) && refused.detail.contains(&format!("zone {winner}")),
        "{refused:?}"
    );
    let published = |zone: &str| {
        let published = ruled.node.published.lock().unwrap();
        published.get(zone).cloned().unwrap_or_default()
    };
    assert_eq!(published(winner), [(Protocol::Tcp, 8080)]);
    assert!(published(loser).is_empty());
    // Another protocol is another port, and one that is given back is free.
    let udp = port(late.instance.as_str(), Protocol::Udp);
    controller.publish_port(Some(loser), &udp).await.unwrap();
    controller
        .unpublish_port(Some(winner), Protocol::Tcp, 8080)
        .await
        .unwrap();
    controller.publish_port(Some(loser), late).await.unwrap();
}

#[tokio::test]
async fn one_apply_tells_the_appliance_what_many_have_written() {
    let ruled = Ruled::with_app("web").await;
    let applies = || {
        let calls = ruled.node.calls.lock().unwrap();
        calls.iter().filter(|c| c.starts_with("apply ")).count()
    };
    let before = applies();
    ruled.node.hold("apply");
    let put = |number: usize| {
        let controller = ruled.controller.clone();
        tokio::spawn(async move {
            let host = host(&format!("route-{number}.prox.local"));
            let to = settings("web", 80);
            let put = controller.put_route(None, &host, &to, false);
            put.await.unwrap().0.health
        })
    };
    let all: Vec<_> = (0..40).map(put).collect();
    // The first of them is held; when all have written, the next apply brings the rest.
    while entries(&ruled).await.len() < all.len() {
        tokio::task::yield_now().await;
    }
    ruled.node.mend("apply");
    for put in all {
        assert_eq!(put.await.unwrap(), "healthy");
    }
    assert_eq!(ruled.gateway().routes.len(), 41);
    let applied = applies() - before;
    assert!(applied < 10, "{applied} applies for 40 routes");
}

#[tokio::test]
async fn an_apply_that_fails_serves_nobody() {
    let ruled = Ruled::with_app("web").await;
    ruled.node.fail("apply", "no way there");
    let put = async |name: &str| {
        let (host, to) = (host(name), settings("web", 80));
        let put = ruled.controller.put_route(None, &host, &to, false);
        put.await.map(|(view, _)| view.health)
    };
    let (one, other) = tokio::join!(put("one.prox.local"), put("other.prox.local"));
    assert_eq!(code(&one.unwrap_err()), code(&other.unwrap_err()));
    ruled.node.mend("apply");
    assert_eq!(put("one.prox.local").await.unwrap(), "healthy");
    assert_eq!(ruled.gateway().routes.len(), 3);
}
