//! What changes in the firewall while the zone lives, as elements of its sets: published ports, egress policies
//! and the addresses that were answered to guests. The rules themselves stay (see [`super::nftables`]), so that
//! neither counters nor limits nor connections notice.

use std::net::Ipv4Addr;
use std::time::Duration;

use api::egress::Destination;
use ipnet::Ipv4Net;
use wire::gateway::GatewayState;

use super::nftables::{TABLE, fnv1a};

/// The elements of all sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Address and port of each published port.
    published: Vec<(Ipv4Addr, u16)>,
    /// Guests with a policy, each with the mark of what the policy says.
    policies: Vec<(Ipv4Addr, u32)>,
    /// Networks that such a guest may reach.
    networks: Vec<(Ipv4Addr, Ipv4Net)>,
}

impl Contents {
    /// What a state asks for.
    pub fn of(state: &GatewayState) -> Self {
        let address_of = |published: &wire::gateway::ZonePort| {
            let mut hosts = state.hosts.iter();
            let host = hosts.find(|h| h.instance == published.instance)?;
            Some((host.address, published.port))
        };
        let mut published: Vec<_> = state.published.iter().filter_map(address_of).collect();
        published.sort_unstable();
        let rules = state.egress.iter();
        let policies = rules.map(|r| (r.source, mark(&r.destinations))).collect();
        let networks = state.egress.iter().flat_map(|rule| {
            let each = rule.destinations.iter().filter_map(|d| match d {
                Destination::Network(network) => Some(*network),
                Destination::Name(_) | Destination::Below(_) => None,
            });
            // The kernel refuses intervals that overlap.
            let joined = Ipv4Net::aggregate(&each.collect());
            joined.into_iter().map(|network| (rule.source, network))
        });
        Self {
            published,
            policies,
            networks: networks.collect(),
        }
    }

    /// By which these contents are told from others.
    pub fn digest(&self) -> String {
        format!("contents {:016x}", fnv1a(format!("{self:?}").as_bytes()))
    }

    /// Statements for `nft -f` that replace the elements of all sets; `open` are the answers that still hold.
    /// Everything in them is a number of ours or an address.
    pub fn statements(&self, open: &[(Ipv4Addr, Ipv4Addr, Duration)]) -> String {
        let join = |all: Vec<String>| all.join(", ");
        let sets = [
            (
                "set",
                "contents",
                format!("0x1 comment \"{}\"", self.digest()),
            ),
            (
                "set",
                "published",
                join(
                    self.published
                        .iter()
                        .map(|(a, p)| format!("{a} . {p}"))
                        .collect(),
                ),
            ),
            (
                "set",
                "restricted",
                join(self.policies.iter().map(|(a, _)| a.to_string()).collect()),
            ),
            (
                "map",
                "policies",
                join(
                    self.policies
                        .iter()
                        .map(|(a, m)| format!("{a} : 0x{m:08x}"))
                        .collect(),
                ),
            ),
            (
                "set",
                "judged",
                join(
                    self.policies
                        .iter()
                        .map(|(a, m)| format!("{a} . 0x{m:08x}"))
                        .collect(),
                ),
            ),
            (
                "set",
                "networks",
                join(
                    self.networks
                        .iter()
                        .map(|(a, n)| format!("{a} . {n}"))
                        .collect(),
                ),
            ),
            (
                "set",
                "answers",
                join(open.iter().map(|o| answer(*o)).collect()),
            ),
        ];
        let mut text = String::new();
        for (kind, name, elements) in sets {
            text.push_str(&format!("flush {kind} inet {TABLE} {name}\n"));
            if !elements.is_empty() {
                text.push_str(&format!(
                    "add element inet {TABLE} {name} {{ {elements} }}\n"
                ));
            }
        }
        text
    }
}

/// Statements that open addresses to a guest, for at least as long as given: an element keeps the time with which
/// it was added, so it is taken out and put in again, in one transaction.
pub fn opening(source: Ipv4Addr, addresses: &[(Ipv4Addr, Duration)]) -> String {
    let mut text = String::new();
    for (address, time) in addresses {
        let element = answer((source, *address, *time));
        for (verb, element) in [
            ("add", &element),
            ("delete", &format!("{source} . {address}")),
            ("add", &element),
        ] {
            text.push_str(&format!(
                "{verb} element inet {TABLE} answers {{ {element} }}\n"
            ));
        }
    }
    text
}

fn answer((source, address, time): (Ipv4Addr, Ipv4Addr, Duration)) -> String {
    format!("{source} . {address} timeout {}s", time.as_secs().max(1))
}

/// The mark that a connection carries which this policy allowed. Never 0, the mark of all others.
fn mark(destinations: &[Destination]) -> u32 {
    let [a, b, c, d, ..] = fnv1a(format!("{destinations:?}").as_bytes()).to_be_bytes();
    u32::from_be_bytes([a, b, c, d]).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;
    use wire::gateway::{EgressRule, ZonePort};

    fn state() -> GatewayState {
        let mut state = fake::state();
        state.published = vec![ZonePort {
            instance: state.hosts[0].instance.clone(),
            port: 80,
        }];
        let destinations = ["8.8.8.8", "8.0.0.0/8", "1.1.1.0/24", "example.com"];
        state.egress = vec![
            EgressRule {
                source: [10, 20, 0, 5].into(),
                destinations: vec![],
            },
            EgressRule {
                source: [10, 20, 0, 101].into(),
                destinations: destinations.iter().map(|d| d.parse().unwrap()).collect(),
            },
        ];
        state
    }

    #[test]
    fn the_elements_of_a_state() {
        let open = [(
            [10, 20, 0, 101].into(),
            [9, 9, 9, 9].into(),
            Duration::from_secs(61),
        )];
        insta::assert_snapshot!(Contents::of(&state()).statements(&open));
    }

    #[test]
    fn another_policy_is_another_mark_and_answers_change_no_digest() {
        let one = Contents::of(&state());
        let mut changed = state();
        changed.egress[0].destinations = vec!["example.com".parse().unwrap()];
        let other = Contents::of(&changed);
        assert_ne!(one.policies[0].1, other.policies[0].1);
        assert_eq!(one.policies[1], other.policies[1]);
        assert_ne!(one.digest(), other.digest());
        assert_eq!(one.digest(), Contents::of(&state()).digest());
    }

    #[test]
    fn an_address_is_opened_again() {
        let text = opening(
            [10, 20, 0, 5].into(),
            &[([9, 9, 9, 9].into(), Duration::from_secs(90))],
        );
        insta::assert_snapshot!(text, @r"
        add element inet proximity answers { 10.20.0.5 . 9.9.9.9 timeout 90s }
        delete element inet proximity answers { 10.20.0.5 . 9.9.9.9 }
        add element inet proximity answers { 10.20.0.5 . 9.9.9.9 timeout 90s }
        ");
    }
}
