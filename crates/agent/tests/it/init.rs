//! Process 1 of a guest, in process, mount and network namespaces of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::exec::Processes;
use agent::init;

const HALTS: [&str; 3] = ["TERM", "PWR", "RTMIN+3"];

#[test]
fn process_1_serves_reaps_and_halts() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can make namespaces");
        return;
    }
    for halt in HALTS {
        let mut guest = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--net", "--mount"])
            .args(["--mount-proc", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "init::guest"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(guest.stdout.take().unwrap());
        // Two processes have set their traps, and process 1 listens.
        let (mut said, mut line) = (0, String::new());
        while said < 3 {
            line.clear();
            assert_ne!(
                lines.read_line(&mut line).unwrap(),
                0,
                "the guest ended early"
            );
            said += ["up\n", "serving\n"]
                .iter()
                .filter(|s| line.ends_with(**s))
                .count();
        }
        let began = Instant::now();
        let kill = Command::new("kill")
            .args(["-s", halt, &first_child(&guest)])
            .status();
        assert!(kill.unwrap().success());
        // The pipe ends with the last process of the guest.
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        guest.wait().unwrap();
        assert!(rest.contains("asked to end"), "{halt}: {rest:?}");
        // One of its processes does not listen, so the grace is used up, and no more than that.
        let took = began.elapsed();
        assert!((900..8000).contains(&took.as_millis()), "{halt}: {took:?}");
    }
}

fn first_child(of: &Child) -> String {
    let pid = of.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().to_owned()
}

#[test]
fn nothing_but_process_1_may_be_it() {
    let refused = init::prepare().unwrap_err().to_string();
    assert!(
        refused.contains(&std::process::id().to_string()),
        "{refused}"
    );
}

#[test]
#[ignore = "a child of process_1_serves_reaps_and_halts"]
fn guest() {
    init::prepare().unwrap();
    // Again, over what is there now.
    init::prepare().unwrap();
    for (at, kind) in [
        ("/proc", "proc"),
        ("/tmp", "tmpfs"),
        ("/run", "tmpfs"),
        ("/dev/pts", "devpts"),
    ] {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let of = |line: &&str| line.split(' ').nth(1) == Some(at);
        let mounts: Vec<&str> = mounts.lines().filter(of).collect();
        assert!(
            mounts.last().is_some_and(|m| m.contains(kind)),
            "{at}: {mounts:?}"
        );
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        init::run(async {
            let _processes = Processes::start(None).unwrap();
            // Orphans of every kind: one that ends at once, one that goes when asked, one that doesn't.
            for line in [
                "(sh -c 'exit 3' &)",
                "(sh -c 'trap \"echo asked to end; exit\" TERM; echo up; while :; do sleep 0.02; done' &)",
                "(sh -c 'trap \"\" TERM; echo up; while :; do sleep 1000; done' &)",
            ] {
                // Process 1 takes in every status: a wait here would never hear of it.
                std::mem::forget(Command::new("sh").args(["-c", line]).spawn().unwrap());
            }
            let until = Instant::now() + Duration::from_secs(20);
            while zombies() > 0 || living() < 3 {
                assert!(Instant::now() < until, "{} zombies, {} processes", zombies(), living());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            println!("serving");
            std::io::stdout().flush().unwrap();
            std::future::pending::<()>().await;
        })
        .await
        .unwrap();
    });
}

fn states() -> Vec<char> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|p| std::fs::read_to_string(p.path().join("stat")).ok());
    stats
        .filter_map(|s| s.rsplit_once(") ")?.1.chars().next())
        .collect()
}

fn zombies() -> usize {
    states().iter().filter(|s| **s == 'Z').count()
}

fn living() -> usize {
    states().len() - zombies()
}
