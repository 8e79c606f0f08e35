//! dnsmasq's main configuration: the one writer of it.
//!
//! It changes only when the zone's network does; hosts come and go in files of their own (see
//! [`super::hosts`]) without a restart. Guests decide nothing here: the name a DHCP client claims
//! is dropped, and because DHCP has no `domain` of its own, a lease never becomes a DNS name, so a
//! name is gone the moment its file is. Leases of others than guests are told to [`super::claims`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use wire::gateway::ZoneNetwork;

use super::paths::Paths;
use super::system::Command;
use super::word::{UnsafeWord, word};

/// Names that the appliance has for itself in its zone's domain.
const OWN_NAMES: &[&str] = &["gateway", "prox-appliance"];

/// The configuration of a zone's DHCP and DNS; `group` is that of dnsmasq's user.
pub fn render(
    network: &ZoneNetwork,
    outside: bool,
    group: &str,
    paths: &Paths,
) -> Result<String, UnsafeWord> {
    let mut text = String::from(
        "# Written by proximity-agent from the zone's desired state; changes here are lost.\n",
    );
    let mut settings = settings(network, group, paths)?;
    if outside {
        let wan = word(&network.wan)?;
        settings.push(("interface", vec![wan.clone()]));
        settings.push(("no-dhcp-interface", vec![wan]));
        // A name that has an address in the asker's network is answered with that one alone.
        settings.push(("localise-queries", Vec::new()));
    }
    for (key, values) in settings {
        text.push_str(key);
        if !values.is_empty() {
            text.push('=');
            text.push_str(&values.join(","));
        }
        text.push('\n');
    }
    Ok(text)
}

type Setting = (&'static str, Vec<String>);

fn settings(network: &ZoneNetwork, group: &str, paths: &Paths) -> Result<Vec<Setting>, UnsafeWord> {
    let flag = |key| (key, Vec::new());
    let domain = word(&network.domain)?;
    let gateway = word(network.gateway)?;
    let in_domain = format!("/{domain}/");
    let mut settings = vec![
        ("user", vec![word("dnsmasq")?]),
        ("group", vec![word(group)?]),
        ("interface", vec![word(&network.lan)?]),
        ("except-interface", vec![word("lo")?]),
        flag("bind-dynamic"),
        flag("no-resolv"),
        flag("no-hosts"),
        flag("domain-needed"),
        flag("bogus-priv"),
        flag("stop-dns-rebind"),
        flag("dns-loop-detect"),
        // What one guest asks and nobody answers must not be all that fits (see the firewall's limits).
        ("dns-forward-max", vec![word(4000)?]),
        ("cache-size", vec![word(2000)?]),
        ("local", vec![in_domain.clone()]),
        ("rebind-domain-ok", vec![in_domain]),
        ("host-record", own_names(&domain, &gateway)),
        ("hostsdir", vec![path_word(paths.names())?]),
        ("hostsdir", vec![path_word(paths.dyn_names())?]),
        ("dhcp-hostsdir", vec![path_word(paths.reservations())?]),
        ("dhcp-leasefile", vec![path_word(paths.leases())?]),
        flag("dhcp-authoritative"),
        flag("dhcp-ignore-names"),
        ("dhcp-script", vec![path_word(paths.agent())?]),
        // Before it gives an unreserved address out, dnsmasq would ping it for three seconds and
        // follow no host file meanwhile; a guest could hold up every deploy with that.
        flag("no-ping"),
    ];
    for upstream in &network.upstream_dns {
        settings.push(("server", vec![word(upstream)?]));
    }
    settings.push((
        "dhcp-range",
        vec![
            word(network.dhcp_first)?,
            word(network.dhcp_last)?,
            word(network.subnet.netmask())?,
            word(network.lease_s)?,
        ],
    ));
    for (option, value) in [
        ("option:router", &gateway),
        ("option:dns-server", &gateway),
        ("option:domain-name", &domain),
        ("option:domain-search", &domain),
    ] {
        settings.push(("dhcp-option", vec![option.to_owned(), value.clone()]));
    }
    Ok(settings)
}

fn own_names(domain: &str, gateway: &str) -> Vec<String> {
    let full = OWN_NAMES.iter().map(|name| format!("{name}.{domain}"));
    let short = OWN_NAMES.iter().map(|name| (*name).to_owned());
    full.chain(short).chain([gateway.to_owned()]).collect()
}

fn path_word(path: PathBuf) -> Result<String, UnsafeWord> {
    word(path.display())
}

/// dnsmasq's own check of a configuration file.
pub fn test(candidate: &Path) -> Command {
    let file = format!("--conf-file={}", candidate.display());
    Command::new(&["dnsmasq", "--test", &file], Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    #[test]
    fn the_configuration_of_the_default_zone() {
        let (network, paths) = (fake::state().network, Paths::appliance());
        let inside = render(&network, false, "nogroup", &paths).unwrap();
        insta::assert_snapshot!(inside);
        let outside = render(&network, true, "nogroup", &paths).unwrap();
        assert_eq!(
            outside.strip_prefix(&inside),
            Some("interface=eth0\nno-dhcp-interface=eth0\nlocalise-queries\n")
        );
    }

    #[test]
    fn a_path_that_could_leave_its_line_is_refused() {
        let paths = Paths::below(Path::new("/tmp/a\nconf-script=/bin/sh"));
        assert!(render(&fake::state().network, false, "nogroup", &paths).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(network in fake::any_network()) {
            let text = render(&network, false, "nogroup", &Paths::appliance()).unwrap();
            let lines: Vec<(&str, Vec<&str>)> = text
                .lines()
                .filter(|l| !l.starts_with('#'))
                .map(|l| l.split_once('=').map_or((l, vec![]), |(k, v)| (k, v.split(',').collect())))
                .collect();
            prop_assert_eq!(lines.len(), 29 + network.upstream_dns.len());
            let values = |key: &str| -> Vec<Vec<&str>> {
                lines.iter().filter(|(k, _)| *k == key).map(|(_, v)| v.clone()).collect()
            };
            let range = &values("dhcp-range")[0];
            prop_assert_eq!(range[0].parse::<Ipv4Addr>().unwrap(), network.dhcp_first);
            prop_assert_eq!(range[1].parse::<Ipv4Addr>().unwrap(), network.dhcp_last);
            prop_assert_eq!(range[2].parse::<Ipv4Addr>().unwrap(), network.subnet.netmask());
            prop_assert_eq!(range[3].parse::<u32>().unwrap(), network.lease_s);
            let upstream: Vec<IpAddr> = values("server").iter().map(|v| v[0].parse().unwrap()).collect();
            prop_assert_eq!(upstream, network.upstream_dns.clone());
            prop_assert_eq!(&values("interface")[0], &vec![network.lan.as_str()]);
            prop_assert_eq!(values("local")[0][0].trim_matches('/'), network.domain.as_str());
            prop_assert_eq!(values("host-record")[0].last().unwrap().parse::<Ipv4Addr>().unwrap(), network.gateway);
        }
    }
}
