//! `forward`: a port of this machine that leads to a port of the instance, here this machine's own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::guest::Guest;
use crate::{command, proximity};

/// Reads all, then answers it doubled.
fn doubler() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all.repeat(2)).unwrap();
            });
        }
    });
    port
}

/// Starts it; the local port is what it says first.
fn start(guest: &Guest, args: &[&str]) -> (Child, u16) {
    let mut run = command(&guest.url, &[&["forward"], args].concat());
    let mut child = run
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let port = line.trim().rsplit_once(':').unwrap().1.parse().unwrap();
    assert!(
        line.contains(&format!(" http://127.0.0.1:{port}")),
        "{line}"
    );
    (child, port)
}

#[test]
fn connections_are_led_both_ways_until_ctrl_c() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start_unix(&dir.path().join("p.sock"));
    let port = doubler();
    // The same port is taken, by the doubler itself.
    let (mut child, local) = start(&guest, &[&format!("web:{port}")]);
    assert_ne!(local, port);
    let sent: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == sent.repeat(2));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect(("127.0.0.1", local)).is_err());
}

#[test]
fn a_connection_that_is_refused_says_so_and_harms_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start_unix(&dir.path().join("p.sock"));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let (mut child, local) = start(&guest, &[&format!("web:{port}"), "0"]);
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(
        said.matches("nothing takes connections").count(),
        2,
        "{said}"
    );
}

#[test]
fn a_port_that_is_taken_and_a_controller_that_is_not_there_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start_unix(&dir.path().join("p.sock"));
    let taken = doubler().to_string();
    let ran = proximity(&guest.url, &["forward", "web:80", &taken]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains(&format!("127.0.0.1:{taken}")),
        "{}",
        ran.stderr
    );
    let ran = proximity("http://127.0.0.1:1", &["forward", "web:80"]);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    let ran = proximity(&guest.url, &["forward", "web"]);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
}
