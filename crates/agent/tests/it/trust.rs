//! Tokens and identities at a real agent with real TLS.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use agent::guest::{Guest, Options};
use agent::trust::Trust;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use tokio_rustls::TlsConnector;
use wire::agent::{Claims, Health, Scope};
use wire::identity::Bundle;

use crate::authority::{Authority, Controller, INSTANCE, claims, now, unsigned, write};
use crate::caller::{Caller, connector};

struct Lab {
    authority: Authority,
    connector: TlsConnector,
    address: SocketAddr,
}

async fn lab() -> Lab {
    let authority = Authority::new();
    let bundle = authority.bundle(INSTANCE, 3600);
    let options = Options {
        bundle: "/".into(),
        listen: Some(([127, 0, 0, 1], 0).into()),
        inside: None,
        unix: None,
    };
    let trust = Arc::new(Trust::new(&bundle).unwrap());
    let guest = Guest::start(&options, trust, Instant::now()).unwrap();
    let address = guest.address().unwrap();
    tokio::spawn(guest.serve());
    Lab {
        connector: connector(&authority.certificate),
        authority,
        address,
    }
}

impl Lab {
    async fn caller(&self) -> Caller {
        Caller::new(&self.connector, INSTANCE, self.address)
            .await
            .unwrap()
    }

    /// The answer to a token on the one route that needs one: its status and its problem's code.
    /// A token that passes gets as far as the body, which is none.
    async fn check(&self, token: &str, expect: (u16, &str)) {
        let mut caller = self.caller().await;
        for header in ["authorization", "x-access-token"] {
            let value = if header == "authorization" {
                format!("Bearer {token}")
            } else {
                token.to_owned()
            };
            let answer = caller
                .call("PUT", "/identity", &[(header, &value)], "{}")
                .await
                .unwrap();
            let found = (answer.status.as_u16(), answer.code());
            assert_eq!((found.0, found.1.as_str()), expect, "{token}");
            if found.0 == 401 || found.0 == 403 {
                assert!(answer.headers.contains_key("www-authenticate"));
            }
        }
    }
}

const PASSED: (u16, &str) = (422, "invalid_identity");
const INVALID: (u16, &str) = (401, "invalid_token");
const EXPIRED: (u16, &str) = (401, "expired_token");

fn good() -> Claims {
    claims(INSTANCE, &[Scope::Identity])
}

#[tokio::test]
async fn only_the_controllers_own_tokens_for_this_instance_count() {
    let lab = lab().await;
    let controller = &lab.authority.controller;
    let changed = |change: fn(&mut Claims)| {
        let mut claims = good();
        change(&mut claims);
        controller.sign(&claims)
    };
    lab.check(&controller.sign(&good()), PASSED).await;
    for (token, expect) in [
        (changed(|c| c.aud = "i-00000000000000a2".into()), INVALID),
        (changed(|c| c.aud = String::new()), INVALID),
        (changed(|c| c.aud.push('0')), INVALID),
        (
            changed(|c| (c.iat, c.exp) = (now() - 200, now() - 40)),
            EXPIRED,
        ),
        (
            changed(|c| (c.iat, c.exp) = (now() - 200, now() - 20)),
            PASSED,
        ),
        (
            changed(|c| (c.iat, c.exp) = (now() + 40, now() + 60)),
            INVALID,
        ),
        (
            changed(|c| (c.iat, c.exp) = (now() + 20, now() + 60)),
            PASSED,
        ),
        (changed(|c| c.exp = c.iat + 301), INVALID),
        (changed(|c| c.exp = c.iat - 1), INVALID),
        (changed(|c| c.exp = u64::MAX), INVALID),
        (
            changed(|c| c.scope = vec![Scope::Exec, Scope::Files]),
            (403, "missing_scope"),
        ),
        (changed(|c| c.scope = vec![]), (403, "missing_scope")),
        (
            changed(|c| c.scope = vec![Scope::Exec, Scope::Identity]),
            PASSED,
        ),
        (Controller::new().sign(&good()), INVALID),
        ("a.b.c".into(), INVALID),
        ("x".repeat(2049), INVALID),
    ] {
        lab.check(&token, expect).await;
    }
    let mut caller = lab.caller().await;
    let answer = caller.call("PUT", "/identity", &[], "").await.unwrap();
    assert_eq!(answer.code(), "no_token");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn the_tokens_own_words_choose_neither_algorithm_nor_claims() {
    let lab = lab().await;
    let controller = &lab.authority.controller;
    let text = serde_json::to_string(&good()).unwrap();
    let eddsa = r#"{"alg":"EdDSA"}"#;
    lab.check(&controller.sign_text(eddsa, &text), PASSED).await;
    // The public key is no secret: whoever signs with it as one must not be believed.
    let hs256 = unsigned(r#"{"alg":"HS256","typ":"JWT"}"#, &text);
    for secret in [
        controller.public_key().to_vec(),
        hex::encode(controller.public_key()).into_bytes(),
    ] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&key, hs256.as_bytes()));
        lab.check(&format!("{hs256}.{tag}"), INVALID).await;
    }
    for algorithm in [
        "none", "None", "NONE", "HS256", "ES256", "RS256", "eddsa", "",
    ] {
        let header = format!(r#"{{"alg":"{algorithm}"}}"#);
        lab.check(&format!("{}.", unsigned(&header, &text)), INVALID)
            .await;
        lab.check(&controller.sign_text(&header, &text), INVALID)
            .await;
    }
    let unsigned = unsigned(eddsa, &text);
    lab.check(&format!("{unsigned}."), INVALID).await;
    lab.check(&unsigned, INVALID).await;
    let own_key = r#"{"alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"AA"}}"#;
    lab.check(&Controller::new().sign_text(own_key, &text), INVALID)
        .await;
    let object = text.strip_suffix('}').unwrap();
    let (iat, exp) = (now(), now() + 60);
    for claims in [
        format!(r#"{object},"more":1}}"#),
        format!(r#"{object},"exp":{exp}}}"#),
        format!(r#"{{"aud":["{INSTANCE}"],"scope":["identity"],"iat":{iat},"exp":{exp}}}"#),
        format!(r#"{{"aud":"{INSTANCE}","scope":["identity"],"iat":{iat}}}"#),
        format!(r#"{{"aud":"{INSTANCE}","scope":["identity"],"exp":{exp}}}"#),
        format!(r#"{{"scope":["identity"],"iat":{iat},"exp":{exp}}}"#),
        format!(r#"{{"aud":"{INSTANCE}","scope":["root"],"iat":{iat},"exp":{exp}}}"#),
        format!(r#"{{"aud":"{INSTANCE}","scope":["identity"],"iat":{iat},"exp":-1}}"#),
        "null".into(),
    ] {
        lab.check(&controller.sign_text(eddsa, &claims), INVALID)
            .await;
    }
}

#[tokio::test]
async fn health_is_open_and_paths_that_are_not_there_are_problems() {
    let lab = lab().await;
    let mut caller = lab.caller().await;
    let answer = caller.call("GET", "/health", &[], "").await.unwrap();
    let health: Health = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        (health.status.as_str(), health.instance.as_str()),
        ("ok", INSTANCE)
    );
    for (method, path, expect) in [
        ("GET", "/", (404, "no_such_path")),
        ("POST", "/health", (405, "no_such_method")),
        ("GET", "/identity", (405, "no_such_method")),
    ] {
        let answer = caller.call(method, path, &[], "").await.unwrap();
        let found = (answer.status.as_u16(), answer.code());
        assert_eq!((found.0, found.1.as_str()), expect, "{method} {path}");
    }
    let token = lab.authority.controller.sign(&good());
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let large = "x".repeat(70_000);
    let answer = caller.call("PUT", "/identity", &headers, large).await;
    assert_eq!(answer.unwrap().code(), "body_too_large");
}

#[tokio::test]
async fn a_client_that_looks_finds_another_instances_certificate_out() {
    let lab = lab().await;
    let other = Caller::new(&lab.connector, "i-00000000000000a2", lab.address).await;
    assert!(
        other
            .err()
            .unwrap()
            .to_string()
            .contains("not valid for name")
    );
    let stranger = connector(&Authority::new().certificate);
    assert!(Caller::new(&stranger, INSTANCE, lab.address).await.is_err());
}

#[tokio::test]
async fn a_renewal_shows_at_the_next_handshake_and_breaks_no_connection() {
    let lab = lab().await;
    let mut open = lab.caller().await;
    let token = lab.authority.controller.sign(&good());
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let other = Authority::new();
    let refused = [
        lab.authority.bundle("i-00000000000000a2", 7200),
        lab.authority.bundle(INSTANCE, 1800),
        lab.authority.bundle(INSTANCE, -5),
        Bundle {
            authority: other.certificate.clone(),
            ..lab.authority.bundle(INSTANCE, 7200)
        },
    ];
    for bundle in refused {
        let body = serde_json::to_vec(&bundle).unwrap();
        let answer = open.call("PUT", "/identity", &headers, body).await.unwrap();
        assert_eq!(answer.code(), "invalid_identity");
        assert!(
            Caller::new(&lab.connector, INSTANCE, lab.address)
                .await
                .is_ok()
        );
    }
    // Another authority and another controller: nothing of the first must count any more.
    let body = serde_json::to_vec(&other.bundle(INSTANCE, 7200)).unwrap();
    let answer = open.call("PUT", "/identity", &headers, body).await.unwrap();
    assert_eq!(answer.status, 204);
    let answer = open.call("GET", "/health", &[], "").await.unwrap();
    assert_eq!(answer.status, 200, "the open connection goes on");
    let answer = open.call("PUT", "/identity", &headers, "{}").await.unwrap();
    assert_eq!(answer.code(), "invalid_token");
    let new = connector(&other.certificate);
    let mut caller = Caller::new(&new, INSTANCE, lab.address).await.unwrap();
    let answer = caller
        .with_token("PUT", "/identity", &other.controller.sign(&good()))
        .await;
    assert_eq!(answer.code(), "invalid_identity", "the new token counts");
    let fresh = connector(&lab.authority.certificate);
    assert!(Caller::new(&fresh, INSTANCE, lab.address).await.is_err());
}

/// Starts the agent with what is in `directory/bundle.json`; it must end by itself, with a message,
/// and without having made its socket.
fn refuses(directory: &std::path::Path, expect: &str) {
    let socket = directory.join("agent.sock");
    let output = Command::new(env!("CARGO_BIN_EXE_proximity-agent"))
        .args(["serve", "--listen", "127.0.0.1:0", "--bundle"])
        .arg(directory.join("bundle.json"))
        .arg("--unix")
        .arg(&socket)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(expect), "{message:?} lacks {expect:?}");
    assert!(!message.contains("PRIVATE") && !message.contains("ready"));
    assert!(!socket.exists());
}

#[test]
fn without_a_valid_bundle_no_socket_is_opened() {
    let authority = Authority::new();
    let good = || authority.bundle(INSTANCE, 3600);
    let check = |bundle: &Bundle, mode: u32, expect: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = write(directory.path(), bundle);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        refuses(directory.path(), expect);
    };
    check(&good(), 0o644, "its mode is 0644");
    check(&good(), 0o620, "its mode is 0620");
    check(&authority.bundle(INSTANCE, -5), 0o600, "has expired");
    let other = good();
    let mixed = [
        Bundle {
            key: other.key.clone(),
            ..good()
        },
        Bundle {
            authority: Authority::new().certificate,
            ..good()
        },
        Bundle {
            instance: "i-00000000000000a2".into(),
            ..good()
        },
        Bundle {
            instance: "a.b".into(),
            ..good()
        },
        Bundle {
            not_after: now() + 7200,
            ..good()
        },
        Bundle {
            controller: "00".into(),
            ..good()
        },
        Bundle {
            certificate: String::new(),
            ..good()
        },
        Bundle {
            key: zeroize::Zeroizing::new("x".into()),
            ..good()
        },
    ];
    let expect = [
        "does not belong to the certificate",
        "BadSignature",
        "not valid for name",
        "not one DNS label",
        "expired",
        "32 bytes in hex",
        "not a certificate",
        "PKCS #8",
    ];
    for (bundle, expect) in mixed.iter().zip(expect) {
        check(bundle, 0o600, expect);
    }
    let directory = tempfile::tempdir().unwrap();
    refuses(directory.path(), "cannot be read");
    let path = directory.path().join("bundle.json");
    std::fs::create_dir(&path).unwrap();
    refuses(directory.path(), "no regular file");
    std::fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink(write(tempfile::tempdir().unwrap().path(), &good()), &path).unwrap();
    refuses(directory.path(), "cannot be read");
    std::fs::remove_file(&path).unwrap();
    let path = write(directory.path(), &good());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen('{', r#"{"more":1,"#, 1)).unwrap();
    refuses(directory.path(), "malformed at line 1");
    std::fs::write(&path, "x".repeat(70_000)).unwrap();
    refuses(directory.path(), "larger than");
}
