//! What a guest may reach outside its zone.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{HostName, InvalidName};

/// How many destinations a list may have.
pub const MAX_DESTINATIONS: usize = 64;

/// Networks whose addresses are no public hosts (IANA special-purpose registry). No guest reaches them, whatever
/// its policy says.
pub const SPECIAL_PURPOSE: [Ipv4Net; 15] = [
    net([0, 0, 0, 0], 8),
    net([10, 0, 0, 0], 8),
    net([100, 64, 0, 0], 10),
    net([127, 0, 0, 0], 8),
    net([169, 254, 0, 0], 16),
    net([172, 16, 0, 0], 12),
    net([192, 0, 0, 0], 24),
    net([192, 0, 2, 0], 24),
    net([192, 88, 99, 0], 24),
    net([192, 168, 0, 0], 16),
    net([198, 18, 0, 0], 15),
    net([198, 51, 100, 0], 24),
    net([203, 0, 113, 0], 24),
    net([224, 0, 0, 0], 4),
    net([240, 0, 0, 0], 4),
];

const fn net([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// Whether an address is a public host's.
pub fn is_public(address: Ipv4Addr) -> bool {
    !SPECIAL_PURPOSE.iter().any(|n| n.contains(&address))
}

/// A guest's egress policy: `"off"`, `"internet"`, or `{"allow": ["192.0.0.0/9", "example.com"]}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Egress {
    /// Nothing outside the zone; DNS answers the zone's names only.
    Off,
    /// All public addresses.
    #[default]
    Internet,
    /// These networks, these names, and the public addresses that the zone's DNS answered for the names.
    Allow(Destinations),
}

impl Egress {
    /// Whether all public addresses may be reached.
    pub fn is_internet(&self) -> bool {
        *self == Self::Internet
    }

    /// Whether less than the whole internet may be reached.
    pub fn is_restricted(&self) -> bool {
        !self.is_internet()
    }

    /// What may be reached; nothing unless it is a list.
    pub fn destinations(&self) -> &[Destination] {
        match self {
            Self::Allow(list) => &list.0,
            Self::Off | Self::Internet => &[],
        }
    }
}

/// As people type it: `off`, `internet`, or destinations with commas between them.
impl FromStr for Egress {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        match s {
            "off" => Ok(Self::Off),
            "internet" => Ok(Self::Internet),
            list => {
                let each = list.split(',').map(|d| d.trim().parse());
                let all: Vec<Destination> = each.collect::<Result<_, _>>()?;
                Destinations::try_from(all).map(Self::Allow)
            }
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.pad("off"),
            Self::Internet => f.pad("internet"),
            Self::Allow(list) => {
                let words: Vec<String> = list.0.iter().map(ToString::to_string).collect();
                f.pad(&words.join(","))
            }
        }
    }
}

/// One to [`MAX_DESTINATIONS`] destinations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Destination>")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = Vec<String>))]
pub struct Destinations(Vec<Destination>);

impl TryFrom<Vec<Destination>> for Destinations {
    type Error = InvalidName;

    fn try_from(list: Vec<Destination>) -> Result<Self, InvalidName> {
        match list.len() {
            0 => Err(InvalidName::new(
                "list of destinations",
                "[]",
                "it is empty; `off` allows nothing",
            )),
            1..=MAX_DESTINATIONS => Ok(Self(list)),
            n => Err(InvalidName::new(
                "list of destinations",
                &format!("{n} destinations"),
                "at most 64 are allowed",
            )),
        }
    }
}

/// A network (`192.0.0.0/9`, or one address), a name (`example.com`) or all names below one
/// (`*.example.com`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// A network of which at least a part is public.
    Network(Ipv4Net),
    /// This very name.
    Name(HostName),
    /// Names below this one, which itself is not meant.
    Below(HostName),
}

impl Destination {
    /// Whether a name, in lower case and without a final dot, is meant.
    pub fn means(&self, name: &str) -> bool {
        match self {
            Self::Network(_) => false,
            Self::Name(own) => own.as_str() == name,
            Self::Below(parent) => name
                .strip_suffix(parent.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        }
    }
}

impl FromStr for Destination {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        const WHAT: &str = "destination";
        let looks_like_a_network = s.contains('/')
            || (!s.is_empty() && s.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
            || s.contains(':');
        if looks_like_a_network {
            let network = s
                .parse::<Ipv4Net>()
                .or_else(|_| s.parse::<Ipv4Addr>().map(Ipv4Net::from))
                .map_err(|_| {
                    InvalidName::new(
                        WHAT,
                        s,
                        "it must be an IPv4 network like 192.0.0.0/9, an IPv4 address, or a name",
                    )
                })?;
            if network != network.trunc() {
                return Err(InvalidName::new(WHAT, s, "bits behind the prefix are set"));
            }
            if SPECIAL_PURPOSE.iter().any(|n| n.contains(&network)) {
                return Err(InvalidName::new(
                    WHAT,
                    s,
                    "no public host has such an address, and no guest may reach a private network",
                ));
            }
            return Ok(Self::Network(network));
        }
        let lower = s.to_ascii_lowercase();
        let lower = lower.strip_suffix('.').unwrap_or(&lower);
        match lower.strip_prefix("*.") {
            Some(parent) => parent.parse().map(Self::Below),
            None => lower.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => fmt::Display::fmt(network, f),
            Self::Name(name) => fmt::Display::fmt(name, f),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = InvalidName;

    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<Destination> for String {
    fn from(d: Destination) -> Self {
        d.to_string()
    }
}

/// `PUT /instances/{name}/egress`: what holds from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EgressRequest {
    /// The new policy.
    pub egress: Egress,
}

/// `GET /instances/{name}/egress`: the policy, and what it refused lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EgressView {
    /// The policy.
    pub egress: Egress,
    /// What was refused in the last hour, most often refused first; at most 100 entries.
    pub refused: Vec<Refused>,
}

/// One thing that a guest asked for and did not get. Data from a guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Refused {
    /// `tcp 192.0.2.1:443`, `icmp 192.0.2.1`, or `dns example.com`.
    pub what: String,
    /// How often: packets or questions.
    pub times: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_as_people_type_them() {
        let check = |typed: &str, shown: Result<&str, &str>| match (typed.parse::<Egress>(), shown)
        {
            (Ok(policy), Ok(shown)) => {
                assert_eq!(policy.to_string(), shown);
                let json = serde_json::to_string(&policy).unwrap();
                assert_eq!(serde_json::from_str::<Egress>(&json).unwrap(), policy);
            }
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{typed}: {error}");
            }
            (got, _) => panic!("{typed}: {got:?}"),
        };
        check("off", Ok("off"));
        check("internet", Ok("internet"));
        check(
            "Example.COM.,*.example.org",
            Ok("example.com,*.example.org"),
        );
        check("8.8.8.8, 1.1.1.0/24", Ok("8.8.8.8/32,1.1.1.0/24"));
        check("0.0.0.0/0", Ok("0.0.0.0/0"));
        check("10.0.0.0/16", Err("private network"));
        check("169.254.169.254", Err("private network"));
        check("8.8.8.8/8", Err("bits behind"));
        check("2001:db8::/32", Err("IPv4"));
        check("1.2.3", Err("IPv4"));
        check("localhost", Err("two or more labels"));
        check("example.com,", Err("two or more"));
        check("a b.example", Err("lower-case"));
        check(&vec!["a.example"; 65].join(","), Err("at most 64"));
        assert!(serde_json::from_str::<Egress>(r#"{"allow":[]}"#).is_err());
        assert_eq!(serde_json::to_string(&Egress::Off).unwrap(), r#""off""#);
    }

    #[test]
    fn names_that_are_meant() {
        let check = |destination: &str, name: &str, means: bool| {
            let parsed: Destination = destination.parse().unwrap();
            assert_eq!(parsed.means(name), means, "{destination} {name}");
        };
        check("example.com", "example.com", true);
        check("example.com", "www.example.com", false);
        check("*.example.com", "www.example.com", true);
        check("*.example.com", "a.b.example.com", true);
        check("*.example.com", "example.com", false);
        check("*.example.com", ".example.com", false);
        check("*.example.com", "notexample.com", false);
        check("8.8.8.8", "8.8.8.8", false);
    }
}
