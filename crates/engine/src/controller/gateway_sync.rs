//! Gives a zone's appliance its whole state, one apply at a time per zone.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use api::ZoneName;
use wire::gateway::GatewayDiff;

use super::Controller;
use crate::gateway;
use crate::operation::StepError;
use crate::zone::ZoneRecord;

impl Controller {
    fn gateway_lock(&self, zone: &ZoneName) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self
            .inner
            .gateway_locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        locks.entry(zone.clone()).or_default().clone()
    }

    /// Composes the state from the store and applies it. The store is read under the lock, so the
    /// last apply always carries the last state.
    pub(crate) async fn sync_gateway(&self, zone: &ZoneRecord) -> Result<GatewayDiff, StepError> {
        let lock = self.gateway_lock(&zone.spec.name);
        let _one_at_a_time = lock.lock().await;
        let instances = self.ports().store.instances().await?;
        let leases = self.ports().store.leases(&zone.spec.name).await?;
        let entries = self.ports().store.entries(&zone.spec.name).await?;
        let state = gateway::desired(&zone.spec, &instances, &leases, &entries)?;
        let diff = self.ports().gateway.apply(&zone.appliance, &state).await?;
        // The node leads to what the appliance has by now.
        let ports = state.edge.ports.iter().map(|p| (p.protocol, p.listen));
        let network = zone.spec.node_network();
        self.ports()
            .network
            .publish(&network, &ports.collect::<Vec<_>>())
            .await?;
        Ok(diff)
    }

    /// As [`Controller::sync_gateway`], for an appliance that may only just be starting.
    pub(crate) async fn sync_gateway_patiently(
        &self,
        zone: &ZoneRecord,
        patience: Duration,
    ) -> Result<GatewayDiff, StepError> {
        let began = Instant::now();
        loop {
            match self.sync_gateway(zone).await {
                Err(StepError::Failed { .. }) if began.elapsed() < patience => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    }
}
