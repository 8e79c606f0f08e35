//! What the relay does to its appliance: firewall, DHCP, names, reverse proxy and routes.
//!
//! The whole desired state goes in ([`Gateway::apply`]), a report of what holds comes out
//! ([`Gateway::report`]). Each file that another program reads has one writer over typed values in
//! a module of its own. Owns `/etc/proximity`, `/etc/nftables.conf`, `/var/lib/proximity` and
//! `/run/proximity` of the appliance; never touches the guests and never guesses a part of the
//! state: what was not asked for is withdrawn.

pub mod apply;
pub mod authority;
pub mod caddy;
pub mod claims;
pub mod contents;
pub mod dhcp_release;
pub mod dns_probe;
pub mod dnsmasq;
pub mod egress;
pub mod hosts;
pub mod identity;
pub mod kernel;
pub mod leases;
pub mod nftables;
pub mod paths;
pub mod publish;
mod published;
pub mod report;
pub mod service;
pub mod sites;
pub mod state;
pub mod system;
pub mod validate;
pub mod word;

#[cfg(test)]
pub(crate) mod fake;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use wire::family::{Argv, Family};
use wire::gateway::GatewayState;

use crate::relay::route::RouteTable;
use egress::EgressBook;
use paths::Paths;
use sites::Sites;
use state::Saver;
use system::{Command, CommandError, System};

/// How long an init system may take to do something to a service.
const SERVICES_DEADLINE: Duration = Duration::from_secs(40);

/// An appliance and the system calls by which it is changed.
pub struct Gateway<S> {
    paths: Paths,
    system: S,
    /// What this appliance is made of: how its services are spoken to.
    family: &'static dyn Family,
    routes: RouteTable,
    sites: Sites,
    /// The last state that was accepted, whether or not every part of it could be applied.
    accepted: watch::Sender<Option<Arc<GatewayState>>>,
    saver: Arc<Mutex<Saver>>,
    /// Whether all of the accepted state was made to hold.
    holds: AtomicBool,
    egress: EgressBook,
    /// What is known of dnsmasq's host files.
    hosts: Mutex<hosts::Reader>,
}

impl<S: System> Gateway<S> {
    /// The appliance at `paths`; nothing is changed yet.
    pub fn new(paths: Paths, system: S, family: &'static dyn Family, routes: RouteTable) -> Self {
        Self {
            paths,
            system,
            family,
            routes,
            sites: Sites::default(),
            accepted: watch::Sender::new(None),
            saver: Arc::default(),
            holds: AtomicBool::new(false),
            egress: EgressBook::default(),
            hosts: Mutex::default(),
        }
    }

    /// Runs what the family says is to be run, one after the other, to the first that fails.
    async fn tell_services(&self, commands: Vec<Argv>) -> Result<(), CommandError> {
        for argv in commands {
            let command = Command {
                argv,
                ..Command::new(&[], SERVICES_DEADLINE)
            };
            self.system.run(command).await?;
        }
        Ok(())
    }

    /// Shows the last accepted state, and every one that follows.
    pub fn accepted(&self) -> watch::Receiver<Option<Arc<GatewayState>>> {
        self.accepted.subscribe()
    }

    /// By which the last accepted state is told from others, for who wants to change it; none when it could not be
    /// saved.
    pub fn tag(&self) -> Option<String> {
        let saver = self.saver.lock().unwrap_or_else(PoisonError::into_inner);
        saver.tag().map(str::to_owned)
    }
}
