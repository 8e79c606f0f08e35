//! Images: golden root file systems, addressed by the digest of their inputs.
//!
//! This module says what goes into an image and what its digest is. Building and keeping images is
//! the business of the [`Images`] port's implementations.

use api::ImageDigest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wire::family::FamilyName;

use crate::ports::PortError;

/// Changes when the way of building changes, so that older images are not taken for new ones.
const BUILDER: &str = "proximity-image-4";

/// Everything that decides what an image contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// What distribution it is made of. Not written when it is Debian, so that images made before there was a
    /// choice keep their digests.
    #[serde(default, skip_serializing_if = "FamilyName::is_debian")]
    pub family: FamilyName,
    /// Debian release by code name. Empty for others, which have what the machine's repositories offer.
    #[serde(default = "bookworm")]
    pub suite: String,
    /// Packages beside the base, sorted when the digest is made.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Files put into the image.
    #[serde(default)]
    pub files: Vec<ImageFile>,
    /// What starts and ends the guest's services. Not written when it is systemd, so that images made
    /// before there was a choice keep their digests.
    #[serde(default, skip_serializing_if = "Init::is_systemd")]
    pub init: Init,
    /// Services that start at boot: systemd units, or OpenRC's for the runlevel `default`.
    #[serde(default)]
    pub enable: Vec<String>,
    /// systemd units that never start.
    #[serde(default)]
    pub mask: Vec<String>,
    /// Whose ids its files have on a node. Follows from the kind of guests that it is for, so a recipe does not say
    /// it; not written for apps, so that images made before there was a choice keep their digests.
    #[serde(default, skip_serializing_if = "IdRange::is_apps")]
    pub ids: IdRange,
}

/// Ranges of ids of a node that stand for those of guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdRange {
    /// Of apps and appliances.
    #[default]
    Apps,
    /// Of sandboxes.
    Sandboxes,
}

impl IdRange {
    fn is_apps(&self) -> bool {
        *self == Self::Apps
    }
}

/// The init system of an image's guests. A sandbox has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// systemd.
    #[default]
    Systemd,
    /// OpenRC, with its own `openrc-init` as process 1.
    Openrc,
}

impl Init {
    fn is_systemd(&self) -> bool {
        *self == Self::Systemd
    }
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Absolute path in the guest.
    pub path: String,
    /// Its text.
    pub content: String,
    /// Permissions, octal like `"0644"`.
    #[serde(default = "mode_0644")]
    pub mode: String,
}

fn bookworm() -> String {
    "bookworm".into()
}

fn mode_0644() -> String {
    "0644".into()
}

/// Packages of every image. No D-Bus and no logind: a recipe that needs them says so, every other
/// guest starts faster and smaller.
const BASE_PACKAGES: &[&str] = &["ca-certificates", "iproute2", "systemd", "systemd-sysv"];

/// Packages of every image whose guests have OpenRC. The DHCP client is the smallest there is.
const OPENRC_BASE_PACKAGES: &[&str] = &["ca-certificates", "iproute2", "openrc", "udhcpc"];

/// Packages of every image of Alpine: the distribution's own base, OpenRC and busybox with it.
const ALPINE_BASE_PACKAGES: &[&str] = &["alpine-base", "ca-certificates", "iproute2"];

/// Packages of every sandbox.
const SMALL_BASE_PACKAGES: &[&str] = &["ca-certificates", "iproute2", "netbase"];

/// Units that make no sense in a container or only cost time there.
const BASE_MASK: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@.service",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-networkd-wait-online.service",
    "systemd-timesyncd.service",
];

// The client identifier is the MAC, since reservations are made by MAC; the host name comes from
// the container, never from the network.
const NETWORK_DHCP: &str = "[Match]\nName=eth0\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\nUseDomains=yes\n";

impl ImageSpec {
    /// This image on top of what every guest has: its init system, the agent, and `eth0` by DHCP.
    #[must_use]
    pub fn on_base(mut self) -> Self {
        match self.init {
            Init::Systemd => self.on_systemd(),
            Init::Openrc => self.on_openrc(),
        }
        for list in [&mut self.packages, &mut self.enable, &mut self.mask] {
            list.sort();
            list.dedup();
        }
        self
    }

    fn on_systemd(&mut self) {
        self.packages
            .extend(BASE_PACKAGES.iter().map(ToString::to_string));
        self.mask.extend(BASE_MASK.iter().map(ToString::to_string));
        self.enable.push("systemd-networkd.service".into());
        self.enable.push(AGENT_UNIT.into());
        self.files.push(ImageFile {
            path: format!("/etc/systemd/system/{AGENT_UNIT}"),
            content: include_str!("../../../images/guest/proximity-agent.service").into(),
            mode: mode_0644(),
        });
        if !self.files.iter().any(|f| f.path == NETWORK_FILE) {
            self.files.push(ImageFile {
                path: NETWORK_FILE.into(),
                content: NETWORK_DHCP.into(),
                mode: mode_0644(),
            });
        }
    }

    fn on_openrc(&mut self) {
        let (packages, services) = match self.family {
            FamilyName::Debian => (OPENRC_BASE_PACKAGES, OPENRC_SERVICES),
            // Its own service `networking` makes the network.
            FamilyName::Alpine => (ALPINE_BASE_PACKAGES, const { &[OPENRC_AGENT] as &[_] }),
        };
        self.packages
            .extend(packages.iter().map(ToString::to_string));
        for (name, content) in services {
            self.enable.push((*name).into());
            self.files.push(ImageFile {
                path: format!("/etc/init.d/{name}"),
                content: (*content).into(),
                mode: "0755".into(),
            });
        }
    }

    /// This image on top of what every sandbox has: no init system, since the agent is process 1, and no
    /// network configuration, since the node sets its address.
    #[must_use]
    pub fn on_small_base(mut self) -> Self {
        self.packages
            .extend(SMALL_BASE_PACKAGES.iter().map(ToString::to_string));
        self.packages.sort();
        self.packages.dedup();
        self.ids = IdRange::Sandboxes;
        self
    }

    /// The image's digest: SHA-256 over the builder's version and the inputs as JSON.
    pub fn digest(&self) -> ImageDigest {
        let inputs = serde_json::json!({ "builder": BUILDER, "spec": self });
        ImageDigest::from_bytes(Sha256::digest(inputs.to_string()).into())
    }

    /// Refuses a recipe's image that is not Debian's, since only appliances are made of something else, or that has not
    /// the ids of its kind.
    pub fn check_of_recipe(&self, ids: IdRange) -> Result<(), String> {
        if self.ids != ids {
            return Err("ids: they follow from the kind of the recipe; leave them out".into());
        }
        match self.family {
            FamilyName::Debian => self.check(),
            other => Err(format!(
                "family: recipes are made of debian, not of {other}"
            )),
        }
    }

    /// Refuses what must not reach a package manager, a path or a unit name.
    pub fn check(&self) -> Result<(), String> {
        let word = |s: &str, extra: &str| {
            !s.is_empty()
                && s.len() <= 100
                && !s.starts_with('-')
                && s.chars()
                    .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        if self.family.is_debian() && !word(&self.suite, "-") {
            return Err(format!("suite {:?} is not a release name", self.suite));
        }
        if let Some(p) = self.packages.iter().find(|p| !word(p, "+-.")) {
            return Err(format!("{p:?} is not a package name"));
        }
        if let Some(u) = self
            .enable
            .iter()
            .chain(&self.mask)
            .find(|u| !word(u, "@-._\\"))
        {
            return Err(format!("{u:?} is not a unit name"));
        }
        if self.init == Init::Openrc && !self.mask.is_empty() {
            return Err("mask: OpenRC starts only what is enabled".into());
        }
        self.files.iter().try_for_each(|f| {
            check_guest_path(&f.path).and_then(|()| parse_mode(&f.mode).map(drop))
        })
    }
}

/// Starts the agent in guests with systemd. The agent itself is a mount of the node's copy.
const AGENT_UNIT: &str = "proximity-agent.service";

/// What every guest of Debian with OpenRC starts: its network, and the agent, which is a mount here too.
const OPENRC_SERVICES: &[(&str, &str)] = &[
    (
        "proximity-network",
        include_str!("../../../images/guest/proximity-network.openrc"),
    ),
    OPENRC_AGENT,
];

const OPENRC_AGENT: (&str, &str) = (
    "proximity-agent",
    include_str!("../../../images/guest/proximity-agent.openrc"),
);

const NETWORK_FILE: &str = "/etc/systemd/network/10-eth0.network";

/// Absolute, without `..`, without characters that a configuration line could stumble over.
pub fn check_guest_path(path: &str) -> Result<(), String> {
    let legal =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '@' | '+');
    if path.len() > 1
        && path.starts_with('/')
        && path.chars().all(legal)
        && path
            .split('/')
            .skip(1)
            .all(|part| !matches!(part, "" | "." | ".."))
    {
        Ok(())
    } else {
        Err(format!("{path:?} is not a plain absolute path"))
    }
}

/// Parses permissions like `0644`.
pub fn parse_mode(mode: &str) -> Result<u32, String> {
    u32::from_str_radix(mode, 8)
        .ok()
        .filter(|m| *m <= 0o777 && mode.len() <= 4)
        .ok_or_else(|| format!("{mode:?} is not a file mode like 0644"))
}

/// Where images are built and kept.
#[async_trait::async_trait]
pub trait Images: Send + Sync {
    /// Whether the image is there, complete.
    async fn cached(&self, digest: &ImageDigest) -> bool;

    /// Makes the image unless it is there. Two calls at once make it once. `progress` gets lines
    /// for people.
    async fn ensure(
        &self,
        spec: &ImageSpec,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<ImageDigest, PortError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(packages: &[&str]) -> ImageSpec {
        ImageSpec {
            family: FamilyName::Debian,
            suite: bookworm(),
            packages: packages.iter().map(ToString::to_string).collect(),
            files: vec![],
            init: Init::Systemd,
            enable: vec![],
            mask: vec![],
            ids: IdRange::Apps,
        }
    }

    #[test]
    fn the_digest_follows_the_inputs_not_their_order() {
        let a = spec(&["nginx-light", "jq"]).on_base();
        let b = spec(&["jq", "nginx-light", "jq"]).on_base();
        assert_eq!(a.digest(), b.digest());
        assert_ne!(a.digest(), spec(&["jq"]).on_base().digest());
    }

    #[test]
    fn the_init_system_decides_what_is_under_a_recipe() {
        let openrc = ImageSpec {
            init: Init::Openrc,
            enable: vec!["nginx".into()],
            ..spec(&["nginx-light"])
        };
        let image = openrc.clone().on_base();
        assert!(!image.packages.iter().any(|p| p.contains("systemd")));
        assert_eq!(
            image.enable,
            ["nginx", "proximity-agent", "proximity-network"]
        );
        image.check().unwrap();
        assert_ne!(image.digest(), spec(&["nginx-light"]).on_base().digest());
        let masked = ImageSpec {
            mask: vec!["x".into()],
            ..openrc
        };
        assert!(masked.on_base().check().unwrap_err().contains("mask"));
        // The digest of an image with systemd is what it was before there was a choice.
        let text = serde_json::to_string(&spec(&[]).on_base()).unwrap();
        assert!(!text.contains("init\":"), "{text}");
    }

    #[test]
    fn names_that_could_be_options_or_paths_are_refused() {
        for bad in ["--hook=x", "a b", "", "a;b", "$(x)", "../x"] {
            assert!(spec(&[bad]).check().is_err(), "{bad:?}");
        }
        for bad in ["etc/x", "/", "/a/../b", "/a//b", "/a b", "/a\nb", "/a:b"] {
            assert!(check_guest_path(bad).is_err(), "{bad:?}");
        }
        assert!(spec(&["libstdc++6"]).on_base().check().is_ok());
        assert!(parse_mode("4755").is_err());
    }
}
