//! Instances: guests that people asked for, as the store keeps them.
//!
//! Owns the record and what follows from it by arithmetic. What to do next is [`plan`]'s business.

pub mod plan;

use std::net::Ipv4Addr;
use std::time::Duration;

use api::app::{App, AppStatus, Failure, Limits};
use api::egress::Egress;
use api::sandbox::Sandbox;
use api::{
    HostName, ImageDigest, ImageName, InstanceId, InstanceName, MacAddr, RecipeId, ZoneName,
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use wire::gateway::policy::RoutePolicy;
use wire::gateway::{Readiness, ReservedHost, Route};

use crate::catalog::GuestFile;
use crate::image::ImageSpec;
use crate::ports::{ChannelTarget, GuestSpec, Nic};
use crate::zone::{ZoneRecord, ZoneSpec};

/// How long before its end a sandbox is warned of it, unless a tenth of its life is less.
const WARNED_AHEAD: SignedDuration = SignedDuration::from_secs(60);

/// What is wanted of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceDesired {
    /// Running and answering.
    Running,
    /// There, not running.
    Stopped,
    /// Gone.
    Deleted,
}

/// What an instance was asked to be: kept as it was at deploy, whatever becomes of its recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// What it is for.
    pub workload: Workload,
    /// What it is cloned from.
    pub image: ImageSpec,
    /// The digest of `image`.
    pub image_digest: ImageDigest,
    /// What it may use.
    pub limits: Limits,
    /// Files written before its first start.
    pub files: Vec<GuestFile>,
}

/// What an instance is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Workload {
    /// An app of the catalog.
    App(AppWorkload),
    /// A sandbox.
    Sandbox {
        /// The name of the image it was made of.
        image: ImageName,
    },
}

/// What is particular to an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppWorkload {
    /// The recipe it was made of.
    pub recipe: RecipeId,
    /// The port it answers on.
    pub port: u16,
    /// What counts as its own answer.
    pub readiness: Readiness,
    /// How long the first answer may take, in seconds.
    pub ready_timeout_s: u32,
}

/// An instance as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub name: InstanceName,
    /// The zone it lives in.
    pub zone: ZoneName,
    /// Its reserved address.
    pub address: Ipv4Addr,
    /// What it should be.
    pub spec: InstanceSpec,
    /// What it may reach outside its zone.
    pub egress: Egress,
    /// What is wanted.
    pub desired: InstanceDesired,
    /// Where it is in its life.
    pub status: AppStatus,
    /// Whether its address and name should be in the gateway.
    pub published: bool,
    /// Whether its route should be open.
    pub routed: bool,
    /// Whether it must be stopped once before it may count as running.
    pub restart: bool,
    /// What stopped it.
    pub failure: Option<Failure>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it ends by itself; sandboxes only.
    pub expires_at: Option<Timestamp>,
}

impl InstanceRecord {
    /// Its Ethernet address.
    pub fn mac(&self, zone: &ZoneSpec) -> MacAddr {
        zone.mac_of(self.address)
    }

    /// Its host name in the zone's reverse proxy.
    pub fn host(&self, zone: &ZoneSpec) -> HostName {
        HostName::in_domain(&self.name, &zone.domain)
    }

    /// It as a guest.
    pub fn guest(&self, zone: &ZoneSpec) -> GuestSpec {
        // A lease alone would cost a sandbox more time than its start.
        let fixed = self.is_sandbox();
        GuestSpec {
            id: self.id.clone(),
            name: self.name.clone(),
            zone: self.zone.clone(),
            kind: self.kind().into(),
            image: self.spec.image_digest.clone(),
            limits: self.spec.limits,
            nics: vec![Nic {
                bridge: zone.bridge.clone(),
                mac: self.mac(zone),
                address: fixed.then(|| zone.with_prefix(self.address)).flatten(),
                gateway: fixed.then(|| zone.gateway()),
                lease: (!fixed).then_some(self.address),
            }],
            files: crate::zone::network_files(zone, &self.name)
                .into_iter()
                .chain(self.spec.files.iter().cloned())
                .collect(),
        }
    }

    /// Its reservation, as the gateway publishes it.
    pub fn reserved_host(&self, zone: &ZoneSpec) -> ReservedHost {
        ReservedHost {
            instance: self.id.clone(),
            name: self.name.clone(),
            mac: self.mac(zone),
            address: self.address,
        }
    }

    /// Its route, as the gateway opens it; a sandbox has none.
    pub fn route(&self, zone: &ZoneSpec) -> Option<Route> {
        Some(Route {
            host: self.host(zone),
            instance: self.id.clone(),
            port: self.as_app()?.port,
            policy: RoutePolicy::default(),
        })
    }

    /// What is particular to it as an app, if it is one.
    pub fn as_app(&self) -> Option<&AppWorkload> {
        match &self.spec.workload {
            Workload::App(app) => Some(app),
            Workload::Sandbox { .. } => None,
        }
    }

    /// When it is warned of its end.
    pub fn warned_at(&self) -> Option<Timestamp> {
        let end = self.expires_at?;
        let life = end.duration_since(self.created_at);
        let ahead = (life / 10).clamp(SignedDuration::ZERO, WARNED_AHEAD);
        end.checked_sub(ahead).ok()
    }

    /// How long until its worker has to look at it: at the warning, then at the end.
    pub fn next_look(&self, now: Timestamp) -> Option<Duration> {
        let moments = [self.warned_at(), self.expires_at];
        let next = moments.into_iter().flatten().find(|at| *at > now);
        let left = next.or(self.expires_at)?.duration_since(now);
        Some(Duration::try_from(left).unwrap_or_default())
    }

    /// Whether its time is over.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether it is a sandbox.
    pub fn is_sandbox(&self) -> bool {
        matches!(self.spec.workload, Workload::Sandbox { .. })
    }

    /// The word list's name for what it is.
    pub fn kind(&self) -> &'static str {
        match &self.spec.workload {
            Workload::App(_) => "app",
            Workload::Sandbox { .. } => "sandbox",
        }
    }

    /// It as a channel must know it.
    pub fn channel_target(&self, zone: &ZoneRecord) -> ChannelTarget {
        ChannelTarget {
            id: self.id.clone(),
            zone: self.zone.clone(),
            address: self.address,
            appliance: zone.appliance.clone(),
        }
    }

    /// It as the API shows a sandbox at this moment, if it is one.
    pub fn sandbox(&self, now: Timestamp) -> Option<Sandbox> {
        let Workload::Sandbox { image } = &self.spec.workload else {
            return None;
        };
        Some(Sandbox {
            name: self.name.clone(),
            id: self.id.clone(),
            image: image.clone(),
            zone: self.zone.clone(),
            ip: self.address,
            status: self.status,
            failure: self.failure.clone(),
            limits: self.spec.limits,
            egress: self.egress.clone(),
            created_at: self.created_at.to_string(),
            expires_at: self.expires_at.map(|t| t.to_string()).unwrap_or_default(),
            expires_in_s: self
                .expires_at
                .and_then(|t| u64::try_from(t.duration_since(now).as_secs()).ok())
                .unwrap_or_default(),
            // Rounded up: 0 means that the warning is due.
            warned_in_s: self
                .warned_at()
                .and_then(|t| u64::try_from(t.duration_since(now).as_millis()).ok())
                .map(|ms| ms.div_ceil(1000))
                .unwrap_or_default(),
        })
    }

    /// It as the API shows an app, if it is one.
    pub fn app(&self, zone: &ZoneSpec) -> Option<App> {
        let workload = self.as_app()?;
        Some(App {
            name: self.name.clone(),
            id: self.id.clone(),
            app_id: workload.recipe.clone(),
            zone: self.zone.clone(),
            vmid: None,
            ip: self.address,
            mac: self.mac(zone),
            port: workload.port,
            url: format!("http://{}/", self.host(zone)),
            status: self.status,
            failure: self.failure.clone(),
            image: self.spec.image_digest.clone(),
            limits: self.spec.limits,
            egress: self.egress.clone(),
            created_at: self.created_at.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_life_is_warned_of_later() {
        let created_at = Timestamp::from_second(1_700_000_000).unwrap();
        let check = |life_s: i64, now_s: i64, look_s: Option<u64>, warned_in_s: u64| {
            let at = |s| created_at + SignedDuration::from_secs(s);
            let image = "debian".parse().unwrap();
            let mut record = crate::fake::instance_record("box");
            record.spec.workload = Workload::Sandbox { image };
            record.created_at = created_at;
            record.expires_at = (life_s > 0).then(|| at(life_s));
            let look = record.next_look(at(now_s));
            assert_eq!(look, look_s.map(Duration::from_secs), "{life_s} {now_s}");
            let shown = record.sandbox(at(now_s)).unwrap();
            assert_eq!(shown.warned_in_s, warned_in_s, "{life_s} {now_s}");
        };
        check(3600, 0, Some(3540), 3540);
        check(3600, 3539, Some(1), 1);
        check(3600, 3540, Some(60), 0);
        check(3600, 3700, Some(0), 0);
        check(100, 0, Some(90), 90);
        check(100, 90, Some(10), 0);
        check(0, 0, None, 0);
    }
}
