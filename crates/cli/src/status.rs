//! `status` and `infrastructure`.

use std::fmt::Write as _;

use api::gateway::Infrastructure;
use api::status::{Drift, Repair, Status};
use client::Client;

use crate::arguments::InfrastructureArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;
use crate::screen::Screen;
use crate::table::{Facts, Table};
use crate::zone;

/// Shows all of it at a glance.
pub async fn status(client: &Client, screen: &Screen) -> Result<Exit, Failure> {
    let status = client.status().await?;
    let at = client.endpoint().to_string();
    screen.result(&status, |s| status_text(s, &at))
}

/// Shows the facts of one zone.
pub async fn infrastructure(
    client: &Client,
    args: &InfrastructureArgs,
    screen: &Screen,
) -> Result<Exit, Failure> {
    let facts = client.infrastructure(args.zone.as_ref()).await?;
    screen.result(&facts, infrastructure_text)
}

fn status_text(status: &Status, at: &str) -> String {
    let instances = if status.instances.is_empty() {
        "none".to_owned()
    } else {
        let counts = status
            .instances
            .iter()
            .map(|(state, n)| format!("{n} {state}"));
        counts.collect::<Vec<_>>().join(", ")
    };
    let mut text = Facts::new()
        .fact("controller", format!("{} at {at}", status.version))
        .fact("instances", instances)
        .facts("operations", status.operations.iter().cloned())
        .text(0);
    if status.zones.is_empty() {
        text.push_str("\n\nno zones are configured");
    } else {
        let _ = write!(text, "\n\n{}", zone::table(&status.zones));
    }
    if !status.drift.is_empty() {
        let shown: Vec<String> = status.drift.iter().map(drift_text).collect();
        let _ = write!(text, "\n\ndrift:\n{}", shown.join("\n"));
    }
    if !status.orphans.is_empty() {
        let shown = status.orphans.iter().map(|o| {
            let name = o.name.as_deref().unwrap_or("without a name");
            guest_text::line(&format!("{} {name}, {}", o.id, o.state))
        });
        let _ = write!(
            text,
            "\n\norphans, left alone until you remove them (proximity orphan remove ID):\n  {}",
            shown.collect::<Vec<_>>().join("\n  ")
        );
    }
    text
}

/// What differs, a line each, then what is done about it.
fn drift_text(drift: &Drift) -> String {
    let mut lines = vec![format!("  {} {}", drift.kind, drift.name)];
    let line = |text: &str| format!("    {}", guest_text::line(text));
    lines.extend(drift.differs.iter().map(|d| line(d)));
    lines.extend(drift.repair.as_ref().map(|r| line(&repair_text(r))));
    let next = drift.next.as_ref().filter(|_| drift.repair.is_none());
    lines.extend(next.map(|n| line(&format!("next: {n}"))));
    lines.join("\n")
}

fn repair_text(repair: &Repair) -> String {
    let now = match (&repair.doing, repair.next_try_in_ms) {
        (Some(doing), _) => format!("now: {doing}"),
        (None, Some(ms)) => format!("next look in {} s", ms.div_ceil(1000)),
        (None, None) => "next look: now".to_owned(),
    };
    match (repair.failed_attempts, &repair.last_cause) {
        (0, _) | (_, None) => now,
        (n, Some(cause)) => format!("{now}; {n} failed, the last: {cause}"),
    }
}

fn infrastructure_text(facts: &Infrastructure) -> String {
    let vmid = facts.appliance_vmid.map(|id| format!(" (vmid {id})"));
    let wan = facts.appliance_wan_ip.map(|ip| ip.to_string());
    let mut text = Facts::new()
        .fact("zone", &facts.zone)
        .fact("available", if facts.available { "yes" } else { "no" })
        .fact("node", &facts.node)
        .fact("bridge", &facts.bridge_name)
        .fact("subnet", &facts.subnet)
        .fact("gateway", facts.gateway_ip)
        .fact("domain", &facts.dns_domain)
        .fact(
            "appliance",
            format!(
                "{}{} {}",
                facts.appliance_name,
                vmid.unwrap_or_default(),
                facts.appliance_state
            ),
        )
        .fact("outside", wan.unwrap_or_default())
        .fact("apps", facts.connected_apps)
        .facts("problems", facts.problems.iter().cloned())
        .text(0);
    if !facts.services.is_empty() {
        let mut table = Table::new(&["SERVICE", "STATE"]);
        for (service, state) in &facts.services {
            table.row([service.clone(), state.clone()]);
        }
        let _ = write!(text, "\n\n{}", table.text());
    }
    text
}
