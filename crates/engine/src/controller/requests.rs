//! What people ask for. Each request is checked as a whole, written with its operation, and then
//! left to a worker. A refused request changes nothing.

use api::app::{AppStatus, DeployRequest, Limits, LimitsRequest};
use api::{InstanceName, OperationId};

use super::{Controller, Object};
use crate::catalog::Recipe;
use crate::error::Error;
use crate::instance::{AppWorkload, InstanceDesired, InstanceRecord, InstanceSpec, Workload};
use crate::ports::GuestState;
use crate::store::{NewOperation, StoreError};
use crate::zone::{ZoneDesired, ZoneRecord, ZoneSpec};

/// How `down` treats what is in the way.
#[derive(Debug, Clone, Copy, Default)]
pub struct DownOptions {
    /// Delete the zone's instances too.
    pub with_instances: bool,
}

impl Controller {
    /// Brings a zone up.
    pub async fn zone_up(&self, name: Option<&str>) -> Result<OperationId, Error> {
        let spec = self.configured_zone(name)?.clone();
        let old = self.ports().store.zone(&spec.name).await?;
        if let Some(old) = &old {
            self.refuse_moved_network(old, &spec).await?;
        }
        let observed = self.ports().network.observe(&spec.node_network()).await?;
        if let Some(what) = observed.conflicts.first() {
            return Err(Error::Conflict {
                what: what.clone(),
                hint: format!(
                    "choose another subnet or bridge for zone {} in the configuration",
                    spec.name
                ),
            });
        }
        if old.is_none() {
            self.refuse_beside_orphan(&spec).await?;
        }
        let record = ZoneRecord {
            appliance: match &old {
                Some(old) => old.appliance.clone(),
                None => self.new_instance_id()?,
            },
            desired: ZoneDesired::Up,
            settled: false,
            spec,
        };
        self.begin_zone(record, "zone_up", true).await
    }

    /// Two appliances of one zone would have one address.
    async fn refuse_beside_orphan(&self, spec: &ZoneSpec) -> Result<(), Error> {
        let orphans = self.orphans().await?;
        let in_the_way = orphans.into_iter().find(|o| {
            o.kind.as_deref() == Some("appliance")
                && o.zone.as_deref() == Some(spec.name.as_str())
                && o.state == GuestState::Running.as_str()
        });
        match in_the_way {
            None => Ok(()),
            Some(orphan) => Err(Error::Conflict {
                what: format!(
                    "an appliance of zone {} that stands in no record runs: {}",
                    spec.name, orphan.id
                ),
                hint: format!("remove it first: proximity orphan remove {}", orphan.id),
            }),
        }
    }

    async fn begin_zone(
        &self,
        record: ZoneRecord,
        kind: &str,
        with_instances: bool,
    ) -> Result<OperationId, Error> {
        let name = record.spec.name.clone();
        let operation = self.new_operation(kind, name.as_str(), name.as_str())?;
        self.ports()
            .store
            .begin_zone(&record, &operation, with_instances)
            .await?;
        self.inner.feed.announce();
        self.wake(Object::Zone(name));
        Ok(operation.id)
    }

    /// What guests were told of their network can't be changed under them.
    async fn refuse_moved_network(&self, old: &ZoneRecord, new: &ZoneSpec) -> Result<(), Error> {
        let was = &old.spec;
        let differs: Vec<&str> = [
            ("bridge", was.bridge != new.bridge),
            ("subnet", was.subnet != new.subnet),
            ("domain", was.domain != new.domain),
            ("node", was.node != new.node),
            ("wan", was.wan != new.wan),
        ]
        .into_iter()
        .filter_map(|(what, differs)| differs.then_some(what))
        .collect();
        if differs.is_empty() {
            return Ok(());
        }
        Err(Error::Conflict {
            what: format!(
                "zone {} is up with another {}",
                was.name,
                differs.join(", ")
            ),
            hint: format!(
                "a zone's network can't change while it is up: proximity down --zone {}, then proximity up",
                was.name
            ),
        })
    }

    /// Takes a zone down.
    pub async fn zone_down(
        &self,
        name: Option<&str>,
        options: DownOptions,
    ) -> Result<OperationId, Error> {
        let store = &self.ports().store;
        let known = store.zones().await?;
        // A zone that left the configuration can still be taken down.
        let wanted = match name {
            Some(n) => n.to_owned(),
            None => self.configured_zone(None)?.name.to_string(),
        };
        let Some(mut zone) = known.into_iter().find(|z| z.spec.name.as_str() == wanted) else {
            self.configured_zone(Some(&wanted))?;
            return Err(Error::ZoneDown(wanted.parse().map_err(Error::Invalid)?));
        };
        zone.desired = ZoneDesired::Down;
        zone.settled = false;
        // From here on nothing can be deployed into it; its worker deletes what is left in it.
        self.begin_zone(zone, "zone_down", options.with_instances)
            .await
    }

    /// Deploys an app. The name and address are reserved when this returns.
    pub async fn deploy(
        &self,
        request: &DeployRequest,
    ) -> Result<(OperationId, InstanceName), Error> {
        let catalog = &self.inner.catalog;
        let recipe = catalog
            .get(&request.app_id)
            .ok_or_else(|| Error::UnknownRecipe {
                id: request.app_id.clone(),
                nearest: catalog.nearest(&request.app_id).cloned(),
            })?;
        let named = request
            .instance_name
            .as_deref()
            .map(str::parse)
            .transpose()?;
        if request.resume {
            return self.resume(recipe, named).await;
        }
        let zone = self.zone_for_deploy(request.zone.as_deref()).await?;
        let files = recipe
            .files(&request.config)
            .map_err(|what| Error::BadRequest {
                what,
                hint: format!("what can be set: proximity app catalog {}", recipe.id),
            })?;
        let name = match named {
            Some(n) => n,
            None => self.free_name(recipe).await?,
        };
        self.refuse_reserved(&name).await?;
        let record = InstanceRecord {
            id: self.new_instance_id()?,
            name,
            zone: zone.spec.name.clone(),
            address: zone.spec.gateway(),
            spec: InstanceSpec {
                workload: Workload::App(AppWorkload {
                    recipe: recipe.id.clone(),
                    port: recipe.port,
                    readiness: recipe.readiness.clone(),
                    ready_timeout_s: recipe.ready_timeout_s,
                }),
                image: recipe.image.clone(),
                image_digest: recipe.image.digest(),
                limits: check_limits(recipe.limits, &request.limits)?,
                files,
            },
            egress: request.egress.clone(),
            desired: InstanceDesired::Running,
            status: AppStatus::Deploying,
            published: false,
            routed: false,
            restart: false,
            failure: None,
            created_at: self.ports().entropy.now(),
            expires_at: None,
        };
        let ours_to_name = request.instance_name.is_none().then_some(recipe);
        self.begin_deploy(record, &zone.spec, ours_to_name).await
    }

    /// Writes the instance with its operation. With a recipe to name it by, a name that somebody else
    /// took meanwhile is replaced by the next one.
    pub(super) async fn begin_deploy(
        &self,
        mut record: InstanceRecord,
        zone: &ZoneSpec,
        ours_to_name: Option<&Recipe>,
    ) -> Result<(OperationId, InstanceName), Error> {
        let store = &self.ports().store;
        let range = match record.is_sandbox() {
            true => zone.static_range(),
            false => zone.dhcp_range(),
        };
        loop {
            let operation =
                self.new_operation("deploy", record.name.as_str(), record.id.as_str())?;
            match store.begin_deploy(&record, range, &operation).await {
                Ok(_) => {
                    self.inner.feed.announce();
                    self.wake(Object::Instance(record.id));
                    return Ok((operation.id, record.name));
                }
                Err(StoreError::NameTaken(_)) if ours_to_name.is_some() => {}
                Err(e) => return Err(e.into()),
            }
            if let Some(recipe) = ours_to_name {
                record.name = self.free_name(recipe).await?;
            }
        }
    }

    async fn resume(
        &self,
        recipe: &Recipe,
        name: Option<InstanceName>,
    ) -> Result<(OperationId, InstanceName), Error> {
        let name = name.ok_or_else(|| Error::BadRequest {
            what: "resume needs the instance's name".into(),
            hint: format!("proximity app deploy {} NAME --resume", recipe.id),
        })?;
        let mut record = self.instance_named(name.as_str()).await?;
        let made_of = record.as_app().map(|app| &app.recipe);
        let made_of = made_of.ok_or_else(|| Error::UnknownInstance(name.to_string()))?;
        if *made_of != recipe.id {
            return Err(Error::BadRequest {
                what: format!("{name} was deployed from recipe {made_of}"),
                hint: format!("proximity app deploy {made_of} {name} --resume"),
            });
        }
        if record.status != AppStatus::Failed {
            return Err(Error::WrongState {
                name,
                state: record.status.as_str(),
                hint: "only a failed deploy can be resumed".into(),
            });
        }
        record.status = AppStatus::Deploying;
        record.desired = InstanceDesired::Running;
        record.failure = None;
        let operation = self.new_operation("deploy", name.as_str(), record.id.as_str())?;
        self.ports()
            .store
            .begin_change(&record, &operation, false)
            .await?;
        self.inner.feed.announce();
        self.wake(Object::Instance(record.id));
        Ok((operation.id, name))
    }

    pub(super) async fn zone_for_deploy(&self, name: Option<&str>) -> Result<ZoneRecord, Error> {
        let spec = self.configured_zone(name)?;
        match self.ports().store.zone(&spec.name).await? {
            Some(zone) if zone.desired == ZoneDesired::Up => Ok(zone),
            _ => Err(Error::ZoneDown(spec.name.clone())),
        }
    }

    pub(super) async fn refuse_reserved(&self, name: &InstanceName) -> Result<(), Error> {
        if name.is_reserved() || self.is_appliance(name).await? {
            return Err(Error::BadRequest {
                what: format!("the name {name} is reserved"),
                hint: "it means something to resolvers, browsers or Proximity; choose another one"
                    .into(),
            });
        }
        Ok(())
    }

    async fn is_appliance(&self, name: &InstanceName) -> Result<bool, Error> {
        let up = self.ports().store.zones().await?;
        let configured = self.inner.config.zones.values();
        Ok(configured
            .chain(up.iter().map(|z| &z.spec))
            .any(|z| z.appliance.name == *name))
    }

    /// `nginx`, `nginx-2`, `nginx-3` …
    async fn free_name(&self, recipe: &Recipe) -> Result<InstanceName, Error> {
        let taken: Vec<InstanceName> = self
            .ports()
            .store
            .instances()
            .await?
            .into_iter()
            .map(|i| i.name)
            .collect();
        let mut number = 1;
        loop {
            let name: InstanceName = match number {
                1 => recipe.id.as_str().parse()?,
                n => format!("{}-{n}", recipe.id).parse()?,
            };
            if !taken.contains(&name) {
                return Ok(name);
            }
            number += 1;
        }
    }

    /// Deletes an instance, whatever it is doing.
    pub async fn delete(&self, name: &str) -> Result<OperationId, Error> {
        let record = self.app_named(name).await?;
        self.change(record, "delete").await
    }

    /// Starts, stops or restarts an instance.
    pub async fn set_power(&self, name: &str, kind: Power) -> Result<OperationId, Error> {
        let record = self.app_named(name).await?;
        if matches!(
            record.status,
            AppStatus::Deploying | AppStatus::Failed | AppStatus::Lost | AppStatus::Deleting
        ) {
            return Err(Error::WrongState {
                hint: format!("look at it: proximity app show {}", record.name),
                state: record.status.as_str(),
                name: record.name,
            });
        }
        self.change(record, kind.as_str()).await
    }

    pub(super) async fn change(
        &self,
        mut record: InstanceRecord,
        kind: &str,
    ) -> Result<OperationId, Error> {
        match kind {
            "delete" => {
                record.desired = InstanceDesired::Deleted;
                record.status = AppStatus::Deleting;
                record.failure = None;
            }
            "stop" => record.desired = InstanceDesired::Stopped,
            "restart" => {
                record.desired = InstanceDesired::Running;
                record.restart = true;
            }
            _ => record.desired = InstanceDesired::Running,
        }
        let operation = self.new_operation(kind, record.name.as_str(), record.id.as_str())?;
        let supersede = record.desired == InstanceDesired::Deleted;
        self.ports()
            .store
            .begin_change(&record, &operation, supersede)
            .await?;
        self.inner.feed.announce();
        self.wake(Object::Instance(record.id));
        Ok(operation.id)
    }

    pub(super) fn new_operation(
        &self,
        kind: &str,
        target: &str,
        object: &str,
    ) -> Result<NewOperation, Error> {
        Ok(NewOperation {
            id: self.new_operation_id()?,
            kind: kind.into(),
            target: target.into(),
            object: object.into(),
            at: self.ports().entropy.now(),
        })
    }

    async fn app_named(&self, name: &str) -> Result<InstanceRecord, Error> {
        let record = self.instance_named(name).await?;
        match record.as_app() {
            Some(_) => Ok(record),
            None => Err(Error::BadRequest {
                what: format!("{} is a {}, not an app", record.name, record.kind()),
                hint: format!("proximity sandbox kill {}", record.name),
            }),
        }
    }

    pub(crate) async fn instance_named(&self, name: &str) -> Result<InstanceRecord, Error> {
        let unknown = || Error::UnknownInstance(name.chars().take(80).collect());
        let parsed: InstanceName = name.parse().map_err(|_| unknown())?;
        let found = self.ports().store.instance_named(&parsed).await?;
        found.ok_or_else(unknown)
    }
}

/// Starting and stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Stop it, then start it.
    Restart,
}

impl Power {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

pub(super) fn check_limits(recipe: Limits, asked: &LimitsRequest) -> Result<Limits, Error> {
    let limits = Limits {
        cpu_millis: asked.cpu_millis.unwrap_or(recipe.cpu_millis),
        memory_mb: asked.memory_mb.unwrap_or(recipe.memory_mb),
        pids: asked.pids.unwrap_or(recipe.pids),
        disk_gb: asked.disk_gb.or(recipe.disk_gb),
    };
    for (what, value, low, high) in [
        ("cpu_millis", limits.cpu_millis, 50, 256_000),
        ("memory_mb", limits.memory_mb, 32, 4_194_304),
        ("pids", limits.pids, 16, 1_000_000),
        ("disk_gb", limits.disk_gb.unwrap_or(1), 1, 65_536),
    ] {
        if value < low || value > high {
            return Err(Error::BadRequest {
                what: format!("{what}: {value} is out of range"),
                hint: format!("{low} to {high}"),
            });
        }
    }
    Ok(limits)
}
