//! The gateway API of an appliance, spoken with its relay itself: no tunnel, the relays' authority,
//! connections of their own.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::{HostName, InstanceId};
use http::Method;
use http::header::{self, HeaderValue};
use serde::Serialize;
use wire::agent::Scope;
use wire::gateway::change::GatewayChange;
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
/// Those by which a relay wants the whole state: it has another one, or it is too old to take changes.
const OTHER_BASE: [u16; 2] = [412, 405];

/// A state that an appliance has taken, and the tag by which it knows it.
pub(crate) struct GivenState {
    tag: HeaderValue,
    state: GatewayState,
}

/// The last state of each appliance.
pub(crate) type GivenStates = Mutex<HashMap<InstanceId, GivenState>>;

impl Link {
    fn given_states(&self) -> MutexGuard<'_, HashMap<InstanceId, GivenState>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

    /// Gives an appliance the state of its zone; says what changed. Doing it twice is the same as once. What the
    /// appliance has by its own word is not sent again.
    pub async fn gateway_apply(
        &self,
        appliance: &InstanceId,
        state: &GatewayState,
    ) -> Result<GatewayDiff, LinkError> {
        // Taken out: whoever fails, or calls at the same time, sends the whole state.
        let given = self.given_states().remove(appliance);
        if let Some(given) = given
            && let Some(change) = GatewayChange::between(&given.state, state)
        {
            let call = Call::new(Method::PATCH, "/gateway", APPLY_DEADLINE)
                .header(header::IF_MATCH, given.tag);
            match self.apply(appliance, call, &change, state).await {
                Err(LinkError::Refused { problem, .. }) if OTHER_BASE.contains(&problem.status) => {
                }
                other => return other,
            }
        }
        let call = Call::new(Method::PUT, "/gateway", APPLY_DEADLINE);
        self.apply(appliance, call, state, state).await
    }

    /// Sends `body`, and notes by which tag the appliance has `state` then.
    async fn apply(
        &self,
        appliance: &InstanceId,
        call: Call,
        body: &impl Serialize,
        state: &GatewayState,
    ) -> Result<GatewayDiff, LinkError> {
        let to = Destination::relay(appliance);
        let call = call.scope(Scope::Gateway).json(to.name(), body)?;
        let answer = self.call(&to, call).await?;
        let tag = answer.response.headers().get(header::ETAG).cloned();
        let diff = answer.json(ANSWER_MAX_BYTES).await?;
        if let Some(tag) = tag {
            let state = state.clone();
            let given = GivenState { tag, state };
            self.given_states().insert(appliance.clone(), given);
        }
        Ok(diff)
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
