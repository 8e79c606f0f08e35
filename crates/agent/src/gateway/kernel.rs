//! Kernel settings of the appliance's own network namespace.
//!
//! Written to `/proc/sys` now and to `sysctl.d` for the next boot. Never touches a setting that is
//! not namespaced: an unprivileged container could not, and must not need to.

use std::fs;

use wire::gateway::ZoneNetwork;

use super::paths::Paths;
use super::word::{UnsafeWord, word};
use crate::durable::FileError;

/// One setting: the key with slashes and its value.
pub type Setting = (String, &'static str);

/// What the relay needs whatever the state is: with it no connection is lost while Caddy hands its
/// listening sockets over to itself in a reload.
pub fn at_start() -> Vec<Setting> {
    vec![("net/ipv4/tcp_migrate_req".to_owned(), "1")]
}

/// What a network needs: forwarding, and no ICMP redirects, which would tell guests to talk to each
/// other directly, past the firewall.
pub fn for_network(network: &ZoneNetwork) -> Result<Vec<Setting>, UnsafeWord> {
    let lan = word(&network.lan)?;
    let mut settings = at_start();
    settings.extend([
        ("net/ipv4/ip_forward".to_owned(), "1"),
        ("net/ipv4/conf/all/send_redirects".to_owned(), "0"),
        (format!("net/ipv4/conf/{lan}/send_redirects"), "0"),
        ("net/ipv4/conf/all/accept_redirects".to_owned(), "0"),
        (format!("net/ipv4/conf/{lan}/accept_redirects"), "0"),
        // No guest says which way its packets go.
        ("net/ipv4/conf/all/accept_source_route".to_owned(), "0"),
        // Guests do not hear each other's questions: the appliance answers for all of the zone, at once, so
        // that what goes from guest to guest crosses its firewall.
        (format!("net/ipv4/conf/{lan}/proxy_arp_pvlan"), "1"),
        (format!("net/ipv4/neigh/{lan}/proxy_delay"), "0"),
        // A guest that is just starting does not hear the first question for its address; the
        // default is to ask again after a whole second.
        (format!("net/ipv4/neigh/{lan}/retrans_time_ms"), "40"),
    ]);
    Ok(settings)
}

/// The settings as a file for `sysctl.d`. Keys have slashes there too: an interface name may
/// contain dots.
pub fn render(settings: &[Setting]) -> String {
    let mut text = String::from(
        "# Written by proximity-agent from the zone's desired state; changes here are lost.\n",
    );
    for (key, value) in settings {
        text.push_str(&format!("{key} = {value}\n"));
    }
    text
}

/// Makes the settings hold now; says whether any had to be changed. Tries all before it fails.
pub fn set(paths: &Paths, settings: &[Setting]) -> Result<bool, FileError> {
    let mut changed = false;
    let mut failed = None;
    for (key, value) in settings {
        let path = paths.sysctl(key);
        match fs::read_to_string(&path) {
            Ok(now) if now.trim() == *value => continue,
            _ => changed = true,
        }
        if let Err(e) = fs::write(&path, value) {
            failed.get_or_insert(FileError::new("set", &path)(e));
        }
    }
    failed.map_or(Ok(changed), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;

    #[test]
    fn settings_are_written_once_and_a_missing_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        let settings = for_network(&fake::state().network).unwrap();
        for (key, _) in &settings {
            let path = paths.sysctl(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "7\n").unwrap();
        }
        assert!(set(&paths, &settings).unwrap());
        assert!(!set(&paths, &settings).unwrap());
        fs::remove_dir_all(paths.sysctl("net/ipv4/conf/all")).unwrap();
        assert!(
            set(&paths, &settings)
                .unwrap_err()
                .to_string()
                .contains("send_redirects")
        );
        insta::assert_snapshot!(render(&settings), @r"
        # Written by proximity-agent from the zone's desired state; changes here are lost.
        net/ipv4/tcp_migrate_req = 1
        net/ipv4/ip_forward = 1
        net/ipv4/conf/all/send_redirects = 0
        net/ipv4/conf/eth1/send_redirects = 0
        net/ipv4/conf/all/accept_redirects = 0
        net/ipv4/conf/eth1/accept_redirects = 0
        net/ipv4/conf/all/accept_source_route = 0
        net/ipv4/conf/eth1/proxy_arp_pvlan = 1
        net/ipv4/neigh/eth1/proxy_delay = 0
        net/ipv4/neigh/eth1/retrans_time_ms = 40
        ");
    }
}
