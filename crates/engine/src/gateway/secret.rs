//! Turns what opens a route into what is kept of it. The secret itself ends here.

use std::num::NonZeroU32;

use api::entry::RouteAuthRequest;
use ring::pbkdf2;
use sha2::{Digest, Sha256};
use wire::gateway::policy::RouteAuth;

use crate::error::Error;

/// Rounds of PBKDF2: some tens of milliseconds for each guess.
const ROUNDS: NonZeroU32 = NonZeroU32::MIN.saturating_add(99_999);

/// Refuses a name, password or token that is not fit to be one.
pub fn check(auth: &RouteAuthRequest) -> Result<(), Error> {
    let (fit, what) = match auth {
        RouteAuthRequest::Basic { user, password } => {
            let of_name = |c: char| !c.is_control() && c != ':';
            let named = (1..=64).contains(&user.chars().count()) && user.chars().all(of_name);
            let length = password.chars().count();
            let secret = (12..=256).contains(&length) && !password.chars().any(char::is_control);
            (
                named && secret,
                "a name has 1 to 64 characters without a colon, a password 12 to 256 without control characters",
            )
        }
        RouteAuthRequest::Token { token } => {
            let legal = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
            let fit = (20..=256).contains(&token.len()) && token.chars().all(legal);
            (
                fit,
                "a token has 20 to 256 letters, digits and - . _ ~ + / =",
            )
        }
    };
    if fit {
        return Ok(());
    }
    Err(Error::BadRequest {
        what: "the route's password or token is not fit to be one".into(),
        hint: what.into(),
    })
}

/// What is kept of a secret. `known` is what is kept already: the same secret stays the same.
pub fn keep(auth: &RouteAuthRequest, known: Option<&RouteAuth>, salt: [u8; 16]) -> RouteAuth {
    match auth {
        RouteAuthRequest::Token { token } => RouteAuth::Token {
            sha256: hex::encode(Sha256::digest(token)),
        },
        RouteAuthRequest::Basic { user, password } => {
            if let Some(known) = known
                && is_same(known, user, password)
            {
                return known.clone();
            }
            let mut hash = [0; 32];
            let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
            pbkdf2::derive(algorithm, ROUNDS, &salt, password.as_bytes(), &mut hash);
            RouteAuth::Basic {
                user: user.clone(),
                salt: hex::encode(salt),
                rounds: ROUNDS.get(),
                hash: hex::encode(hash),
            }
        }
    }
}

fn is_same(known: &RouteAuth, name: &str, password: &str) -> bool {
    let RouteAuth::Basic {
        user,
        salt,
        rounds,
        hash,
    } = known
    else {
        return false;
    };
    let (Ok(salt), Ok(hash), Some(rounds)) = (
        hex::decode(salt),
        hex::decode(hash),
        NonZeroU32::new(*rounds),
    ) else {
        return false;
    };
    let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
    name == user && pbkdf2::verify(algorithm, rounds, &salt, password.as_bytes(), &hash).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(password: &str) -> RouteAuthRequest {
        RouteAuthRequest::Basic {
            user: "anna".into(),
            password: password.into(),
        }
    }

    #[test]
    fn the_same_password_stays_the_same_and_nothing_kept_shows_it() {
        let first = keep(&basic("open sesame!"), None, [1; 16]);
        assert!(!serde_json::to_string(&first).unwrap().contains("sesame"));
        assert_eq!(keep(&basic("open sesame!"), Some(&first), [2; 16]), first);
        assert_ne!(keep(&basic("open sesame?"), Some(&first), [1; 16]), first);
    }

    #[test]
    fn what_is_fit() {
        let token = |token: &str| RouteAuthRequest::Token {
            token: token.into(),
        };
        for good in [basic("twelve chars"), token("0123456789abcdefghij")] {
            assert!(check(&good).is_ok(), "{good:?}");
        }
        for bad in [
            basic("short"),
            basic("with\nnewline in it"),
            token("short"),
            token(&"x y".repeat(9)),
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
