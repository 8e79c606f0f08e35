//! `POST /exec` on real processes of this machine.

use std::time::{Duration, Instant};

use api::exec::{Encoding, ExecEvent};
use serde_json::json;

use crate::guest_commands::{Guest, bytes, eventually, guest, lives};

#[tokio::test]
async fn output_is_exact() {
    let guest = guest().await;
    let result = guest.sh(r"printf '\n\na\r\n\n'; printf 'e\n\n' >&2").await;
    assert_eq!(
        (result.stdout.as_str(), result.stderr.as_str()),
        ("\n\na\r\n\n", "e\n\n")
    );
    let result = guest.sh(r"printf 'a\000b\377'; printf 'x\000'>&2").await;
    assert_eq!(bytes(&result.stdout, result.stdout_encoding), b"a\0b\xff");
    assert_eq!(
        (
            result.stdout_encoding,
            result.stderr_encoding,
            result.stderr.as_str()
        ),
        (Encoding::Base64, Encoding::Utf8, "x\0")
    );
    // A line of a mebibyte.
    let result = guest.sh("head -c 1048576 /dev/zero | tr '\\0' x").await;
    assert!(result.stdout.len() == 1 << 20 && result.stdout.bytes().all(|b| b == b'x'));
    assert!(!result.truncated);
    // Past the cap: cut, and the command still runs to its own end.
    let result = guest
        .sh("head -c 20971520 /dev/zero | tr '\\0' y; exit 3")
        .await;
    assert_eq!(
        (result.stdout.len(), result.truncated, result.exit_code),
        (8 << 20, true, Some(3))
    );
    // A full standard error and a silent standard output.
    let result = guest.sh("head -c 1000000 /dev/zero | tr '\\0' z >&2").await;
    assert_eq!((result.stdout.len(), result.stderr.len()), (0, 1_000_000));
}

#[tokio::test]
async fn input_arrives_whole() {
    let guest = guest().await;
    let text = "line\n".repeat(200_000);
    let result = guest.exec(json!({"argv": ["cat"], "stdin": text})).await;
    assert!(result.stdout == text);
    let request = json!({"argv": ["cat"], "stdin": "AP8=", "stdin_encoding": "base64"});
    let result = guest.exec(request).await;
    assert_eq!(bytes(&result.stdout, result.stdout_encoding), [0, 255]);
    // Input that nobody reads is no error, and none at all is the end of input.
    assert_eq!(
        guest
            .exec(json!({"argv": ["true"], "stdin": text}))
            .await
            .exit_code,
        Some(0)
    );
    assert_eq!(guest.exec(json!({"argv": ["cat"]})).await.stdout, "");
}

#[tokio::test]
async fn a_command_gets_what_was_asked_for() {
    let guest = guest().await;
    let result = guest
        .exec(json!({"argv": ["printf", "%s|", "a b", "$HOME", "", "'"]}))
        .await;
    assert_eq!(result.stdout, "a b|$HOME||'|");
    let line = "echo $A:$HOME:$USER:$LANG:$0:${#PROXIMITY_EXEC}; pwd; cat /proc/self/stat | cut -d' ' -f5; echo $$";
    let result = guest
        .exec(json!({"command": line, "env": {"A": "x y", "LANG": "C"}, "cwd": "/usr/bin"}))
        .await;
    let lines: Vec<&str> = result.stdout.lines().collect();
    assert_eq!(lines[..2], ["x y:/root:root:C:/bin/sh:32", "/usr/bin"]);
    assert_eq!(lines[2], lines[3], "it leads a process group of its own");
    assert_eq!(guest.sh("pwd").await.stdout, "/root\n");
    // The agent's own environment is nobody else's.
    assert_eq!(guest.sh("env | grep -c CARGO").await.stdout, "0\n");
    // The caller's own PATH decides, relative paths are the directory's, and so are scripts without `#!`.
    let script = guest.root.path().join("tool");
    std::fs::write(&script, "echo \"mine $1\"\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let at = guest.root.path();
    for request in [
        json!({"argv": ["tool", "1"], "env": {"PATH": format!("/nowhere:{}", at.display())}}),
        json!({"argv": ["./tool", "1"], "cwd": at}),
        json!({"argv": [script, "1"]}),
    ] {
        assert_eq!(guest.exec(request).await.stdout, "mine 1\n");
    }
}

#[tokio::test]
async fn nothing_of_the_agent_clings_to_a_command() {
    // The kernel's place for the agent when memory runs out is not its commands'.
    std::fs::write("/proc/self/oom_score_adj", "100").unwrap();
    let guest = guest().await;
    let line = "cat /proc/self/oom_score_adj; ls -l /proc/self/fd | grep -c -e agent.sock -e eventpoll -e socket -e ptmx; grep -E 'Sig(Blk|Ign)' /proc/self/status";
    for user in ["root", "nobody"] {
        let result = guest
            .exec(json!({"command": line, "user": user, "cwd": "/"}))
            .await;
        let lines: Vec<&str> = result.stdout.lines().collect();
        assert_eq!(lines[..2], ["0", "0"], "{user}: {}", result.stderr);
        for line in &lines[2..] {
            let signals = line.split_once('\t').unwrap().1;
            let signals = u64::from_str_radix(signals, 16).unwrap();
            // Two signals are the C library's own, which its posix_spawn leaves ignored.
            assert_eq!(signals & !(0b11 << 31), 0, "{user}: {line}");
        }
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(own.trim(), "100");
}

#[tokio::test]
async fn other_users_are_really_other_users() {
    let guest = guest().await;
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can become another user");
        return;
    }
    let line = "id -u; id -g; id -G; echo $USER; echo out >/dev/stdout; cat /etc/shadow; pwd";
    let result = guest
        .exec(json!({"command": line, "user": "nobody", "cwd": "/tmp"}))
        .await;
    let lines: Vec<&str> = result.stdout.lines().collect();
    assert_eq!(lines, ["65534", "65534", "65534", "nobody", "out", "/tmp"]);
    assert!(
        result.stderr.contains("ermission denied"),
        "{}",
        result.stderr
    );
    let result = guest
        .exec(json!({"argv": ["id", "-u"], "user": "4711"}))
        .await;
    assert_eq!(result.stdout, "4711\n");
    // What only root may enter or run.
    let closed = guest.root.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&closed, mode).unwrap();
    let body = json!({"argv": ["true"], "user": "nobody", "cwd": closed}).to_string();
    let refused = guest.connect().await.refused(&body).await;
    assert_eq!(refused, (422, "nothing_ran".into()));
}

#[tokio::test]
async fn ends_are_told_as_they_were() {
    let guest = guest().await;
    let end = |r: api::exec::ExecResult| (r.exit_code, r.signal, r.timed_out);
    assert_eq!(end(guest.sh("exit 7").await), (Some(7), None, false));
    assert_eq!(end(guest.sh("kill -9 $$").await), (None, Some(9), false));
    assert_eq!(
        end(guest.sh("kill -TERM $$").await),
        (None, Some(15), false)
    );
    for (argv, code) in [
        (json!(["no-such-program"]), 127),
        (json!(["/no/such/program"]), 127),
        (json!([""]), 127),
        (json!(["/etc/passwd"]), 126),
        (json!(["/etc"]), 126),
    ] {
        let result = guest.exec(json!({"argv": argv})).await;
        assert_eq!(result.exit_code, Some(code), "{argv}");
        assert!(result.stderr.contains("can't be run"), "{}", result.stderr);
    }
    let mut caller = guest.connect().await;
    for (body, status) in [
        ("{", 400),
        (r#"{"argv":"x"}"#, 422),
        ("{}", 422),
        (r#"{"argv":["true"],"command":"true"}"#, 422),
        (r#"{"argv":["true"],"user":"no-such-user"}"#, 422),
        (r#"{"argv":["true"],"cwd":"/no/such"}"#, 422),
        (r#"{"argv":["true"],"cwd":"/etc/passwd"}"#, 422),
        (r#"{"argv":["true"],"cwd":"tmp"}"#, 422),
        (r#"{"argv":["a\u0000b"]}"#, 422),
        (r#"{"argv":["true"],"env":{"A=B":"c"}}"#, 422),
        (r#"{"argv":["true"],"timeout_ms":0}"#, 422),
        (
            r#"{"argv":["true"],"stdin":"?","stdin_encoding":"base64"}"#,
            422,
        ),
    ] {
        assert_eq!(
            caller.refused(body).await,
            (status, "nothing_ran".into()),
            "{body}"
        );
    }
    guest.idle().await;
}

/// A command that leaves its family by a double fork with a session of its own, and says its number.
fn runaway(guest: &Guest) -> (String, std::path::PathBuf) {
    let file = guest.root.path().join("runaway");
    let at = file.display();
    let line = format!(
        "(setsid sh -c 'sleep 1000 & echo $! >{at}.new; mv {at}.new {at}; exec sleep 1000' >/dev/null 2>&1 &) ; sleep 1000"
    );
    (line, file)
}

#[tokio::test]
async fn a_deadline_ends_the_whole_tree() {
    let guest = guest().await;
    let (line, file) = runaway(&guest);
    let began = Instant::now();
    let line = format!("printf before; {line}");
    let result = guest
        .exec(json!({"command": line, "timeout_ms": 700}))
        .await;
    assert_eq!(
        (result.exit_code, result.signal, result.timed_out),
        (None, None, true)
    );
    assert_eq!(result.stdout, "before");
    assert!((700..5000).contains(&result.duration_ms) && began.elapsed() < Duration::from_secs(10));
    assert!(!lives(&std::fs::read_to_string(file).unwrap()));
    guest.idle().await;
}

#[tokio::test]
async fn hanging_up_ends_the_whole_tree() {
    let guest = guest().await;
    for accept in ["application/json", "application/x-ndjson"] {
        let (line, file) = runaway(&guest);
        let body = json!({"command": line}).to_string().into_bytes();
        let mut caller = guest.connect().await;
        let answer = tokio::spawn(async move {
            let answer = caller.post(body, accept).await;
            (caller, answer)
        });
        eventually("the runaway runs", || file.exists()).await;
        let pid = std::fs::read_to_string(&file).unwrap();
        assert!(lives(&pid));
        answer.abort();
        drop(answer.await);
        eventually("it ends", || !lives(&pid)).await;
        guest.idle().await;
        std::fs::remove_file(file).unwrap();
    }
}

#[tokio::test]
async fn what_is_left_running_on_purpose_is_left_alone() {
    let guest = guest().await;
    let began = Instant::now();
    let result = guest.sh("sleep 1000 & echo $!").await;
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "children that hold a pipe hold the result"
    );
    assert_eq!(result.exit_code, Some(0));
    let pid = result.stdout;
    assert!(lives(&pid));
    // Nor does one that never stops writing.
    let result = guest.sh("yes & echo $! >&2").await;
    assert_eq!(result.exit_code, Some(0));
    guest
        .sh(&format!("kill -9 {pid} {}", result.stderr.trim()))
        .await;
    eventually("it ends", || !lives(&pid)).await;
}

#[tokio::test]
async fn a_stream_tells_as_it_happens() {
    let guest = guest().await;
    let mut caller = guest.connect().await;
    let file = guest.root.path().join("go");
    let wait = format!("while ! [ -e {} ]; do sleep 0.01; done", file.display());
    let line = format!(r"printf 'a\342\202'; printf 'e\377' >&2; {wait}; printf '\254b'; exit 4");
    let mut events = caller.stream(&json!({"command": line})).await;
    let Some(ExecEvent::Started { pid, channel }) = events.next().await else {
        panic!("the first event is no start");
    };
    assert!(lives(&pid.to_string()) && channel.is_empty());
    // Both came while it runs, in some order, and no half character with them.
    let (first, second) = (events.next().await.unwrap(), events.next().await.unwrap());
    let a = ExecEvent::Stdout {
        data: "a".into(),
        encoding: Encoding::Utf8,
    };
    let e = ExecEvent::Stderr {
        data: "Zf8=".into(),
        encoding: Encoding::Base64,
    };
    assert!(
        [&first, &second].contains(&&a) && [&first, &second].contains(&&e),
        "{first:?} {second:?}"
    );
    std::fs::write(file, "").unwrap();
    let rest = events.rest().await;
    assert_eq!(
        rest[0],
        ExecEvent::Stdout {
            data: "€b".into(),
            encoding: Encoding::Utf8
        }
    );
    assert!(matches!(
        rest[1..],
        [ExecEvent::Exit {
            exit_code: Some(4),
            signal: None,
            timed_out: false,
            ..
        }]
    ));
    // The same connection again, with a program that is not there, and with a deadline.
    let mut events = caller.stream(&json!({"argv": ["no-such-program"]})).await;
    let all = events.rest().await;
    assert!(matches!(
        all[..],
        [
            ExecEvent::Started { pid: 0, .. },
            ExecEvent::Stderr { .. },
            ExecEvent::Exit {
                exit_code: Some(127),
                ..
            },
        ]
    ));
    let mut events = caller
        .stream(&json!({"argv": ["sleep", "100"], "timeout_ms": 50}))
        .await;
    let all = events.rest().await;
    assert!(matches!(
        all[1..],
        [ExecEvent::Exit {
            exit_code: None,
            timed_out: true,
            ..
        }]
    ));
}

#[tokio::test]
async fn a_slow_reader_slows_its_own_command_only() {
    let guest = guest().await;
    let file = guest.root.path().join("written");
    let line = format!(
        "head -c 4000000 /dev/zero | tr '\\0' x; echo >{}",
        file.display()
    );
    let mut slow = guest.connect().await;
    let mut events = slow.stream(&json!({"command": line})).await;
    assert!(matches!(
        events.next().await,
        Some(ExecEvent::Started { .. })
    ));
    // Others are served as ever, while the slow one's command waits.
    for _ in 0..50 {
        assert_eq!(guest.sh("exit 0").await.exit_code, Some(0));
    }
    assert!(
        !file.exists(),
        "nobody has read it, and still it was all written"
    );
    let all = events.rest().await;
    let length: usize = all
        .iter()
        .map(|e| match e {
            ExecEvent::Stdout { data, .. } => data.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(length, 4_000_000);
    assert!(matches!(
        all.last(),
        Some(ExecEvent::Exit {
            exit_code: Some(0),
            ..
        })
    ));
    assert!(file.exists());
}

#[tokio::test]
async fn many_at_a_time_and_many_in_a_row_leave_nothing_behind() {
    let guest = guest().await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let zombies = || {
        let own = std::process::id().to_string();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = processes.filter_map(|p| std::fs::read_to_string(p.path().join("stat")).ok());
        let rest = stats.filter_map(|s| Some(s.rsplit_once(") ")?.1.to_owned()));
        rest.filter(|s| s.starts_with(&format!("Z {own} "))).count()
    };
    let mut caller = guest.connect().await;
    caller.exec(&json!({"argv": ["/bin/true"]})).await;
    let before = descriptors();
    for i in 0..2000 {
        let result = caller.exec(&json!({"argv": ["/bin/true"]})).await;
        assert_eq!(result.exit_code, Some(0), "{i}");
    }
    let mut callers = tokio::task::JoinSet::new();
    for i in 0..64 {
        let mut caller = guest.connect().await;
        callers.spawn(async move {
            let result = caller
                .exec(&json!({"command": format!("echo {i}; exit {i}")}))
                .await;
            (result.stdout, result.exit_code, i)
        });
    }
    while let Some(done) = callers.join_next().await {
        let (stdout, code, i) = done.unwrap();
        assert_eq!((stdout, code), (format!("{i}\n"), Some(i)));
    }
    // Orphans come to us and are reaped.
    guest
        .sh("for i in 1 2 3 4 5; do (sh -c 'sleep 0.05 &' &) ; done >/dev/null 2>&1")
        .await;
    eventually("nothing is left", || {
        zombies() == 0 && descriptors() <= before + 1
    })
    .await;
    guest.idle().await;
}
