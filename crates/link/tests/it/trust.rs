//! Who is refused: everybody who can't show the certificate of that very instance.

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::get;
use link::{Authority, Kind, LinkError};

use crate::lab::{Lab, healthy, id};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test]
async fn only_the_certificate_of_that_very_instance_counts() {
    let lab = Lab::new().await;
    let now = SystemTime::now();
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::open(elsewhere.path()).unwrap();
    let guest = &lab.peer.instance;
    let other = id("i-00000000000000a2");
    let cases = [
        (
            "another instance",
            lab.authority.bundle(Kind::Guest, &other, now),
        ),
        (
            "another authority",
            stranger.bundle(Kind::Guest, guest, now),
        ),
        (
            "the relays' authority",
            lab.authority.bundle(Kind::Relay, guest, now),
        ),
        (
            "expired",
            lab.authority.bundle(Kind::Guest, guest, now - 91 * DAY),
        ),
        (
            "not yet valid",
            lab.authority.bundle(Kind::Guest, guest, now + DAY),
        ),
    ];
    let router = Router::new().route("/health", get(async || healthy()));
    for (case, bundle) in cases {
        lab.serve(bundle.unwrap(), router.clone()).await;
        let error = lab.link.health(&lab.peer).await.unwrap_err();
        assert!(
            matches!(error, LinkError::Untrusted { .. }),
            "{case}: {error}"
        );
        assert!(!error.may_have_run());
    }
    lab.serve(lab.bundle(), router).await;
    lab.link.health(&lab.peer).await.unwrap();
}
