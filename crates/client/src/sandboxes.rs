//! The calls about sandboxes.

use std::time::Duration;

use api::app::OperationAccepted;
use api::sandbox::{ExtendRequest, Sandbox, SandboxRequest};
use reqwest::Method;

use crate::connection::{CALL_DEADLINE, Call, Client};
use crate::error::Error;

impl Client {
    /// `GET /sandboxes`.
    pub async fn sandboxes(&self) -> Result<Vec<Sandbox>, Error> {
        self.json(Call::get(&["sandboxes"])).await
    }

    /// `GET /sandboxes/{id}`, by name or id.
    pub async fn sandbox(&self, id: &str) -> Result<Sandbox, Error> {
        self.json(Call::get(&["sandboxes", id])).await
    }

    /// `POST /sandboxes?wait=`: makes a sandbox and answers when commands can be run in it.
    pub async fn create_sandbox(
        &self,
        request: &SandboxRequest,
        idempotency_key: &str,
        wait: Duration,
    ) -> Result<Sandbox, Error> {
        let mut call = Call::new(Method::POST, &["sandboxes"])
            .query("wait", Some(format!("{}s", wait.as_secs())));
        call.idempotency_key = Some(idempotency_key);
        call.deadline = wait + CALL_DEADLINE;
        self.json_with(call, request).await
    }

    /// `POST /sandboxes/{id}/extend`: it lives so long from now on.
    pub async fn extend_sandbox(&self, id: &str, ttl: Duration) -> Result<Sandbox, Error> {
        let request = ExtendRequest {
            ttl_s: ttl.as_secs(),
        };
        let path = ["sandboxes", id, "extend"];
        self.json_with(Call::new(Method::POST, &path), &request)
            .await
    }

    /// `DELETE /sandboxes/{id}`, by name or id.
    pub async fn kill_sandbox(&self, id: &str) -> Result<OperationAccepted, Error> {
        self.json(Call::new(Method::DELETE, &["sandboxes", id]))
            .await
    }
}
