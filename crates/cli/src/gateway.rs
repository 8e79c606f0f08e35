//! `lease list`, `dns list` and `route list`: what the gateways of the zones serve just now.

use api::gateway::{DnsRecord, LeaseView, RouteView};
use client::Client;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;

/// Lists DHCP leases.
pub async fn leases(client: &Client, screen: &Screen) -> Result<Exit, Failure> {
    screen.list(&client.leases().await?, "no leases", leases_text)
}

/// Lists names.
pub async fn dns(client: &Client, screen: &Screen) -> Result<Exit, Failure> {
    screen.list(&client.dns_records().await?, "no names", dns_text)
}

/// Lists routes.
pub async fn routes(client: &Client, screen: &Screen) -> Result<Exit, Failure> {
    screen.list(&client.routes().await?, "no routes", routes_text)
}

fn leases_text(leases: &[LeaseView]) -> String {
    let mut table = Table::new(&["IP", "MAC", "INSTANCE", "NAME", "CLIENT", "EXPIRES"]);
    for lease in leases {
        let instance = lease.instance.as_ref().map(ToString::to_string);
        table.row([
            lease.ip.to_string(),
            lease.mac.to_string(),
            instance.unwrap_or_default(),
            lease
                .name
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            lease.client_name.clone().unwrap_or_default(),
            lease
                .expires_at
                .clone()
                .unwrap_or_else(|| "never".to_owned()),
        ]);
    }
    table.text()
}

fn dns_text(records: &[DnsRecord]) -> String {
    let mut table = Table::new(&["NAME", "TYPE", "IP"]);
    for record in records {
        table.row([
            record.name.to_string(),
            record.kind.clone(),
            record.ip.to_string(),
        ]);
    }
    table.text()
}

/// Routes as a table.
pub fn routes_text(routes: &[RouteView]) -> String {
    let mut table = Table::new(&[
        "HOST",
        "INSTANCE",
        "PORT",
        "HEALTH",
        "CONNECTIONS",
        "ASKS FOR",
    ]);
    for route in routes {
        table.row([
            route.host.to_string(),
            route.instance.to_string(),
            route.port.to_string(),
            route.health.clone(),
            route.connections.to_string(),
            asks_for(route),
        ]);
    }
    table.text()
}

/// What a request must bring, in a few words.
fn asks_for(route: &RouteView) -> String {
    let https = route.redirect_https.then(|| "https".to_owned());
    let body = route.max_body_bytes.map(|b| format!("body <= {b} B"));
    let time = route.timeout_ms.map(|t| format!("answer in {t} ms"));
    let words = [https, route.auth.clone(), body, time];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
