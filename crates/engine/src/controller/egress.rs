//! Egress policies: shown with what they refused, changed while the guest runs.

use api::egress::{Egress, EgressView};

use super::Controller;
use crate::error::Error;
use crate::operation::StepError;
use crate::ports::PortError;
use crate::zone::ZoneDesired;

impl Controller {
    /// The policy of an instance and what it refused lately.
    pub async fn egress(&self, name: &str) -> Result<EgressView, Error> {
        let record = self.instance_named(name).await?;
        let zone = self.ports().store.zone(&record.zone).await?;
        let refused = match zone {
            Some(zone) if record.egress.is_restricted() => {
                let report = self.ports().gateway.read(&zone.appliance).await?;
                let mut all = report.refused.into_iter();
                all.find(|r| r.source == record.address)
                    .map(|r| r.refused)
                    .unwrap_or_default()
            }
            _ => Vec::new(),
        };
        Ok(EgressView {
            egress: record.egress,
            refused,
        })
    }

    /// Sets what an instance may reach outside. It holds when this returns; connections that the new policy does
    /// not allow are cut.
    pub async fn set_egress(&self, name: &str, egress: &Egress) -> Result<(), Error> {
        let record = self.instance_named(name).await?;
        if !self.ports().store.set_egress(&record.id, egress).await? {
            return Err(Error::WrongState {
                name: record.name,
                state: "deleting",
                hint: "it is on its way out".into(),
            });
        }
        let Some(zone) = self.ports().store.zone(&record.zone).await? else {
            return Ok(());
        };
        if zone.desired != ZoneDesired::Up {
            return Ok(());
        }
        match self.sync_gateway(&zone).await {
            Ok(_) => Ok(()),
            Err(StepError::Superseded) => Ok(()),
            Err(StepError::Failed { cause, .. }) => {
                let what = format!("tell the appliance what {} may reach", record.name);
                Err(PortError::new(what, cause)
                    .hint("the policy is written down and holds when the appliance is well; until then the old one does: proximity status")
                    .into())
            }
        }
    }
}
