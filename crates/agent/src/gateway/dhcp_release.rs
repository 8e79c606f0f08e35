//! Gives a lease back in the name of a guest that is gone (DHCPRELEASE, RFC 2131).
//!
//! dnsmasq has no other way to forget a lease but its end, hours later. The packet goes to our own
//! dnsmasq only and is not answered; dnsmasq writes the lease file anew at once.

use std::net::Ipv4Addr;
use std::time::Duration;

use api::MacAddr;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// What dnsmasq must be told to know which lease is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// Who holds it.
    pub mac: MacAddr,
    /// The leased address.
    pub address: Ipv4Addr,
    /// The client identifier of the lease file, empty if the client sent none.
    pub client_id: Vec<u8>,
}

/// Sends the release to `server`.
pub async fn send(server: Ipv4Addr, lease: &HeldLease) -> std::io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let packet = packet(server, lease);
    let sent = timeout(
        Duration::from_secs(1),
        socket.send_to(&packet, (server, 67)),
    )
    .await;
    sent.map_err(std::io::Error::from)?.map(|_| ())
}

fn packet(server: Ipv4Addr, lease: &HeldLease) -> Vec<u8> {
    let mut packet = Vec::with_capacity(300);
    // BOOTREQUEST over Ethernet with addresses of six bytes, no hops; a transaction id; no flags.
    packet.extend([1, 1, 6, 0]);
    packet.extend(*b"prox");
    packet.extend([0; 4]);
    packet.extend(lease.address.octets());
    packet.extend([0; 12]);
    packet.extend(lease.mac.bytes());
    // The rest of the hardware address, server name and boot file, all unused.
    packet.extend([0; 10 + 64 + 128]);
    packet.extend([0x63, 0x82, 0x53, 0x63]);
    // Message type 7 is DHCPRELEASE; option 54 names the server.
    packet.extend([53, 1, 7, 54, 4]);
    packet.extend(server.octets());
    if let Ok(length) = u8::try_from(lease.client_id.len())
        && length > 0
    {
        packet.extend([61, length]);
        packet.extend(&lease.client_id);
    }
    packet.push(255);
    // Old relays want the 300 bytes of BOOTP.
    packet.resize(packet.len().max(300), 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_the_fields_where_rfc_2131_wants_them() {
        let lease = HeldLease {
            mac: "52:78:00:01:00:64".parse().unwrap(),
            address: [10, 20, 0, 100].into(),
            client_id: vec![1, 0x52, 0x78],
        };
        let p = packet([10, 20, 0, 1].into(), &lease);
        assert_eq!(p.len(), 300);
        assert_eq!(p[12..16], [10, 20, 0, 100]);
        assert_eq!(p[28..34], [0x52, 0x78, 0, 1, 0, 0x64]);
        assert_eq!(p[236..240], [0x63, 0x82, 0x53, 0x63]);
        assert_eq!(p[240..243], [53, 1, 7]);
        assert_eq!(p[243..249], [54, 4, 10, 20, 0, 1]);
        assert_eq!(p[249..255], [61, 3, 1, 0x52, 0x78, 255]);
    }
}
