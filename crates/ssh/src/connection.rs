//! One connection to one host: reached, its key checked, logged in. Each phase has a deadline of its own.
//!
//! Owns the socket and cuts it when dropped, so nothing of a connection outlives whoever made it.

use std::fmt;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{self, AuthResult, Msg};
use russh::keys::{HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{AlgorithmKind, Channel, ChannelOpenFailure, ChannelStream, MethodKind, MethodSet};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::{Agent, Offered};
use crate::algorithms;
use crate::error::Error;
use crate::hosts::{Hosts, Settings, Vm, address};
use crate::identity::{Keys, Offer, Passphrases};
use crate::signer::FileSigner;
use crate::trust::{HostKeyProblem, ShownKey, Trust};
use crate::vm_id::VmId;
use crate::warden::{Warden, Watcher};

/// How often a silent server is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many questions may stay without an answer.
const KEEP_ALIVE_MAX: usize = 3;
/// What a server may send before it must wait for us, in bytes.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How long opening a channel may take.
const OPEN_CHANNEL: Duration = Duration::from_secs(10);

/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the handler saw, told to whoever connects.
#[derive(Default)]
struct Seen {
    shown: Option<ShownKey>,
    problem: Option<HostKeyProblem>,
}

/// Answers for the server's key; refuses everything else a server could ask for by leaving the defaults.
struct Door {
    trust: Trust,
    seen: Arc<Mutex<Seen>>,
}

impl client::Handler for Door {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let verdict = self.trust.check(shown);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.shown = ShownKey::of(&shown.public_key());
        seen.problem = verdict.err().map(|problem| *problem);
        Ok(seen.problem.is_none())
    }
}

/// A socket that is shut down with its connection, even while a task of the SSH library waits on it.
struct Cut(std::net::TcpStream);

impl Drop for Cut {
    fn drop(&mut self) {
        // It may be closed already, which is what is wanted.
        let _: std::io::Result<()> = self.0.shutdown(Shutdown::Both);
    }
}

/// What carries a connection, and ends with it.
enum Way {
    Socket(#[expect(dead_code, reason = "held to be cut")] Cut),
    Jump(#[expect(dead_code, reason = "held to be cut")] Box<Connection>),
}

/// Why there is no channel; nothing has been sent to the far side.
#[derive(Debug)]
pub(crate) enum NoChannel {
    /// The server opens no further one.
    Refused(Error),
    /// The connection is dead or does not answer.
    Gone(Error),
}

impl From<NoChannel> for Error {
    fn from(none: NoChannel) -> Self {
        match none {
            NoChannel::Refused(error) | NoChannel::Gone(error) => error,
        }
    }
}

/// A connection that is logged in.
pub(crate) struct Connection {
    vm: Vm,
    handle: client::Handle<Door>,
    watcher: Arc<Watcher>,
    /// After the handle, so that the handle's last words may be sent.
    _way: Way,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("vm", &self.vm.id)
            .finish_non_exhaustive()
    }
}

/// A server that has shown its key, and may or may not have been believed.
struct Reached {
    handle: Result<client::Handle<Door>, russh::Error>,
    seen: Arc<Mutex<Seen>>,
    way: Way,
}

/// Who asks for a connection: the configuration, and whoever knows passphrases.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub hosts: &'a Hosts,
    pub passphrases: Option<&'a Passphrases>,
}

/// A host on the way is reached as any other one. In a box, since that may have one before it too.
fn open_before<'a>(
    vm: &'a Vm,
    caller: Caller<'a>,
) -> Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>> {
    Box::pin(Connection::open(vm, caller))
}

/// By TCP, or through the host that stands before it.
async fn reach(vm: &Vm, caller: Caller<'_>, trust: Trust) -> Result<Reached, Error> {
    let settings = &caller.hosts.settings;
    let config = Arc::new(client::Config {
        preferred: algorithms::preferred(trust.wanted_keys(), trust.wanted_certificates()),
        window_size: WINDOW_BYTES,
        keepalive_interval: Some(KEEP_ALIVE),
        keepalive_max: KEEP_ALIVE_MAX,
        nodelay: true,
        ..client::Config::default()
    });
    let seen = Arc::new(Mutex::new(Seen::default()));
    let door = Door {
        trust,
        seen: Arc::clone(&seen),
    };
    let before = vm.jump.as_ref().and_then(|id| caller.hosts.vms.get(id));
    let limit = settings.connect_timeout;
    let (way, handle) = if let Some(before) = before {
        let jump = open_before(before, caller).await?;
        let stream = jump.stream_to(vm, settings).await?;
        let handle = timeout(limit, client::connect_stream(config, stream, door)).await;
        (Way::Jump(Box::new(jump)), handle)
    } else {
        let (socket, cut) = connect(vm, settings).await?;
        let handle = timeout(limit, client::connect_stream(config, socket, door)).await;
        (Way::Socket(cut), handle)
    };
    let handle = handle.map_err(|_| Error::Deadline {
        vm: vm.id.to_string(),
        phase: "the SSH handshake was going on",
        limit_ms: millis(limit),
    })?;
    Ok(Reached { handle, seen, way })
}

async fn connect(vm: &Vm, settings: &Settings) -> Result<(TcpStream, Cut), Error> {
    let failed = |e: std::io::Error| Error::Connect {
        vm: vm.id.to_string(),
        address: vm.address(),
        reason: e.to_string(),
    };
    let socket = TcpStream::connect((vm.host.as_str(), vm.port));
    let socket = timeout(settings.connect_timeout, socket)
        .await
        .map_err(|_| Error::Deadline {
            vm: vm.id.to_string(),
            phase: "the host was being connected to",
            limit_ms: millis(settings.connect_timeout),
        })?
        .map_err(failed)?;
    // Without it each small message waits for the answer to the last one: 45 ms a command.
    socket.set_nodelay(true).map_err(failed)?;
    let socket = socket.into_std().map_err(failed)?;
    let cut = Cut(socket.try_clone().map_err(failed)?);
    Ok((TcpStream::from_std(socket).map_err(failed)?, cut))
}

/// The key that a host shows, without logging in and without believing it; and what is wrong with it, if anything.
/// A host on the way must be trusted.
pub(crate) async fn shown_key(
    vm: &Vm,
    caller: Caller<'_>,
) -> Result<(ShownKey, Option<HostKeyProblem>), Error> {
    let trust = Trust::read(vm.known_hosts(&caller.hosts.settings), vm)?;
    let reached = reach(vm, caller, trust).await?;
    let mut seen = reached.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let problem = seen.problem.take();
    match (seen.shown.take(), reached.handle) {
        (Some(shown), _) => Ok((shown, problem)),
        (None, Err(e)) => Err(handshake_failure(vm, e)),
        (None, Ok(_)) => Err(handshake_failure(vm, russh::Error::Disconnect)),
    }
}

impl Connection {
    /// Connects, checks the server's key, and logs in.
    pub async fn open(vm: &Vm, caller: Caller<'_>) -> Result<Self, Error> {
        Self::open_with(vm, caller, Offer::Configured).await
    }

    /// The same with the keys that are named.
    pub async fn open_with(vm: &Vm, caller: Caller<'_>, offer: Offer<'_>) -> Result<Self, Error> {
        let settings = &caller.hosts.settings;
        let trust = Trust::read(vm.known_hosts(settings), vm)?;
        // Before anything is sent: a key that cannot be used is the caller's to mend.
        let keys = Keys::of(vm, settings, caller.passphrases, offer).await?;
        let Reached { handle, seen, way } = reach(vm, caller, trust).await?;
        let problem = seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .problem
            .take();
        if let Some(problem) = problem {
            return Err(Error::HostKey {
                vm: vm.id.to_string(),
                problem: Box::new(problem),
            });
        }
        let mut handle = handle.map_err(|e| handshake_failure(vm, e))?;
        let login = Login {
            vm,
            handle: &mut handle,
            tried: Vec::new(),
            offered: None,
        };
        timeout(settings.connect_timeout, login.run(keys))
            .await
            .map_err(|_| Error::Deadline {
                vm: vm.id.to_string(),
                phase: "the login was going on",
                limit_ms: millis(settings.connect_timeout),
            })??;
        Ok(Self {
            vm: vm.clone(),
            handle,
            watcher: Arc::default(),
            _way: way,
        })
    }

    /// A stream through this host to another one's sshd.
    async fn stream_to(&self, vm: &Vm, settings: &Settings) -> Result<ChannelStream<Msg>, Error> {
        let (host, port) = (vm.host.as_str(), vm.port);
        self.tunnel(&vm.id, (host, port), settings).await
    }

    /// A stream to what this host reaches at an address, told of as `vm`.
    pub async fn tunnel(
        &self,
        vm: &VmId,
        (host, port): (&str, u16),
        settings: &Settings,
    ) -> Result<ChannelStream<Msg>, Error> {
        let open = self
            .handle
            .channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0);
        let failed = |reason: String| Error::Connect {
            vm: vm.to_string(),
            address: address(host, port),
            reason: format!("through {}: {reason}", self.vm.id),
        };
        match timeout(settings.connect_timeout, open).await {
            Ok(Ok(channel)) => Ok(channel.into_stream()),
            Ok(Err(russh::Error::ChannelOpenFailure(
                ChannelOpenFailure::AdministrativelyProhibited,
            ))) => Err(failed(
                "its sshd_config forbids it (AllowTcpForwarding, PermitOpen)".to_owned(),
            )),
            Ok(Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed))) => {
                Err(failed("it cannot connect to there".to_owned()))
            }
            Ok(Err(e)) => Err(failed(e.to_string())),
            Err(_) => Err(Error::Deadline {
                vm: vm.to_string(),
                phase: "the host was being connected to",
                limit_ms: millis(settings.connect_timeout),
            }),
        }
    }

    /// Whether it is known to be dead.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// A channel for one command.
    pub async fn channel(&self) -> Result<Channel<Msg>, Error> {
        Ok(self.open_channel().await?)
    }

    /// A channel for one command, or why there is none.
    pub async fn open_channel(&self) -> Result<Channel<Msg>, NoChannel> {
        let vm = self.vm.id.to_string();
        match timeout(OPEN_CHANNEL, self.handle.channel_open_session()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(russh::Error::ChannelOpenFailure(why))) => {
                let reason = refusal(&why);
                Err(NoChannel::Refused(Error::NotStarted { vm, reason }))
            }
            Ok(Err(e)) => Err(NoChannel::Gone(Error::Handshake {
                vm,
                address: self.vm.address(),
                reason: format!("the connection broke before a channel was open: {e}"),
            })),
            Err(_) => Err(NoChannel::Gone(Error::Deadline {
                vm,
                phase: "a channel was being opened",
                limit_ms: millis(OPEN_CHANNEL),
            })),
        }
    }

    /// What watches over its commands, if it does.
    pub fn warden(&self) -> Option<&Arc<Warden>> {
        self.watcher.get()
    }

    /// Starts a watcher for all further commands, once, in the background; where that is not possible, each command
    /// goes on having its own.
    pub fn watch(self: &Arc<Self>) {
        if !self.watcher.begin() {
            return;
        }
        let connection = Arc::downgrade(self);
        tokio::spawn(async move {
            let Some(connection) = connection.upgrade() else {
                return;
            };
            if let Ok(channel) = connection.open_channel().await
                && let Some(warden) = Warden::start(channel).await
            {
                connection.watcher.set(warden);
            }
        });
    }

    /// Ends it in order; a server that does not listen is cut off.
    pub async fn close(&self) {
        if let Some(warden) = self.warden() {
            warden.dismiss().await;
        }
        let farewell = async {
            let reason = russh::Disconnect::ByApplication;
            let said = self.handle.disconnect(reason, "", "").await;
            while said.is_ok() && !self.handle.is_closed() {
                tokio::time::sleep(FAREWELL / 50).await;
            }
        };
        // Whoever does not hear it is cut off when this is dropped.
        let _: Result<(), _> = timeout(FAREWELL, farewell).await;
    }
}

fn refusal(why: &ChannelOpenFailure) -> String {
    match why {
        ChannelOpenFailure::ConnectFailed => {
            "the server opens no further session: MaxSessions of its sshd_config is reached"
                .to_owned()
        }
        ChannelOpenFailure::AdministrativelyProhibited => {
            "the server opens no session: its sshd_config forbids it for this user".to_owned()
        }
        other => format!("the server opens no session: {other:?}"),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn handshake_failure(vm: &Vm, error: russh::Error) -> Error {
    let (name, address) = (vm.id.to_string(), vm.address());
    match error {
        russh::Error::NoCommonAlgo { kind, ours, theirs } => Error::WeakServer {
            vm: name,
            address,
            kind: match kind {
                AlgorithmKind::Kex => "key exchange",
                AlgorithmKind::Key => "host key",
                AlgorithmKind::Cipher => "cipher",
                AlgorithmKind::Compression => "compression",
                AlgorithmKind::Mac => "MAC",
            },
            offered: bounded(&theirs),
            needed: bounded(&ours),
        },
        other => Error::Handshake {
            vm: name,
            address,
            reason: other.to_string(),
        },
    }
}

/// A peer's list, not longer than anybody reads.
fn bounded(names: &[String]) -> String {
    let real = names
        .iter()
        .filter(|n| !n.starts_with("ext-info") && !n.starts_with("kex-strict"));
    let text = real.map(String::as_str).collect::<Vec<_>>().join(", ");
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}

/// A login on its way: which keys were tried, and what the server said it would take.
struct Login<'a> {
    vm: &'a Vm,
    handle: &'a mut client::Handle<Door>,
    tried: Vec<String>,
    offered: Option<MethodSet>,
}

impl Login<'_> {
    async fn run(mut self, keys: Keys) -> Result<(), Error> {
        let user = self.vm.user.clone();
        let has_file = keys.identity.is_some();
        if let Some(identity) = keys.identity {
            let path = identity.path.display().to_string();
            if let Some(certificate) = identity.certificate {
                self.tried.push(format!("{path}-cert.pub"));
                let hash = self.rsa_hash(identity.key.algorithm().is_rsa()).await?;
                let mut signer = FileSigner(&identity.key);
                let answer = self
                    .handle
                    .authenticate_certificate_with(&user, certificate, hash, &mut signer)
                    .await;
                let answer = answer.map_err(|_| russh::Error::Disconnect);
                if self.judge(answer)? {
                    return Ok(());
                }
            }
            self.tried.push(path);
            let hash = self.rsa_hash(identity.key.algorithm().is_rsa()).await?;
            let key = PrivateKeyWithHashAlg::new(identity.key, hash);
            let answer = self.handle.authenticate_publickey(&user, key).await;
            if self.judge(answer)? {
                return Ok(());
            }
        }
        let agent = if keys.use_agent {
            Agent::connect().await
        } else {
            None
        };
        let agent_keys = match agent {
            Some(agent) => self.ask_agent(&user, agent, keys.locked.as_ref()).await?,
            None => Some(0),
        };
        match agent_keys {
            None => Ok(()),
            Some(0) if !has_file => Err(Error::Identity {
                vm: self.vm.id.to_string(),
                reason: "there is no key to log in with: no key file, and no SSH agent with keys"
                    .to_owned(),
                hint: format!(
                    "name one with vms.{}.key_file, or put it into remote_execution.key_storage_path under the name {}",
                    self.vm.id, self.vm.id
                ),
            }),
            Some(_) => Err(self.refused()),
        }
    }

    /// `None` when an agent's key let us in, else how many it had.
    async fn ask_agent(
        &mut self,
        user: &str,
        mut agent: Agent,
        first: Option<&PublicKey>,
    ) -> Result<Option<usize>, Error> {
        let offered = agent.to_try(first);
        let count = offered.len();
        for (offered, name) in offered {
            self.tried.push(name);
            let signer = &mut agent.client;
            let answer = match offered {
                Offered::Key(key) => {
                    let hash = self.rsa_hash(key.algorithm().is_rsa()).await?;
                    self.handle
                        .authenticate_publickey_with(user, key, hash, signer)
                        .await
                }
                Offered::Certificate(certificate) => {
                    let is_rsa = certificate.public_key().algorithm().is_rsa();
                    let hash = self.rsa_hash(is_rsa).await?;
                    self.handle
                        .authenticate_certificate_with(user, *certificate, hash, signer)
                        .await
                }
            };
            let answer = answer.map_err(|_| russh::Error::Disconnect);
            if self.judge(answer)? {
                return Ok(None);
            }
        }
        Ok(Some(count))
    }

    /// RSA signs with SHA-2 or not at all.
    async fn rsa_hash(&self, is_rsa: bool) -> Result<Option<HashAlg>, Error> {
        if !is_rsa {
            return Ok(None);
        }
        match self.handle.best_supported_rsa_hash().await {
            Ok(Some(Some(hash))) => Ok(Some(hash)),
            Ok(None) => Ok(Some(HashAlg::Sha512)),
            Ok(Some(None)) => Err(Error::WeakServer {
                vm: self.vm.id.to_string(),
                address: self.vm.address(),
                kind: "signature of RSA keys",
                offered: "ssh-rsa with SHA-1".to_owned(),
                needed: "rsa-sha2-512, rsa-sha2-256".to_owned(),
            }),
            Err(e) => Err(handshake_failure(self.vm, e)),
        }
    }

    /// Whether we are in.
    fn judge(&mut self, answer: Result<AuthResult, russh::Error>) -> Result<bool, Error> {
        match answer {
            Ok(AuthResult::Success) => Ok(true),
            Ok(AuthResult::Failure {
                partial_success: true,
                ..
            }) => Err(Error::SecondFactor {
                vm: self.vm.id.to_string(),
                address: self.vm.address(),
                user: self.vm.user.clone(),
            }),
            Ok(AuthResult::Failure {
                remaining_methods, ..
            }) => {
                if self.handle.is_closed() {
                    return Err(handshake_failure(self.vm, russh::Error::Disconnect));
                }
                self.offered = Some(remaining_methods);
                Ok(false)
            }
            Err(e) => Err(handshake_failure(self.vm, e)),
        }
    }

    fn refused(&self) -> Error {
        let tried = self.tried.join(", ");
        let takes_keys = self
            .offered
            .as_ref()
            .is_none_or(|methods| methods.contains(&MethodKind::PublicKey));
        let reason = if takes_keys {
            format!("it took none of these keys: {tried}")
        } else {
            let names = self.offered.iter().flat_map(|m| m.iter());
            let names: Vec<String> = names.map(String::from).collect();
            format!(
                "it takes no keys, only {}; passwords are not used here",
                names.join(", ")
            )
        };
        Error::Login {
            vm: self.vm.id.to_string(),
            address: self.vm.address(),
            user: self.vm.user.clone(),
            reason,
        }
    }
}
