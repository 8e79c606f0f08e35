//! What people add to a zone's gateway: routes, published ports, names, reserved addresses.

use api::entry::{
    PortRequest, PortView, Protocol, RecordRequest, ReservationRequest, ReservationView,
    RouteRequest, RouteSettings,
};
use api::gateway::RouteView;
use api::{HostName, MacAddr, Problem};
use axum::extract::{Path, State as Extract};
use axum::routing::{delete, get};
use axum::{Json, Router};
use http::{Method, StatusCode};

use crate::State;
use crate::answer::{Body, Failed, Params};
use crate::appliance;
use crate::system::OfZone;

/// Calls of this file for the audit log: method, path, name of the action.
pub(crate) const ACTIONS: &[(Method, &str, &str)] = &[
    (Method::POST, "/api/v1/appliance/vhosts", "route.add"),
    (Method::PUT, "/api/v1/appliance/vhosts/{host}", "route.set"),
    (
        Method::DELETE,
        "/api/v1/appliance/vhosts/{host}",
        "route.remove",
    ),
    (Method::POST, "/api/v1/appliance/ports", "port.publish"),
    (
        Method::DELETE,
        "/api/v1/appliance/ports/{protocol}/{listen}",
        "port.unpublish",
    ),
    (Method::POST, "/api/v1/appliance/dns/records", "dns.add"),
    (
        Method::DELETE,
        "/api/v1/appliance/dns/records/{name}",
        "dns.remove",
    ),
    (
        Method::POST,
        "/api/v1/appliance/dhcp/reservations",
        "lease.reserve",
    ),
    (
        Method::DELETE,
        "/api/v1/appliance/dhcp/reservations/{mac}",
        "lease.release",
    ),
];

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/appliance/vhosts", get(appliance::vhosts).post(add_route))
        .route(
            "/appliance/vhosts/{host}",
            get(appliance::vhost).put(put_route).delete(remove_route),
        )
        .route("/appliance/ports", get(ports).post(publish))
        .route("/appliance/ports/{protocol}/{listen}", delete(unpublish))
        .route(
            "/appliance/dns/records",
            get(appliance::records).post(add_record),
        )
        .route("/appliance/dns/records/{name}", delete(remove_record))
        .route(
            "/appliance/dhcp/reservations",
            get(reservations).post(reserve),
        )
        .route("/appliance/dhcp/reservations/{mac}", delete(release))
}

/// What the audit log shows of a body: names and numbers, never what opens a route.
pub(crate) fn told(action: &str, body: &[u8]) -> Option<(String, serde_json::Value)> {
    let settings = |s: &RouteSettings| {
        serde_json::json!({
            "instance": s.instance,
            "port": s.port,
            "redirect_https": s.redirect_https,
            "auth": s.auth.is_some(),
            "max_body_bytes": s.max_body_bytes,
            "timeout_ms": s.timeout_ms,
        })
    };
    match action {
        "route.add" => {
            let request: RouteRequest = serde_json::from_slice(body).ok()?;
            Some((request.host.to_string(), settings(&request.settings)))
        }
        "route.set" => {
            let request: RouteSettings = serde_json::from_slice(body).ok()?;
            Some((String::new(), settings(&request)))
        }
        "port.publish" => {
            let request: PortRequest = serde_json::from_slice(body).ok()?;
            let listen = request.listen.unwrap_or(request.port);
            let target = format!("{}/{listen}", request.protocol);
            Some((target, serde_json::json!(request)))
        }
        "dns.add" => {
            let request: RecordRequest = serde_json::from_slice(body).ok()?;
            Some((request.name.to_string(), serde_json::json!(request)))
        }
        "lease.reserve" => {
            let request: ReservationRequest = serde_json::from_slice(body).ok()?;
            Some((request.mac.to_string(), serde_json::json!(request)))
        }
        _ => None,
    }
}

fn made(new: bool) -> StatusCode {
    match new {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    }
}

/// Adds a route. The same again changes nothing; other settings are refused: use `PUT`.
#[utoipa::path(post, path = "/api/v1/appliance/vhosts", tag = "appliance", params(OfZone), request_body = RouteRequest, responses(
    (status = 201, body = RouteView), (status = 200, body = RouteView, description = "it was there"),
    (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn add_route(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
    Body(request): Body<RouteRequest>,
) -> Result<(StatusCode, Json<RouteView>), Failed> {
    let put =
        state
            .controller
            .put_route(of.zone.as_deref(), &request.host, &request.settings, false);
    let (view, new) = put.await?;
    Ok((made(new), Json(view)))
}

/// Adds a route or gives it other settings.
#[utoipa::path(put, path = "/api/v1/appliance/vhosts/{host}", tag = "appliance", params(("host" = String, Path), OfZone),
    request_body = RouteSettings, responses(
    (status = 201, body = RouteView), (status = 200, body = RouteView),
    (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn put_route(
    Extract(state): Extract<State>,
    Path(host): Path<String>,
    Params(of): Params<OfZone>,
    Body(settings): Body<RouteSettings>,
) -> Result<(StatusCode, Json<RouteView>), Failed> {
    let host: HostName = host.parse().map_err(engine::Error::from)?;
    let put = state
        .controller
        .put_route(of.zone.as_deref(), &host, &settings, true);
    let (view, new) = put.await?;
    Ok((made(new), Json(view)))
}

/// Removes an added route.
#[utoipa::path(delete, path = "/api/v1/appliance/vhosts/{host}", tag = "appliance", params(("host" = String, Path), OfZone), responses(
    (status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn remove_route(
    Extract(state): Extract<State>,
    Path(host): Path<String>,
    Params(of): Params<OfZone>,
) -> Result<StatusCode, Failed> {
    let zone = of.zone.as_deref();
    state.controller.remove_route(zone, &host).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Published ports.
#[utoipa::path(get, path = "/api/v1/appliance/ports", tag = "appliance", params(OfZone), responses(
    (status = 200, body = [PortView]), (status = 409, body = Problem)))]
pub(crate) async fn ports(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<Vec<PortView>>, Failed> {
    let zone = of.zone.as_deref();
    Ok(Json(state.controller.published_ports(zone).await?))
}

/// Publishes a port of an app on the zone's outside.
#[utoipa::path(post, path = "/api/v1/appliance/ports", tag = "appliance", params(OfZone), request_body = PortRequest, responses(
    (status = 201, body = PortView), (status = 200, body = PortView, description = "it was there"),
    (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn publish(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
    Body(request): Body<PortRequest>,
) -> Result<(StatusCode, Json<PortView>), Failed> {
    let zone = of.zone.as_deref();
    let (view, new) = state.controller.publish_port(zone, &request).await?;
    Ok((made(new), Json(view)))
}

/// Takes a published port back.
#[utoipa::path(delete, path = "/api/v1/appliance/ports/{protocol}/{listen}", tag = "appliance",
    params(("protocol" = Protocol, Path), ("listen" = u16, Path), OfZone), responses((status = 204), (status = 404, body = Problem)))]
pub(crate) async fn unpublish(
    Extract(state): Extract<State>,
    Path((protocol, listen)): Path<(String, String)>,
    Params(of): Params<OfZone>,
) -> Result<StatusCode, Failed> {
    let zone = of.zone.as_deref();
    let protocol = match protocol.as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    };
    let (Some(protocol), Ok(listen)) = (protocol, listen.parse::<u16>()) else {
        let what = "the path names no port: /appliance/ports/tcp/15432";
        return Err(Problem::new(404, "unknown_entry", what)
            .hint("what there is: proximity port list")
            .into());
    };
    state
        .controller
        .unpublish_port(zone, protocol, listen)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Adds a name to the zone's DNS.
#[utoipa::path(post, path = "/api/v1/appliance/dns/records", tag = "appliance", params(OfZone), request_body = RecordRequest, responses(
    (status = 201), (status = 200, description = "it was there"), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn add_record(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
    Body(request): Body<RecordRequest>,
) -> Result<StatusCode, Failed> {
    let zone = of.zone.as_deref();
    Ok(made(state.controller.add_record(zone, &request).await?))
}

/// Removes an added name.
#[utoipa::path(delete, path = "/api/v1/appliance/dns/records/{name}", tag = "appliance", params(("name" = String, Path), OfZone), responses(
    (status = 204), (status = 404, body = Problem)))]
pub(crate) async fn remove_record(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Params(of): Params<OfZone>,
) -> Result<StatusCode, Failed> {
    let zone = of.zone.as_deref();
    state.controller.remove_record(zone, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reserved addresses of machines that are no instances.
#[utoipa::path(get, path = "/api/v1/appliance/dhcp/reservations", tag = "appliance", params(OfZone), responses(
    (status = 200, body = [ReservationView]), (status = 409, body = Problem)))]
pub(crate) async fn reservations(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<Vec<ReservationView>>, Failed> {
    let zone = of.zone.as_deref();
    Ok(Json(state.controller.reservations(zone).await?))
}

/// Keeps an address and a name for a machine that is no instance.
#[utoipa::path(post, path = "/api/v1/appliance/dhcp/reservations", tag = "appliance", params(OfZone), request_body = ReservationRequest, responses(
    (status = 201, body = ReservationView), (status = 200, body = ReservationView, description = "it was there"),
    (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn reserve(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
    Body(request): Body<ReservationRequest>,
) -> Result<(StatusCode, Json<ReservationView>), Failed> {
    let zone = of.zone.as_deref();
    let (view, new) = state.controller.reserve(zone, &request).await?;
    Ok((made(new), Json(view)))
}

/// Gives a reserved address back.
#[utoipa::path(delete, path = "/api/v1/appliance/dhcp/reservations/{mac}", tag = "appliance", params(("mac" = String, Path), OfZone), responses(
    (status = 204), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn release(
    Extract(state): Extract<State>,
    Path(mac): Path<String>,
    Params(of): Params<OfZone>,
) -> Result<StatusCode, Failed> {
    let mac: MacAddr = mac.parse().map_err(engine::Error::from)?;
    state.controller.release(of.zone.as_deref(), mac).await?;
    Ok(StatusCode::NO_CONTENT)
}
