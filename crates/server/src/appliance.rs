//! `/appliance`: what the gateway of a zone has, read from it just now.

use std::collections::BTreeMap;

use api::Problem;
use api::gateway::{
    AppliancePassword, ApplianceStatus, Authority, DnsRecord, LeaseView, RouteView, SiteView,
};
use axum::extract::{Path, State as Extract};
use axum::routing::{get, put};
use axum::{Extension, Json, Router};
use http::StatusCode;

use crate::State;
use crate::answer::{Body, Failed, Params};
use crate::auth::Actor;
use crate::system::OfZone;

pub(crate) fn routes() -> Router<State> {
    Router::new()
        .route("/appliance/status", get(status))
        .route("/appliance/services", get(services))
        .route("/appliance/dhcp/leases", get(leases))
        .route("/appliance/ca", get(authority))
        .route("/appliance/sites", get(sites))
        .route("/appliance/password", put(password))
}

/// The appliance and its services.
#[utoipa::path(get, path = "/api/v1/appliance/status", tag = "appliance", params(OfZone), responses(
    (status = 200, body = ApplianceStatus), (status = 409, body = Problem)))]
pub(crate) async fn status(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<ApplianceStatus>, Failed> {
    Ok(Json(
        state
            .controller
            .appliance_status(of.zone.as_deref())
            .await?,
    ))
}

/// State by service.
#[utoipa::path(get, path = "/api/v1/appliance/services", tag = "appliance", params(OfZone), responses(
    (status = 200, body = BTreeMap<String, String>), (status = 409, body = Problem)))]
pub(crate) async fn services(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<BTreeMap<String, String>>, Failed> {
    let status = state
        .controller
        .appliance_status(of.zone.as_deref())
        .await?;
    Ok(Json(status.services))
}

/// DHCP leases.
#[utoipa::path(get, path = "/api/v1/appliance/dhcp/leases", tag = "appliance", params(OfZone), responses(
    (status = 200, body = [LeaseView]), (status = 409, body = Problem)))]
pub(crate) async fn leases(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<Vec<LeaseView>>, Failed> {
    Ok(Json(state.controller.leases(of.zone.as_deref()).await?))
}

/// Names that the zone's DNS answers.
#[utoipa::path(get, path = "/api/v1/appliance/dns/records", tag = "appliance", params(OfZone), responses(
    (status = 200, body = [DnsRecord]), (status = 409, body = Problem)))]
pub(crate) async fn records(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<Vec<DnsRecord>>, Failed> {
    Ok(Json(
        state.controller.dns_records(of.zone.as_deref()).await?,
    ))
}

/// Routes of the reverse proxy with their health.
#[utoipa::path(get, path = "/api/v1/appliance/vhosts", tag = "appliance", params(OfZone), responses(
    (status = 200, body = [RouteView]), (status = 409, body = Problem)))]
pub(crate) async fn vhosts(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<Vec<RouteView>>, Failed> {
    Ok(Json(state.controller.routes(of.zone.as_deref()).await?))
}

/// One route with its health.
#[utoipa::path(get, path = "/api/v1/appliance/vhosts/{host}", tag = "appliance", params(("host" = String, Path), OfZone), responses(
    (status = 200, body = RouteView), (status = 404, body = Problem)))]
pub(crate) async fn vhost(
    Extract(state): Extract<State>,
    Path(host): Path<String>,
    Params(of): Params<OfZone>,
) -> Result<Json<RouteView>, Failed> {
    Ok(Json(
        state.controller.route(of.zone.as_deref(), &host).await?,
    ))
}

/// The certificate of the zone's own authority, to trust on machines that open its pages.
#[utoipa::path(get, path = "/api/v1/appliance/ca", tag = "appliance", params(OfZone), responses(
    (status = 200, body = Authority), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn authority(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<Authority>, Failed> {
    Ok(Json(state.controller.authority(of.zone.as_deref()).await?))
}

/// The operators' own sites of the reverse proxy.
#[utoipa::path(get, path = "/api/v1/appliance/sites", tag = "appliance", params(OfZone), responses(
    (status = 200, body = [SiteView]), (status = 409, body = Problem)))]
pub(crate) async fn sites(
    Extract(state): Extract<State>,
    Params(of): Params<OfZone>,
) -> Result<Json<Vec<SiteView>>, Failed> {
    Ok(Json(state.controller.sites(of.zone.as_deref()).await?))
}

/// Sets the password of the management page's `root`; until then nobody can log in.
#[utoipa::path(put, path = "/api/v1/appliance/password", tag = "appliance", params(OfZone), request_body = AppliancePassword, responses(
    (status = 204), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn password(
    Extract(state): Extract<State>,
    Extension(actor): Extension<Actor>,
    Params(of): Params<OfZone>,
    Body(request): Body<AppliancePassword>,
) -> Result<StatusCode, Failed> {
    let zone = of.zone.as_deref();
    let password = &request.password;
    state
        .controller
        .set_appliance_password(zone, password)
        .await?;
    let zone = state.controller.zone_name(zone)?;
    state.passwords.hide(&state.audit, zone, password, &actor);
    Ok(StatusCode::NO_CONTENT)
}
