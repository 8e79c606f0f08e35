//! Keys that an SSH agent holds for us: which of them are shown to a server, and in which order.
//!
//! The agent signs; no private key comes here. An agent that does not answer counts as none.

use std::time::Duration;

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Certificate, PublicKey};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::algorithms;

/// How many keys are tried; servers count tries and stop at six.
const MAX_KEYS: usize = 4;
/// How long the agent may take to list its keys.
const LIST: Duration = Duration::from_secs(5);

/// An agent with what it holds.
pub(crate) struct Agent {
    pub client: AgentClient<UnixStream>,
    identities: Vec<AgentIdentity>,
}

/// A key to try, and how it is called.
pub(crate) enum Offered {
    Key(PublicKey),
    Certificate(Box<Certificate>),
}

impl Agent {
    /// The agent at `SSH_AUTH_SOCK`.
    pub async fn connect() -> Option<Self> {
        let listed = async {
            let mut client = AgentClient::connect_env().await.ok()?;
            let identities = client.request_identities().await.ok()?;
            Some(Self { client, identities })
        };
        timeout(LIST, listed).await.ok().flatten()
    }

    /// Whether it can sign with this key.
    pub fn holds(&self, key: &PublicKey) -> bool {
        self.identities
            .iter()
            .any(|one| data(one) == key.key_data())
    }

    /// What is tried: `first` and its certificates before all others, certificates before bare keys, nothing weak.
    pub fn to_try(&self, first: Option<&PublicKey>) -> Vec<(Offered, String)> {
        let strong = |one: &&AgentIdentity| algorithms::weakness(data(one)).is_none();
        let mut usable: Vec<&AgentIdentity> = self.identities.iter().filter(strong).collect();
        // Stable: what is alike keeps the agent's order.
        usable.sort_by_key(|one| {
            let other = first.is_none_or(|first| first.key_data() != data(one));
            (other, matches!(one, AgentIdentity::PublicKey { .. }))
        });
        let offered = usable.into_iter().take(MAX_KEYS).map(|one| match one {
            AgentIdentity::PublicKey { key, comment } => {
                (Offered::Key(key.clone()), format!("{comment} of the agent"))
            }
            AgentIdentity::Certificate {
                certificate,
                comment,
            } => (
                Offered::Certificate(Box::new(certificate.clone())),
                format!("the certificate {comment} of the agent"),
            ),
        });
        offered.collect()
    }
}

fn data(identity: &AgentIdentity) -> &KeyData {
    match identity {
        AgentIdentity::PublicKey { key, .. } => key.key_data(),
        AgentIdentity::Certificate { certificate, .. } => certificate.public_key(),
    }
}
