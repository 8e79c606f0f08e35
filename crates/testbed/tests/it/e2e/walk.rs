//! The controller is killed behind every single record of an operation, and comes back: what was asked for is
//! brought to its end, everything that tells of guests tells the same, nothing is left over and nothing is lost.
//!
//! Which records there are is not written down here: each operation runs once undisturbed, and the store's fault
//! points (`store::fault_points`, debug builds only) tell what was recorded.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::controller::Controller;
use super::facts::Facts;
use super::{agreement, eventually};

/// A controller that can be held at its records.
pub struct Walk {
    pub controller: Controller,
    faults: PathBuf,
}

impl Walk {
    /// On a host of its own; the zone is not up.
    pub fn start() -> Self {
        let mut controller = Controller::on_a_host();
        for file in ["faults/passed", "faults/hold"] {
            controller.write_etc(file, "");
        }
        controller.fault_points = true;
        controller.serve();
        Self {
            faults: controller.host.state().join("etc/faults"),
            controller,
        }
    }

    /// Names one record as `KIND TARGET NUMBER`; no other is held from now on. Replaced as a whole, since the
    /// controller may read at any moment.
    pub fn hold(&self, point: &str) {
        let new = self.faults.join("hold.new");
        fs::write(&new, point).unwrap();
        fs::rename(new, self.faults.join("hold")).unwrap();
    }

    /// Forgets which records passed.
    pub fn forget(&self) {
        fs::write(self.faults.join("passed"), "").unwrap();
    }

    /// The records of operations of a kind since [`Walk::forget`], in words.
    pub fn passed(&self, kind: &str) -> Vec<String> {
        let log = fs::read_to_string(self.faults.join("passed")).unwrap();
        let record = |line: &str| {
            let mut words = line.splitn(4, ' ');
            (words.next()? == kind).then_some(())?;
            words.nth(2).map(str::to_owned)
        };
        log.lines().filter_map(record).collect()
    }

    /// How many records an operation has that is not disturbed.
    fn count<T>(&self, kind: &str, ask: impl FnOnce(&Controller) -> T) -> usize {
        self.forget();
        // Whoever hangs up at once may not have asked.
        let _asked = ask(&self.controller);
        let over = |last: &String| ["succeeded", "forgotten"].contains(&last.as_str());
        eventually(&format!("{kind} ends"), || {
            self.passed(kind).last().is_some_and(over)
        });
        let passed = self.passed(kind);
        // Every event of the operation was a point at which it could have been held.
        let operations = self.controller.api("GET", "/operations", None).1;
        let mut newest = operations.as_array().unwrap().iter();
        let id = newest.find(|o| o["kind"] == kind).unwrap()["id"]
            .as_str()
            .unwrap();
        let operation = self
            .controller
            .api("GET", &format!("/operations/{id}"), None)
            .1;
        for event in operation["events"].as_array().unwrap() {
            let words = [&event["step"], &event["state"]].map(|w| w.as_str().unwrap());
            assert!(passed.contains(&words.join(" ")), "{event}: {passed:?}");
        }
        passed.len()
    }

    /// Asks, kills the controller when the operation's record of that number is on the disk, and starts another.
    fn cut<T>(&mut self, kind: &str, number: usize, ask: impl FnOnce(&Controller) -> T) -> String {
        self.forget();
        self.hold(&format!("{kind} * {number}"));
        let asked = ask(&self.controller);
        eventually(&format!("{kind} comes to its record {number}"), || {
            self.passed(kind).len() == number
        });
        let record = self.passed(kind).pop().unwrap();
        self.controller.end(Signal::KILL);
        drop(asked);
        self.hold("");
        self.controller.serve();
        self.all_done();
        format!("{kind}, killed after its record {number} ({record})")
    }

    /// Waits until no operation is under way; all have succeeded.
    fn all_done(&self) {
        let mut operations = Value::Null;
        eventually("every operation ends", || {
            operations = self.controller.api("GET", "/operations", None).1;
            let mut list = operations.as_array().unwrap().iter();
            list.all(|operation| operation["status"] != "running")
        });
        for operation in operations.as_array().unwrap() {
            assert_eq!(operation["status"], "succeeded", "{operation}");
        }
    }
}

/// Sends a request and does not wait for its answer.
fn ask(controller: &Controller, method: &str, path: &str, body: Option<&Value>) -> UnixStream {
    controller.call(method, path, "", body).unwrap()
}

fn up(controller: &Controller) -> UnixStream {
    ask(controller, "POST", "/zones/default/up", None)
}

fn down(controller: &Controller) -> UnixStream {
    let body = json!({ "with_instances": true });
    ask(controller, "POST", "/zones/default/down", Some(&body))
}

fn deploy(controller: &Controller) -> UnixStream {
    let body = json!({ "app_id": "nginx", "instance_name": "web" });
    ask(controller, "POST", "/apps/deploy", Some(&body))
}

fn stop(controller: &Controller) -> UnixStream {
    ask(controller, "POST", "/apps/web/stop", None)
}

fn delete(controller: &Controller) -> UnixStream {
    ask(controller, "DELETE", "/apps/web", None)
}

fn sandbox_run(controller: &Controller) -> Child {
    let mut command = controller.proximity(["sandbox", "run", "--", "true"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn up_and_down_survive_a_kill_behind_every_record() {
    let mut walk = Walk::start();
    let before = Facts::of_node(&walk.controller);
    let ups = walk.count("zone_up", up);
    let files = agreement::files(&walk.controller);
    let downs = walk.count("zone_down", down);
    before.assert_same(&Facts::of_node(&walk.controller), "down");
    for number in 1..=ups.max(downs) {
        if number <= ups {
            let what = walk.cut("zone_up", number, up);
            walk.controller.until_available();
            agreement::check(&walk.controller, &files, &what);
        } else {
            walk.controller.ok(["up"]);
        }
        if number <= downs {
            let what = walk.cut("zone_down", number, down);
            before.assert_same(&Facts::of_node(&walk.controller), &what);
        } else {
            walk.controller.ok(["down", "--yes"]);
        }
    }
}

#[test]
fn deploy_stop_and_delete_survive_a_kill_behind_every_record() {
    let mut walk = Walk::start();
    walk.controller.ok(["up"]);
    let files = agreement::files(&walk.controller);
    let before = Facts::of_zone(&walk.controller).without("/operations");
    let deploys = walk.count("deploy", deploy);
    agreement::check(&walk.controller, &files, "deploy");
    let stops = walk.count("stop", stop);
    agreement::check(&walk.controller, &files, "stop");
    let deletes = walk.count("delete", delete);
    for number in 1..=deploys.max(stops).max(deletes) {
        if number <= deploys {
            let what = walk.cut("deploy", number, deploy);
            assert_eq!(walk.controller.app("web")["status"], "running", "{what}");
            assert_eq!(walk.controller.page("web.prox.local").0, 200, "{what}");
            agreement::check(&walk.controller, &files, &what);
        } else {
            walk.controller.deploy("web");
        }
        if number <= stops {
            let what = walk.cut("stop", number, stop);
            assert_eq!(walk.controller.app("web")["status"], "stopped", "{what}");
            agreement::check(&walk.controller, &files, &what);
        }
        if number <= deletes {
            let what = walk.cut("delete", number, delete);
            let now = Facts::of_zone(&walk.controller).without("/operations");
            before.assert_same(&now, &what);
        } else {
            walk.controller.ok(["app", "delete", "web", "--yes"]);
        }
    }
}

#[test]
fn a_sandbox_run_survives_a_kill_behind_every_record() {
    let mut walk = Walk::start();
    walk.controller.ok(["up"]);
    let files = agreement::files(&walk.controller);
    let before = Facts::of_zone(&walk.controller).without("/operations");
    for kind in ["deploy", "delete"] {
        for number in 1..=walk.count(kind, sandbox_run) {
            let what = walk.cut(kind, number, sandbox_run);
            agreement::check(&walk.controller, &files, &what);
            // Whoever waited for it is gone with the first controller; the sandbox ends when its time is over.
            let left = walk.controller.api("GET", "/sandboxes", None).1;
            for sandbox in left.as_array().unwrap() {
                assert_eq!(sandbox["status"], "running", "{what}: {sandbox}");
                walk.controller
                    .kill_sandboxes([sandbox["name"].as_str().unwrap()]);
            }
            let now = Facts::of_zone(&walk.controller).without("/operations");
            before.assert_same(&now, &what);
        }
    }
}

#[test]
fn an_appliance_that_is_killed_at_any_step_fails_nothing() {
    let walk = Walk::start();
    walk.controller.ok(["up"]);
    let files = agreement::files(&walk.controller);
    let kill = format!(
        "lxc-stop -P /var/lib/proximity/guests -n {} -k",
        walk.controller.appliance_id()
    );
    // Of each step the record with which it began.
    let steps = |kind: &str, ask: fn(&Controller) -> UnixStream| -> Vec<usize> {
        walk.count(kind, ask);
        let passed = walk.passed(kind);
        let started = passed.iter().enumerate();
        let started = started.filter(|(_, record)| record.ends_with(" started"));
        started.map(|(index, _)| index + 1).collect()
    };
    let cut = |kind: &str, number: usize, ask: fn(&Controller) -> UnixStream| {
        walk.forget();
        walk.hold(&format!("{kind} * {number}"));
        let _asked = ask(&walk.controller);
        eventually(&format!("{kind} comes to its record {number}"), || {
            walk.passed(kind).len() == number
        });
        walk.controller.script(&kill);
        walk.hold("");
        walk.all_done();
    };
    let deploys = steps("deploy", deploy);
    let deletes = steps("delete", delete);
    for (index, number) in deploys.iter().enumerate() {
        cut("deploy", *number, deploy);
        assert_eq!(walk.controller.app("web")["status"], "running");
        walk.controller.until_available();
        eventually("its page is served", || {
            walk.controller.page("web.prox.local").0 == 200
        });
        agreement::check(&walk.controller, &files, &format!("deploy, step {index}"));
        // A deletion waits for no appliance, so one of its steps stands for all.
        match index {
            0 => cut("delete", deletes[0], delete),
            _ => drop(walk.controller.ok(["app", "delete", "web", "--yes"])),
        }
        eventually("the app is gone", || {
            walk.controller.api("GET", "/apps/web", None).0 == 404
        });
        walk.controller.until_available();
        eventually("the gateway is told", || {
            let lists = ["/appliance/dns/records", "/appliance/vhosts"];
            let empty = |list| walk.controller.api("GET", list, None).1 == json!([]);
            lists.into_iter().all(empty)
        });
        agreement::check(&walk.controller, &files, &format!("delete, step {index}"));
    }
}
