//! The timer's look at a zone that stands: gateway state and services, and what dies there is repaired.
//!
//! ```text
//!   apply the state ▸ all well?  ─ no ▸ plan_revival ▸ restart services ─ still not, at later looks ▸ restart the appliance
//! ```
//! Records no events: nobody asked. What is done shows in the log and in `proximity status`.

use std::time::Duration;

use wire::family::Service;
use wire::gateway::GatewayReport;
use wire::identity::Bundle;

use super::Controller;
use super::reconcile_zone::cause;
use super::worker::Settled;
use crate::error::Error;
use crate::operation::{Recorder, StepError};
use crate::ports::{ChannelError, CommandEnd, GuestCommand, PortError};
use crate::zone::ZoneRecord;
use crate::zone::plan::{Revival, plan_revival};

/// What the init system restarts by itself is back within this time.
const BLINK: Duration = Duration::from_secs(3);
/// How long the init system may take to restart services.
const SERVICES_DEADLINE: Duration = Duration::from_secs(45);

fn names(services: &[Service]) -> String {
    let names: Vec<&str> = services.iter().map(|s| s.name()).collect();
    names.join(", ")
}

impl Controller {
    /// `tries`: how many looks in a row found the zone unwell.
    pub(super) async fn keep_well(
        &self,
        zone: &ZoneRecord,
        recorder: &Recorder,
        tries: u32,
    ) -> Result<Settled, Error> {
        let mut outcome = self.look_after_gateway(zone, BLINK).await;
        if outcome.is_err() {
            let report = self.ports().gateway.look(&zone.appliance).await.ok();
            if let Some(revival) = plan_revival(&zone.spec, report.as_ref(), tries) {
                outcome = self.revive(zone, &revival, recorder).await;
            }
        }
        let well = outcome.is_ok();
        if well {
            let gateway = &self.ports().gateway;
            let tell = async |identity: &Bundle| gateway.renew(&zone.appliance, identity).await;
            self.renew_identity(&zone.appliance, tell).await;
        }
        if zone.settled != well {
            let store = &self.ports().store;
            store.settle_zone(&zone.spec.name, well).await?;
        }
        match outcome {
            Ok(()) => Ok(Settled::Yes),
            Err(e) => {
                tracing::warn!(zone = %zone.spec.name, "zone is degraded: {}", cause(&e));
                Ok(Settled::Unwell(cause(&e)))
            }
        }
    }

    async fn look_after_gateway(
        &self,
        zone: &ZoneRecord,
        patience: Duration,
    ) -> Result<(), StepError> {
        let patience = patience.min(self.inner.pace.appliance);
        let diff = self.sync_gateway_patiently(zone, patience).await?;
        if !diff.is_empty() {
            tracing::warn!(zone = %zone.spec.name, ?diff, "the gateway had drifted and was put right");
        }
        self.await_health(zone, patience).await.map(drop)
    }

    async fn revive(
        &self,
        zone: &ZoneRecord,
        revival: &Revival,
        recorder: &Recorder,
    ) -> Result<(), StepError> {
        let begin = match revival {
            Revival::Services(services) => format!("restarting {}", names(services)),
            Revival::Appliance => format!("restarting {}", zone.spec.appliance.name),
        };
        let work = async {
            match revival {
                Revival::Services(services) => self.restart_services(zone, services).await?,
                Revival::Appliance => {
                    let backend = &self.ports().backend;
                    backend
                        .stop(&zone.appliance, Duration::from_secs(10))
                        .await?;
                    backend.start(&zone.appliance).await?;
                }
            }
            self.look_after_gateway(zone, self.inner.pace.appliance)
                .await?;
            Ok("the gateway is well again".to_owned())
        };
        recorder.step("revive", &begin, work).await
    }

    /// Past the relay, which may be what died.
    async fn restart_services(
        &self,
        zone: &ZoneRecord,
        services: &[Service],
    ) -> Result<(), PortError> {
        let what = || format!("restart {}", names(services));
        let mut channels = self.ports().channels.iter();
        let Some(channel) = channels.find(|c| c.name() == "lxc-attach") else {
            return Err(PortError::new(what(), "no channel leads past the relay"));
        };
        for argv in zone.spec.appliance.os.family().restart(services) {
            let command = GuestCommand {
                argv,
                env: Default::default(),
                cwd: None,
                user: None,
                stdin: Vec::new(),
                timeout: SERVICES_DEADLINE,
            };
            match channel.run(&zone.channel_target(), command).await {
                Ok(outcome) if outcome.end == CommandEnd::Exited(0) => {}
                Ok(outcome) => {
                    let said = String::from_utf8_lossy(&outcome.stderr);
                    let said = said.lines().next().unwrap_or_default();
                    let told = format!("{:?} {said}", outcome.end);
                    return Err(PortError::new(what(), told.trim_end()));
                }
                // Restarting twice harms nobody, so it is simply tried again.
                Err(
                    ChannelError::Unreachable(e)
                    | ChannelError::NothingRan(e)
                    | ChannelError::OutcomeUnknown(e),
                ) => return Err(PortError::new(what(), e)),
            }
        }
        Ok(())
    }

    /// Keeps the leases that the appliance has given, for the one that may have to take its place.
    pub(super) async fn remember_leases(
        &self,
        zone: &ZoneRecord,
        report: &GatewayReport,
    ) -> Result<(), StepError> {
        let store = &self.ports().store;
        let known = store.leases(&zone.spec.name).await?;
        let instances = store.instances().await?;
        let now = self.ports().entropy.now().as_second();
        let kept = crate::gateway::leases(&zone.spec, &instances, &report.leases, &known, now);
        if kept != known {
            store.remember_leases(&zone.spec.name, &kept).await?;
        }
        Ok(())
    }
}
