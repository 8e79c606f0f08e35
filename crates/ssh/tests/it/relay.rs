//! A TCP relay before an sshd, which can be cut, refuse, or cut after so many bytes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ssh::{Hosts, Remote};

use crate::sshd::Sshd;

pub struct Relay {
    pub port: u16,
    pub cut: Arc<AtomicBool>,
    pub connections: Arc<AtomicUsize>,
    limit: Arc<AtomicUsize>,
}

impl Relay {
    /// The first `refused` connections are closed at once.
    pub fn to(host: &str, port: u16, refused: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            cut: Arc::default(),
            connections: Arc::default(),
            limit: Arc::new(AtomicUsize::new(usize::MAX)),
        };
        let (cut, connections) = (Arc::clone(&relay.cut), Arc::clone(&relay.connections));
        let limit = Arc::clone(&relay.limit);
        let host = host.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if connections.fetch_add(1, Ordering::Relaxed) < refused {
                    continue;
                }
                let server = TcpStream::connect((host.as_str(), port)).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (cut, limit) = (Arc::clone(&cut), Arc::clone(&limit));
                    std::thread::spawn(move || copy(from, to, &cut, &limit));
                }
            }
        });
        relay
    }

    /// From now on a connection is cut when one direction has carried so many bytes.
    pub fn cut_after(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool, limit: &AtomicUsize) {
    from.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut buffer = [0; 65536];
    let mut carried = 0;
    while !cut.load(Ordering::Relaxed) && carried < limit.load(Ordering::Relaxed) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                carried += n;
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// `vm01` by way of the relay.
pub async fn through(sshd: &Sshd, relay: &Relay) -> Remote {
    let known = fs::read_to_string(sshd.path("known_hosts")).unwrap();
    let known = known.replace(&format!("]:{} ", sshd.port), &format!("]:{} ", relay.port));
    fs::write(sshd.path("known_hosts"), known).unwrap();
    let config = sshd.config("", "").replace(
        &format!("ssh_port: {},", sshd.port),
        &format!("ssh_port: {},", relay.port),
    );
    let hosts = Hosts::parse(&config, None).unwrap();
    let log = ssh::journal::open(&sshd.path("audit"), audit::Redactor::default())
        .await
        .unwrap();
    Remote::new(hosts, log, "tester")
}
