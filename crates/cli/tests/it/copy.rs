//! `cp`: files go both ways through the agent's own code, whole or not at all.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use axum::body::Body;
use axum::response::IntoResponse as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::controller::Controller;
use crate::guest::Guest;
use crate::terminal::wait_until;
use crate::{Ran, command, proximity};

struct Lab {
    guest: Guest,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for side in ["here", "there"] {
            fs::create_dir(dir.path().join(side)).unwrap();
        }
        let guest = Guest::start_unix(&dir.path().join("p.sock"));
        Self { guest, dir }
    }

    fn here(&self, name: &str) -> PathBuf {
        self.dir.path().join("here").join(name)
    }

    fn there(&self, name: &str) -> PathBuf {
        self.dir.path().join("there").join(name)
    }

    fn guest(&self, name: &str) -> String {
        format!("web:{}", self.there(name).display())
    }

    fn cp(&self, args: &[&str]) -> Ran {
        proximity(&self.guest.url, &[&["cp"], args].concat())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_go_there_and_back_with_their_permissions() {
    let lab = Lab::new();
    let large: Vec<u8> = (0..5u32 << 20).flat_map(u32::to_le_bytes).collect();
    for bytes in [&b""[..], b"\0\xff\r\n", &large] {
        let from = lab.here("file one");
        fs::write(&from, bytes).unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o4750)).unwrap();
        // A directory in the guest ends in a slash and takes the name.
        let ran = lab.cp(&[from.to_str().unwrap(), &lab.guest("")]);
        assert_eq!((ran.code, ran.out()), (Some(0), ""), "{}", ran.stderr);
        assert!(fs::read(lab.there("file one")).unwrap() == bytes);
        assert_eq!(mode(&lab.there("file one")), 0o750);

        fs::set_permissions(lab.there("file one"), Permissions::from_mode(0o4640)).unwrap();
        let to = lab.here("back");
        fs::create_dir_all(&to).unwrap();
        let ran = lab.cp(&[&lab.guest("file one"), to.to_str().unwrap(), "--json"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.json()["size_bytes"], bytes.len());
        assert!(fs::read(to.join("file one")).unwrap() == bytes);
        assert_eq!(mode(&to.join("file one")), 0o640);
        assert_eq!(names(&to), ["file one"]);
        assert_eq!(names(&lab.there("")), ["file one"]);
    }
}

#[test]
fn what_cannot_be_copied_is_refused_and_leaves_nothing() {
    let lab = Lab::new();
    fs::write(lab.here("f"), "new").unwrap();
    fs::create_dir(lab.there("dir")).unwrap();
    fs::write(lab.there("g"), "guest").unwrap();
    let here = |name: &str| lab.here(name).to_str().unwrap().to_owned();
    let check = |args: &[&str], code: i32, said: &str| {
        let ran = lab.cp(args);
        assert_eq!(
            (ran.code, ran.out()),
            (Some(code), ""),
            "{args:?}: {}",
            ran.stderr
        );
        assert!(ran.stderr.contains(said), "{said:?} in {:?}", ran.stderr);
        assert_eq!(names(&lab.here("")), ["f"]);
        assert_eq!(names(&lab.there("")), ["dir", "g"]);
    };
    check(
        &[&here("f"), &here("g")],
        2,
        "neither side is in an instance",
    );
    check(&[&lab.guest("g"), &lab.guest("h")], 2, "both sides");
    check(
        &["-r", &here(""), &lab.guest("x")],
        2,
        "| proximity exec NAME -- tar",
    );
    check(&[&here(""), &lab.guest("x")], 2, "tar");
    check(&[&here("none"), &lab.guest("x")], 1, "No such file");
    check(&["/dev/zero", &lab.guest("x")], 1, "no regular file");
    check(&[&here("f"), &lab.guest("dir")], 1, "/dir/");
    check(&[&here("f"), &lab.guest("none/f")], 1, "No such file");
    check(&[&lab.guest("none"), &here("x")], 1, "No such file");
    check(&[&lab.guest("dir"), &here("x")], 1, "is a directory");
    check(&[&lab.guest("g"), &here("none/x")], 1, "No such file");
    check(&[&lab.guest("g"), "/dev/null"], 1, "no regular file");
    check(
        &["-u", "nobody-here", &lab.guest("g"), &here("x")],
        1,
        "nobody-here",
    );
    check(&["web:g", &here("x")], 2, "not absolute");
    let ran = proximity("http://127.0.0.1:1", &["cp", &here("f"), "web:/x"]);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
}

/// A controller that answers a download with this.
fn download(digest: &'static str, cut: bool) -> Controller {
    Controller::start(move |_| {
        let end = cut.then(|| Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
        let pieces = [Ok("new"), Ok(" bytes")].into_iter().chain(end);
        let body = Body::from_stream(futures::stream::iter(pieces));
        let mut response = body.into_response();
        if !digest.is_empty() {
            let headers = response.headers_mut();
            headers.insert("repr-digest", digest.parse().unwrap());
        }
        response
    })
}

#[test]
fn a_download_that_nobody_vouches_for_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("f");
    fs::write(&to, "old").unwrap();
    let other = "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
    for (digest, cut, code, said) in [
        ("", false, 1, "without a digest"),
        (other, false, 1, "the digests differ"),
        (other, true, 3, "was lost"),
    ] {
        let controller = download(digest, cut);
        let ran = proximity(&controller.url, &["cp", "web:/f", to.to_str().unwrap()]);
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        assert!(ran.stderr.contains(said), "{said:?} in {:?}", ran.stderr);
        assert_eq!(fs::read(&to).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["f"]);
    }
}

#[test]
fn a_signal_leaves_no_half_file() {
    let lab = Lab::new();
    let sparse = fs::File::create(lab.there("big")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let to = lab.here("f");
    for signal in [Signal::INT, Signal::TERM] {
        let mut run = command(
            &lab.guest.url,
            &["cp", &lab.guest("big"), to.to_str().unwrap()],
        );
        let mut child = run.stderr(Stdio::piped()).spawn().unwrap();
        wait_until("it is written", || {
            names(&lab.here(""))
                .iter()
                .any(|name| fs::metadata(lab.here(name)).is_ok_and(|m| m.len() > 0))
        });
        kill_process(Pid::from_child(&child), signal).unwrap();
        let code = if signal == Signal::INT { 130 } else { 143 };
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(names(&lab.here("")), [""; 0]);
    }
    // The other way round the guest tidies up.
    fs::rename(lab.there("big"), lab.here("big")).unwrap();
    let from = lab.here("big");
    let mut run = command(
        &lab.guest.url,
        &["cp", from.to_str().unwrap(), &lab.guest("f")],
    );
    let mut child = run.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it is written", || !names(&lab.there("")).is_empty());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    wait_until("it is removed", || names(&lab.there("")).is_empty());
}
