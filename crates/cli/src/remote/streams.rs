//! The standard streams of this process as queues: a thread reads, a thread writes, and neither holds up the
//! signals.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use ssh::{Chunk, Input};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// What is read at once, in bytes.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces that wait on each side.
const QUEUE: usize = 8;

/// Standard input for a command: nothing where a person would type into nothing.
pub fn input(no_stdin: bool) -> Input {
    if no_stdin || io::stdin().is_terminal() {
        return Input::None;
    }
    let (to, from) = mpsc::channel(QUEUE);
    thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match stdin.read(&mut piece) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    let read = Bytes::copy_from_slice(piece.get(..n).unwrap_or_default());
                    if to.blocking_send(read).is_err() {
                        return;
                    }
                }
            }
        }
    });
    Input::Stream(from)
}

/// Where a command's output goes, and the thread that writes it; it ends when the sender is dropped.
pub struct Written {
    /// For the command.
    pub to: mpsc::Sender<Chunk>,
    writer: JoinHandle<io::Result<()>>,
}

impl Written {
    /// To our own standard output and error, byte for byte.
    pub fn through() -> Self {
        let (to, mut from) = mpsc::channel(QUEUE);
        let writer = thread::spawn(move || {
            while let Some(chunk) = from.blocking_recv() {
                match chunk {
                    Chunk::Stdout(data) => {
                        let mut out = io::stdout().lock();
                        out.write_all(&data)?;
                        out.flush()?;
                    }
                    Chunk::Stderr(data) => io::stderr().lock().write_all(&data)?,
                }
            }
            Ok(())
        });
        Self { to, writer }
    }

    /// Waits until all is written. The command must have ended, or its sender been dropped.
    pub async fn end(self) -> Result<(), Failure> {
        drop(self.to);
        let writer = self.writer;
        let joined = tokio::task::spawn_blocking(move || writer.join()).await;
        match joined {
            Ok(Ok(Err(e))) => Err(Failure::Output(e)),
            _ => Ok(()),
        }
    }
}
