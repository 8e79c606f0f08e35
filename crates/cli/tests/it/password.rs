//! `appliance password`: asked on a terminal that is left as it was found.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::controller::Controller;
use crate::terminal::{echoes, terminal, wait_until};
use crate::{command, proximity, proximity_with};

const PASSWORD: &str = "correct horse";

fn controller() -> Controller {
    Controller::start(|_| StatusCode::NO_CONTENT.into_response())
}

fn ask(controller: &Controller, terminal: &File) -> Child {
    let mut run = command(&controller.url, &["appliance", "password"]);
    run.stdin(Stdio::from(terminal.try_clone().unwrap()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = run.spawn().unwrap();
    wait_until("echo off", || !echoes(terminal));
    child
}

/// Reads from the program's standard error until it has asked.
fn wait_for(child: &mut Child, question: &str) -> String {
    let mut said = Vec::new();
    let stderr = child.stderr.as_mut().unwrap();
    while !said.ends_with(question.as_bytes()) {
        let mut byte = [0];
        assert_eq!(
            stderr.read(&mut byte).unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&said)
        );
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

#[test]
fn it_is_asked_twice_and_never_shown() {
    let controller = controller();
    let (mut person, program) = terminal();
    let mut child = ask(&controller, &program);
    wait_for(&mut child, "New password: ");
    writeln!(person, "{PASSWORD}").unwrap();
    wait_for(&mut child, "The same again: ");
    writeln!(person, "{PASSWORD}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(echoes(&program));
    assert!(!String::from_utf8_lossy(&output.stderr).contains(PASSWORD));
    let seen = controller.seen();
    assert_eq!(seen[0].line, "PUT /appliance/password");
    assert_eq!(seen[0].json()["password"], PASSWORD);
}

#[test]
fn two_different_ones_change_nothing() {
    let controller = controller();
    let (mut person, program) = terminal();
    let mut child = ask(&controller, &program);
    wait_for(&mut child, "New password: ");
    writeln!(person, "{PASSWORD}").unwrap();
    wait_for(&mut child, "The same again: ");
    writeln!(person, "{PASSWORD}!").unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(2));
    assert!(controller.lines().is_empty());
}

#[test]
fn ctrl_c_leaves_the_terminal_as_it_was() {
    let controller = controller();
    let (mut person, program) = terminal();
    let mut child = ask(&controller, &program);
    wait_for(&mut child, "New password: ");
    person.write_all(b"half\x03").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(echoes(&program));
    assert!(controller.lines().is_empty());
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let controller = controller();
        let (_person, program) = terminal();
        let mut child = ask(&controller, &program);
        wait_for(&mut child, "New password: ");
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(130), None));
        assert!(echoes(&program), "{signal:?}");
    }
}

#[test]
fn a_pipe_needs_the_flag() {
    let controller = controller();
    let ran = proximity(&controller.url, &["appliance", "password"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("--stdin"), "{}", ran.stderr);

    let args = ["appliance", "password", "--stdin"];
    let ran = proximity_with(&controller.url, &args, b"correct horse\n");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(controller.seen()[0].json()["password"], PASSWORD);

    let ran = proximity_with(&controller.url, &args, b"short\n");
    assert_eq!(ran.code, Some(2));
    assert_eq!(controller.lines().len(), 1);
}
