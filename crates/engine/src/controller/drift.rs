//! What differs from what is wanted, and what is done about it: read when asked, never remembered.

use std::collections::BTreeMap;

use api::app::AppStatus;
use api::operation::OperationStatus;
use api::status::{Drift, Status};
use wire::gateway::GatewayReport;

use super::{Controller, Object};
use crate::error::Error;
use crate::instance::{InstanceDesired, InstanceRecord};
use crate::ports::GuestState;
use crate::zone::{ZoneDesired, ZoneRecord, ZoneSpec};

/// What is not well in a report, in sentences.
pub(super) fn sick_parts(report: &GatewayReport, zone: &ZoneSpec) -> Vec<String> {
    let mut sick: Vec<String> = report
        .services
        .iter()
        .filter(|s| !matches!(s.state.as_str(), "active" | "configured"))
        .map(|s| format!("{} is {}", s.name, s.state))
        .collect();
    if report.wan_address.is_none() {
        sick.push("the WAN interface has no address".into());
    }
    if report.lan_address != Some(zone.gateway()) {
        sick.push(format!(
            "the LAN interface does not have {}",
            zone.gateway()
        ));
    }
    sick
}

impl Controller {
    /// What differs in a zone that is wanted up, with its gateway's report, if that could be had.
    pub(super) async fn zone_drift(
        &self,
        zone: &ZoneRecord,
    ) -> Result<(Vec<String>, Option<GatewayReport>), Error> {
        let ports = self.ports();
        let network = ports.network.observe(&zone.spec.node_network()).await?;
        let mut drift = network.drift;
        let mut report = None;
        match ports.backend.observe(&zone.appliance).await?.state {
            GuestState::Running => match self.read_gateway(zone).await {
                Ok(read) => {
                    drift.extend(sick_parts(&read, &zone.spec));
                    report = Some(read);
                }
                Err(e) => drift.push(format!("the relay does not answer: {e}")),
            },
            state => drift.push(format!("the appliance is {}", state.as_str())),
        }
        Ok((drift, report))
    }

    /// What differs in an instance; `report` is its zone's gateway's, if that could be had.
    async fn instance_drift(
        &self,
        record: &InstanceRecord,
        zone: &ZoneRecord,
        report: Option<&GatewayReport>,
    ) -> Result<Vec<String>, Error> {
        let state = match self.ports().backend.observe(&record.id).await {
            Ok(observed) => observed.state,
            Err(e) => return Ok(vec![e.to_string()]),
        };
        let mut differs = Vec::new();
        let wanted = match record.desired {
            InstanceDesired::Running => GuestState::Running,
            InstanceDesired::Stopped => GuestState::Stopped,
            InstanceDesired::Deleted => GuestState::Absent,
        };
        if state != wanted {
            differs.push(format!(
                "its guest is {}, wanted {}",
                state.as_str(),
                wanted.as_str()
            ));
        }
        if let Some(report) = report {
            let host = record.host(&zone.spec);
            if record.published && !report.names.iter().any(|n| n.name == host) {
                differs.push(format!("the zone's DNS does not know {host}"));
            }
            if record.routed && record.as_app().is_some() {
                match report.routes.iter().find(|r| r.host == host) {
                    None => differs.push(format!("no route leads to {host}")),
                    Some(route) if !route.healthy => {
                        differs.push(format!("port {} of it takes no connections", route.port))
                    }
                    Some(_) => {}
                }
            }
        }
        if let Some(failure) = &record.failure {
            differs.push(format!("{} failed: {}", failure.step, failure.cause));
        }
        Ok(differs)
    }

    /// All of it at a glance.
    pub async fn status(&self) -> Result<Status, Error> {
        let store = &self.ports().store;
        let instances = store.instances().await?;
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for i in &instances {
            *counts.entry(i.status.as_str().to_owned()).or_default() += 1;
        }
        let mut drift = Vec::new();
        for zone in store.zones().await? {
            let members = instances.iter().filter(|i| i.zone == zone.spec.name);
            drift.extend(self.drift_of(&zone, members).await?);
        }
        let operations = store.operations(50).await?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            zones: self.zone_list().await?,
            instances: counts,
            drift,
            orphans: self.orphans().await?,
            operations: operations
                .into_iter()
                .filter(|o| o.status == OperationStatus::Running)
                .map(|o| format!("{} {}", o.kind, o.target))
                .collect(),
        })
    }

    async fn drift_of(
        &self,
        zone: &ZoneRecord,
        members: impl Iterator<Item = &InstanceRecord>,
    ) -> Result<Vec<Drift>, Error> {
        let mut drift = Vec::new();
        let mut report = None;
        let name = &zone.spec.name;
        if zone.desired == ZoneDesired::Up {
            let (differs, read) = self.zone_drift(zone).await?;
            report = read;
            drift.push(Drift {
                kind: "zone".into(),
                name: name.to_string(),
                differs,
                repair: Some(self.attention(&Object::Zone(name.clone())).repair()),
                next: None,
            });
        }
        for record in members {
            let waits = matches!(record.status, AppStatus::Failed | AppStatus::Lost);
            let repair = self
                .attention(&Object::Instance(record.id.clone()))
                .repair();
            drift.push(Drift {
                kind: record.kind().into(),
                name: record.name.to_string(),
                differs: self.instance_drift(record, zone, report.as_ref()).await?,
                repair: (!waits).then_some(repair),
                next: record.failure.as_ref().map(|f| f.next.clone()),
            });
        }
        drift.retain(|d| !d.differs.is_empty());
        Ok(drift)
    }
}
