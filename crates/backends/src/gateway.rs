//! The gateway API of an appliance, over the link to its relay.

use std::sync::Arc;

use api::{HostName, InstanceId};
use async_trait::async_trait;
use engine::ports::{Gateway, PortError};
use link::{Link, LinkError};
use wire::gateway::{GatewayDiff, GatewayReport, GatewayState, ProbeRequest, RouteReport};
use wire::identity::Bundle;

/// The status by which a relay says that it does not know a path.
const NO_SUCH_PATH: u16 = 404;

/// The gateway port of every backend whose appliances have a relay.
#[derive(Debug, Clone)]
pub struct LinkedGateway {
    link: Arc<Link>,
}

impl LinkedGateway {
    /// Over this link.
    pub fn new(link: Arc<Link>) -> Self {
        Self { link }
    }
}

fn failed(what: &'static str) -> impl Fn(LinkError) -> PortError {
    move |e| {
        let error = PortError::new(what, &e);
        match e {
            LinkError::Refused { problem, .. } => match problem.hint {
                Some(hint) => error.hint(hint),
                None => error,
            },
            LinkError::Untrusted { .. } => error.hint(
                "something else answers at the appliance's address, or its identity is not ours: proximity doctor",
            ),
            _ => error,
        }
    }
}

#[async_trait]
impl Gateway for LinkedGateway {
    async fn apply(
        &self,
        appliance: &InstanceId,
        state: &GatewayState,
    ) -> Result<GatewayDiff, PortError> {
        let applied = self.link.gateway_apply(appliance, state).await;
        applied.map_err(failed("gateway apply"))
    }

    async fn read(&self, appliance: &InstanceId) -> Result<GatewayReport, PortError> {
        let read = self.link.gateway_read(appliance).await;
        read.map_err(failed("gateway read"))
    }

    async fn look(&self, appliance: &InstanceId) -> Result<GatewayReport, PortError> {
        match self.link.gateway_look(appliance).await {
            // A relay that has run since before this was there.
            Err(LinkError::Refused { problem, .. }) if problem.status == NO_SUCH_PATH => {
                self.read(appliance).await
            }
            read => read.map_err(failed("gateway look")),
        }
    }

    async fn route(
        &self,
        appliance: &InstanceId,
        host: &HostName,
    ) -> Result<Option<RouteReport>, PortError> {
        let read = self.link.gateway_route(appliance, host).await;
        read.map_err(failed("gateway route"))
    }

    async fn renew(&self, appliance: &InstanceId, identity: &Bundle) -> Result<(), PortError> {
        let told = self.link.renew_relay(appliance, identity).await;
        told.map_err(failed("renew the relay's identity"))
    }

    async fn probe(&self, appliance: &InstanceId, request: &ProbeRequest) -> Result<(), PortError> {
        let report = self.link.probe(appliance, request).await;
        let report = report.map_err(failed("gateway probe"))?;
        if report.ready {
            return Ok(());
        }
        Err(PortError::new(
            format!(
                "no answer from {}:{} within {} s",
                request.address,
                request.port,
                request.deadline_ms / 1000
            ),
            report.last,
        ))
    }
}
