//! Where everything lives on the appliance. Knows names only, touches nothing.

use std::path::{Path, PathBuf};

/// The appliance's files and directories, below a root that is `/` except in tests.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
    run: PathBuf,
}

/// The longest path of a unix socket: `sun_path` has 108 bytes with the final zero.
const SOCKET_PATH_MAX: usize = 107;

impl Paths {
    /// The state file and the run directory are given in full; the rest follows from `root`.
    pub fn new(root: &Path, state: &Path, run: &Path) -> Self {
        Self {
            root: root.to_owned(),
            state: state.to_owned(),
            run: run.to_owned(),
        }
    }

    /// The paths of a real appliance.
    pub fn appliance() -> Self {
        Self::new(
            Path::new("/"),
            Path::new("/var/lib/proximity/gateway.json"),
            Path::new("/run/proximity"),
        )
    }

    /// Everything below one directory, as tests want it.
    pub fn below(root: &Path) -> Self {
        Self::new(
            root,
            &root.join("var/lib/proximity/gateway.json"),
            &root.join("run/proximity"),
        )
    }

    /// The last accepted state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What changed since that state was last saved whole.
    pub fn state_changes(&self) -> PathBuf {
        self.state.with_extension("changes")
    }

    /// The relay's directory for sockets.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The socket of the relay's own API.
    pub fn relay_socket(&self) -> PathBuf {
        self.run.join("relay.sock")
    }

    /// One unix socket a route, named by its host.
    pub fn routes(&self) -> PathBuf {
        self.run.join("routes")
    }

    /// The most characters a route's host may have so that its socket can be bound and dialled
    /// (one is kept for the dot of the name under which it is bound first).
    pub fn longest_route_host(&self) -> usize {
        let directory = self.routes().as_os_str().len();
        SOCKET_PATH_MAX.saturating_sub(directory + 2)
    }

    /// dnsmasq's main configuration.
    pub fn dnsmasq_conf(&self) -> PathBuf {
        self.root.join("etc/proximity/dnsmasq.conf")
    }

    /// dnsmasq's `hostsdir`: one file of names an instance.
    pub fn names(&self) -> PathBuf {
        self.root.join("var/lib/proximity/dnsmasq/hosts")
    }

    /// What machines that are no instances claim to be called: one file a lease.
    pub fn claims(&self) -> PathBuf {
        self.root.join("var/lib/proximity/dnsmasq/claims")
    }

    /// dnsmasq's second `hostsdir`: the names that such machines have.
    pub fn dyn_names(&self) -> PathBuf {
        self.root.join("var/lib/proximity/dnsmasq/dyn")
    }

    /// This program, which dnsmasq starts to tell of a lease.
    pub fn agent(&self) -> PathBuf {
        self.root.join("usr/lib/proximity/proximity-agent")
    }

    /// dnsmasq's `dhcp-hostsdir`: one reservation an instance.
    pub fn reservations(&self) -> PathBuf {
        self.root.join("var/lib/proximity/dnsmasq/dhcp")
    }

    /// dnsmasq's lease file.
    pub fn leases(&self) -> PathBuf {
        self.root.join("var/lib/proximity/dnsmasq.leases")
    }

    /// One directory for each domain's certificate authority.
    pub fn authorities(&self) -> PathBuf {
        self.root.join("var/lib/proximity/authority")
    }

    /// Caddy's configuration.
    pub fn caddyfile(&self) -> PathBuf {
        self.root.join("etc/proximity/Caddyfile")
    }

    /// Where operators put sites of their own for Caddy.
    pub fn operator_sites(&self) -> PathBuf {
        self.root.join("etc/proximity/sites-enabled")
    }

    /// Those of them that Caddy has.
    pub fn accepted_sites(&self) -> PathBuf {
        self.root.join("etc/proximity/sites-accepted")
    }

    /// Where a site is tried out together with the accepted ones.
    pub fn candidate_sites(&self) -> PathBuf {
        self.root.join("etc/proximity/sites-candidate")
    }

    /// Caddy's admin socket; Caddy makes it.
    pub fn caddy_admin(&self) -> PathBuf {
        self.root.join("run/caddy/admin.sock")
    }

    /// The ruleset that nftables.service loads at boot.
    pub fn nftables_conf(&self) -> PathBuf {
        self.root.join("etc/nftables.conf")
    }

    /// Kernel settings for the next boot.
    pub fn sysctl_conf(&self) -> PathBuf {
        self.root.join("etc/sysctl.d/50-proximity.conf")
    }

    /// A kernel setting now; `key` has slashes (`net/ipv4/ip_forward`).
    pub fn sysctl(&self, key: &str) -> PathBuf {
        self.root.join("proc/sys").join(key)
    }

    /// What the appliance's operating system says it is.
    pub fn os_release(&self) -> PathBuf {
        self.root.join("etc/os-release")
    }

    /// Users of the appliance.
    pub fn passwd(&self) -> PathBuf {
        self.root.join("etc/passwd")
    }

    /// Groups of the appliance.
    pub fn group(&self) -> PathBuf {
        self.root.join("etc/group")
    }

    /// Marks of what was begun and is not finished, for root alone. Below `/run`, because whatever
    /// starts with the machine reads its files anyway.
    pub fn marks(&self) -> PathBuf {
        self.run.join("pending")
    }

    /// The mark of one thing: a service that has yet to take its configuration, reservations that
    /// have yet to be forgotten.
    pub fn pending(&self, what: &str) -> PathBuf {
        self.marks().join(what)
    }
}
