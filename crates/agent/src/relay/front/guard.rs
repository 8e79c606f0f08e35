//! Who may come in at a route with a password or a token.
//!
//! A password is checked by PBKDF2, which is slow on purpose: one at a time and away from the event
//! loop, so that a crowd of guessers holds up nobody's page. Credentials that were good once are known
//! by a keyed digest in memory, so that a page of fifty pictures costs one check. Who is wrong too often must wait
//! ([`super::failures`]). Keeps no credentials, and takes those of the gateway out of the request: the app behind it need not know them.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::HostName;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use ring::pbkdf2;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wire::gateway::policy::RouteAuth;

use super::failures::{self, Attempt, Failures};

/// A token beside an `Authorization` of the app's own.
const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-route-token");
/// How long a check may wait for its turn.
const TURN: Duration = Duration::from_secs(5);
/// Good credentials that are remembered; more, and all are forgotten.
const REMEMBERED: usize = 256;
/// Rounds that a state may ask for.
pub const ROUNDS: std::ops::RangeInclusive<u32> = 1_000..=1_000_000;

/// What became of a request's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They are good, and out of the request.
    In,
    /// They are missing or wrong.
    Out,
    /// Too many are being checked.
    Busy,
    /// Their source has been wrong too often; how long it must wait.
    Wait(Duration),
}

/// The one guard of all routes.
pub struct Guard {
    /// Makes the remembered digests worthless outside this process.
    key: [u8; 32],
    good: Mutex<BTreeSet<[u8; 32]>>,
    failures: Failures,
    turn: Arc<Semaphore>,
}

impl Guard {
    /// A guard that knows nobody yet; an error when there is no randomness.
    pub fn new() -> std::io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(std::io::Error::other)?;
        Ok(Self {
            key,
            good: Mutex::default(),
            failures: Failures::default(),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// Checks the credentials that `headers` bring to the route `host`, and takes them out when they are good. Wrong
    /// ones count against their source; a request without any is no guess.
    pub async fn admit(
        &self,
        host: &HostName,
        auth: &RouteAuth,
        headers: &mut HeaderMap,
    ) -> Verdict {
        let attempt = (failures::source(headers), host.clone());
        if let Some(wait) = self.failures.wait(&attempt, Instant::now()) {
            return Verdict::Wait(wait);
        }
        match auth {
            RouteAuth::Token { sha256 } => {
                let brought = [AUTHORIZATION, TOKEN_HEADER];
                let brought = brought.iter().any(|name| headers.contains_key(name));
                let verdict = admit_token(sha256, headers);
                if brought {
                    self.count(&attempt, verdict);
                }
                verdict
            }
            RouteAuth::Basic { .. } if !headers.contains_key(AUTHORIZATION) => Verdict::Out,
            RouteAuth::Basic {
                user,
                salt,
                rounds,
                hash,
            } => {
                let Some(password) = basic(headers, user) else {
                    self.count(&attempt, Verdict::Out);
                    return Verdict::Out;
                };
                let known = self.digest(&[salt, hash, &password]);
                if !self.remembers(&known) {
                    match self.check(&attempt, salt, *rounds, hash, password).await {
                        Verdict::In => self.remember(known),
                        other => return other,
                    }
                }
                headers.remove(AUTHORIZATION);
                Verdict::In
            }
        }
    }

    fn count(&self, attempt: &Attempt, verdict: Verdict) {
        match verdict {
            Verdict::In => self.failures.forgive(attempt),
            Verdict::Out => self.failures.failed(attempt, Instant::now()),
            Verdict::Busy | Verdict::Wait(_) => {}
        }
    }

    async fn check(
        &self,
        attempt: &Attempt,
        salt: &str,
        rounds: u32,
        hash: &str,
        password: String,
    ) -> Verdict {
        let (Ok(salt), Ok(hash)) = (hex::decode(salt), hex::decode(hash)) else {
            return Verdict::Out;
        };
        let Some(rounds) = NonZeroU32::new(rounds) else {
            return Verdict::Out;
        };
        let Ok(Ok(turn)) = timeout(TURN, self.turn.clone().acquire_owned()).await else {
            return Verdict::Busy;
        };
        // A crowd of guesses that waited together is counted one by one.
        if let Some(wait) = self.failures.wait(attempt, Instant::now()) {
            return Verdict::Wait(wait);
        }
        let check = tokio::task::spawn_blocking(move || {
            let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
            let verified = pbkdf2::verify(algorithm, rounds, &salt, password.as_bytes(), &hash);
            (verified.is_ok(), turn)
        });
        // The turn ends after it is counted.
        let (verdict, _turn) = match check.await {
            Ok((true, turn)) => (Verdict::In, Some(turn)),
            Ok((false, turn)) => (Verdict::Out, Some(turn)),
            Err(_) => (Verdict::Busy, None),
        };
        self.count(attempt, verdict);
        verdict
    }

    fn digest(&self, parts: &[&str]) -> [u8; 32] {
        let mut digest = Sha256::new_with_prefix(self.key);
        for part in parts {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    fn remembers(&self, digest: &[u8; 32]) -> bool {
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.contains(digest)
    }

    fn remember(&self, digest: [u8; 32]) {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.len() >= REMEMBERED {
            good.clear();
        }
        good.insert(digest);
    }
}

/// The password in an `Authorization: Basic` for `user`.
fn basic(headers: &HeaderMap, user: &str) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(credentials.trim()).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    let (name, password) = pair.split_once(':')?;
    bool::from(name.as_bytes().ct_eq(user.as_bytes())).then(|| password.to_owned())
}

fn admit_token(sha256: &str, headers: &mut HeaderMap) -> Verdict {
    let Ok(wanted) = hex::decode(sha256) else {
        return Verdict::Out;
    };
    let is_ours = |token: &str| bool::from(Sha256::digest(token)[..].ct_eq(&wanted));
    for (name, scheme) in [(TOKEN_HEADER, ""), (AUTHORIZATION, "bearer ")] {
        let token = headers.get(&name).and_then(|v| after(v, scheme));
        if token.is_some_and(is_ours) {
            headers.remove(name);
            return Verdict::In;
        }
    }
    Verdict::Out
}

/// What stands behind a scheme, whose case does not matter.
fn after<'a>(value: &'a HeaderValue, scheme: &str) -> Option<&'a str> {
    let text = value.to_str().ok()?;
    let (begin, rest) = text.split_at_checked(scheme.len())?;
    begin.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(name, HeaderValue::from_str(value).unwrap());
        map
    }

    fn host() -> HostName {
        "web.prox.local".parse().unwrap()
    }

    fn password() -> RouteAuth {
        let (salt, rounds) = ([7u8; 16], NonZeroU32::new(1000).unwrap());
        let mut hash = [0u8; 32];
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(algorithm, rounds, &salt, b"open: sesame", &mut hash);
        RouteAuth::Basic {
            user: "anna".into(),
            salt: hex::encode(salt),
            rounds: rounds.get(),
            hash: hex::encode(hash),
        }
    }

    #[tokio::test]
    async fn a_password_lets_in_and_stays_outside() {
        let guard = Guard::new().unwrap();
        let check = async |value: &str, verdict| {
            let mut map = headers("authorization", value);
            assert_eq!(
                guard.admit(&host(), &password(), &mut map).await,
                verdict,
                "{value}"
            );
            let taken = verdict == Verdict::In;
            assert_eq!(map.get(AUTHORIZATION).is_none(), taken, "{value}");
        };
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        check(&basic("anna:open: sesame"), Verdict::In).await;
        check(&basic("anna:open: sesame"), Verdict::In).await;
        check(
            &basic("anna:open: sesame").replace("Basic", "bAsIc"),
            Verdict::In,
        )
        .await;
        for wrong in ["anna:open", "bert:open: sesame", "anna", ":", "anna:"] {
            check(&basic(wrong), Verdict::Out).await;
        }
        for broken in ["Basic", "Basic !!!", "Bearer abc", ""] {
            check(broken, Verdict::Out).await;
        }
        let mut nothing = HeaderMap::new();
        assert_eq!(
            guard.admit(&host(), &password(), &mut nothing).await,
            Verdict::Out
        );
    }

    #[tokio::test]
    async fn a_changed_password_forgets_who_was_in() {
        let guard = Guard::new().unwrap();
        let value = format!("Basic {}", STANDARD.encode("anna:open: sesame"));
        let mut map = headers("authorization", &value);
        assert_eq!(
            guard.admit(&host(), &password(), &mut map).await,
            Verdict::In
        );
        let RouteAuth::Basic {
            user, salt, rounds, ..
        } = password()
        else {
            unreachable!()
        };
        let hash = hex::encode([1u8; 32]);
        let other = RouteAuth::Basic {
            user,
            salt,
            rounds,
            hash,
        };
        let mut map = headers("authorization", &value);
        assert_eq!(guard.admit(&host(), &other, &mut map).await, Verdict::Out);
    }

    #[tokio::test]
    async fn a_token_lets_in_by_either_header() {
        let guard = Guard::new().unwrap();
        let sha256 = hex::encode(Sha256::digest("s3cret"));
        let token = RouteAuth::Token { sha256 };
        for (name, value, verdict) in [
            ("authorization", "Bearer s3cret", Verdict::In),
            ("authorization", "bearer  s3cret", Verdict::In),
            ("x-route-token", "s3cret", Verdict::In),
            ("authorization", "Bearer other", Verdict::Out),
            ("authorization", "s3cret", Verdict::Out),
            ("x-route-token", "", Verdict::Out),
        ] {
            let mut map = headers(name, value);
            assert_eq!(
                guard.admit(&host(), &token, &mut map).await,
                verdict,
                "{value}"
            );
            assert_eq!(map.is_empty(), verdict == Verdict::In);
        }
        // The app's own credentials go through beside the gateway's.
        let mut map = headers("authorization", "Bearer of-the-app");
        map.insert(TOKEN_HEADER, HeaderValue::from_static("s3cret"));
        assert_eq!(guard.admit(&host(), &token, &mut map).await, Verdict::In);
        assert_eq!(map[AUTHORIZATION], "Bearer of-the-app");
    }

    fn guess(source: &str, name: &'static str, value: &str) -> HeaderMap {
        let mut map = headers(name, value);
        map.insert("x-forwarded-for", HeaderValue::from_str(source).unwrap());
        map
    }

    #[tokio::test]
    async fn guessing_ends_after_ten_even_when_all_come_at_once() {
        let guard = Guard::new().unwrap();
        let (host, auth) = (host(), password());
        let basic =
            |password: &str| format!("Basic {}", STANDARD.encode(format!("anna:{password}")));
        let tries = (0..40).map(|n| {
            let (guard, host, auth) = (&guard, &host, &auth);
            let mut map = guess("192.0.2.1", "authorization", &basic(&format!("guess {n}")));
            async move { guard.admit(host, auth, &mut map).await }
        });
        let verdicts = futures::future::join_all(tries).await;
        let wrong = verdicts.iter().filter(|v| **v == Verdict::Out).count();
        assert_eq!(wrong, 10, "{verdicts:?}");
        let waits = |v: &&Verdict| matches!(v, Verdict::Wait(_));
        assert_eq!(verdicts.iter().filter(waits).count(), 30);
        let mut right = guess("192.0.2.1", "authorization", &basic("open: sesame"));
        let verdict = guard.admit(&host, &auth, &mut right).await;
        assert!(waits(&&verdict), "{verdict:?}");
        let mut right = guess("192.0.2.2", "authorization", &basic("open: sesame"));
        assert_eq!(guard.admit(&host, &auth, &mut right).await, Verdict::In);
    }

    #[tokio::test]
    async fn tokens_are_counted_and_who_brings_none_is_not() {
        let guard = Guard::new().unwrap();
        let token = RouteAuth::Token {
            sha256: hex::encode(Sha256::digest("s3cret")),
        };
        for _ in 0..20 {
            let mut none = guess("192.0.2.1", "accept", "*/*");
            assert_eq!(guard.admit(&host(), &token, &mut none).await, Verdict::Out);
            let mut none = guess("192.0.2.1", "accept", "*/*");
            assert_eq!(
                guard.admit(&host(), &password(), &mut none).await,
                Verdict::Out
            );
        }
        for n in 0..12 {
            let mut wrong = guess("192.0.2.1", "x-route-token", "guess");
            let verdict = guard.admit(&host(), &token, &mut wrong).await;
            assert_eq!(verdict == Verdict::Out, n < 10, "{n} {verdict:?}");
        }
    }
}
