//! Gives a zone's appliance its whole state, one apply at a time per zone.
//!
//! Who asks while an apply is under way waits for the next one, and that one serves all who wait: the state is
//! whole, so one apply brings what each of them has written. Thus a hundred deploys at once cost a few applies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use api::ZoneName;
use wire::gateway::GatewayDiff;

use super::Controller;
use crate::gateway;
use crate::operation::StepError;
use crate::zone::ZoneRecord;

/// Who waits for an appliance's state, and who has been served.
#[derive(Default)]
pub(super) struct Turns {
    /// Numbers given out, one for each who asked.
    asked: AtomicU64,
    /// Held by who applies: the highest number whose writes are in the last state that was applied.
    served: tokio::sync::Mutex<u64>,
}

impl Controller {
    fn gateway_turns(&self, zone: &ZoneName) -> Arc<Turns> {
        let mut turns = self
            .inner
            .gateway_turns
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        turns.entry(zone.clone()).or_default().clone()
    }

    /// Composes the state from the store and applies it, and says what that changed. The store is read in
    /// one's turn, so the last apply always carries the last state. Nothing is changed for who was served by
    /// the apply of another, which began after this was called.
    pub(crate) async fn sync_gateway(&self, zone: &ZoneRecord) -> Result<GatewayDiff, StepError> {
        let turns = self.gateway_turns(&zone.spec.name);
        let number = turns.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut served = turns.served.lock().await;
        if *served >= number {
            return Ok(GatewayDiff::default());
        }
        // Whoever has a number by now wrote what he wanted before he took it.
        let serves = turns.asked.load(Ordering::SeqCst);
        let diff = self.apply_gateway(zone).await?;
        *served = serves;
        Ok(diff)
    }

    async fn apply_gateway(&self, zone: &ZoneRecord) -> Result<GatewayDiff, StepError> {
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
