//! A guest's identity: closed to everybody else in the guest, renewed in time, and without it nothing
//! is served and nobody is trusted.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::controller::Controller;
use super::eventually;

const IN_GUEST: &str = "/etc/proximity/identity/bundle.json";
/// Mode and owner: the node's, read by the guest's root through its group.
const OWNED: &str = "440 65534:0\n";
/// The serial number of the certificate that the agent shows.
const SHOWN: &str = "openssl s_client -connect 127.0.0.1:39383 < /dev/null 2> /dev/null \
                     | openssl x509 -noout -serial";
/// Prints whether anything listens on the agent's port.
const LISTENS: &str = "ss --tcp --listening --numeric --no-header 'sport = 39383' | wc -l";

/// The bundle on the node's disk.
fn file(controller: &Controller, guest: &Value) -> PathBuf {
    let id = guest["id"].as_str().unwrap();
    controller
        .host
        .state()
        .join("node/guests")
        .join(id)
        .join("identity/bundle.json")
}

fn bundle(controller: &Controller, guest: &Value) -> Value {
    let text = fs::read(file(controller, guest)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Puts other content into the bundle's file, which keeps its owner and mode.
fn overwrite(controller: &Controller, guest: &Value, content: &str) {
    fs::write(file(controller, guest), content).unwrap();
}

fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3600)
}

#[test]
fn an_identity_is_the_guests_own_and_is_renewed_in_time() {
    let mut controller = Controller::up_through_relay();
    let web = controller.deploy("web");
    let lab = controller.sandbox("lab");
    for (name, guest) in [("web", &web), ("lab", &lab)] {
        assert_eq!(
            controller.exec(name, ["stat", "-c", "%a %u:%g", IN_GUEST]),
            OWNED,
            "{name}"
        );
        let options = controller.exec(name, ["grep", " /etc/proximity/identity ", "/proc/mounts"]);
        let options: Vec<_> = options.split(' ').nth(3).unwrap().split(',').collect();
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(options.contains(&option), "{name}: {options:?}");
        }
        for command in ["cat", "ls"] {
            let words = ["exec", name, "-u", "www-data", "--", command, IN_GUEST];
            let ran = controller.run(words);
            assert!(ran.code > 0 && ran.out.is_empty(), "{name}: {command}");
        }
        // Not even root of the guest changes it, whatever it does to the mount.
        for remount in ["true", "mount -o remount,bind,rw \"${0%/*}\""] {
            for change in [
                "echo x > \"$0\"",
                "rm \"$0\"",
                "chmod 644 \"$0\"",
                "touch \"${0%/*}/more\"",
                "mv \"$0\" \"$0.old\"",
            ] {
                let script = format!("{remount} || true; {change}");
                let ran = controller.run(["exec", name, "--", "sh", "-c", &script, IN_GUEST]);
                assert_ne!(ran.code, 0, "{name}: {script}");
            }
        }
        let held = bundle(&controller, guest);
        assert_eq!(held["instance"], guest["id"], "{name}");
        let ends = UNIX_EPOCH + Duration::from_secs(held["not_after"].as_u64().unwrap());
        let lives = ends.duration_since(SystemTime::now()).unwrap();
        assert!(lives > days(30) && lives <= days(90), "{name}: {lives:?}");
        // No two guests share a key, and the controller's side is nowhere in a guest.
        assert!(
            !controller
                .log()
                .contains(held["key"].as_str().unwrap().lines().nth(1).unwrap())
        );
    }
    assert_ne!(
        bundle(&controller, &web)["key"],
        bundle(&controller, &lab)["key"]
    );

    // It ends tomorrow: a controller that starts sees it and tells the agent, which goes on.
    let before = [("web", &web), ("lab", &lab)].map(|(name, guest)| {
        let mut held = bundle(&controller, guest);
        let tomorrow = SystemTime::now() + days(1);
        held["not_after"] = json!(tomorrow.duration_since(UNIX_EPOCH).unwrap().as_secs());
        overwrite(&controller, guest, &held.to_string());
        (
            controller.exec(name, ["sh", "-c", SHOWN]),
            began(&controller, name),
            held,
        )
    });
    controller.crash();
    for ((name, guest), (shown, started, held)) in
        [("web", &web), ("lab", &lab)].into_iter().zip(before)
    {
        eventually("the file is renewed", || {
            bundle(&controller, guest)["certificate"] != held["certificate"]
        });
        let renewed = bundle(&controller, guest);
        assert_ne!(renewed["key"], held["key"], "{name}");
        let now = controller.exec(name, ["sh", "-c", SHOWN]);
        assert!(now.starts_with("serial=") && now != shown, "{name}: {now}");
        assert_eq!(
            began(&controller, name),
            started,
            "{name} was not restarted"
        );
        assert_eq!(
            controller.exec(name, ["stat", "-c", "%a %u:%g", IN_GUEST]),
            OWNED,
            "{name}"
        );
    }
}

/// When the guest's agent began, in ticks since the machine's boot.
fn began(controller: &Controller, name: &str) -> String {
    let look = "p=$(systemctl show -P MainPID proximity-agent 2> /dev/null || echo 1)
        sed 's/.*) //' /proc/$p/stat | cut -d' ' -f20";
    controller.exec(name, ["sh", "-c", look])
}

#[test]
fn without_a_sound_identity_nothing_is_served_and_nobody_is_trusted() {
    let controller = Controller::up();
    let web = controller.deploy("web");
    let other = controller.deploy("other");
    let sound = fs::read_to_string(file(&controller, &web)).unwrap();
    let stranger = fs::read_to_string(file(&controller, &other)).unwrap();
    let touch = ["exec", "web", "--", "touch", "/root/ran"];

    // No bundle, garbage, one that anybody may read: the agent opens no socket.
    for content in ["", "{}", "garbage", &sound[..sound.len() / 2]] {
        eventually("the agent does not listen", || {
            // Again, in case the controller renewed it in this moment.
            overwrite(&controller, &web, content);
            controller.inside(&web, "systemctl restart --no-block proximity-agent");
            controller.inside(&web, LISTENS) == "0\n"
        });
        let told = controller.run(touch).expect(125).err;
        assert!(told.contains("reached"), "{content:?}: {told}");
    }
    overwrite(&controller, &web, &sound);
    eventually("the agent serves again", || {
        controller.run(["exec", "web", "--", "true"]).code == 0
    });

    // With another guest's identity it listens, and nobody tells it anything.
    overwrite(&controller, &web, &stranger);
    controller.inside(&web, "systemctl restart proximity-agent");
    eventually("the agent listens", || {
        controller.inside(&web, LISTENS) == "1\n"
    });
    let told = controller.run(touch).expect(125).err;
    assert!(told.contains("not who answers"), "{told}");
    controller.inside(&web, "test ! -e /root/ran");
    // Its own restart does not keep what is not its own.
    overwrite(&controller, &web, "garbage");
    controller.ok(["app", "restart", "web"]);
    assert_eq!(controller.exec("web", ["hostname"]), "web\n");
    assert_eq!(bundle(&controller, &web)["instance"], web["id"]);
}
