//! Alpine: apk, and OpenRC whose supervise-daemon keeps the services alive. There is no management page.

use super::{Argv, Family, FamilyFile, FamilyName, Service, argv};

/// Alpine Linux and what descends from it.
#[derive(Debug, Clone, Copy)]
pub struct Alpine;

/// Names of our own, so that no upgrade of a package has a word in them.
const fn script(service: Service) -> &'static str {
    match service {
        Service::Dnsmasq => "proximity-dnsmasq",
        Service::Caddy => "proximity-caddy",
        // Not in the image, so never restarted: it is not reported.
        Service::Cockpit => "cockpit",
        Service::Relay => "proximity-relay",
    }
}

const INTERFACES: &str = "/etc/network/interfaces";

impl Family for Alpine {
    fn name(&self) -> FamilyName {
        FamilyName::Alpine
    }

    fn packages(&self) -> &'static [&'static str] {
        &["caddy", "dnsmasq", "iproute2", "nftables", "openssl"]
    }

    fn files(&self) -> &'static [FamilyFile] {
        const fn file(path: &'static str, content: &'static str) -> FamilyFile {
            FamilyFile {
                path,
                mode: "0755",
                content,
            }
        }
        const {
            &[
                file(
                    "/etc/init.d/proximity-relay",
                    include_str!("../../../../images/appliance/proximity-relay.openrc"),
                ),
                file(
                    "/etc/init.d/proximity-dnsmasq",
                    include_str!("../../../../images/appliance/proximity-dnsmasq.openrc"),
                ),
                file(
                    "/etc/init.d/proximity-caddy",
                    include_str!("../../../../images/appliance/proximity-caddy.openrc"),
                ),
                file(
                    "/etc/init.d/proximity-firewall",
                    include_str!("../../../../images/appliance/proximity-firewall.openrc"),
                ),
            ]
        }
    }

    fn starts(&self) -> &'static [&'static str] {
        &[
            "networking",
            "proximity-caddy",
            "proximity-dnsmasq",
            "proximity-firewall",
            "proximity-relay",
        ]
    }

    fn reported(&self) -> &'static [Service] {
        &[Service::Dnsmasq, Service::Caddy]
    }

    fn restart(&self, services: &[Service]) -> Vec<Argv> {
        let restart = |s: &Service| argv(&["rc-service", script(*s), "restart"]);
        services.iter().map(restart).collect()
    }

    fn reread(&self, service: Service) -> Argv {
        argv(&["rc-service", script(service), "reload"])
    }

    fn states(&self) -> Argv {
        argv(&["rc-status", "--nocolor", "--format", "ini", "--all"])
    }

    /// Lines like `NAME =  started 00:01:02 (0)`, also of services that are of no interest here.
    fn state<'a>(&self, printed: &'a str, service: Service) -> Option<&'a str> {
        let mut lines = printed.lines().filter_map(|line| line.split_once('='));
        let (_, state) = lines.find(|(name, _)| name.trim() == script(service))?;
        Some(match state.split_whitespace().next()? {
            "started" => "active",
            "stopped" | "inactive" => "inactive",
            "crashed" | "unsupervised" => "failed",
            "starting" => "activating",
            "stopping" => "deactivating",
            other => other,
        })
    }

    fn log(&self) -> &'static str {
        "tail -n 50 /var/log/proximity-relay.log /var/log/proximity-dnsmasq.log /var/log/proximity-caddy.log"
    }

    fn dnsmasq_group(&self) -> &'static str {
        "dnsmasq"
    }

    fn outside(&self, by_dhcp: bool) -> Option<(&'static str, &'static str)> {
        Some(match by_dhcp {
            false => (INTERFACES, "auto eth0\niface eth0 inet manual\n"),
            true => (INTERFACES, "auto eth0\niface eth0 inet dhcp\n"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_as_rc_status_prints_them() {
        let text = "[default]\nproximity-dnsmasq =  started 00:00:03 (0) \nproximity-caddy =  crashed \nproximity-relay =  stopped \n";
        let states = [
            Service::Dnsmasq,
            Service::Caddy,
            Service::Relay,
            Service::Cockpit,
        ]
        .map(|s| Alpine.state(text, s));
        assert_eq!(
            states,
            [Some("active"), Some("failed"), Some("inactive"), None]
        );
    }
}
