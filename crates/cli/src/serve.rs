//! `serve`: runs the controller in this process until it is told to stop. The one place where engine,
//! store, backends and server are put together.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backends::channel::{AgentChannel, LxcAttach};
use backends::gateway::LinkedGateway;
use backends::image::ImageStore;
use backends::lxc::LxcBackend;
use backends::node_network::LocalNetwork;
use clap::Args;
use engine::controller::Ports;
use engine::ports::SystemEntropy;
use engine::{Config, Controller};
use link::{Authority, Link};
use store::SqliteStore;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::configuration;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `serve`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  proximity serve
  proximity serve --config ./config.yml --data-dir /srv/proximity

The first token is written to DATA_DIR/admin.token; root on this machine needs none, its door is
DATA_DIR/proximity.sock. What happens is told on standard error; RUST_LOG=debug tells more.")]
pub struct ServeArgs {
    /// Listen here instead of where the configuration says [default: 127.0.0.1:8765]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Keep data here instead of where the configuration says [default: /var/lib/proximity]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The agent for guests [default: proximity-agent beside this program]
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
}

/// Runs the controller. Called without a runtime: it makes its own.
pub fn run(args: &ServeArgs, config: Option<&Path>, screen: &Screen) -> Result<Exit, Failure> {
    let mut parsed = configuration::load(config)?;
    if let Some(listen) = args.listen {
        if !listen.ip().is_loopback() {
            return Err(Failure::usage(
                format!("{listen} is not a loopback address, and this version serves no TLS"),
                "listen on 127.0.0.1 and reach it through an SSH tunnel or a TLS proxy of yours",
            ));
        }
        parsed.listen = listen;
    }
    if let Some(dir) = &args.data_dir {
        parsed.data_dir = dir.clone();
    }
    if !rustix::process::geteuid().is_root() {
        return Err(
            Failure::local("the controller of an lxc node must run as root")
                .next("sudo proximity serve; what else the machine lacks: proximity doctor"),
        );
    }
    start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::local(format!("cannot start: {e}")))?;
    let outcome = runtime.block_on(serve(parsed, args.agent.as_deref(), screen));
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second start in one process can't happen; if it did, the first log would do.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .try_init();
}

async fn serve(mut config: Config, agent: Option<&Path>, screen: &Screen) -> Result<Exit, Failure> {
    let local = |what: &str| {
        let what = what.to_owned();
        move |e: &dyn std::fmt::Display| Failure::local(format!("{what}: {e}"))
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| local("signals")(&e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| local("signals")(&e))?;
    let data_dir = config.data_dir.clone();
    make_data_dir(&data_dir)?;
    // As the kernel names it from here on: mount tables know no links and no detours.
    let data_dir = std::fs::canonicalize(&data_dir).map_err(|e| local("the data directory")(&e))?;
    engine::config::check_dir("data_dir", &data_dir)
        .map_err(|e| local("the data directory")(&e))?;
    config.data_dir = data_dir.clone();
    // Held to the end: a second controller over the same data ends here, before it touches anything.
    let _held = lock(&data_dir)?;
    let catalog = configuration::catalog(&config)?;
    let socket = data_dir.join("proximity.sock");
    let listeners = server::bind(config.listen, &socket)
        .await
        .map_err(|e| local("the controller can't start")(&e))?;
    let listen = config.listen;
    let audit = open_audit_log(&data_dir).await?;
    let ports = ports(&config, agent).await?;
    let controller = Controller::new(config, catalog, ports);
    let token_file = data_dir.join("admin.token");
    server::admin_token(&controller, &token_file, audit.redactor())
        .await
        .map_err(|e| local("the first token")(&e))?;
    controller
        .start()
        .await
        .map_err(|e| local("the controller can't start")(&e))?;
    tracing::info!(
        api = %format!("http://{listen}/api/v1"), docs = %format!("http://{listen}/api/docs"),
        socket = %socket.display(), token = %token_file.display(), "the controller serves"
    );
    screen.note(&format!(
        "serving on http://{listen} and {}",
        socket.display()
    ));
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let (controller, stop) = (controller.clone(), stop.clone());
        let audit = audit.clone();
        async move { server::serve(controller, audit, listeners, &socket, stop).await }
    });
    tokio::pin!(serving);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut serving => {
            let cause = match ended {
                Ok(Ok(())) => "its listeners are gone".to_owned(),
                Ok(Err(e)) => e.to_string(),
                Err(e) => e.to_string(),
            };
            return Err(Failure::local(format!("the controller stopped serving: {cause}")));
        }
    }
    tracing::info!("the controller stops; guests go on");
    stop.cancel();
    // Requests under way may end; a command that runs for an hour may not keep us.
    let _ = tokio::time::timeout(Duration::from_secs(5), &mut serving).await;
    controller.stop();
    // Commands whose callers went with us end before we do.
    let _ = tokio::task::spawn_blocking(backends::channel::await_hunts).await;
    let head = audit.head();
    // What still runs is closed as `unknown` when the log is opened again.
    audit.close().await;
    tracing::info!(audit.head = %head, "the audit log is closed");
    Ok(Exit::OK)
}

/// No controller without its audit log. The head goes to the journal, where it can be compared later.
async fn open_audit_log(data_dir: &Path) -> Result<::audit::Log, Failure> {
    let path = data_dir.join(crate::audit::FILE);
    let log = ::audit::Log::open(&path, ::audit::Options::default())
        .await
        .map_err(|e| {
            let cause = std::error::Error::source(&e).map(|c| format!(": {c}"));
            Failure::local(format!("{e}{}", cause.unwrap_or_default()))
                .next("see what is wrong with it: proximity audit verify")
        })?;
    tracing::info!(audit.head = %log.head(), "the audit log is open");
    Ok(log)
}

async fn ports(config: &Config, agent: Option<&Path>) -> Result<Ports, Failure> {
    let data_dir = &config.data_dir;
    let agent = match agent {
        Some(path) => path.to_owned(),
        None => beside_us()?,
    };
    let port = |e: engine::ports::PortError| {
        let failure = Failure::local(e.to_string());
        match e.hint {
            Some(hint) => failure.next(hint),
            None => failure,
        }
    };
    let images = ImageStore::new(&config.image_dir);
    let authority =
        Authority::open(&data_dir.join("identity")).map_err(|e| Failure::local(e.to_string()))?;
    let authority = Arc::new(authority);
    // There is at most one node of this backend, which is this machine.
    let through_relay = config.nodes.values().any(|node| node.through_relay);
    let backend = LxcBackend::new(data_dir, &agent, images.clone(), authority.clone())
        .map_err(port)?
        .through_relay(through_relay);
    let link = Link::new(authority, Arc::new(backend.clone()))
        .map_err(|e| Failure::local(e.to_string()))?;
    let link = Arc::new(link);
    let store = SqliteStore::open(&data_dir.join("proximity.db"))
        .await
        .map_err(|e| Failure::local(e.to_string()))?;
    let guests = backend.guests().to_owned();
    Ok(Ports {
        store: Arc::new(store),
        network: Arc::new(LocalNetwork::new(data_dir)),
        gateway: Arc::new(LinkedGateway::new(link.clone())),
        images: Arc::new(images),
        channels: vec![
            Arc::new(AgentChannel::new(link)),
            Arc::new(LxcAttach::new(&guests)),
        ],
        entropy: Arc::new(SystemEntropy),
        backend: Arc::new(backend),
    })
}

fn beside_us() -> Result<PathBuf, Failure> {
    let me = std::env::current_exe()
        .map_err(|e| Failure::local(format!("this program's own path: {e}")))?;
    let beside = me.with_file_name("proximity-agent");
    if beside.exists() {
        Ok(beside)
    } else {
        Err(Failure::local(format!("{} is missing", beside.display()))
            .next("build it (make build) or say where it is: proximity serve --agent FILE"))
    }
}

/// Takes the data directory for this process alone, for as long as the file is open. The socket could not
/// tell: two controllers that start at the same moment would both find nobody there.
fn lock(data_dir: &Path) -> Result<std::fs::File, Failure> {
    let path = data_dir.join("controller.lock");
    let failed = |e: &dyn std::fmt::Display| {
        Failure::local(format!("{} can't be locked: {e}", path.display()))
    };
    let file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| failed(&e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Failure::local(format!(
            "a controller is running already over {}",
            data_dir.display()
        ))
        .next(
            "see what it does: proximity status; or serve another one with --data-dir and --listen",
        )),
        Err(std::fs::TryLockError::Error(e)) => Err(failed(&e)),
    }
}

/// 0711: guests' roots must be able to pass through to their own layers; everything else in it is 0600.
fn make_data_dir(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711)))
        .map_err(|e| Failure::local(format!("{} can't be made: {e}", dir.display())))
}
