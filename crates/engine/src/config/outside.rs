//! `zones.NAME.wan_dns` and `open_to`: what of a zone is open to the networks outside.

use ipnet::Ipv4Net;
use wire::gateway::edge::Outside;

use super::ConfigError;
use crate::zone::Wan;

/// Networks that a zone can be open to.
const MOST: usize = 32;

/// Checks both keys; `key` is that of `open_to`.
pub(super) fn check(
    key: &str,
    dns: bool,
    open_to: &[String],
    wan: &Wan,
) -> Result<Outside, ConfigError> {
    if matches!(wan, Wan::Managed { .. }) && !open_to.is_empty() {
        return Err(ConfigError::new(
            format!("{key}: behind a managed WAN no other network reaches the zone's addresses"),
            "give the zone a bridge of yours: wan: { bridge: vmbr0 }; or publish ports",
        ));
    }
    if open_to.len() > MOST {
        return Err(ConfigError::new(
            format!("{key}: {} networks are too many", open_to.len()),
            format!("name at most {MOST}"),
        ));
    }
    let network = |text: &String| {
        let network: Option<Ipv4Net> = text.parse().ok();
        let private =
            |n: &Ipv4Net| n.trunc() == *n && n.network().is_private() && n.broadcast().is_private();
        network.filter(private).ok_or_else(|| {
            ConfigError::new(
                format!("{key}: {text:?} is not a private IPv4 network in network form"),
                "write it like 192.168.1.0/24",
            )
        })
    };
    Ok(Outside {
        dns,
        open_to: open_to.iter().map(network).collect::<Result<_, _>>()?,
    })
}
