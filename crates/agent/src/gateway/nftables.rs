//! The firewall: the one writer of nftables text, and the loading of it.
//!
//! All rules live in `table inet proximity`, which is replaced as a whole in one transaction, so
//! there is never a moment without it or with half of it. Rules of others are left alone. The table
//! carries a digest of its own text as a comment; that is how a flushed or older one is noticed.

use std::net::Ipv4Addr;
use std::time::Duration;

use wire::agent::RELAY_PORT;
use wire::gateway::ZoneNetwork;
use wire::gateway::edge::Edge;

use super::published::{self, Openings};
use super::system::{Command, CommandError, System};
use super::validate::AGENT_PORTS;
use super::word::{UnsafeWord, word};

/// Our table.
pub const TABLE: &str = "proximity";

/// Destinations that are no public hosts (IANA special-purpose registry): other people's private
/// networks around the appliance, which guests must not reach through it.
const SPECIAL_PURPOSE: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// A ruleset for `nft -f` and the digest that it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// The text, replacing our table by itself.
    pub text: String,
    /// The comment of the table once it is loaded.
    pub digest: String,
}

/// The firewall of a zone's appliance.
pub fn render(network: &ZoneNetwork, edge: &Edge) -> Result<Ruleset, UnsafeWord> {
    let maps = published::maps(&edge.ports);
    let openings = published::openings(network, &edge.outside)?;
    let chains = maps
        + &chains(
            &word(&network.wan)?,
            &word(&network.lan)?,
            &word(network.subnet)?,
            network.gateway,
            &format!("{}-{}", network.dhcp_first, network.dhcp_last),
            &openings,
        );
    let digest = format!("digest {:016x}", fnv1a(chains.as_bytes()));
    let text = format!(
        "#!/usr/sbin/nft -f\n\
         # Written by proximity-agent from the zone's desired state; changes here are lost.\n\
         # The first line makes the second one possible on a fresh kernel.\n\
         table inet {TABLE} {{ }}\n\
         delete table inet {TABLE}\n\
         table inet {TABLE} {{\n\
         \tcomment \"{digest}\"\n\
         {chains}}}\n"
    );
    Ok(Ruleset { text, digest })
}

fn chains(
    wan: &str,
    lan: &str,
    subnet: &str,
    gateway: Ipv4Addr,
    apps: &str,
    openings: &Openings,
) -> String {
    let Openings { input, forward } = openings;
    let special = SPECIAL_PURPOSE.join(", ");
    let (first_agent, last_agent) = (AGENT_PORTS.start(), AGENT_PORTS.end());
    format!(
        r#"
	set special_purpose {{
		type ipv4_addr
		flags interval
		elements = {{ {special} }}
	}}

	# Who sends: guests with addresses of the zone only, and nobody else with those.
	chain anti_spoof {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{lan}" meta nfproto ipv6 drop
		iifname "{lan}" ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		iifname "{lan}" ip saddr {gateway} drop
		iifname "{lan}" ip saddr != {subnet} drop
		iifname "{wan}" ip saddr {subnet} drop
	}}

	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		ct state established,related accept
		ct state invalid drop
		iifname "{lan}" ip daddr {gateway} udp dport {{ 53, 67 }} accept
		iifname "{lan}" ip daddr 255.255.255.255 udp dport 67 accept
		iifname "{lan}" ip daddr {gateway} tcp dport 53 accept
		# The proxy leads to other guests: it is for apps, and sandboxes have other addresses.
		iifname "{lan}" ip saddr {apps} ip daddr {gateway} tcp dport {{ 80, 443 }} accept
		iifname "{lan}" ip daddr {gateway} icmp type echo-request accept
		# Cockpit (9090) and the relay ({RELAY_PORT}) are for the outside, never for guests.
		iifname "{wan}" tcp dport {{ 80, 443, 9090, {RELAY_PORT} }} accept
{input}		iifname "{wan}" udp sport 67 udp dport 68 accept
		iifname "{wan}" icmp type echo-request accept
	}}

	chain forward {{
		type filter hook forward priority filter; policy drop;
		meta nfproto ipv6 drop
		ct state established,related accept
		ct state invalid drop
		# Guest to guest: never an agent; published ports come with issue 4, until then nothing.
		iifname "{lan}" oifname "{lan}" tcp dport {first_agent}-{last_agent} drop
		iifname "{lan}" oifname "{lan}" drop
		iifname "{lan}" oifname "{wan}" ip daddr @special_purpose drop
		# Published ports.
		iifname "{wan}" oifname "{lan}" ct status dnat accept
{forward}		iifname "{lan}" oifname "{wan}" ip saddr {subnet} accept
	}}

	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname "{wan}" ip daddr != {subnet} dnat ip to tcp dport map @published_tcp
		iifname "{wan}" ip daddr != {subnet} dnat ip to udp dport map @published_udp
	}}

	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {subnet} oifname "{wan}" masquerade
	}}
"#
    )
}

/// A digest to tell one ruleset from another; it guards against drift, not against an attacker,
/// who as root of the appliance could write what he likes.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Our table as the kernel has it now, or `None` when there is none.
pub async fn loaded(system: &impl System) -> Result<Option<String>, CommandError> {
    let list = Command::new(
        &["nft", "list", "table", "inet", TABLE],
        Duration::from_secs(5),
    );
    match system.run(list).await {
        Ok(table) => Ok(Some(table)),
        Err(CommandError::Failed { stderr, .. }) if stderr.contains("No such file") => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes the ruleset hold in the kernel; says whether it had to be loaded.
pub async fn load(system: &impl System, ruleset: &Ruleset) -> Result<bool, CommandError> {
    let now = loaded(system).await?;
    if now.is_some_and(|table| table.contains(&ruleset.digest)) {
        return Ok(false);
    }
    let load = Command::new(&["nft", "-f", "-"], Duration::from_secs(10)).stdin(&ruleset.text);
    system.run(load).await.map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;
    use proptest::prelude::*;

    #[test]
    fn the_ruleset_of_the_default_zone() {
        insta::assert_snapshot!(
            render(&fake::state().network, &Edge::default())
                .unwrap()
                .text
        );
    }

    #[test]
    fn the_digest_follows_the_rules() {
        let one = render(&fake::state().network, &Edge::default()).unwrap();
        let mut network = fake::state().network;
        network.gateway = [10, 20, 0, 2].into();
        assert_ne!(
            one.digest,
            render(&network, &Edge::default()).unwrap().digest
        );
        network = fake::state().network;
        network.lease_s = 7200;
        assert_eq!(one, render(&network, &Edge::default()).unwrap());
    }

    /// Chains and their rules as a reader of braces sees them.
    fn parse(text: &str) -> Vec<(String, Vec<String>)> {
        let mut chains = Vec::new();
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if let Some(name) = line.strip_prefix("chain ") {
                let rules = lines.by_ref().take_while(|l| *l != "}").map(str::to_owned);
                chains.push((name.trim_end_matches(" {").to_owned(), rules.collect()));
            }
        }
        chains
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(network in fake::any_network()) {
            let text = render(&network, &Edge::default()).unwrap().text;
            prop_assert_eq!(text.matches('{').count(), text.matches('}').count());
            let chains = parse(&text);
            let names: Vec<_> = chains.iter().map(|(n, _)| n.as_str()).collect();
            prop_assert_eq!(names, ["anti_spoof", "input", "forward", "prerouting", "postrouting"]);
            let rules = |i: usize| chains[i].1.join("\n");
            prop_assert!(rules(1).contains("policy drop"));
            prop_assert!(rules(2).contains("policy drop"));
            let last = chains[2].1.last().unwrap();
            let words: Vec<_> = last.split(' ').collect();
            prop_assert_eq!(words[1].trim_matches('"'), network.lan.as_str());
            prop_assert_eq!(words[3].trim_matches('"'), network.wan.as_str());
            prop_assert_eq!(words[6].parse::<ipnet::Ipv4Net>().unwrap(), network.subnet);
            prop_assert_eq!(words[7], "accept");
            // Every line of every chain begins like a rule: nothing a value brought with it.
            for rule in chains.iter().flat_map(|(_, rules)| rules) {
                let first = rule.split(' ').next().unwrap();
                prop_assert!(["type", "iifname", "ct", "meta", "ip", "#"].contains(&first), "{}", rule);
            }
        }
    }
}
