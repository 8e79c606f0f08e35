//! `exec` passes through what a command reads, writes and returns, as whom and where it was asked to run.

use super::controller::Controller;
use super::processes::{Place, Where, mark, marked};

fn app() -> Controller {
    let controller = Controller::up();
    controller.deploy("web");
    controller
}

/// So many bytes and a few more: every byte there is, blank lines and carriage returns among them, without
/// a last newline.
pub fn awkward_bytes(length: usize) -> Vec<u8> {
    let mut bytes = b"\0\r\n\n\n\r\r\n \t\xff\xfe\xc3\x28\x1b[31m".to_vec();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.extend(b"\r\n\n.");
    bytes
}

#[test]
fn bytes_pass_through_unchanged_both_ways() {
    let controller = app();
    let bytes = awkward_bytes(1 << 20);
    let ran = controller
        .run_with(["exec", "web", "--", "cat"], &bytes)
        .expect(0);
    assert!(
        ran.out == bytes,
        "{} of {} bytes came back",
        ran.out.len(),
        bytes.len()
    );
    assert_eq!(ran.err, "");
    // Both streams at once, one larger than any pipe, are kept apart.
    let both = "tee /dev/stderr | sha256sum; exit 9";
    let text = "line\r\n\n".repeat(50_000);
    let ran = controller
        .run_with(["exec", "web", "--", "bash", "-c", both], text.as_bytes())
        .expect(9);
    assert_eq!(ran.err, text);
    assert_eq!(ran.text().len(), 64 + "  -\n".len());
    // Programs that log to these files can be run as anybody.
    for user in ["root", "www-data", "4711"] {
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin";
        let words = ["exec", "web", "-u", user, "--", "sh", "-c", script];
        let ran = controller.run_with(words, b"in\n").expect(0);
        assert_eq!(
            (ran.text().as_str(), ran.err.as_str()),
            ("out\nin\n", "err\n"),
            "{user}"
        );
    }
    for exact in ["", "\n", "\n\n", "no newline", "\r", "a\r\nb"] {
        let ran = controller
            .run(["exec", "web", "--", "printf", "%s", exact])
            .expect(0);
        assert_eq!(ran.text(), exact);
    }
    // No shell looks at arguments on the way.
    let odd = [
        "$(id)", "`id`", "a b", "*", "'\"", "\\n", "", "-n", "--", "ünï", "a\nb", ";id", "&&", "|",
    ];
    let words = ["exec", "web", "--", "printf", "<%s>\n"]
        .into_iter()
        .chain(odd);
    let wanted: String = odd.iter().map(|word| format!("<{word}>\n")).collect();
    assert_eq!(controller.ok(words), wanted);
    // Without input there is an end of file, not a wait.
    assert_eq!(controller.exec("web", ["cat"]), "");
    // A command that does not read is no error, however much there is for it.
    controller
        .run_with(["exec", "web", "--", "true"], &bytes)
        .expect(0);
}

#[test]
fn codes_users_directories_and_variables() {
    let controller = app();
    for (argv, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 3"], 3),
        (&["sh", "-c", "exit 255"], 255),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["/no/such/directory/program"], 127),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
    ] {
        let words = ["exec", "web", "--"]
            .into_iter()
            .chain(argv.iter().copied());
        controller.run(words).expect(code);
    }
    let who = |user: &str| controller.ok(["exec", "web", "-u", user, "--", "id"]);
    assert_eq!(who("root"), "uid=0(root) gid=0(root) groups=0(root)\n");
    assert_eq!(
        who("www-data"),
        "uid=33(www-data) gid=33(www-data) groups=33(www-data)\n"
    );
    assert_eq!(who("33"), who("www-data"));
    assert_eq!(who("4711"), "uid=4711 gid=4711 groups=4711\n");
    let ran = controller
        .run(["exec", "web", "-u", "nobody-here", "--", "touch", "/ran"])
        .expect(125);
    assert!(ran.err.contains("nobody-here"), "{}", ran.err);
    let ran = controller
        .run(["exec", "web", "-w", "/no/such", "--", "touch", "/ran"])
        .expect(125);
    assert!(ran.err.contains("/no/such"), "{}", ran.err);
    controller
        .run(["exec", "web", "-w", "relative", "--", "touch", "/ran"])
        .expect(125);
    controller
        .run(["exec", "web", "-e", "=x", "--", "touch", "/ran"])
        .expect(125);
    controller
        .run(["exec", "nobody", "--", "touch", "/ran"])
        .expect(125);
    controller
        .run(["exec", "web", "--channel", "ssh", "--", "touch", "/ran"])
        .expect(125);
    controller
        .run(["exec", "web", "--", "test", "!", "-e", "/ran"])
        .expect(0);

    assert_eq!(controller.exec("web", ["pwd"]), "/root\n");
    assert_eq!(
        controller.ok(["exec", "web", "-w", "/srv", "--", "pwd"]),
        "/srv\n"
    );
    assert_eq!(
        controller.ok(["exec", "web", "-u", "www-data", "--", "pwd"]),
        "/var/www\n"
    );
    let env = controller.ok([
        "exec",
        "web",
        "-e",
        "A=b=c",
        "-e",
        "EMPTY=",
        "-e",
        "HOME=/srv",
        "--",
        "env",
    ]);
    for line in ["A=b=c", "EMPTY=", "HOME=/srv", "USER=root"] {
        assert!(env.lines().any(|have| have == line), "{line}: {env}");
    }
    // Nothing of the caller's or the controller's environment came along but the exec's own cookie.
    let known = [
        "A",
        "EMPTY",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "PATH",
        "LANG",
        "PROXIMITY_EXEC",
    ];
    let strange: Vec<_> = env
        .lines()
        .filter(|line| !known.contains(&line.split('=').next().unwrap()))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    let result = controller.json(["exec", "web", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(
        (&result["stdout"], &result["stderr"]),
        (&"out\n".into(), &"err\n".into())
    );
    assert_eq!(
        (&result["exit_code"], &result["channel"]),
        (&0.into(), &"agent".into())
    );
}

#[test]
fn what_is_secret_is_seen_by_the_command_alone() {
    let controller = app();
    let (secret, input, name) = (mark("secret"), mark("input"), mark("sleeper"));
    let preload = format!("/nowhere/{secret}.so");
    let sleep = format!("exec -a {name} sleep 60");
    let request = serde_json::json!({
        "argv": ["bash", "-c", sleep],
        "env": { "LD_PRELOAD": preload, "TOKEN": secret },
        "stdin": input,
    });
    let outcome = std::thread::scope(|scope| {
        let call = scope.spawn(|| controller.api("POST", "/instances/web/exec", Some(&request)));
        super::eventually("the command runs", || {
            marked(&controller, &name, Where::CommandLine).len() == 1
                && !marked(&controller, &secret, Where::Environment).is_empty()
        });
        for hidden in [&secret, &input] {
            let shown = marked(&controller, hidden, Where::CommandLine);
            assert!(
                shown.is_empty(),
                "{hidden} stands on a command line: {shown:?}"
            );
        }
        let holders = marked(&controller, &secret, Where::Environment);
        assert!(
            holders.iter().all(|process| process.place == Place::Guest),
            "{holders:?}"
        );
        assert_eq!(holders.len(), 1, "{holders:?}");
        holders[0].kill();
        call.join().unwrap()
    });
    assert_eq!(
        (outcome.0, &outcome.1["signal"]),
        (200, &9.into()),
        "{outcome:?}"
    );
    // The loader complains where it saw the variable: in the command, once, and nowhere before it.
    let ran = controller.run([
        "exec",
        "web",
        "-e",
        &format!("LD_PRELOAD={preload}"),
        "--",
        "printenv",
        "LD_PRELOAD",
    ]);
    let ran = ran.expect(0);
    assert_eq!(ran.text(), format!("{preload}\n"));
    assert_eq!(
        ran.err.matches("cannot be preloaded").count(),
        1,
        "{}",
        ran.err
    );
    let log = controller.log();
    assert!(
        !log.contains(&secret) && !log.contains(&input),
        "the log knows a secret"
    );
}
