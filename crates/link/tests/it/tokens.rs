//! Tokens: what they say, and for how long they are used again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use link::Authority;
use link::token::LIFE_S;
use wire::agent::Scope;

use crate::lab::{APPLIANCE, GUEST};
use crate::verifier::claims;

#[test]
fn a_token_is_used_again_for_half_of_its_life() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    let tokens = authority.tokens();
    let now = SystemTime::now();
    let at = |seconds: u64, scope| {
        let header = tokens.bearer(GUEST, scope, now + Duration::from_secs(seconds));
        let header = header.unwrap();
        assert!(header.is_sensitive());
        header.to_str().unwrap().to_owned()
    };
    let first = at(0, Scope::Exec);
    assert_eq!(at(LIFE_S / 2 - 1, Scope::Exec), first);
    assert_ne!(at(0, Scope::Files), first);
    let second = at(LIFE_S / 2, Scope::Exec);
    assert_ne!(second, first);
    // A clock that was set back: the token in store is from the future.
    assert_ne!(at(0, Scope::Exec), second);
    tokens.forget(GUEST);

    let token = first.strip_prefix("Bearer ").unwrap();
    let said = claims(&tokens.public_key(), token, GUEST);
    let seconds = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!((said.iat, said.exp), (seconds, seconds + LIFE_S));
    assert_eq!((said.aud.as_str(), said.scope), (GUEST, vec![Scope::Exec]));
    assert_eq!((said.nonce, said.target), (None, None));
}

#[test]
fn tokens_of_tunnels_are_made_for_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    let tokens = authority.tokens();
    let target = "10.20.0.7:39383".parse().unwrap();
    let now = SystemTime::now();
    let token = tokens.tunnel(APPLIANCE, &[7; 16], target, now).unwrap();
    let other = tokens.tunnel(APPLIANCE, &[8; 16], target, now).unwrap();
    assert_ne!(token, other);
    let said = claims(&tokens.public_key(), &token, APPLIANCE);
    assert_eq!(said.nonce.as_deref(), Some("07".repeat(16).as_str()));
    assert_eq!(said.target.as_deref(), Some("10.20.0.7:39383"));
    assert_eq!(said.scope, [Scope::Tunnel]);
}
