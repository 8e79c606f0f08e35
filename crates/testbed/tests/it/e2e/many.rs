//! Twenty deploys at once, twenty deletes at once.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use super::controller::Controller;
use super::facts::Facts;

const MANY: usize = 20;

fn all_at_once(controller: &Controller, words: impl Fn(&str) -> Vec<String>) {
    let start = |number| -> Child {
        let name = format!("app-{number}");
        let mut command = controller.proximity(words(&name));
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<Child> = (0..MANY).map(start).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

#[test]
fn twenty_deploys_and_twenty_deletes_at_once() {
    let controller = Controller::up();
    let before = Facts::of_zone(&controller).without("/operations");
    all_at_once(&controller, |name| words(["app", "deploy", "nginx", name]));
    let apps = controller.json(["app", "list"]);
    let apps = apps.as_array().unwrap();
    assert_eq!(apps.len(), MANY);
    let addresses: BTreeSet<_> = apps.iter().map(|app| app["ip"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), MANY);
    for app in apps {
        assert_eq!(app["status"], "running", "{app}");
        let name = app["name"].as_str().unwrap();
        assert_eq!(
            controller.page(&format!("{name}.prox.local")).0,
            200,
            "{name}"
        );
        assert_eq!(
            controller
                .exec(name, ["hostname", "--all-ip-addresses"])
                .trim(),
            app["ip"]
        );
    }
    all_at_once(&controller, |name| words(["app", "delete", name, "--yes"]));
    before.assert_same(
        &Facts::of_zone(&controller).without("/operations"),
        "twenty apps that were deleted",
    );
}
