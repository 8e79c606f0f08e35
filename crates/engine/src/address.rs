//! Which address a new instance gets. Pure.
//!
//! An address that was never used comes first, then the one that has rested longest: whoever still
//! remembers the old owner should not meet the new one.

use std::net::Ipv4Addr;

use jiff::{SignedDuration, Timestamp};

/// How long a freed address rests.
pub const REST: SignedDuration = SignedDuration::from_secs(60);

/// An address that was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freed {
    /// The address.
    pub address: Ipv4Addr,
    /// When it was given back.
    pub at: Timestamp,
}

/// Chooses an address from `first` to `last` that is not in `used`. An address that still rests is
/// given out only when nothing else is left; then the one that rested longest.
pub fn choose(
    (first, last): (Ipv4Addr, Ipv4Addr),
    used: &[Ipv4Addr],
    freed: &[Freed],
    now: Timestamp,
) -> Option<Ipv4Addr> {
    let free = |a: &Ipv4Addr| !used.contains(a);
    let freed_at = |a: &Ipv4Addr| freed.iter().filter(|f| f.address == *a).map(|f| f.at).max();
    let pool: Vec<Ipv4Addr> = (u32::from(first)..=u32::from(last))
        .map(Ipv4Addr::from)
        .filter(free)
        .collect();
    let never_used = pool.iter().find(|a| freed_at(a).is_none());
    let rested = || {
        pool.iter()
            .filter_map(|a| freed_at(a).map(|at| (at, a)))
            .min()
            .filter(|(at, _)| now.duration_since(*at) >= REST)
            .map(|(_, a)| a)
    };
    never_used.or_else(rested).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 20, 0, host)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn fresh_first_then_longest_rested_then_none() {
        let range = (ip(100), ip(102));
        let freed = [
            Freed {
                address: ip(100),
                at: at(0),
            },
            Freed {
                address: ip(101),
                at: at(10),
            },
        ];
        assert_eq!(choose(range, &[], &freed, at(20)), Some(ip(102)));
        assert_eq!(choose(range, &[ip(102)], &freed, at(20)), None, "both rest");
        assert_eq!(choose(range, &[ip(102)], &freed, at(65)), Some(ip(100)));
        assert_eq!(
            choose(range, &[ip(102), ip(100)], &freed, at(200)),
            Some(ip(101))
        );
        assert_eq!(
            choose(range, &[ip(100), ip(101), ip(102)], &[], at(0)),
            None
        );
    }

    proptest! {
        #[test]
        fn never_a_used_or_resting_one(used in prop::collection::vec(100u8..110, 0..10),
                                       freed in prop::collection::vec((100u8..110, 0i64..200), 0..20)) {
            let used: Vec<_> = used.into_iter().map(ip).collect();
            let freed: Vec<_> = freed.into_iter().map(|(h, s)| Freed { address: ip(h), at: at(s) }).collect();
            if let Some(a) = choose((ip(100), ip(109)), &used, &freed, at(100)) {
                prop_assert!(!used.contains(&a));
                prop_assert!((ip(100)..=ip(109)).contains(&a));
                prop_assert!(freed.iter().filter(|f| f.address == a).all(|f| f.at <= at(40)));
            }
        }
    }
}
