//! Publishing and withdrawing hosts, so that it is *effective* when the call returns.
//!
//! The files are only half of it: this module waits until dnsmasq really answers a name or really
//! forgot it, and gives the leases of gone hosts back. What has to be done was planned by
//! [`super::hosts`].

use std::sync::PoisonError;
use std::time::Duration;

use api::HostName;
use tokio::time::{Instant, sleep};
use wire::family::Service;
use wire::gateway::{GatewayState, Lease, NameRecord, ZoneNetwork};

use super::dns_probe::Answer;
use super::hosts::{HostPlan, Reservation};
use super::service::Activate;
use super::system::{CommandError, System};
use super::{Gateway, hosts, leases};
use crate::durable::{self, FileError, Keep};

/// How long dnsmasq may take to follow a file before it is restarted, and how long after that.
const FOLLOW: Duration = Duration::from_secs(2);
const FOLLOW_RESTARTED: Duration = Duration::from_secs(5);
/// How long dnsmasq may take to write a lease file without the leases given back.
const GIVEN_BACK: Duration = Duration::from_millis(500);

/// Why hosts are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file could not be read, written or removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A service did not do as it was told.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// dnsmasq does not follow its files.
    #[error("DNS does not answer {0} as it should, even after dnsmasq was restarted")]
    NotEffective(HostName),
}

/// dnsmasq takes a new configuration, or all of its files again, by a restart.
pub struct Dnsmasq<'a, S>(pub &'a Gateway<S>);

impl<S: System> Activate for Dnsmasq<'_, S> {
    async fn activate(&self) -> Result<&'static str, CommandError> {
        let restart = self.0.family.restart(&[Service::Dnsmasq]);
        self.0.tell_services(restart).await.map(|()| "restarted")
    }
}

impl<S: System> Gateway<S> {
    /// Takes reservations and names away, and waits until they are. The mark says, also after a
    /// crash in between, which reservations dnsmasq may still have.
    pub(super) async fn withdraw(
        &self,
        state: &GatewayState,
        plan: &HostPlan,
    ) -> Result<(), HostError> {
        let mark = self.paths.pending("reservations");
        let unfinished = durable::read_if_there(&mark)?;
        let released = released(plan, unfinished.as_deref(), state);
        let forget = !plan.forget.is_empty() || unfinished.is_some();
        if forget {
            let lines: String = released.iter().map(ToString::to_string).collect();
            durable::replace(&mark, lines.as_bytes(), 0o600, Keep::Derived)?;
        }
        hosts::remove(&self.paths.reservations(), &plan.forget)?;
        hosts::remove(&self.paths.names(), &plan.unname)?;
        if forget {
            self.reread_reservations(&state.network).await?;
        }
        self.wait_for_names(&state.network, &[], &plan.gone).await?;
        let of_released = |lease: &Lease| {
            let (mac, address) = (lease.mac, lease.address);
            released.contains(&Reservation { mac, address })
        };
        if !released.is_empty() {
            self.give_back(&state.network, of_released).await;
        }
        durable::remove_if_there(&mark)?;
        Ok(())
    }

    /// Writes reservations and names, and waits until DNS answers them. dnsmasq handles files in
    /// the order in which they were written, so an answered name means that the reservations,
    /// which were written before it, are in force, too.
    pub(super) async fn publish(
        &self,
        network: &ZoneNetwork,
        plan: &HostPlan,
    ) -> Result<(), HostError> {
        let reserved = plan.reserved();
        // dnsmasq does not give a reserved address out while a stranger has it on lease.
        let of_strangers = |lease: &Lease| {
            let mut reserved = reserved.iter();
            reserved.any(|r| r.address == lease.address && r.mac != lease.mac)
        };
        if !reserved.is_empty() {
            self.give_back(network, of_strangers).await;
        }
        self.hosts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .forget(plan);
        hosts::write(&self.paths.reservations(), &plan.reserve)?;
        hosts::write(&self.paths.names(), &plan.name)?;
        let present = plan.present();
        if present.is_empty() && !plan.reserve.is_empty() {
            // Only reservations changed (another MAC); there is no name whose answer would tell.
            self.reread_reservations(network).await?;
        }
        self.wait_for_names(network, &present, &plan.renamed).await
    }

    /// Has dnsmasq read all reservations anew, and waits until it has.
    async fn reread_reservations(&self, network: &ZoneNetwork) -> Result<(), HostError> {
        let reread = self.family.reread(Service::Dnsmasq);
        match self.tell_services(vec![reread]).await {
            Ok(_) => {}
            // A dnsmasq that does not run has no reservations to forget.
            Err(_) if self.ask_own_name(network).await == Answer::Closed => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        // The signal is handled before the next query is; one that was already being received
        // when the signal came may be answered first, the second one cannot.
        for _ in 0..2 {
            self.ask_own_name(network).await;
        }
        Ok(())
    }

    pub(super) async fn ask_own_name(&self, network: &ZoneNetwork) -> Answer {
        match format!("gateway.{}", network.domain).parse() {
            Ok(name) => self.system.ask(network.gateway, &name).await,
            Err(_) => Answer::None,
        }
    }

    /// Waits until DNS answers all of `present` and none of `gone`. A dnsmasq that does not follow
    /// its files (an event lost) is restarted once: it reads all of them when it starts.
    async fn wait_for_names(
        &self,
        network: &ZoneNetwork,
        present: &[NameRecord],
        gone: &[NameRecord],
    ) -> Result<(), HostError> {
        let Err(name) = self.names_within(FOLLOW, network, present, gone).await else {
            return Ok(());
        };
        tracing::warn!(%name, "dnsmasq does not follow its host files and is restarted");
        Dnsmasq(self).activate().await?;
        self.names_within(FOLLOW_RESTARTED, network, present, gone)
            .await
            .map_err(HostError::NotEffective)
    }

    /// The first name that is still wrong when the time is over.
    async fn names_within(
        &self,
        limit: Duration,
        network: &ZoneNetwork,
        present: &[NameRecord],
        gone: &[NameRecord],
    ) -> Result<(), HostName> {
        let deadline = Instant::now() + limit;
        let wanted = present.iter().map(|r| (r, true));
        let unwanted = gone.iter().map(|r| (r, false));
        for (record, wanted) in wanted.chain(unwanted) {
            loop {
                let answer = self.system.ask(network.gateway, &record.name).await;
                let holds = answer == Answer::Address(record.address);
                let known = answer != Answer::Silent && (!wanted || answer != Answer::Closed);
                if known && holds == wanted {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(record.name.clone());
                }
                sleep(Duration::from_millis(2)).await;
            }
        }
        Ok(())
    }

    /// Gives back the leases that `unwanted` says hold no more. They would end by themselves, so a
    /// failure is told to the log only.
    async fn give_back(&self, network: &ZoneNetwork, unwanted: impl Fn(&Lease) -> bool) {
        let found = || {
            leases::read(&self.paths).map(|mut lines| {
                lines.retain(|line| unwanted(&line.lease));
                lines
            })
        };
        let lines = found().unwrap_or_else(|error| {
            tracing::warn!(%error, "leases that hold no more stay until they end");
            Vec::new()
        });
        for line in &lines {
            if let Err(error) = self.system.release(network.gateway, &line.held).await {
                tracing::warn!(%error, lease.address = %line.lease.address, "a lease stays until it ends");
            }
        }
        let deadline = Instant::now() + GIVEN_BACK;
        while found().is_ok_and(|lines| !lines.is_empty()) {
            if Instant::now() >= deadline {
                tracing::warn!("leases that hold no more stay until they end");
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Reservations whose leases end: those of the plan and those that an earlier apply was about to
/// end when it was interrupted, as far as nobody has them (again).
fn released(plan: &HostPlan, unfinished: Option<&[u8]>, state: &GatewayState) -> Vec<Reservation> {
    let unfinished = String::from_utf8_lossy(unfinished.unwrap_or_default());
    let earlier = unfinished.lines().filter_map(hosts::parse_reservation);
    let held = |r: &Reservation| {
        let mut hosts = state.hosts.iter();
        hosts.any(|h| h.mac == r.mac && h.address == r.address)
    };
    let mut released: Vec<_> = plan.released.iter().copied().chain(earlier).collect();
    released.retain(|r| !held(r));
    released
}
