//! Which guest may reach what outside the zone: the policies that hold, the addresses that our DNS answered to
//! guests with a list, and the names that it refused.
//!
//! A guest with a policy asks the relay's own name server (`relay::names`), which decides here. What was answered
//! may be reached for as long as the answer lives; the firewall's set of answers is written before the guest
//! hears of it. Owns that set; everything in memory follows from the state and the answers of the last hours,
//! and losing it closes and never opens.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::egress::{Destination, Refused, is_public};
use serde_json::Value;
use wire::gateway::{GatewayState, RefusedReport};

use super::system::{Command, CommandError, System};
use super::{Gateway, contents, nftables};

/// Addresses that one guest may have been answered at a time.
const ANSWERS_MAX: usize = 1024;
/// Refused names that are kept of one guest.
const REFUSED_MAX: usize = 64;
/// What a report says of one guest.
const SHOWN_MAX: usize = 100;
/// How long a refusal is shown.
const REFUSED_KEPT: Duration = Duration::from_secs(3600);
/// The shortest and longest time for which an answer opens the way, whatever its time to live is.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// What an answer is good for beyond its time to live: the guest may be about to connect.
const GRACE: Duration = Duration::from_secs(30);

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is passed on; what is answered opens nothing.
    Pass,
    /// It is passed on, and the addresses that are answered may be reached.
    Open,
    /// It is refused.
    Refuse,
}

/// See the module's documentation.
#[derive(Default)]
pub struct EgressBook {
    pages: Mutex<Pages>,
    /// Held from looking at the answers until the firewall has them, so that no answer is lost between.
    pub firewall: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Pages {
    /// The zone's domain, once there is a state.
    domain: Option<String>,
    rules: BTreeMap<Ipv4Addr, Vec<Destination>>,
    answers: BTreeMap<Ipv4Addr, BTreeMap<Ipv4Addr, Answered>>,
    refused: BTreeMap<Ipv4Addr, BTreeMap<String, Times>>,
}

struct Answered {
    name: String,
    until: Instant,
}

struct Times {
    count: u64,
    last: Instant,
}

impl EgressBook {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the policies of a state. Answers that they do not mean any more are forgotten.
    pub fn accept(&self, state: &GatewayState) {
        let mut pages = self.pages();
        pages.domain = Some(state.network.domain.to_string());
        let rules = state.egress.iter();
        pages.rules = rules.map(|r| (r.source, r.destinations.clone())).collect();
        let Pages {
            rules,
            answers,
            refused,
            ..
        } = &mut *pages;
        refused.retain(|source, _| rules.contains_key(source));
        answers.retain(|source, of_source| {
            let rule = rules.get(source);
            of_source.retain(|_, a| rule.is_some_and(|r| means(r, &a.name)));
            !of_source.is_empty()
        });
    }

    /// Decides about a question and keeps count of what is refused.
    pub fn decide(&self, source: Ipv4Addr, name: &str, now: Instant) -> Decision {
        let mut pages = self.pages();
        let Some(rule) = pages.rules.get(&source) else {
            // Its policy ended a moment ago.
            return Decision::Pass;
        };
        if means(rule, name) {
            return Decision::Open;
        }
        if pages.is_of_zone(name) {
            return Decision::Pass;
        }
        let refused = pages.refused.entry(source).or_default();
        refused.retain(|_, t| now.duration_since(t.last) < REFUSED_KEPT);
        if refused.len() >= REFUSED_MAX && !refused.contains_key(name) {
            let oldest = refused.iter().min_by_key(|(_, t)| t.last);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                refused.remove(&oldest);
            }
        }
        let times = refused.entry(name.to_owned());
        let times = times.or_insert(Times {
            count: 0,
            last: now,
        });
        times.count += 1;
        times.last = now;
        Decision::Refuse
    }

    /// Notes what was answered for a name that is open to `source`; returns what the firewall must learn: each
    /// address with the time for which it is open. `None` when the guest has been answered too much at a time.
    pub fn learn(
        &self,
        source: Ipv4Addr,
        name: &str,
        answered: &[(Ipv4Addr, u32)],
        now: Instant,
    ) -> Option<Vec<(Ipv4Addr, Duration)>> {
        let mut pages = self.pages();
        if !pages.rules.get(&source).is_some_and(|r| means(r, name)) {
            return Some(Vec::new());
        }
        let known = pages.answers.entry(source).or_default();
        known.retain(|_, a| a.until > now);
        let mut fresh = Vec::new();
        for (address, ttl) in answered.iter().filter(|(address, _)| is_public(*address)) {
            let open = (Duration::from_secs(u64::from(*ttl)) + GRACE).clamp(SHORTEST, LONGEST);
            let lasts = known
                .get(address)
                .is_some_and(|a| a.until >= now + open - GRACE);
            if lasts {
                continue;
            }
            if known.len() >= ANSWERS_MAX && !known.contains_key(address) {
                return None;
            }
            let name = name.to_owned();
            let until = now + open;
            known.insert(*address, Answered { name, until });
            fresh.push((*address, open));
        }
        Some(fresh)
    }

    /// Forgets that these addresses are open: the firewall did not take them.
    pub fn unlearn(&self, source: Ipv4Addr, addresses: &[(Ipv4Addr, Duration)]) {
        if let Some(known) = self.pages().answers.get_mut(&source) {
            addresses.iter().for_each(|(address, _)| {
                known.remove(address);
            });
        }
    }

    /// All that is open: source, address, and for how long still.
    pub fn open(&self, now: Instant) -> Vec<(Ipv4Addr, Ipv4Addr, Duration)> {
        let pages = self.pages();
        let each = pages.answers.iter().flat_map(|(source, known)| {
            known
                .iter()
                .map(|(address, a)| (*source, *address, a.until.saturating_duration_since(now)))
        });
        each.filter(|(_, _, left)| left.as_secs() > 0).collect()
    }

    /// Guests with a policy, and the names that were refused to each.
    pub fn refused(&self, now: Instant) -> BTreeMap<Ipv4Addr, Vec<Refused>> {
        let pages = self.pages();
        let of = |source: &Ipv4Addr| {
            let names = pages.refused.get(source).into_iter().flatten();
            let recent = names.filter(|(_, t)| now.duration_since(t.last) < REFUSED_KEPT);
            let shown = recent.map(|(name, t)| Refused {
                what: format!("dns {name}"),
                times: t.count,
            });
            shown.collect()
        };
        pages
            .rules
            .keys()
            .map(|source| (*source, of(source)))
            .collect()
    }
}

impl<S: System> Gateway<S> {
    /// The policies that hold.
    pub fn egress(&self) -> &EgressBook {
        &self.egress
    }

    /// Lets a guest reach what was answered for a name that its policy lists. False when that is too much at a time.
    pub async fn open(
        &self,
        source: Ipv4Addr,
        name: &str,
        answered: &[(Ipv4Addr, u32)],
    ) -> Result<bool, CommandError> {
        let _alone = self.egress.firewall.lock().await;
        let Some(fresh) = self.egress.learn(source, name, answered, Instant::now()) else {
            return Ok(false);
        };
        if fresh.is_empty() {
            return Ok(true);
        }
        let opened = nftables::run(&self.system, &contents::opening(source, &fresh)).await;
        if opened.is_err() {
            self.egress.unlearn(source, &fresh);
        }
        opened.map(|()| true)
    }

    /// What guests with a policy were refused lately: names here, packets by the firewall.
    pub async fn refused(&self) -> Vec<RefusedReport> {
        let mut all = self.egress.refused(Instant::now());
        if all.is_empty() {
            return Vec::new();
        }
        for (source, refused) in packets(&self.system).await {
            if let Some(of_source) = all.get_mut(&source) {
                of_source.push(refused);
            }
        }
        let report = |(source, mut refused): (Ipv4Addr, Vec<Refused>)| {
            refused.sort_by(|a, b| b.times.cmp(&a.times).then_with(|| a.what.cmp(&b.what)));
            refused.truncate(SHOWN_MAX);
            RefusedReport { source, refused }
        };
        all.into_iter().map(report).collect()
    }
}

/// The packets that the firewall has refused, by source.
async fn packets(system: &impl System) -> Vec<(Ipv4Addr, Refused)> {
    let mut found = Vec::new();
    for set in ["refused", "refused_other"] {
        let list = Command::new(
            &["nft", "--json", "list", "set", "inet", nftables::TABLE, set],
            Duration::from_secs(5),
        );
        match system.run(list).await {
            Ok(text) => found.extend(counted(&text)),
            Err(error) => tracing::warn!(%error, "what was refused to guests could not be read"),
        }
    }
    found
}

/// The elements of a set with counters, as `nft --json` lists them.
fn counted(text: &str) -> Vec<(Ipv4Addr, Refused)> {
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    let entries = document.get("nftables").and_then(Value::as_array);
    let sets = entries
        .into_iter()
        .flatten()
        .filter_map(|e| e.get("set")?.get("elem")?.as_array());
    sets.flatten().filter_map(element).collect()
}

fn element(listed: &Value) -> Option<(Ipv4Addr, Refused)> {
    let element = listed.get("elem")?;
    let parts = element.get("val")?.get("concat")?.as_array()?;
    let word = |part: &Value| {
        part.as_str()
            .map_or_else(|| part.to_string(), str::to_owned)
    };
    let mut words = parts.iter().map(word);
    let (source, target, protocol) = (words.next()?, words.next()?, words.next()?);
    let port = words
        .next()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    Some((
        source.parse().ok()?,
        Refused {
            what: format!("{} {target}{port}", protocol_name(&protocol)),
            times: element.get("counter")?.get("packets")?.as_u64()?,
        },
    ))
}

/// An appliance has no list of protocols, so nft prints numbers.
fn protocol_name(protocol: &str) -> &str {
    match protocol {
        "1" => "icmp",
        "6" => "tcp",
        "17" => "udp",
        other => other,
    }
}

fn means(rule: &[Destination], name: &str) -> bool {
    rule.iter().any(|destination| destination.means(name))
}

impl Pages {
    /// dnsmasq answers these itself: the zone's names, in full or short, and never asks anybody for them.
    fn is_of_zone(&self, name: &str) -> bool {
        let Some(domain) = &self.domain else {
            return false;
        };
        let in_domain = name
            .strip_suffix(domain.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        in_domain || (!name.is_empty() && !name.contains('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;
    use wire::gateway::EgressRule;

    const LISTED: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 100);
    const OFF: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 5);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 101);

    fn state(names: &[&str]) -> GatewayState {
        let rule = |source, names: &[&str]| EgressRule {
            source,
            destinations: names.iter().map(|n| n.parse().unwrap()).collect(),
        };
        let mut state = fake::state();
        state.egress = vec![rule(OFF, &[]), rule(LISTED, names)];
        state
    }

    fn book(names: &[&str]) -> EgressBook {
        let book = EgressBook::default();
        book.accept(&state(names));
        book
    }

    #[test]
    fn questions_are_decided_by_who_asks() {
        let book = book(&["example.com", "*.example.org", "8.8.8.8"]);
        let check = |source, name: &str, expect| {
            assert_eq!(
                book.decide(source, name, Instant::now()),
                expect,
                "{source} {name}"
            );
        };
        check(LISTED, "example.com", Decision::Open);
        check(LISTED, "a.example.org", Decision::Open);
        check(LISTED, "www.example.com", Decision::Refuse);
        check(LISTED, "", Decision::Refuse);
        for source in [LISTED, OFF] {
            check(source, "web.prox.local", Decision::Pass);
            check(source, "prox.local", Decision::Pass);
            check(source, "web", Decision::Pass);
            check(source, "notprox.local", Decision::Refuse);
        }
        check(OFF, "example.com", Decision::Refuse);
        check(OTHER, "example.com", Decision::Pass);
    }

    #[test]
    fn what_was_answered_is_open_for_a_while() {
        let book = book(&["example.com"]);
        let now = Instant::now();
        let public = Ipv4Addr::new(8, 8, 4, 4);
        let answered = [
            (public, 300),
            (Ipv4Addr::new(192, 168, 1, 1), 300),
            (Ipv4Addr::new(169, 254, 169, 254), 300),
        ];
        let learned = book.learn(LISTED, "example.com", &answered, now).unwrap();
        assert_eq!(
            learned,
            [(public, Duration::from_secs(330))],
            "private answers never count"
        );
        assert_eq!(
            book.learn(LISTED, "example.com", &answered, now).unwrap(),
            []
        );
        assert_eq!(book.open(now), [(LISTED, public, Duration::from_secs(330))]);
        let later = now + Duration::from_secs(200);
        assert_eq!(
            book.learn(LISTED, "example.com", &answered, later)
                .unwrap()
                .len(),
            1
        );
        assert_eq!(book.open(later + Duration::from_secs(331)), []);
        // Nobody else's, and nothing that is not listed.
        assert_eq!(book.learn(OFF, "example.com", &answered, now).unwrap(), []);
        assert_eq!(
            book.learn(LISTED, "other.example", &answered, now).unwrap(),
            []
        );
        book.unlearn(LISTED, &[(public, Duration::ZERO)]);
        assert_eq!(
            book.learn(LISTED, "example.com", &answered, now)
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn a_new_policy_keeps_what_it_still_means() {
        let book = book(&["example.com", "*.example.org"]);
        let now = Instant::now();
        let (kept, lost) = (Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(9, 9, 9, 9));
        book.learn(LISTED, "example.com", &[(lost, 60)], now)
            .unwrap();
        book.learn(LISTED, "a.example.org", &[(kept, 60)], now)
            .unwrap();
        book.accept(&state(&["a.example.org"]));
        let open: Vec<_> = book
            .open(now)
            .into_iter()
            .map(|(_, address, _)| address)
            .collect();
        assert_eq!(open, [kept]);
    }

    #[test]
    fn refused_packets_as_nft_prints_them() {
        let text = r#"{"nftables": [{"metainfo": {}}, {"set": {"name": "refused", "elem": [
            {"elem": {"val": {"concat": ["10.20.0.5", "9.9.9.9", "tcp", 443]}, "timeout": 3600, "expires": 3597, "counter": {"packets": 3, "bytes": 180}}},
            {"elem": {"val": {"concat": ["10.20.0.5", "9.9.9.9", 1]}, "counter": {"packets": 1, "bytes": 84}}}]}}]}"#;
        let found = counted(text);
        let what: Vec<_> = found
            .iter()
            .map(|(s, r)| (*s, r.what.as_str(), r.times))
            .collect();
        assert_eq!(
            what,
            [(OFF, "tcp 9.9.9.9:443", 3), (OFF, "icmp 9.9.9.9", 1)]
        );
        assert!(counted("{}").is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let book = book(&["*.example.com"]);
        let now = Instant::now();
        for n in 0..200 {
            book.decide(
                OFF,
                &format!("n{n}.example"),
                now + Duration::from_millis(n),
            );
        }
        let refused = book.refused(now + Duration::from_secs(1));
        assert_eq!(refused[&OFF].len(), REFUSED_MAX);
        assert!(
            refused[&OFF]
                .iter()
                .any(|r| r.what == "dns n199.example" && r.times == 1)
        );
        assert_eq!(refused[&LISTED], []);
        let many = |n: u32| (Ipv4Addr::from(0x0800_0000 + n), 60);
        let flood: Vec<_> = (0..2000).map(many).collect();
        assert_eq!(book.learn(LISTED, "a.example.com", &flood, now), None);
        assert_eq!(book.open(now).len(), ANSWERS_MAX);
    }
}
