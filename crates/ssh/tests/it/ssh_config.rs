//! A person's ssh_config: read as OpenSSH itself reads it (`ssh -G`), used for real logins, refused where it would run
//! programs or believe unknown keys.

use std::fs;
use std::path::Path;
use std::process::Command as Process;

use proptest::prelude::*;
use ssh::ssh_config::{self, SshConfig};
use ssh::{Error, Hosts, Reader, Remote};

use crate::sshd::{Sshd, can_run, exec};

/// What `ssh -G` says of an alias: lines of an option and its value.
fn openssh(file: &Path, alias: &str) -> Result<Vec<(String, String)>, String> {
    let ran = Process::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(file)
        .arg(alias)
        .output()
        .unwrap();
    if !ran.status.success() {
        return Err(String::from_utf8_lossy(&ran.stderr).into_owned());
    }
    let text = String::from_utf8(ran.stdout).unwrap();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.to_owned()))
    };
    Ok(text.lines().filter_map(pair).collect())
}

fn all<'a>(told: &'a [(String, String)], key: &str) -> Vec<&'a str> {
    let of = told.iter().filter(|(found, _)| found == key);
    of.map(|(_, value)| value.as_str()).collect()
}

/// What both say of an alias.
fn compare(text: &str, file: &Path, ours: &SshConfig, alias: &str) -> Result<(), TestCaseError> {
    let told = openssh(file, alias).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
    let found = ours.resolve(alias);
    let first = |key: &str| all(&told, key).first().copied().unwrap_or_default();
    let hostname = found.hostname.as_deref().unwrap_or("%h");
    let hostname = hostname.replace("%h", alias).replace("%%", "%");
    prop_assert_eq!(
        hostname.to_ascii_lowercase(),
        first("hostname").to_ascii_lowercase(),
        "{}",
        text
    );
    prop_assert_eq!(
        found.port.unwrap_or(22).to_string(),
        first("port"),
        "{}",
        text
    );
    if let Some(user) = &found.user {
        prop_assert_eq!(user, first("user"), "{}", text);
    }
    if !found.identity_files.is_empty() {
        prop_assert_eq!(
            &found.identity_files,
            &all(&told, "identityfile"),
            "{}",
            text
        );
    }
    if let Some(files) = &found.known_hosts {
        prop_assert_eq!(files.join(" "), first("userknownhostsfile"), "{}", text);
    }
    prop_assert_eq!(
        found.proxy_jump.as_deref().unwrap_or_default(),
        first("proxyjump"),
        "{}",
        text
    );
    let refuses = found
        .refused
        .as_ref()
        .map(|(why, _)| why.as_str())
        .unwrap_or_default();
    let runs = !first("proxycommand").is_empty();
    prop_assert!(!runs || !refuses.is_empty(), "{}", text);
    prop_assert!(runs || !refuses.starts_with("ProxyCommand"), "{}", text);
    let strict = !matches!(first("stricthostkeychecking"), "ask" | "true");
    prop_assert!(!strict || !refuses.is_empty(), "{}", text);
    Ok(())
}

fn line() -> impl Strategy<Value = String> {
    let name = "(web|db|gw|w|d)(1|2|\\.lan)?";
    let pattern = "(!)?(web|db|w\\*|\\*|d\\?|gw|\\*\\.lan)(1|\\*)?";
    let patterns = proptest::collection::vec(pattern, 1..4);
    let quote = prop_oneof![3 => Just(""), 1 => Just("\"")];
    let between = prop_oneof![4 => Just(" "), 1 => Just("="), 1 => Just(" = "), 1 => Just("\t")];
    let end = prop_oneof![5 => Just(""), 1 => Just("  "), 1 => Just(" # why")];
    let option = prop_oneof![
        3 => "(HostName|hostname) (%h\\.example|10\\.0\\.0\\.[1-9]|[a-c]{1,3})".boxed(),
        3 => "User [a-z]{1,4}".boxed(),
        3 => "Port [1-9][0-9]{0,3}".boxed(),
        3 => "IdentityFile (~/\\.ssh/|/k/)[a-d]".boxed(),
        2 => "ProxyJump (none|hop|[a-c]@hop:22[0-9]|hop,pod)".boxed(),
        1 => "ProxyCommand (none|nc %h %p)".boxed(),
        1 => "UserKnownHostsFile /k/(a|b)".boxed(),
        1 => "StrictHostKeyChecking (yes|no|ask|accept-new|off)".boxed(),
        1 => "ForwardAgent (yes|no)".boxed(),
    ];
    let option = (option, between, quote, end).prop_map(|(text, between, quote, end)| {
        let (key, value) = text.split_once(' ').unwrap();
        // OpenSSH takes the rest of such a line as it is.
        let raw = key.starts_with("Proxy");
        let (quote, end) = if raw { ("", "") } else { (quote, end) };
        format!("{key}{between}{quote}{value}{quote}{end}")
    });
    prop_oneof![
        5 => option,
        3 => patterns.prop_map(|all| format!("Host {}", all.join(" "))),
        1 => name.prop_map(|name| format!("Match host {name},x*")),
        1 => name.prop_map(|name| format!("Match originalhost {name}")),
        1 => Just("Match all".to_owned()),
        1 => Just("# Host web".to_owned()),
        1 => Just(String::new()),
        1 => Just("Include included".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn it_is_read_as_openssh_reads_it(
        lines in proptest::collection::vec(line(), 0..14),
        below in proptest::collection::vec(line(), 0..5),
        alias in "(web|db|gw|w|d)(1|2|\\.lan)?",
    ) {
        if !Path::new("/usr/bin/ssh").exists() {
            println!("SKIPPED: no program ssh to compare with");
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let included = dir.path().join("included");
        let below: Vec<String> = below.into_iter().filter(|l| !l.starts_with("Include")).collect();
        fs::write(&included, format!("{}\n", below.join("\n"))).unwrap();
        let text = lines.join("\n").replace("Include included", &format!("Include {}", included.display()));
        let file = dir.path().join("config");
        fs::write(&file, &text).unwrap();
        let ours = ssh_config::read(&file, None).unwrap();
        compare(&format!("{text}\n--- included\n{}\n--- {alias}", below.join("\n")), &file, &ours, &alias)?;
    }
}

fn hosts(text: &str, config: &str, home: &Path) -> Result<Hosts, ssh::InvalidHosts> {
    let file = home.join(".ssh/config");
    fs::create_dir_all(home.join(".ssh")).unwrap();
    fs::write(&file, text).unwrap();
    let reader = Reader {
        home: Some(home),
        user: Some("me"),
        ssh_config: Some(&file),
    };
    Hosts::read(config, reader)
}

#[test]
fn what_would_run_programs_or_weaken_trust_is_refused_by_name_and_line() {
    let home = tempfile::tempdir().unwrap();
    let check = |option: &str, says: &str| {
        let text = format!("Host good\n  User a\nHost bad\n  {option}\n");
        let hosts = hosts(&text, "", home.path()).unwrap();
        assert!(hosts.permitted("good").is_ok());
        let refused = hosts.permitted("bad").unwrap_err().message;
        assert!(refused.contains(says), "{option}: {refused}");
        let place = format!("{}/.ssh/config:4", home.path().display());
        assert!(refused.contains(&place), "{option}: {refused}");
    };
    check("ProxyCommand nc %h %p", "ProxyCommand");
    check("KnownHostsCommand /bin/x", "KnownHostsCommand");
    check("StrictHostKeyChecking no", "StrictHostKeyChecking no");
    check("StrictHostKeyChecking=off", "StrictHostKeyChecking off");
    check("StrictHostKeyChecking accept-new", "accept-new");
    check("RevokedHostKeys /x", "@revoked");
    check("Port 0", "Port 0");
    let check = |text: &str, says: &str| {
        let refused = hosts(text, "", home.path()).unwrap_err().message;
        assert!(refused.contains(says), "{text:?}: {refused}");
        assert!(refused.contains(".ssh/config:2"), "{text:?}: {refused}");
    };
    check("Host a\nMatch exec true\n", "Match exec");
    check("Host a\nMatch user root\n", "Match user");
    check("Host a\nInclude /etc/[a-z]/x\n", "Include /etc/[a-z]/x");
    check("Host a\nInclude ~/.ssh/config\n", "8 deep");
    check("Host a\nUser \"a\n", "quote");
    check("Host a\nUser\n", "no value");
}

#[test]
fn aliases_become_hosts_behind_those_of_the_configuration() {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join(".ssh/k-web.lan");
    fs::create_dir_all(home.path().join(".ssh/conf.d")).unwrap();
    fs::write(&key, "").unwrap();
    fs::write(
        home.path().join(".ssh/conf.d/b"),
        "Host deep\n  HostName 192.0.2.9\n",
    )
    .unwrap();
    fs::write(home.path().join(".ssh/conf.d/.hidden"), "Host hidden\n").unwrap();
    let text = "Include conf.d/*\nHost web db ours !x\n  HostName %h.lan\n  IdentityFile ~/.ssh/none\n  IdentityFile %d/.ssh/k-%h\n  ForwardAgent yes\n\
        Host db\n  ProxyJump op@gw:2222,web\nHost gw\n  Port 99\n  User gate\nHost loop\n  ProxyJump loop2\nHost loop2\n  ProxyJump loop\n\
        Host token\n  IdentityFile /x/%C\nHost *\n  User all\n  UserKnownHostsFile ~/.ssh/known\n";
    let config = "vms: { ours: { ip: 192.0.2.1, ssh_user: root } }\nremote_execution: { allowed_vm_ids: [web, db, ours, loop, deep, token] }\n";
    let hosts = hosts(text, config, home.path()).unwrap();
    let web = hosts.permitted("web").unwrap();
    assert_eq!(
        (web.host.as_str(), web.user.as_str(), web.port),
        ("web.lan", "all", 22)
    );
    assert_eq!(web.key_file.as_deref(), Some(key.as_path()));
    assert_eq!(
        web.known_hosts.as_deref(),
        Some(home.path().join(".ssh/known").as_path())
    );
    assert_eq!(hosts.permitted("deep").unwrap().host, "192.0.2.9");
    assert!(hosts.permitted("hidden").is_err());
    assert_eq!(hosts.permitted("ours").unwrap().host, "192.0.2.1");
    let unused = &hosts.borrowed[&"web".parse().unwrap()].unused;
    assert!(
        unused[0].starts_with("forwardagent (") && unused[0].ends_with("config:6)"),
        "{unused:?}"
    );

    let db = hosts.permitted("db").unwrap();
    let second = &hosts.vms[db.jump.as_ref().unwrap()];
    assert_eq!(
        (second.id.as_str(), second.host.as_str()),
        ("db.jump2", "web.lan")
    );
    let first = &hosts.vms[second.jump.as_ref().unwrap()];
    assert_eq!(
        (first.host.as_str(), first.port, first.user.as_str()),
        ("gw", 2222, "op")
    );
    assert_eq!(first.jump, None);
    let says = |id: &str, text: &str| {
        let refused = hosts.permitted(id).unwrap_err().message;
        assert!(refused.contains(text), "{id}: {refused}");
    };
    says("gw", "not among allowed_vm_ids");
    says("loop", "circle");
    says("token", "%C");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_logs_in_and_its_own_known_hosts_counts() {
    if !can_run() {
        return;
    }
    let (near, far) = (Sshd::start(""), Sshd::start(""));
    let home = tempfile::tempdir().unwrap();
    let block = |alias: &str, sshd: &Sshd, more: &str| {
        format!(
            "Host {alias}\n HostName {}\n Port {}\n User root\n IdentityFile {}\n UserKnownHostsFile {}\n {more}\n",
            sshd.host,
            sshd.port,
            sshd.path("keys/vm01").display(),
            sshd.path("known_hosts").display()
        )
    };
    let text = block("vm01", &far, "ProxyJump door") + &block("door", &near, "");
    let config = format!(
        "remote_execution: {{ known_hosts: {0}/nobody, audit_dir: {0}/audit, use_agent: false, default_retry: 0 }}",
        far.dir.path().display()
    );
    let hosts = hosts(&text, &config, home.path()).unwrap();
    let log = ssh::journal::open(&far.path("audit"), audit::Redactor::default())
        .await
        .unwrap();
    let remote = Remote::new(hosts, log, "tester");
    let result = exec(&remote, &["sh", "-c", "echo $SSH_CONNECTION"])
        .await
        .unwrap();
    assert!(
        result.stdout.trim().ends_with(&far.port.to_string()),
        "{result:?}"
    );
    fs::write(near.path("known_hosts"), "").unwrap();
    match exec(&remote, &["true"]).await.unwrap_err() {
        Error::HostKey { vm, .. } => assert_eq!(vm, "door"),
        other => panic!("{other}"),
    }
    let found = remote.look_at_key("door").await.unwrap();
    remote.pin_key("door", &found, "test").await.unwrap();
    assert!(exec(&remote, &["true"]).await.unwrap().success);
}
