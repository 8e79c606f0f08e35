//! From start to end: exit codes, signals, kept hosts, and that nothing is left however it ends.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{fs, thread};

use crate::{Place, get, script, start, text, until};

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn kill(signal: &str, pid: u32) {
    assert!(
        Command::new("kill")
            .args([signal, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// `testbed host … -- sh -c SCRIPT`, once the script has printed its first line; and the pid of init.
fn running(place: &Place, script: &str) -> (Child, u32) {
    let args = ["host", "--name", place.name(), "--", "sh", "-c", script];
    let mut child = place.testbed(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    let init = testbed::Record::find(&place.name).unwrap().init.pid;
    (child, init)
}

#[test]
fn the_exit_code_and_the_pipes_are_the_commands() {
    let place = Place::new();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        assert_eq!(
            place.run(&["host", "--", "sh", "-c", script]).status.code(),
            Some(code),
            "{script}"
        );
    }
    assert_eq!(
        place.run(&["host", "--", "/no/such/program"]).status.code(),
        Some(127)
    );
    assert_eq!(
        place.run(&["host", "--", "/etc/passwd"]).status.code(),
        Some(126)
    );

    let output = place.run(&["host", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(
        (text(&output.stdout).as_str(), text(&output.stderr).as_str()),
        ("out\n", "err\n")
    );
    let input = fs::File::open("/etc/passwd").unwrap();
    let output = place
        .testbed(&["host", "--", "cat"])
        .stdin(input)
        .output()
        .unwrap();
    assert_eq!(output.stdout, fs::read("/etc/passwd").unwrap());
}

#[test]
fn nothing_is_left_after_a_command_that_leaves_much() {
    let place = Place::new();
    let script = "mkdir -p /sys/fs/cgroup/memory/a/b /sys/fs/cgroup/unified/c || true
        mkdir -p /var/lib/proximity/deep/er /mnt/../tmp/$(hostname)
        mount -t tmpfs none /var/lib/proximity/deep
        truncate -s 1M /var/lib/proximity/image; losetup -f --show /var/lib/proximity/image > /tmp/$(hostname)/loop
        setsid sleep 1000 & trap '' TERM; exit 3";
    let output = place.run(&["host", "--name", place.name(), "--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(place.traces().is_empty(), "{:?}", place.traces());
    let shared = Path::new("/tmp").join(place.name());
    let device = fs::read_to_string(shared.join("loop")).unwrap();
    fs::remove_dir_all(shared).unwrap();
    let name = device.trim().strip_prefix("/dev/").unwrap();
    until("the loop device is free", || {
        let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
        !backing.is_ok_and(|file| file.contains(place.name()) || file.starts_with("/image"))
    });
}

#[test]
fn a_killed_launcher_leaves_nothing() {
    let place = Place::new();
    let (mut launcher, init) = running(
        &place,
        "mkdir -p /sys/fs/cgroup/pids/x; echo up; exec sleep 1000",
    );
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    until("init ends", || !alive(init));
    until("all traces go", || place.traces().is_empty());
}

#[test]
fn a_killed_keeper_ends_the_host_and_the_sweeper_removes_the_rest() {
    let place = Place::new();
    let (mut launcher, init) = running(&place, "echo up; exec sleep 1000");
    let keeper = parent(parent(init));
    assert!(text(&fs::read(format!("/proc/{keeper}/cmdline")).unwrap()).contains("host-keeper"));
    kill("-KILL", keeper);
    until("init ends", || !alive(init));
    launcher.wait().unwrap();
    // Any other start sweeps too, so it may be gone already.
    assert!(place.run(&["sweep"]).status.success());
    until("all traces go", || place.traces().is_empty());
}

#[test]
fn a_terminated_launcher_lets_the_command_end_itself() {
    let place = Place::new();
    let script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done";
    let (mut launcher, _) = running(&place, script);
    kill("-TERM", launcher.id());
    assert_eq!(launcher.wait().unwrap().code(), Some(9));
    assert!(place.traces().is_empty(), "{:?}", place.traces());
}

#[test]
fn ctrl_c_on_a_terminal_is_the_commands_to_handle() {
    for (trap, code) in [("", 130), ("trap 'exit 4' INT; ", 4)] {
        let place = Place::new();
        // `exec`: a shell that stays in between would die of the key itself.
        let line = format!(
            "exec {} host --name {} -- sh -c \"{trap}echo up; while :; do sleep 0.01; done\"",
            env!("CARGO_BIN_EXE_testbed"),
            place.name()
        );
        let mut terminal = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env(testbed::STATE_DIR_VARIABLE, place.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        let mut output = BufReader::new(terminal.stdout.take().unwrap());
        output.read_line(&mut first).unwrap();
        assert_eq!(first, "up\r\n");
        let mut keyboard = terminal.stdin.take().unwrap();
        keyboard.write_all(b"\x03").unwrap();
        assert_eq!(terminal.wait().unwrap().code(), Some(code));
        assert!(place.traces().is_empty(), "{:?}", place.traces());
    }
}

#[test]
fn a_kept_host_is_entered_listed_rebooted_and_removed() {
    let place = Place::new();
    let name = place.name();
    assert!(
        place
            .run(&[
                "host",
                "--keep",
                "--name",
                name,
                "--",
                "touch",
                "/var/lib/proximity/x"
            ])
            .status
            .success()
    );
    let again = place.run(&["host", "--name", name, "--", "true"]);
    assert_eq!(again.status.code(), Some(125));
    assert!(text(&again.stderr).contains("runs already"), "{again:?}");

    let entered = place.run(&[
        "enter",
        name,
        "--env",
        "A=b=c",
        "--",
        "sh",
        "-c",
        "echo $A; hostname; exit 5",
    ]);
    assert_eq!(text(&entered.stdout), format!("b=c\n{name}\n"));
    assert_eq!(entered.status.code(), Some(5));
    let list: serde_json::Value =
        serde_json::from_slice(&place.run(&["list", "--json"]).stdout).unwrap();
    assert!(
        list.as_array()
            .unwrap()
            .iter()
            .any(|host| host["name"] == name && host["keep"] == true),
        "{list}"
    );

    let before = testbed::Record::find(&place.name).unwrap();
    assert!(place.run(&["reboot", name]).status.success());
    let after = testbed::Record::find(&place.name).unwrap();
    assert_ne!(before.init, after.init);
    assert!(
        place
            .run(&["enter", name, "--", "test", "-e", "/var/lib/proximity/x"])
            .status
            .success()
    );

    assert!(place.run(&["rm", name]).status.success());
    assert!(!alive(after.init.pid));
    assert!(place.traces().is_empty(), "{:?}", place.traces());
    let gone = place.run(&["enter", name, "--", "true"]);
    assert_eq!(gone.status.code(), Some(125));
    assert!(text(&gone.stderr).contains("testbed list"), "{gone:?}");
}

#[test]
fn a_detached_command_runs_on_with_its_log() {
    let (place, host) = start();
    let log = place.dir.path().join("log");
    let pid = host
        .spawn(
            ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"],
            &log,
        )
        .unwrap();
    until("both lines are logged", || {
        fs::read_to_string(&log).unwrap() == "out\nerr\n"
    });
    assert!(alive(pid));
    let refused = host.spawn(["/no/such/program"], &log).unwrap_err();
    assert!(
        refused.to_string().contains("cannot run /no/such/program"),
        "{refused}"
    );
    // The pid is the machine's: killed from here it is gone in there, and reaped.
    kill("-KILL", pid);
    until("it is reaped", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    host.stop().unwrap();
}

#[test]
fn a_detached_forward_ends_with_its_host() {
    let place = Place::new();
    let name = place.name();
    assert!(
        place
            .run(&["host", "--keep", "--name", name])
            .status
            .success()
    );
    let refused = place.run(&["forward", name, "0.0.0.0:0", "192.168.50.20:80"]);
    assert!(
        text(&refused.stderr).contains("not a loopback address"),
        "{refused:?}"
    );
    let output = place.run(&[
        "forward",
        name,
        "127.0.0.1:0",
        "192.168.50.20:80",
        "--detach",
    ]);
    let line = text(&output.stdout);
    let (listen, pid) = line.trim().split_once(' ').unwrap();
    TcpStream::connect(listen).unwrap();
    let taken = place.run(&["forward", name, listen, "192.168.50.20:80", "--detach"]);
    assert!(
        text(&taken.stderr).contains("Address already in use"),
        "{taken:?}"
    );
    assert!(place.run(&["rm", name]).status.success());
    until("the forward ends", || !alive(pid.parse().unwrap()));
    assert!(place.traces().is_empty(), "{:?}", place.traces());
}

#[test]
fn hosts_live_beside_each_other() {
    thread::scope(|scope| {
        let hosts: Vec<_> = (0..3).map(|_| scope.spawn(start)).collect();
        let hosts: Vec<_> = hosts.into_iter().map(|host| host.join().unwrap()).collect();
        for (place, host) in &hosts {
            script(
                host,
                "test ! -e /var/lib/proximity/mine; hostname > /var/lib/proximity/mine",
            );
            assert_eq!(
                script(host, "cat /var/lib/proximity/mine").trim(),
                place.name()
            );
            assert_eq!(get(host, "8.8.8.8", 80, "/"), "internet machine 8.8.8.8");
        }
    });
}
