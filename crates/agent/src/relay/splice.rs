//! Leads one client's connection to its route's target and copies bytes both ways.
//!
//! The end of one direction is passed on while the other goes on (half-close). Buffers are bounded,
//! so a side that does not read slows its own connection and nobody else's.
//!
//! Caddy keeps connections open and sends one request after the other on them, each after the
//! answer to the last. So when the route is led elsewhere, the connection's next *request* must
//! arrive at the new target, not only the next connection: the client speaking after the app did is
//! where one request ends and the next begins, and there the app's side is exchanged:
//!
//! ```text
//!            ┌── client speaks, app spoke last, target is another ──┐
//!            ▼                                                      │
//!  connect to target ──▶ leg: copy both ways ───────────────────────┘
//!            │ refused          │ both ended · idle · route closed · drained
//!            └──────────────────┴──▶ connection ends
//! ```
//! Requests under way finish where they began. Never looks into the bytes: when the route gets a
//! policy, the next request and all that follows is [`front`]'s.

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::front::{self, Way};
use super::route::Target;

const BUFFER_BYTES: usize = 16 * 1024;
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Nothing said for so long ends a connection. Generous: a WebSocket may be silent for long.
pub const IDLE: Duration = Duration::from_secs(2 * 60 * 60);
/// What is still under way so long after its route was led elsewhere ends.
const DRAIN: Duration = Duration::from_secs(5 * 60);

/// Serves one connection. Returns when it has ended, whatever the reason; the client sees only
/// that end, which Caddy turns into a 502 when no answer came before it.
pub async fn run(mut client: UnixStream, way: Way) {
    let mut target = way.target.clone();
    // What the client said that has not been passed on yet.
    let mut request = Vec::new();
    loop {
        let here = target.borrow_and_update().clone();
        if !here.policy.is_plain() {
            let (from, to) = client.into_split();
            let from = io::Cursor::new(request).chain(from);
            return front::serve(tokio::io::join(from, to), way).await;
        }
        let address = here.address;
        let mut closed = target.clone();
        let app = tokio::select! {
            biased;
            () = route_closed(&mut closed) => return,
            app = connect(address) => app,
        };
        let mut app = match app {
            Ok(app) => app,
            Err(error) => {
                tracing::debug!(%error, %address, "an app does not take connections");
                return;
            }
        };
        match leg(&mut client, &mut app, address, &mut target, &request).await {
            Ok(End::NextRequest(bytes)) => request = bytes,
            // How a peer ended its connection is between it and the other one.
            Ok(End::Connection) | Err(_) => return,
        }
    }
}

/// Connects to an app.
pub async fn connect(address: SocketAddrV4) -> io::Result<TcpStream> {
    let app = timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await??;
    app.set_nodelay(true)?;
    Ok(app)
}

/// Returns when the route is closed.
pub async fn route_closed(target: &mut watch::Receiver<Target>) {
    while target.changed().await.is_ok() {}
}

/// Whether the next request belongs to another app, or has to be looked at.
fn is_elsewhere(target: &Target, address: SocketAddrV4) -> bool {
    target.address != address || !target.policy.is_plain()
}

/// How a leg ended.
enum End {
    /// With the connection.
    Connection,
    /// With the beginning of a request that belongs to another target.
    NextRequest(Vec<u8>),
}

/// Copies between the client and one app, beginning with `request`.
async fn leg(
    client: &mut UnixStream,
    app: &mut TcpStream,
    address: SocketAddrV4,
    target: &mut watch::Receiver<Target>,
    request: &[u8],
) -> io::Result<End> {
    let activity = Activity::new(!request.is_empty());
    let led_elsewhere = target.clone();
    let led_elsewhere = || is_elsewhere(&led_elsewhere.borrow(), address);
    let (from_client, to_client) = client.split();
    let (from_app, mut to_app) = app.split();
    let up = async {
        to_app.write_all(request).await?;
        pass_requests(from_client, to_app, &activity, led_elsewhere).await
    };
    let down = pass_answers(from_app, to_client, &activity);
    let given_up = given_up(target, address, &activity);
    tokio::pin!(up, down, given_up);
    let (mut up_ended, mut down_ended) = (false, false);
    while !(up_ended && down_ended) {
        tokio::select! {
            passed = &mut up, if !up_ended => match passed? {
                Some(next) => return Ok(End::NextRequest(next)),
                None => up_ended = true,
            },
            passed = &mut down, if !down_ended => {
                passed?;
                down_ended = true;
            }
            () = &mut given_up => return Ok(End::Connection),
        }
    }
    Ok(End::Connection)
}

/// Passes on what the client says until its end (`None`), or until it says something that belongs
/// to another target, which is returned.
async fn pass_requests(
    mut client: impl AsyncRead + Unpin,
    mut app: impl AsyncWrite + Unpin,
    activity: &Activity,
    led_elsewhere: impl Fn() -> bool,
) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = client.read(&mut buffer).await?;
        let said = buffer.get(..length).unwrap_or_default();
        if said.is_empty() {
            app.shutdown().await?;
            return Ok(None);
        }
        if !activity.client_spoke_last() && led_elsewhere() {
            return Ok(Some(said.to_vec()));
        }
        activity.note(true);
        app.write_all(said).await?;
    }
}

async fn pass_answers(
    mut app: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = app.read(&mut buffer).await?;
        let said = buffer.get(..length).unwrap_or_default();
        if said.is_empty() {
            return client.shutdown().await;
        }
        activity.note(false);
        client.write_all(said).await?;
    }
}

/// Returns when the connection has to end from our side: its route is closed, or it has been silent
/// for too long, or led elsewhere for too long.
async fn given_up(
    target: &mut watch::Receiver<Target>,
    address: SocketAddrV4,
    activity: &Activity,
) {
    let mut drained = None;
    loop {
        let silent = activity.last() + IDLE;
        let wake = drained.map_or(silent, |d: Instant| d.min(silent));
        tokio::select! {
            changed = target.changed() => {
                if changed.is_err() {
                    return;
                }
                let elsewhere = is_elsewhere(&target.borrow_and_update(), address);
                drained = elsewhere.then(|| Instant::now() + DRAIN);
            }
            () = sleep_until(wake) => {
                if activity.last().elapsed() >= IDLE || drained.is_some_and(|d| d <= Instant::now()) {
                    return;
                }
            }
        }
    }
}

/// When something was last said and by whom, in one word: milliseconds since `start`, doubled, plus
/// one if it was the client.
struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new(client_spoke: bool) -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(u64::from(client_spoke)),
        }
    }

    fn note(&self, client: bool) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX / 4);
        let said = elapsed * 2 + u64::from(client);
        self.last.store(said, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Ordering::Relaxed) / 2)
    }

    fn client_spoke_last(&self) -> bool {
        self.last.load(Ordering::Relaxed) % 2 == 1
    }
}
