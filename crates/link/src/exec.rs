//! Running one command in a guest to its end.

use std::time::Duration;

use api::exec::{ExecRequest, ExecResult};
use http::Method;
use wire::agent::Scope;

use crate::call::Call;
use crate::error::LinkError;
use crate::link::{Destination, Link, Peer};

/// Two streams of 8 MiB, each byte of which may be written as six in JSON, and some room.
const ANSWER_MAX_BYTES: usize = 110 << 20;

impl Link {
    /// Runs a command. It is sent at most once; `deadline` (the command's own and some grace) is for
    /// the whole answer. Anything but a whole answer is [`LinkError::OutcomeUnknown`].
    pub async fn exec(
        &self,
        peer: &Peer,
        request: &ExecRequest,
        deadline: Duration,
    ) -> Result<ExecResult, LinkError> {
        let to = Destination::agent(peer);
        let call = Call::new(Method::POST, "/exec", deadline)
            .scope(Scope::Exec)
            .json(to.name(), request)?
            .once();
        let answer = self.call(&to, call).await?;
        answer
            .json(ANSWER_MAX_BYTES)
            .await
            .map_err(|error| match error {
                LinkError::Garbage { peer, reason } => LinkError::OutcomeUnknown { peer, reason },
                error => error,
            })
    }
}
