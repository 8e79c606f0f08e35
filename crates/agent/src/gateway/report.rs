//! What holds on the appliance right now: everything is read when asked, nothing remembered.
//!
//! A source that cannot be read makes its part of the report empty or `unknown`, never the whole
//! report fail: the report is what people look at when something is broken.

use std::net::Ipv4Addr;
use std::time::Duration;

use api::{HostName, InterfaceName};
use serde::Deserialize;
use wire::family::Family;
use wire::gateway::edge::EdgeReport;
use wire::gateway::{GatewayReport, NameRecord, RouteReport, ServiceReport};

use super::paths::Paths;
use super::system::{Command, System};
use super::{Gateway, authority, claims, hosts, leases, nftables};
use crate::VERSION;

impl<S: System> Gateway<S> {
    /// The report of `GET /gateway`.
    pub async fn report(&self) -> GatewayReport {
        let (report, routes) = tokio::join!(self.look(), self.routes.report());
        GatewayReport {
            names: names(&self.paths),
            routes,
            ..report
        }
    }

    /// One open route.
    pub async fn route(&self, host: &HostName) -> Option<RouteReport> {
        self.routes.report_of(host).await
    }

    /// The report without names and routes.
    pub async fn look(&self) -> GatewayReport {
        let (mut services, nftables, addresses, refused) = tokio::join!(
            services(&self.system, self.family),
            nftables_state(&self.system),
            addresses(&self.system),
            self.refused(),
        );
        services.push(row("nftables", nftables));
        services.push(row("relay", "active"));
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let network = self.accepted.borrow().as_ref().map(|s| s.network.clone());
        let address_of = |interface: &str| {
            let found = addresses.iter().find(|(name, _)| name == interface);
            found.map(|(_, address)| *address)
        };
        let domain = network.as_ref().map(|n| &n.domain);
        let authority = domain.map(|d| authority::certificate(&self.paths, d));
        let edge = EdgeReport {
            authority: told(
                authority
                    .transpose()
                    .map(|a| a.flatten().into_iter().collect()),
            )
            .into_iter()
            .next(),
            sites: told(self.sites.report(&self.paths)),
        };
        GatewayReport {
            agent_version: VERSION.to_owned(),
            wan_address: network.as_ref().and_then(|n| address_of(n.wan.as_str())),
            lan_address: network.as_ref().and_then(|n| address_of(n.lan.as_str())),
            services,
            leases: told(leases::read(&self.paths))
                .into_iter()
                .map(|line| line.lease)
                .collect(),
            names: Vec::new(),
            routes: Vec::new(),
            refused,
            edge,
        }
    }
}

/// Names of instances, what people added, and names of leases.
fn names(paths: &Paths) -> Vec<NameRecord> {
    let mut names = told(hosts::records(paths));
    names.extend(told(claims::records(paths)));
    names
}

/// The address of an interface, if it has one.
pub(super) async fn address(system: &impl System, interface: &InterfaceName) -> Option<Ipv4Addr> {
    let all = addresses(system).await;
    let found = all.into_iter().find(|(name, _)| name == interface.as_str());
    found.map(|(_, address)| address)
}

fn row(name: &str, state: &str) -> ServiceReport {
    ServiceReport {
        name: name.to_owned(),
        state: state.to_owned(),
    }
}

/// An empty part and a log line for what could not be read.
fn told<T>(read: Result<Vec<T>, impl std::fmt::Display>) -> Vec<T> {
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, "a part of the report could not be read");
        Vec::new()
    })
}

async fn services(system: &impl System, family: &dyn Family) -> Vec<ServiceReport> {
    let states = Command {
        argv: family.states(),
        ..Command::new(&[], Duration::from_secs(5))
    };
    let text = system.run(states).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the states of the services could not be read");
        String::new()
    });
    let services = family.reported().iter();
    services
        .map(|s| row(s.name(), family.state(&text, *s).unwrap_or("unknown")))
        .collect()
}

async fn nftables_state(system: &impl System) -> &'static str {
    match nftables::loaded(system).await {
        Ok(Some(_)) => "configured",
        Ok(None) => "missing",
        Err(error) => {
            tracing::warn!(%error, "the firewall could not be read");
            "unknown"
        }
    }
}

/// First global IPv4 address of each interface.
async fn addresses(system: &impl System) -> Vec<(String, Ipv4Addr)> {
    let list = Command::new(&["ip", "-j", "-4", "addr", "show"], Duration::from_secs(5));
    match system.run(list).await {
        Ok(json) => parse_addresses(&json),
        Err(error) => {
            tracing::warn!(%error, "the addresses of the interfaces could not be read");
            Vec::new()
        }
    }
}

fn parse_addresses(json: &str) -> Vec<(String, Ipv4Addr)> {
    #[derive(Deserialize)]
    struct Interface {
        #[serde(default)]
        ifname: String,
        #[serde(default)]
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: Option<Ipv4Addr>,
        scope: Option<String>,
    }
    let interfaces: Vec<Interface> = serde_json::from_str(json).unwrap_or_default();
    interfaces
        .into_iter()
        .filter_map(|interface| {
            let global = interface
                .addr_info
                .iter()
                .find(|a| a.scope.as_deref() == Some("global"));
            Some((interface.ifname, global?.local?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_iproute2_prints_them() {
        let json = r#"[{},{"ifindex":1,"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8,"scope":"host"}]},
            {"ifname":"eth0","addr_info":[{"family":"inet","local":"192.0.2.7","prefixlen":24,"scope":"global","dynamic":true}]}]"#;
        assert_eq!(
            parse_addresses(json),
            [("eth0".to_owned(), [192, 0, 2, 7].into())]
        );
        assert!(parse_addresses("nonsense").is_empty());
    }
}
