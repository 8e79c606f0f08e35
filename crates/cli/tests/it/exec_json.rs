//! `exec --json`: one call, one document, and failures of ours cannot be taken for the command's.

use std::process::Stdio;

use api::Problem;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::controller::{Controller, Seen, answer, problem};
use crate::{command, finish, proximity, proximity_with};

fn result(changes: Value) -> Value {
    let mut result = json!({
        "stdout": "", "stderr": "", "stdout_encoding": "utf-8", "stderr_encoding": "utf-8",
        "exit_code": 0, "signal": null, "timed_out": false, "truncated": false,
        "duration_ms": 1500, "channel": "lxc-attach",
    });
    for (key, value) in changes.as_object().unwrap() {
        result[key] = value.clone();
    }
    result
}

fn check(reply: impl Fn(&Seen) -> Response + Send + Sync + 'static, code: i32, said: &str) {
    let controller = Controller::start(reply);
    let ran = proximity(&controller.url, &["exec", "web", "--json", "--", "id"]);
    assert_eq!(ran.code, Some(code), "{}", ran.stderr);
    assert!(ran.stderr.contains(said), "{said:?} in {:?}", ran.stderr);
    assert_eq!(
        controller.lines(),
        ["POST /instances/web/exec"],
        "sent once"
    );
    let _ = ran.json();
}

#[test]
fn bytes_pass_through_both_ways() {
    let controller = Controller::start(|seen| {
        let request = seen.json();
        assert_eq!(request["stdin"], "AP9hCg==");
        assert_eq!(request["stdin_encoding"], "base64");
        let changes = json!({
            "stdout": "AP8NCgo=", "stdout_encoding": "base64",
            "stderr": "warn\u{1b}[31m\r\n\n", "exit_code": 7,
        });
        answer(200, result(changes))
    });
    let args = ["exec", "--json", "web", "--", "cat"];
    let ran = proximity_with(&controller.url, &args, b"\0\xffa\n");
    assert_eq!(ran.code, Some(7));
    assert_eq!(ran.json()["stdout"], "AP8NCgo=");
    assert_eq!(ran.json()["stderr"], "warn\u{1b}[31m\r\n\n");
}

#[test]
fn flags_become_the_request_and_words_stay_words() {
    let controller = Controller::start(|_| answer(200, result(json!({}))));
    let args = [
        "exec",
        "--json",
        "web",
        "-u",
        "www-data",
        "-w",
        "/srv",
        "-e",
        "A=1",
        "-e",
        "B=x y",
        "--timeout",
        "30s",
        "--channel",
        "agent",
        "--",
        "sh",
        "-c",
        "echo $A && id",
        "--json",
        "-u",
    ];
    let ran = proximity(&controller.url, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(
        controller.seen()[0].json(),
        json!({
            "argv": ["sh", "-c", "echo $A && id", "--json", "-u"],
            "env": { "A": "1", "B": "x y" },
            "cwd": "/srv", "user": "www-data", "timeout_ms": 30_000, "channel": "agent",
        })
    );
}

#[test]
fn every_end_of_a_command_has_its_code() {
    check(
        |_| answer(200, result(json!({ "exit_code": 127 }))),
        127,
        "",
    );
    check(
        |_| answer(200, result(json!({ "exit_code": null, "signal": 9 }))),
        137,
        "",
    );
    check(
        |_| {
            answer(
                200,
                result(json!({ "exit_code": null, "signal": 9, "timed_out": true })),
            )
        },
        124,
        "the deadline ended the command after 1.50 s",
    );
    check(
        |_| answer(200, result(json!({ "truncated": true }))),
        0,
        "output past 8 MiB was dropped",
    );
}

#[test]
fn failures_of_ours_have_codes_of_their_own() {
    check(
        |_| {
            problem(
                Problem::new(404, "not_found", "no instance web").hint("see `proximity app list`"),
            )
        },
        125,
        "hint: see `proximity app list`",
    );
    check(
        |_| problem(Problem::new(502, "outcome_unknown", "the channel broke")),
        123,
        "the channel broke",
    );
    check(
        |_| answer(200, result(json!({ "exit_code": null }))),
        123,
        "did not say how the command ended",
    );
    check(
        |_| answer(200, json!({ "stdout": "" })),
        123,
        "unexpected answer",
    );
    // The answer breaks off: the request is there, the command may have run.
    let cut = |_: &Seen| {
        let pieces = [Ok("{\"stdout\":"), Err(std::io::ErrorKind::ConnectionReset)];
        let pieces = pieces.map(|p| p.map_err(std::io::Error::from));
        Body::from_stream(futures::stream::iter(pieces)).into_response()
    };
    check(cut, 123, "was lost while waiting for the answer");
}

#[test]
fn a_connection_that_breaks_before_any_answer_leaves_the_outcome_unknown() {
    use std::io::Read as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let read = stream.read(&mut [0; 4096]).unwrap();
        drop(stream);
        // A second attempt would be the command run twice.
        listener.set_nonblocking(true).unwrap();
        read
    });
    let ran = proximity(&url, &["exec", "--json", "web", "--", "id"]);
    assert_eq!(ran.code, Some(123), "{}", ran.stderr);
    assert!(server.join().unwrap() > 0);
}

#[test]
fn too_much_input_runs_nothing() {
    let controller = Controller::start(|_| answer(200, result(json!({}))));
    let ran = proximity_with(
        &controller.url,
        &["exec", "--json", "web", "--", "cat"],
        &vec![0; (8 << 20) + 1],
    );
    assert_eq!(ran.code, Some(125));
    assert!(ran.stderr.contains("larger than 8 MiB"), "{}", ran.stderr);
    assert!(controller.lines().is_empty());
}

#[test]
fn as_much_as_is_allowed_passes() {
    let controller = Controller::start(|seen| {
        let stdin = seen.json()["stdin"].as_str().map(str::len);
        assert_eq!(stdin, Some(8 << 20));
        answer(200, result(json!({ "stdout": "\u{1}".repeat(8 << 20) })))
    });
    let args = ["exec", "--json", "web", "--", "cat"];
    let ran = proximity_with(&controller.url, &args, &vec![b'x'; 8 << 20]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // JSON writes each of these bytes as six.
    assert!(ran.stdout.len() > 6 * (8 << 20));
}

#[test]
fn standard_input_can_be_left_alone() {
    let controller = Controller::start(|seen| {
        assert_eq!(seen.json()["stdin"], Value::Null);
        answer(200, result(json!({})))
    });
    // A pipe that nobody closes would be waited for.
    let (_writer, reader) = {
        let (reader, writer) = std::io::pipe().unwrap();
        (writer, reader)
    };
    let mut run = command(
        &controller.url,
        &["exec", "--json", "web", "-n", "--", "id"],
    );
    run.stdin(Stdio::from(reader));
    assert_eq!(finish(run, None).code, Some(0));
}
