//! Machines on the zone's bridge that are no instances: the names that their leases have, below `dyn` and nowhere else.

use serde_json::Value;

use super::controller::Controller;
use super::eventually;
use super::guest::{Answer, ask};

/// Plugs a machine into the bridge that takes a lease under a name; it stays plugged in.
fn plug(controller: &Controller, last: u8, name: &str) -> String {
    let script = format!(
        "ip link add plug{last} type veth peer name machine{last}
        ip link set plug{last} master proximity-lan up
        ip link set machine{last} address 02:00:00:00:00:{last:02x}
        ip netns add machine{last}
        ip link set machine{last} netns machine{last}
        nsenter --net=/run/netns/machine{last} ip link set machine{last} up
        nsenter --net=/run/netns/machine{last} \
            busybox udhcpc -i machine{last} -q -n -t 10 -s /bin/true -x hostname:{name} 2>&1"
    );
    let said = controller.script(&script);
    let address = said
        .split("lease of ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    address.unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// The machine's client gives its lease back, as it does when it is asked to on its way out.
fn give_back(controller: &Controller, last: u8, address: &str) {
    // Said from the address itself, which the client leaves to others to set.
    controller.script(&format!(
        "nsenter --net=/run/netns/machine{last} ip address add {address}/24 dev machine{last}
        nsenter --net=/run/netns/machine{last} \
            busybox udhcpc -i machine{last} -f -t 10 -s /bin/true > /run/machine{last} 2>&1 & pid=$!
        until grep --quiet 'lease of' /run/machine{last}; do sleep 0.05; done
        kill -USR2 $pid
        until grep --quiet released /run/machine{last}; do sleep 0.05; done
        kill $pid"
    ));
}

/// The name of a lease as `lease list` has it.
fn listed(controller: &Controller, last: u8) -> Value {
    let leases = controller.json(["lease", "list"]);
    let mac = format!("02:00:00:00:00:{last:02x}");
    let lease = leases
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["mac"] == mac.as_str());
    lease.unwrap_or_else(|| panic!("{leases}"))["name"].clone()
}

#[test]
fn machines_that_are_no_instances_have_names_below_dyn_only() {
    let controller = Controller::up();
    let web: Answer = Answer::Address(
        controller.deploy("web")["ip"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap(),
    );
    controller.json([
        "sandbox", "create", "--name", "ruled", "--egress", "1.1.1.1",
    ]);
    let asked = |name: &str| ask(&controller, "web", name);
    let first = plug(&controller, 33, "Laptop");
    let laptop = Answer::Address(first.parse().unwrap());
    eventually("the machine has its name", || {
        asked("laptop.dyn.prox.local") == laptop
    });
    assert_eq!(listed(&controller, 33), "laptop.dyn.prox.local");
    let names = controller.json(["dns", "list"]);
    assert!(
        names.to_string().contains("laptop.dyn.prox.local"),
        "{names}"
    );
    // Who may ask for few names only may ask for the zone's, these among them.
    assert_eq!(ask(&controller, "ruled", "laptop.dyn.prox.local"), laptop);
    for name in ["laptop.prox.local", "laptop", "laptop.dyn"] {
        assert_eq!(asked(name), Answer::NoSuchName, "{name}");
    }

    // Another one that calls itself the same has no name, and one that calls itself like an app takes nothing from it.
    let second = plug(&controller, 34, "laptop");
    let third = plug(&controller, 35, "web");
    eventually("the third machine has its name", || {
        asked("web.dyn.prox.local") == Answer::Address(third.parse().unwrap())
    });
    assert_eq!(asked("laptop.dyn.prox.local"), laptop);
    assert_eq!(listed(&controller, 34), Value::Null);
    assert_eq!(asked("web.prox.local"), web);
    assert_eq!(asked("web"), web);
    // Nor has a guest, whatever it calls itself.
    let leases = controller.json(["lease", "list"]);
    let own = leases
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["instance"] == "web");
    assert_eq!(own.unwrap()["name"], Value::Null);

    // What the relay decided holds when it and dnsmasq begin anew.
    let appliance = controller.appliance_id();
    let inside = serde_json::json!({ "id": appliance });
    controller.inside(&inside, "systemctl restart proximity-relay dnsmasq");
    eventually("the holder keeps its name", || {
        asked("laptop.dyn.prox.local") == laptop && asked("web.prox.local") == web
    });

    // A lease that is given back takes its name along, and the next one may have it.
    give_back(&controller, 33, &first);
    eventually("the second machine has the name", || {
        listed(&controller, 34) == "laptop.dyn.prox.local"
    });
    give_back(&controller, 34, &second);
    eventually("nobody has the name", || {
        asked("laptop.dyn.prox.local") == Answer::NoSuchName
    });
}
