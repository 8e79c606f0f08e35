//! Commands: what goes in is what the program gets, what comes out is exact.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use ssh::{Chunk, Command, Error, Input, Output};

use crate::sshd::{Sshd, can_run, exec};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_and_its_result_is_exact() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let result = exec(&remote, &["printf", "a\\n\\n b\\r\\n\\n"])
        .await
        .unwrap();
    assert_eq!(result.stdout, "a\n\n b\r\n\n");
    assert_eq!((result.stderr.as_str(), result.exit_code), ("", 0));
    assert!(result.success && !result.timed_out && !result.truncated);
    assert_eq!((result.attempts, result.vm_id.as_str()), (1, "vm01"));
    assert!(result.warnings.is_empty(), "{:?}", result.warnings);

    let result = exec(&remote, &["sh", "-c", "echo out; echo err >&2; exit 7"])
        .await
        .unwrap();
    assert_eq!(
        (result.stdout.as_str(), result.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!((result.exit_code, result.success), (7, false));

    let result = exec(&remote, &["sh", "-c", "kill -9 $$"]).await.unwrap();
    assert_eq!(
        (result.exit_code, result.signal.as_deref()),
        (137, Some("KILL"))
    );
    assert_eq!(
        exec(&remote, &["/nonexistent"]).await.unwrap().exit_code,
        127
    );
    assert_eq!(
        exec(&remote, &["/etc/passwd"]).await.unwrap().exit_code,
        126
    );
    // A builtin of the shell is no program; a program of the same name is.
    assert_eq!(
        exec(&remote, &["eval", "echo x"]).await.unwrap().exit_code,
        127
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_environment_and_input_arrive() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("AcceptEnv NOTHING");
    let remote = sshd.remote().await;
    let command = Command::argv(["sh", "-c", "pwd; printf '%s|' \"$A\" \"$B\"; cat"])
        .unwrap()
        .cwd("/usr/share")
        .unwrap()
        .env("A", "it's $HOME `id`\n\"x\"")
        .unwrap()
        .env("B", "")
        .unwrap();
    let input = Input::Bytes(Bytes::from_static(b"in\0put\n"));
    let result = remote
        .execute("vm01", &command, input, Output::Collect)
        .await
        .unwrap();
    assert_eq!(
        result.stdout,
        "/usr/share\nit's $HOME `id`\n\"x\"||in\0put\n"
    );

    // Without input there is none, and nobody waits for it.
    let result = exec(&remote, &["cat"]).await.unwrap();
    assert_eq!((result.stdout.as_str(), result.exit_code), ("", 0));

    let command = Command::argv(["true"])
        .unwrap()
        .cwd("/nonexistent")
        .unwrap();
    let refused = remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, Error::NotStarted { .. }), "{refused}");
    assert!(
        refused.to_string().contains("working directory"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_become() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let command = Command::argv(["id", "-un"])
        .unwrap()
        .user("nobody")
        .unwrap();
    let result = remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await
        .unwrap();
    assert_eq!(result.stdout, "nobody\n", "{result:?}");
    let command = Command::argv(["id", "-un"])
        .unwrap()
        .user("no-such-user")
        .unwrap();
    let refused = remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, Error::NotStarted { .. }), "{refused}");
    assert!(refused.to_string().contains("no-such-user"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_command_is_told_and_repeats_no_secret() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let key = std::fs::read_to_string(sshd.path("keys/vm01.pub")).unwrap();
    for (forced, says) in [("head -n 1", "repeats"), ("echo go away", "go away")] {
        let line = format!("command=\"{forced}\" {key}");
        std::fs::write(sshd.path("authorized"), line).unwrap();
        let command = Command::argv(["id"])
            .unwrap()
            .env("SECRET", "hunter2hunter2")
            .unwrap();
        let remote = sshd.remote().await;
        let refused = remote
            .execute("vm01", &command, Input::None, Output::Collect)
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::NotStarted { .. }), "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_for_a_session_says_so() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("MaxSessions 1");
    assert!(exec(&sshd.remote().await, &["true"]).await.unwrap().success);
    let sshd = Sshd::start("MaxSessions 0");
    let refused = exec(&sshd.remote().await, &["true"]).await.unwrap_err();
    assert!(matches!(refused, Error::NotStarted { .. }), "{refused}");
    assert!(refused.to_string().contains("MaxSessions"), "{refused}");
}

/// What argv went in is what the program printed: with every metacharacter, in every byte but NUL.
#[tokio::test(flavor = "multi_thread")]
async fn arguments_arrive_as_they_are() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let check = async |words: Vec<Vec<u8>>| {
        let mut argv = vec![b"printf".to_vec(), b"%s\\0".to_vec()];
        argv.extend(words.iter().cloned());
        let command = Command::argv(argv).unwrap();
        let (to, mut from) = tokio::sync::mpsc::channel(4);
        let collected = tokio::spawn(async move {
            let mut out = Vec::new();
            while let Some(chunk) = from.recv().await {
                match chunk {
                    Chunk::Stdout(data) => out.extend_from_slice(&data),
                    Chunk::Stderr(data) => panic!("{data:?}"),
                }
            }
            out
        });
        let result = remote
            .execute("vm01", &command, Input::None, Output::Stream(to))
            .await;
        assert!(result.unwrap().success);
        let expected: Vec<u8> = words
            .iter()
            .flat_map(|w| [w.as_slice(), b"\0"].concat())
            .collect();
        assert_eq!(collected.await.unwrap(), expected, "{words:?}");
    };
    let known: &[&[u8]] = &[
        b"",
        b" ",
        b"'",
        b"''",
        b"\"",
        b"\\",
        b"\n",
        b"\n\n'",
        b"$HOME",
        b"$(id)",
        b"`id`",
        b"!!",
        b"*",
        b"?",
        b"~",
        b"#",
        b";id",
        b"&&id",
        b"|id",
        b">x",
        b"<x",
        b"\r",
        b"\t",
        b"-n",
        b"--",
        b"$n",
        b"\x81\x82\x88\xff",
        b"%s",
        "grüße 日本".as_bytes(),
    ];
    check(known.iter().map(|w| w.to_vec()).collect()).await;
    let mut runner = TestRunner::deterministic();
    let word = proptest::collection::vec(1_u8..=255, 0..40);
    let words = proptest::collection::vec(word, 1..12);
    for _ in 0..25 {
        check(words.new_tree(&mut runner).unwrap().current()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_binary_output_is_whole() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    // One line of 2 MiB, and as much on the other stream at the same time.
    let script =
        "head -c 2097152 /dev/zero | tr '\\0' x; head -c 2097152 /dev/zero | tr '\\0' y >&2";
    let result = exec(&remote, &["sh", "-c", script]).await.unwrap();
    assert_eq!(
        (result.stdout.len(), result.stderr.len()),
        (2_097_152, 2_097_152)
    );
    let result = exec(&remote, &["printf", "\\377\\000\\001"]).await.unwrap();
    assert_eq!(
        (result.stdout.as_str(), result.stdout_encoding),
        ("/wAB", "base64")
    );
    // Past the limit it is cut, said, and the command still ends well.
    let result = exec(&remote, &["head", "-c", "20000000", "/dev/zero"])
        .await
        .unwrap();
    assert!(result.truncated && result.success);
    assert_eq!(result.stdout.len(), ssh::MAX_OUTPUT_BYTES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_loses_nothing() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let command = Command::argv(["head", "-c", "104857600", "/dev/zero"])
        .unwrap()
        .timeout(Duration::from_secs(120));
    let (to, mut from) = tokio::sync::mpsc::channel(2);
    let counted = tokio::spawn(async move {
        let mut bytes = 0;
        let mut pieces = 0;
        while let Some(chunk) = from.recv().await {
            let Chunk::Stdout(data) = chunk else {
                panic!("{chunk:?}")
            };
            bytes += data.len();
            pieces += 1;
            if pieces % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        bytes
    });
    let result = remote
        .execute("vm01", &command, Input::None, Output::Stream(to))
        .await
        .unwrap();
    assert!(result.success, "{result:?}");
    assert_eq!(counted.await.unwrap(), 104_857_600);
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_input_arrives_whole_and_may_be_left_unread() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let stream = |pieces: usize| {
        let (to, from) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            for _ in 0..pieces {
                if to.send(Bytes::from(vec![7; 300_000])).await.is_err() {
                    return;
                }
            }
        });
        Input::Stream(from)
    };
    let count = Command::argv(["wc", "-c"]).unwrap();
    let result = remote
        .execute("vm01", &count, stream(30), Output::Collect)
        .await
        .unwrap();
    assert_eq!(result.stdout.trim(), "9000000");
    let deaf = Command::argv(["sh", "-c", "exec <&-; echo done"]).unwrap();
    let result = remote
        .execute("vm01", &deaf, stream(30), Output::Collect)
        .await
        .unwrap();
    assert_eq!((result.stdout.as_str(), result.success), ("done\n", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_login_files_print_is_not_output() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    // Debian's bash reads it for commands of sshd too.
    std::fs::write(
        sshd.path("home/.bashrc"),
        "echo welcome; echo grumble >&2\n",
    )
    .unwrap();
    let remote = sshd.remote().await;
    let result = exec(&remote, &["echo", "hello"]).await.unwrap();
    assert_eq!(
        (result.stdout.as_str(), result.stderr.as_str()),
        ("hello\n", "")
    );
    std::fs::write(
        sshd.path("home/.bashrc"),
        "echo under maintenance; exit 3\n",
    )
    .unwrap();
    let refused = exec(&remote, &["echo", "hello"]).await.unwrap_err();
    assert!(matches!(refused, Error::NotStarted { .. }), "{refused}");
    assert!(
        refused.to_string().contains("under maintenance"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn values_stand_on_no_command_line_of_the_far_side() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let command = Command::argv(["sh", "-c", "tr '\\0' ' ' </proc/$PPID/cmdline; ps axww -o args; [ \"$SECRET\" = hunter2hunter2 ] && echo right"])
        .unwrap()
        .env("SECRET", "hunter2hunter2")
        .unwrap();
    let result = remote
        .execute("vm01", &command, Input::None, Output::Collect)
        .await
        .unwrap();
    assert!(result.stdout.ends_with("right\n"), "{}", result.stdout);
    let without_script = result.stdout.replace("= hunter2hunter2", "");
    assert!(!without_script.contains("hunter2"), "{without_script}");
    assert!(!sshd.log().contains("hunter2"));
    let audit = sshd.audit();
    assert!(audit.contains("\"env\":[\"SECRET\"]"), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_may_not_be_used_are_refused_and_recorded() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    for id in ["off", "nobody-knows"] {
        let command = Command::argv(["id"]).unwrap();
        let refused = remote
            .execute(id, &command, Input::None, Output::Collect)
            .await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        let record = sshd.audit();
        let line = record
            .lines()
            .find(|l| l.contains(&format!("\"target\":\"{id}\"")))
            .unwrap();
        assert!(line.contains("\"outcome\":\"refused\""), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn intent_and_outcome_are_recorded() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let result = exec(&remote, &["sh", "-c", "exit 3"]).await.unwrap();
    let audit = sshd.audit();
    let records: Vec<&str> = audit
        .lines()
        .filter(|l| l.contains(&result.audit_id))
        .collect();
    assert_eq!(records.len(), 2, "{audit}");
    assert!(
        records[0].contains("\"outcome\":\"intent\"")
            && records[0].contains("\"actor\":\"tester\"")
    );
    assert!(
        records[1].contains("\"outcome\":\"failed\"") && records[1].contains("\"exit_code\":3")
    );
    let report = audit::verify(sshd.path("audit/remote-audit-0.log"), None).unwrap();
    assert!(report.is_sound(), "{report}");
}
