//! Answers the DNS questions of guests with an egress policy: a name server between them and dnsmasq.
//!
//! ```text
//!  guest ─53─▶ firewall ─redirect─▶ here ─ decide ─▶ refused
//!                                          └────────▶ dnsmasq ─▶ open what was answered ─▶ guest
//! ```
//! Who asks is known by address, which the node pins to the guest's port. dnsmasq caches, knows the zone's
//! names and drops private answers; here is decided, and counted what is refused. Keeps no messages; every question
//! has a deadline, and one guest's unanswered ones are never all that fit.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::dns_message::{self, Question};
use crate::gateway::Gateway;
use crate::gateway::egress::Decision;
use crate::gateway::system::System;

/// Questions of all guests under way at a time, and connections.
const TOGETHER: usize = 1024;
/// Those of one guest.
const OF_ONE_GUEST: usize = 128;
/// How long dnsmasq may take; it asks its upstreams more than once in this time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(8);
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// The longest message by UDP, with room for EDNS.
const LONGEST: usize = 4096;
/// dnsmasq's port.
const DNS: u16 = 53;

/// The server and what its tasks share.
struct Names<S> {
    gateway: Arc<Gateway<S>>,
    places: Places,
}

#[derive(Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

/// Opens the port, by UDP and TCP; the server ends with the process.
pub async fn open<S: System>(gateway: Arc<Gateway<S>>, listen: SocketAddr) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::bind(listen).await?);
    let listener = TcpListener::bind(listen).await?;
    let names = Arc::new(Names {
        gateway,
        places: Places::default(),
    });
    tokio::spawn(serve_udp(names.clone(), socket));
    tokio::spawn(serve_tcp(names, listener));
    Ok(())
}

async fn serve_udp<S: System>(names: Arc<Names<S>>, socket: Arc<UdpSocket>) {
    let mut buffer = [0; LONGEST];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "a question could not be received");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let Some(place) = guest(from).and_then(|source| names.places.take(source)) else {
            continue;
        };
        let packet = buffer.get(..length).unwrap_or_default().to_vec();
        let (names, socket) = (names.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = names.answer(place.source, &packet, Transport::Udp).await {
                // Whoever asked may be gone.
                let _ = socket.send_to(&answer, from).await;
            }
            drop(place);
        });
    }
}

async fn serve_tcp<S: System>(names: Arc<Names<S>>, listener: TcpListener) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection for questions could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let Some(place) = guest(from).and_then(|source| names.places.take(source)) else {
            continue;
        };
        let names = names.clone();
        tokio::spawn(async move {
            // It ends with the guest's patience, or with ours.
            let _ = names.converse(place.source, stream).await;
            drop(place);
        });
    }
}

fn guest(from: SocketAddr) -> Option<Ipv4Addr> {
    match from.ip() {
        IpAddr::V4(source) => Some(source),
        IpAddr::V6(_) => None,
    }
}

impl<S: System> Names<S> {
    /// One question after the other on a connection.
    async fn converse(&self, source: Ipv4Addr, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let packet = timeout(IDLE, read_message(&mut stream)).await??;
            let Some(answer) = self.answer(source, &packet, Transport::Tcp).await else {
                return Ok(());
            };
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
    }

    /// The answer to a message, if it is a question that gets one.
    async fn answer(
        &self,
        source: Ipv4Addr,
        packet: &[u8],
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let question = dns_message::question(packet)?;
        let book = self.gateway.egress();
        let decision = book.decide(source, &question.name, Instant::now());
        if decision == Decision::Refuse {
            return dns_message::refusal(packet, &question);
        }
        let asked = timeout(ANSWER_DEADLINE, self.ask(packet, transport)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(%error, "dnsmasq did not answer");
                return None;
            }
            Err(_) => return None,
        };
        if decision == Decision::Open && !self.opened(source, &question, packet, &answer).await {
            return dns_message::refusal(packet, &question);
        }
        Some(answer)
    }

    /// Opens the way to what was answered, before the guest hears of it.
    async fn opened(
        &self,
        source: Ipv4Addr,
        question: &Question,
        packet: &[u8],
        answer: &[u8],
    ) -> bool {
        let id = packet.first_chunk().map(|id| u16::from_be_bytes(*id));
        let Some(addresses) = id.and_then(|id| dns_message::addresses(answer, id)) else {
            return false;
        };
        let opened = self.gateway.open(source, &question.name, &addresses).await;
        opened.unwrap_or_else(|error| {
            tracing::error!(%error, "what was answered to a guest could not be opened");
            false
        })
    }

    /// Asks dnsmasq.
    async fn ask(&self, packet: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let state = self
            .gateway
            .accepted()
            .borrow()
            .as_ref()
            .map(|s| s.network.gateway);
        let server = state.ok_or(io::ErrorKind::NotConnected)?;
        match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
                socket.connect((server, DNS)).await?;
                socket.send(packet).await?;
                let mut buffer = vec![0; LONGEST];
                let length = socket.recv(&mut buffer).await?;
                buffer.truncate(length);
                Ok(buffer)
            }
            Transport::Tcp => {
                let mut stream = TcpStream::connect((server, DNS)).await?;
                write_message(&mut stream, packet).await?;
                read_message(&mut stream).await
            }
        }
    }
}

/// A message by TCP has its length in front, two bytes: 64 KiB is the most.
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

async fn write_message(stream: &mut TcpStream, packet: &[u8]) -> io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend(packet);
    stream.write_all(&message).await
}

/// How many questions of whom are under way.
#[derive(Default, Clone)]
struct Places(Arc<Mutex<HashMap<Ipv4Addr, usize>>>);

/// One of them; it is free again when this is dropped.
struct Place {
    source: Ipv4Addr,
    places: Places,
}

impl Places {
    fn take(&self, source: Ipv4Addr) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&source).copied().unwrap_or(0);
        if own >= OF_ONE_GUEST || taken.values().sum::<usize>() >= TOGETHER {
            return None;
        }
        taken.insert(source, own + 1);
        Some(Place {
            source,
            places: self.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.source) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_guest_never_takes_all_places() {
        let places = Places::default();
        let [one, other] = [Ipv4Addr::new(10, 20, 0, 2), Ipv4Addr::new(10, 20, 0, 3)];
        let mut held: Vec<_> = (0..OF_ONE_GUEST).filter_map(|_| places.take(one)).collect();
        assert_eq!(held.len(), OF_ONE_GUEST);
        assert!(places.take(one).is_none());
        assert!(places.take(other).is_some());
        held.pop();
        assert!(places.take(one).is_some());
        drop(held);
        assert!(places.0.lock().unwrap().is_empty());
    }
}
