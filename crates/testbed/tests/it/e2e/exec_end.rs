//! However a command ends, all that it started ends with it, those that left its session too.

use std::process::Stdio;

use super::controller::{Controller, finish};
use super::eventually;
use super::processes::{Place, Where, in_guests, mark, marked};

/// A script whose processes carry the mark: one in the foreground, one in the background, one in a
/// session of its own, one whose parent is gone.
pub fn family(mark: &str) -> String {
    format!(
        "(exec -a {mark}-background sleep 600) &
         setsid bash -c 'exec -a {mark}-session sleep 600' &
         (setsid bash -c 'exec -a {mark}-orphan sleep 600' & )
         exec -a {mark}-front sleep 600"
    )
}

/// The four of them, without the shells on the way whose command line holds the script.
pub fn sleepers(controller: &Controller, mark: &str) -> usize {
    let names = ["background", "session", "orphan", "front"];
    let runs = |name: &&str| {
        let whole = format!("{mark}-{name}\0600");
        !in_guests(controller, &whole).is_empty()
    };
    names.iter().filter(|name| runs(name)).count()
}

#[test]
fn a_deadline_ends_the_whole_tree() {
    let controller = Controller::up();
    controller.deploy("web");
    let mark = mark("tree");
    let ran = controller
        .run([
            "exec",
            "web",
            "--timeout",
            "2s",
            "--",
            "bash",
            "-c",
            &family(&mark),
        ])
        .expect(124);
    assert!(ran.err.contains("deadline"), "{}", ran.err);
    let left = in_guests(&controller, &mark);
    assert!(left.is_empty(), "after the answer: {left:?}");
    // What came before the deadline is not lost.
    let ran = controller.run([
        "exec",
        "web",
        "--timeout",
        "1s",
        "--",
        "sh",
        "-c",
        "echo early; sleep 60",
    ]);
    assert_eq!(ran.expect(124).text(), "early\n");
    let words = [
        "--json",
        "exec",
        "web",
        "--timeout",
        "200ms",
        "--",
        "sleep",
        "60",
    ];
    let result = controller.run(words).expect(124).json();
    assert_eq!(
        (&result["timed_out"], &result["exit_code"]),
        (&true.into(), &serde_json::Value::Null)
    );
    // A child that keeps the pipes does not keep the answer; by itself it lives on.
    let daemon = format!("setsid bash -c 'exec -a {mark}-daemon sleep 600' & echo started");
    let ran = controller
        .run([
            "exec",
            "web",
            "--timeout",
            "20s",
            "--",
            "bash",
            "-c",
            &daemon,
        ])
        .expect(0);
    assert_eq!(ran.text(), "started\n");
    assert_eq!(
        in_guests(&controller, &format!("{mark}-daemon\0600")).len(),
        1
    );
}

#[test]
fn a_killed_client_ends_the_whole_tree() {
    let controller = Controller::up_through_relay();
    controller.deploy("web");
    let mark = mark("client");
    let mut client = controller
        .proximity(["exec", "web", "--", "bash", "-c", &family(&mark)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the command runs", || sleepers(&controller, &mark) == 4);
    let on_node = marked(&controller, &mark, Where::CommandLine);
    let on_node: Vec<_> = on_node
        .iter()
        .filter(|process| process.place == Place::Node)
        .collect();
    assert_eq!(
        on_node.len(),
        1,
        "the client, and none of ours that knows its words: {on_node:?}"
    );
    on_node[0].kill();
    client.wait().unwrap();
    eventually("the tree is gone", || {
        in_guests(&controller, &mark).is_empty()
    });
    assert_eq!(controller.exec("web", ["echo", "well"]), "well\n");
}

#[test]
fn many_commands_at_once_do_not_mix() {
    let controller = Controller::up_through_relay();
    controller.deploy("web");
    std::thread::scope(|scope| {
        let commands: Vec<_> = (0..16)
            .map(|number| {
                let controller = &controller;
                scope.spawn(move || {
                    let script =
                        format!("for i in $(seq 500); do echo {number}; done; exit {number}");
                    let ran =
                        finish(controller.proximity(["exec", "web", "--", "bash", "-c", &script]));
                    assert_eq!(ran.expect(number).text(), format!("{number}\n").repeat(500));
                })
            })
            .collect();
        commands
            .into_iter()
            .for_each(|command| command.join().unwrap());
    });
}
