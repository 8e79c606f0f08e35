//! Ports of a host on the machine's loopback, for browsers, demos and tests.
//!
//! ```text
//! client ─▶ listener (machine's netns, loopback only) ─▶ splice ─▶ socket made in the host's netns ─▶ TARGET
//! ```
//! Owns one thread for each forward. The listener is bound before that thread enters the host's network
//! namespace; every later socket of the thread is the host's. The thread ends with the host. A forward
//! that runs as a daemon notes itself in `STATE/NAME/forwards`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::copy_bidirectional;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use crate::enter::runtime;
use crate::error::{During, Error, Result};
use crate::program;
use crate::registry::{Process, Record};

/// Connections that one forward carries at a time; further ones wait in the listener's queue.
pub const MOST_CONNECTIONS: usize = 512;
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const NOTES: &str = "forwards";

/// A running forward; dropped, it closes its connections and ends.
#[derive(Debug)]
pub struct Forward {
    listen: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    /// Listens on a loopback address of the machine and carries connections to `target` in the host.
    pub fn start(record: &Record, listen: SocketAddr, target: SocketAddr) -> Result<Self> {
        if !listen.ip().is_loopback() {
            return Err(Error::NotLoopback(listen));
        }
        let init = record
            .init
            .handle()
            .ok_or_else(|| Error::Unknown(record.name.to_string()))?;
        let path = format!("/proc/{}/ns/net", record.init.pid);
        let netns = File::open(&path).during("open", &path)?;
        let listener = TcpListener::bind(listen).during("listen on", listen.to_string())?;
        listener
            .set_nonblocking(true)
            .during("listen on", listen.to_string())?;
        let listen = listener
            .local_addr()
            .during("listen on", listen.to_string())?;
        let (stop, stopped) = oneshot::channel();
        let (entered, enters) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("forward-{}", listen.port()))
            .spawn(move || {
                let inside =
                    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
                let inside = inside.during("enter", &path).and_then(|()| runtime());
                match inside {
                    Ok(runtime) => {
                        drop(entered.send(Ok(())));
                        runtime.block_on(until_the_end(listener, target, init, stopped));
                    }
                    Err(error) => drop(entered.send(Err(error))),
                }
            })
            .during("start", "a thread")?;
        match enters.recv() {
            Ok(result) => result?,
            Err(_) => {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe))
                    .during("start", "the forward");
            }
        }
        Ok(Self {
            listen,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens, with the port that was given when 0 was asked for.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Waits until the host ends.
    pub fn wait(mut self) {
        // Held until the thread has ended: dropped earlier it would end the thread.
        let _stop = self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn until_the_end(
    listener: TcpListener,
    target: SocketAddr,
    init: OwnedFd,
    stopped: oneshot::Receiver<()>,
) {
    let ended = async {
        match watch(init) {
            // A process handle becomes readable when the process has ended.
            Ok(init) => drop(init.readable().await),
            Err(error) => eprintln!("forward: cannot watch the host: {error}"),
        }
    };
    tokio::select! {
        () = ended => {}
        _ = stopped => {}
        result = accept(listener, target) => {
            if let Err(error) = result {
                eprintln!("forward: cannot accept: {error}");
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "the new name is an unsafe fn; an OwnedFd that is moved in keeps what it asks for"
)]
fn watch(init: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(init, tokio::io::Interest::READABLE)
}

async fn accept(listener: TcpListener, target: SocketAddr) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(carry(client, target, place))),
            // The client gave up, or we are out of descriptors for a moment: not the end of the forward.
            Err(error) => {
                eprintln!("forward: a connection was not taken: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Splices one connection; either side may stop sending first and still receive.
async fn carry(mut client: TcpStream, target: SocketAddr, _place: OwnedSemaphorePermit) {
    let server = match timeout(CONNECT_DEADLINE, TcpStream::connect(target)).await {
        Ok(Ok(server)) => Some(server),
        // The client sees its connection closed, as from a port that nobody serves.
        _ => None,
    };
    if let Some(mut server) = server {
        drop(
            client
                .set_nodelay(true)
                .and_then(|()| server.set_nodelay(true)),
        );
        drop(copy_bidirectional(&mut client, &mut server).await);
    }
}

/// Runs the forward in a process of its own that outlives the caller; returns where it listens and its pid.
pub fn detach(
    record: &Record,
    listen: SocketAddr,
    target: SocketAddr,
) -> Result<(SocketAddr, u32)> {
    if !listen.ip().is_loopback() {
        return Err(Error::NotLoopback(listen));
    }
    let testbed = program::find_testbed()?;
    let log = record.state.join("forward.log");
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .during("open", &log)?;
    let mut child = Command::new("setsid")
        .arg("--fork")
        .arg(&testbed)
        .args(["forward", "--as-daemon", record.name.as_str()])
        .args([listen.to_string(), target.to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .during("run", "setsid")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .during("hear", "the forward")?;
    }
    child.wait().during("wait for", "setsid")?;
    let parsed = line
        .trim_end()
        .split_once(' ')
        .and_then(|(listen, pid)| Some((listen.parse().ok()?, pid.parse().ok()?)));
    parsed.ok_or_else(|| Error::Program {
        program: "the forward".to_owned(),
        status: "did not listen".to_owned(),
        stderr: if line.is_empty() {
            "see forward.log in the host's directory".to_owned()
        } else {
            line
        },
    })
}

/// Notes this process in the host's directory, so that the end of the host is its end too.
pub fn note_self(record: &Record) -> Result<()> {
    let dir = record.state.join(NOTES);
    fs::create_dir_all(&dir).during("make", &dir)?;
    let me =
        Process::of(std::process::id()).ok_or_else(|| Error::Unknown(record.name.to_string()))?;
    let note = dir.join(format!("{}.json", me.pid));
    let text = serde_json::to_vec(&me)
        .map_err(io::Error::from)
        .during("encode", &note)?;
    fs::write(&note, text).during("write", &note)
}

/// Ends the noted forwards of a host that has ended and whose forwards have not seen it yet.
pub(crate) fn end_all(state: &Path) {
    let Ok(notes) = fs::read_dir(state.join(NOTES)) else {
        return;
    };
    for note in notes.flatten() {
        let process = fs::read(note.path())
            .ok()
            .and_then(|text| serde_json::from_slice::<Process>(&text).ok());
        if let Some(Err(error)) = process.map(|process| process.kill()) {
            eprintln!("forward: {}", error.chain());
        }
    }
}
