//! The firewall: the one writer of its rules, and the loading of them.
//!
//! All rules live in `table inet proximity`, which is replaced as a whole in one transaction, so
//! there is never a moment without it or with half of it. Rules of others are left alone. The table
//! carries a digest of its own text as a comment; that is how a flushed or older one is noticed. What
//! changes while the zone lives is in sets ([`super::contents`]), which carry a digest of their own.

use std::net::Ipv4Addr;
use std::time::Duration;

use api::egress::SPECIAL_PURPOSE;
use wire::agent::RELAY_PORT;
use wire::gateway::ZoneNetwork;
use wire::gateway::edge::Edge;

use super::contents::Contents;
use super::published::{self, Openings};
use super::system::{Command, CommandError, System};
use super::validate::AGENT_PORTS;
use super::word::{UnsafeWord, word};

/// Our table.
pub const TABLE: &str = "proximity";

/// Where the relay answers DNS questions of guests with an egress policy; the firewall leads those for port 53 there.
pub const NAMES_PORT: u16 = 5300;

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
    let special = SPECIAL_PURPOSE
        .map(|network| network.to_string())
        .join(", ");
    let (first_agent, last_agent) = (AGENT_PORTS.start(), AGENT_PORTS.end());
    let sets = sets(&special);
    let egress = egress_chains();
    format!(
        r#"{sets}
	# Who sends: guests with addresses of the zone only, and nobody else with those.
	chain anti_spoof {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{lan}" meta nfproto ipv6 drop
		iifname "{lan}" ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		iifname "{lan}" ip saddr {gateway} drop
		iifname "{lan}" ip saddr != {subnet} drop
		iifname "{wan}" ip saddr {subnet} drop
	}}

	# Guests with an egress policy ask the relay for names, which asks dnsmasq.
	chain dns {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname "{lan}" ip saddr @restricted ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 redirect to :{NAMES_PORT}
	}}

	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		iifname "{lan}" jump of_guests
		ct state established,related accept
		ct state invalid drop
		iifname "{lan}" ip daddr {gateway} udp dport {{ 53, 67 }} accept
		iifname "{lan}" ip daddr 255.255.255.255 udp dport 67 accept
		iifname "{lan}" ip daddr {gateway} ct status dnat udp dport {NAMES_PORT} accept
		iifname "{lan}" ip daddr {gateway} tcp dport 53 jump dns_by_tcp
		iifname "{lan}" ip daddr {gateway} ct status dnat tcp dport {NAMES_PORT} jump dns_by_tcp
		# The proxy leads to other guests: it is for apps, and sandboxes have other addresses.
		iifname "{lan}" ip saddr {apps} ip daddr {gateway} tcp dport {{ 80, 443 }} jump limited
		iifname "{lan}" ip daddr {gateway} icmp type echo-request limit rate 1000/second accept
		# Cockpit (9090) and the relay ({RELAY_PORT}) are for the outside, never for guests.
		iifname "{wan}" tcp dport {{ 80, 443, 9090, {RELAY_PORT} }} accept
{input}		iifname "{wan}" udp sport 67 udp dport 68 accept
		iifname "{wan}" icmp type echo-request accept
	}}

	# Before connections that stand: a flood may come in one of them, and a new policy holds for all.
	chain of_guests {{
		udp dport {{ 53, {NAMES_PORT} }} update @questions {{ ip saddr limit rate over {DNS_RATE}/second burst {DNS_BURST} packets }} counter drop
		ip saddr @restricted meta l4proto {{ tcp, udp }} th dport 53 counter drop
	}}

	chain dns_by_tcp {{
		ct state new add @dns_connections {{ ip saddr ct count over {DNS_CONNECTIONS} }} counter drop
		jump limited
	}}

	# What one guest may begin and hold at a time.
	chain limited {{
		ct state new update @beginnings {{ ip saddr limit rate over {CONNECTION_RATE}/second burst {CONNECTION_BURST} packets }} counter drop
		ct state new add @connections {{ ip saddr ct count over {CONNECTIONS} }} counter drop
		accept
	}}

	chain forward {{
		type filter hook forward priority filter; policy drop;
		meta nfproto ipv6 drop
		# Answers of a published port are no connections of the guest's.
		iifname "{lan}" oifname "{wan}" ct direction reply ct status dnat accept
		iifname "{lan}" oifname "{wan}" jump egress
		ct state established,related accept
		ct state invalid drop
		# Guest to guest: never an agent; apps reach what apps publish.
		iifname "{lan}" oifname "{lan}" tcp dport {first_agent}-{last_agent} drop
		iifname "{lan}" oifname "{lan}" ip saddr {apps} ip daddr . tcp dport @published jump limited
		iifname "{lan}" oifname "{lan}" drop
		iifname "{lan}" oifname "{wan}" ip daddr @special_purpose drop
		# Published ports.
		iifname "{wan}" oifname "{lan}" ct status dnat accept
{forward}		iifname "{lan}" oifname "{wan}" ip saddr {subnet} jump limited
	}}

	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname "{wan}" ip daddr != {subnet} dnat ip to tcp dport map @published_tcp
		iifname "{wan}" ip daddr != {subnet} dnat ip to udp dport map @published_udp
	}}
{egress}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {subnet} oifname "{wan}" masquerade
	}}
"#
    )
}

/// DNS questions of one guest by UDP, a second and at once.
const DNS_RATE: u32 = 100;
const DNS_BURST: u32 = 300;
/// DNS connections of one guest by TCP at a time.
const DNS_CONNECTIONS: u32 = 4;
/// Connections that one guest may begin, a second and at once, and those that it may hold.
const CONNECTION_RATE: u32 = 200;
const CONNECTION_BURST: u32 = 1000;
const CONNECTIONS: u32 = 4096;

/// The sets that rules ask. What has a size is filled by packets and full at some time; guests are at most as many as
/// a zone has addresses.
fn sets(special: &str) -> String {
    format!(
        r#"
	set contents {{
		type mark
	}}
	set special_purpose {{
		type ipv4_addr
		flags interval
		elements = {{ {special} }}
	}}
	set published {{
		type ipv4_addr . inet_service
	}}
	set restricted {{
		type ipv4_addr
	}}
	map policies {{
		type ipv4_addr : mark
	}}
	set judged {{
		type ipv4_addr . mark
	}}
	set networks {{
		type ipv4_addr . ipv4_addr
		flags interval
	}}
	set answers {{
		type ipv4_addr . ipv4_addr
		size 8192
		flags timeout
	}}
	set refused {{
		type ipv4_addr . ipv4_addr . inet_proto . inet_service
		size 2048
		flags dynamic,timeout
		timeout 1h
	}}
	set refused_other {{
		type ipv4_addr . ipv4_addr . inet_proto
		size 1024
		flags dynamic,timeout
		timeout 1h
	}}
	set questions {{
		type ipv4_addr
		size 1024
		flags dynamic,timeout
		timeout 1m
	}}
	set beginnings {{
		type ipv4_addr
		size 1024
		flags dynamic,timeout
		timeout 1m
	}}
	set connections {{
		type ipv4_addr
		size 1024
		flags dynamic
	}}
	set dns_connections {{
		type ipv4_addr
		size 1024
		flags dynamic
	}}
"#
    )
}

/// A policy is asked for every packet, so that a new one holds for connections that stand: those that the present
/// one has allowed carry its mark.
fn egress_chains() -> &'static str {
    r#"
	chain egress {
		ip saddr != @restricted return
		ip daddr @special_purpose goto refuse
		ip saddr . ct mark @judged return
		ip saddr . ip daddr @networks ct mark set ip saddr map @policies return
		ip saddr . ip daddr @answers ct mark set ip saddr map @policies return
		goto refuse
	}

	chain refuse {
		meta l4proto { tcp, udp } update @refused { ip saddr . ip daddr . meta l4proto . th dport counter }
		meta l4proto != { tcp, udp } update @refused_other { ip saddr . ip daddr . meta l4proto counter }
		limit rate 1000/second reject with icmp type admin-prohibited
		drop
	}
"#
}

/// A digest to tell one ruleset from another; it guards against drift, not against an attacker,
/// who as root of the appliance could write what he likes.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
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

/// Makes rules and contents hold in the kernel; says what had to be done. `open` are the answers that still hold.
pub async fn load(
    system: &impl System,
    ruleset: &Ruleset,
    contents: &Contents,
    open: &[(Ipv4Addr, Ipv4Addr, Duration)],
) -> Result<Option<&'static str>, CommandError> {
    let now = loaded(system).await?.unwrap_or_default();
    let statements = contents.statements(open);
    let (text, done) = if !now.contains(&ruleset.digest) {
        (ruleset.text.clone() + &statements, "loaded")
    } else if !now.contains(&contents.digest()) {
        (statements, "updated")
    } else {
        return Ok(None);
    };
    run(system, &text).await.map(|()| Some(done))
}

/// Carries out statements in one transaction.
pub async fn run(system: &impl System, statements: &str) -> Result<(), CommandError> {
    let load = Command::new(&["nft", "-f", "-"], Duration::from_secs(10)).stdin(statements);
    system.run(load).await.map(drop)
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
            prop_assert_eq!(names, ["anti_spoof", "dns", "input", "of_guests", "dns_by_tcp", "limited", "forward", "prerouting", "egress", "refuse", "postrouting"]);
            let rules = |i: usize| chains[i].1.join("\n");
            prop_assert!(rules(2).contains("policy drop"));
            prop_assert!(rules(6).contains("policy drop"));
            let last = chains[6].1.last().unwrap();
            let words: Vec<_> = last.split(' ').collect();
            prop_assert_eq!(words[1].trim_matches('"'), network.lan.as_str());
            prop_assert_eq!(words[3].trim_matches('"'), network.wan.as_str());
            prop_assert_eq!(words[6].parse::<ipnet::Ipv4Net>().unwrap(), network.subnet);
            prop_assert_eq!(&words[7..], ["jump", "limited"]);
            // Every line of every chain begins like a rule: nothing a value brought with it.
            for rule in chains.iter().flat_map(|(_, rules)| rules) {
                let first = rule.split(' ').next().unwrap();
                prop_assert!(["type", "iifname", "ct", "meta", "ip", "udp", "jump", "accept", "drop", "goto", "limit", "#"].contains(&first), "{}", rule);
            }
        }
    }
}
