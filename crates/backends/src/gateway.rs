//! The gateway API of an appliance, carried by `lxc-attach` and pipes to the agent inside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::InstanceId;
use async_trait::async_trait;
use engine::ports::{Gateway, PortError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::gateway::{GatewayDiff, GatewayReport, GatewayState, ProbeReport, ProbeRequest};

use crate::lxc::AGENT_DIR_IN_GUEST;
use crate::program::Program;

/// How long the relay may take to apply or read; services restart within.
const DEADLINE: Duration = Duration::from_secs(30);

/// The gateway port on backend `lxc`.
#[derive(Debug, Clone)]
pub struct AttachedGateway {
    guests: PathBuf,
}

impl AttachedGateway {
    /// Over the same guests as the backend.
    pub fn new(guests: &Path) -> Self {
        Self {
            guests: guests.to_owned(),
        }
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        appliance: &InstanceId,
        verb: &str,
        request: Option<&Q>,
        deadline: Duration,
    ) -> Result<A, PortError> {
        let what = format!("gateway {verb}");
        let input = match request {
            Some(r) => serde_json::to_vec(r).map_err(|e| PortError::new(&what, e))?,
            None => Vec::new(),
        };
        let printed = Program::new(&what, "lxc-attach")
            .arg("-P")
            .arg(&self.guests)
            .args(["-n", appliance.as_str(), "--clear-env", "--"])
            .arg(format!("/{AGENT_DIR_IN_GUEST}/proximity-agent"))
            .args(["gateway", verb])
            .stdin(input)
            .deadline(deadline)
            .run()
            .await?;
        serde_json::from_slice(&printed.stdout)
            .map_err(|e| PortError::new(&what, format!("the relay's answer can't be read: {e}")))
    }
}

#[async_trait]
impl Gateway for AttachedGateway {
    async fn apply(
        &self,
        appliance: &InstanceId,
        state: &GatewayState,
    ) -> Result<GatewayDiff, PortError> {
        self.call(appliance, "apply", Some(state), DEADLINE).await
    }

    async fn read(&self, appliance: &InstanceId) -> Result<GatewayReport, PortError> {
        self.call(appliance, "read", None::<&()>, DEADLINE).await
    }

    async fn probe(&self, appliance: &InstanceId, request: &ProbeRequest) -> Result<(), PortError> {
        let deadline = Duration::from_millis(request.deadline_ms) + DEADLINE;
        let report: ProbeReport = self
            .call(appliance, "probe", Some(request), deadline)
            .await?;
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
