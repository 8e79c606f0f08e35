//! Kernel settings of the node: closing our bridges towards it, and forwarding for a managed WAN.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use engine::ports::{NodeNetworkSpec, PortError};
use engine::zone::Wan;
use serde::{Deserialize, Serialize};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What a bridge of ours must have, so that guests reach nothing of the node over it: no IPv6 (every
/// listening port answers on the link-local address), and on the zone's bridge no ARP answers at all.
/// The managed WAN is how the appliance reaches the node, so there ARP answers for its own address only.
fn bridge_settings(bridge: &str, has_address: bool) -> [(String, &'static str); 3] {
    let v4 = |key: &str| format!("/proc/sys/net/ipv4/conf/{bridge}/{key}");
    [
        (
            format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"),
            "1",
        ),
        (v4("arp_ignore"), if has_address { "2" } else { "8" }),
        (v4("rp_filter"), "1"),
    ]
}

/// Closes a bridge. A kernel without IPv6 has nothing to close there.
pub(super) fn close_bridge(bridge: &str, has_address: bool) -> Result<(), PortError> {
    for (path, value) in bridge_settings(bridge, has_address) {
        if path.contains("/ipv6/") && !Path::new("/proc/sys/net/ipv6").exists() {
            continue;
        }
        fs::write(&path, value).map_err(|e| PortError::new(format!("set {path}"), e))?;
    }
    Ok(())
}

/// Which settings of a bridge differ.
pub(super) fn bridge_drift(bridge: &str, has_address: bool) -> Vec<String> {
    bridge_settings(bridge, has_address)
        .into_iter()
        .filter(|(path, want)| fs::read_to_string(path).is_ok_and(|is| is.trim() != *want))
        .map(|(path, want)| format!("{path} is not {want}"))
        .collect()
}

/// What was before us, and who needs the change.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    ip_forward_before: Option<String>,
    zones: BTreeSet<String>,
}

/// The remembered settings.
pub(super) struct Settings {
    path: PathBuf,
}

impl Settings {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    fn load(&self) -> Result<Remembered, PortError> {
        match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| PortError::new(format!("read {}", self.path.display()), e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Remembered::default()),
            Err(e) => Err(PortError::new(format!("read {}", self.path.display()), e)),
        }
    }

    fn save(&self, remembered: &Remembered) -> Result<(), PortError> {
        let text = serde_json::to_vec(remembered)
            .map_err(|e| PortError::new("remember the node's settings", e))?;
        crate::lxc::write_durably(&self.path, &text, 0o600)
    }

    /// What of forwarding is not as the zone needs it: switched on, and noted as needed, so that another
    /// zone that goes does not switch it off.
    pub(super) fn drift(&self, spec: &NodeNetworkSpec) -> Result<Option<String>, PortError> {
        if !matches!(spec.wan, Wan::Managed { .. }) {
            return Ok(None);
        }
        let on = fs::read_to_string(IP_FORWARD).is_ok_and(|s| s.trim() == "1");
        if !on {
            return Ok(Some(format!("{IP_FORWARD} is not 1")));
        }
        let noted = self.load()?.zones.contains(spec.zone.as_str());
        Ok((!noted).then(|| format!("{} does not note zone {}", self.path.display(), spec.zone)))
    }

    /// Switches forwarding on for a managed WAN, after what was before is on the disk.
    pub(super) fn forward(&self, spec: &NodeNetworkSpec) -> Result<(), PortError> {
        if !matches!(spec.wan, Wan::Managed { .. }) {
            return Ok(());
        }
        let mut remembered = self.load()?;
        if remembered.zones.insert(spec.zone.to_string()) {
            if remembered.ip_forward_before.is_none() {
                let before = fs::read_to_string(IP_FORWARD)
                    .map_err(|e| PortError::new(format!("read {IP_FORWARD}"), e))?;
                remembered.ip_forward_before = Some(before.trim().to_owned());
            }
            self.save(&remembered)?;
        }
        fs::write(IP_FORWARD, "1").map_err(|e| PortError::new(format!("set {IP_FORWARD}"), e))
    }

    /// Puts forwarding back when the last zone that needed it goes.
    pub(super) fn restore(&self, spec: &NodeNetworkSpec) -> Result<(), PortError> {
        // What a crash may have left of a note that was never made.
        let _ = fs::remove_file(self.path.with_extension("new"));
        let mut remembered = self.load()?;
        if !remembered.zones.remove(spec.zone.as_str()) {
            return Ok(());
        }
        if !remembered.zones.is_empty() {
            return self.save(&remembered);
        }
        if let Some(before) = &remembered.ip_forward_before {
            fs::write(IP_FORWARD, before)
                .map_err(|e| PortError::new(format!("set {IP_FORWARD}"), e))?;
        }
        fs::remove_file(&self.path)
            .map_err(|e| PortError::new(format!("remove {}", self.path.display()), e))
    }
}
