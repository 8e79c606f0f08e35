//! The one writer of a zone's nftables table on the node, replaced in one transaction.
//!
//! Guests reach nothing of the node: not over the zone's bridge, and not through the appliance over
//! the managed WAN. The appliance itself reaches the outside by NAT. What passes on the bridge itself is
//! [`super::guest_ports`]' business.

use engine::ports::{NodeNetworkSpec, PortError};
use engine::zone::Wan;

/// Changes when the rules change, so that older ones are replaced.
const VERSION: &str = "6";

/// The zone's table. Zone names are DNS labels; nft identifiers have no hyphens.
pub(super) fn table(spec: &NodeNetworkSpec) -> String {
    format!("proximity_{}", spec.zone.as_str().replace('-', "_"))
}

/// What the version rule's comment says.
pub(super) fn version(spec: &NodeNetworkSpec) -> String {
    format!("proximity {} rules {VERSION}", spec.zone)
}

/// The whole table. Every value is a newtype that can't hold a quote or a newline.
pub(super) fn render(spec: &NodeNetworkSpec) -> Result<String, PortError> {
    let table = table(spec);
    let lan = &spec.bridge;
    let mut rules = Rules::default();
    rules.chain("input", "filter", "input", "filter - 5");
    rules.rule(&format!(
        "iifname \"{lan}\" counter drop comment \"{}\"",
        version(spec)
    ));
    if let Wan::Managed { bridge, .. } = &spec.wan {
        rules.rule(&format!(
            "iifname \"{bridge}\" ct state established,related accept"
        ));
        rules.rule(&format!(
            "iifname \"{bridge}\" icmp type echo-request limit rate 10/second accept"
        ));
        rules.rule(&format!("iifname \"{bridge}\" counter drop"));
    }
    rules.end();
    rules.chain("forward", "filter", "forward", "filter - 5");
    // The node is no router for the zone. Frames that only cross the bridge pass here too when
    // bridge-nf-call-iptables is on; they leave by it.
    rules.rule(&format!(
        "iifname \"{lan}\" oifname != \"{lan}\" counter drop"
    ));
    if let Wan::Managed { bridge, subnet } = &spec.wan {
        rules.rule(&format!(
            "iifname \"{bridge}\" ip saddr != {subnet} counter drop"
        ));
        rules.end();
        rules.chain("postrouting", "nat", "postrouting", "srcnat");
        // Frames that cross the zone's bridge pass here too when bridge-nf-call-iptables is on: those of the
        // node itself to a published port among them, on their way from the appliance to the guest.
        rules.rule(&format!(
            "ip saddr {subnet} oifname != {{ \"{lan}\", \"{bridge}\" }} masquerade"
        ));
    }
    rules.end();
    let text = format!(
        "{}table inet {table} {{\n{}}}\n",
        removed(&table),
        rules.text
    );
    if text
        .chars()
        .any(|c| c.is_control() && c != '\n' && c != '\t')
    {
        return Err(PortError::new(
            "write the node's rules",
            "a value has a control character",
        ));
    }
    Ok(text)
}

fn removed(table: &str) -> String {
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// Removes the table, whether it is there or not.
pub(super) fn render_removal(spec: &NodeNetworkSpec) -> String {
    removed(&table(spec))
}

#[derive(Default)]
struct Rules {
    text: String,
}

impl Rules {
    fn chain(&mut self, name: &str, kind: &str, hook: &str, priority: &str) {
        self.text.push_str(&format!(
            "\tchain {name} {{\n\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n"
        ));
    }

    fn rule(&mut self, rule: &str) {
        self.text.push_str(&format!("\t\t{rule}\n"));
    }

    fn end(&mut self) {
        self.text.push_str("\t}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managed_and_bridged() {
        let config = engine::Config::built_in().unwrap();
        let mut spec = config.zones.values().next().unwrap().node_network();
        insta::assert_snapshot!("managed", render(&spec).unwrap());
        spec.wan = Wan::Bridged {
            bridge: "vmbr0".parse().unwrap(),
        };
        insta::assert_snapshot!("bridged", render(&spec).unwrap());
    }
}
