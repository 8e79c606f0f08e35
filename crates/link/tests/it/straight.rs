//! Files straight, with the real agent's doors and files at the other end.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use agent::door::{self, Crowd, Limits};
use agent::trust::{Trust, require};
use link::{Kind, LinkError, StraightUpload};
use sha2::{Digest, Sha256};
use tokio::net::UnixListener;
use wire::agent::Scope;

use crate::lab::{Inside, Lab};

const LIMITS: Limits = Limits {
    proven: 8,
    unproven: 8,
};

/// A guest's agent as far as files go, on the socket inside.
async fn lab() -> Lab {
    let lab = Lab::new().await;
    let bundle = lab
        .authority
        .bundle(Kind::Guest, &lab.peer.instance, SystemTime::now());
    let trust = Arc::new(Trust::new(&bundle.unwrap()).unwrap());
    let router = require(agent::files::router(), &trust, Scope::Files);
    let path = lab.directory.path().join("inside");
    let listener = UnixListener::bind(&path).unwrap();
    *lab.inside.lock().unwrap() = Inside::Socket(path);
    tokio::spawn(door::accept(
        listener,
        Crowd::new(LIMITS),
        move |stream, seat| door::serve_tls(stream, seat, trust.clone(), router.clone()),
    ));
    lab
}

fn in_guest(lab: &Lab, name: &str) -> PathBuf {
    lab.directory.path().join(name)
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

async fn upload(
    lab: &Lab,
    name: &str,
    size_bytes: usize,
) -> Result<Option<StraightUpload>, LinkError> {
    let path = in_guest(lab, name);
    let (path, size) = (path.to_str().unwrap(), size_bytes as u64);
    lab.link
        .write_file_straight(&lab.peer, path, None, Some(0o640), size)
        .await
}

/// A caller who sends these bytes, and then has gone.
fn sends(pieces: Vec<Vec<u8>>) -> UnixStream {
    let (mut caller, ours) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        for piece in pieces {
            // A guest that takes no more is one of the cases.
            let _ = caller.write_all(&piece);
        }
    });
    ours
}

#[tokio::test]
async fn a_file_goes_there_and_back_whole() {
    let lab = lab().await;
    let bytes = content(3_000_000);
    let ready = upload(&lab, "file", bytes.len()).await.unwrap().unwrap();
    let from = sends(vec![bytes.clone(), digest(&bytes).to_vec()]);
    let written = ready.take(from).await.unwrap();
    assert_eq!(
        (written.size_bytes, written.sha256),
        (3_000_000, digest(&bytes))
    );
    let path = in_guest(&lab, "file");
    assert!(std::fs::read(&path).unwrap() == bytes);

    for offset in [0, 1_234_567] {
        let path = path.to_str().unwrap();
        let found = lab
            .link
            .read_file_straight(&lab.peer, path, None, offset as u64)
            .await;
        let mut found = found.unwrap().unwrap();
        assert_eq!((found.size_bytes, found.mode), (3_000_000, 0o640));
        assert_eq!(found.rest_bytes, 3_000_000 - offset as u64);
        let came = tokio::task::spawn_blocking(move || {
            let mut came = Vec::new();
            found.socket.read_to_end(&mut came).unwrap();
            came
        });
        let rest = &bytes[offset..];
        assert!(came.await.unwrap() == [rest, &digest(rest)].concat());
    }
    assert_eq!(lab.seen.tunnels(), 0, "nothing of it went by the relay");
}

#[tokio::test]
async fn a_file_that_is_not_whole_is_none() {
    let lab = lab().await;
    let bytes = content(100_000);
    let there = || in_guest(&lab, "file").exists();

    let ready = upload(&lab, "file", bytes.len()).await.unwrap().unwrap();
    let broken = ready
        .take(sends(vec![bytes[..50_000].to_vec()]))
        .await
        .unwrap_err();
    assert!(matches!(broken, LinkError::NothingRan { .. }), "{broken}");

    let ready = upload(&lab, "file", bytes.len()).await.unwrap().unwrap();
    let broken = ready.take(sends(vec![bytes.clone()])).await.unwrap_err();
    assert!(matches!(broken, LinkError::NothingRan { .. }), "{broken}");

    let ready = upload(&lab, "file", bytes.len()).await.unwrap().unwrap();
    let wrong = vec![bytes.clone(), vec![7; 32]];
    let refused = ready.take(sends(wrong)).await.unwrap_err();
    let LinkError::Refused { problem, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(problem.code, "digest_mismatch");
    assert!(!there());
    // What was begun is taken away, also when nobody hears of it.
    let until = std::time::Instant::now() + Duration::from_secs(10);
    let leftovers = || {
        let entries = std::fs::read_dir(lab.directory.path()).unwrap();
        entries
            .filter(|e| {
                e.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .ends_with(".part")
            })
            .count()
    };
    while leftovers() > 0 {
        assert!(std::time::Instant::now() < until, "a temporary file stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_the_agent_refuses_is_told_before_a_byte() {
    let lab = lab().await;
    let refused = upload(&lab, "no/such/file", 5).await.unwrap_err();
    assert!(matches!(refused, LinkError::Refused { problem, .. } if problem.code == "not_found"));
    let path = lab.directory.path().to_str().unwrap();
    let refused = lab.link.read_file_straight(&lab.peer, path, None, 0).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, LinkError::Refused { problem, .. } if problem.code == "is_a_directory")
    );
}

#[tokio::test]
async fn without_a_way_or_a_size_files_go_as_ever() {
    let lab = lab().await;
    // A file of the kernel says that it is empty.
    let found = lab
        .link
        .read_file_straight(&lab.peer, "/proc/self/status", None, 0)
        .await;
    assert!(found.unwrap().is_none());
    *lab.inside.lock().unwrap() = Inside::NoWay;
    assert!(upload(&lab, "file", 5).await.unwrap().is_none());
    assert_eq!(lab.seen.tunnels(), 0);
}
