//! Sandboxes: made in one call, ended by their time or by a person.

use std::time::Duration;

use api::app::AppStatus;
use api::operation::{OperationEvent, StepState};
use api::sandbox::{DEFAULT_TTL_S, MAX_TTL_S, Sandbox, SandboxRequest};
use api::{InstanceName, OperationId};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::Controller;
use super::requests::check_limits;
use crate::error::Error;
use crate::instance::{InstanceDesired, InstanceRecord, InstanceSpec, Workload};
use crate::store::NewOperation;

/// What a sandbox is made of when nothing is said.
const DEFAULT_IMAGE: &str = "debian";
/// The shortest life: less would end before its first command.
const MIN_TTL_S: u64 = 10;

impl Controller {
    /// Makes a sandbox. Its name and address are reserved when this returns.
    pub async fn create_sandbox(
        &self,
        request: &SandboxRequest,
    ) -> Result<(OperationId, InstanceName), Error> {
        let zone = self.zone_for_deploy(request.zone.as_deref()).await?;
        let wanted = request.image.as_deref().unwrap_or(DEFAULT_IMAGE);
        let image = self.catalog().sandbox(wanted).ok_or_else(|| {
            let known: Vec<&str> = self.catalog().sandboxes().map(|s| s.id.as_str()).collect();
            Error::BadRequest {
                what: format!("there is no sandbox image {wanted:?}"),
                hint: format!("images for sandboxes: {}", known.join(", ")),
            }
        })?;
        let id = self.new_instance_id()?;
        let name = match &request.name {
            Some(name) => name.parse()?,
            None => format!("sandbox-{:.8}", id.as_str().trim_start_matches("i-")).parse()?,
        };
        self.refuse_reserved(&name).await?;
        let now = self.ports().entropy.now();
        let record = InstanceRecord {
            id,
            name,
            zone: zone.spec.name.clone(),
            address: zone.spec.gateway(),
            spec: InstanceSpec {
                workload: Workload::Sandbox {
                    image: image.id.clone(),
                },
                image_digest: image.image.digest(),
                image: image.image.clone(),
                limits: check_limits(image.limits, &request.limits)?,
                files: vec![],
            },
            egress: request.egress.clone(),
            desired: InstanceDesired::Running,
            status: AppStatus::Deploying,
            published: false,
            routed: false,
            restart: false,
            failure: None,
            created_at: now,
            expires_at: Some(ends_at(now, request.ttl_s.unwrap_or(DEFAULT_TTL_S))?),
        };
        self.begin_deploy(record, &zone.spec, None).await
    }

    /// All sandboxes, by name.
    pub async fn sandboxes(&self) -> Result<Vec<Sandbox>, Error> {
        let instances = self.ports().store.instances().await?;
        let now = self.ports().entropy.now();
        Ok(instances.iter().filter_map(|i| i.sandbox(now)).collect())
    }

    /// One sandbox, by its name or its id.
    pub async fn sandbox(&self, name: &str) -> Result<Sandbox, Error> {
        let record = self.sandbox_record(name).await?;
        let now = self.ports().entropy.now();
        record.sandbox(now).ok_or_else(|| unknown(name))
    }

    /// Lets a sandbox live so long from now on.
    pub async fn extend_sandbox(&self, name: &str, ttl_s: u64) -> Result<Sandbox, Error> {
        let mut record = self.sandbox_record(name).await?;
        let now = self.ports().entropy.now();
        let expires_at = ends_at(now, ttl_s)?;
        // The store decides, not the record read above: its end may have begun since.
        if !self
            .ports()
            .store
            .set_expiry(&record.id, expires_at)
            .await?
        {
            return Err(Error::WrongState {
                name: record.name,
                state: AppStatus::Deleting.as_str(),
                hint: "it is on its way out; make another one: proximity sandbox create".into(),
            });
        }
        record.expires_at = Some(expires_at);
        // Its worker may sleep until the old time.
        self.wake(super::Object::Instance(record.id.clone()));
        record.sandbox(now).ok_or_else(|| unknown(name))
    }

    /// Ends a sandbox, whatever it is doing.
    pub async fn kill_sandbox(&self, name: &str) -> Result<OperationId, Error> {
        let record = self.sandbox_record(name).await?;
        self.change(record, "delete").await
    }

    /// Begins the end of an instance whose time was over when `record` was read. One that was given more time
    /// since lives on.
    pub(super) async fn expire(&self, mut record: InstanceRecord) -> Result<(), Error> {
        record.desired = InstanceDesired::Deleted;
        record.status = AppStatus::Deleting;
        record.failure = None;
        let operation = self.new_operation("expire", record.name.as_str(), record.id.as_str())?;
        if self.ports().store.begin_expiry(&record, &operation).await? {
            tracing::info!(instance.name = %record.name, "its time is over");
            self.inner.feed.announce();
        }
        Ok(())
    }

    /// Publishes once for each end that it is near, as an operation that is over as it begins.
    pub(super) async fn warn_of_end(&self, record: &InstanceRecord) -> Result<(), Error> {
        let now = self.ports().entropy.now();
        let Some(end) = record.expires_at else {
            return Ok(());
        };
        let due = record.warned_at().is_some_and(|at| at <= now);
        if !due || record.desired == InstanceDesired::Deleted {
            return Ok(());
        }
        // The id follows from sandbox and end: whoever writes it a second time finds it there.
        let about = Sha256::digest(format!("warn {} {end}", record.id));
        let mut id = [0; 8];
        id.iter_mut().zip(about).for_each(|(to, from)| *to = from);
        let operation = NewOperation {
            id: OperationId::from_bytes(id),
            ..self.new_operation("warn", record.name.as_str(), record.id.as_str())?
        };
        let event = OperationEvent {
            seq: 1,
            time: now.to_string(),
            step: "expiry".into(),
            state: StepState::Done,
            message: format!(
                "it ends at {end}; more time: proximity sandbox extend {}",
                record.name
            ),
            elapsed_ms: None,
        };
        if self.ports().store.note(&operation, &event).await? {
            tracing::info!(instance.name = %record.name, "{}", event.message);
            self.inner.feed.announce();
        }
        Ok(())
    }

    async fn sandbox_record(&self, name: &str) -> Result<InstanceRecord, Error> {
        let record = match name.parse() {
            Ok(id) => self.ports().store.instance(&id).await?,
            Err(_) => self.instance_named(name).await.map(Some)?,
        };
        record
            .filter(InstanceRecord::is_sandbox)
            .ok_or_else(|| unknown(name))
    }
}

fn unknown(name: &str) -> Error {
    Error::UnknownInstance(name.chars().take(80).collect())
}

fn ends_at(now: Timestamp, ttl_s: u64) -> Result<Timestamp, Error> {
    let out_of_range = || Error::BadRequest {
        what: format!("a life of {ttl_s} s is out of range"),
        hint: format!("{MIN_TTL_S} s to {} days", MAX_TTL_S / 86_400),
    };
    if !(MIN_TTL_S..=MAX_TTL_S).contains(&ttl_s) {
        return Err(out_of_range());
    }
    now.checked_add(Duration::from_secs(ttl_s))
        .map_err(|_| out_of_range())
}
