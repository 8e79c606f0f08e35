//! `cp` and `forward`: files come whole or not at all, ports of guests appear on the caller's loopback.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::controller::{Controller, finish};
use super::eventually;

#[test]
fn files_come_whole_or_not_at_all() {
    whole_or_not_at_all(&Controller::up());
}

#[test]
fn files_come_whole_or_not_at_all_through_the_relay() {
    whole_or_not_at_all(&Controller::up_through_relay());
}

fn whole_or_not_at_all(controller: &Controller) {
    controller.deploy("web");
    controller.json(["sandbox", "create", "--name", "small", "--disk", "1G"]);
    controller.script(
        "mkdir /run/cp; cd /run/cp
         head -c 64M /dev/urandom > much; chmod 751 much
         : > empty; printf 'old' > old; mkdir directory",
    );
    let here = |name: &str| format!("/run/cp/{name}");
    let sum = |text: String| text.split_whitespace().next().unwrap().to_owned();
    let much = sum(controller.script("sha256sum /run/cp/much"));

    for guest in ["small", "web"] {
        let there = format!("{guest}:/srv/much");
        let copied = controller.json(["cp", &here("much"), &there]);
        assert_eq!(
            (&copied["sha256"], &copied["size_bytes"]),
            (&Value::from(much.as_str()), &Value::from(64 << 20)),
            "{copied}"
        );
        assert_eq!(
            sum(controller.exec(guest, ["sha256sum", "/srv/much"])),
            much
        );
        let stat = controller.exec(guest, ["stat", "-c", "%a %U:%G", "/srv/much"]);
        assert_eq!(stat, "751 root:root\n");
        let back = here(&format!("back-{guest}"));
        let copied = controller.json(["cp", &there, &back]);
        assert_eq!(copied["sha256"], much.as_str(), "{copied}");
        assert_eq!(sum(controller.script(&format!("sha256sum {back}"))), much);
        assert_eq!(controller.script(&format!("stat -c %a {back}")), "751\n");
    }
    // As somebody else, into a directory by its name, an empty file, over a file that is there.
    controller.ok(["cp", "-u", "www-data", &here("old"), "web:/tmp/"]);
    assert_eq!(
        controller.exec("web", ["stat", "-c", "%U", "/tmp/old"]),
        "www-data\n"
    );
    controller.ok(["cp", &here("empty"), "web:/tmp/old"]);
    assert_eq!(
        controller.exec("web", ["stat", "-c", "%s", "/tmp/old"]),
        "0\n"
    );
    controller.ok(["cp", "web:/tmp/old", &here("directory")]);
    assert_eq!(controller.script("stat -c %s /run/cp/directory/old"), "0\n");

    // What is refused changes nothing.
    for (from, to, why) in [
        ("small:/srv/missing", "/run/cp/new", "/srv/missing"),
        ("/run/cp/missing", "small:/srv/new", "/run/cp/missing"),
        ("/run/cp/old", "small:/srv", "small:/srv/"),
        ("small:/srv", "/run/cp/new", "directory"),
        ("/run/cp/old", "small:/no/such/new", "/no/such"),
        ("/run/cp/old", "nobody:/srv/new", "nobody"),
    ] {
        let ran = controller.run(["cp", from, to]);
        assert!(ran.code == 1 || ran.code == 2, "{from} {to}: {}", ran.code);
        assert!(ran.err.contains(why), "{from} {to}: {}", ran.err);
    }
    let ran = controller.run(["cp", "-u", "www-data", &here("old"), "web:/etc/new"]);
    ran.expect(1);
    assert_eq!(controller.exec("small", ["ls", "-A", "/srv"]), "much\n");
    controller.exec("web", ["test", "!", "-e", "/etc/new"]);

    a_full_disk(controller);
    an_interrupted_copy(controller);
    what_was_copied_is_written_down(controller);
    let left = "cd /run/cp; ls -A; rm -r /run/cp";
    assert_eq!(
        controller.script(left),
        "back-small\nback-web\ndirectory\nempty\nmuch\nold\n"
    );
}

/// The guest `small` has no room for another big file.
fn a_full_disk(controller: &Controller) {
    controller.ok(["cp", "/run/cp/old", "small:/srv/data"]);
    let fill = "fallocate -l $(($(stat -f -c '%a * %S' /) - (16 << 20))) /fill";
    controller.exec("small", ["sh", "-euc", fill]);
    let ran = controller
        .run(["cp", "/run/cp/much", "small:/srv/data"])
        .expect(1);
    assert!(ran.err.to_lowercase().contains("space"), "{}", ran.err);
    assert_eq!(controller.exec("small", ["cat", "/srv/data"]), "old");
    assert_eq!(
        controller.exec("small", ["ls", "-A", "/srv"]),
        "data\nmuch\n"
    );
    controller.exec("small", ["rm", "/fill"]);
    controller.ok(["cp", "/run/cp/much", "small:/srv/data"]);
}

/// Who ends `cp` finds nothing half-done on either side.
fn an_interrupted_copy(controller: &Controller) {
    controller.script("truncate -s 3G /run/cp/large");
    controller.exec("web", ["truncate", "-s", "3G", "/large"]);
    let parts = |list: &str| list.contains(".proximity-");
    let in_guest = || parts(&controller.exec("web", ["ls", "-A", "/srv"]));
    let here = || parts(&controller.script("ls -A /run/cp/directory"));
    let ways: [([&str; 3], &dyn Fn() -> bool); 2] = [
        (["cp", "/run/cp/large", "web:/srv/large"], &in_guest),
        (["cp", "web:/large", "/run/cp/directory/"], &here),
    ];
    for (words, is_begun) in ways {
        let mut copy = controller.proximity(words).spawn().unwrap();
        eventually("the copy has begun", is_begun);
        kill_process(Pid::from_child(&copy), Signal::INT).unwrap();
        assert_eq!(copy.wait().unwrap().code(), Some(130), "{words:?}");
        eventually("nothing is left of it", || !is_begun());
    }
    controller.exec("web", ["test", "!", "-e", "/srv/large"]);
    controller.exec("web", ["rm", "/large"]);
    let there = "rm /run/cp/large; ls -A /run/cp/directory";
    assert_eq!(controller.script(there), "old\n");
}

/// Every copy stands in the audit log, with what became of it.
fn what_was_copied_is_written_down(controller: &Controller) {
    let log = controller.script("cat /var/lib/proximity/audit.log");
    let count = |words: &[&str]| {
        let lines = log.lines();
        lines
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .count()
    };
    let write = r#""action":"instance.file.write""#;
    assert_eq!(count(&[write, r#""outcome":"intent""#]), 12, "{log}");
    // The outcome of the interrupted one comes when its sender is seen to have gone.
    assert_eq!(count(&[write]), 24, "{log}");
    let whole = r#""size_bytes":67108864},"outcome":"ok""#;
    assert_eq!(count(&[write, whole]), 3, "{log}");
    assert_eq!(count(&[r#""refusal":"not_found""#]), 2, "{log}");
}

/// `proximity forward`, which listens.
struct Forward {
    child: Child,
    url: String,
}

impl Forward {
    fn start(controller: &Controller, target: &str) -> Self {
        let mut command = controller.proximity(["--json", "forward", target, "0"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut document = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while serde_json::from_str::<Value>(&document).is_err() {
            assert_ne!(lines.read_line(&mut document).unwrap(), 0, "{document}");
        }
        let document: Value = serde_json::from_str(&document).unwrap();
        let url = document["url"].as_str().unwrap().to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{document}");
        Self { child, url }
    }

    /// Ends it as a person does; what it said.
    fn end(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        let mut said = String::new();
        let mut err = self.child.stderr.take().unwrap();
        err.read_to_string(&mut said).unwrap();
        said
    }
}

#[test]
fn ports_of_guests_are_reached_from_loopback() {
    let controller = Controller::up();
    controller.deploy("web");
    controller.sandbox("lab");
    let serve = "cd /srv; head -c 8M /dev/urandom > much
        setsid python3 -m http.server 9000 --bind 127.0.0.1 > /dev/null 2>&1 &";
    controller.exec("lab", ["sh", "-c", serve]);

    let web = Forward::start(&controller, "web:80");
    let lab = Forward::start(&controller, "lab:9000");
    let closed = Forward::start(&controller, "web:81");
    for _ in 0..3 {
        let (status, body) = controller.page_at(&web.url, &[]);
        assert!(
            status == 200 && body.contains("Welcome to nginx!"),
            "{status} {body}"
        );
    }
    // Only the guest's own loopback reaches this server, and through it everything comes.
    let wanted = controller.exec("lab", ["sha256sum", "/srv/much"]);
    let url = format!("{}/much", lab.url);
    eventually("the server answers", || {
        finish(controller.command(["curl", "--silent", "--fail", "--head", &url])).code == 0
    });
    let get = format!("curl --silent --fail --max-time 60 {url} | sha256sum");
    let sums = std::thread::scope(|scope| {
        let gets = [(); 4].map(|()| scope.spawn(|| controller.script(&get)));
        gets.map(|get| get.join().unwrap())
    });
    for sum in sums {
        assert_eq!(sum.split(' ').next(), wanted.split(' ').next());
    }
    // Where nobody listens, the connection ends and it is said why.
    let refused = finish(controller.command(["curl", "--silent", "--max-time", "10", &closed.url]));
    assert_ne!(refused.code, 0);
    let said = closed.end();
    assert!(
        said.contains("was not led on") && said.contains("81"),
        "{said}"
    );
    assert_eq!((web.end().as_str(), lab.end().as_str()), ("", ""));
    // With it the port is gone.
    finish(controller.command(["curl", "--silent", &url])).expect(7);
}
