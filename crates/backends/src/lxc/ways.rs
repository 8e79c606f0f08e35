//! The ways to guests from this node: where their zone's relay is, and straight into their network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use api::InstanceId;
use async_trait::async_trait;
use link::{LinkError, Locate};
use tokio::net::UnixStream;
use wire::agent::RELAY_PORT;

use super::{LxcBackend, inside};

#[async_trait]
impl Locate for LxcBackend {
    /// The address that the node gave the appliance's first interface, or the one that it has by DHCP.
    async fn relay(&self, appliance: &InstanceId) -> Result<SocketAddr, LinkError> {
        let unknown = |reason: String| LinkError::NotReachable {
            peer: appliance.as_str().to_owned(),
            reason,
        };
        let mark = self
            .dir(appliance)
            .mark()
            .map_err(|e| unknown(e.to_string()))?;
        let mark = mark.ok_or_else(|| unknown("there is no such appliance on this node".into()))?;
        let (outside, inside) = match mark.spec.nics.as_slice() {
            [outside, inside, ..] => (outside, inside),
            _ => return Err(unknown("it has no two interfaces".into())),
        };
        if let Some(fixed) = outside.address {
            return Ok((fixed.addr(), RELAY_PORT).into());
        }
        let listed = self
            .lxc(format!("look at guest {appliance}"), "lxc-info", appliance)
            .args(["-i", "-H"])
            .run()
            .await
            .map_err(|e| unknown(e.to_string()))?;
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let outside = text
            .lines()
            .filter_map(|line| line.trim().parse::<Ipv4Addr>().ok())
            .find(|a| inside.address.is_none_or(|i| !i.contains(a)));
        let outside =
            outside.ok_or_else(|| unknown("its WAN interface has no address yet".into()))?;
        Ok(SocketAddr::new(IpAddr::V4(outside), RELAY_PORT))
    }

    async fn inside(&self, guest: &InstanceId) -> Option<io::Result<UnixStream>> {
        if self.through_relay {
            return None;
        }
        let connected = inside::agent(&self.guests, guest).await;
        Some(connected.and_then(UnixStream::from_std))
    }
}
