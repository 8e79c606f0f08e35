//! What to do so that a zone becomes what it should be. Pure: no I/O, no clock, no randomness.
//!
//! ```text
//!   bridge ──▶ appliance ──▶ services ──▶ health
//! ```
//!
//! Any half-done state is a legal start; what holds already is not done again.

use wire::family::Service;
use wire::gateway::GatewayReport;

use super::{Wan, ZoneSpec};
use crate::ports::{GuestObserved, GuestSpec, GuestState, NetworkObserved};

/// What was seen of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneObserved {
    /// The node's network.
    pub network: NetworkObserved,
    /// Whether the appliance's image is in the cache.
    pub image_cached: bool,
    /// The appliance's guest.
    pub appliance: GuestObserved,
}

/// One thing to do. Each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZoneAction {
    /// Make bridges, kernel settings and NAT on the node.
    EnsureNetwork,
    /// Build the appliance's image.
    BuildImage,
    /// Stop the appliance because it must be made anew or changed.
    StopAppliance,
    /// Make the appliance's guest conform to its spec.
    CreateAppliance,
    /// Start it.
    StartAppliance,
    /// Give the gateway its whole state; it changes only what differs.
    ApplyGateway,
    /// Read everything back and compare.
    CheckHealth,
}

impl ZoneAction {
    /// The logged step an action belongs to.
    pub fn step(self) -> &'static str {
        match self {
            Self::EnsureNetwork => "bridge",
            Self::BuildImage
            | Self::StopAppliance
            | Self::CreateAppliance
            | Self::StartAppliance => "appliance",
            Self::ApplyGateway => "services",
            Self::CheckHealth => "health",
        }
    }
}

/// The steps of bringing a zone up, in order.
pub const UP_STEPS: [&str; 4] = ["bridge", "appliance", "services", "health"];

/// Plans bringing a zone up.
pub fn plan_up(appliance: &GuestSpec, observed: &ZoneObserved) -> Vec<ZoneAction> {
    let mut actions = Vec::new();
    if !observed.network.drift.is_empty() {
        actions.push(ZoneAction::EnsureNetwork);
    }
    let conforms = observed.appliance.spec.as_ref() == Some(appliance);
    let state = observed.appliance.state;
    if !conforms {
        if !observed.image_cached {
            actions.push(ZoneAction::BuildImage);
        }
        if state == GuestState::Running {
            actions.push(ZoneAction::StopAppliance);
        }
        actions.push(ZoneAction::CreateAppliance);
    }
    if !conforms || state != GuestState::Running {
        actions.push(ZoneAction::StartAppliance);
    }
    actions.push(ZoneAction::ApplyGateway);
    actions.push(ZoneAction::CheckHealth);
    actions
}

/// What brings a gateway back that an apply did not make well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revival {
    /// Restart these services of the appliance.
    Services(Vec<Service>),
    /// Restart the appliance.
    Appliance,
}

/// At which look in a row the appliance itself is restarted: when its services did not help twice, and then seldom.
const APPLIANCE_EVERY: u32 = 10;
const APPLIANCE_FIRST: u32 = 2;

/// Plans the revival of a gateway that is unwell; `report` is what its relay says, if it answers. None when
/// nothing that can be restarted would help.
pub fn plan_revival(
    zone: &ZoneSpec,
    report: Option<&GatewayReport>,
    tries: u32,
) -> Option<Revival> {
    let appliance_is_due = tries % APPLIANCE_EVERY == APPLIANCE_FIRST;
    let Some(report) = report else {
        return Some(match appliance_is_due {
            true => Revival::Appliance,
            false => Revival::Services(vec![Service::Relay]),
        });
    };
    let dead = |name: &str| {
        let mut services = report.services.iter();
        services.any(|s| s.name == name && matches!(s.state.as_str(), "inactive" | "failed"))
    };
    let reported = zone.appliance.os.family().reported().iter().copied();
    let services: Vec<Service> = reported.filter(|s| dead(s.name())).collect();
    if !services.is_empty() {
        return Some(Revival::Services(services));
    }
    // Addresses that the node gives come back with a start; one that a stranger's DHCP gives may not.
    let fixed_wan = matches!(zone.wan, Wan::Managed { .. });
    let lost =
        report.lan_address != Some(zone.gateway()) || (fixed_wan && report.wan_address.is_none());
    (lost && appliance_is_due).then_some(Revival::Appliance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use ZoneAction::*;

    fn guest() -> GuestSpec {
        let config = Config::built_in().unwrap();
        let zone = config.zones.values().next().unwrap();
        zone.appliance_guest(&api::InstanceId::from_bytes([1; 8]))
    }

    fn observed(
        drift: &[&str],
        cached: bool,
        state: GuestState,
        spec: Option<GuestSpec>,
    ) -> ZoneObserved {
        ZoneObserved {
            network: NetworkObserved {
                drift: drift.iter().map(ToString::to_string).collect(),
                conflicts: vec![],
            },
            image_cached: cached,
            appliance: GuestObserved { state, spec },
        }
    }

    #[test]
    fn every_half_done_state_leads_up() {
        let check = |o: ZoneObserved, expect: &[ZoneAction]| {
            assert_eq!(plan_up(&guest(), &o), expect, "{o:?}");
        };
        let all = [
            EnsureNetwork,
            BuildImage,
            CreateAppliance,
            StartAppliance,
            ApplyGateway,
            CheckHealth,
        ];
        check(
            observed(&["no bridge"], false, GuestState::Absent, None),
            &all,
        );
        check(observed(&[], true, GuestState::Absent, None), &all[2..]);
        check(observed(&[], true, GuestState::Partial, None), &all[2..]);
        check(
            observed(&[], true, GuestState::Stopped, Some(guest())),
            &all[3..],
        );
        // A running appliance needs no image, even if the cache was emptied meanwhile.
        check(
            observed(&[], false, GuestState::Running, Some(guest())),
            &all[4..],
        );
        check(
            observed(&["no NAT"], true, GuestState::Running, Some(guest())),
            &[EnsureNetwork, ApplyGateway, CheckHealth],
        );
    }

    #[test]
    fn a_changed_appliance_is_stopped_first() {
        let mut old = guest();
        old.limits.memory_mb = 512;
        let o = observed(&[], true, GuestState::Running, Some(old));
        assert_eq!(
            plan_up(&guest(), &o),
            [
                StopAppliance,
                CreateAppliance,
                StartAppliance,
                ApplyGateway,
                CheckHealth
            ]
        );
    }

    #[test]
    fn macs_of_inside_and_outside_differ() {
        let g = guest();
        assert_ne!(g.nics[0].mac, g.nics[1].mac);
        assert_eq!(g.nics[1].mac.to_string(), "52:78:0a:14:00:01");
        assert_eq!(g.nics[0].address.unwrap().to_string(), "10.19.255.2/30");
        assert_eq!(g.nics[0].gateway.unwrap().to_string(), "10.19.255.1");
    }

    fn report(dead: &[&str], lan: bool) -> GatewayReport {
        let zone = crate::fake::zone_spec();
        let service = |name: &&str| wire::gateway::ServiceReport {
            name: (*name).into(),
            state: if dead.contains(name) {
                "failed"
            } else {
                "active"
            }
            .into(),
        };
        GatewayReport {
            agent_version: "1".into(),
            wan_address: Some([10, 19, 255, 2].into()),
            lan_address: lan.then(|| zone.gateway()),
            services: ["caddy", "cockpit", "dnsmasq"]
                .iter()
                .map(service)
                .collect(),
            leases: vec![],
            names: vec![],
            routes: vec![],
            refused: vec![],
            edge: Default::default(),
        }
    }

    #[test]
    fn what_died_is_restarted_and_the_appliance_only_when_that_did_not_help() {
        let zone = crate::fake::zone_spec();
        let check = |report: Option<GatewayReport>, tries: u32, expect: Option<Revival>| {
            let planned = plan_revival(&zone, report.as_ref(), tries);
            assert_eq!(planned, expect, "{report:?} {tries}");
        };
        let relay = || Some(Revival::Services(vec![Service::Relay]));
        for (tries, expect) in [
            (0, relay()),
            (1, relay()),
            (2, Some(Revival::Appliance)),
            (3, relay()),
            (11, relay()),
            (12, Some(Revival::Appliance)),
        ] {
            check(None, tries, expect);
        }
        let services = Revival::Services(vec![Service::Caddy, Service::Cockpit]);
        check(Some(report(&["caddy", "cockpit"], true)), 0, Some(services));
        check(Some(report(&[], true)), 2, None);
        check(Some(report(&[], false)), 0, None);
        check(Some(report(&[], false)), 2, Some(Revival::Appliance));
    }
}
