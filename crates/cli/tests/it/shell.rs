//! `shell`: a terminal that works in the guest and is left as it was found, whatever ends it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use api::session::{SessionControl, Stream, WindowSize};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::guest::{Guest, Said, Session};
use crate::terminal::{echoes, terminal, wait_until};
use crate::{command, proximity};

/// What can be compared of a terminal's settings.
fn settings(terminal: &File) -> String {
    let Termios {
        input_modes,
        output_modes,
        control_modes,
        local_modes,
        ..
    } = tcgetattr(terminal).unwrap();
    format!("{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?}")
}

fn resize(terminal: &File, rows: u16, cols: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

/// A shell on a terminal that is its own, so that its size can change.
fn open(guest: &Guest, terminal: &File) -> Child {
    resize(terminal, 24, 80);
    let ours = command(&guest.url, &[]);
    let mut run = Command::new("setsid");
    run.arg("--ctty")
        .arg(ours.get_program())
        .args(["shell", "web"]);
    run.env_clear()
        .env("PROXIMITY_URL", &guest.url)
        .env("PATH", "/usr/bin:/bin")
        .env("TERM", "screen");
    let stream = || Stdio::from(terminal.try_clone().unwrap());
    run.stdin(stream()).stdout(stream()).stderr(Stdio::piped());
    run.spawn().unwrap()
}

fn prompt(person: &mut File) {
    let mut shown = [0; 2];
    person.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"# ");
}

async fn stays(session: &mut Session) {
    session.say(Stream::Stdout, b"# ").await;
    while session.hear().await != Said::Closed {}
}

#[test]
fn keys_and_sizes_go_to_the_guest_and_its_exit_code_comes_back() {
    let guest = Guest::start(|session| {
        Box::pin(async {
            session.say(Stream::Stdout, b"# ").await;
            let mut typed = Vec::new();
            while typed != b"exit\r\x03" {
                match session.hear().await {
                    Said::Stdin(bytes) => typed.extend(bytes),
                    other => panic!("{other:?}"),
                }
            }
            session.say(Stream::Stdout, b"now").await;
            let resized = SessionControl::Resize {
                rows: 50,
                cols: 132,
            };
            assert_eq!(session.hear().await, Said::Control(resized));
            session.exit(Some(5), None).await;
        })
    });
    let (mut person, program) = terminal();
    let before = settings(&program);
    let mut child = open(&guest, &program);
    prompt(&mut person);
    assert!(!echoes(&program), "raw");
    person.write_all(b"exit\r\x03").unwrap();
    person.read_exact(&mut [0; 3]).unwrap();
    resize(&person, 50, 132);
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(settings(&program), before);
    let start = &guest.starts()[0];
    assert_eq!(start.tty, Some(WindowSize { rows: 24, cols: 80 }));
    assert_eq!(start.exec.env["TERM"], "screen");
    assert_eq!(
        start.exec.argv,
        ["/bin/sh", "-c", r#"exec "${SHELL:-/bin/sh}" -l"#]
    );
}

#[test]
fn the_terminal_is_put_back_whatever_ends_the_shell() {
    let check = |what: &str, end: &dyn Fn(&mut File, &Child), code: i32| {
        let guest = Guest::start(move |session| Box::pin(stays(session)));
        let (mut person, program) = terminal();
        let before = settings(&program);
        let mut child = open(&guest, &program);
        prompt(&mut person);
        assert_ne!(settings(&program), before);
        end(&mut person, &child);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{what}");
        assert_eq!(settings(&program), before, "{what}");
        wait_until("the session is closed", || {
            guest.last_heard() == [Said::Closed]
        });
    };
    let by = |signal| {
        move |_: &mut File, child: &Child| {
            kill_process(Pid::from_child(child), signal).unwrap();
        }
    };
    check("TERM", &by(Signal::TERM), 143);
    check("HUP", &by(Signal::HUP), 129);
    check("INT", &by(Signal::INT), 130);
    check("QUIT", &by(Signal::QUIT), 131);
    let leave = |person: &mut File, _: &Child| person.write_all(b"ls\r~.").unwrap();
    check("~.", &leave, 130);
}

#[test]
fn a_session_that_breaks_off_is_no_success() {
    let guest = Guest::start(|session| {
        Box::pin(async {
            session.say(Stream::Stdout, b"# ").await;
            session.close().await;
        })
    });
    let (mut person, program) = terminal();
    let before = settings(&program);
    let mut child = open(&guest, &program);
    prompt(&mut person);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(settings(&program), before);
}

#[test]
fn without_a_terminal_or_a_controller_there_is_no_shell() {
    let ran = proximity("http://127.0.0.1:1", &["shell", "web"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("proximity exec web"), "{}", ran.stderr);
    let (_person, program) = terminal();
    let before = settings(&program);
    let mut run = command("http://127.0.0.1:1", &["shell", "web"]);
    run.stdin(Stdio::from(program.try_clone().unwrap()));
    let output = run.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(settings(&program), before);
}
