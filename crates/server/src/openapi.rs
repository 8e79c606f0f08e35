//! The API's own description: `/api/v1/openapi.json`, browsable at `/api/docs`.

use axum::Router;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::{
    State, appliance, apps, audit_records, egress, entries, files, forward, instances, operations,
    orphans, sandboxes, sessions, system, zones,
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Proximity", description = "Machines you own as a private cloud of isolated apps. Errors are RFC 9457 problem details with a stable `code` and a `hint`."),
    paths(
        system::health, system::infrastructure, system::status,
        zones::list, zones::up, zones::down,
        apps::catalog, apps::recipe, apps::list, apps::deploy, apps::show, apps::delete,
        apps::start, apps::stop, apps::restart, apps::logs,
        instances::exec, egress::show, egress::set, sessions::session, sessions::pty, files::read, files::write, forward::forward,
        sandboxes::list, sandboxes::create, sandboxes::show, sandboxes::kill, sandboxes::extend,
        appliance::status, appliance::services, appliance::leases, appliance::records,
        appliance::vhosts, appliance::vhost, appliance::password,
        orphans::list, orphans::remove,
        appliance::authority, appliance::sites,
        entries::add_route, entries::put_route, entries::remove_route,
        entries::ports, entries::publish, entries::unpublish,
        entries::add_record, entries::remove_record,
        entries::reservations, entries::reserve, entries::release,
        operations::list, operations::show, operations::events,
        audit_records::list,
    ),
    security(("token" = [])),
    modifiers(&Token)
)]
struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The document as JSON.
pub fn document() -> serde_json::Value {
    serde_json::to_value(Document::openapi()).unwrap_or_default()
}

/// Open to anybody who reaches the port: it describes the API and holds no state.
pub(crate) fn routes() -> Router<State> {
    SwaggerUi::new("/api/docs")
        .url("/api/v1/openapi.json", Document::openapi())
        .config(Config::default().try_it_out_enabled(true))
        .into()
}
