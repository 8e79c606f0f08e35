use super::*;
use crate::gateway::fake::{self, FakeSystem, host, route};
use crate::gateway::paths::Paths;
use crate::relay::route::RouteTable;
use wire::family::{Alpine, Debian, Family};
use wire::gateway::NameRecord;

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

/// One more route, as a change of the state that `gateway` has.
async fn one_more(
    gateway: &Gateway<FakeSystem>,
    of: &str,
    host: &str,
) -> Result<GatewayDiff, ApplyError> {
    let before = gateway.accepted.borrow().clone().unwrap();
    let mut after = GatewayState::clone(&before);
    after.routes.push(route(host, 1, 80));
    let change = GatewayChange::between(&before, &after).unwrap();
    gateway.apply_change(of, change).await
}

#[tokio::test]
async fn a_change_is_of_the_last_state_or_refused() {
    let Lab { gateway, _root } = lab();
    assert_eq!(gateway.tag(), None);
    gateway.apply(fake::state()).await.unwrap();
    let first = gateway.tag().unwrap();
    let diff = one_more(&gateway, &first, "x.prox.local").await.unwrap();
    assert_eq!(diff.routes_opened[0].as_str(), "x.prox.local");
    assert_eq!(diff.routes_opened.len(), 1);
    let second = gateway.tag().unwrap();
    for of in [first.as_str(), "", "\"", &second[1..]] {
        let refused = one_more(&gateway, of, "y.prox.local").await;
        assert!(matches!(refused, Err(ApplyError::OtherBase)), "{refused:?}");
    }
    // A change that leads to a wrong state changes nothing, the tag included.
    let refused = one_more(&gateway, &second, "x.prox.local").await;
    assert!(
        matches!(refused, Err(ApplyError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(gateway.tag(), Some(second.clone()));
    one_more(&gateway, &second, "y.prox.local").await.unwrap();

    let paths = gateway.paths.clone();
    let routes = RouteTable::new(&paths.routes(), None).unwrap();
    let restarted = Gateway::new(paths.clone(), FakeSystem::new(&paths), &Debian, routes);
    restarted.restore().await.unwrap();
    for host in ["web", "x", "y"] {
        assert!(paths.routes().join(format!("{host}.prox.local")).exists());
    }
    let of_before = gateway.tag().unwrap();
    let refused = one_more(&restarted, &of_before, "z.prox.local").await;
    assert!(matches!(refused, Err(ApplyError::OtherBase)), "{refused:?}");
}

#[tokio::test]
async fn what_was_not_saved_has_no_tag() {
    let Lab { gateway, _root } = lab();
    gateway.apply(fake::state()).await.unwrap();
    std::fs::create_dir(gateway.paths.state_changes()).unwrap();
    let of = gateway.tag().unwrap();
    let failed = one_more(&gateway, &of, "x.prox.local").await;
    assert!(matches!(failed, Err(ApplyError::Save(_))), "{failed:?}");
    assert_eq!(gateway.tag(), None);
    assert!(!gateway.paths.routes().join("x.prox.local").exists());
}

proptest::proptest! {
    #[test]
    fn a_change_leads_from_any_state_to_any_other(before in fake::any_state(), mut after in fake::any_state()) {
        after.network = before.network.clone();
        let change = GatewayChange::between(&before, &after).unwrap();
        let sent = serde_json::to_vec(&change).unwrap();
        let change: GatewayChange = serde_json::from_slice(&sent).unwrap();
        let mut state = before.clone();
        change.apply(&mut state).unwrap();
        proptest::prop_assert_eq!(&state, &after);
        let nothing = GatewayChange::between(&after, &after);
        proptest::prop_assert_eq!(nothing, Some(GatewayChange::default()));
    }
}

/// The state of `fake` with these further routes, each with a name that leads to the proxy.
fn with_routes(hosts: &[&str]) -> GatewayState {
    let mut state = fake::state();
    for host in hosts {
        state.routes.push(route(host, 1, 80));
        state.edge.names.push(NameRecord {
            name: host.parse().unwrap(),
            address: state.network.gateway,
        });
    }
    state.routes.sort_by(|a, b| a.host.cmp(&b.host));
    state.edge.names.sort();
    state
}

impl Lab {
    /// Gives the appliance `after` as a change of `before`.
    async fn changed(
        &self,
        before: &GatewayState,
        after: &GatewayState,
    ) -> Result<GatewayDiff, ApplyError> {
        let change = GatewayChange::between(before, after).unwrap();
        let of = self.gateway.tag().unwrap();
        self.gateway.system.commands();
        self.gateway.apply_change(&of, change).await
    }

    /// Names of the files and sockets that routes have.
    fn of_routes(&self) -> [Vec<String>; 2] {
        [self.gateway.paths.routes(), self.gateway.paths.names()].map(|directory| {
            let names = std::fs::read_dir(directory).unwrap();
            let mut names: Vec<_> = names
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        })
    }
}

#[tokio::test]
async fn a_change_of_routes_touches_nothing_else_and_leads_to_the_same() {
    let lab = lab();
    let states = [
        with_routes(&[]),
        with_routes(&["b.prox.local", "d.prox.local"]),
        with_routes(&[
            "a.prox.local",
            "b.prox.local",
            "c.prox.local",
            "d.prox.local",
        ]),
        with_routes(&["a.prox.local", "e.prox.local"]),
        with_routes(&[]),
    ];
    lab.gateway.apply(states[0].clone()).await.unwrap();
    for pair in states.windows(2) {
        let diff = lab.changed(&pair[0], &pair[1]).await.unwrap();
        assert!(diff.services_changed.is_empty(), "{diff:?}");
        let ran = lab.gateway.system.commands();
        assert!(ran.is_empty(), "{ran:?}");
        let whole = lab_of(&Debian);
        whole.gateway.apply(pair[1].clone()).await.unwrap();
        assert_eq!(lab.of_routes(), whole.of_routes());
        let again = lab.gateway.apply(pair[1].clone()).await.unwrap();
        assert!(again.is_empty(), "{again:?}");
    }
    // Another target of the same name.
    let before = with_routes(&["a.prox.local"]);
    lab.gateway.apply(before.clone()).await.unwrap();
    let mut after = before.clone();
    after.routes[0].port = 81;
    let diff = lab.changed(&before, &after).await.unwrap();
    assert_eq!(diff.routes_opened[0].as_str(), "a.prox.local");
    assert!(diff.routes_closed.is_empty());
}

#[tokio::test]
async fn where_not_all_holds_a_change_is_followed_by_a_look_at_everything() {
    let lab = lab();
    lab.gateway.apply(with_routes(&[])).await.unwrap();
    let socket = lab.gateway.paths.routes().join("web.prox.local");
    std::fs::remove_file(&socket).unwrap();
    *lab.gateway.system.fails.lock().unwrap() = Some("nft");
    lab.gateway.apply(with_routes(&[])).await.unwrap_err();
    *lab.gateway.system.fails.lock().unwrap() = None;
    std::fs::remove_file(&socket).unwrap();
    let (before, after) = (with_routes(&[]), with_routes(&["a.prox.local"]));
    let diff = lab.changed(&before, &after).await.unwrap();
    assert_eq!(diff.routes_opened.len(), 2, "{diff:?}");
    // A change of nothing is a look at everything, too.
    std::fs::remove_file(&socket).unwrap();
    let diff = lab.changed(&after, &after).await.unwrap();
    assert_eq!(diff.routes_opened[0].as_str(), "web.prox.local");
}
