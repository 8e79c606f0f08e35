//! The gateway API of an appliance, spoken with its relay itself: no tunnel, the relays' authority,
//! connections of their own.

use std::time::{Duration, Instant};

use api::{HostName, InstanceId};
use http::Method;
use wire::agent::Scope;
use wire::gateway::{
    GatewayDiff, GatewayReport, GatewayState, ProbeReport, ProbeRequest, RouteReport,
};

use crate::call::Call;
use crate::error::LinkError;
use crate::link::{Destination, Link};

/// Longer than the relay's own deadlines, whose answers tell more.
const READ_DEADLINE: Duration = Duration::from_secs(30);
const APPLY_DEADLINE: Duration = Duration::from_secs(200);
const PROBE_GRACE: Duration = Duration::from_secs(5);
/// A report or a difference of tens of thousands of hosts.
const ANSWER_MAX_BYTES: usize = 32 << 20;
/// The status by which a relay says that an instance did not answer.
const NOT_READY: u16 = 504;
/// The one by which it says that a route is not open.
const NO_SUCH_ROUTE: u16 = 404;

impl Link {
    /// What holds on an appliance right now.
    pub async fn gateway_read(&self, appliance: &InstanceId) -> Result<GatewayReport, LinkError> {
        let call = Call::new(Method::GET, "/gateway", READ_DEADLINE).scope(Scope::Gateway);
        self.call(&Destination::relay(appliance), call)
            .await?
            .json(ANSWER_MAX_BYTES)
            .await
    }

    /// The same without names and routes.
    pub async fn gateway_look(&self, appliance: &InstanceId) -> Result<GatewayReport, LinkError> {
        let call = Call::new(Method::GET, "/gateway/services", READ_DEADLINE);
        self.call(&Destination::relay(appliance), call.scope(Scope::Gateway))
            .await?
            .json(ANSWER_MAX_BYTES)
            .await
    }

    /// One open route and whether its target takes connections right now; none when it is not open.
    pub async fn gateway_route(
        &self,
        appliance: &InstanceId,
        host: &HostName,
    ) -> Result<Option<RouteReport>, LinkError> {
        let path = format!("/gateway/routes/{host}");
        let call = Call::new(Method::GET, path, READ_DEADLINE).scope(Scope::Gateway);
        let read = async {
            let answer = self.call(&Destination::relay(appliance), call).await?;
            answer.json(ANSWER_MAX_BYTES).await
        };
        match read.await {
            Ok(route) => Ok(Some(route)),
            Err(LinkError::Refused { problem, .. }) if problem.status == NO_SUCH_ROUTE => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives an appliance the whole state of its zone; says what changed. Doing it twice is the same as
    /// once.
    pub async fn gateway_apply(
        &self,
        appliance: &InstanceId,
        state: &GatewayState,
    ) -> Result<GatewayDiff, LinkError> {
        let to = Destination::relay(appliance);
        let call = Call::new(Method::PUT, "/gateway", APPLY_DEADLINE)
            .scope(Scope::Gateway)
            .json(to.name(), state)?;
        self.call(&to, call).await?.json(ANSWER_MAX_BYTES).await
    }

    /// Waits on the appliance until an instance answers. That it does not in time is a report, not an
    /// error.
    pub async fn probe(
        &self,
        appliance: &InstanceId,
        request: &ProbeRequest,
    ) -> Result<ProbeReport, LinkError> {
        let to = Destination::relay(appliance);
        let deadline = Duration::from_millis(request.deadline_ms).saturating_add(PROBE_GRACE);
        let call = Call::new(Method::POST, "/probe", deadline)
            .scope(Scope::Gateway)
            .json(to.name(), request)?;
        let begun = Instant::now();
        let answered = self.call(&to, call).await?.body(0).await;
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let report = |ready, last| ProbeReport {
            ready,
            last,
            elapsed_ms,
        };
        match answered {
            Ok(_) => Ok(report(true, "ready".into())),
            Err(LinkError::Refused { problem, .. }) if problem.status == NOT_READY => {
                Ok(report(false, problem.detail))
            }
            Err(error) => Err(error),
        }
    }
}
