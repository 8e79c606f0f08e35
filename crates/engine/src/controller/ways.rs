//! Which channels lead to a guest, and which of them may be used. A guest can't choose: killing its
//! agent must not force a command onto a channel with more power.

use std::sync::Arc;

use api::app::AppStatus;

use super::Controller;
use crate::error::Error;
use crate::instance::{InstanceRecord, Workload};
use crate::ports::{Channel, ChannelError, ChannelTarget};
use crate::zone::ZoneRecord;

/// A guest that was looked for ahead of a call, and how it is reached. Good for that call only: the next one may
/// find it elsewhere, or stopped.
#[derive(Clone)]
pub struct FoundGuest(Way);

/// How a guest is reached.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) target: ChannelTarget,
    pub(super) channels: Vec<Arc<dyn Channel>>,
}

pub(super) fn no_channel() -> ChannelError {
    ChannelError::Unreachable("the node has no channel into it".into())
}

impl Controller {
    pub(super) async fn best_way(
        &self,
        name: &str,
    ) -> Result<(Arc<dyn Channel>, ChannelTarget), Error> {
        let way = self.way_to(name, None).await?;
        let channel = way.channels.into_iter().next().ok_or_else(no_channel)?;
        Ok((channel, way.target))
    }

    /// The guest of that name and the channels that may be used for it, first choice first. One that is
    /// asked for by name must be among them: a caller can't widen what the operator allowed.
    pub(super) async fn way_to(&self, name: &str, asked: Option<&str>) -> Result<Way, Error> {
        allowed(self.guest_named(name).await?, name, asked)
    }

    /// Looks for a guest that the next call will need, so that whoever has to wait for something else meanwhile
    /// waits once. None when there is none that could be reached; the call itself says why.
    pub async fn find_guest(&self, name: &str) -> Option<FoundGuest> {
        self.guest_named(name).await.ok().map(FoundGuest)
    }

    /// As [`Controller::way_to`], for a guest that may have been found already.
    pub(super) async fn way_to_found(
        &self,
        found: Option<FoundGuest>,
        name: &str,
        asked: Option<&str>,
    ) -> Result<Way, Error> {
        match found {
            Some(FoundGuest(way)) => allowed(way, name, asked),
            None => self.way_to(name, asked).await,
        }
    }

    /// The channels that may be used for an instance: sandboxes by their agent only, apps as the node's
    /// configuration says.
    pub(super) fn channels_of(&self, record: &InstanceRecord) -> Vec<Arc<dyn Channel>> {
        let zone = self.inner.config.zones.get(&record.zone);
        let node = zone.and_then(|z| self.inner.config.nodes.get(&z.node));
        match (&record.spec.workload, node) {
            (Workload::App(_), Some(node)) => self.channels(&node.channels),
            _ => self.channels(&["agent"]),
        }
    }

    /// The appliance has no guest's agent; its relay runs no commands.
    pub(super) fn channels_of_appliance(&self) -> Vec<Arc<dyn Channel>> {
        self.channels(&["lxc-attach"])
    }

    fn channels(&self, names: &[impl AsRef<str>]) -> Vec<Arc<dyn Channel>> {
        let known = &self.ports().channels;
        names
            .iter()
            .filter_map(|n| known.iter().find(|c| c.name() == n.as_ref()).cloned())
            .collect()
    }

    async fn guest_named(&self, name: &str) -> Result<Way, Error> {
        let store = &self.ports().store;
        let guest = match name.parse() {
            Ok(name) => store.guest_named(&name).await?,
            Err(_) => None,
        };
        let Some((record, zone)) = guest else {
            return self.appliance_named(name).await;
        };
        if matches!(
            record.status,
            AppStatus::Stopped | AppStatus::Lost | AppStatus::Deleting
        ) {
            let hint = match record.status {
                AppStatus::Stopped => {
                    format!("start it first: proximity app start {}", record.name)
                }
                _ => format!("look at it: proximity {} list", record.kind()),
            };
            return Err(Error::WrongState {
                hint,
                state: record.status.as_str(),
                name: record.name,
            });
        }
        Ok(Way {
            target: record.channel_target(&zone),
            channels: self.channels_of(&record),
        })
    }

    /// The appliance of that name; else what is said of a name that nobody has.
    async fn appliance_named(&self, name: &str) -> Result<Way, Error> {
        let zones = self.ports().store.zones().await?;
        let named = |zone: &&ZoneRecord| zone.spec.appliance.name.as_str() == name;
        if let Some(zone) = zones.iter().find(named) {
            return Ok(Way {
                target: zone.channel_target(),
                channels: self.channels_of_appliance(),
            });
        }
        let record = self.instance_named(name).await?;
        Err(Error::UnknownZone(record.zone.to_string()))
    }
}

/// The way with the channels that a caller may use: all of them, or the one asked for.
fn allowed(mut way: Way, name: &str, asked: Option<&str>) -> Result<Way, Error> {
    let Some(asked) = asked else {
        return Ok(way);
    };
    let names: Vec<&str> = way.channels.iter().map(|c| c.name()).collect();
    let hint = format!(
        "channels of {name}: {}; an operator adds to those of apps with `nodes.NAME.channels`",
        names.join(", ")
    );
    way.channels.retain(|c| c.name() == asked);
    if way.channels.is_empty() {
        return Err(Error::BadRequest {
            what: format!("{name} is not reached by the channel {asked:?}"),
            hint,
        });
    }
    Ok(way)
}
