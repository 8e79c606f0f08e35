//! The warden of a kept connection, as this side sees it: one session on the far side that watches over all commands
//! of the connection, so that none needs a watcher of its own. Its program is in `supervisor`.
//!
//! Gives out marks for commands, passes orders on to end some, and knows whether the far side's part lives. When it
//! does not, nothing further is begun under it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::supervisor::{Marks, Watch, warden_line, warden_order};

/// How long the far side has to begin.
const START: Duration = Duration::from_secs(10);
/// Orders that wait on their way.
const QUEUE: usize = 64;
/// What may come before the line that says that it is there, in bytes.
const MAX_NOISE_BYTES: usize = 16 * 1024;
/// Login shells that read an order as `/bin/sh` does.
const POSIX_SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "ksh", "mksh"];

/// A connection's warden, if it has one.
#[derive(Default)]
pub(crate) struct Watcher {
    begun: AtomicBool,
    warden: OnceLock<Arc<Warden>>,
}

impl Watcher {
    /// Whether nobody has begun before.
    pub fn begin(&self) -> bool {
        !self.begun.swap(true, Ordering::Relaxed)
    }

    /// The one that has been started.
    pub fn set(&self, warden: Arc<Warden>) {
        // It was begun only once.
        let _: Result<(), _> = self.warden.set(warden);
    }

    /// The one that lives.
    pub fn get(&self) -> Option<&Arc<Warden>> {
        let warden = self.warden.get()?;
        (!warden.orders.is_closed()).then_some(warden)
    }
}

/// A warden that has said that it is there.
pub(crate) struct Warden {
    marks: Marks,
    process: u32,
    shell_is_posix: bool,
    next: AtomicU32,
    orders: mpsc::Sender<String>,
}

/// One command under a warden.
#[derive(Clone)]
pub(crate) struct Ward {
    pub marks: Marks,
    number: u32,
    warden: Arc<Warden>,
}

impl Warden {
    /// Starts one on this channel. `None` if the far side does not begin in time.
    pub async fn start(channel: Channel<Msg>) -> Option<Arc<Self>> {
        let marks = Marks::of_connection().ok()?;
        let (mut read, write) = channel.split();
        let said = timeout(START, begin(&mut read, &write, &marks)).await;
        let (process, shell) = said.ok().flatten()?;
        let (orders, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(pass_on(waiting, read, write));
        let shell = shell.rsplit('/').next().unwrap_or_default();
        Some(Arc::new(Self {
            marks,
            process,
            shell_is_posix: POSIX_SHELLS.contains(&shell),
            next: AtomicU32::new(1),
            orders,
        }))
    }

    /// Takes a command into its care.
    pub fn ward(self: &Arc<Self>) -> Ward {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ward {
            marks: Marks::numbered(&self.marks, number),
            number,
            warden: Arc::clone(self),
        }
    }

    /// Sends it away: nothing runs any more.
    pub async fn dismiss(&self) {
        // One that is gone already needs not be sent away.
        let _: Result<(), _> = self.orders.send("Q\n".to_owned()).await;
    }
}

impl Ward {
    pub fn watch(&self) -> Watch {
        Watch::Warden(self.warden.process)
    }

    pub fn shell_is_posix(&self) -> bool {
        self.warden.shell_is_posix
    }

    /// Has the command and all its children ended. `process` is its first one, 0 while nobody knows it. Says whether
    /// there was somebody to tell.
    pub async fn end(&self, process: u32) -> bool {
        let order = format!("K {} {process}\n", self.number);
        self.warden.orders.send(order).await.is_ok()
    }
}

/// Its process and the login shell.
async fn begin(
    read: &mut ChannelReadHalf,
    write: &ChannelWriteHalf<Msg>,
    marks: &Marks,
) -> Option<(u32, String)> {
    write.exec(false, warden_line()).await.ok()?;
    write
        .data_bytes(Bytes::from(warden_order(marks)))
        .await
        .ok()?;
    let ready = marks.ready();
    let mut said = String::new();
    while said.len() < MAX_NOISE_BYTES {
        if let ChannelMsg::Data { data } = read.wait().await? {
            said.push_str(&String::from_utf8_lossy(&data));
        }
        let line = said.split_once(ready.as_str());
        if let Some((line, _)) = line.and_then(|(_, rest)| rest.split_once('\n')) {
            let (process, shell) = line.split_once(' ')?;
            return Some((process.parse().ok()?, shell.to_owned()));
        }
    }
    None
}

/// Until the far side ends, or nobody can give orders any more.
async fn pass_on(
    mut waiting: mpsc::Receiver<String>,
    mut read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
) {
    loop {
        tokio::select! {
            order = waiting.recv() => {
                let Some(order) = order else { break };
                if write.data_bytes(Bytes::from(order)).await.is_err() {
                    return;
                }
            }
            message = read.wait() => {
                // It says nothing more; an end is an end.
                match message {
                    None | Some(ChannelMsg::Close | ChannelMsg::ExitStatus { .. } | ChannelMsg::ExitSignal { .. }) => return,
                    Some(_) => {}
                }
            }
        }
    }
    // A connection that is gone has ended it already.
    let _: Result<(), _> = write.close().await;
}
