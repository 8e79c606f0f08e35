//! `exec`: streams and exit codes pass through as they come, and failures of ours cannot be taken for the
//! command's.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use api::Problem;
use api::exec::ExecEvent;
use api::session::{SessionControl, Stream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::controller::{Controller, answer, problem};
use crate::guest::{Guest, Said, Session};
use crate::terminal::wait_until;
use crate::{command, finish, proximity, proximity_with};

const ID: [&str; 4] = ["exec", "web", "--", "id"];

/// Says back what it hears, then ends with 7.
async fn cat(session: &mut Session) {
    loop {
        match session.hear().await {
            Said::Stdin(bytes) => session.say(Stream::Stdout, &bytes).await,
            Said::Control(SessionControl::StdinEof) => break,
            other => panic!("{other:?}"),
        }
    }
    session.say(Stream::Stderr, b"warn\x1b[31m\r\n\n").await;
    session.exit(Some(7), None).await;
}

#[test]
fn bytes_pass_through_both_ways_however_many() {
    let guest = Guest::start(|session| Box::pin(cat(session)));
    let large: Vec<u8> = (0..5u32 << 20).flat_map(u32::to_le_bytes).collect();
    for bytes in [&b""[..], b"\0\xffa\r\n\n", &large] {
        let ran = proximity_with(&guest.url, &["exec", "web", "--", "cat"], bytes);
        assert_eq!(ran.code, Some(7), "{}", ran.stderr);
        assert!(ran.stdout == bytes);
        assert_eq!(ran.stderr, "warn\u{1b}[31m\r\n\n");
    }
}

#[test]
fn output_comes_while_input_is_open() {
    let guest = Guest::start(|session| {
        Box::pin(async {
            session.say(Stream::Stdout, b"name? ").await;
            let name = session.hear().await;
            assert_eq!(name, Said::Stdin(b"me\n".to_vec()));
            session.say(Stream::Stdout, b"hello me\n").await;
            session.exit(Some(0), None).await;
        })
    });
    let mut run = command(&guest.url, &["exec", "web", "--", "ask"]);
    let mut child = run
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut question = [0; 6];
    stdout.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"name? ");
    stdin.write_all(b"me\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "hello me\n");
    // It does not wait for the end of an input that nobody reads any more.
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn flags_become_the_start_and_words_stay_words() {
    let guest = Guest::start(|session| Box::pin(session.exit(Some(0), None)));
    let line = "exec web -u www-data -w /srv -e A=1 --timeout 30s --channel agent -n --";
    let args: Vec<&str> = line
        .split(' ')
        .chain(["sh", "-c", "echo $A && id", "--json", "-u"])
        .collect();
    let ran = proximity(&guest.url, &args);
    assert_eq!((ran.code, ran.out()), (Some(0), ""), "{}", ran.stderr);
    assert_eq!(
        serde_json::to_value(&guest.starts()[0]).unwrap(),
        json!({ "exec": {
            "argv": ["sh", "-c", "echo $A && id", "--json", "-u"],
            "env": { "A": "1" },
            "cwd": "/srv", "user": "www-data", "timeout_ms": 30_000, "channel": "agent",
        }})
    );
}

#[test]
fn every_end_of_a_command_has_its_code() {
    let check = |event: Option<ExecEvent>, code: i32, said: &str| {
        let guest = Guest::start(move |session| {
            let event = event.clone();
            Box::pin(async {
                session.say(Stream::Stdout, b"out").await;
                match event {
                    Some(event) => session.event(event).await,
                    None => session.close().await,
                }
            })
        });
        let ran = proximity(&guest.url, &ID);
        assert_eq!((ran.code, ran.out()), (Some(code), "out"), "{}", ran.stderr);
        assert!(ran.stderr.contains(said), "{said:?} in {:?}", ran.stderr);
        assert_eq!(guest.starts().len(), 1, "run once");
    };
    let exit = |exit_code, signal, timed_out| {
        Some(ExecEvent::Exit {
            exit_code,
            signal,
            timed_out,
            duration_ms: 1500,
        })
    };
    let error = |code: &str| {
        Some(ExecEvent::Error {
            code: code.to_owned(),
            message: "no such user".to_owned(),
        })
    };
    check(exit(Some(0), None, false), 0, "");
    check(exit(Some(127), None, false), 127, "");
    check(exit(None, Some(9), false), 137, "");
    let deadline = "the deadline ended the command after 1.50 s";
    check(exit(None, Some(9), true), 124, deadline);
    check(exit(None, None, false), 123, "did not say how");
    check(error("nothing_ran"), 125, "no such user");
    check(error("outcome_unknown"), 123, "no such user");
    check(None, 123, "nobody said how the command did");
}

#[test]
fn without_a_session_nothing_ran() {
    let check = |url: &str, said: &str| {
        let ran = proximity(url, &ID);
        assert_eq!(ran.code, Some(125), "{}", ran.stderr);
        assert!(ran.stderr.contains(said), "{said:?} in {:?}", ran.stderr);
    };
    check("http://127.0.0.1:1", "cannot reach the controller");
    check("unix:/nonexistent/p.sock", "cannot reach the controller");
    let refused = Controller::start(|_| {
        let refusal = Problem::new(404, "not_found", "no instance web");
        problem(refusal.hint("see `proximity app list`"))
    });
    check(&refused.url, "hint: see `proximity app list`");
    assert_eq!(refused.lines(), ["GET /instances/web/session"]);
    let elsewhere = Controller::start(|_| answer(200, "hello"));
    check(&elsewhere.url, "unexpected answer");
    // A connection that ends before there is a session.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read(&mut [0; 4096]).unwrap()
    });
    check(&url, "cannot reach the controller");
    assert!(server.join().unwrap() > 0);
}

#[test]
fn the_token_opens_sessions_too() {
    let guest = Guest::start(|session| Box::pin(session.exit(Some(0), None)));
    let mut run = command(&guest.url, &ID);
    run.env("PROXIMITY_TOKEN", "prox_hunter2");
    assert_eq!(finish(run, None).code, Some(0));
    let mut run = command(&guest.url, &ID);
    run.env("PROXIMITY_TOKEN", "prox_wrong");
    assert_eq!(finish(run, None).code, Some(125));
}

#[test]
fn a_signal_closes_the_session() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let guest = Guest::start(|session| {
            Box::pin(async {
                session.say(Stream::Stdout, b"up").await;
                let eof = Said::Control(SessionControl::StdinEof);
                assert_eq!(session.hear().await, eof);
            })
        });
        let mut run = command(&guest.url, &["exec", "web", "-n", "--", "sleep", "9"]);
        let mut child = run
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 2])
            .unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{signal:?}");
        wait_until("the session is closed", || {
            guest.last_heard() == [Said::Closed]
        });
    }
}

#[test]
fn a_reader_that_goes_ends_an_endless_command() {
    let guest = Guest::start(|session| {
        Box::pin(async {
            loop {
                session.say(Stream::Stdout, &[b'y'; 60_000]).await;
                if session.is_closed() {
                    return;
                }
            }
        })
    });
    let mut run = command(&guest.url, &["exec", "web", "-n", "--", "yes"]);
    let mut child = run
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut [0; 1000])
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(141), &b""[..])
    );
}

#[test]
fn standard_input_can_be_left_alone() {
    let guest = Guest::start(|session| {
        Box::pin(async {
            assert_eq!(
                session.hear().await,
                Said::Control(SessionControl::StdinEof)
            );
            session.exit(Some(0), None).await;
        })
    });
    // A pipe that nobody closes would be waited for.
    let (_writer, reader) = {
        let (reader, writer) = std::io::pipe().unwrap();
        (writer, reader)
    };
    let mut run = command(&guest.url, &["exec", "web", "-n", "--", "id"]);
    run.stdin(Stdio::from(reader));
    assert_eq!(finish(run, None).code, Some(0));
}

#[test]
fn wrong_use_runs_nothing() {
    let guest = Guest::start(|session| Box::pin(session.exit(Some(0), None)));
    for args in [
        &["exec", "web"][..],
        &["exec", "web", "--bad", "--", "id"],
        &["exec", "Not_A_Name", "--", "id"],
        &["exec", "web", "-t", "--", "id"],
        &["exec", "web", "-t", "--json", "--", "id"],
        &["exec", "web", "--timeout", "soon", "--", "id"],
    ] {
        let ran = proximity(&guest.url, args);
        assert_eq!(ran.code, Some(125), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    }
    assert!(guest.starts().is_empty());
}
