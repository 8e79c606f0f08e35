//! The machines of the management LAN beside the node: each a process with a network namespace of its own.
//!
//! ```text
//! spawned under unshare -n ──"netns"──▶ init wires eth0 ──"go"──▶ addresses, services ──"ready"──▶ waits
//! ```
//! Owns its namespace's addresses and the dnsmasq and httpd in it. The process waits for the end of its
//! stdin, which init holds; its services end with the pid namespace.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use clap::ValueEnum;

use crate::error::{During, Error, Result, succeeded};
use crate::network::{
    self, INTERNET, INTERNET_NAMES, LAN_MACHINE, LEASE_FIRST, LEASE_LAST, NODE_PORT, ROUTER,
};
use crate::program;

const RUN: &str = "/run/testbed";

/// Which machine a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// 192.168.50.1 on the LAN, and the internet's addresses.
    Router,
    /// 192.168.50.20 on the LAN.
    Lan,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Lan => "lan",
        }
    }
}

/// Init's end of a machine.
#[derive(Debug)]
pub(crate) struct Machine {
    role: Role,
    child: Child,
    /// Dropped, it ends the machine: init keeps it for its whole life.
    tell: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Machine {
    pub(crate) fn spawn(role: Role) -> Result<Self> {
        let testbed = program::find_testbed()?;
        let mut child = program::clean("unshare")
            .args(["--net", "--"])
            .arg(&testbed)
            .args(["host-machine", role.as_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .during("run", &testbed)?;
        let (Some(tell), Some(hear)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe)).during("talk to", testbed);
        };
        Ok(Self {
            role,
            child,
            tell,
            hear: BufReader::new(hear),
        })
    }

    /// Its pid, once its network namespace is there.
    pub(crate) fn namespace(&mut self) -> Result<u32> {
        self.expect("netns")?;
        Ok(self.child.id())
    }

    /// Lets it configure itself; its link must be there.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.tell
            .write_all(b"go\n")
            .during("talk to machine", self.role.as_str())
    }

    /// Waits until its services answer.
    pub(crate) fn ready(&mut self) -> Result<()> {
        self.expect("ready")
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.hear
            .read_line(&mut line)
            .during("hear machine", self.role.as_str())?;
        if line.trim_end() == word {
            return Ok(());
        }
        let stderr = if line.is_empty() {
            "it ended"
        } else {
            line.trim_end()
        }
        .to_owned();
        Err(Error::Program {
            program: format!("machine {}", self.role.as_str()),
            status: "not ready".into(),
            stderr,
        })
    }
}

/// Is a machine until stdin ends.
pub fn run(role: Role) -> Result<()> {
    say("netns")?;
    let mut stdin = io::stdin().lock();
    let mut line = String::new();
    stdin.read_line(&mut line).during("hear", "init")?;
    let up = match role {
        Role::Router => router(),
        Role::Lan => lan(),
    };
    match up {
        Ok(()) => say("ready")?,
        Err(error) => return say(&error.chain()),
    }
    stdin.read_to_end(&mut Vec::new()).during("hear", "init")?;
    Ok(())
}

fn say(word: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{word}")
        .and_then(|()| out.flush())
        .during("tell", "init")
}

fn router() -> Result<()> {
    network::configure_router()?;
    dnsmasq()?;
    for address in INTERNET {
        let site = Site::new(&address.to_string(), &format!("internet machine {address}"))?;
        site.serve(&format!("{address}:80"))?;
    }
    Ok(())
}

fn lan() -> Result<()> {
    network::configure_lan()?;
    Site::new("lan", &format!("LAN machine {LAN_MACHINE}"))?.serve(&format!("{LAN_MACHINE}:80"))
}

/// What listens on the node's port 8006, for IPv4 and IPv6; runs in the node's namespace.
pub(crate) fn serve_node() -> Result<()> {
    Site::new("node", &format!("node {NODE_PORT}"))?.serve(&format!("[::]:{NODE_PORT}"))
}

/// Starts the DHCP and DNS server; returns when it listens.
fn dnsmasq() -> Result<()> {
    let mut dnsmasq = program::clean("dnsmasq");
    dnsmasq.args([
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--bind-interfaces",
    ]);
    dnsmasq.args([
        "--pid-file=/run/testbed/dnsmasq.pid",
        "--log-facility=/run/testbed/dnsmasq.log",
        "--log-dhcp",
    ]);
    // With no ping a lease is given at once; the only client on this LAN that could clash is in the range's gap.
    dnsmasq.args([
        "--no-ping",
        "--dhcp-authoritative",
        "--dhcp-leasefile=/run/testbed/router.leases",
    ]);
    dnsmasq.arg(format!(
        "--dhcp-range={LEASE_FIRST},{LEASE_LAST},255.255.255.0,12h"
    ));
    dnsmasq.arg(format!("--dhcp-option=option:router,{ROUTER}"));
    dnsmasq.arg(format!("--dhcp-option=option:dns-server,{ROUTER}"));
    dnsmasq.arg(format!("--listen-address={ROUTER}"));
    for address in INTERNET {
        dnsmasq.arg(format!("--listen-address={address}"));
    }
    for (name, address) in INTERNET_NAMES {
        dnsmasq.arg(format!("--host-record={name},{address}"));
    }
    // No upstream: every other name is NXDOMAIN.
    dnsmasq.arg("--address=/#/");
    detach("dnsmasq", dnsmasq)
}

/// A directory that busybox httpd serves: `/` tells who serves it, `/cgi-bin/client` who asks.
struct Site {
    dir: PathBuf,
}

impl Site {
    fn new(name: &str, body: &str) -> Result<Self> {
        let dir = Path::new(RUN).join("www").join(name);
        let script = dir.join("cgi-bin/client");
        fs::create_dir_all(dir.join("cgi-bin")).during("make", &dir)?;
        fs::write(dir.join("index.html"), format!("{body}\n")).during("write", &dir)?;
        fs::write(
            &script,
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s\\n' \"$REMOTE_ADDR\"\n",
        )
        .during("write", &script)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
            .during("make executable", &script)?;
        Ok(Self { dir })
    }

    /// Returns when the address listens.
    fn serve(&self, listen: &str) -> Result<()> {
        let mut httpd = program::clean("busybox");
        httpd.args(["httpd", "-p", listen, "-h"]).arg(&self.dir);
        detach("busybox httpd", httpd)
    }
}

/// Runs a program that goes into the background once it serves.
fn detach(name: &str, mut command: std::process::Command) -> Result<()> {
    // Not `output()`: the daemon keeps the pipes, and their end would never come.
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .during("run", name)?;
    succeeded(
        name,
        std::process::Output {
            status,
            stdout: Vec::new(),
            stderr: Vec::new(),
        },
    )
    .map(drop)
}
