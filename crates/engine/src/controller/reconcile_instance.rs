//! Makes an instance what is wanted: observe, plan, apply, record.
//!
//! After every action the record is read again: whoever wants something else by now is heard
//! before the next action.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::InstanceId;
use api::app::{AppStatus, Failure};
use tokio::sync::Notify;
use wire::gateway::ProbeRequest;
use wire::identity::Bundle;

use super::worker::Settled;
use super::{Attention, Controller, Object, reconcile_zone};
use crate::error::Error;
use crate::instance::plan::{InstanceAction, InstanceObserved, plan};
use crate::instance::{InstanceDesired, InstanceRecord, Workload};
use crate::operation::{Recorder, StepError};
use crate::ports::{GuestState, PortError};
use crate::zone::ZoneRecord;

/// How long a guest may take to stop politely.
const GRACE: Duration = Duration::from_secs(10);

impl Controller {
    pub(crate) async fn reconcile_instance(
        &self,
        id: &InstanceId,
        wake: &Arc<Notify>,
        attention: &Attention,
    ) -> Result<Settled, Error> {
        let ports = self.ports();
        // The operation first: one that is asked for between the two reads must not be ended by what is
        // done for an older record.
        let operation = ports.store.open_operation(id.as_str()).await?;
        let Some(record) = ports.store.instance(id).await? else {
            return Ok(Settled::Gone);
        };
        let Some(zone) = ports.store.zone(&record.zone).await? else {
            // Only an edited database can do this; the guest is left alone.
            tracing::error!(instance = %record.name, zone = %record.zone, "its zone has no record");
            return Ok(Settled::Retry(Duration::from_secs(60)));
        };
        let recorder = Recorder::new(
            ports.store.clone(),
            ports.entropy.clone(),
            self.inner.feed.clone(),
            operation.map(|o| o.id),
            format!("instance {}", record.name),
            attention,
        );
        if record.has_expired(ports.entropy.now()) && record.desired != InstanceDesired::Deleted {
            self.expire(record).await?;
            return Ok(Settled::Retry(Duration::ZERO));
        }
        self.warn_of_end(&record).await?;
        let image_cached = ports.images.cached(&record.spec.image_digest).await;
        let guest = ports.backend.observe(id).await;
        let deleting = record.desired == InstanceDesired::Deleted;
        let mut run = Run {
            controller: self,
            zone: &zone,
            record,
            recorder: &recorder,
            wake,
        };
        let actions = match guest {
            Ok(guest) => plan(
                &run.record,
                InstanceObserved {
                    image_cached,
                    guest: guest.state,
                },
            ),
            Err(e) => return run.failed("observe", e.to_string(), e.hint).await,
        };
        if deleting {
            return run.delete(&actions).await;
        }
        for action in actions {
            match run.perform(action).await {
                Ok(()) => {}
                Err(StepError::Superseded) => return Ok(Settled::Retry(Duration::ZERO)),
                Err(StepError::Failed { cause, hint }) => {
                    return run
                        .failed(action.step().unwrap_or("settle"), cause, hint)
                        .await;
                }
            }
            if run.superseded().await? {
                return Ok(Settled::Retry(Duration::ZERO));
            }
        }
        run.renew_identity().await;
        run.conclude().await
    }
}

/// One reconciliation of one instance.
struct Run<'a> {
    controller: &'a Controller,
    zone: &'a ZoneRecord,
    record: InstanceRecord,
    recorder: &'a Recorder,
    wake: &'a Arc<Notify>,
}

impl Run<'_> {
    async fn perform(&mut self, action: InstanceAction) -> Result<(), StepError> {
        match action.step() {
            None => self.settle(action).await,
            Some(step) => {
                // The record changes inside the step, so the recorder is held apart from `self`.
                let recorder = self.recorder;
                recorder
                    .step(step, begin_text(action), self.act(action))
                    .await
            }
        }
    }

    async fn act(&mut self, action: InstanceAction) -> Result<String, StepError> {
        use InstanceAction as A;
        let ports = self.controller.ports();
        let id = self.record.id.clone();
        match action {
            A::BuildImage => {
                reconcile_zone::build(
                    ports.images.as_ref(),
                    &self.record.spec.image,
                    self.recorder,
                    "image",
                )
                .await?;
                Ok(format!("image {:.12}", self.record.spec.image_digest))
            }
            A::Publish => {
                self.record.published = true;
                self.save().await?;
                self.sync_gateway().await?;
                Ok(format!(
                    "{} is {}",
                    self.record.host(&self.zone.spec),
                    self.record.address
                ))
            }
            A::Create => {
                ports
                    .backend
                    .create(&self.record.guest(&self.zone.spec))
                    .await?;
                Ok(format!("guest {id} cloned"))
            }
            A::Start => {
                // A sandbox is in the gateway's state for its policy alone, which holds before it runs.
                if self.record.is_sandbox() && self.record.egress.is_restricted() {
                    self.sync_gateway().await?;
                }
                ports.backend.start(&id).await?;
                self.record.restart = false;
                self.save().await?;
                Ok("guest runs".into())
            }
            A::AwaitAgent => self.await_agent().await,
            A::AwaitReady => self.await_ready().await,
            A::OpenRoute => {
                self.record.routed = true;
                self.save().await?;
                self.sync_gateway().await?;
                Ok(format!("http://{}/", self.record.host(&self.zone.spec)))
            }
            A::CloseRoute => {
                self.record.routed = false;
                self.save().await?;
                self.sync_gateway().await?;
                Ok("no route leads to it".into())
            }
            A::Stop => {
                let deleting = self.record.desired == InstanceDesired::Deleted;
                let grace = if deleting { Duration::ZERO } else { GRACE };
                ports.backend.stop(&id, grace).await?;
                Ok("guest stopped".into())
            }
            A::Destroy => {
                ports.backend.destroy(&id).await?;
                ports.channels.iter().for_each(|c| c.forget(&id));
                Ok(format!("guest {id} is gone"))
            }
            A::Withdraw => {
                self.record.published = false;
                self.save().await?;
                self.sync_gateway().await?;
                Ok("address and name given back".into())
            }
            A::SettleRunning | A::SettleLost | A::SettleStopped | A::Forget => Ok(String::new()),
        }
    }

    /// After a restart of the node the appliance may only just be coming up. An instance on its way out
    /// does not wait for it: the appliance gets its whole state when it comes back.
    async fn sync_gateway(&self) -> Result<(), StepError> {
        let patience = match self.record.desired {
            InstanceDesired::Deleted => Duration::ZERO,
            _ => self.controller.inner.pace.appliance,
        };
        if self.controller.sync_gateway(self.zone).await.is_ok() {
            return Ok(());
        }
        self.wake_zone();
        self.controller
            .sync_gateway_patiently(self.zone, patience)
            .await
            .map(drop)
    }

    async fn renew_identity(&self) {
        if self.record.status != AppStatus::Running {
            return;
        }
        let target = self.record.channel_target(self.zone);
        let channels = self.controller.channels_of(&self.record);
        let Some(agent) = channels.into_iter().find(|c| c.name() == "agent") else {
            return;
        };
        let tell = async |identity: &Bundle| {
            let told = agent.renew(&target, identity).await;
            told.map_err(|e| PortError::new("tell the agent its new identity", e))
        };
        self.controller.renew_identity(&self.record.id, tell).await;
    }

    /// The agent's first answer: from here on the guest can be worked in.
    async fn await_agent(&mut self) -> Result<String, StepError> {
        let began = Instant::now();
        let target = self.record.channel_target(self.zone);
        let Some(channel) = self.controller.channels_of(&self.record).into_iter().next() else {
            return Ok("no channel leads to it".into());
        };
        let patience = self.controller.inner.pace.agent;
        let ready = async {
            channel.ready(&target, patience).await.map_err(|e| {
                PortError::new(format!("wait for the channel {}", channel.name()), e).into()
            })
        };
        self.unless_it_ends("the agent's answer", ready).await?;
        Ok(format!(
            "{} answered after {:.3} s",
            channel.name(),
            began.elapsed().as_secs_f64()
        ))
    }

    /// The app's own answer, or the first sign that it will not come.
    async fn await_ready(&mut self) -> Result<String, StepError> {
        let began = Instant::now();
        let Some(app) = self.record.as_app() else {
            return Ok(String::new());
        };
        let request = ProbeRequest {
            address: self.record.address,
            port: app.port,
            readiness: app.readiness.clone(),
            deadline_ms: u64::from(app.ready_timeout_s) * 1000,
        };
        let probe = self.probe_patiently(&request);
        self.unless_it_ends("the app's answer", probe).await?;
        Ok(format!(
            "answered after {:.2} s",
            began.elapsed().as_secs_f64()
        ))
    }

    /// An answer counts only from an appliance that is there: one that died under the question is asked again when
    /// its zone's worker has brought it back.
    async fn probe_patiently(&self, request: &ProbeRequest) -> Result<(), StepError> {
        let gateway = &self.controller.ports().gateway;
        let appliance = &self.zone.appliance;
        let patience = self.controller.inner.pace.appliance;
        let began = Instant::now();
        loop {
            let Err(error) = gateway.probe(appliance, request).await else {
                return Ok(());
            };
            if gateway.look(appliance).await.is_ok() || began.elapsed() >= patience {
                return Err(error.into());
            }
            self.wake_zone();
            while gateway.look(appliance).await.is_err() && began.elapsed() < patience {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    /// What somebody waits for needs the appliance now, not at the zone's next look.
    fn wake_zone(&self) {
        if self.recorder.is_asked_for() {
            let zone = Object::Zone(self.zone.spec.name.clone());
            self.controller.wake(zone);
        }
    }

    /// Waits for something in the guest as long as the guest runs and nobody wants something else.
    async fn unless_it_ends(
        &self,
        what: &str,
        awaited: impl Future<Output = Result<(), StepError>>,
    ) -> Result<(), StepError> {
        tokio::pin!(awaited);
        loop {
            tokio::select! {
                outcome = &mut awaited => return outcome,
                () = self.wake.notified() => {
                    if self.superseded().await? {
                        return Err(StepError::Superseded);
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(500)) => {
                    let backend = &self.controller.ports().backend;
                    if backend.observe(&self.record.id).await?.state != GuestState::Running {
                        return Err(PortError::new(format!("wait for {what}"), "the guest stopped by itself").into());
                    }
                }
            }
        }
    }

    async fn settle(&mut self, action: InstanceAction) -> Result<(), StepError> {
        if action == InstanceAction::SettleRunning && self.recorder.is_asked_for() {
            // Its lease is remembered from now on.
            self.controller.wake_soon(&self.zone.spec.name);
        }
        let record = &mut self.record;
        match action {
            InstanceAction::SettleRunning => {
                record.status = AppStatus::Running;
                record.failure = None;
            }
            InstanceAction::SettleStopped => {
                record.status = AppStatus::Stopped;
                record.restart = false;
                record.failure = None;
            }
            InstanceAction::SettleLost => {
                record.status = AppStatus::Lost;
                record.routed = false;
                record.failure = Some(Failure {
                    step: "observe".into(),
                    cause: "its guest is gone from the node, and Proximity did not delete it"
                        .into(),
                    next: format!("proximity app delete {}, then deploy it again", record.name),
                    console_tail: vec![],
                });
            }
            InstanceAction::Forget => {
                let store = &self.controller.ports().store;
                store
                    .forget_instance(&record.id, self.controller.ports().entropy.now())
                    .await?;
                // Its operation ended with it; whatever fails from here on, who waits for it is told.
                self.controller.inner.feed.announce();
                return Ok(());
            }
            _ => {}
        }
        self.save().await
    }

    async fn save(&self) -> Result<(), StepError> {
        self.controller
            .ports()
            .store
            .save_progress(&self.record)
            .await?;
        Ok(())
    }

    /// Whether something else is wanted by now: another state, or the same by another operation.
    async fn superseded(&self) -> Result<bool, crate::store::StoreError> {
        let store = &self.controller.ports().store;
        let now = store.instance(&self.record.id).await?;
        if now.is_none_or(|r| r.desired != self.record.desired) {
            return Ok(true);
        }
        let open = store.open_operation(self.record.id.as_str()).await?;
        Ok(open.is_some_and(|o| !self.recorder.is_of(&o.id)))
    }

    /// All that was planned is done. An operation whose instance ended up failed or lost has failed,
    /// whoever noticed it; and what failed once and is well now is no failure any more.
    async fn conclude(&mut self) -> Result<Settled, Error> {
        if matches!(self.record.status, AppStatus::Failed | AppStatus::Lost) {
            self.recorder.finish(self.record.failure.as_ref()).await?;
            return Ok(self.settled());
        }
        if self.record.failure.take().is_some() {
            let store = &self.controller.ports().store;
            store.save_progress(&self.record).await?;
        }
        self.recorder.finish(None).await?;
        Ok(self.settled())
    }

    /// As wanted; what ends by itself is looked at again before its end and when its time is over.
    fn settled(&self) -> Settled {
        let now = self.controller.ports().entropy.now();
        match self.record.next_look(now) {
            None => Settled::Yes,
            Some(left) => Settled::Until(left.min(super::worker::PERIOD)),
        }
    }

    /// Deleting goes on past errors and reports all of them. The record is kept as long as anything
    /// of the guest may be left on the node. An appliance that can't be reached is no reason to stay:
    /// it gets its whole state when it comes back.
    async fn delete(&mut self, actions: &[InstanceAction]) -> Result<Settled, Error> {
        let mut errors: Vec<(&str, String)> = Vec::new();
        let mut left = false;
        for action in actions {
            if *action == InstanceAction::Forget && left {
                break;
            }
            match self.perform(*action).await {
                Ok(()) | Err(StepError::Superseded) => {}
                Err(StepError::Failed { cause, .. }) => {
                    left |= matches!(
                        action,
                        InstanceAction::Stop | InstanceAction::Destroy | InstanceAction::Forget
                    );
                    errors.push((action.step().unwrap_or("forget"), cause));
                }
            }
        }
        self.controller.wake_soon(&self.zone.spec.name);
        if !left {
            if let Some((step, cause)) = errors.first() {
                tracing::warn!(instance = %self.record.name, step, "deleted, but: {cause}");
            }
            self.recorder.finish(None).await?;
            return Ok(Settled::Gone);
        }
        let causes: Vec<String> = errors.iter().map(|(s, c)| format!("{s}: {c}")).collect();
        let failure = Failure {
            step: errors.first().map_or("destroy", |(s, _)| s).into(),
            cause: causes.join("; "),
            next: format!(
                "proximity app delete {} again, when the cause is mended",
                self.record.name
            ),
            console_tail: vec![],
        };
        self.record.failure = Some(failure.clone());
        self.controller
            .ports()
            .store
            .save_progress(&self.record)
            .await?;
        self.recorder.finish(Some(&failure)).await?;
        Ok(Settled::Unwell(failure.cause))
    }

    /// A step failed: the guest is kept to look at, and the failure names step, cause and next command.
    async fn failed(
        &mut self,
        step: &str,
        cause: String,
        hint: Option<String>,
    ) -> Result<Settled, Error> {
        let ports = self.controller.ports();
        let name = &self.record.name;
        let next = hint.unwrap_or_else(|| match (&self.record.spec.workload, step) {
            (Workload::Sandbox { .. }, _) => {
                format!("look at the cause, then: proximity sandbox kill {name}")
            }
            (Workload::App(app), "ready") => format!(
                "look inside: proximity exec {name} -- journalctl -b --no-pager -n 50; then: proximity app deploy {} {name} --resume",
                app.recipe
            ),
            (Workload::App(app), _) => match self.record.desired {
                InstanceDesired::Deleted => {
                    format!("when the cause is mended: proximity app delete {name}")
                }
                InstanceDesired::Stopped => {
                    format!("when the cause is mended: proximity app stop {name}")
                }
                InstanceDesired::Running => format!(
                    "when the cause is mended: proximity app deploy {} {name} --resume",
                    app.recipe
                ),
            },
        });
        let failure = Failure {
            step: step.into(),
            cause,
            next,
            console_tail: ports.backend.console_tail(&self.record.id, 20).await,
        };
        if self.recorder.is_asked_for() && self.record.desired == InstanceDesired::Running {
            self.record.status = AppStatus::Failed;
        }
        self.record.failure = Some(failure.clone());
        ports.store.save_progress(&self.record).await?;
        self.recorder.finish(Some(&failure)).await?;
        if self.recorder.is_asked_for() {
            Ok(self.settled())
        } else {
            // Nobody waits: after a restart of the node the appliance may only just be coming back.
            Ok(Settled::Unwell(failure.cause))
        }
    }
}

fn begin_text(action: InstanceAction) -> &'static str {
    use InstanceAction as A;
    match action {
        A::BuildImage => "building the image (once)",
        A::Publish => "publishing address and name",
        A::Create => "cloning the image",
        A::Start => "starting the guest",
        A::AwaitAgent => "waiting for the guest's agent",
        A::AwaitReady => "waiting for the app's own answer",
        A::OpenRoute => "opening the route",
        A::CloseRoute => "closing the route",
        A::Stop => "stopping the guest",
        A::Destroy => "removing the guest",
        A::Withdraw => "giving address and name back",
        A::SettleRunning | A::SettleLost | A::SettleStopped | A::Forget => "",
    }
}
