//! An app whose process 1 is OpenRC: its supervise-daemon keeps the agent alive, and the guest stops in order. Its
//! init system also runs the services of an appliance of Alpine, by the scripts that its image would have.

use std::time::{Duration, Instant};

use serde_json::Value;
use wire::family::{FamilyName, Service};

use super::controller::{Controller, GUESTS};
use super::eventually;

/// What process 1 gets to end its services before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Prints of the agent that started this: its pid, how it was called, whose child it is, how many files it
/// and the command may have open.
const AGENT: &str = r#"
    echo $PPID
    tr '\0' ' ' < /proc/$PPID/cmdline; echo
    cat /proc/$(sed -n 's/^PPid:\t//p' /proc/$PPID/status)/comm
    sed -n 's/^Max open files *//p' /proc/$PPID/limits | tr -s ' '
    ulimit -n
"#;

/// The agent's pid, if it answers: while it is being started again there is nobody to ask.
fn agent(controller: &Controller) -> Option<String> {
    let ran = controller.run(["exec", "web", "--timeout", "10s", "--", "sh", "-c", AGENT]);
    if ran.code != 0 {
        return None;
    }
    let text = ran.text();
    let lines: Vec<&str> = text.lines().collect();
    let [pid, called, parent, files, own_files] = lines[..] else {
        panic!("{text}");
    };
    assert_eq!(called.trim(), "/usr/lib/proximity/proximity-agent serve");
    assert_eq!(parent, "supervise-daemo", "the first fifteen letters");
    assert_eq!((files.trim(), own_files), ("16384 16384 files", "16384"));
    Some(pid.to_owned())
}

#[test]
fn openrc_keeps_the_agent_and_stops_the_guest_in_order() {
    let controller = Controller::up();
    let page = controller.write_etc("page", "made of OpenRC\n");
    let set = format!("index_html={page}");
    let words = ["app", "deploy", "nginx-openrc", "web", "--set-file", &set];
    let app = controller.json(words);
    let served = || controller.page("web.prox.local");
    assert_eq!(served(), (200, "made of OpenRC\n".to_owned()));
    let init = controller.exec("web", ["readlink", "/sbin/init"]);
    assert_eq!(init, "openrc-init\n");
    let status = controller.exec("web", ["rc-status", "--nocolor", "default"]);
    for service in ["nginx", "proximity-agent", "proximity-network"] {
        let line = status.lines().find(|line| line.contains(service));
        assert!(
            line.is_some_and(|line| line.contains("started")),
            "{status}"
        );
    }

    // What a command leaves running on purpose is not the agent's to end, nor its supervisor's.
    let leave = "setsid sleep 1000 > /dev/null 2>&1 < /dev/null & echo $!";
    let left = controller.exec("web", ["sh", "-c", leave]);
    let first = agent(&controller).unwrap();
    for signal in ["KILL", "TERM"] {
        let before = agent(&controller).unwrap();
        controller.inside(&app, &format!("kill -{signal} {before}"));
        eventually("another agent answers", || {
            agent(&controller).is_some_and(|pid| pid != before)
        });
    }
    assert_ne!(agent(&controller).unwrap(), first);
    controller.exec("web", ["sh", "-c", "kill $0", left.trim()]);

    let began = Instant::now();
    controller.ok(["app", "stop", "web"]);
    assert!(
        began.elapsed() < GRACE,
        "it halted by itself, after {:?}",
        began.elapsed()
    );
    controller.ok(["app", "start", "web"]);
    assert_eq!(served(), (200, "made of OpenRC\n".to_owned()));
    agent(&controller).unwrap();
    assert_eq!(controller.app("web")["ip"], app["ip"]);
    controller.ok(["app", "restart", "web"]);
    agent(&controller).unwrap();
}

/// Where OpenRC has its scripts.
const SCRIPT: &str = "/etc/init.d/proximity-relay";

/// The relay's pid, if it answers.
fn relay(controller: &Controller) -> Option<String> {
    let ask = [
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "/usr/lib/proximity/proximity-agent gateway read > /dev/null && cat /run/openrc/options/proximity-relay/child_pid",
    ];
    let ran = controller.run(ask);
    (ran.code == 0).then(|| ran.text().trim().to_owned())
}

#[test]
fn openrc_keeps_the_relay_of_an_appliance_of_alpine() {
    let controller = Controller::up();
    controller.json(["app", "deploy", "nginx-openrc", "web"]);
    // There is no image of Alpine here, but its init system: what the relay is told by is the same.
    let sh = |script: &str| controller.exec("web", ["sh", "-c", script]);
    sh("rm /etc/os-release; echo ID=alpine > /etc/os-release");
    let files = FamilyName::Alpine.family().files();
    let script = files.iter().find(|f| f.path == SCRIPT).unwrap().content;
    for word in [
        "healthcheck_delay=120",
        "healthcheck_timer=30",
        "timeout 20",
    ] {
        assert!(script.contains(word), "{script}");
    }
    // Its pace is for a person's patience, not for a test's.
    let script = script
        .replace("healthcheck_delay=120", "healthcheck_delay=2")
        .replace("healthcheck_timer=30", "healthcheck_timer=2")
        .replace("timeout 20", "timeout 5");
    let mut words = vec!["exec", "web", "--", "sh", "-c"];
    // OpenRC sees that a script is new by whole seconds; told so, it needs none to pass.
    let install = format!("cat > {SCRIPT}; chmod 0755 {SCRIPT}; rc-update -u");
    words.push(&install);
    assert_eq!(controller.run_with(words, script.as_bytes()).code, 0);

    sh("rc-service proximity-relay start");
    eventually("the relay answers", || relay(&controller).is_some());
    let report = sh("/usr/lib/proximity/proximity-agent gateway read");
    assert!(
        report.contains(r#"{"name":"relay","state":"active"}"#),
        "{report}"
    );
    // None of them is installed here, and that is what rc-status says.
    assert!(
        report.contains(r#"{"name":"dnsmasq","state":"unknown"}"#),
        "{report}"
    );
    assert!(!report.contains("cockpit"), "{report}");
    // Beside the supervisor's own notes, which it writes anew now and then.
    eventually("it is said to be active", || {
        let printed = sh("rc-status --nocolor --format ini --all");
        FamilyName::Alpine.family().state(&printed, Service::Relay) == Some("active")
    });

    // KILL ends it; STOP leaves it there, deaf, which only asking it tells.
    for signal in ["KILL", "STOP"] {
        let before = relay(&controller).unwrap();
        sh(&format!("kill -{signal} {before}"));
        eventually("another relay answers", || {
            relay(&controller).is_some_and(|pid| pid != before)
        });
    }
    sh("rc-service proximity-relay stop");
    let printed = sh("rc-status --nocolor --format ini --all");
    let state = FamilyName::Alpine.family().state(&printed, Service::Relay);
    assert_ne!(state, Some("active"), "{printed}");
    assert_eq!(relay(&controller), None);
}

/// Brings a program of the host, with the libraries that the guest does not have, to its place in the guest.
fn carry(controller: &Controller, app: &Value, program: &str) {
    let id = app["id"].as_str().unwrap();
    // A guest is dead to the host's paths: its own root unpacks.
    controller.script(&format!(
        "libraries=$(ldd {program} | sed -n 's|.*=> /|/|; s| (0x.*||; /^\\//p') || libraries=
        tar --create --dereference --absolute-names {program} $libraries |
            lxc-attach -P {GUESTS} -n {id} -- tar --extract --absolute-names --skip-old-files"
    ));
}

#[test]
fn openrc_runs_the_services_of_an_appliance_of_alpine() {
    let controller = Controller::up();
    let app = controller.json(["app", "deploy", "nginx-openrc", "web"]);
    let sh = |script: &str| controller.exec("web", ["sh", "-c", script]);
    let family = FamilyName::Alpine.family();
    for file in family.files() {
        let install =
            r#"cat > "$0"; chmod 0755 "$0"; rc-update -u; rc-update add "${0##*/}" default"#;
        let words = ["exec", "web", "--", "sh", "-c", install, file.path];
        controller
            .run_with(words, file.content.as_bytes())
            .expect(0);
    }
    let state = |service: Service| {
        let printed = sh("rc-status --nocolor --format ini --all");
        family.state(&printed, service).map(str::to_owned)
    };
    let run = |commands: Vec<Vec<String>>| {
        for argv in commands {
            controller.exec("web", argv.iter().map(String::as_str));
        }
    };
    // Before the relay has written anything there is nothing to serve.
    let early = controller.run([
        "exec",
        "web",
        "--",
        "rc-service",
        "proximity-dnsmasq",
        "start",
    ]);
    assert_ne!(early.code, 0);
    sh("mkdir -p /etc/proximity && echo 10.0.0.1 first > /etc/some-hosts
        printf '%s\n' user=root group=root port=5353 listen-address=127.0.0.1 bind-interfaces no-resolv \
            no-hosts addn-hosts=/etc/some-hosts > /etc/proximity/dnsmasq.conf
        printf 'table inet proximity {\n\tchain input {\n\t}\n}\n' > /etc/nftables.conf
        printf '{\n\tadmin off\n}\nhttp://:8080 {\n\trespond \"made by caddy\"\n}\n' > /etc/proximity/Caddyfile
        echo caddy:x:990:990::/var/lib/caddy:/bin/false >> /etc/passwd; echo caddy:x:990: >> /etc/group
        echo 'caddy:!:20000::::::' >> /etc/shadow");
    for program in ["/usr/sbin/dnsmasq", "/usr/sbin/nft"] {
        carry(&controller, &app, program);
    }
    // The host has none; the appliance's is one file.
    let (id, appliance) = (app["id"].as_str().unwrap(), controller.appliance_id());
    controller.script(&format!(
        "lxc-attach -P {GUESTS} -n {appliance} -- cat /usr/bin/caddy |
            lxc-attach -P {GUESTS} -n {id} -- sh -c 'cat > /usr/sbin/caddy; chmod 0755 /usr/sbin/caddy'"
    ));

    run(vec![
        ["rc-service", "proximity-firewall", "start"]
            .map(str::to_owned)
            .into(),
    ]);
    assert!(sh("nft list tables").contains("inet proximity"));
    run(family.restart(&[Service::Dnsmasq, Service::Caddy]));
    for service in [Service::Dnsmasq, Service::Caddy] {
        eventually("it runs", || state(service).as_deref() == Some("active"));
    }
    let read = || sh("grep -c 'read /etc/some-hosts' /var/log/proximity-dnsmasq.log || true");
    eventually("dnsmasq has read its file", || read().trim() == "1");
    run(vec![family.reread(Service::Dnsmasq)]);
    eventually("dnsmasq has read its file anew", || read().trim() == "2");
    let page = "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3";
    let page = || {
        controller
            .run(["exec", "web", "--", "bash", "-c", page])
            .text()
    };
    eventually("caddy serves", || page().ends_with("made by caddy"));
    let owner = sh("stat -c %U /proc/$(cat /run/openrc/options/proximity-caddy/child_pid)");
    assert_eq!(owner, "caddy\n");

    for (service, name) in [(Service::Dnsmasq, "dnsmasq"), (Service::Caddy, "caddy")] {
        let child = format!("cat /run/openrc/options/proximity-{name}/child_pid");
        let before = sh(&child);
        sh(&format!("kill -KILL {before}"));
        eventually("it is back", || {
            sh(&child) != before && state(service).as_deref() == Some("active")
        });
    }
    assert_ne!(
        controller
            .run([
                "exec",
                "web",
                "--",
                "rc-service",
                "proximity-caddy",
                "reload"
            ])
            .code,
        0
    );
    sh("rc-service proximity-caddy stop; rc-service proximity-firewall stop");
    assert_eq!(state(Service::Caddy).as_deref(), Some("inactive"));
    // Without it the gateway would be open.
    assert!(sh("nft list tables").contains("inet proximity"));
}
