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
//! A step that fails does not stop the later ones, so that a broken site of an operator never keeps
//! a route of somebody else closed or, worse, open. All failures are told in the end.

use std::fmt::Display;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Instant;

use wire::family::Service;
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

    /// Makes `state` hold. Must not be called twice at a time; the relay's owner task sees to that.
    pub async fn apply(&self, state: GatewayState) -> Result<GatewayDiff, ApplyError> {
        validate(&state, self.paths.longest_route_host())?;
        self.save(&state).await.map_err(ApplyError::Save)?;
        let mut progress = Progress::default();
        let withdrawn = claims::withdraw(&self.paths, self.accepted.borrow().as_ref(), &state);
        progress.note("claims of names", withdrawn);
        self.accepted.send_replace(Some(state.clone()));
        self.egress.accept(&state);

        let targets = Target::all_of(&state);
        progress.diff.routes_closed = self.routes.close_others(&targets);
        let plan = self.plan_hosts(&state, &mut progress).await;
        if let Some(plan) = &plan {
            let withdrawn = self.withdraw(&state, plan).await;
            progress.note("withdrawing hosts", withdrawn);
        }
        self.set_kernel(&state.network, &mut progress);
        self.load_firewall(&state, &mut progress).await;
        let restored = leases::restore(&self.paths, &state);
        if progress.note("leases", restored) == Some(true) {
            progress.changed("leases", "restored");
        }
        self.configure_dnsmasq(&state, &mut progress).await;
        if let Some(plan) = plan {
            let published = self.publish(&state.network, &plan).await;
            progress.note("publishing hosts", published);
            progress.diff.hosts_withdrawn = plan.withdrawn;
            progress.diff.hosts_published = plan.published;
        }
        self.configure_caddy(&state, &mut progress).await;
        let (opened, failed) = self.routes.open(&targets);
        progress.diff.routes_opened = opened;
        progress
            .failures
            .extend(failed.iter().map(|e| format!("opening routes: {e}")));

        if progress.failures.is_empty() {
            Ok(progress.diff)
        } else {
            Err(ApplyError::Incomplete {
                failures: progress.failures,
            })
        }
    }

    /// On a thread of its own: a slow disk must not hold up the connections of the routes.
    async fn save(&self, state: &GatewayState) -> Result<(), FileError> {
        let (paths, state) = (self.paths.clone(), state.clone());
        let save = tokio::task::spawn_blocking(move || state::save(&paths, &state));
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
mod tests {
    use super::*;
    use crate::gateway::fake::{self, FakeSystem, host, route};
    use crate::gateway::paths::Paths;
    use crate::relay::route::RouteTable;
    use wire::family::{Alpine, Debian, Family};

    struct Lab {
        gateway: Gateway<FakeSystem>,
        _root: tempfile::TempDir,
    }

    fn lab() -> Lab {
        lab_of(&Debian)
    }

    fn lab_of(family: &'static dyn Family) -> Lab {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        durable::directory(paths.run(), 0o755).unwrap();
        let routes = RouteTable::new(&paths.routes(), None).unwrap();
        let system = FakeSystem::new(&paths);
        let gateway = Gateway::new(paths, system, family, routes);
        gateway.prepare().unwrap();
        Lab {
            gateway,
            _root: root,
        }
    }

    fn found(paths: &super::super::paths::Paths) -> hosts::HostFiles {
        hosts::Reader::default().read(paths).unwrap()
    }

    #[tokio::test]
    async fn the_first_apply_does_everything_and_the_second_nothing() {
        let Lab { gateway, _root } = lab();
        let diff = gateway.apply(fake::state()).await.unwrap();
        insta::assert_debug_snapshot!((diff, gateway.system.commands()));
        let again = gateway.apply(fake::state()).await.unwrap();
        assert!(again.is_empty(), "{again:?}");
        assert_eq!(gateway.system.commands(), ["nft list table inet proximity"]);
        assert!(gateway.paths.routes().join("web.prox.local").exists());
    }

    #[tokio::test]
    async fn another_family_has_the_same_done_by_its_own_means() {
        let Lab { gateway, _root } = lab_of(&Alpine);
        gateway.apply(fake::state()).await.unwrap();
        let services = |commands: Vec<String>| -> Vec<String> {
            let of_rc = |c: &String| c.starts_with("rc-") || c.starts_with("systemctl");
            commands.into_iter().filter(of_rc).collect()
        };
        let commands = services(gateway.system.commands());
        assert_eq!(commands, ["rc-service proximity-dnsmasq restart"]);
        let conf = std::fs::read_to_string(gateway.paths.dnsmasq_conf()).unwrap();
        assert!(conf.contains("\ngroup=dnsmasq\n"), "{conf}");
        let mut state = fake::state();
        state.hosts.remove(0);
        state.routes.clear();
        gateway.apply(state).await.unwrap();
        let commands = services(gateway.system.commands());
        assert_eq!(commands, ["rc-service proximity-dnsmasq reload"]);
        let report = gateway.report().await;
        let states = report
            .services
            .iter()
            .map(|s| format!("{} {}", s.name, s.state));
        assert_eq!(
            states.collect::<Vec<_>>(),
            [
                "caddy failed",
                "dnsmasq active",
                "nftables configured",
                "relay active"
            ]
        );
    }

    #[tokio::test]
    async fn a_withdrawn_host_leaves_nothing_behind() {
        let Lab { gateway, _root } = lab();
        gateway.apply(fake::state()).await.unwrap();
        let lease = "1795288022 52:78:00:01:00:64 10.20.0.100 * 01:52:78:00:01:00:64\n";
        std::fs::write(gateway.paths.leases(), lease).unwrap();
        gateway.system.commands();
        let mut state = fake::state();
        state.hosts.remove(0);
        state.routes.clear();
        let diff = gateway.apply(state).await.unwrap();
        assert_eq!(diff.hosts_withdrawn[0].as_str(), "web");
        assert_eq!(diff.routes_closed[0].as_str(), "web.prox.local");
        assert!(diff.hosts_published.is_empty() && diff.services_changed.is_empty());
        assert_eq!(
            gateway.system.commands(),
            [
                "systemctl kill --signal=SIGHUP dnsmasq.service",
                "nft list table inet proximity"
            ]
        );
        assert_eq!(gateway.system.released.lock().unwrap().len(), 1);
        assert!(!gateway.paths.routes().join("web.prox.local").exists());
        assert_eq!(found(&gateway.paths).names.len(), 1);
    }

    #[tokio::test]
    async fn a_crash_between_removal_and_hangup_is_made_good() {
        let Lab { gateway, _root } = lab();
        gateway.apply(fake::state()).await.unwrap();
        let lease = "1795288022 52:78:00:01:00:64 10.20.0.100 * 01:52:78:00:01:00:64\n";
        std::fs::write(gateway.paths.leases(), lease).unwrap();
        let mut state = fake::state();
        state.hosts.remove(0);
        state.routes.clear();
        // The answer is not `Closed`, so a failed signal is a failure: the files are gone already.
        *gateway.system.fails.lock().unwrap() = Some("SIGHUP");
        gateway.apply(state.clone()).await.unwrap_err();
        assert_eq!(found(&gateway.paths).reservations.len(), 1);
        *gateway.system.fails.lock().unwrap() = None;
        gateway.system.commands();
        gateway.apply(state.clone()).await.unwrap();
        assert!(gateway.system.commands()[0].contains("SIGHUP"));
        assert_eq!(gateway.system.released.lock().unwrap().len(), 1);
        gateway.system.commands();
        gateway.apply(state).await.unwrap();
        assert_eq!(gateway.system.commands(), ["nft list table inet proximity"]);
    }

    #[tokio::test]
    async fn a_stranger_loses_the_lease_of_an_address_that_is_reserved() {
        let Lab { gateway, _root } = lab();
        let leases = "1 02:00:00:00:00:77 10.20.0.100 * *\n1 02:00:00:00:00:78 10.20.0.140 * *\n";
        std::fs::write(gateway.paths.leases(), leases).unwrap();
        gateway.apply(fake::state()).await.unwrap();
        let left = std::fs::read_to_string(gateway.paths.leases()).unwrap();
        assert_eq!(left, "1 02:00:00:00:00:78 10.20.0.140 * *");
    }

    #[tokio::test]
    async fn a_wrong_state_changes_nothing() {
        let Lab { gateway, _root } = lab();
        let mut state = fake::state();
        state.routes.push(route("x.prox.local", 7, 80));
        assert!(matches!(
            gateway.apply(state).await,
            Err(ApplyError::Invalid(_))
        ));
        assert!(gateway.system.commands().is_empty());
        assert!(!gateway.paths.state().exists());
    }

    #[tokio::test]
    async fn a_firewall_that_somebody_flushed_comes_back() {
        let Lab { gateway, _root } = lab();
        gateway.apply(fake::state()).await.unwrap();
        *gateway.system.table.lock().unwrap() = None;
        let diff = gateway.apply(fake::state()).await.unwrap();
        assert_eq!(diff.services_changed, ["nftables: loaded"]);
    }

    #[tokio::test]
    async fn a_refused_configuration_changes_nothing_and_stops_nothing_else() {
        let Lab { gateway, _root } = lab();
        gateway.apply(fake::state()).await.unwrap();
        let before = std::fs::read(gateway.paths.caddyfile()).unwrap();
        *gateway.system.fails.lock().unwrap() = Some("caddy validate");
        let mut state = fake::state();
        state.network.domain = "other.local".parse().unwrap();
        state.routes = vec![route("web.other.local", 1, 80)];
        let error = gateway.apply(state.clone()).await.unwrap_err().to_string();
        assert!(
            error.contains("caddy") && error.contains("was told to fail"),
            "{error}"
        );
        assert_eq!(std::fs::read(gateway.paths.caddyfile()).unwrap(), before);
        assert!(gateway.paths.routes().join("web.other.local").exists());
        *gateway.system.fails.lock().unwrap() = None;
        let diff = gateway.apply(state).await.unwrap();
        assert_eq!(diff.services_changed, ["caddy: reloaded"]);
    }

    #[tokio::test]
    async fn a_reload_that_fails_puts_the_previous_file_back() {
        let Lab { gateway, _root } = lab();
        gateway.apply(fake::state()).await.unwrap();
        let before = std::fs::read(gateway.paths.caddyfile()).unwrap();
        *gateway.system.fails.lock().unwrap() = Some("caddy reload");
        let mut state = fake::state();
        state.network.domain = "other.local".parse().unwrap();
        state.routes.clear();
        gateway.apply(state.clone()).await.unwrap_err();
        assert_eq!(std::fs::read(gateway.paths.caddyfile()).unwrap(), before);
        // The previous file could not be activated either, so whatever comes next is.
        *gateway.system.fails.lock().unwrap() = None;
        gateway.system.commands();
        gateway.apply(fake::state()).await.unwrap();
        let commands = gateway.system.commands();
        assert!(
            commands.iter().any(|c| c.starts_with("caddy reload")),
            "{commands:?}"
        );
    }

    #[tokio::test]
    async fn a_crash_between_the_file_and_the_restart_is_made_good() {
        let Lab { gateway, _root } = lab();
        *gateway.system.fails.lock().unwrap() = Some("restart dnsmasq");
        gateway.apply(fake::state()).await.unwrap_err();
        assert!(gateway.paths.dnsmasq_conf().exists());
        *gateway.system.fails.lock().unwrap() = None;
        let diff = gateway.apply(fake::state()).await.unwrap();
        assert!(
            diff.services_changed
                .contains(&"dnsmasq: restarted".to_owned()),
            "{diff:?}"
        );
    }

    #[tokio::test]
    async fn a_restored_state_opens_its_routes() {
        let Lab { gateway, _root } = lab();
        gateway.apply(fake::state()).await.unwrap();
        let paths = gateway.paths.clone();
        let routes = RouteTable::new(&paths.routes(), None).unwrap();
        let restarted = Gateway::new(paths.clone(), FakeSystem::new(&paths), &Debian, routes);
        assert!(!paths.routes().join("web.prox.local").exists());
        let diff = restarted.restore().await.unwrap().unwrap();
        assert_eq!(diff.routes_opened[0].as_str(), "web.prox.local");
        assert!(diff.hosts_published.is_empty());
    }

    #[tokio::test]
    async fn a_report_is_read_from_the_appliance() {
        let Lab { gateway, _root } = lab();
        let mut state = fake::state();
        state.hosts.push(host(3, "new", 102));
        gateway.apply(state).await.unwrap();
        *gateway.system.table.lock().unwrap() = None;
        let report = gateway.report().await;
        assert_eq!(report.wan_address, Some([192, 0, 2, 7].into()));
        assert_eq!(report.lan_address, Some([10, 20, 0, 1].into()));
        let services: Vec<_> = report
            .services
            .iter()
            .map(|s| format!("{} {}", s.name, s.state))
            .collect();
        let wanted = [
            "caddy failed",
            "cockpit active",
            "dnsmasq active",
            "nftables missing",
            "relay active",
        ];
        assert_eq!(services, wanted);
        let names: Vec<_> = report.names.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(
            names,
            ["new.prox.local", "web.prox.local", "worker.prox.local"]
        );
        assert_eq!(report.routes[0].connections, 0);
    }
}
