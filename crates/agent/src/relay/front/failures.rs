//! Who has guessed too often: wrong credentials of each source at each route.
//!
//! After [`MOST`] wrong ones within [`WINDOW`] a source gets no further try at that route until the time since the
//! first of them is over, the right ones included: else a guess would tell by its answer. Other sources, and other
//! routes, notice nothing. Knows no credentials. Bounded: when too many sources fail at a time, the oldest
//! are forgotten first.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::HostName;
use hyper::header::HeaderMap;

/// Wrong credentials that a source may send to a route within the window.
pub const MOST: u32 = 10;
/// How long a wrong one counts.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Pairs of source and route that are counted at a time.
const COUNTED: usize = 4096;

/// Who tries, and where.
pub type Attempt = (IpAddr, HostName);

struct Count {
    wrong: u32,
    since: Instant,
}

/// The wrong credentials of the last minute.
#[derive(Default)]
pub struct Failures(Mutex<BTreeMap<Attempt, Count>>);

impl Failures {
    /// How long the source must still wait, if it has failed too often.
    pub fn wait(&self, attempt: &Attempt, now: Instant) -> Option<Duration> {
        let table = self.table();
        let count = table.get(attempt).filter(|c| c.wrong >= MOST)?;
        let left = WINDOW.saturating_sub(now.duration_since(count.since));
        (!left.is_zero()).then_some(left)
    }

    /// Counts a wrong one.
    pub fn failed(&self, attempt: &Attempt, now: Instant) {
        let mut table = self.table();
        let over = |c: &Count| now.duration_since(c.since) >= WINDOW;
        if table.get(attempt).is_some_and(over) {
            table.remove(attempt);
        }
        if table.len() >= COUNTED && !table.contains_key(attempt) {
            table.retain(|_, count| !over(count));
            if table.len() >= COUNTED {
                let oldest = table.iter().min_by_key(|(_, count)| count.since);
                if let Some(oldest) = oldest.map(|(attempt, _)| attempt.clone()) {
                    table.remove(&oldest);
                }
            }
        }
        let count = table.entry(attempt.clone()).or_insert(Count {
            wrong: 0,
            since: now,
        });
        count.wrong += 1;
        if count.wrong == MOST {
            let (source, host) = attempt;
            tracing::warn!(%source, route = %host, "too many wrong credentials; it must wait");
        }
    }

    /// Right ones were sent: what was wrong before was a slip.
    pub fn forgive(&self, attempt: &Attempt) {
        self.table().remove(attempt);
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Attempt, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a request comes from, as the reverse proxy says: the last address that it put into the header, since what
/// stands before came from the client. All of an IPv6 network of /64 are one source: whoever has one address of it has
/// them all. Who comes without, past the proxy, is nobody in particular.
pub fn source(headers: &HeaderMap) -> IpAddr {
    let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut values = headers.get_all("x-forwarded-for").iter();
    let last = values.next_back().and_then(|v| v.to_str().ok());
    let last = last.and_then(|text| text.rsplit(',').next());
    match last.and_then(|text| text.trim().parse().ok()) {
        Some(IpAddr::V6(address)) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)).to_canonical()
        }
        Some(address) => address,
        None => unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn attempt(last: u8, host: &str) -> Attempt {
        ([192, 0, 2, last].into(), host.parse().unwrap())
    }

    #[test]
    fn ten_wrong_ones_close_a_route_to_their_source_for_the_rest_of_the_minute() {
        let failures = Failures::default();
        let (guesser, began) = (attempt(1, "web.prox.local"), Instant::now());
        for n in 0..MOST {
            assert_eq!(failures.wait(&guesser, began), None, "{n}");
            failures.failed(&guesser, began + Duration::from_secs(u64::from(n)));
        }
        let later = began + Duration::from_secs(20);
        assert_eq!(
            failures.wait(&guesser, later),
            Some(Duration::from_secs(40))
        );
        for other in [attempt(2, "web.prox.local"), attempt(1, "api.prox.local")] {
            assert_eq!(failures.wait(&other, later), None, "{other:?}");
        }
        assert_eq!(failures.wait(&guesser, began + WINDOW), None);
        // It begins anew then.
        failures.failed(&guesser, began + WINDOW);
        assert_eq!(failures.wait(&guesser, began + WINDOW), None);
    }

    #[test]
    fn who_comes_in_is_forgiven() {
        let failures = Failures::default();
        let (slip, now) = (attempt(1, "web.prox.local"), Instant::now());
        for _ in 0..MOST - 1 {
            failures.failed(&slip, now);
        }
        failures.forgive(&slip);
        failures.failed(&slip, now);
        assert_eq!(failures.wait(&slip, now), None);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest() {
        let failures = Failures::default();
        let began = Instant::now();
        let of = |n: usize| -> Attempt {
            let n = u32::try_from(n).unwrap();
            (
                Ipv4Addr::from_bits(n).into(),
                "web.prox.local".parse().unwrap(),
            )
        };
        for n in 0..COUNTED + 10 {
            failures.failed(&of(n), began + Duration::from_millis(n as u64));
        }
        let table = failures.table();
        assert_eq!(table.len(), COUNTED);
        assert!(!table.contains_key(&of(0)) && table.contains_key(&of(COUNTED + 9)));
    }

    #[test]
    fn sources_as_the_proxy_tells_them() {
        let check = |values: &[&'static str], expect: &str| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-forwarded-for", HeaderValue::from_static(value));
            }
            assert_eq!(
                source(&headers),
                expect.parse::<IpAddr>().unwrap(),
                "{values:?}"
            );
        };
        check(&["192.0.2.1"], "192.0.2.1");
        check(&["198.51.100.7, 192.0.2.1"], "192.0.2.1");
        check(&["198.51.100.7", "192.0.2.1"], "192.0.2.1");
        check(&["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::");
        check(&["nonsense"], "0.0.0.0");
        check(&[], "0.0.0.0");
    }
}
