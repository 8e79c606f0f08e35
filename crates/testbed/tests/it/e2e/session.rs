//! Commands in a sandbox and in an app, by every door: the command line with pipes and with a terminal,
//! the API with one answer and with a stream of events.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use api::exec::{Encoding, decode, encode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::controller::{Controller, finish};
use super::exec_end::{family, sleepers};
use super::processes::{Place, Where, in_guests, mark, marked};
use super::terminal::Terminal;
use super::{eventually, exec};

fn controller() -> Controller {
    let controller = Controller::up_through_relay();
    controller.sandbox("lab");
    controller
}

/// The bytes of a result's or an event's stream.
fn bytes(document: &Value, text: &str, encoding: &str) -> Vec<u8> {
    let encoding: Encoding = match &document[encoding] {
        Value::Null => Encoding::Utf8,
        given => serde_json::from_value(given.clone()).unwrap(),
    };
    decode(document[text].as_str().unwrap().to_owned(), encoding).unwrap()
}

fn run(controller: &Controller, guest: &str, request: &Value) -> (u16, Value) {
    controller.api("POST", &format!("/instances/{guest}/exec"), Some(request))
}

#[test]
fn bytes_and_ends_are_the_same_by_every_door() {
    let controller = controller();
    controller.deploy("web");
    let input = exec::awkward_bytes(3 << 20);
    let (text, encoding) = encode(input.clone());
    let cat = json!({ "argv": ["cat"], "stdin": text, "stdin_encoding": encoding });
    for guest in ["lab", "web"] {
        let (status, result) = run(&controller, guest, &cat);
        assert_eq!(
            (status, &result["channel"]),
            (200, &json!("agent")),
            "{guest}"
        );
        assert!(
            bytes(&result, "stdout", "stdout_encoding") == input,
            "{guest}"
        );

        let events = controller.events(guest, &cat);
        assert_eq!(events[0]["type"], "started", "{guest}");
        assert_eq!(events[0]["channel"], "agent", "{guest}");
        assert!(events[0]["pid"].as_u64().unwrap() > 1, "{guest}");
        let (exit, between) = events[1..].split_last().unwrap();
        assert_eq!(
            (&exit["type"], &exit["exit_code"]),
            (&json!("exit"), &json!(0))
        );
        let piece = |event: &Value| {
            assert_eq!(event["type"], "stdout", "{guest}");
            bytes(event, "data", "encoding")
        };
        assert!(
            between.iter().flat_map(piece).eq(input.iter().copied()),
            "{guest}"
        );

        let ran = controller.run_with(["exec", guest, "--", "cat"], &input);
        assert!(ran.expect(0).out == input, "{guest}");
    }

    // How commands end.
    for (argv, code, signal, exit) in [
        (&["true"][..], Some(0), None, 0),
        (&["sh", "-c", "exit 200"], Some(200), None, 200),
        (&["/etc/passwd"], Some(126), None, 126),
        (&["no-such-program"], Some(127), None, 127),
        (&["sh", "-c", "kill -KILL $$"], None, Some(9), 137),
    ] {
        let request = json!({ "argv": argv });
        let (status, result) = run(&controller, "lab", &request);
        let end = |document: &Value| {
            assert_eq!(document["timed_out"], false, "{argv:?}: {document}");
            assert_eq!(document["exit_code"], json!(code), "{argv:?}: {document}");
            assert_eq!(document["signal"], json!(signal), "{argv:?}: {document}");
        };
        assert_eq!(status, 200, "{result}");
        end(&result);
        end(controller.events("lab", &request).last().unwrap());
        let words = ["exec", "lab", "--"].into_iter();
        controller
            .run(words.chain(argv.iter().copied()))
            .expect(exit);
    }
    let late = json!({ "command": "echo early; sleep 60", "timeout_ms": 500 });
    let (_, result) = run(&controller, "lab", &late);
    assert_eq!(
        (&result["timed_out"], &result["stdout"]),
        (&json!(true), &json!("early\n"))
    );
    let events = controller.events("lab", &late);
    assert_eq!(events.last().unwrap()["timed_out"], true, "{events:?}");
    // What can't begin has not run.
    for request in [
        json!({ "argv": ["touch", "/ran"], "user": "nobody-here" }),
        json!({ "argv": ["touch", "/ran"], "cwd": "/no/such" }),
    ] {
        let (status, problem) = run(&controller, "lab", &request);
        assert_eq!(
            (status, &problem["code"]),
            (502, &json!("nothing_ran")),
            "{problem}"
        );
    }
    controller.exec("lab", ["test", "!", "-e", "/ran"]);

    let asked = [
        "exec",
        "lab",
        "-u",
        "www-data",
        "-w",
        "/srv",
        "-e",
        "WORD=a b=c",
        "--",
        "sh",
        "-c",
        r#"id -un; pwd; echo "$WORD""#,
    ];
    assert_eq!(controller.ok(asked), "www-data\n/srv\na b=c\n");
    // Of the guest's 256 processes a command may have what the guest itself leaves.
    for guest in ["web", "lab"] {
        let hundred = "for i in $(seq 100); do sleep 60 & done; jobs -r | wc -l; kill $(jobs -p)";
        let counted = controller.exec(guest, ["bash", "-c", hundred]);
        assert_eq!(counted.trim(), "100", "{guest}");
    }
    a_bomb_of_processes_ends_at_the_guests_limit(&controller);
}

fn a_bomb_of_processes_ends_at_the_guests_limit(controller: &Controller) {
    let bomb = mark("bomb");
    // Each that is made makes others, until none can be made, and stays.
    let script = "1 while defined fork; sleep 600";
    let request = json!({ "argv": ["perl", "-e", script, &bomb], "timeout_ms": 10_000 });
    let call = controller.call("POST", "/instances/web/exec", "", Some(&request));
    let count = || in_guests(controller, &bomb).len();
    // The agent answers all the while: that there is no room for another command.
    eventually("the guest is full", || {
        let (_, answer) = run(controller, "web", &json!({ "argv": ["true"] }));
        answer["code"] == "nothing_ran"
    });
    let full = count();
    assert!((150..=256).contains(&full), "{full} processes");
    let mut answer = String::new();
    call.unwrap().read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#""timed_out":true"#), "{answer}");
    eventually("the bomb is gone", || count() == 0);
    assert_eq!(controller.exec("web", ["echo", "well"]), "well\n");
}

#[test]
fn much_goes_in_and_out_and_guests_do_not_wait_for_each_other() {
    let controller = controller();
    controller.sandbox("den");
    // Twenty mebibytes through an open session, in pieces and with an end.
    let much = exec::awkward_bytes(20 << 20);
    let wanted = {
        let mut sum = controller.command(["sha256sum"]);
        sum.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = sum.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&much).unwrap();
        child.wait_with_output().unwrap().stdout
    };
    let ran = controller.run_with(["exec", "lab", "--", "sha256sum"], &much);
    assert_eq!(ran.expect(0).out, wanted);
    // A command that writes more than anybody keeps, to a reader that takes its time.
    let flood = ["exec", "lab", "--", "head", "-c", "20M", "/dev/zero"];
    assert_eq!(controller.run(flood).expect(0).out.len(), 20 << 20);
    let (_, result) = run(
        &controller,
        "lab",
        &json!({ "command": "head -c 9M /dev/zero" }),
    );
    assert_eq!(result["truncated"], true);
    assert_eq!(result["stdout"].as_str().unwrap().len(), 8 << 20);

    // Both at once: what one says is never the other's.
    let each = |guest: &str| {
        for number in 0..10 {
            let script = format!("hostname; echo {number}; exit {number}");
            let ran = controller.run(["exec", guest, "--", "sh", "-c", &script]);
            assert_eq!(ran.expect(number).text(), format!("{guest}\n{number}\n"));
        }
    };
    std::thread::scope(|scope| {
        for guest in ["lab", "den"] {
            scope.spawn(move || each(guest));
        }
    });
    // A guest that is stuck keeps nobody waiting in another.
    let request = json!({ "argv": ["sleep", "60"] });
    let stuck = controller.call("POST", "/instances/lab/exec", "", Some(&request));
    let began = Instant::now();
    controller.exec("den", ["true"]);
    assert!(began.elapsed() < Duration::from_secs(20));
    drop(stuck);
}

#[test]
fn whoever_asked_is_gone_and_so_is_the_whole_tree() {
    let controller = controller();
    // By its deadline, as the app's tree in `exec_end`; here process 1 is the agent.
    let tree = mark("deadline");
    let words = ["exec", "lab", "--timeout", "1s", "--", "bash", "-c"].into_iter();
    let script = family(&tree);
    controller.run(words.chain([script.as_str()])).expect(124);
    assert!(in_guests(&controller, &tree).is_empty());

    // By the caller's signal.
    for (signal, code) in [(Signal::INT, 130), (Signal::HUP, 129), (Signal::TERM, 143)] {
        let tree = mark("signal");
        let client = ["exec", "lab", "--", "bash", "-c", &family(&tree)];
        let mut client = controller.proximity(client).spawn().unwrap();
        eventually("the command runs", || sleepers(&controller, &tree) == 4);
        kill_process(Pid::from_child(&client), signal).unwrap();
        assert_eq!(client.wait().unwrap().code(), Some(code), "{signal:?}");
        eventually("the tree is gone", || {
            in_guests(&controller, &tree).is_empty()
        });
    }

    // By a caller of the API who hangs up, with one answer and with a stream.
    for accept in ["", "Accept: application/x-ndjson\r\n"] {
        let tree = mark("hangup");
        let request = json!({ "argv": ["bash", "-c", family(&tree)] });
        let call = controller.call("POST", "/instances/lab/exec", accept, Some(&request));
        eventually("the command runs", || sleepers(&controller, &tree) == 4);
        drop(call);
        eventually("the tree is gone", || {
            in_guests(&controller, &tree).is_empty()
        });
    }
    assert_eq!(controller.exec("lab", ["echo", "well"]), "well\n");
}

/// A line whose process carries the mark and goes as far as it can: another session, another parent, an
/// empty environment, another limit.
fn go_away(mark: &str) -> String {
    let away = format!("exec -a {mark}-away sleep 600");
    format!(
        "(ulimit -S -m unlimited; exec env -i setsid -f setsid -f bash -c '{away}' >/dev/null 2>&1)"
    )
}

/// The groups that the guest's agent made for commands, but for that of this look.
fn groups(controller: &Controller, guest: &str) -> usize {
    let look = "find /sys/fs/cgroup -type d -path '*/proximity-commands-*/*' | wc -l";
    let seen = controller.exec(guest, ["sh", "-c", look]);
    seen.trim().parse::<usize>().unwrap().saturating_sub(1)
}

#[test]
fn whoever_goes_as_far_as_it_can_ends_with_its_command() {
    let controller = controller();
    controller.deploy("web");
    for guest in ["lab", "web"] {
        let own = controller.exec(guest, ["grep", "^0::", "/proc/self/cgroup"]);
        if !own.contains("/proximity-commands-") {
            println!("SKIPPED: commands get no control groups in guests of this machine: {own}");
            return;
        }
        // By the deadline.
        let tree = mark("late");
        let line = format!("{}; sleep 600", go_away(&tree));
        let words = ["exec", guest, "--timeout", "2s", "--", "bash", "-c", &line];
        controller.run(words).expect(124);
        assert!(in_guests(&controller, &tree).is_empty(), "{guest}");
        // By a caller who is gone, while the command does not read its input.
        let tree = mark("gone");
        let line = format!("{}; sleep 600", go_away(&tree));
        let mut client = controller.proximity(["exec", guest, "--", "bash", "-c", &line]);
        client.stdin(File::open("/dev/zero").unwrap());
        let mut client = client.spawn().unwrap();
        let away = format!("{tree}-away\0600");
        eventually("it is away", || !in_guests(&controller, &away).is_empty());
        for process in marked(&controller, &tree, Where::CommandLine) {
            if process.place == Place::Node {
                process.kill();
            }
        }
        client.wait().unwrap();
        eventually("all of it is gone", || {
            in_guests(&controller, &tree).is_empty()
        });
        eventually("its group too", || groups(&controller, guest) == 0);
        // What a command that ended by itself has left stays, and outlives the agent.
        let tree = mark("left");
        controller.exec(guest, ["bash", "-c", &go_away(&tree)]);
        let away = format!("{tree}-away\0600");
        eventually("it is away", || !in_guests(&controller, &away).is_empty());
        eventually("it keeps its group", || groups(&controller, guest) == 1);
        if guest == "web" {
            // Nobody is left to say how this ended.
            let kill = "systemctl kill --kill-whom=main -s KILL proximity-agent";
            let words = ["exec", guest, "--", "sh", "-c", kill];
            controller.run(words).expect(123);
            eventually("the agent is back", || {
                controller.run(["exec", guest, "--", "true"]).code == 0
            });
            eventually("it keeps its group", || groups(&controller, guest) == 1);
        }
        for process in in_guests(&controller, &away) {
            process.kill();
        }
        eventually("its group is gone", || groups(&controller, guest) == 0);
    }
}

/// The command line on a terminal that is its own, so that sizes and signals of the terminal reach it.
fn on_a_terminal(controller: &Controller, words: &[&str]) -> Command {
    let mut command = controller.command(["setsid", "--ctty", "--wait"]);
    command.arg(super::programs::proximity()).args(words);
    command.env("TERM", "screen");
    command
}

#[test]
fn a_terminal_works_and_is_put_back() {
    let controller = controller();
    controller.deploy("web");
    for guest in ["lab", "web"] {
        let mut terminal = Terminal::open(33, 101);
        let before = terminal.settings();
        let script =
            "stty size; tty; echo $TERM; echo ready; read a; stty size; echo got-$a; exit 7";
        let words = ["exec", guest, "-t", "--", "sh", "-c", script];
        let mut child = terminal.start(on_a_terminal(&controller, &words));
        let shown = terminal.until_shown("ready");
        assert!(shown.contains("33 101\r\n/dev/pts/"), "{shown}");
        assert!(shown.contains("screen\r\n"), "{shown}");
        assert_ne!(
            terminal.settings(),
            before,
            "keys go to the guest as they are"
        );
        terminal.resize(50, 132);
        // Nothing says when the new size has arrived but the size.
        eventually("the guest's terminal has the new size", || {
            let look = "for t in /dev/pts/[0-9]*; do stty -F $t size; done";
            controller
                .exec(guest, ["sh", "-c", look])
                .contains("50 132")
        });
        terminal.type_in(b"word\r");
        let shown = terminal.until_shown("got-word");
        assert!(shown.contains("50 132\r\n"), "{shown}");
        assert_eq!(child.wait().unwrap().code(), Some(7), "{guest}");
        assert_eq!(terminal.settings(), before, "{guest}");
    }

    // A login shell: Ctrl-C is for what runs in it, its children end with it.
    let mut terminal = Terminal::open(24, 80);
    let before = terminal.settings();
    let mut child = terminal.start(on_a_terminal(&controller, &["shell", "lab"]));
    terminal.until_shown("# ");
    let tree = mark("shell");
    let sleep = format!("bash -c 'exec -a {tree}-front sleep 600'\r");
    terminal.type_in(sleep.as_bytes());
    let runs = || !in_guests(&controller, &format!("{tree}-front\0600")).is_empty();
    eventually("it runs", runs);
    terminal.type_in(b"\x03");
    eventually("Ctrl-C ended it", || !runs());
    terminal.type_in(b"echo $((6 * 7))-$?\r");
    terminal.until_shown("42-130");
    let sleep = sleep.replace('\r', " &\r");
    terminal.type_in(sleep.as_bytes());
    eventually("it runs", runs);
    terminal.type_in(b"\r~.");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(terminal.settings(), before);
    eventually("what ran in the shell is gone", || !runs());

    // Without a terminal there is none to be had.
    for words in [&["shell", "lab"][..], &["exec", "-t", "lab", "--", "true"]] {
        let ran = finish(controller.proximity(words));
        assert_ne!(ran.code, 0, "{words:?}");
        assert!(ran.err.contains("terminal"), "{}", ran.err);
    }
}
