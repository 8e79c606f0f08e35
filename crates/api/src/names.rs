//! Ids and names as parsed newtypes: whoever holds one holds a checked value.
//!
//! Raw strings from people, files and the network become one of these at the edge, and nothing
//! behind the edge sees a raw string again. Owns the rules for what a name may look like; knows
//! nothing of which names are in use.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string is not the name it should be. The message says what was wrong and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {reason}")]
pub struct InvalidName {
    /// What the string should have been, in words for people ("instance name").
    pub what: &'static str,
    /// The refused string, shortened to 80 characters.
    pub value: String,
    /// What is wrong with it or what is allowed.
    pub reason: &'static str,
}

impl InvalidName {
    pub(crate) fn new(what: &'static str, value: &str, reason: &'static str) -> Self {
        Self {
            what,
            value: value.chars().take(80).collect(),
            reason,
        }
    }
}

/// Makes a newtype over `String` that can only be made by parsing.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $type(String);

        impl $type {
            /// The checked text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(s: &str) -> Result<Self, InvalidName> {
                match $check(s) {
                    Ok(()) => Ok(Self(s.to_owned())),
                    Err(reason) => Err(InvalidName::new($what, s, reason)),
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(s: String) -> Result<Self, InvalidName> {
                s.parse()
            }
        }

        impl From<$type> for String {
            fn from(v: $type) -> String {
                v.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// The name of an instance: one DNS label (RFC 1123), lower case, 1–63 characters, because it
    /// becomes the guest's host name, its DNS name and a part of its URL.
    InstanceName, "instance name", check_instance_name
);
name!(
    /// What an instance is called by us for its whole life: `i-` and 16 hexadecimal digits. Never
    /// used again, so nothing of a deleted instance can be taken for a part of a new one.
    InstanceId, "instance id", check_instance_id
);
name!(
    /// The id of an operation: `op-` and 16 hexadecimal digits.
    OperationId, "operation id", check_operation_id
);
name!(
    /// The name of a zone in the configuration: one DNS label.
    ZoneName, "zone name", check_label
);
name!(
    /// The name of a node in the configuration: one DNS label.
    NodeName, "node name", check_label
);
name!(
    /// The id of a recipe in the catalog: one DNS label.
    RecipeId, "recipe id", check_label
);
name!(
    /// The name of an image definition: one DNS label.
    ImageName, "image name", check_label
);
name!(
    /// The content digest of an image's inputs: 64 lower-case hexadecimal digits (SHA-256).
    ImageDigest, "image digest", check_digest
);
name!(
    /// The name of a network interface: 1–15 characters of `a-z 0-9 . _ -` that begin with a letter.
    InterfaceName, "network interface name", check_interface
);
name!(
    /// A DNS domain of one or more labels without a dot at the end, at most 200 characters, so
    /// that any label in front of it still makes a legal name.
    Domain, "DNS domain", check_domain
);
name!(
    /// A full host name that a route answers to: two or more labels, lower case.
    HostName, "host name", check_host_name
);

/// Names that no instance may take: they mean something to resolvers, browsers or to us.
const RESERVED: &[&str] = &[
    "appliance",
    "broadcasthost",
    "dns",
    "dyn",
    "gateway",
    "isatap",
    "localhost",
    "node",
    "ns",
    "prox-appliance",
    "proximity",
    "router",
    "wpad",
];

impl InstanceName {
    /// Whether no instance that people ask for may take this name. The appliance has one of these.
    pub fn is_reserved(&self) -> bool {
        RESERVED.contains(&self.0.as_str())
    }
}

impl InstanceId {
    /// Makes an id of eight random bytes; where they come from is the caller's business.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(format!("i-{:016x}", u64::from_be_bytes(bytes)))
    }
}

impl OperationId {
    /// Makes an id of eight random bytes.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(format!("op-{:016x}", u64::from_be_bytes(bytes)))
    }
}

impl ImageDigest {
    /// Makes a digest of its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }
}

impl HostName {
    /// `NAME.DOMAIN`, the host name of an instance in its zone.
    pub fn in_domain(name: &InstanceName, domain: &Domain) -> Self {
        Self(format!("{name}.{domain}"))
    }
}

fn check_label(s: &str) -> Result<(), &'static str> {
    let bytes = s.as_bytes();
    if bytes.is_empty() || bytes.len() > 63 {
        return Err("it must have 1 to 63 characters");
    }
    if !bytes
        .iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    {
        return Err("only lower-case letters a-z, digits and hyphens are allowed");
    }
    if s.starts_with('-') || s.ends_with('-') {
        return Err("it must not begin or end with a hyphen");
    }
    Ok(())
}

fn check_instance_name(s: &str) -> Result<(), &'static str> {
    check_label(s)?;
    if s.starts_with("xn--") {
        return Err("punycode labels (xn--…) are refused because they can look like other names");
    }
    if s.starts_with("i-") && check_instance_id(s).is_ok() {
        return Err("it looks like an instance id; choose another one");
    }
    Ok(())
}

fn check_hex(s: &str, prefix: &str, digits: usize) -> bool {
    s.strip_prefix(prefix).is_some_and(|hex| {
        hex.len() == digits
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn check_instance_id(s: &str) -> Result<(), &'static str> {
    if check_hex(s, "i-", 16) {
        Ok(())
    } else {
        Err("it must be i- and 16 hexadecimal digits")
    }
}

fn check_operation_id(s: &str) -> Result<(), &'static str> {
    if check_hex(s, "op-", 16) {
        Ok(())
    } else {
        Err("it must be op- and 16 hexadecimal digits")
    }
}

fn check_digest(s: &str) -> Result<(), &'static str> {
    if check_hex(s, "", 64) {
        Ok(())
    } else {
        Err("it must be 64 lower-case hexadecimal digits")
    }
}

fn check_interface(s: &str) -> Result<(), &'static str> {
    if s.is_empty() || s.len() > 15 {
        return Err("it must have 1 to 15 characters (a limit of the Linux kernel)");
    }
    if !s.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err("it must begin with a lower-case letter");
    }
    if !s
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
    {
        return Err("only lower-case letters, digits, dots, underscores and hyphens are allowed");
    }
    Ok(())
}

fn check_domain(s: &str) -> Result<(), &'static str> {
    if s.len() > 200 {
        return Err("it must have at most 200 characters");
    }
    s.split('.').try_for_each(check_label)
}

fn check_host_name(s: &str) -> Result<(), &'static str> {
    if s.len() > 253 {
        return Err("it must have at most 253 characters");
    }
    if !s.contains('.') {
        return Err("it must be a full name of two or more labels, like web.prox.local");
    }
    s.split('.').try_for_each(check_label)
}

/// An Ethernet address. Ours are locally administered and derived from zone and address, so that
/// an address that is used again meets the same MAC in every lease file and ARP cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// An address from its six bytes.
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The MAC of `address` in the zone whose two-byte tag is `zone`: `52:7x:` tag and the low
    /// two bytes of the address. `52` has the locally-administered bit set and the group bit clear.
    pub const fn derived(zone: u16, address: Ipv4Addr) -> Self {
        let z = zone.to_be_bytes();
        let a = address.octets();
        Self([0x52, 0x78, z[0], z[1], a[2], a[3]])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let bad = || InvalidName::new("MAC address", s, "it must be six hexadecimal pairs aa:bb:…");
        let mut bytes = [0u8; 6];
        let mut parts = s.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidName;

    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<MacAddr> for String {
    fn from(m: MacAddr) -> String {
        m.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn instance_names() {
        let check = |s: &str, ok: bool| assert_eq!(s.parse::<InstanceName>().is_ok(), ok, "{s:?}");
        for good in ["a", "web", "test-nginx", "0", "a1-b2", &"x".repeat(63)] {
            check(good, true);
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a_b",
            "a\nb",
            "ü",
            "xn--bcher-kva",
            "i-0123456789abcdef",
            "../x",
            &"x".repeat(64),
        ] {
            check(bad, false);
        }
    }

    #[test]
    fn reserved_names_are_names_all_the_same() {
        for (name, reserved) in [("wpad", true), ("prox-appliance", true), ("web", false)] {
            assert_eq!(
                name.parse::<InstanceName>().unwrap().is_reserved(),
                reserved,
                "{name}"
            );
        }
    }

    #[test]
    fn an_error_names_the_value_and_the_rule() {
        let text = "My App".parse::<InstanceName>().unwrap_err().to_string();
        assert!(
            text.contains("\"My App\"") && text.contains("lower-case"),
            "{text}"
        );
    }

    #[test]
    fn hosts_interfaces_and_domains() {
        assert!("web.prox.local".parse::<HostName>().is_ok());
        for bad in [
            "web",
            "web..local",
            "web.prox.local.",
            "*.prox.local",
            "a/b.c",
            "WEB.x",
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
        assert!("proximity-lan".parse::<InterfaceName>().is_ok());
        for bad in ["", "a23456789012345x", "a b", "-x", "a/b", "9x"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn macs_are_local_unicast_and_differ_by_zone() {
        let a = MacAddr::derived(1, Ipv4Addr::new(10, 20, 0, 100));
        assert_eq!(a.to_string(), "52:78:00:01:00:64");
        assert_eq!(a.bytes()[0] & 0b11, 0b10);
        assert_ne!(a, MacAddr::derived(2, Ipv4Addr::new(10, 20, 0, 100)));
        assert_eq!("52:78:00:01:00:64".parse(), Ok(a));
        assert!("52:78:00:01:00".parse::<MacAddr>().is_err());
        assert!("52:78:00:01:00:64:00".parse::<MacAddr>().is_err());
    }

    proptest! {
        #[test]
        fn a_name_never_holds_what_could_leave_its_line(s in "\\PC{0,70}|[a-z\n\r\t \"'/;{}#-]{0,20}") {
            if let Ok(name) = s.parse::<InstanceName>() {
                prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
            }
            if let Ok(host) = s.parse::<HostName>() {
                prop_assert!(host.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'));
            }
        }

        #[test]
        fn macs_round_trip(bytes in any::<[u8; 6]>()) {
            let mac = MacAddr::from_bytes(bytes);
            prop_assert_eq!(mac.to_string().parse::<MacAddr>(), Ok(mac));
        }
    }
}
