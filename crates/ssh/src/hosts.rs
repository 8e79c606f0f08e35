//! The sections `vms` and `remote_execution` of a configuration, as checked values. Pure but for an ssh_config that
//! they name; the caller reads the file itself.
//!
//! Other top-level keys belong to others and are left alone. Inside the two sections an unknown key is an error
//! that names the nearest known one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::ssh_config::{self, Borrowed};
use crate::vm_id::VmId;

/// The longest command deadline that can be configured: a week.
const MAX_TIMEOUT_S: u64 = 7 * 24 * 3600;
/// The longest time that a connection can be kept without use: a day.
const MAX_IDLE_S: u64 = 24 * 3600;
/// The most hosts on the way to another one.
const MAX_JUMPS: usize = 4;
/// The most further tries that can be configured.
const MAX_RETRY: u32 = 20;

/// Why the sections can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidHosts {
    /// What is wrong, with the key.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl InvalidHosts {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

/// A host that commands can be run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// What people call it; the id where nothing is said.
    pub name: String,
    /// Address or DNS name; also the name under which `known_hosts` knows it.
    pub host: String,
    /// TCP port of its sshd.
    pub port: u16,
    /// The user that logs in.
    pub user: String,
    /// What it is for (`--role`).
    pub role: Option<String>,
    /// Whether anything may be run there.
    pub enabled: bool,
    /// The private key of the login, where it is not in the key directory under the host's id.
    pub key_file: Option<PathBuf>,
    /// The file of trusted host keys, where this host has one of its own.
    pub known_hosts: Option<PathBuf>,
    /// The host of the configuration through which this one is reached.
    pub jump: Option<VmId>,
}

impl Vm {
    /// Where the host's key is pinned.
    pub fn known_hosts<'a>(&'a self, settings: &'a Settings) -> &'a Path {
        self.known_hosts.as_ref().unwrap_or(&settings.known_hosts)
    }

    /// Host and port as people write them.
    pub fn address(&self) -> String {
        address(&self.host, self.port)
    }
}

/// Host and port as people write them.
pub(crate) fn address(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// What holds for all hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The deadline of a command that names none.
    pub timeout: Duration,
    /// The deadline for connecting, and once more for logging in.
    pub connect_timeout: Duration,
    /// After how long without use a kept connection is closed; zero keeps none.
    pub idle_timeout: Duration,
    /// How often a connection that failed is tried again.
    pub retry: u32,
    /// Where each host's private key lies, named by its id.
    pub key_dir: PathBuf,
    /// The file of trusted host keys.
    pub known_hosts: PathBuf,
    /// After how many days a key should be replaced.
    pub key_rotation_days: u32,
    /// The only hosts that may be used; `None` allows all that are configured.
    pub allowed: Option<Vec<VmId>>,
    /// Whether keys of the SSH agent are tried too.
    pub use_agent: bool,
    /// Where the audit log lies.
    pub audit_dir: PathBuf,
    /// A file as ssh_config(5) has it, whose aliases are hosts too.
    pub ssh_config: Option<PathBuf>,
    /// The socket of syslog or journald that gets a copy of each audit record, if one does.
    pub syslog: Option<PathBuf>,
    /// False where hosts without any program that makes a checksum may be given and asked for files all the same.
    pub verify_checksum: bool,
}

/// Both sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    /// Hosts by id.
    pub vms: BTreeMap<VmId, Vm>,
    /// What holds for all of them.
    pub settings: Settings,
    /// What is to be said about hosts that come from a person's ssh_config; those that can't be used are only here.
    pub borrowed: BTreeMap<VmId, Borrowed>,
}

/// Whose configuration it is, and what the command line says besides.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reader<'a> {
    /// Stands for `~` in paths.
    pub home: Option<&'a Path>,
    /// The name of the local user: who logs in where an ssh_config names nobody.
    pub user: Option<&'a str>,
    /// Read this ssh_config, whatever the configuration says.
    pub ssh_config: Option<&'a Path>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    vms: Option<BTreeMap<VmId, VmSection>>,
    remote_execution: Option<SettingsSection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmSection {
    name: Option<String>,
    ip: String,
    role: Option<String>,
    #[serde(default = "enabled")]
    enabled: bool,
    ssh_user: String,
    #[serde(default = "ssh_port")]
    ssh_port: u16,
    key_file: Option<String>,
    proxy_jump: Option<VmId>,
}

fn enabled() -> bool {
    true
}

fn ssh_port() -> u16 {
    22
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SettingsSection {
    default_timeout: u64,
    default_retry: u32,
    connect_timeout: u64,
    idle_timeout: u64,
    key_storage_path: String,
    checksum_algorithm: String,
    known_hosts: String,
    key_rotation_days: u32,
    allowed_vm_ids: Option<Vec<VmId>>,
    use_agent: bool,
    audit_dir: String,
    ssh_config: Option<String>,
    syslog: bool,
    syslog_socket: String,
    verify_checksum: bool,
}

impl Default for SettingsSection {
    fn default() -> Self {
        Self {
            default_timeout: 30,
            default_retry: 3,
            connect_timeout: 10,
            idle_timeout: 60,
            key_storage_path: "~/.ssh/proximity_keys".to_owned(),
            checksum_algorithm: "sha256".to_owned(),
            known_hosts: "~/.ssh/known_hosts".to_owned(),
            key_rotation_days: 90,
            allowed_vm_ids: None,
            use_agent: true,
            audit_dir: "~/.local/state/proximity".to_owned(),
            ssh_config: None,
            syslog: false,
            syslog_socket: "/dev/log".to_owned(),
            verify_checksum: true,
        }
    }
}

impl Hosts {
    /// Reads a configuration's text, and the ssh_config that it names. `home` stands for `~` in paths.
    pub fn parse(text: &str, home: Option<&Path>) -> Result<Self, InvalidHosts> {
        Self::read(
            text,
            Reader {
                home,
                ..Reader::default()
            },
        )
    }

    /// The same with what the command line says.
    pub fn read(text: &str, reader: Reader<'_>) -> Result<Self, InvalidHosts> {
        let home = reader.home;
        let file: File = if text.trim().is_empty() {
            File::default()
        } else {
            serde_saphyr::from_str(text).map_err(|e| explain(&e.to_string()))?
        };
        let settings = settings(file.remote_execution.unwrap_or_default(), home)?;
        let mut vms = BTreeMap::new();
        for (id, section) in file.vms.unwrap_or_default() {
            let vm = vm(id.clone(), section, home)?;
            vms.insert(id, vm);
        }
        let borrowed = match reader.ssh_config.or(settings.ssh_config.as_deref()) {
            Some(path) => ssh_config::add(path, reader, &mut vms)?,
            None => BTreeMap::new(),
        };
        for vm in vms.values() {
            check_jumps(vm, &vms)?;
        }
        for (at, id) in (0..).zip(settings.allowed.iter().flatten()) {
            if !vms.contains_key(id) && !borrowed.contains_key(id) {
                let known: Vec<_> = vms.keys().map(VmId::as_str).collect();
                return Err(InvalidHosts::new(
                    format!("remote_execution.allowed_vm_ids[{at}]: there is no host {id}"),
                    format!("known hosts: {}", known.join(", ")),
                ));
            }
        }
        Ok(Self {
            vms,
            settings,
            borrowed,
        })
    }

    /// The host, if it may be used; otherwise why not, and what to change.
    pub fn permitted(&self, id: &str) -> Result<&Vm, InvalidHosts> {
        let vm = self.vms.iter().find(|(key, _)| key.as_str() == id);
        let Some((id, vm)) = vm else {
            let refused = self.borrowed.iter().find(|(key, _)| key.as_str() == id);
            if let Some(refused) = refused.and_then(|(_, borrowed)| borrowed.refused.clone()) {
                return Err(refused);
            }
            let known = self.vms.keys().map(VmId::as_str);
            let nearest = known.min_by_key(|known| strsim::damerau_levenshtein(known, id));
            return Err(InvalidHosts::new(
                "there is no such host in the configuration",
                match nearest {
                    Some(near) => {
                        format!("did you mean {near}? All of them: proximity remote hosts")
                    }
                    None => "add it under vms in the configuration".to_owned(),
                },
            ));
        };
        if let Some(allowed) = &self.settings.allowed
            && !allowed.contains(id)
        {
            return Err(InvalidHosts::new(
                "it is not among allowed_vm_ids",
                "add it to remote_execution.allowed_vm_ids if commands may run there",
            ));
        }
        if !vm.enabled {
            return Err(InvalidHosts::new(
                "it is disabled",
                format!("set vms.{id}.enabled to true if commands may run there"),
            ));
        }
        Ok(vm)
    }
}

fn vm(id: VmId, section: VmSection, home: Option<&Path>) -> Result<Vm, InvalidHosts> {
    let at = |key: &str| format!("vms.{id}.{key}");
    if !is_host(&section.ip) {
        return Err(InvalidHosts::new(
            format!("{}: {:?} is no address", at("ip"), section.ip),
            "write an IP address or a DNS name",
        ));
    }
    if !is_user(&section.ssh_user) {
        return Err(InvalidHosts::new(
            format!("{}: {:?} is no user name", at("ssh_user"), section.ssh_user),
            "write letters, digits and - _ . that do not begin with -",
        ));
    }
    if section.ssh_port == 0 {
        return Err(InvalidHosts::new(
            format!("{}: 0 is no port", at("ssh_port")),
            "write 1 to 65535",
        ));
    }
    let key_file = section
        .key_file
        .map(|path| expand(&at("key_file"), &path, home));
    Ok(Vm {
        name: section.name.unwrap_or_else(|| id.to_string()),
        host: section.ip,
        port: section.ssh_port,
        user: section.ssh_user,
        role: section.role,
        enabled: section.enabled,
        jump: section.proxy_jump,
        known_hosts: None,
        key_file: key_file.transpose()?,
        id,
    })
}

/// That every host on the way is there and may be used, and that the way ends.
fn check_jumps(vm: &Vm, vms: &BTreeMap<VmId, Vm>) -> Result<(), InvalidHosts> {
    let mut at = vm;
    for _ in 0..=MAX_JUMPS {
        let Some(next) = &at.jump else { return Ok(()) };
        let key = format!("vms.{}.proxy_jump", at.id);
        at = match vms.get(next) {
            Some(next) if next.enabled => next,
            Some(_) => {
                return Err(InvalidHosts::new(
                    format!("{key}: {next} is disabled"),
                    "enable it, or go by another host",
                ));
            }
            None => {
                let known: Vec<_> = vms.keys().map(VmId::as_str).collect();
                return Err(InvalidHosts::new(
                    format!("{key}: there is no host {next}"),
                    format!("known hosts: {}", known.join(", ")),
                ));
            }
        };
    }
    Err(InvalidHosts::new(
        format!(
            "vms.{}.proxy_jump: the way has more than {MAX_JUMPS} hosts, or goes in a circle",
            vm.id
        ),
        "name the hosts from the outside in",
    ))
}

/// Whether this can be an address or a DNS name.
pub(crate) fn is_host(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    !text.is_empty() && text.len() <= 253 && text.chars().all(legal)
}

/// Whether this can be the name of a user on a command line.
pub(crate) fn is_user(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 64 && !name.starts_with('-') && name.chars().all(legal)
}

fn settings(section: SettingsSection, home: Option<&Path>) -> Result<Settings, InvalidHosts> {
    let at = |key: &str| format!("remote_execution.{key}");
    for (key, seconds) in [
        ("default_timeout", section.default_timeout),
        ("connect_timeout", section.connect_timeout),
    ] {
        if seconds == 0 || seconds > MAX_TIMEOUT_S {
            return Err(InvalidHosts::new(
                format!("{}: {seconds} is out of range", at(key)),
                format!("write seconds, 1 to {MAX_TIMEOUT_S}"),
            ));
        }
    }
    if section.idle_timeout > MAX_IDLE_S {
        return Err(InvalidHosts::new(
            format!(
                "{}: {} is out of range",
                at("idle_timeout"),
                section.idle_timeout
            ),
            format!("write seconds, 1 to {MAX_IDLE_S}, or 0 to keep no connection"),
        ));
    }
    if section.default_retry > MAX_RETRY {
        return Err(InvalidHosts::new(
            format!(
                "{}: {} is out of range",
                at("default_retry"),
                section.default_retry
            ),
            format!("write how often a failed connection is tried again, 0 to {MAX_RETRY}"),
        ));
    }
    if section.checksum_algorithm != "sha256" {
        return Err(InvalidHosts::new(
            format!(
                "{}: {:?} is not used",
                at("checksum_algorithm"),
                section.checksum_algorithm
            ),
            "write sha256",
        ));
    }
    Ok(Settings {
        timeout: Duration::from_secs(section.default_timeout),
        connect_timeout: Duration::from_secs(section.connect_timeout),
        idle_timeout: Duration::from_secs(section.idle_timeout),
        retry: section.default_retry,
        key_dir: expand(&at("key_storage_path"), &section.key_storage_path, home)?,
        known_hosts: expand(&at("known_hosts"), &section.known_hosts, home)?,
        key_rotation_days: section.key_rotation_days,
        allowed: section.allowed_vm_ids,
        use_agent: section.use_agent,
        audit_dir: expand(&at("audit_dir"), &section.audit_dir, home)?,
        ssh_config: section
            .ssh_config
            .map(|path| expand(&at("ssh_config"), &path, home))
            .transpose()?,
        syslog: section
            .syslog
            .then(|| expand(&at("syslog_socket"), &section.syslog_socket, home))
            .transpose()?,
        verify_checksum: section.verify_checksum,
    })
}

fn expand(key: &str, path: &str, home: Option<&Path>) -> Result<PathBuf, InvalidHosts> {
    let expanded = match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    };
    if expanded.is_absolute() {
        Ok(expanded)
    } else {
        Err(InvalidHosts::new(
            format!("{key}: {path:?} is not an absolute path"),
            "write a path that begins with / or with ~/",
        ))
    }
}

/// Turns a parser's message into one that names the nearest known key.
fn explain(message: &str) -> InvalidHosts {
    let line = message.lines().next().unwrap_or(message);
    let line = line.strip_prefix("error: ").unwrap_or(line).to_owned();
    let unknown = message.split_once("unknown field `");
    let unknown = unknown.and_then(|(_, rest)| rest.split_once('`'));
    let hint = unknown.and_then(|(unknown, rest)| {
        let known = rest.lines().next().unwrap_or("").split([',', '`', ' ']);
        known
            .filter(|word| !matches!(*word, "" | "expected" | "one" | "of" | "or"))
            .min_by_key(|known| strsim::damerau_levenshtein(unknown, known))
            .map(|near| format!("did you mean `{near}`?"))
    });
    InvalidHosts {
        message: line,
        hint: hint.or_else(|| Some("keys and examples: docs/remote-execution.md".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = "
server: { listen: 127.0.0.1:8765, data_dir: /var/lib/proximity }
something_foreign: [1, 2]
vms:
  vm01: { name: ingest, ip: 192.0.2.11, role: ingest, enabled: true, ssh_user: operator, ssh_port: 22 }
  vm02: { ip: \"fd00::2\", enabled: false, ssh_user: root, ssh_port: 2222, key_file: ~/k }
  vm03: { ip: db.lan, ssh_user: root }
remote_execution:
  default_timeout: 30
  default_retry: 3
  key_storage_path: ~/.ssh/proximity_keys
  checksum_algorithm: sha256
  known_hosts: ~/.ssh/known_hosts
  key_rotation_days: 90
  allowed_vm_ids: [vm01, vm02]
";

    fn parse(text: &str) -> Result<Hosts, InvalidHosts> {
        Hosts::parse(text, Some(Path::new("/home/o")))
    }

    #[test]
    fn the_contract_is_read() {
        let hosts = parse(CONTRACT).unwrap();
        let vm01 = hosts.permitted("vm01").unwrap();
        assert_eq!(
            (vm01.name.as_str(), vm01.role.as_deref()),
            ("ingest", Some("ingest"))
        );
        assert_eq!(vm01.address(), "192.0.2.11:22");
        let vm02 = &hosts.vms[&"vm02".parse().unwrap()];
        assert_eq!(vm02.address(), "[fd00::2]:2222");
        assert_eq!(vm02.key_file.as_deref(), Some(Path::new("/home/o/k")));
        assert_eq!(
            hosts.settings.key_dir,
            Path::new("/home/o/.ssh/proximity_keys")
        );
        assert_eq!(hosts.settings.timeout, Duration::from_secs(30));
        assert_eq!(hosts.settings.retry, 3);
    }

    #[test]
    fn an_empty_file_has_the_defaults_and_no_hosts() {
        let hosts = parse("").unwrap();
        assert!(hosts.vms.is_empty());
        assert_eq!(hosts, parse("server: {}\n").unwrap());
        assert_eq!(
            hosts.settings.known_hosts,
            Path::new("/home/o/.ssh/known_hosts")
        );
    }

    #[test]
    fn hosts_that_may_not_be_used_are_refused_with_a_reason() {
        let hosts = parse(CONTRACT).unwrap();
        let check = |id: &str, reason: &str, hint: &str| {
            let refusal = hosts.permitted(id).unwrap_err();
            assert!(refusal.message.contains(reason), "{id}: {refusal}");
            assert!(
                refusal.hint.as_deref().unwrap().contains(hint),
                "{refusal:?}"
            );
        };
        check("vm02", "disabled", "vms.vm02.enabled");
        check("vm03", "allowed_vm_ids", "allowed_vm_ids");
        check("vm0l", "no such host", "did you mean vm01?");
    }

    #[test]
    fn bad_values_are_refused_with_their_key() {
        let check = |text: &str, says: &str| {
            let refusal = parse(text).unwrap_err();
            let whole = format!("{refusal} {}", refusal.hint.clone().unwrap_or_default());
            assert!(whole.contains(says), "{text}: {whole}");
        };
        check(
            "vms: { a: { ip: h, ssh_usr: root } }",
            "did you mean `ssh_user`?",
        );
        check("vms: { a: { ip: h } }", "ssh_user");
        check("vms: { a: { ip: 'h;x', ssh_user: root } }", "vms.a.ip");
        check("vms: { a: { ip: h, ssh_user: -o } }", "vms.a.ssh_user");
        check(
            "vms: { a: { ip: h, ssh_user: o, ssh_port: 0 } }",
            "vms.a.ssh_port",
        );
        check("vms: { '../a': { ip: h, ssh_user: o } }", "not a host id");
        check(
            "vms: { a: { ip: h, ssh_user: o, key_file: k } }",
            "vms.a.key_file",
        );
        check(
            "remote_execution: { default_timeout: 0 }",
            "default_timeout",
        );
        check("remote_execution: { idle_timeout: 86401 }", "idle_timeout");
        check("remote_execution: { default_retry: 99 }", "default_retry");
        check(
            "remote_execution: { checksum_algorithm: md5 }",
            "checksum_algorithm",
        );
        check(
            "remote_execution: { allowed_vm_ids: [x] }",
            "allowed_vm_ids[0]",
        );
        check("remote_execution: { strict: no }", "unknown field");
    }
}
