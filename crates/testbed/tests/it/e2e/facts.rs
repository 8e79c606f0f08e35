//! What is there, line by line, so that "nothing was changed" and "nothing is left" can be said of it.
//! Reads; changes nothing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::controller::Controller;

/// A node's links, addresses, rules, kernel settings, mounts, cgroups and data. What a running guest
/// writes below its own directory and cgroup is its own business.
const NODE: &str = r#"
section() { sed "s|^|$1: |"; }
ip -o link | sed "s| state [A-Z]* | |" | section link
ip -o address | sed 's/ tentative//' | section address
ip route | section route
nft --stateless list ruleset | section nft
grep -rs '' /proc/sys/net --exclude=nf_conntrack_count | section sysctl
cut -d' ' -f5- /proc/self/mountinfo | section mount
find /sys/fs/cgroup -maxdepth 2 -type d ! -name lxc.pivot | section cgroup
find /var/lib/proximity /etc/proximity /var/lib/lxc /var/lib/misc -maxdepth 3 -printf '%y %m %u:%g %p\n' | section file
"#;

/// The appliance's files, leases, sockets of routes and rules.
const APPLIANCE: &str = r#"
section() { sed "s|^|appliance $1: |"; }
# Whether the last change of the state has a file of its own is the relay's business.
find /var/lib/proximity /run/proximity /etc/proximity ! -name gateway.changes -printf '%y %p\n' | section file
cat /var/lib/proximity/dnsmasq.leases | section lease
cat /etc/proximity/* /etc/nftables.conf 2>/dev/null | section text
# Who has asked or connected in the last minute stands in the sets of limits.
nft --stateless list ruleset | grep -vE '^\s+(elements = \{ )?[0-9.]+ (limit rate|ct count) over' | section nft
"#;

/// Lists of the API.
const LISTS: [&str; 5] = [
    "/apps",
    "/operations",
    "/appliance/dhcp/leases",
    "/appliance/dns/records",
    "/appliance/vhosts",
];

/// Lines that were true at one moment.
pub struct Facts(BTreeSet<String>);

impl Facts {
    /// The node alone.
    pub fn of_node(controller: &Controller) -> Self {
        Self(lines(&controller.script(NODE)))
    }

    /// The node, its appliance, and the controller's own view; the zone is up.
    pub fn of_zone(controller: &Controller) -> Self {
        let mut facts = Self::of_node(controller).0;
        facts.extend(lines(
            &controller.exec("prox-appliance", ["sh", "-c", APPLIANCE]),
        ));
        for list in LISTS {
            let (status, document) = controller.api("GET", list, None);
            assert_eq!(status, 200, "{list}: {document}");
            let entries = document.as_array().unwrap();
            let fact = |mut entry: Value| {
                // How many connections a route carries is no state of anybody's.
                entry.as_object_mut().unwrap().remove("connections");
                format!("{list}: {entry}")
            };
            facts.extend(entries.iter().cloned().map(fact));
        }
        Self(facts)
    }

    /// As they are but without those that begin with `start`.
    pub fn without(mut self, start: &str) -> Self {
        self.0.retain(|fact| !fact.starts_with(start));
        self
    }

    /// Nothing came and nothing went, or the test fails and tells what.
    pub fn assert_same(&self, later: &Self, what: &str) {
        let gone: Vec<_> = self.0.difference(&later.0).collect();
        let new: Vec<_> = later.0.difference(&self.0).collect();
        assert!(
            gone.is_empty() && new.is_empty(),
            "{what}: gone: {gone:#?}, new: {new:#?}"
        );
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}
