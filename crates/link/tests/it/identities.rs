//! The controller's keys on its disk, and the certificates that are made by them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use link::identity::{LIFE, RENEW_BEFORE};
use link::{Authority, IdentityError, Kind, bundle_is_due};

use crate::lab::{GUEST, id};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_made_once_for_their_owner_only() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("identity");
    let now = SystemTime::now();
    let first = Authority::open(&dir).unwrap();
    let file = dir.join("authority.json");
    assert_eq!((mode(&dir), mode(&file)), (0o700, 0o600));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    let content = fs::read(&file).unwrap();

    let again = Authority::open(&dir).unwrap();
    assert_eq!(fs::read(&file).unwrap(), content);
    for kind in [Kind::Guest, Kind::Relay, Kind::Node] {
        let one = first.bundle(kind, &id(GUEST), now).unwrap();
        let other = again.bundle(kind, &id(GUEST), now).unwrap();
        assert_eq!(one.authority, other.authority);
        assert_eq!(one.controller, other.controller);
        assert_ne!(one.key, other.key);
    }
    let authorities = [Kind::Guest, Kind::Relay, Kind::Node]
        .map(|kind| first.bundle(kind, &id(GUEST), now).unwrap().authority);
    assert_ne!(authorities[0], authorities[1]);
    assert_ne!(authorities[1], authorities[2]);
    let debug = format!("{again:?}");
    assert!(!debug.contains("PRIVATE"), "{debug}");
}

#[test]
fn controllers_that_start_at_a_time_get_the_same_keys() {
    let dir = tempfile::tempdir().unwrap();
    let keys = std::thread::scope(|scope| {
        let open = || Authority::open(dir.path()).unwrap().tokens().public_key();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<std::collections::BTreeSet<_>>()
    });
    assert_eq!(keys.len(), 1);
}

#[test]
fn what_a_crash_left_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join(".authority.json.new"),
        "{\"version\": 1, \"gue",
    )
    .unwrap();
    Authority::open(dir.path()).unwrap();
    Authority::open(dir.path()).unwrap();
    assert_eq!(mode(&dir.path().join("authority.json")), 0o600);
}

#[test]
fn damaged_or_open_keys_are_an_error_and_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    Authority::open(dir.path()).unwrap();
    let file = dir.path().join("authority.json");
    let whole = fs::read_to_string(&file).unwrap();
    let (left, right) = whole.split_at(whole.find("relays").unwrap());
    let swapped = whole
        .replace("\"guests\"", "\"tmp\"")
        .replace("\"relays\"", "\"guests\"")
        .replace("\"tmp\"", "\"relays\"");
    let mixed = {
        let other = tempfile::tempdir().unwrap();
        Authority::open(other.path()).unwrap();
        let other = fs::read_to_string(other.path().join("authority.json")).unwrap();
        // Certificates of this controller with keys of another one.
        let certificates = |text: &str| {
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            json["guests"]["certificate"].clone()
        };
        let mut json: serde_json::Value = serde_json::from_str(&other).unwrap();
        json["guests"]["certificate"] = certificates(&whole);
        json.to_string()
    };
    for (case, content, expect) in [
        ("truncated", left.to_owned(), "ends too early"),
        ("empty", String::new(), "ends too early"),
        ("its end only", right.to_owned(), "not the JSON of keys"),
        (
            "another version",
            whole.replacen(": 1", ": 9", 1),
            "version 9",
        ),
        (
            "a key cut",
            whole.replacen("BEGIN PRIVATE KEY-----\\n", "", 1),
            "cannot be read",
        ),
        ("no pair", mixed, "no pair"),
    ] {
        fs::write(&file, &content).unwrap();
        let error = Authority::open(dir.path()).unwrap_err();
        assert!(
            matches!(error, IdentityError::Damaged { .. }),
            "{case}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(expect) && text.contains("backup"),
            "{case}: {text}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), content, "{case}");
    }
    // Authorities under each other's names hold together, but are not what they say: their names differ.
    fs::write(&file, &swapped).unwrap();
    assert!(matches!(
        Authority::open(dir.path()),
        Err(IdentityError::Damaged { .. })
    ));

    fs::write(&file, &whole).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let error = Authority::open(dir.path()).unwrap_err();
    assert!(
        matches!(error, IdentityError::Open { mode: 0o644, .. }),
        "{error}"
    );
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    Authority::open(dir.path()).unwrap();
}

#[test]
fn an_identity_is_due_when_a_third_of_its_life_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    let now = SystemTime::now();
    let bundle = authority.bundle(Kind::Guest, &id(GUEST), now).unwrap();
    assert_eq!(bundle.instance, GUEST);
    let due = now + LIFE - RENEW_BEFORE;
    let margin = Duration::from_secs(2);
    assert!(!bundle_is_due(&bundle, now));
    assert!(!bundle_is_due(&bundle, due - margin));
    assert!(bundle_is_due(&bundle, due + margin));
    assert!(bundle_is_due(&bundle, now + 2 * LIFE));
}
