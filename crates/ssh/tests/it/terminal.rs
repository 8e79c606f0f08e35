//! Terminals and tunnels against real servers.

use std::time::Duration;

use bytes::Bytes;
use ssh::{Command, Error, Left, Program, Remote, Shown, Tunnel, TunnelEvent, Typed, Window};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::ending::{alive, unique};
use crate::sshd::{Sshd, can_run, eventually, exec};

/// A person at a terminal on `vm01`.
struct Person {
    keys: mpsc::Sender<Typed>,
    screen: mpsc::Receiver<Shown>,
    seen: String,
    left: JoinHandle<Result<Left, Error>>,
}

impl Person {
    fn at(remote: &Remote, command: Option<Command>) -> Self {
        let (keys, typed) = mpsc::channel(16);
        let (shown, screen) = mpsc::channel(16);
        let remote = remote.clone();
        let left = tokio::spawn(async move {
            let program = command.as_ref().map_or(Program::Shell, Program::Command);
            let window = Window {
                rows: 33,
                cols: 101,
            };
            remote
                .terminal("vm01", program, ("xterm", window), typed, shown)
                .await
        });
        Self {
            keys,
            screen,
            seen: String::new(),
            left,
        }
    }

    async fn types(&self, text: &str) {
        let keys = Typed::Keys(Bytes::copy_from_slice(text.as_bytes()));
        self.keys.send(keys).await.unwrap();
    }

    async fn sees(&mut self, text: &str) {
        let seen = async {
            while !self.seen.contains(text) {
                match self.screen.recv().await {
                    Some(Shown::Output(data)) => self.seen += &String::from_utf8_lossy(&data),
                    Some(Shown::Opened) => {}
                    None => panic!("never {text:?}: {:?}", self.seen),
                }
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(40), seen).await;
        assert!(seen.is_ok(), "never {text:?}: {:?}", self.seen);
    }

    async fn leaves(self) -> Result<Left, Error> {
        let Self {
            screen, left, keys, ..
        } = self;
        drop((keys, screen));
        left.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_a_terminal_its_size_and_an_exit_code() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let mut person = Person::at(&remote, None);
    person
        .types("stty size; echo \"$TERM\" | tr a-z A-Z; tty\n")
        .await;
    person.sees("33 101").await;
    person.sees("XTERM").await;
    person.sees("/dev/pts/").await;
    let window = Window {
        rows: 50,
        cols: 132,
    };
    person.keys.send(Typed::Resize(window)).await.unwrap();
    person.types("stty size\n").await;
    person.sees("50 132").await;
    let mark = unique();
    person.types(&format!("sleep {mark}\n")).await;
    eventually("it runs", || alive(&mark) == 1).await;
    person.types("\x03").await;
    eventually("it was interrupted", || alive(&mark) == 0).await;
    person.types("exit 7\n").await;
    while person.screen.recv().await.is_some() {}
    assert_eq!(person.left.await.unwrap().unwrap(), Left::Ended(7));
    assert!(sshd.audit().contains("\"action\":\"remote.shell\""));
    assert!(sshd.audit().contains("\"exit_code\":7"), "{}", sshd.audit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_in_a_terminal_gets_exact_arguments_and_a_sane_terminal() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let odd = "it's \u{11} \u{3} $HOME\n\t".repeat(500);
    let digest = "printf %s \"$1\" | sha256sum; echo \"$SECRET\"; pwd; stty -a; cat; exit 3";
    let command = Command::argv(["sh", "-c", digest, "x", odd.as_str()])
        .unwrap()
        .env("SECRET", "a'b")
        .unwrap()
        .cwd("/usr")
        .unwrap();
    let mut person = Person::at(&remote, Some(command));
    // Typed before anything runs, and still not a part of the order.
    person.types("early\n").await;
    let expect = <sha2::Sha256 as sha2::Digest>::digest(odd.as_bytes());
    person.sees(&hex::encode(expect)).await;
    person.sees("a'b\r\n/usr\r\n").await;
    person.sees(" icanon ").await;
    person.sees("-extproc\r\nearly\r\n").await;
    assert!(!person.seen.contains("PROXIMITY"), "{}", person.seen);
    person.types("\x04").await;
    while person.screen.recv().await.is_some() {}
    assert_eq!(person.left.await.unwrap().unwrap(), Left::Ended(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_a_terminal_hangs_it_up_and_stalls_nobody() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let mark = unique();
    let mut person = Person::at(&remote, None);
    person.types(&format!("sleep {mark}\n")).await;
    eventually("it runs", || alive(&mark) == 1).await;
    // Nobody reads this screen, and commands run all the same.
    let noisy = Person::at(&remote, Some(Command::argv(["yes"]).unwrap()));
    for _ in 0..3 {
        assert!(exec(&remote, &["true"]).await.unwrap().success);
    }
    assert_eq!(noisy.leaves().await.unwrap(), Left::Gone);
    person.sees(&mark).await;
    assert_eq!(person.leaves().await.unwrap(), Left::Gone);
    eventually("it was hung up", || alive(&mark) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_that_are_not_given_say_why() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("PermitTTY no");
    let remote = sshd.remote().await;
    let refused = Person::at(&remote, None).left.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("PermitTTY"), "{refused}");
    let (_keys, typed) = mpsc::channel(1);
    let (shown, _screen) = mpsc::channel(1);
    let window = Window { rows: 1, cols: 1 };
    let refused = remote
        .terminal("off", Program::Shell, ("xterm", window), typed, shown)
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    assert!(sshd.audit().contains("\"outcome\":\"refused\""));
}

async fn echo() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_leads_many_connections_and_is_recorded() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let (far, port) = echo().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = far.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    let (events, mut happened) = mpsc::channel(16);
    let forward = tokio::spawn({
        let remote = remote.clone();
        let to = Tunnel {
            host: "127.0.0.1".to_owned(),
            port,
        };
        async move {
            remote
                .forward("vm01", &to, listener, events)
                .await
                .map(|_| ())
        }
    });
    assert!(matches!(happened.recv().await, Some(TunnelEvent::Open)));
    // One of them stands still; the others are more than there are places, and all get through.
    let mut still = TcpStream::connect(local).await.unwrap();
    still.write_all(b"x").await.unwrap();
    let through = (0..12_u8).map(|number| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(local).await.unwrap();
            let sent = vec![number; 300_000];
            let (mut read, mut write) = stream.split();
            let mut back = Vec::new();
            let send = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let (_, read) = tokio::join!(send, read.read_to_end(&mut back));
            read.unwrap();
            assert!(back == sent, "{number}: {}", back.len());
        })
    });
    for one in through.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    let mut byte = [0];
    still.read_exact(&mut byte).await.unwrap();
    forward.abort();
    assert!(forward.await.unwrap_err().is_cancelled());
    eventually("its end is recorded", || {
        let audit = sshd.audit();
        audit.matches("remote.forward").count() == 2 && audit.contains("\"outcome\":\"ok\"")
    })
    .await;
    assert_eq!(still.read(&mut byte).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_to_nowhere_says_so_and_stays() {
    if !can_run() {
        return;
    }
    let sshd = Sshd::start("");
    let remote = sshd.remote().await;
    let (nobody, port) = echo().await;
    drop(nobody);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    let (events, mut happened) = mpsc::channel(16);
    let to = Tunnel {
        host: "127.0.0.1".to_owned(),
        port,
    };
    let forward = tokio::spawn(async move {
        remote
            .forward("vm01", &to, listener, events)
            .await
            .map(|_| ())
    });
    assert!(matches!(happened.recv().await, Some(TunnelEvent::Open)));
    for _ in 0..2 {
        let mut stream = TcpStream::connect(local).await.unwrap();
        match happened.recv().await {
            Some(TunnelEvent::Failed(error)) => {
                assert!(matches!(error, Error::Connect { .. }), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    forward.abort();
}
