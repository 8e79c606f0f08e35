//! What people look at: read when asked, from the store and from the appliances, never remembered.

use std::collections::{BTreeMap, BTreeSet};

use api::app::{App, AppStatus, RecipeSummary};
use api::gateway::{
    ApplianceStatus, Authority, DnsRecord, Infrastructure, LeaseView, RouteView, SiteView,
    ZoneStatus,
};
use api::operation::Operation;
use api::{HostName, InstanceName, OperationId};
use wire::gateway::edge::SiteReport;
use wire::gateway::{GatewayReport, Route, RouteReport};

use super::Controller;
use super::drift::sick_parts;
use crate::catalog::Recipe;
use crate::error::Error;
use crate::gateway;
use crate::gateway::entry::{Entry, RouteEntry, route_key};
use crate::instance::InstanceRecord;
use crate::ports::GuestState;
use crate::zone::{ZoneDesired, ZoneRecord, ZoneSpec};

/// Services by the names the API shows.
fn service_map(report: Option<&GatewayReport>) -> BTreeMap<String, String> {
    let names = ["dnsmasq", "iptables", "caddy", "cockpit", "relay"];
    let unknown = names
        .iter()
        .map(|n| ((*n).to_owned(), "unknown".to_owned()));
    let known = report.into_iter().flat_map(|r| {
        r.services.iter().map(|s| {
            let name = if s.name == "nftables" {
                "iptables"
            } else {
                &s.name
            };
            (name.to_owned(), s.state.clone())
        })
    });
    unknown.chain(known).collect()
}

impl Controller {
    /// All apps, by name.
    pub async fn apps(&self) -> Result<Vec<App>, Error> {
        let zones = self.ports().store.zones().await?;
        let instances = self.ports().store.instances().await?;
        Ok(instances
            .iter()
            .filter_map(|i| {
                let zone = zones.iter().find(|z| z.spec.name == i.zone)?;
                i.app(&zone.spec)
            })
            .collect())
    }

    /// One app.
    pub async fn app(&self, name: &str) -> Result<App, Error> {
        let record = self.instance_named(name).await?;
        let zone = self.ports().store.zone(&record.zone).await?;
        let zone = zone.ok_or_else(|| Error::UnknownZone(record.zone.to_string()))?;
        record
            .app(&zone.spec)
            .ok_or_else(|| Error::UnknownInstance(name.chars().take(80).collect()))
    }

    /// The catalog as the API shows it.
    pub async fn recipes(&self) -> Vec<RecipeSummary> {
        let mut out = Vec::new();
        for recipe in self.inner.catalog.iter() {
            out.push(self.summary(recipe).await);
        }
        out
    }

    /// One recipe as the API shows it.
    pub async fn recipe(&self, id: &str) -> Result<RecipeSummary, Error> {
        let recipe = self
            .inner
            .catalog
            .get(id)
            .ok_or_else(|| Error::UnknownRecipe {
                id: id.chars().take(80).collect(),
                nearest: self.inner.catalog.nearest(id).cloned(),
            })?;
        Ok(self.summary(recipe).await)
    }

    async fn summary(&self, recipe: &Recipe) -> RecipeSummary {
        let digest = recipe.image.digest();
        RecipeSummary {
            id: recipe.id.clone(),
            title: recipe.title.clone(),
            description: recipe.description.clone(),
            port: recipe.port,
            limits: recipe.limits,
            parameters: recipe
                .parameters
                .iter()
                .map(|p| p.summary.clone())
                .collect(),
            image_cached: self.ports().images.cached(&digest).await,
            image: digest,
        }
    }

    pub(super) async fn read_gateway(&self, zone: &ZoneRecord) -> Result<GatewayReport, Error> {
        Ok(self.ports().gateway.read(&zone.appliance).await?)
    }

    async fn zone_up_record(&self, name: Option<&str>) -> Result<ZoneRecord, Error> {
        let spec = self.configured_zone(name)?;
        let record = self.ports().store.zone(&spec.name).await?;
        record.ok_or_else(|| Error::ZoneDown(spec.name.clone()))
    }

    /// The facts of a zone. A zone that is down, or whose appliance does not answer, is an answer too.
    pub async fn infrastructure(&self, name: Option<&str>) -> Result<Infrastructure, Error> {
        let configured = self.configured_zone(name)?;
        let record = self.ports().store.zone(&configured.name).await?;
        let spec = record.as_ref().map_or(configured, |r| &r.spec).clone();
        let mut problems = Vec::new();
        let mut report = None;
        let mut state = GuestState::Absent;
        match &record {
            None => problems.push("the zone is down; bring it up: proximity up".into()),
            Some(record) => {
                let network = self.ports().network.observe(&spec.node_network()).await?;
                problems.extend(network.drift);
                state = self.ports().backend.observe(&record.appliance).await?.state;
                if state == GuestState::Running {
                    match self.read_gateway(record).await {
                        Ok(r) => {
                            problems.extend(sick_parts(&r, &spec));
                            report = Some(r);
                        }
                        Err(e) => problems.push(format!("the relay does not answer: {e}")),
                    }
                } else {
                    problems.push(format!("the appliance is {}", state.as_str()));
                }
            }
        }
        let running = self.ports().store.instances().await?;
        let running = running
            .iter()
            .filter(|i| i.zone == spec.name && i.status == AppStatus::Running)
            .count();
        Ok(Infrastructure {
            available: problems.is_empty(),
            zone: spec.name.clone(),
            node: spec.node.clone(),
            bridge_name: spec.bridge.clone(),
            subnet: spec.subnet.to_string(),
            gateway_ip: spec.gateway(),
            appliance_name: spec.appliance.name.to_string(),
            appliance_vmid: None,
            appliance_state: state.as_str().into(),
            appliance_wan_ip: report.as_ref().and_then(|r| r.wan_address),
            dns_domain: spec.domain.to_string(),
            dns_outside: spec.outside.dns,
            open_to: spec
                .outside
                .open_to
                .iter()
                .map(ToString::to_string)
                .collect(),
            connected_apps: u32::try_from(running).unwrap_or(u32::MAX),
            services: service_map(report.as_ref()),
            problems,
        })
    }

    /// The appliance of a zone.
    pub async fn appliance_status(&self, name: Option<&str>) -> Result<ApplianceStatus, Error> {
        let zone = self.zone_up_record(name).await?;
        let state = self.ports().backend.observe(&zone.appliance).await?.state;
        let report = self.read_gateway(&zone).await.ok();
        let wan_ip = report.as_ref().and_then(|r| r.wan_address);
        Ok(ApplianceStatus {
            name: zone.spec.appliance.name.to_string(),
            state: state.as_str().into(),
            wan_ip,
            lan_ip: zone.spec.gateway(),
            agent_version: report.as_ref().map(|r| r.agent_version.clone()),
            management_url: wan_ip.map(|ip| format!("https://{ip}:9090/")),
            services: service_map(report.as_ref()),
        })
    }

    /// Leases as dnsmasq has them now.
    pub async fn leases(&self, name: Option<&str>) -> Result<Vec<LeaseView>, Error> {
        let zone = self.zone_up_record(name).await?;
        let report = self.read_gateway(&zone).await?;
        let instances = self.ports().store.instances().await?;
        let expires = |s: u64| {
            let at = jiff::Timestamp::from_second(i64::try_from(s).ok()?).ok()?;
            (s != 0).then(|| at.to_string())
        };
        let below = format!(".dyn.{}", zone.spec.domain);
        let named = |ip| {
            let mut names = report.names.iter();
            let found = names.find(|n| n.address == ip && n.name.as_str().ends_with(&below));
            found.map(|n| n.name.clone())
        };
        Ok(report
            .leases
            .iter()
            .cloned()
            .map(|l| LeaseView {
                name: named(l.address),
                instance: instances
                    .iter()
                    .find(|i| i.zone == zone.spec.name && i.mac(&zone.spec) == l.mac)
                    .map(|i| i.name.clone()),
                ip: l.address,
                mac: l.mac,
                client_name: l.client_name,
                expires_at: expires(l.expires_s),
            })
            .collect())
    }

    /// Names that the zone's DNS answers now.
    pub async fn dns_records(&self, name: Option<&str>) -> Result<Vec<DnsRecord>, Error> {
        let zone = self.zone_up_record(name).await?;
        let report = self.read_gateway(&zone).await?;
        let record = |n: wire::gateway::NameRecord| DnsRecord {
            name: n.name,
            kind: "A".into(),
            ip: n.address,
        };
        Ok(report.names.into_iter().map(record).collect())
    }

    /// Routes that should be open, each with what the appliance says of it now.
    pub async fn routes(&self, name: Option<&str>) -> Result<Vec<RouteView>, Error> {
        let zone = self.zone_up_record(name).await?;
        let report = self.read_gateway(&zone).await?;
        let open = report.routes.into_iter().map(|r| (r.host.clone(), r));
        let open: BTreeMap<_, _> = open.collect();
        let routes = self.wanted_routes(&zone).await?.into_values();
        Ok(routes.map(|r| r.view(open.get(&r.route.host))).collect())
    }

    /// One route.
    pub async fn route(&self, zone: Option<&str>, host: &str) -> Result<RouteView, Error> {
        let host: HostName = host.parse()?;
        let zone = self.zone_up_record(zone).await?;
        let wanted = self.wanted_route(&zone, &host).await?;
        let wanted = wanted.ok_or_else(|| Error::UnknownRoute(host.clone()))?;
        let open = self.ports().gateway.route(&zone.appliance, &host).await?;
        Ok(wanted.view(open.as_ref()))
    }

    /// What people added for a host name.
    pub(super) async fn added_route(
        &self,
        zone: &ZoneRecord,
        host: &HostName,
    ) -> Result<Option<RouteEntry>, Error> {
        let store = &self.ports().store;
        let entry = store.entry(&zone.spec.name, &route_key(host)).await?;
        Ok(entry.and_then(|entry| match entry {
            Entry::Route(route) => Some(route),
            _ => None,
        }))
    }

    /// As [`Controller::wanted_routes`], one of them: what it costs does not grow with their number.
    async fn wanted_route(
        &self,
        zone: &ZoneRecord,
        host: &HostName,
    ) -> Result<Option<WantedRoute>, Error> {
        let store = &self.ports().store;
        let opens = |app: &InstanceRecord| app.published && app.routed;
        if let Some(added) = self.added_route(zone, host).await? {
            let app = store.instance(&added.instance).await?;
            return Ok(app.map(|app| WantedRoute {
                is_open: opens(&app),
                route: gateway::added(&added),
                instance: app.name,
                builtin: false,
            }));
        }
        let instances = store.instances().await?;
        let mut members = instances.into_iter().filter(|i| i.zone == zone.spec.name);
        let own = members.find(|i| opens(i) && i.host(&zone.spec) == *host);
        Ok(own.and_then(|app| {
            Some(WantedRoute {
                route: app.route(&zone.spec)?,
                instance: app.name,
                is_open: true,
                builtin: true,
            })
        }))
    }

    /// The routes of a zone by host: apps' own and added ones, those of apps that do not run too.
    async fn wanted_routes(
        &self,
        zone: &ZoneRecord,
    ) -> Result<BTreeMap<HostName, WantedRoute>, Error> {
        let instances = self.ports().store.instances().await?;
        let entries = self.ports().store.entries(&zone.spec.name).await?;
        let names: BTreeMap<_, _> = instances.iter().map(|i| (&i.id, &i.name)).collect();
        let added = entries.iter().filter_map(|entry| match entry {
            Entry::Route(route) => Some(route),
            _ => None,
        });
        let hosts: BTreeSet<_> = added.clone().map(|route| &route.host).collect();
        let open = gateway::desired(&zone.spec, &instances, &[], &entries)?.routes;
        let open = open.into_iter().map(|route| (route, true));
        // What is wanted open stands last, and so it counts.
        let all = added
            .map(|route| (gateway::added(route), false))
            .chain(open);
        let all = all.filter_map(|(route, is_open)| {
            let wanted = WantedRoute {
                instance: (*names.get(&route.instance)?).clone(),
                builtin: !hosts.contains(&route.host),
                is_open,
                route,
            };
            Some((wanted.route.host.clone(), wanted))
        });
        Ok(all.collect())
    }

    /// The zone's own certificate authority.
    pub async fn authority(&self, name: Option<&str>) -> Result<Authority, Error> {
        let zone = self.zone_up_record(name).await?;
        let report = self.read_gateway(&zone).await?;
        match report.edge.authority {
            Some(certificate) => Ok(Authority {
                domain: zone.spec.domain.to_string(),
                certificate,
            }),
            None => Err(Error::UnknownEntry {
                what: format!("authority of zone {} yet", zone.spec.name),
                list: "proximity infrastructure; it is made when the zone comes up",
            }),
        }
    }

    /// The operators' own sites of a zone's reverse proxy.
    pub async fn sites(&self, name: Option<&str>) -> Result<Vec<SiteView>, Error> {
        let zone = self.zone_up_record(name).await?;
        let report = self.read_gateway(&zone).await?;
        let view = |site: SiteReport| SiteView {
            state: match (site.served, site.current, &site.refused) {
                (_, true, _) => "served",
                (true, false, Some(_)) => "previous",
                (false, false, Some(_)) => "refused",
                (_, false, None) => "waiting",
            }
            .into(),
            name: site.name,
            refused: site.refused,
        };
        Ok(report.edge.sites.into_iter().map(view).collect())
    }

    /// Every configured zone, and those that left the configuration while up.
    pub async fn zone_list(&self) -> Result<Vec<ZoneStatus>, Error> {
        let records = self.ports().store.zones().await?;
        let instances = self.ports().store.instances().await?;
        let mut specs: BTreeMap<_, ZoneSpec> = self.inner.config.zones.clone();
        for r in &records {
            specs.insert(r.spec.name.clone(), r.spec.clone());
        }
        let mut out = Vec::new();
        for (name, spec) in specs {
            let record = records.iter().find(|r| r.spec.name == name);
            let drift = match record {
                Some(r) if r.desired == ZoneDesired::Up => self.zone_drift(r).await?.0,
                _ => vec![],
            };
            let busy = self
                .ports()
                .store
                .open_operation(name.as_str())
                .await?
                .is_some();
            let state = match record {
                _ if busy => "changing",
                None => "down",
                Some(r) if r.desired == ZoneDesired::Down => "changing",
                Some(_) if drift.is_empty() => "up",
                Some(_) => "degraded",
            };
            let members = instances.iter().filter(|i| i.zone == name).count();
            out.push(ZoneStatus {
                node: spec.node,
                bridge: spec.bridge,
                subnet: spec.subnet.to_string(),
                domain: spec.domain.to_string(),
                desired: match record {
                    Some(r) if r.desired == ZoneDesired::Up => "up",
                    _ => "down",
                }
                .into(),
                state: state.into(),
                instances: u32::try_from(members).unwrap_or(u32::MAX),
                drift,
                name,
            });
        }
        Ok(out)
    }

    /// One operation with its events after `after`.
    pub async fn operation(&self, id: &str, after: u32) -> Result<Operation, Error> {
        let unknown = || Error::UnknownOperation(id.chars().take(80).collect());
        let parsed: OperationId = id.parse().map_err(|_| unknown())?;
        self.ports()
            .store
            .operation(&parsed, after)
            .await?
            .ok_or_else(unknown)
    }

    /// The newest operations.
    pub async fn operations(&self) -> Result<Vec<Operation>, Error> {
        Ok(self.ports().store.operations(50).await?)
    }
}

/// A route as it should be.
struct WantedRoute {
    route: Route,
    /// The app it leads to.
    instance: InstanceName,
    /// An app's own name with the settings that it has by itself.
    builtin: bool,
    /// Not when the app does not run.
    is_open: bool,
}

impl WantedRoute {
    /// Together with what the appliance says of it.
    fn view(&self, open: Option<&RouteReport>) -> RouteView {
        let (route, policy) = (&self.route, &self.route.policy);
        RouteView {
            instance: self.instance.clone(),
            instance_id: route.instance.clone(),
            port: route.port,
            health: match open {
                _ if !self.is_open => "closed",
                None => "missing",
                Some(r) if r.healthy => "healthy",
                Some(_) => "unhealthy",
            }
            .into(),
            connections: open.map_or(0, |r| r.connections),
            builtin: self.builtin,
            redirect_https: policy.redirect_https,
            auth: policy.auth.as_ref().map(|a| a.kind().to_owned()),
            max_body_bytes: policy.max_body_bytes,
            timeout_ms: policy.answer_within_ms,
            host: route.host.clone(),
        }
    }
}
