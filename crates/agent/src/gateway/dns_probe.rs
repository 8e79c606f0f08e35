//! One question to a DNS server: what address does a name have right now?
//!
//! Asks for an A record over UDP (RFC 1035) and reads the answer far enough to know. It is how the
//! relay knows that dnsmasq has really read a file; it is no resolver and keeps nothing.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use api::HostName;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::dns_message::{self, CLASS_IN, TYPE_A};

/// What a server says of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has this address.
    Address(Ipv4Addr),
    /// The server answered, but not with an address.
    None,
    /// No server answers at that address: the port is closed.
    Closed,
    /// No answer in time.
    Silent,
}

const DEADLINE: Duration = Duration::from_millis(500);

/// Asks `server` for the address of `name`.
pub async fn ask(server: Ipv4Addr, name: &HostName) -> Answer {
    match timeout(DEADLINE, exchange(server, name)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Answer::Closed,
        Err(_) => Answer::Silent,
    }
}

async fn exchange(server: Ipv4Addr, name: &HostName) -> std::io::Result<Answer> {
    // Old answers are told apart by the id; the connected socket takes packets of this server only.
    static NEXT_ID: AtomicU16 = AtomicU16::new(1);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((server, 53)).await?;
    socket.send(&question(id, name)).await?;
    let mut buffer = [0u8; 1500];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let packet = buffer.get(..length).unwrap_or_default();
        if let Some(answer) = read(packet, id) {
            return Ok(answer);
        }
    }
}

fn question(id: u16, name: &HostName) -> Vec<u8> {
    let mut packet = Vec::with_capacity(64);
    packet.extend(id.to_be_bytes());
    // Recursion desired; one question, nothing else.
    packet.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.as_str().split('.') {
        // A label has at most 63 bytes, as its type promises.
        packet.push(u8::try_from(label.len()).unwrap_or(63));
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(TYPE_A.to_be_bytes());
    packet.extend(CLASS_IN.to_be_bytes());
    packet
}

/// `None` when the packet is not an answer to question `id`.
fn read(packet: &[u8], id: u16) -> Option<Answer> {
    let addresses = dns_message::addresses(packet, id)?;
    let first = addresses.first();
    Some(first.map_or(Answer::None, |(address, _)| Answer::Address(*address)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(id: u16, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut packet = question(id, &"web.prox.local".parse().unwrap());
        packet[2] |= 0x80;
        packet[7] = u8::try_from(records.len()).unwrap();
        for (kind, data) in records {
            packet.extend([0xc0, 12]);
            packet.extend(kind.to_be_bytes());
            packet.extend([0, 1, 0, 0, 0, 0]);
            packet.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            packet.extend(*data);
        }
        packet
    }

    #[test]
    fn answers_are_read() {
        let address = [10, 20, 0, 100];
        assert_eq!(
            read(&answer(7, &[(1, &address)]), 7),
            Some(Answer::Address(address.into()))
        );
        let alias: &[u8] = &[1, b'x', 0];
        assert_eq!(
            read(&answer(7, &[(5, alias), (1, &address)]), 7),
            Some(Answer::Address(address.into()))
        );
        assert_eq!(read(&answer(7, &[]), 7), Some(Answer::None));
        assert_eq!(
            read(&answer(8, &[]), 7),
            None,
            "an answer to another question"
        );
        assert_eq!(
            read(&question(7, &"a.b".parse().unwrap()), 7),
            None,
            "a question"
        );
    }

    proptest! {
        #[test]
        fn no_packet_hurts(packet in proptest::collection::vec(any::<u8>(), 0..200), id in any::<u16>()) {
            let _ = read(&packet, id);
        }

        #[test]
        fn a_cut_answer_is_no_answer(cut in 0usize..48) {
            let whole = answer(7, &[(1, &[10, 0, 0, 1])]);
            prop_assume!(cut < whole.len());
            prop_assert_eq!(read(&whole[..cut], 7), None);
        }
    }
}
