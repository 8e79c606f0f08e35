//! What to do so that a zone becomes what it should be. Pure: no I/O, no clock, no randomness.
//!
//! ```text
//!   bridge ──▶ appliance ──▶ services ──▶ health
//! ```
//!
//! Any half-done state is a legal start; what holds already is not done again.

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
}
