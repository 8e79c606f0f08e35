//! Makes a desired state hold.
//!
//! The state is checked as a whole and saved before anything is touched. Then every step compares
//! what it wants with what is really there (files, sockets, the kernel), so a repeated apply, also
//! after a crash at any point, converges and reports only what it had to change:
//!
//! ```text
//! routes closed ▸ hosts withdrawn ▸ kernel ▸ firewall ▸ leases ▸ dnsmasq ▸ hosts published ▸ Caddy ▸ routes opened
//! ```
//!
//! A change of routes and names alone ([`Gateway::apply_change`]) does just that where all of the state before held, so
//! that it costs the same however many there are.
//!
//! A step that fails does not stop the later ones, so that a broken site of an operator never keeps
//! a route of somebody else closed or, worse, open. All failures are told in the end.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use api::HostName;
use wire::family::Service;
use wire::gateway::change::{GatewayChange, RouteChange};
use wire::gateway::{GatewayDiff, GatewayState, ZoneNetwork};

use super::contents::Contents;
use super::dns_probe::Answer;
use super::hosts::HostPlan;
use super::identity::CaddyUser;
use super::publish::Dnsmasq;
use super::service::{Activate, Installation};
use super::sites::Taken;
use super::state::LoadError;
use super::system::{CommandError, System};
use super::validate::{InvalidState, validate};
use super::{
    Gateway, authority, caddy, claims, dnsmasq, hosts, identity, kernel, leases, nftables, report,
    state,
};
use crate::durable::{self, FileError, Keep};
use crate::relay::route::Target;

/// Why a state does not hold.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The change is of a state that the appliance does not have. Nothing was changed.
    #[error("the change is of another state than the one that this appliance has")]
    OtherBase,
    /// The state contradicts itself. Nothing was changed.
    #[error(transparent)]
    Invalid(#[from] InvalidState),
    /// The state could not be saved. Nothing was changed.
    #[error("the state could not be saved: {0}")]
    Save(#[source] FileError),
    /// The state is saved, but some steps failed; the next apply tries them again.
    #[error("{}", failures.join("; "))]
    Incomplete {
        /// One sentence a failed step.
        failures: Vec<String>,
    },
}

/// What one apply has done so far.
#[derive(Default)]
struct Progress {
    diff: GatewayDiff,
    failures: Vec<String>,
}

impl Progress {
    /// Keeps a failure and goes on.
    fn note<T>(&mut self, step: &str, result: Result<T, impl Display>) -> Option<T> {
        result
            .map_err(|error| self.failures.push(format!("{step}: {error}")))
            .ok()
    }

    fn changed(&mut self, service: &str, done: &str) {
        self.diff
            .services_changed
            .push(format!("{service}: {done}"));
    }
}

impl<S: System> Gateway<S> {
    /// What must be there before the first state: directories and settings of the kernel.
    pub fn prepare(&self) -> Result<(), FileError> {
        let parent = |path: &Path| path.parent().map(ToOwned::to_owned);
        for directory in [
            parent(&self.paths.caddyfile()),
            parent(&self.paths.leases()),
            Some(self.paths.operator_sites()),
            parent(&self.paths.names()),
            Some(self.paths.names()),
            Some(self.paths.reservations()),
            Some(self.paths.claims()),
            Some(self.paths.dyn_names()),
        ] {
            directory.map_or(Ok(()), |d| durable::directory(&d, 0o755))?;
        }
        durable::directory(&self.paths.marks(), 0o700)?;
        if let Err(error) = kernel::set(&self.paths, &kernel::at_start()) {
            tracing::warn!(%error, "reloads of Caddy may cost connections");
        }
        Ok(())
    }

    /// Applies the last saved state, if there is one, as after a restart of the appliance.
    pub async fn restore(&self) -> Result<Option<GatewayDiff>, RestoreError> {
        match state::load(&self.paths)? {
            Some(state) => Ok(Some(self.apply(state).await?)),
            None => Ok(None),
        }
    }

    /// Makes `state` hold. This and [`Gateway::apply_change`] must not be called twice at a time; the relay's owner
    /// task sees to that.
    pub async fn apply(&self, state: GatewayState) -> Result<GatewayDiff, ApplyError> {
        let state = Arc::new(state);
        let progress = self.accept(None, state.clone()).await?;
        self.make_hold(&state, progress).await
    }

    /// Makes hold what `change` makes of the last state, if that is the one with the tag `of`.
    pub async fn apply_change(
        &self,
        of: &str,
        change: GatewayChange,
    ) -> Result<GatewayDiff, ApplyError> {
        let last = self.accepted.borrow().clone();
        let last = last.filter(|_| self.tag().as_deref() == Some(of));
        let last = last.ok_or(ApplyError::OtherBase)?;
        let mut state = GatewayState::clone(&last);
        let changed = change.clone().apply(&mut state);
        changed.map_err(|_| ApplyError::OtherBase)?;
        let state = Arc::new(state);
        let held = self.holds.load(Ordering::Relaxed);
        let progress = self.accept(Some(change.clone()), state.clone()).await?;
        match change.of_routes(&last) {
            Some(routes) if held && !state.edge.outside.dns => {
                self.change_routes(routes, &state, progress).await
            }
            _ => self.make_hold(&state, progress).await,
        }
    }

    /// Checks and saves a state, of which `change` is what is new if there is one.
    async fn accept(
        &self,
        change: Option<GatewayChange>,
        state: Arc<GatewayState>,
    ) -> Result<Progress, ApplyError> {
        validate(&state, self.paths.longest_route_host())?;
        let saved = self.save(change, state.clone()).await;
        saved.map_err(ApplyError::Save)?;
        // Until it does; what a step before leaves undone is looked for everywhere.
        self.holds.store(false, Ordering::Relaxed);
        let mut progress = Progress::default();
        let before = self.accepted.borrow().clone();
        let withdrawn = claims::withdraw(&self.paths, before.as_deref(), &state);
        progress.note("claims of names", withdrawn);
        self.accepted.send_replace(Some(state.clone()));
        self.egress.accept(&state);
        Ok(progress)
    }

    /// Where everything else held already and is the same. What somebody did to that since is mended by the next state
    /// that changes anything else, or nothing.
    async fn change_routes(
        &self,
        change: RouteChange<'_>,
        state: &GatewayState,
        mut progress: Progress,
    ) -> Result<GatewayDiff, ApplyError> {
        let targets = Target::of(change.routes.after, state);
        let going = change.routes.before.iter().map(|route| route.host.clone());
        let going = going.filter(|host| !targets.contains_key(host)).collect();
        progress.diff.routes_closed = self.routes.close(going);
        let plan = hosts::plan_names(&self.paths, &change.names, state);
        if let Some(plan) = progress.note("reading hosts", plan) {
            let withdrawn = self.withdraw(state, &plan).await;
            progress.note("withdrawing hosts", withdrawn);
            let published = self.publish(&state.network, &plan).await;
            progress.note("publishing hosts", published);
            progress.diff.hosts_withdrawn = plan.withdrawn;
            progress.diff.hosts_published = plan.published;
        }
        self.open_routes(&targets, &mut progress);
        self.done(progress)
    }

    fn open_routes(&self, targets: &BTreeMap<HostName, Target>, progress: &mut Progress) {
        let (opened, failed) = self.routes.open(targets);
        progress.diff.routes_opened = opened;
        let failed = failed.iter().map(|e| format!("opening routes: {e}"));
        progress.failures.extend(failed);
    }

    fn done(&self, progress: Progress) -> Result<GatewayDiff, ApplyError> {
        if !progress.failures.is_empty() {
            return Err(ApplyError::Incomplete {
                failures: progress.failures,
            });
        }
        self.holds.store(true, Ordering::Relaxed);
        Ok(progress.diff)
    }

    async fn make_hold(
        &self,
        state: &GatewayState,
        mut progress: Progress,
    ) -> Result<GatewayDiff, ApplyError> {
        let targets = Target::all_of(state);
        progress.diff.routes_closed = self.routes.close_others(&targets);
        let plan = self.plan_hosts(state, &mut progress).await;
        if let Some(plan) = &plan {
            let withdrawn = self.withdraw(state, plan).await;
            progress.note("withdrawing hosts", withdrawn);
        }
        self.set_kernel(&state.network, &mut progress);
        self.load_firewall(state, &mut progress).await;
        let restored = leases::restore(&self.paths, state);
        if progress.note("leases", restored) == Some(true) {
            progress.changed("leases", "restored");
        }
        self.configure_dnsmasq(state, &mut progress).await;
        if let Some(plan) = plan {
            let published = self.publish(&state.network, &plan).await;
            progress.note("publishing hosts", published);
            progress.diff.hosts_withdrawn = plan.withdrawn;
            progress.diff.hosts_published = plan.published;
        }
        self.configure_caddy(state, &mut progress).await;
        self.open_routes(&targets, &mut progress);
        self.done(progress)
    }

    /// On a thread of its own: a slow disk must not hold up the connections of the routes.
    async fn save(
        &self,
        change: Option<GatewayChange>,
        state: Arc<GatewayState>,
    ) -> Result<(), FileError> {
        let (paths, saver) = (self.paths.clone(), self.saver.clone());
        let save = tokio::task::spawn_blocking(move || {
            let mut saver = saver.lock().unwrap_or_else(PoisonError::into_inner);
            match change {
                Some(change) => saver.changed(&paths, &change, &state),
                None => saver.whole(&paths, &state),
            }
        });
        save.await.unwrap_or_else(|e| {
            Err(FileError::new("write", self.paths.state())(
                std::io::Error::other(e),
            ))
        })
    }

    async fn plan_hosts(&self, state: &GatewayState, progress: &mut Progress) -> Option<HostPlan> {
        let outside = match state.edge.outside.dns {
            true => report::address(&self.system, &state.network.wan).await,
            false => None,
        };
        let wanted = progress.note("writing hosts", hosts::wanted(state, outside))?;
        let found = {
            let mut reader = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            reader.read(&self.paths)
        };
        let found = progress.note("reading hosts", found)?;
        Some(HostPlan::new(&wanted, &found))
    }

    fn set_kernel(&self, network: &ZoneNetwork, progress: &mut Progress) {
        let Some(settings) = progress.note("kernel", kernel::for_network(network)) else {
            return;
        };
        if progress.note("kernel", kernel::set(&self.paths, &settings)) == Some(true) {
            progress.changed("kernel", "set");
        }
        let path = self.paths.sysctl_conf();
        let text = kernel::render(&settings);
        let written = path
            .parent()
            .map_or(Ok(()), |d| durable::directory(d, 0o755))
            .and_then(|()| replace(&path, &text));
        progress.note("kernel", written);
    }

    /// The kernel first: what it refuses must not stand in the file that is loaded at boot.
    async fn load_firewall(&self, state: &GatewayState, progress: &mut Progress) {
        let rendered = nftables::render(&state.network, &state.edge);
        let Some(ruleset) = progress.note("firewall", rendered) else {
            return;
        };
        let contents = Contents::of(state);
        let loaded = {
            let _alone = self.egress.firewall.lock().await;
            let open = self.egress.open(Instant::now());
            nftables::load(&self.system, &ruleset, &contents, &open).await
        };
        let Some(loaded) = progress.note("firewall", loaded) else {
            return;
        };
        if let Some(done) = loaded {
            progress.changed("nftables", done);
        }
        // Answers do not outlive a boot.
        let at_boot = ruleset.text + &contents.statements(&[]);
        progress.note("firewall", replace(&self.paths.nftables_conf(), &at_boot));
    }

    async fn configure_dnsmasq(&self, state: &GatewayState, progress: &mut Progress) {
        let network = &state.network;
        let group = self.family.dnsmasq_group();
        let rendered = dnsmasq::render(network, state.edge.outside.dns, group, &self.paths);
        let Some(text) = progress.note("dnsmasq", rendered) else {
            return;
        };
        let file = Installation {
            service: "dnsmasq",
            path: self.paths.dnsmasq_conf(),
            text: &text,
            check: &dnsmasq::test,
        };
        let service = Dnsmasq(self);
        let installed = file.install(&self.paths, &self.system, &service).await;
        match progress.note("dnsmasq", installed) {
            Some(Some(done)) => progress.changed("dnsmasq", done),
            Some(None) if self.ask_own_name(network).await == Answer::Closed => {
                let started = service.activate().await;
                if progress.note("dnsmasq", started).is_some() {
                    progress.changed("dnsmasq", "was down, started");
                }
            }
            _ => {}
        }
    }

    /// Takes what operators changed in their sites; a change is a reason for a reload.
    async fn take_sites(
        &self,
        user: Option<CaddyUser>,
        progress: &mut Progress,
        render: impl Fn(&Path) -> String,
    ) -> Option<Taken> {
        let taken = self
            .sites
            .take(&self.paths, &self.system, user, render)
            .await;
        let taken = progress.note("sites", taken).filter(Taken::is_change)?;
        let mark = self.paths.pending("caddy");
        progress.note("sites", durable::replace(&mark, b"", 0o600, Keep::Derived))?;
        Some(taken)
    }

    async fn configure_caddy(&self, state: &GatewayState, progress: &mut Progress) {
        let network = &state.network;
        let acme = state.edge.acme.as_ref();
        let user = identity::caddy(&self.paths);
        let authority = authority::ensure(&self.paths, &self.system, &network.domain, user).await;
        let Some(authority) = progress.note("authority", authority) else {
            return;
        };
        let render = |sites: &Path| caddy::render(network, acme, &authority, sites, &self.paths);
        let Some(text) = progress.note("caddy", render(&self.paths.accepted_sites())) else {
            return;
        };
        let sites = self.take_sites(user, progress, |d| render(d).unwrap_or_default());
        let sites = sites.await;
        let file = Installation {
            service: "caddy",
            path: self.paths.caddyfile(),
            text: &text,
            check: &|candidate| caddy::validate(candidate, user),
        };
        let service = Caddy(self);
        let mut installed = file.install(&self.paths, &self.system, &service).await;
        if let (Err(error), Some(taken)) = (&installed, &sites) {
            // The zone's own routes come first: once more without what the operator changed.
            let undone = taken.undo(&self.paths, &self.sites, &error.to_string());
            progress.note("sites", undone);
            installed = file.install(&self.paths, &self.system, &service).await;
        }
        match progress.note("caddy", installed) {
            Some(Some(done)) => progress.changed("caddy", done),
            Some(None) if !self.system.accepts(&self.paths.caddy_admin()).await => {
                let started = service.activate().await;
                if progress.note("caddy", started).is_some() {
                    progress.changed("caddy", "was down, started");
                }
            }
            _ => {}
        }
    }
}

fn replace(path: &Path, text: &str) -> Result<(), FileError> {
    durable::replace_if_changed(path, text.as_bytes(), 0o644, Keep::Durable).map(|_| ())
}

/// Why the saved state could not be made to hold at the start.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

struct Caddy<'a, S>(&'a Gateway<S>);

impl<S: System> Activate for Caddy<'_, S> {
    /// A reload keeps all listening sockets; a restart is for a Caddy that does not run.
    async fn activate(&self) -> Result<&'static str, CommandError> {
        let Gateway { system, paths, .. } = self.0;
        if system.accepts(&paths.caddy_admin()).await {
            system.run(caddy::reload(paths)).await.map(|_| "reloaded")
        } else {
            let restart = self.0.family.restart(&[Service::Caddy]);
            self.0.tell_services(restart).await.map(|()| "restarted")
        }
    }
}

#[cfg(test)]
mod tests;
