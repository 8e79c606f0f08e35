//! What configuration is taken and what is refused.

use super::*;

fn refused(text: &str) -> ConfigError {
    Config::parse(text).unwrap_err()
}

#[test]
fn no_file_means_one_node_and_one_zone() {
    let config = Config::parse("").unwrap();
    let zone = config.zones.values().next().unwrap();
    assert_eq!(zone.bridge.as_str(), "proximity-lan");
    assert_eq!(zone.gateway(), Ipv4Addr::new(10, 20, 0, 1));
    assert!(matches!(&zone.wan, Wan::Managed { bridge, .. } if bridge.as_str() == "proximity-wan"));
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    let e = refused("server: { lisen: 127.0.0.1:1 }\n");
    assert_eq!(e.hint.as_deref(), Some("did you mean `listen`?"), "{e}");
    let e = refused("zone: {}\n");
    assert_eq!(e.hint.as_deref(), Some("did you mean `zones`?"), "{e}");
    let e = refused("zones: { default: { bridg: x } }\n");
    assert_eq!(e.hint.as_deref(), Some("did you mean `bridge`?"), "{e}");
}

#[test]
fn bad_values_are_refused_with_their_key() {
    for (text, key) in [
        ("zones: { default: { subnet: 10.20.0.1/24 } }", "host bits"),
        (
            "zones: { default: { appliance: { os: fedora } } }",
            "zones.default.appliance.os",
        ),
        (
            "zones: { default: { open_to: [192.168.1.0/24] } }",
            "behind a managed WAN",
        ),
        (
            "zones: { default: { wan: { bridge: vmbr0 }, open_to: [8.8.8.0/24] } }",
            "zones.default.open_to",
        ),
        (
            "zones: { default: { acme: { email: nobody } } }",
            "zones.default.acme.email",
        ),
        (
            "zones: { default: { acme: { email: a@b.example, directory: 'http://x' } } }",
            "zones.default.acme.directory",
        ),
        (
            "zones: { default: { subnet: 8.8.8.0/24 } }",
            "not a private network",
        ),
        ("zones: { default: { subnet: 10.20.0.0/8 } }", "host bits"),
        (
            "zones: { default: { subnet: nonsense } }",
            "zones.default.subnet",
        ),
        (
            "zones: { default: { bridge: 'a b' } }",
            "zones.default.bridge",
        ),
        ("zones: { default: { node: pve9 } }", "there is no node"),
        ("zones: { Default: {} }", "zones.Default"),
        ("zones: { a: {}, b: {} }", "overlaps"),
        (
            "zones: { a: {}, b: { subnet: 10.21.0.0/24 } }",
            "is used by",
        ),
        (
            "nodes: { pve1: { backend: proxmox } }",
            "not in this version",
        ),
        ("server: { listen: 0.0.0.0:8765 }", "loopback"),
        ("server: { data_dir: '/var/lib/a b' }", "server.data_dir"),
        ("server: { data_dir: relative }", "server.data_dir"),
        (
            "zones: { default: { appliance: { memory_mb: 1 } } }",
            "memory_mb",
        ),
        (
            "zones: { default: { wan: { managed: false } } }",
            "no bridge is named",
        ),
        ("zones: { default: { dhcp_lease: 1s } }", "not a duration"),
    ] {
        let e = refused(text);
        assert!(e.message.contains(key), "{text}: {e}");
    }
}

#[test]
fn the_documented_file_parses() {
    let text = "
server:   { listen: 127.0.0.1:8765, data_dir: /var/lib/proximity }
nodes:
  local:  { backend: lxc }
zones:
  default:
    node: local
    bridge: proximity-lan
    subnet: 10.20.0.0/24
    domain: prox.local
    upstream_dns: [8.8.8.8, 1.1.1.1]
    wan: { managed: true }
    appliance: { name: prox-appliance, vmid: auto, os: debian, cores: 2, memory_mb: 1024, disk_gb: 8, management_ui: cockpit }
vms:
  vm01: { name: ingest, ip: 192.0.2.11, role: ingest, enabled: true, ssh_user: operator, ssh_port: 22 }
remote_execution:
  default_timeout: 30
";
    assert_eq!(Config::parse(text).unwrap(), Config::built_in().unwrap());
    let wan =
        Config::parse("zones: { default: { wan: { bridge: vmbr0, address: dhcp } } }").unwrap();
    let zone = wan.zones.values().next().unwrap();
    assert!(matches!(&zone.wan, Wan::Bridged { bridge } if bridge.as_str() == "vmbr0"));
}
