//! The section `nodes`: machines that run guests.

use std::collections::BTreeMap;

use api::NodeName;
use serde::Deserialize;

use super::{ConfigError, parse};

/// A machine that runs guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The channels by which commands may reach its apps, first choice first.
    pub channels: Vec<String>,
    /// Whether agents are reached through their zone's relay even where the node knows a shorter way.
    pub through_relay: bool,
}

/// Channels of backend `lxc`.
const LXC_CHANNELS: [&str; 2] = ["agent", "lxc-attach"];

// The keys of every backend, so that a file for a later version fails by its backend, and a
// mistyped key fails by its name.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NodeSection {
    backend: String,
    channels: Option<Vec<String>>,
    through_relay: bool,
    api: Option<serde_json::Value>,
    token_id: Option<serde_json::Value>,
    token_secret_file: Option<serde_json::Value>,
    tls: Option<serde_json::Value>,
    members: Option<serde_json::Value>,
    storage: Option<serde_json::Value>,
    template_storage: Option<serde_json::Value>,
}

impl NodeSection {
    /// This machine, when nothing is configured.
    pub(super) fn lxc() -> Self {
        Self {
            backend: "lxc".into(),
            ..Self::default()
        }
    }

    /// The first key that means nothing to backend `lxc`.
    fn foreign_key(&self) -> Option<&'static str> {
        let given = [
            ("api", &self.api),
            ("token_id", &self.token_id),
            ("token_secret_file", &self.token_secret_file),
            ("tls", &self.tls),
            ("members", &self.members),
            ("storage", &self.storage),
            ("template_storage", &self.template_storage),
        ];
        given.iter().find(|(_, v)| v.is_some()).map(|(k, _)| *k)
    }
}

pub(super) fn check_nodes(
    nodes: &BTreeMap<String, NodeSection>,
) -> Result<BTreeMap<NodeName, NodeConfig>, ConfigError> {
    let mut checked = BTreeMap::new();
    for (name, node) in nodes {
        if node.backend != "lxc" {
            return Err(ConfigError::new(
                format!(
                    "nodes.{name}.backend: {:?} is not in this version",
                    node.backend
                ),
                "use `backend: lxc`, which runs guests on this machine",
            ));
        }
        if let Some(key) = node.foreign_key() {
            return Err(ConfigError::new(
                format!("nodes.{name}.{key}: backend lxc has no such key"),
                "leave it out: the node is this machine itself",
            ));
        }
        let channels = check_channels(name, node.channels.as_deref())?;
        checked.insert(
            parse(&format!("nodes.{name}"), name)?,
            NodeConfig {
                channels,
                through_relay: node.through_relay,
            },
        );
    }
    if checked.len() > 1 {
        return Err(ConfigError::new(
            "nodes: more than one node of backend lxc",
            "the backend `lxc` is this machine itself, so there can be only one",
        ));
    }
    Ok(checked)
}

/// A guest can make its agent fail, so what has more power than the agent is used only where the
/// operator says so.
fn check_channels(node: &str, asked: Option<&[String]>) -> Result<Vec<String>, ConfigError> {
    let channels = asked.map_or_else(|| vec!["agent".to_owned()], <[String]>::to_vec);
    for (index, channel) in channels.iter().enumerate() {
        let again = channels.iter().take(index).any(|c| c == channel);
        if again || !LXC_CHANNELS.contains(&channel.as_str()) {
            return Err(ConfigError::new(
                format!(
                    "nodes.{node}.channels: {channel:?} is {}",
                    if again {
                        "there twice"
                    } else {
                        "not a channel of backend lxc"
                    }
                ),
                "channels of backend lxc: [agent], [agent, lxc-attach]",
            ));
        }
    }
    if channels.is_empty() {
        return Err(ConfigError::new(
            format!("nodes.{node}.channels: none is left"),
            "leave the key out for [agent]",
        ));
    }
    Ok(channels)
}
