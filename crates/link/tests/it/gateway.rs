//! The gateway API: spoken with the relay itself.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use api::Problem;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use link::LinkError;
use wire::agent::Scope;
use wire::gateway::{
    GatewayDiff, GatewayReport, GatewayState, ProbeRequest, Readiness, RouteReport, ZoneNetwork,
};

use crate::lab::{ADDRESS, APPLIANCE, Lab, id};
use crate::verifier::claims;

fn state() -> GatewayState {
    GatewayState {
        network: ZoneNetwork {
            domain: "prox.local".parse().unwrap(),
            subnet: "10.20.0.0/24".parse().unwrap(),
            gateway: "10.20.0.1".parse().unwrap(),
            dhcp_first: "10.20.0.100".parse().unwrap(),
            dhcp_last: "10.20.0.250".parse().unwrap(),
            lease_s: 3600,
            upstream_dns: Vec::new(),
            wan: "eth0".parse().unwrap(),
            lan: "eth1".parse().unwrap(),
        },
        hosts: Vec::new(),
        routes: Vec::new(),
        leases: Vec::new(),
        published: Vec::new(),
        egress: Vec::new(),
        edge: Default::default(),
    }
}

fn report(agent_version: &str) -> GatewayReport {
    GatewayReport {
        agent_version: agent_version.into(),
        wan_address: None,
        lan_address: None,
        services: Vec::new(),
        leases: Vec::new(),
        names: Vec::new(),
        routes: Vec::new(),
        refused: Vec::new(),
        edge: Default::default(),
    }
}

fn probe(port: u16) -> ProbeRequest {
    ProbeRequest {
        address: ADDRESS,
        port,
        readiness: Readiness::Tcp,
        deadline_ms: 1000,
    }
}

#[tokio::test]
async fn state_report_and_probes_go_over_one_connection_to_the_relay() {
    let router = Router::new()
        .route(
            "/gateway",
            get(async |headers: HeaderMap| {
                Json(report(headers["authorization"].to_str().unwrap()))
            })
            .put(async |Json(state): Json<GatewayState>| {
                let services_changed = vec![state.network.domain.to_string()];
                Json(GatewayDiff {
                    services_changed,
                    ..GatewayDiff::default()
                })
            }),
        )
        .route(
            "/gateway/routes/web.prox.local",
            get(async || {
                Json(RouteReport {
                    host: "web.prox.local".parse().unwrap(),
                    instance: id(APPLIANCE),
                    address: [10, 20, 0, 100].into(),
                    port: 80,
                    healthy: true,
                    connections: 3,
                })
            }),
        )
        .route(
            "/probe",
            post(async |Json(probe): Json<ProbeRequest>| match probe.port {
                80 => StatusCode::NO_CONTENT.into_response(),
                81 => {
                    let problem = Problem::new(504, "not_ready", "connection refused");
                    (StatusCode::GATEWAY_TIMEOUT, Json(problem)).into_response()
                }
                _ => {
                    let problem = Problem::new(422, "invalid_probe", "not in this zone");
                    (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)).into_response()
                }
            }),
        );
    let lab = Lab::with_gateway(router).await;
    let appliance = id(APPLIANCE);
    let report = lab.link.gateway_read(&appliance).await.unwrap();
    let token = report.agent_version.strip_prefix("Bearer ").unwrap();
    let said = claims(&lab.authority.tokens().public_key(), token, APPLIANCE);
    assert_eq!(said.scope, [Scope::Gateway]);
    let diff = lab.link.gateway_apply(&appliance, &state()).await.unwrap();
    assert_eq!(diff.services_changed, ["prox.local"]);
    let route = async |host: &str| {
        let host = host.parse().unwrap();
        lab.link.gateway_route(&appliance, &host).await.unwrap()
    };
    assert_eq!(route("web.prox.local").await.unwrap().connections, 3);
    assert_eq!(route("other.prox.local").await, None);
    assert!(lab.link.probe(&appliance, &probe(80)).await.unwrap().ready);
    let late = lab.link.probe(&appliance, &probe(81)).await.unwrap();
    assert_eq!(
        (late.ready, late.last.as_str()),
        (false, "connection refused")
    );
    let refused = lab.link.probe(&appliance, &probe(82)).await;
    assert!(
        matches!(refused, Err(LinkError::Refused { .. })),
        "{refused:?}"
    );
    assert_eq!(lab.seen.full_handshakes.load(Ordering::SeqCst), 1);
    assert_eq!(lab.seen.tunnels(), 0);
}

/// What a relay was asked, in short, and by which tag it has what it was given; `None` for one that knows no tags.
#[derive(Clone, Default)]
struct Given {
    asked: Arc<Mutex<Vec<String>>>,
    tag: Arc<Mutex<Option<String>>>,
}

impl Given {
    fn router(&self) -> Router {
        let (put, patch) = (self.clone(), self.clone());
        let put = async move |Json(state): Json<GatewayState>| {
            let routes = state.routes.len();
            put.take(format!("all {routes}"))
        };
        let patch = async move |headers: HeaderMap, body: String| {
            let of = headers["if-match"].to_str().unwrap().to_owned();
            if Some(&of) == patch.tag.lock().unwrap().as_ref() {
                let routes = body.matches("\"host\"").count();
                patch.take(format!("{of} and {routes}"))
            } else {
                patch.asked.lock().unwrap().push("other".into());
                let problem = Problem::new(412, "other_base", "another state");
                (StatusCode::PRECONDITION_FAILED, Json(problem)).into_response()
            }
        };
        Router::new().route("/gateway", axum::routing::put(put).patch(patch))
    }

    fn take(&self, what: String) -> Response {
        let mut asked = self.asked.lock().unwrap();
        asked.push(what);
        let mut answer = Json(GatewayDiff::default()).into_response();
        let mut tag = self.tag.lock().unwrap();
        if tag.is_some() {
            let next = format!("\"{}\"", asked.len());
            answer.headers_mut().insert("etag", next.parse().unwrap());
            *tag = Some(next);
        }
        answer
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

#[tokio::test]
async fn a_relay_gets_what_is_new_and_all_when_it_has_another_state() {
    let given = Given::default();
    *given.tag.lock().unwrap() = Some("none yet".into());
    let lab = Lab::with_gateway(given.router()).await;
    let mut state = state();
    let mut next = async || {
        let host = format!("r{}.prox.local", state.routes.len());
        state.routes.push(wire::gateway::Route {
            host: host.parse().unwrap(),
            instance: id(APPLIANCE),
            port: 80,
            policy: Default::default(),
        });
        lab.link
            .gateway_apply(&id(APPLIANCE), &state)
            .await
            .unwrap();
        given.asked()
    };
    assert_eq!(next().await, ["all 1"]);
    assert_eq!(next().await, ["\"1\" and 1"]);
    // Another controller gave it something, or it was started anew.
    *given.tag.lock().unwrap() = Some("other".into());
    assert_eq!(next().await, ["other", "all 3"]);
    assert_eq!(next().await, ["\"2\" and 1"]);
    // An older one knows no changes: it is not asked for any.
    *given.tag.lock().unwrap() = None;
    assert_eq!(next().await, ["other", "all 5"]);
    assert_eq!(next().await, ["all 6"]);
}
