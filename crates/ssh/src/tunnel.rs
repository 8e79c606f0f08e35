//! Tunnels: a listener of this machine, each of whose connections leads through a host to what that host reaches.
//!
//! ```text
//!   listener ─▶ connection ─▶ a place of eight ─▶ kept SSH connection of its own ─▶ direct-tcpip ─▶ HOST:PORT
//! ```
//!
//! Each has an SSH connection for itself while it lasts, since one whose reader stands still would stall the others.
//! The opening and the end of a tunnel are in the audit log; who comes through is not.

use std::sync::Arc;
use std::time::Duration;

use audit::Outcome;
use russh::ChannelStream;
use russh::client::Msg;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::hosts::Vm;
use crate::pool::{Lease, Sharing};
use crate::remote::Remote;

/// Connections through one tunnel at a time; further ones wait in the system's queue. Half of a host's connections,
/// so that commands have room beside it.
const CONNECTIONS: usize = 8;
/// What is copied at once in each direction, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long to wait after the system could not hand over a connection.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Where a tunnel leads, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Address or name, resolved by the host; `127.0.0.1` is the host itself.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// What happens to a tunnel.
#[derive(Debug)]
pub enum TunnelEvent {
    /// The host can be used: what connects from now on is led through it. Comes once, first.
    Open,
    /// A connection could not be led on; the tunnel stays.
    Failed(Error),
    /// The system did not hand over a connection; the tunnel stays.
    NotAccepted(std::io::Error),
}

impl Remote {
    /// Leads what connects to the listener through a host, until the returned future is dropped. The first connection
    /// to the host is made at once: a host that cannot be used is told of before anybody relies on it.
    pub async fn forward(
        &self,
        id: &str,
        to: &Tunnel,
        listener: TcpListener,
        events: mpsc::Sender<TunnelEvent>,
    ) -> Result<std::convert::Infallible, Error> {
        let local = listener.local_addr().map(|address| address.to_string());
        let detail = json!({
            "host": to.host,
            "port": to.port,
            "listen": local.unwrap_or_default(),
        });
        let vm = self.permitted(id, "remote.forward", &detail).await?;
        let intent = self.intent(vm, "remote.forward", detail).await?;
        let wait = self.hosts.settings.timeout;
        let first = self
            .pool
            .connection(vm, self.caller(), Sharing::Own, wait)
            .await;
        match first {
            Ok(lease) => lease.finished(),
            Err(error) => {
                // What could not begin is told to the caller; the log has it, or writes it with its next record.
                let _: Result<_, _> = intent.finish(Outcome::failed(error.to_string())).await;
                return Err(error);
            }
        }
        // Nobody needs to listen.
        let _: Result<(), _> = events.send(TunnelEvent::Open).await;
        let _closed = Closed(Some(intent));
        Ok(self.serve(vm, to, &listener, events).await)
    }

    async fn serve(
        &self,
        vm: &Vm,
        to: &Tunnel,
        listener: &TcpListener,
        events: mpsc::Sender<TunnelEvent>,
    ) -> std::convert::Infallible {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        // Dropped with this: what was led on ends with the tunnel.
        let mut led = JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                // It is never closed.
                std::future::pending().await
            };
            let near = tokio::select! {
                near = listener.accept() => near,
                // Only to let go of those that have ended.
                Some(_) = led.join_next() => continue,
            };
            match near {
                Ok((near, _)) => {
                    let (remote, vm, to) = (self.clone(), vm.clone(), to.clone());
                    let events = events.clone();
                    led.spawn(async move {
                        if let Err(error) = remote.lead(&vm, &to, near).await {
                            // Nobody needs to listen.
                            let _: Result<(), _> = events.send(TunnelEvent::Failed(error)).await;
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    let _: Result<(), _> = events.send(TunnelEvent::NotAccepted(error)).await;
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }

    async fn lead(&self, vm: &Vm, to: &Tunnel, mut near: TcpStream) -> Result<(), Error> {
        // Only a delay, if it can't be set.
        let _: std::io::Result<()> = near.set_nodelay(true);
        let (lease, mut far) = self.through(vm, to).await?;
        let copied = tokio::io::copy_bidirectional_with_sizes(
            &mut near,
            &mut far,
            BUFFER_BYTES,
            BUFFER_BYTES,
        );
        // How a connection ends is between its two ends; only a whole end leaves the SSH connection as it was.
        if copied.await.is_ok() {
            lease.finished();
        }
        Ok(())
    }

    async fn through(&self, vm: &Vm, to: &Tunnel) -> Result<(Lease, ChannelStream<Msg>), Error> {
        let settings = &self.hosts.settings;
        loop {
            let wait = settings.timeout;
            let connection = self.pool.connection(vm, self.caller(), Sharing::Own, wait);
            let lease = connection.await?;
            let target = (to.host.as_str(), to.port);
            let stream = lease.connection().tunnel(&vm.id, target, settings).await;
            match stream {
                Ok(stream) => return Ok((lease, stream)),
                // It had died while it was kept: another one.
                Err(_) if !lease.is_new() && lease.connection().is_closed() => {}
                Err(error) => {
                    if !lease.connection().is_closed() {
                        lease.finished();
                    }
                    return Err(error);
                }
            }
        }
    }
}

/// The end of a tunnel, recorded when its future is dropped.
struct Closed(Option<audit::Intent>);

impl Drop for Closed {
    fn drop(&mut self) {
        if let Some(intent) = self.0.take() {
            // It is on its way as soon as it is asked for.
            drop(intent.finish(Outcome::ok()));
        }
    }
}
