//! Stopping, starting and restarting apps, and controllers that come and go while apps run.

use rustix::process::Signal;
use serde_json::Value;

use super::controller::{Controller, GUESTS, finish};
use super::eventually;

/// When the guest's PID 1 began, in ticks since the machine's boot: another value is another boot.
fn boot(controller: &Controller, app: &Value) -> String {
    let id = app["id"].as_str().unwrap();
    let look = format!(
        "p=$(lxc-info -P {GUESTS} -n {id} -p -H); sed 's/.*) //' /proc/$p/stat | cut -d' ' -f20"
    );
    controller.script(&look)
}

#[test]
fn an_app_is_stopped_started_and_restarted() {
    let controller = Controller::up();
    let app = controller.deploy("web");
    let change = "echo kept > /var/www/html/index.html; chmod 1755 /";
    controller.exec("web", ["sh", "-c", change]);
    let first = boot(&controller, &app);

    controller.ok(["app", "stop", "web"]);
    assert_eq!(controller.app("web")["status"], "stopped");
    let state = format!(
        "lxc-info -P {GUESTS} -n {} -s -H",
        app["id"].as_str().unwrap()
    );
    assert_eq!(controller.script(&state), "STOPPED\n");
    assert_eq!(controller.page("web.prox.local").0, 404);
    assert_eq!(controller.infrastructure()["connected_apps"], 0);
    controller.run(["exec", "web", "--", "true"]).expect(125);
    controller.ok(["app", "stop", "web"]);

    controller.ok(["app", "start", "web"]);
    let started = controller.app("web");
    assert_eq!(
        (&started["status"], &started["ip"]),
        (&"running".into(), &app["ip"])
    );
    assert_eq!(
        controller.page("web.prox.local"),
        (200, "kept\n".to_owned())
    );
    // Its root directory too is as the guest left it.
    assert_eq!(controller.exec("web", ["stat", "-c", "%a", "/"]), "1755\n");
    let second = boot(&controller, &app);
    assert_ne!(second, first);
    controller.ok(["app", "start", "web"]);
    assert_eq!(
        boot(&controller, &app),
        second,
        "what runs is not started again"
    );

    controller.ok(["app", "restart", "web"]);
    assert_ne!(boot(&controller, &app), second);
    assert_eq!(
        controller.page("web.prox.local"),
        (200, "kept\n".to_owned())
    );
    assert_eq!(controller.app("web")["ip"], app["ip"]);

    // The command line may be gone long before the guest is ready, or never wait at all.
    controller.script(&format!(
        "lxc-stop -P {GUESTS} -n {} -k",
        app["id"].as_str().unwrap()
    ));
    controller.ok(["app", "start", "web"]);
    assert_eq!(controller.page("web.prox.local").0, 200);
}

#[test]
fn guests_go_on_while_controllers_come_and_go() {
    let mut controller = Controller::up();
    let app = controller.deploy("web");
    let stopped = controller.deploy("idle");
    controller.ok(["app", "stop", "idle"]);
    let (wan, began) = (controller.wan_address(), boot(&controller, &app));
    let lists = |c: &Controller| {
        let lists = [
            "/apps",
            "/appliance/dhcp/leases",
            "/appliance/dns/records",
            "/appliance/vhosts",
        ];
        lists.map(|list| {
            let mut list = c.api("GET", list, None).1;
            for entry in list.as_array_mut().unwrap() {
                entry.as_object_mut().unwrap().remove("connections");
            }
            list
        })
    };
    let before = lists(&controller);
    let token = |c: &Controller| std::fs::read(c.host.state().join("node/admin.token")).unwrap();
    let first_token = token(&controller);

    for signal in [Signal::TERM, Signal::KILL, Signal::INT] {
        controller.end(signal);
        let (url, host) = (
            format!("http://{wan}/"),
            ["--header", "Host: web.prox.local"],
        );
        assert_eq!(
            controller.page_at(&url, &host).0,
            200,
            "served without a controller"
        );
        assert_eq!(boot(&controller, &app), began);
        controller.run(["app", "list"]).expect(3);
        controller.serve();
        controller.until_available();
        assert_eq!(lists(&controller), before, "after {signal:?}");
        assert_eq!(boot(&controller, &app), began, "after {signal:?}");
        assert_eq!(token(&controller), first_token);
        assert_eq!(controller.exec("web", ["hostname"]), "web\n");
    }
    assert_eq!(controller.app("idle")["status"], "stopped", "{stopped}");
}

#[test]
fn of_two_controllers_over_one_data_directory_the_second_refuses() {
    let mut controller = Controller::start();
    let second = || controller.command(controller.serve_words(&["--listen", "127.0.0.1:8766"]));
    let ran = finish(second()).expect(1);
    assert!(ran.err.contains("running already"), "{}", ran.err);
    assert_eq!(
        controller
            .ok(["zone", "list", "--json"])
            .matches("\"default\"")
            .count(),
        1
    );

    // Even when the first one's socket was taken away.
    controller.script("rm /var/lib/proximity/proximity.sock");
    let ran = finish(second()).expect(1);
    assert!(ran.err.contains("running already"), "{}", ran.err);

    // Many at the same moment, each with a port of its own: one of them serves.
    controller.end(Signal::KILL);
    let start = "for port in $(seq 8770 8781); do
        (\"$@\" --listen 127.0.0.1:$port 2> /dev/null; echo $? >> /etc/proximity/ended) &
    done; wait";
    let words = ["sh", "-c", start, "start"].map(str::to_owned).into_iter();
    let mut rivals = controller.command(words.chain(controller.serve_words(&[])));
    let ended = controller.write_etc("ended", "");
    let mut rivals = rivals.spawn().unwrap();
    eventually("all but one give up", || {
        controller.script(&format!("cat {ended}")) == "1\n".repeat(11)
    });
    eventually("the one serves", || {
        controller.try_api("GET", "/system/health", None).is_some()
    });
    assert!(rivals.try_wait().unwrap().is_none());
}
