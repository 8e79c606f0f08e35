//! Reads dnsmasq's lease file, and writes it once: before dnsmasq runs for the first time on an appliance that
//! takes another one's place. Client names in it are a guest's own words: shown, never used.

use std::net::Ipv4Addr;

use api::MacAddr;
use wire::gateway::{GatewayState, Lease};

use super::dhcp_release::HeldLease;
use super::paths::Paths;
use crate::durable::{self, FileError, Keep};

/// A name longer than a DNS label is nobody's name.
const CLIENT_NAME_MAX: usize = 63;

/// One line of the lease file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseLine {
    /// What is reported.
    pub lease: Lease,
    /// What it takes to give the lease back.
    pub held: HeldLease,
}

/// All leases now; none when dnsmasq has not written any.
pub fn read(paths: &Paths) -> Result<Vec<LeaseLine>, FileError> {
    let text = durable::read_if_there(&paths.leases())?.unwrap_or_default();
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Gives an appliance that never had leases those that the controller remembers, so that guests keep what they were
/// given by its predecessor. Only leases of reserved hosts; a file that is there belongs to dnsmasq. Says whether
/// any was written.
pub fn restore(paths: &Paths, state: &GatewayState) -> Result<bool, FileError> {
    if durable::read_if_there(&paths.leases())?.is_some() {
        return Ok(false);
    }
    let reserved = |l: &&Lease| {
        let mut hosts = state.hosts.iter();
        hosts.any(|h| h.mac == l.mac && h.address == l.address)
    };
    let lines: Vec<String> = state
        .leases
        .iter()
        .filter(reserved)
        .map(|l| format!("{} {} {} * *\n", l.expires_s, l.mac, l.address))
        .collect();
    if lines.is_empty() {
        return Ok(false);
    }
    let text = lines.concat();
    durable::replace(&paths.leases(), text.as_bytes(), 0o644, Keep::Durable)?;
    Ok(true)
}

/// Lines of another form (DHCPv6, other hardware) are none of ours and left out.
pub fn parse(text: &str) -> Vec<LeaseLine> {
    text.lines().filter_map(parse_line).collect()
}

/// `EXPIRY MAC ADDRESS NAME CLIENT-ID`, with `*` for an unknown name or client id.
fn parse_line(line: &str) -> Option<LeaseLine> {
    let mut fields = line.split(' ');
    let expires_s = fields.next()?.parse().ok()?;
    let mac: MacAddr = fields.next()?.parse().ok()?;
    let address: Ipv4Addr = fields.next()?.parse().ok()?;
    let client_name = fields.next().and_then(shown_name);
    let client_id = fields.next().map(client_id).unwrap_or_default();
    Some(LeaseLine {
        lease: Lease {
            expires_s,
            mac,
            address,
            client_name,
        },
        held: HeldLease {
            mac,
            address,
            client_id,
        },
    })
}

fn shown_name(claimed: &str) -> Option<String> {
    let name: String = claimed
        .chars()
        .filter(|c| !c.is_control())
        .take(CLIENT_NAME_MAX)
        .collect();
    (!name.is_empty() && name != "*").then_some(name)
}

/// Hexadecimal pairs with colons; `*` and anything else is no client id.
fn client_id(text: &str) -> Vec<u8> {
    text.split(':')
        .map(|pair| u8::from_str_radix(pair, 16))
        .collect::<Result<_, _>>()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lease_file_as_dnsmasq_writes_it() {
        let lines = parse(
            "1795288022 52:78:00:01:00:64 10.20.0.100 * 01:52:78\n\
             0 52:78:00:01:00:65 10.20.0.101 a\u{1b}[31mb *\n\
             1795288022 06-52:78:00:01:00:66 10.20.0.102 x *\n\
             duid 00:01:00:01\n\nnonsense\n",
        );
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].lease.client_name, None);
        assert_eq!(lines[0].held.client_id, [1, 0x52, 0x78]);
        assert_eq!(lines[1].lease.client_name.as_deref(), Some("a[31mb"));
        assert_eq!(
            (lines[1].lease.expires_s, lines[1].held.client_id.len()),
            (0, 0)
        );
    }

    #[test]
    fn leases_are_restored_once_and_for_reserved_hosts_only() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        durable::directory(paths.leases().parent().unwrap(), 0o755).unwrap();
        let mut state = crate::gateway::fake::state();
        let host = state.hosts[0].clone();
        let lease = Lease {
            expires_s: 1_795_288_022,
            mac: host.mac,
            address: host.address,
            client_name: Some("a name".into()),
        };
        let mut strange = lease.clone();
        strange.address = Ipv4Addr::new(10, 20, 0, 250);
        assert!(!restore(&paths, &state).unwrap());
        state.leases = vec![strange, lease.clone()];
        assert!(restore(&paths, &state).unwrap());
        let kept = read(&paths).unwrap();
        assert_eq!(kept.len(), 1);
        let expected = Lease {
            client_name: None,
            ..lease
        };
        assert_eq!(kept[0].lease, expected);
        // What is there is dnsmasq's, even when it is empty.
        durable::replace(&paths.leases(), b"", 0o644, Keep::Durable).unwrap();
        assert!(!restore(&paths, &state).unwrap());
    }

    proptest! {
        #[test]
        fn no_line_hurts_and_no_name_holds_control_characters(name in "\\PC{0,90}|[\u{0}-\u{1f}a-z]{0,90}") {
            for line in parse(&format!("1 52:78:00:01:00:64 10.20.0.100 {name} *")) {
                let shown = line.lease.client_name.unwrap_or_default();
                prop_assert!(!shown.contains(char::is_control) && shown.chars().count() <= 63);
            }
        }
    }
}
