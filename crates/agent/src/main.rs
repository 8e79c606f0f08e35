//! The command line of `proximity-agent`. Parses arguments and hands over to the library.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use agent::client::{self, ClientError};
use agent::gateway::claims;
use agent::gateway::nftables::NAMES_PORT;
use agent::gateway::paths::Paths;
use agent::gateway::system::Appliance;
use agent::guest;
use agent::relay::{self, Outside};
use hyper::Method;
use lexopt::prelude::*;
use wire::agent::{AGENT_PORT, AGENT_SOCKET, RELAY_PORT};

const HELP: &str = "\
proximity-agent: the part of Proximity inside guests and on the appliance

  proximity-agent serve [--bundle FILE] [--listen ADDRESS:PORT] [--unix PATH] [--debug]
        serve this guest to its controller, by TLS and with tokens
        (defaults: /etc/proximity/identity/bundle.json, 0.0.0.0:39383 and the abstract socket
        proximity-agent; with --unix and without --listen only on that socket, without TLS)
  proximity-agent init [--bundle FILE] [--listen ADDRESS:PORT] [--debug]
        the same as process 1 of a guest without an init system: mounts, reaps, serves, halts
  proximity-agent relay [--state FILE] [--run DIR] [--bundle FILE] [--listen ADDRESS:PORT] [--debug]
        serve the gateway API on DIR/relay.sock and the routes in DIR/routes; with a valid identity
        also the API and tunnels into the zone on TCP (defaults: /var/lib/proximity/gateway.json,
        /run/proximity, /etc/proximity/identity/bundle.json, 0.0.0.0:39384)
  proximity-agent gateway read [--run DIR]
        print what holds on this appliance, as JSON
  proximity-agent gateway apply [--run DIR] < STATE
        make the JSON state on stdin hold; print what was changed, as JSON
  proximity-agent gateway probe < REQUEST
        wait until an instance answers as the JSON request says; print what was seen, as JSON
  proximity-agent attach < REQUEST
        become the command of a request (started by lxc-attach, see the `wire` crate)
  proximity-agent add|old|del MAC ADDRESS [NAME]
        take note of a DHCP lease; what the client calls itself is in DNSMASQ_SUPPLIED_HOSTNAME
        (started by dnsmasq on the appliance)
  proximity-agent version

Exit codes: 0 done, 1 failed, 2 wrong use, 3 the relay is not reachable.
";

/// Threads of a guest's agent.
const WORKERS: usize = 2;

enum Task {
    Serve {
        options: guest::Options,
        debug: bool,
    },
    Init {
        options: guest::Options,
        debug: bool,
    },
    Relay {
        paths: Paths,
        outside: Outside,
        debug: bool,
    },
    Read {
        paths: Paths,
    },
    Apply {
        paths: Paths,
    },
    Probe,
    Attach,
    Lease {
        paths: Paths,
        /// What happened, to whom, at which address.
        told: [String; 3],
    },
    Print(String),
}

fn main() -> ExitCode {
    let task = match parse(lexopt::Parser::from_env()) {
        // It becomes another program, so it starts without an event loop.
        Ok(Task::Attach) => return agent::attach::run(),
        Ok(task) => task,
        Err(error) => return tell(&format!("{error}\n\n{HELP}"), 2),
    };
    let mut runtime = match task {
        // A guest's callers run commands and move files at the same time.
        Task::Serve { .. } | Task::Init { .. } => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.worker_threads(WORKERS).enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(task)),
        Err(error) => tell(&format!("the event loop cannot start: {error}"), 1),
    }
}

fn parse(mut arguments: lexopt::Parser) -> Result<Task, lexopt::Error> {
    let defaults = Paths::appliance();
    let (mut state, mut run) = (defaults.state().to_owned(), defaults.run().to_owned());
    let mut root = PathBuf::from("/");
    let mut bundle = PathBuf::from(wire::identity::PATH);
    let (mut address, mut unix) = (None, None);
    let mut debug = false;
    let mut words: Vec<String> = Vec::new();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("state") => state = arguments.value()?.into(),
            Long("run") => run = arguments.value()?.into(),
            // For tests: where the appliance's other files are looked for.
            Long("root") => root = arguments.value()?.into(),
            Long("bundle") => bundle = arguments.value()?.into(),
            Long("listen") => address = Some(arguments.value()?.parse::<SocketAddr>()?),
            Long("unix") => unix = Some(arguments.value()?.into()),
            Long("debug") => debug = true,
            Short('h') | Long("help") => return Ok(Task::Print(HELP.to_owned())),
            Short('V') | Long("version") => return Ok(Task::Print(version())),
            Value(word) => words.push(word.string()?),
            _ => return Err(argument.unexpected()),
        }
    }
    let paths = Paths::new(&root, &state, &run);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [word @ ("serve" | "init")] => {
            // Whoever asks for a unix socket alone gets no port.
            let listen = address.or_else(|| unix.is_none().then(|| any(AGENT_PORT)));
            let inside = address.is_none() && unix.is_none();
            let options = guest::Options {
                bundle,
                listen,
                inside: inside.then(|| AGENT_SOCKET.to_owned()),
                unix,
            };
            match *word {
                "init" => Ok(Task::Init { options, debug }),
                _ => Ok(Task::Serve { options, debug }),
            }
        }
        ["relay"] => {
            let listen = address.unwrap_or_else(|| any(RELAY_PORT));
            // Beside it, where the firewall leads guests' questions; any port beside any port.
            let port = if listen.port() == 0 { 0 } else { NAMES_PORT };
            let outside = Outside {
                bundle,
                listen,
                names: (listen.ip(), port).into(),
            };
            Ok(Task::Relay {
                paths,
                outside,
                debug,
            })
        }
        ["gateway", "read"] => Ok(Task::Read { paths }),
        ["gateway", "apply"] => Ok(Task::Apply { paths }),
        ["gateway", "probe"] => Ok(Task::Probe),
        ["attach"] => Ok(Task::Attach),
        [action @ ("add" | "old" | "del"), mac, address]
        | [action @ ("add" | "old" | "del"), mac, address, _] => Ok(Task::Lease {
            paths,
            told: [action, mac, address].map(|word| (*word).to_owned()),
        }),
        ["version"] => Ok(Task::Print(version())),
        ["help"] => Ok(Task::Print(HELP.to_owned())),
        [] => Err("a command is missing".into()),
        _ => Err(format!("there is no command {:?}", words.join(" ")).into()),
    }
}

fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

fn version() -> String {
    format!("proximity-agent {}\n", agent::VERSION)
}

async fn run(task: Task) -> ExitCode {
    match task {
        Task::Print(text) => print(text.as_bytes()),
        Task::Attach => agent::attach::run(),
        Task::Probe => probe().await,
        Task::Serve { options, debug } => {
            agent::log::start(debug);
            match guest::run(options).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => tell(&format!("the agent cannot run: {error}"), 1),
            }
        }
        Task::Init { options, debug } => {
            agent::log::start(debug);
            match guest::init(options).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => tell(&format!("this process cannot be process 1: {error}"), 1),
            }
        }
        Task::Relay {
            paths,
            outside,
            debug,
        } => {
            agent::log::start(debug);
            match relay::run(paths, Appliance, outside).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => tell(&format!("the relay cannot run: {error}"), 1),
            }
        }
        Task::Lease {
            paths,
            told: [action, mac, address],
        } => {
            let supplied = std::env::var("DNSMASQ_SUPPLIED_HOSTNAME").ok();
            match claims::note(&paths, &action, &mac, &address, supplied.as_deref()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => tell(&error.to_string(), 1),
            }
        }
        Task::Read { paths } => call(&paths, Method::GET, Vec::new()).await,
        Task::Apply { paths } => {
            let mut state = Vec::new();
            match std::io::stdin().lock().read_to_end(&mut state) {
                Ok(_) => call(&paths, Method::PUT, state).await,
                Err(error) => tell(&format!("stdin cannot be read: {error}"), 1),
            }
        }
    }
}

async fn probe() -> ExitCode {
    let mut text = Vec::new();
    if let Err(error) = std::io::stdin().lock().read_to_end(&mut text) {
        return tell(&format!("stdin cannot be read: {error}"), 1);
    }
    let request = match serde_json::from_slice(&text) {
        Ok(request) => request,
        Err(error) => return tell(&format!("stdin is not a probe request: {error}"), 2),
    };
    let report = agent::probe::run(&request).await;
    match serde_json::to_vec(&report) {
        Ok(line) => print(&[line.as_slice(), b"\n"].concat()),
        Err(error) => tell(&error.to_string(), 1),
    }
}

async fn call(paths: &Paths, method: Method, body: Vec<u8>) -> ExitCode {
    match client::call(&paths.relay_socket(), method, "/gateway", body).await {
        Ok(answer) if answer.status.is_success() => {
            let mut line = answer.body.to_vec();
            line.push(b'\n');
            print(&line)
        }
        // The problem is JSON of our own relay: for programs and, by its detail and hint, people.
        Ok(answer) => tell(&String::from_utf8_lossy(&answer.body), 1),
        Err(error @ ClientError::NotReachable { .. }) => tell(
            &format!("{error}; see what the service proximity-relay says"),
            3,
        ),
        Err(error) => tell(&error.to_string(), 1),
    }
}

fn print(bytes: &[u8]) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn tell(message: &str, code: u8) -> ExitCode {
    // When stderr is gone the exit code still tells.
    let _ = writeln!(std::io::stderr(), "{}", message.trim_end());
    ExitCode::from(code)
}
