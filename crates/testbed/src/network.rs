//! The networks of a virtual host: the management bridge of the node, and who is on it.
//!
//! ```text
//!   node (the host's own netns)            router and internet machine        LAN machine
//!   vmbr0 192.168.50.10/24 ─┬─ router0 ══ eth0 192.168.50.1/24  DHCP, DNS     eth0 192.168.50.20/24
//!   :8006 "node 8006"       │               lo 8.8.8.8 1.1.1.1  DNS, HTTP         HTTP
//!                           └─ lan0 ═══════════════════════════════════════════════╛
//! ```
//! Owns the links inside the host. There is none to the machine, the router has no way on and forwards
//! nothing: no packet leaves.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Stdio;

use crate::error::{During, Result, succeeded};
use crate::program;

/// The management bridge of the node.
pub const BRIDGE: &str = "vmbr0";
/// The node on its management LAN, a /24.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 10);
/// The router of the LAN: default route, DHCP and DNS server; all that there is of an internet lies behind it.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
/// A machine on the management LAN that guests must not reach.
pub const LAN_MACHINE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 20);
/// First address that the LAN's DHCP server gives out.
pub const LEASE_FIRST: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 100);
/// Last address that the LAN's DHCP server gives out.
pub const LEASE_LAST: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 199);
/// Addresses of the internet machine; each serves HTTP on port 80 and DNS on port 53.
pub const INTERNET: [Ipv4Addr; 2] = [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(1, 1, 1, 1)];
/// Names that the internet's DNS knows; it answers NXDOMAIN to all others.
pub const INTERNET_NAMES: [(&str, Ipv4Addr); 3] = [
    ("internet.test", Ipv4Addr::new(8, 8, 8, 8)),
    ("second.internet.test", Ipv4Addr::new(1, 1, 1, 1)),
    // Whoever owns a name may say what he likes: here, a machine that guests must not reach.
    ("private.internet.test", LAN_MACHINE),
];
/// The port of the node that guests must not reach (where Proxmox VE has its API).
pub const NODE_PORT: u16 = 8006;

/// Makes the bridge and ties the two machines, whose network namespaces their processes hold, to it.
pub(crate) fn wire(router: u32, lan: u32) -> Result<()> {
    ip(&format!(
        "link set lo up\n\
         link add {BRIDGE} address 52:54:00:32:00:0a type bridge\n\
         address add {NODE}/24 broadcast + dev {BRIDGE}\n\
         link add router0 type veth peer name eth0 address 52:54:00:32:00:01 netns {router}\n\
         link add lan0 type veth peer name eth0 address 52:54:00:32:00:14 netns {lan}\n\
         link set router0 master {BRIDGE} up\n\
         link set lan0 master {BRIDGE} up\n\
         link set {BRIDGE} up\n\
         route add default via {ROUTER} dev {BRIDGE}\n"
    ))
}

/// Sets the addresses of the router and internet machine; runs in its namespace.
pub(crate) fn configure_router() -> Result<()> {
    let mut batch =
        format!("link set lo up\naddress add {ROUTER}/24 broadcast + dev eth0\nlink set eth0 up\n");
    for address in INTERNET {
        batch += &format!("address add {address}/32 dev lo\n");
    }
    ip(&batch)
}

/// Sets the address of the LAN machine; runs in its namespace.
pub(crate) fn configure_lan() -> Result<()> {
    ip(&format!(
        "link set lo up\n\
         address add {LAN_MACHINE}/24 broadcast + dev eth0\n\
         link set eth0 up\n\
         route add default via {ROUTER} dev eth0\n"
    ))
}

/// Runs lines of ip(8), which stops at the first that fails.
fn ip(batch: &str) -> Result<()> {
    let mut child = program::clean("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .during("run", "ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes()).during("write to", "ip")?;
    }
    succeeded("ip", child.wait_with_output().during("wait for", "ip")?).map(drop)
}
