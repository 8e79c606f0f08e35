//! States for tests, and an appliance whose dnsmasq, nft, Caddy and systemd are a few lines each.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Mutex;

use api::{HostName, InstanceId, MacAddr};
use ipnet::Ipv4Net;
use proptest::prelude::*;
use wire::gateway::edge::Edge;
use wire::gateway::policy::RoutePolicy;
use wire::gateway::{GatewayState, ReservedHost, Route, ZoneNetwork};

use super::dhcp_release::HeldLease;
use super::dns_probe::Answer;
use super::hosts;
use super::paths::Paths;
use super::system::{Command, CommandError, System};

pub fn host(instance: u64, name: &str, last: u8) -> ReservedHost {
    let address = Ipv4Addr::new(10, 20, 0, last);
    ReservedHost {
        instance: InstanceId::from_bytes(instance.to_be_bytes()),
        name: name.parse().unwrap(),
        mac: MacAddr::derived(1, address),
        address,
    }
}

pub fn route(host: &str, instance: u64, port: u16) -> Route {
    Route {
        host: host.parse().unwrap(),
        instance: InstanceId::from_bytes(instance.to_be_bytes()),
        port,
        policy: RoutePolicy::default(),
    }
}

/// The default zone with two instances, one of which has a route.
pub fn state() -> GatewayState {
    GatewayState {
        network: ZoneNetwork {
            domain: "prox.local".parse().unwrap(),
            subnet: "10.20.0.0/24".parse().unwrap(),
            gateway: [10, 20, 0, 1].into(),
            dhcp_first: [10, 20, 0, 100].into(),
            dhcp_last: [10, 20, 0, 250].into(),
            lease_s: 43200,
            upstream_dns: vec![[8, 8, 8, 8].into(), [1, 1, 1, 1].into()],
            wan: "eth0".parse().unwrap(),
            lan: "eth1".parse().unwrap(),
        },
        hosts: vec![host(1, "web", 100), host(2, "worker", 101)],
        routes: vec![route("web.prox.local", 1, 80)],
        leases: vec![],
        published: vec![],
        egress: vec![],
        edge: Edge::default(),
    }
}

pub fn any_network() -> impl Strategy<Value = ZoneNetwork> {
    let domain = "[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){0,3}";
    let upstream = proptest::collection::vec(any::<IpAddr>(), 0..4);
    let interfaces = ("[a-z][a-z0-9._-]{0,14}", "[a-z][a-z0-9._-]{0,14}");
    let numbers = (any::<u32>(), 8u8..=24, 120u32..10_000_000);
    (domain, upstream, interfaces, numbers).prop_map(
        |(domain, upstream_dns, (wan, lan), (base, prefix, lease_s))| {
            let subnet = Ipv4Net::new(base.into(), prefix).unwrap().trunc();
            let at = |n: u32| Ipv4Addr::from(u32::from(subnet.network()) + n);
            ZoneNetwork {
                domain: domain.parse().unwrap(),
                subnet,
                gateway: at(1),
                dhcp_first: at(100),
                dhcp_last: at(250),
                lease_s,
                upstream_dns,
                wan: wan.parse().unwrap(),
                lan: lan.parse().unwrap(),
            }
        },
    )
}

/// A valid state with up to six instances out of a small set, so that two states overlap.
pub fn any_state() -> impl Strategy<Value = GatewayState> {
    let names =
        proptest::sample::subsequence(vec!["web", "db", "api", "cache", "mail", "box"], 0..6);
    (names, 0u64..3, any::<bool>()).prop_map(|(names, shift, routed)| {
        let mut state = state();
        let numbered = (1u64..).zip(names);
        state.hosts = numbered
            .map(|(n, name)| host(n + shift, name, u8::try_from(n * 7 % 5 + n).unwrap() + 100))
            .collect();
        state.hosts.dedup_by_key(|h| h.address);
        let routes = state.hosts.iter().filter(|_| routed).map(|h| Route {
            host: HostName::in_domain(&h.name, &state.network.domain),
            instance: h.instance.clone(),
            port: 80,
            policy: RoutePolicy::default(),
        });
        state.routes = routes.collect();
        state
    })
}

/// An appliance in a directory.
pub struct FakeSystem {
    pub paths: Paths,
    /// Every command line that was run, in order.
    pub log: Mutex<Vec<String>>,
    /// The kernel's ruleset.
    pub table: Mutex<Option<String>>,
    /// Leases given back.
    pub released: Mutex<Vec<HeldLease>>,
    /// Command lines that contain this fail.
    pub fails: Mutex<Option<&'static str>>,
}

impl FakeSystem {
    pub fn new(paths: &Paths) -> Self {
        for key in [
            "net/ipv4/conf/all",
            "net/ipv4/conf/eth1",
            "net/ipv4/neigh/eth1",
        ] {
            std::fs::create_dir_all(paths.sysctl(key)).unwrap();
        }
        std::fs::create_dir_all(paths.nftables_conf().parent().unwrap()).unwrap();
        Self {
            paths: paths.clone(),
            log: Mutex::default(),
            table: Mutex::default(),
            released: Mutex::default(),
            fails: Mutex::default(),
        }
    }

    /// The commands since the last call, with the temporary root taken out of them.
    pub fn commands(&self) -> Vec<String> {
        let root = self.paths.leases();
        let root = root
            .to_str()
            .unwrap()
            .strip_suffix("/var/lib/proximity/dnsmasq.leases");
        let log = std::mem::take(&mut *self.log.lock().unwrap());
        log.iter().map(|c| c.replace(root.unwrap(), "")).collect()
    }
}

impl System for FakeSystem {
    async fn run(&self, command: Command) -> Result<String, CommandError> {
        let line = command.argv.join(" ");
        self.log.lock().unwrap().push(line.clone());
        let failed = |stderr: &str| CommandError::Failed {
            command: line.clone(),
            status: "exit status: 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        if self.fails.lock().unwrap().is_some_and(|f| line.contains(f)) {
            return Err(failed("it was told to fail"));
        }
        match line.as_str() {
            "nft -f -" => {
                let mut table = self.table.lock().unwrap();
                let all = command.input.contains("delete table");
                let before = table.take().filter(|_| !all).unwrap_or_default();
                *table = Some(before + &command.input);
                Ok(String::new())
            }
            "nft list table inet proximity" => {
                let table = self.table.lock().unwrap().clone();
                table.ok_or_else(|| failed("Error: No such file or directory"))
            }
            _ if line.starts_with("openssl req") => {
                let files = command.argv.iter().rev().take(3).step_by(2);
                for (n, file) in files.enumerate() {
                    std::fs::write(file, format!("{n} of {line}")).unwrap();
                }
                Ok(String::new())
            }
            "ip -j -4 addr show" => Ok(r#"[{"ifname":"eth0","addr_info":[{"family":"inet","local":"192.0.2.7","scope":"global"}]},
                {"ifname":"eth1","addr_info":[{"family":"inet","local":"10.20.0.1","scope":"global"}]}]"#.to_owned()),
            _ if line.starts_with("systemctl show") => Ok("Id=dnsmasq.service\nActiveState=active\n\nId=caddy.service\nActiveState=failed\n\nId=cockpit.socket\nActiveState=active\n".to_owned()),
            _ if line.starts_with("rc-status") => Ok("[default]\nproximity-dnsmasq =  started 00:00:03 (0) \nproximity-caddy =  crashed \n".to_owned()),
            _ => Ok(String::new()),
        }
    }

    async fn ask(&self, _: Ipv4Addr, name: &HostName) -> Answer {
        let records = hosts::records(&self.paths).unwrap();
        let found = records.into_iter().find(|r| r.name == *name);
        found.map_or(Answer::None, |r| Answer::Address(r.address))
    }

    async fn release(&self, _: Ipv4Addr, lease: &HeldLease) -> std::io::Result<()> {
        self.released.lock().unwrap().push(lease.clone());
        let path = self.paths.leases();
        let text = std::fs::read_to_string(&path)?;
        let others = text.lines().filter(|l| !l.contains(&lease.mac.to_string()));
        std::fs::write(&path, others.collect::<Vec<_>>().join("\n"))
    }

    async fn accepts(&self, _: &Path) -> bool {
        true
    }
}
