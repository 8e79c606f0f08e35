//! Debian: systemd, and Cockpit as the management page.

use super::{Argv, Family, FamilyFile, FamilyName, Service, argv};

/// Debian and what descends from it.
#[derive(Debug, Clone, Copy)]
pub struct Debian;

const fn unit(service: Service) -> &'static str {
    match service {
        Service::Dnsmasq => "dnsmasq.service",
        Service::Caddy => "caddy.service",
        Service::Cockpit => "cockpit.socket",
        Service::Relay => "proximity-relay.service",
    }
}

const REPORTED: &[Service] = &[Service::Dnsmasq, Service::Caddy, Service::Cockpit];

impl Family for Debian {
    fn name(&self) -> FamilyName {
        FamilyName::Debian
    }

    fn packages(&self) -> &'static [&'static str] {
        &[
            "caddy",
            "cockpit-bridge",
            "cockpit-system",
            "cockpit-ws",
            "dbus",
            "dnsmasq-base",
            "libpam-systemd",
            "nftables",
            "openssl",
        ]
    }

    fn files(&self) -> &'static [FamilyFile] {
        const fn file(path: &'static str, content: &'static str) -> FamilyFile {
            FamilyFile {
                path,
                mode: "0644",
                content,
            }
        }
        const {
            &[
                file(
                    "/etc/systemd/system/proximity-relay.service",
                    include_str!("../../../../images/appliance/proximity-relay.service"),
                ),
                file(
                    "/etc/systemd/system/dnsmasq.service",
                    include_str!("../../../../images/appliance/dnsmasq.service"),
                ),
                file(
                    "/etc/systemd/system/caddy.service.d/proximity.conf",
                    include_str!("../../../../images/appliance/caddy.conf"),
                ),
                file(
                    "/etc/systemd/system/cockpit.socket.d/proximity.conf",
                    include_str!("../../../../images/appliance/cockpit-socket.conf"),
                ),
                // Root may log in, but has no password until `proximity appliance password` sets one.
                file("/etc/cockpit/disallowed-users", ""),
            ]
        }
    }

    fn starts(&self) -> &'static [&'static str] {
        &[
            "caddy.service",
            "cockpit.socket",
            "dnsmasq.service",
            "nftables.service",
            "proximity-relay.service",
        ]
    }

    fn reported(&self) -> &'static [Service] {
        REPORTED
    }

    fn restart(&self, services: &[Service]) -> Vec<Argv> {
        let units = services.iter().map(|s| unit(*s).to_owned());
        vec![
            argv(&["systemctl", "restart"])
                .into_iter()
                .chain(units)
                .collect(),
        ]
    }

    fn reread(&self, service: Service) -> Argv {
        argv(&["systemctl", "kill", "--signal=SIGHUP", unit(service)])
    }

    fn states(&self) -> Argv {
        let units = REPORTED.iter().map(|s| unit(*s).to_owned());
        argv(&["systemctl", "show", "--property=Id,ActiveState"])
            .into_iter()
            .chain(units)
            .collect()
    }

    /// Out of the blocks that `systemctl show` prints, one a unit.
    fn state<'a>(&self, printed: &'a str, service: Service) -> Option<&'a str> {
        printed.split("\n\n").find_map(|block| {
            let value = |key: &str| {
                block
                    .lines()
                    .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
            };
            (value("Id") == Some(unit(service))).then(|| value("ActiveState"))?
        })
    }

    fn log(&self) -> &'static str {
        "journalctl -b --no-pager -n 50"
    }

    fn dnsmasq_group(&self) -> &'static str {
        "nogroup"
    }

    /// What every guest has asks for an address already.
    fn outside(&self, by_dhcp: bool) -> Option<(&'static str, &'static str)> {
        (!by_dhcp).then_some((
            "/etc/systemd/network/10-eth0.network",
            "[Match]\nName=eth0\n\n[Link]\nUnmanaged=yes\n",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_states_are_matched_by_their_whole_name() {
        let text =
            "Id=caddy-api.service\nActiveState=failed\n\nId=caddy.service\nActiveState=active\n";
        assert_eq!(Debian.state(text, Service::Caddy), Some("active"));
        assert_eq!(Debian.state(text, Service::Dnsmasq), None);
        assert_eq!(Debian.state("", Service::Caddy), None);
    }
}
