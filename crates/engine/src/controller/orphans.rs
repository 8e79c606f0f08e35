//! Orphans: guests that carry our mark and stand in no record, as a lost database or a copied directory leaves
//! them. They are told of, and removed only when somebody says which.

use std::time::Duration;

use api::InstanceId;
use api::status::Orphan;

use super::Controller;
use crate::error::Error;
use crate::ports::GuestState;

impl Controller {
    /// All orphans of the node, by id.
    pub async fn orphans(&self) -> Result<Vec<Orphan>, Error> {
        let backend = &self.ports().backend;
        // The node first: whatever is made meanwhile had its record before it had a mark.
        let mut inventory = backend.inventory().await?;
        inventory.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        let mut orphans = Vec::new();
        for id in inventory {
            if self.is_recorded(&id).await? {
                continue;
            }
            let observed = backend.observe(&id).await?;
            let of_mark =
                |read: fn(&crate::ports::GuestSpec) -> String| observed.spec.as_ref().map(read);
            let orphan = Orphan {
                name: of_mark(|spec| spec.name.to_string()),
                zone: of_mark(|spec| spec.zone.to_string()),
                kind: of_mark(|spec| spec.kind.clone()),
                state: observed.state.as_str().into(),
                id,
            };
            if observed.state != GuestState::Absent {
                orphans.push(orphan);
            }
        }
        Ok(orphans)
    }

    async fn is_recorded(&self, id: &InstanceId) -> Result<bool, Error> {
        let store = &self.ports().store;
        if store.instance(id).await?.is_some() {
            return Ok(true);
        }
        let zones = store.zones().await?;
        Ok(zones.iter().any(|zone| zone.appliance == *id))
    }

    /// Stops an orphan and removes all of it. What stands in a record is refused, and so is what does not carry
    /// our mark for this id.
    pub async fn remove_orphan(&self, id: &str) -> Result<Orphan, Error> {
        let unknown = || Error::UnknownOrphan(id.chars().take(80).collect());
        let parsed: InstanceId = id.parse().map_err(|_| unknown())?;
        let orphans = self.orphans().await?;
        let orphan = orphans.into_iter().find(|o| o.id == parsed);
        let orphan = orphan.ok_or_else(unknown)?;
        let backend = &self.ports().backend;
        backend.stop(&parsed, Duration::ZERO).await?;
        backend.destroy(&parsed).await?;
        tracing::info!(instance.id = %parsed, "an orphan was removed, as asked");
        Ok(orphan)
    }
}
