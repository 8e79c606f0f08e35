//! `dns setup`: what to tell other machines so that they resolve a zone's names.
//!
//! Each system has its own way to ask one server for one domain only (*split DNS*). Prints lines to copy;
//! changes nothing, here or there.

use std::net::Ipv4Addr;

use api::gateway::Infrastructure;
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// Lines for one system.
#[derive(Debug, Serialize)]
struct Lines {
    system: &'static str,
    lines: Vec<String>,
}

/// Prints the lines for a zone.
pub fn run(facts: &Infrastructure, screen: &Screen) -> Result<Exit, Failure> {
    let Some(server) = facts.appliance_wan_ip else {
        return Err(
            Failure::local("the appliance has no address outside just now")
                .next("proximity infrastructure"),
        );
    };
    let sections = sections(facts, server);
    if screen.json() {
        screen.document(&sections)?;
        return Ok(Exit::OK);
    }
    for missing in missing(facts) {
        screen.warn(&missing);
    }
    let text: Vec<String> = sections
        .iter()
        .map(|s| format!("# {}\n{}", s.system, s.lines.join("\n")))
        .collect();
    screen.print(&text.join("\n\n"))?;
    Ok(Exit::OK)
}

/// What the lines need and the zone does not give.
fn missing(facts: &Infrastructure) -> Vec<String> {
    let zone = &facts.zone;
    let mut missing = Vec::new();
    if !facts.dns_outside {
        missing.push(format!(
            "note: the zone's DNS is not answered outside yet; in the configuration: zones.{zone}.wan_dns: true, then proximity up"
        ));
    }
    if facts.open_to.is_empty() {
        missing.push(format!(
            "note: addresses of the zone are reached by nobody outside, its pages are; for addresses too: zones.{zone}.open_to: [YOUR NETWORK]"
        ));
    }
    missing
}

fn sections(facts: &Infrastructure, server: Ipv4Addr) -> Vec<Lines> {
    let (domain, subnet) = (&facts.dns_domain, &facts.subnet);
    let section = |system, lines: Vec<String>| Lines { system, lines };
    let mut sections = vec![
        section(
            "Linux with systemd-resolved",
            vec![
                "mkdir -p /etc/systemd/resolved.conf.d".into(),
                format!(
                    "printf '[Resolve]\\nDNS={server}\\nDomains=~{domain}\\n' > /etc/systemd/resolved.conf.d/proximity.conf"
                ),
                "systemctl restart systemd-resolved".into(),
            ],
        ),
        section(
            "Linux with dnsmasq, or NetworkManager with dns=dnsmasq (/etc/NetworkManager/dnsmasq.d)",
            vec![format!(
                "echo server=/{domain}/{server} > /etc/dnsmasq.d/proximity.conf && systemctl restart dnsmasq"
            )],
        ),
        section(
            "macOS",
            vec![format!(
                "sudo mkdir -p /etc/resolver && echo nameserver {server} | sudo tee /etc/resolver/{domain}"
            )],
        ),
        section(
            "Windows, PowerShell as administrator",
            vec![format!(
                "Add-DnsClientNrptRule -Namespace '.{domain}' -NameServers '{server}'"
            )],
        ),
    ];
    if !facts.open_to.is_empty() {
        let mut words = subnet.split('/');
        let network = words.next().unwrap_or_default();
        sections.extend([
            section(
                "the way to the zone's addresses, Linux",
                vec![format!("ip route add {subnet} via {server}")],
            ),
            section(
                "the way to the zone's addresses, macOS",
                vec![format!("sudo route -n add -net {subnet} {server}")],
            ),
            section(
                "the way to the zone's addresses, Windows",
                vec![format!(
                    "route -p add {network} mask 255.255.255.0 {server}"
                )],
            ),
        ]);
    }
    sections
}
