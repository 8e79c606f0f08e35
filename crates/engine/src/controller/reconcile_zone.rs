//! Makes a zone what is wanted: observe, plan, apply, record.

use std::time::{Duration, Instant};

use api::ZoneName;
use api::app::Failure;

use super::worker::Settled;
use super::{Attention, Controller, Object};
use crate::error::Error;
use crate::image::Images;
use crate::instance::InstanceDesired;
use crate::operation::{Recorder, StepError};
use crate::ports::{GuestSpec, GuestState, PortError};
use crate::zone::plan::{UP_STEPS, ZoneAction, ZoneObserved, plan_up};
use crate::zone::{ZoneDesired, ZoneRecord, appliance_image};

impl Controller {
    pub(crate) async fn reconcile_zone(
        &self,
        name: &ZoneName,
        attention: &Attention,
    ) -> Result<Settled, Error> {
        let ports = self.ports();
        // The operation first: one that is asked for between the two reads must not be ended by what is
        // done for an older record.
        let operation = ports.store.open_operation(name.as_str()).await?;
        let Some(zone) = ports.store.zone(name).await? else {
            return Ok(Settled::Gone);
        };
        let recorder = Recorder::new(
            ports.store.clone(),
            ports.entropy.clone(),
            self.inner.feed.clone(),
            operation.map(|o| o.id),
            format!("zone {name}"),
            attention,
        );
        match zone.desired {
            ZoneDesired::Up => {
                let tries = attention.failures();
                self.bring_up(&zone, &recorder, tries).await
            }
            ZoneDesired::Down => self.take_down(&zone, &recorder).await,
        }
    }

    async fn bring_up(
        &self,
        zone: &ZoneRecord,
        recorder: &Recorder,
        tries: u32,
    ) -> Result<Settled, Error> {
        let ports = self.ports();
        let guest = zone.spec.appliance_guest(&zone.appliance);
        let observed = match self.observe_zone(zone, &guest).await {
            Ok(observed) => observed,
            Err(e) => return self.zone_failed(zone, "observe", e.into(), recorder).await,
        };
        let plan = plan_up(&guest, &observed);
        if !recorder.is_asked_for() && is_quiet(&plan) {
            return self.keep_well(zone, recorder, tries).await;
        }
        for step in UP_STEPS {
            let actions: Vec<ZoneAction> =
                plan.iter().copied().filter(|a| a.step() == step).collect();
            let work = self.zone_step(zone, step, &actions, recorder);
            if let Err(e) = recorder.step(step, begin_text(step), work).await {
                return self.zone_failed(zone, step, e, recorder).await;
            }
        }
        ports.store.settle_zone(&zone.spec.name, true).await?;
        recorder.finish(None).await?;
        Ok(Settled::Yes)
    }

    async fn observe_zone(
        &self,
        zone: &ZoneRecord,
        guest: &GuestSpec,
    ) -> Result<ZoneObserved, PortError> {
        let ports = self.ports();
        Ok(ZoneObserved {
            network: ports.network.observe(&zone.spec.node_network()).await?,
            image_cached: ports.images.cached(&guest.image).await,
            appliance: ports.backend.observe(&zone.appliance).await?,
        })
    }

    async fn zone_step(
        &self,
        zone: &ZoneRecord,
        step: &str,
        actions: &[ZoneAction],
        recorder: &Recorder,
    ) -> Result<String, StepError> {
        let mut said = None;
        for action in actions {
            said = self.zone_action(zone, *action, recorder).await?.or(said);
        }
        Ok(said.unwrap_or_else(|| match step {
            "bridge" => format!("{} is there", zone.spec.bridge),
            _ => format!("{} runs", zone.spec.appliance.name),
        }))
    }

    async fn zone_action(
        &self,
        zone: &ZoneRecord,
        action: ZoneAction,
        recorder: &Recorder,
    ) -> Result<Option<String>, StepError> {
        let ports = self.ports();
        let guest = zone.spec.appliance_guest(&zone.appliance);
        match action {
            ZoneAction::EnsureNetwork => {
                ports.network.ensure(&zone.spec.node_network()).await?;
                Ok(Some(format!("{} {}", zone.spec.bridge, zone.spec.subnet)))
            }
            ZoneAction::BuildImage => {
                recorder
                    .progress(
                        "appliance",
                        "building the appliance's image (once; about a minute)",
                    )
                    .await?;
                build(
                    ports.images.as_ref(),
                    &appliance_image(zone.spec.appliance.os),
                    recorder,
                    "appliance",
                )
                .await?;
                Ok(None)
            }
            ZoneAction::StopAppliance => {
                ports
                    .backend
                    .stop(&zone.appliance, Duration::from_secs(10))
                    .await?;
                Ok(None)
            }
            ZoneAction::CreateAppliance => {
                ports.backend.create(&guest).await?;
                Ok(None)
            }
            ZoneAction::StartAppliance => {
                ports.backend.start(&zone.appliance).await?;
                Ok(Some(format!("{} started", zone.spec.appliance.name)))
            }
            ZoneAction::ApplyGateway => {
                let diff = self
                    .sync_gateway_patiently(zone, self.inner.pace.appliance)
                    .await?;
                Ok(Some(if diff.is_empty() {
                    "all as wanted".into()
                } else if diff.services_changed.is_empty() {
                    "names and routes brought up to date".into()
                } else {
                    diff.services_changed.join(", ")
                }))
            }
            ZoneAction::CheckHealth => self
                .await_health(zone, self.inner.pace.appliance)
                .await
                .map(Some),
        }
    }

    /// Waits until every service is well and the way out has an address.
    pub(super) async fn await_health(
        &self,
        zone: &ZoneRecord,
        patience: Duration,
    ) -> Result<String, StepError> {
        let began = Instant::now();
        loop {
            let sick = match self.ports().gateway.look(&zone.appliance).await {
                Ok(report) => {
                    self.remember_leases(zone, &report).await?;
                    let sick = super::drift::sick_parts(&report, &zone.spec);
                    if sick.is_empty() {
                        let all: Vec<&str> =
                            report.services.iter().map(|s| s.name.as_str()).collect();
                        let wan = report
                            .wan_address
                            .map(|a| a.to_string())
                            .unwrap_or_default();
                        return Ok(format!("{} are well; WAN address {wan}", all.join(", ")));
                    }
                    sick.join("; ")
                }
                Err(e) => e.to_string(),
            };
            if began.elapsed() >= patience {
                return Err(StepError::Failed {
                    cause: sick,
                    hint: Some(format!(
                        "look inside: proximity exec {} -- {}",
                        zone.spec.appliance.name,
                        zone.spec.appliance.os.family().log(),
                    )),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn zone_failed(
        &self,
        zone: &ZoneRecord,
        step: &str,
        error: StepError,
        recorder: &Recorder,
    ) -> Result<Settled, Error> {
        let StepError::Failed { cause, hint } = error else {
            return Ok(Settled::Retry(Duration::ZERO));
        };
        self.ports()
            .store
            .settle_zone(&zone.spec.name, false)
            .await?;
        let failure = Failure {
            step: step.into(),
            cause,
            next: hint.unwrap_or_else(|| "proximity doctor, then proximity up".into()),
            console_tail: self.ports().backend.console_tail(&zone.appliance, 20).await,
        };
        recorder.finish(Some(&failure)).await?;
        // The zone stays wanted: the timer tries again, since most causes pass or get mended.
        Ok(Settled::Unwell(failure.cause))
    }

    async fn take_down(&self, zone: &ZoneRecord, recorder: &Recorder) -> Result<Settled, Error> {
        let ports = self.ports();
        let left = self.delete_instances_of(&zone.spec.name).await?;
        if left.going > 0 {
            tracing::info!(zone = %zone.spec.name, left = left.going, "waiting for instances to go");
            return Ok(Settled::Retry(Duration::from_millis(200)));
        }
        if !left.stuck.is_empty() {
            // Their own workers try again; so does the next look.
            let failure = Failure {
                step: "instances".into(),
                cause: left.stuck.join("; "),
                next: "proximity down --with-instances again, when the cause is mended".into(),
                console_tail: vec![],
            };
            recorder.finish(Some(&failure)).await?;
            return Ok(Settled::Retry(Duration::from_secs(5)));
        }
        // Teardown goes on past errors and reports all of them.
        let mut errors = Vec::new();
        let appliance = async {
            if ports.backend.observe(&zone.appliance).await?.state == GuestState::Running {
                ports
                    .backend
                    .stop(&zone.appliance, Duration::from_secs(5))
                    .await?;
            }
            ports.backend.destroy(&zone.appliance).await?;
            Ok(format!("{} is gone", zone.spec.appliance.name))
        };
        let stopping = format!("taking {} away", zone.spec.appliance.name);
        if let Err(e) = recorder.step("appliance", &stopping, appliance).await {
            errors.push(("appliance", e));
        }
        if self.is_wanted_up(zone).await? {
            return Ok(Settled::Retry(Duration::ZERO));
        }
        let network = async {
            ports.network.remove(&zone.spec.node_network()).await?;
            Ok(format!("{} is gone", zone.spec.bridge))
        };
        if let Err(e) = recorder
            .step("bridge", "taking bridges and NAT away", network)
            .await
        {
            errors.push(("bridge", e));
        }
        if let Some((step, _)) = errors.first() {
            let causes: Vec<String> = errors
                .iter()
                .map(|(s, e)| format!("{s}: {}", cause(e)))
                .collect();
            let failure = Failure {
                step: (*step).into(),
                cause: causes.join("; "),
                next: "proximity down again, when the cause is mended".into(),
                console_tail: vec![],
            };
            recorder.finish(Some(&failure)).await?;
            return Ok(Settled::Unwell(failure.cause));
        }
        // In one transaction with the end of its operation, so that neither outlives the other.
        let gone = ports
            .store
            .forget_zone(&zone.spec.name, ports.entropy.now())
            .await?;
        self.inner.feed.announce();
        Ok(if gone {
            Settled::Gone
        } else {
            Settled::Retry(Duration::ZERO)
        })
    }

    /// Whether somebody wants the zone up by now: then nothing more of it is taken away.
    async fn is_wanted_up(&self, zone: &ZoneRecord) -> Result<bool, Error> {
        let now = self.ports().store.zone(&zone.spec.name).await?;
        Ok(now.is_some_and(|z| z.desired == ZoneDesired::Up))
    }

    /// Sees to it that the zone's instances go; says how many are still there. Whoever took the zone
    /// down was told of them, or there were none.
    async fn delete_instances_of(&self, zone: &ZoneName) -> Result<Left, Error> {
        let all = self.ports().store.instances().await?;
        let mut left = Left::default();
        for instance in all.into_iter().filter(|i| i.zone == *zone) {
            match (instance.desired, &instance.failure) {
                (InstanceDesired::Deleted, Some(failure)) => {
                    left.stuck
                        .push(format!("{}: {}", instance.name, failure.cause));
                }
                (InstanceDesired::Deleted, None) => {
                    left.going += 1;
                    self.wake(Object::Instance(instance.id));
                }
                _ => {
                    left.going += 1;
                    self.change(instance, "delete").await?;
                }
            }
        }
        Ok(left)
    }
}

/// What is still in a zone on its way down.
#[derive(Default)]
struct Left {
    /// Instances that are being deleted.
    going: usize,
    /// Those whose deletion failed, and why.
    stuck: Vec<String>,
}

/// Whether a plan only looks.
fn is_quiet(plan: &[ZoneAction]) -> bool {
    plan.iter()
        .all(|a| matches!(a, ZoneAction::ApplyGateway | ZoneAction::CheckHealth))
}

fn begin_text(step: &str) -> &'static str {
    match step {
        "bridge" => "making the bridge and the way out",
        "appliance" => "making and starting the gateway guest",
        "services" => "giving the gateway its configuration",
        _ => "waiting until every service is well",
    }
}

pub(super) fn cause(error: &StepError) -> String {
    match error {
        StepError::Failed { cause, .. } => cause.clone(),
        StepError::Superseded => "something else is wanted by now".into(),
    }
}

/// Builds an image and turns the builder's lines into progress events.
pub(super) async fn build(
    images: &dyn Images,
    spec: &crate::image::ImageSpec,
    recorder: &Recorder,
    step: &'static str,
) -> Result<(), StepError> {
    let (lines, mut inbox) = tokio::sync::mpsc::channel::<String>(64);
    let build = async move {
        // A full inbox drops lines: progress is for people, the build's own log has them all. The
        // sender goes with this block, which ends the telling.
        let progress = move |line: String| drop(lines.try_send(line));
        images.ensure(spec, &progress).await
    };
    let tell = async {
        while let Some(line) = inbox.recv().await {
            recorder.progress(step, &line).await?;
        }
        Ok::<(), StepError>(())
    };
    let (built, told) = tokio::join!(build, tell);
    built?;
    told
}
