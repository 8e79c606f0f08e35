//! Websockets that are held open and used: a text of two letters each turn, and its echo.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};

/// The longest that an echo may take.
const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);
const HEAD_MAX_BYTES: usize = 16 << 10;
/// A text frame `hi`, masked with zeros (RFC 6455, 5.2), and what the app makes of it.
const SAID: &[u8] = b"\x81\x82\0\0\0\0hi";
const ECHO: &[u8; 9] = b"\x81\x07echo hi";

/// Some that are in use until they are ended.
pub struct Sockets {
    stop: Arc<AtomicBool>,
    all: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Sockets {
    /// Opens so many to a host name by the proxy.
    pub fn open(count: usize, proxy: Ipv4Addr, host: &str) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut all = Vec::new();
        for _ in 0..count {
            let mut socket = begin(proxy, host)?;
            let stop = stop.clone();
            all.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    echo(&mut socket)?;
                    std::thread::sleep(PAUSE);
                }
                echo(&mut socket)
            }));
        }
        Ok(Self { stop, all })
    }

    /// Uses each once more, and says how many did not last.
    pub fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut dropped = 0;
        for socket in self.all {
            let ended = socket.join().ok().context("its thread panicked");
            if let Err(error) = ended.and_then(|ended| ended) {
                dropped += 1;
                eprintln!("bench: a websocket was dropped: {error:#}");
            }
        }
        dropped
    }
}

fn begin(proxy: Ipv4Addr, host: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect((proxy, 80)).context("connect to the proxy")?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_nodelay(true)?;
    write!(
        stream,
        "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )?;
    let mut head = Vec::new();
    let mut byte = [0];
    // Byte by byte: what follows the head belongs to the socket.
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend(byte);
        ensure!(head.len() < HEAD_MAX_BYTES, "a head without an end");
    }
    ensure!(
        head.starts_with(b"HTTP/1.1 101"),
        "no websocket: {}",
        String::from_utf8_lossy(&head)
    );
    Ok(stream)
}

fn echo(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(SAID)?;
    let mut heard = [0; ECHO.len()];
    stream.read_exact(&mut heard)?;
    ensure!(heard == *ECHO, "another answer: {heard:?}");
    Ok(())
}
