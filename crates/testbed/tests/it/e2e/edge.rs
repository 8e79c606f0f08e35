//! What people add to a zone's gateway, on the real thing: routes through Caddy with what they ask for,
//! published ports from the outside, names and reserved addresses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::controller::Controller;
use super::guest::{Answer, ask};
use super::{PATIENCE, eventually};

/// The example `guest_app`, which was built with this test.
fn guest_app() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap();
    built.join("examples/guest_app")
}

/// An app `web` whose guest also runs the one of this test's examples.
fn with_app() -> Controller {
    let controller = Controller::up();
    controller.deploy("web");
    let program = guest_app();
    controller.ok(["cp", program.to_str().unwrap(), "web:/usr/local/bin/app"]);
    let start = "chmod 755 /usr/local/bin/app
        systemd-run --quiet --unit=app --property=DynamicUser=yes /usr/local/bin/app";
    controller.exec("web", ["sh", "-euc", start]);
    controller
}

/// Waits until a page has this status, and returns its body.
fn until_page(controller: &Controller, host: &str, status: u16) -> String {
    let mut body = String::new();
    eventually(&format!("{host} answers {status}"), || {
        let (is, text) = controller.page(host);
        body = text;
        is == status
    });
    body
}

/// A new connection to the proxy's port that was forwarded.
fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads until what was heard holds a text.
fn hear(stream: &mut TcpStream, wanted: &str) -> String {
    let mut heard = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&heard).into_owned();
        if text.contains(wanted) {
            return text;
        }
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        assert_ne!(length, 0, "the connection ended after {text:?}");
        heard.extend(&buffer[..length]);
    }
}

#[test]
fn routes_carry_what_apps_speak_and_ask_for_what_they_are_told_to() {
    let mut controller = with_app();
    let web = ["route", "add", "api.prox.local", "web:8080"];
    assert_eq!(controller.json(web)["builtin"], false);
    let body = until_page(&controller, "api.prox.local", 200);
    assert!(body.contains("x-forwarded-proto: http\n"), "{body}");
    let caddy = caddy(&controller);
    // The same again is the same; something else is not.
    controller.json(web);
    controller.refused(["route", "add", "api.prox.local", "web:80"], "taken");
    for (host, code) in [
        ("wpad.prox.local", "bad_request"),
        ("a.b.prox.local", "bad_request"),
        ("x.localhost", "bad_request"),
    ] {
        controller.refused(["route", "add", host, "web:80"], code);
    }
    controller.refused(["route", "add", "x.prox.local", "web:39383"], "bad_request");
    controller.refused(
        ["route", "add", "x.prox.local", "nobody:80"],
        "unknown_instance",
    );
    controller.refused(["app", "deploy", "nginx", "api"], "taken");
    controller.refused(["route", "rm", "web.prox.local"], "conflict");
    let gateway = Answer::Address([10, 20, 0, 1].into());
    assert_eq!(ask(&controller, "web", "api.prox.local"), gateway);

    events_and_websockets(&mut controller);
    grpc(&mut controller);
    conditions(&controller);
    // A name of a domain of one's own, by http.
    controller.ok(["route", "add", "shop.example.com", "web:8080"]);
    until_page(&controller, "shop.example.com", 200);
    assert_eq!(controller.page("other.example.com").0, 404);

    comes_and_goes(&mut controller);
    assert_eq!(
        self::caddy(&controller),
        caddy,
        "nothing of it touched Caddy"
    );
    controller.ok(["app", "delete", "web", "--yes"]);
    assert_eq!(controller.json(["route", "list"]), json!([]));
    assert_eq!(controller.page("api.prox.local").0, 404);
}

/// What would change if Caddy were restarted, reloaded or given another configuration.
fn caddy(controller: &Controller) -> String {
    let look = "systemctl show caddy --property=MainPID,NRestarts,ActiveEnterTimestampMonotonic
        sha256sum /etc/proximity/Caddyfile; journalctl --unit=caddy --output=cat | grep -c reload || true";
    controller.exec("prox-appliance", ["sh", "-c", look])
}

fn events_and_websockets(controller: &mut Controller) {
    // With a condition, so that the relay reads HTTP; the plain route copies bytes.
    let limited = [
        "route",
        "add",
        "limited.prox.local",
        "web:8080",
        "--timeout",
        "20s",
    ];
    controller.ok(limited);
    until_page(controller, "limited.prox.local", 200);
    let gateway = (controller.wan_address(), 80).into();
    let proxy = controller.host.forward(gateway).unwrap();
    for host in ["api.prox.local", "limited.prox.local"] {
        // The answer has no end: what is not passed on at once never comes.
        let mut stream = connect(proxy);
        write!(stream, "GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let heard = hear(&mut stream, "data: first\n\n");
        assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");

        let mut stream = connect(proxy);
        write!(
            stream,
            "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        .unwrap();
        let heard = hear(&mut stream, "\r\n\r\n");
        assert!(heard.starts_with("HTTP/1.1 101"), "{heard}");
        // A text frame of two bytes, masked with zeros (RFC 6455, 5.2).
        stream.write_all(b"\x81\x82\0\0\0\0hi").unwrap();
        hear(&mut stream, "echo hi");
    }
}

/// A call that streams both ways, by TLS whose certificate counts, with its status in trailers.
fn grpc(controller: &mut Controller) {
    controller.ok(["route", "add", "grpc.prox.local", "web:8081"]);
    let gateway = (controller.wan_address(), 443).into();
    let proxy = controller.host.forward(gateway).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(root(controller).as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let call =
        runtime.block_on(async { tokio::time::timeout(PATIENCE, call(proxy, config)).await });
    assert_eq!(call.expect("the call ends"), ("one", "two", "0".to_owned()));
}

/// The first message comes back before the second one is sent.
async fn call(
    proxy: SocketAddr,
    mut config: rustls::ClientConfig,
) -> (&'static str, &'static str, String) {
    use http_body_util::{BodyExt, StreamBody};
    use hyper::body::{Bytes, Frame};

    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
    let name = "grpc.prox.local".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let (say, said) = futures::channel::mpsc::unbounded::<Result<Frame<Bytes>, hyper::Error>>();
    let message = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
    say.unbounded_send(message("one")).unwrap();
    let request = hyper::Request::post("https://grpc.prox.local/echo.Echo/Both")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(said))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "one");
    say.unbounded_send(message("two")).unwrap();
    let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(second, "two");
    drop(say);
    let trailers = body.frame().await.unwrap().unwrap();
    let trailers = trailers.into_trailers().unwrap();
    let status = trailers["grpc-status"].to_str().unwrap().to_owned();
    ("one", "two", status)
}

/// The root certificate of the zone's own authority. It is good for names of the zone only, and its key is
/// nobody's but Caddy's.
fn root(controller: &Controller) -> String {
    let root = controller.ok(["appliance", "ca"]);
    let file = controller.write_etc("root.crt", &root);
    let text = controller.script(&format!("openssl x509 -in {file} -noout -text"));
    let (_, constraint) = text
        .split_once("X509v3 Name Constraints: critical")
        .expect("the certificate has a constraint");
    for wanted in ["Permitted:", "DNS:prox.local", "IP:0.0.0.0/0.0.0.0"] {
        assert!(constraint.contains(wanted), "{text}");
    }
    let look = "stat -c '%a %U' /var/lib/proximity/authority/prox.local/root.key";
    let key = controller.exec("prox-appliance", ["sh", "-c", look]);
    assert_eq!(key, "400 caddy\n");
    root
}

/// Who guesses must wait; who comes from elsewhere need not.
fn guessing(controller: &Controller) {
    let url = format!("http://{}/", controller.wan_address());
    let asked = |password: &str| {
        let user = format!("anna:{password}");
        let options = [
            "--header",
            "Host: web.prox.local",
            "--user",
            &user,
            "--include",
        ];
        controller.page_at(&url, &options)
    };
    // One was wrong already.
    for _ in 0..9 {
        assert_eq!(asked("guess").0, 401);
    }
    for password in ["guess", "correct horse battery"] {
        let (status, answer) = asked(password);
        assert_eq!(status, 429, "{answer}");
        let wait = answer.lines().find_map(|l| l.strip_prefix("Retry-After: "));
        let seconds: u64 = wait.unwrap().trim().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{answer}");
    }
    let credentials = "YW5uYTpjb3JyZWN0IGhvcnNlIGJhdHRlcnk=";
    let ask = r#"exec 3<>/dev/tcp/10.20.0.1/80
        printf 'GET / HTTP/1.0\r\nHost: web.prox.local\r\nAuthorization: Basic %s\r\n\r\n' "$0" >&3
        head -n 1 <&3"#;
    let answer = controller.exec("web", ["timeout", "5", "bash", "-c", ask, credentials]);
    assert!(answer.contains(" 200 "), "{answer}");
}

fn conditions(controller: &Controller) {
    let asked = |host: &str, options: &[&str]| {
        let url = format!("http://{}/", controller.wan_address());
        let host = format!("Host: {host}");
        controller.page_at(&url, &[&["--header", &host], options].concat())
    };
    // A password, for the app's own name too; it comes from standard input and never from a command line.
    let words = "route set web.prox.local web:80 --auth basic --user anna --secret-file -";
    controller
        .run_with(words.split(' '), b"correct horse battery\n")
        .expect(0);
    until_page(controller, "web.prox.local", 401);
    let good = ["--user", "anna:correct horse battery"];
    assert_eq!(asked("web.prox.local", &good).0, 200);
    assert_eq!(asked("web.prox.local", &["--user", "anna:wrong"]).0, 401);
    guessing(controller);
    let log = controller.script("cat /var/lib/proximity/audit.log");
    assert!(log.contains("route.set") && !log.contains("battery"));
    // What is kept is a digest, on the node and on the appliance.
    let kept = controller.exec(
        "prox-appliance",
        ["sh", "-c", "cat /var/lib/proximity/gateway.*"],
    );
    assert!(kept.contains("\"anna\"") && !kept.contains("battery"));
    // Without it the app's own name is as it was.
    controller.ok(["route", "rm", "web.prox.local"]);
    until_page(controller, "web.prox.local", 200);

    let token = controller.json([
        "route",
        "add",
        "closed.prox.local",
        "web:8080",
        "--auth",
        "token",
        "--max-body",
        "1K",
    ]);
    assert_eq!(token["auth"], "token");
    until_page(controller, "closed.prox.local", 401);
    let token = format!("Authorization: Bearer {}", token["token"].as_str().unwrap());
    let (status, body) = asked("closed.prox.local", &["--header", &token]);
    assert_eq!(status, 200);
    assert!(!body.contains("authorization"), "the app saw it: {body}");
    for (size, expected) in [(1024, 200), (100_000, 413)] {
        let data = "x".repeat(size);
        let options = ["--header", &token, "--data", &data];
        assert_eq!(asked("closed.prox.local", &options).0, expected);
    }
    controller.ok([
        "route",
        "set",
        "api.prox.local",
        "web:8080",
        "--redirect-https",
    ]);
    until_page(controller, "api.prox.local", 308);
    let located = asked("api.prox.local", &["--head"]).1;
    assert!(
        located
            .to_lowercase()
            .contains("location: https://api.prox.local/"),
        "{located}"
    );
    // A preview on this machine's loopback has no https to be sent to.
    assert_eq!(asked("api.localhost", &[]).0, 200);
    controller.ok(["route", "set", "api.prox.local", "web:8080"]);
}

/// Routes of an app that stops are closed and come back; a controller that is killed forgets none.
fn comes_and_goes(controller: &mut Controller) {
    controller.ok(["app", "stop", "web"]);
    assert_eq!(controller.page("api.prox.local").0, 404);
    let closed = controller.json(["route", "show", "api.prox.local"]);
    assert_eq!(closed["health"], "closed");
    controller.crash();
    controller.ok(["app", "start", "web"]);
    // The app of this test was started by hand and is down: the route is there, and says so.
    until_page(controller, "api.prox.local", 502);
    let open = controller.json(["route", "show", "api.prox.local"]);
    assert_eq!(open["health"], "unhealthy");
}

/// What a command prints on the machine of the management LAN; it must end with 0.
pub fn on_the_lan(controller: &Controller, script: &str) -> String {
    let enter = format!(
        "pid=$(pgrep --oldest --full 'host-machine lan'); exec nsenter --target $pid --net bash -euc '{script}'"
    );
    controller.script(&enter)
}

/// A zone that is told to be: names and addresses are there for the network outside, the agents are not.
#[test]
fn a_zone_that_is_open_to_a_network_outside() {
    let controller = Controller::configured(
        "zones: { default: { wan: { bridge: vmbr0, address: dhcp }, wan_dns: true,
            open_to: [192.168.50.0/24] } }\n",
    );
    controller.ok(["up"]);
    controller.deploy("web");
    let wan = controller.wan_address();
    let inside = controller.app("web")["ip"].as_str().unwrap().to_owned();
    // Outside the name stands for the proxy, inside for the app.
    let asked = format!("busybox nslookup web.prox.local {wan} || true");
    eventually("the name is answered outside", || {
        let said = on_the_lan(&controller, &asked);
        said.contains(&format!("Address: {wan}\n")) && !said.contains(&inside)
    });
    let address = Answer::Address(inside.parse().unwrap());
    assert_eq!(ask(&controller, "web", "web.prox.local"), address);
    assert_eq!(
        ask(&controller, "web", "internet.test"),
        Answer::Address([8, 8, 8, 8].into())
    );

    let setup = controller.ok(["dns", "setup"]);
    let route = format!("ip route add 10.20.0.0/24 via {wan}");
    for line in [&format!("server=/prox.local/{wan}"), &route] {
        assert!(setup.contains(line.as_str()), "{setup}");
    }
    on_the_lan(&controller, &route);
    let page = format!("curl --silent --max-time 10 http://{inside}/");
    eventually("the app is reached by its address", || {
        on_the_lan(&controller, &page).contains("nginx")
    });
    let agent = format!(
        "curl --silent --insecure --max-time 2 https://{inside}:39383/health && echo open || echo closed"
    );
    assert_eq!(on_the_lan(&controller, &agent), "closed\n");
}

#[test]
fn a_broken_site_of_an_operator_harms_nobody() {
    let controller =
        Controller::configured("zones: { default: { acme: { email: admin@example.com } } }\n");
    controller.ok(["up"]);
    names_of_other_domains(&controller);
    let sites = || controller.json(["appliance", "sites"]);
    let state = |name: &str| {
        let sites = sites();
        let site = sites.as_array().unwrap().iter().find(|s| s["name"] == name);
        site.map_or(Value::Null, |s| s["state"].clone())
    };
    let enable = |name: &str, content: &str| {
        let write = format!("cat > /etc/proximity/sites-enabled/{name}");
        let words = ["exec", "prox-appliance", "--", "sh", "-c", write.as_str()];
        controller.run_with(words, content.as_bytes()).expect(0);
        // The zone's worker looks by itself, too; `up` looks now.
        controller.ok(["up"]);
    };
    let site = |word: &str| format!("http://own.test {{\n\trespond \"{word}\"\n}}\n");
    enable("own.caddy", &site("first"));
    assert_eq!(state("own.caddy"), "served");
    assert_eq!(controller.page("own.test"), (200, "first".to_owned()));

    enable("bad.caddy", "http://bad.test {\n\tno_such_directive\n}\n");
    enable("own.caddy", "http://own.test {\n\tno_such_directive\n}\n");
    assert_eq!(state("bad.caddy"), "refused");
    assert_eq!(state("own.caddy"), "previous");
    let why = sites()[0]["refused"].to_string();
    assert!(why.contains("no_such_directive"), "{why}");
    assert_eq!(controller.page("own.test"), (200, "first".to_owned()));
    // Caddy starts with what was accepted.
    controller.exec("prox-appliance", ["systemctl", "restart", "caddy"]);
    until_page(&controller, "own.test", 200);

    enable("own.caddy", &site("second"));
    eventually("the new version is served", || {
        controller.page("own.test") == (200, "second".to_owned())
    });
    assert_eq!(controller.infrastructure()["available"], true);
}

/// A public authority is asked for the names of routes only: Caddy asks itself before.
fn names_of_other_domains(controller: &Controller) {
    controller.deploy("web");
    controller.ok(["route", "add", "shop.example.com", "web:80"]);
    for (name, status) in [
        ("shop.example.com", "200"),
        ("other.example.com", "404"),
        ("../relay.sock", "404"),
        ("*", "404"),
    ] {
        let ask = r#"exec 3<>/dev/tcp/127.0.0.1/39387
            printf 'GET /?domain=%s HTTP/1.0\r\n\r\n' "$0" >&3; head --lines=1 <&3"#;
        let said = controller.exec("prox-appliance", ["bash", "-c", ask, name]);
        assert!(said.contains(status), "{name}: {said}");
    }
}

#[test]
fn published_ports_names_and_reserved_addresses() {
    let controller = with_app();
    let published = |words: &str| controller.json(words.split(' '));
    assert_eq!(
        published("port publish web:80 --listen 18080")["listen"],
        18080
    );
    published("port publish web:8082 --udp");
    controller.refused(
        ["port", "publish", "web:80", "--listen", "443"],
        "bad_request",
    );
    // Something of the node is there.
    controller.refused(
        ["port", "publish", "web:80", "--listen", "8006"],
        "conflict",
    );
    controller.refused(
        ["port", "publish", "web:8080", "--listen", "18080"],
        "taken",
    );
    let ports = published("port list");
    assert_eq!(ports.as_array().unwrap().len(), 2, "{ports}");

    // From elsewhere by the node's address, from the node by the appliance's.
    let page = "curl --silent --max-time 10 http://192.168.50.10:18080/";
    eventually("the port is open", || {
        on_the_lan(&controller, page).contains("nginx")
    });
    // Its answers are the callers' business, whatever the app may reach of itself.
    controller.ok(["egress", "set", "web", "off"]);
    assert!(on_the_lan(&controller, page).contains("nginx"));
    controller.ok(["egress", "set", "web", "internet"]);
    let url = format!("http://{}:18080/", controller.wan_address());
    assert_eq!(controller.page_at(&url, &[]).0, 200);
    // The app sees who asks.
    let seen = controller.exec("web", ["tail", "--lines=20", "/var/log/nginx/access.log"]);
    assert!(seen.contains("192.168.50.20 "), "{seen}");
    let datagram = "exec 3<>/dev/udp/192.168.50.10/8082; printf hello >&3
        timeout 5 dd bs=512 count=1 status=none <&3 || true";
    eventually("UDP is answered", || {
        on_the_lan(&controller, datagram) == "hello"
    });
    // The node's own services are where they were.
    let node = on_the_lan(&controller, "curl --silent http://192.168.50.10:8006/");
    assert!(node.contains("node 8006"), "{node}");
    controller.ok(["port", "unpublish", "18080"]);
    let closed = format!("{page} >/dev/null && echo open || echo closed");
    eventually("the port is closed", || {
        on_the_lan(&controller, &closed) == "closed\n"
    });
    controller.refused(["port", "unpublish", "18080"], "unknown_entry");

    controller.ok(["dns", "add", "nas.prox.local", "192.0.2.9"]);
    controller.ok(["dns", "add", "db.prox.local", "web"]);
    controller.refused(["dns", "add", "web.prox.local", "192.0.2.9"], "taken");
    controller.refused(
        ["dns", "add", "bank.example.com", "192.0.2.9"],
        "bad_request",
    );
    let web = controller.app("web")["ip"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let nas = Answer::Address([192, 0, 2, 9].into());
    assert_eq!(ask(&controller, "web", "nas.prox.local"), nas);
    assert_eq!(
        ask(&controller, "web", "db.prox.local"),
        Answer::Address(web)
    );
    controller.ok(["dns", "rm", "nas.prox.local"]);
    assert_eq!(
        ask(&controller, "web", "nas.prox.local"),
        Answer::NoSuchName
    );

    reserved(&controller);
    // What leads to the app goes with it; the node's table with the last port.
    controller.ok(["app", "delete", "web", "--yes"]);
    assert_eq!(controller.json(["port", "list"]), json!([]));
    let tables = controller.script("nft list tables");
    assert!(!tables.contains("proximity_default_ports"), "{tables}");
}

/// A machine that is plugged into the zone's bridge gets the address that is kept for it.
fn reserved(controller: &Controller) {
    let words = "lease reserve 02:00:00:00:00:07 10.20.0.251 printer";
    controller.ok(words.split(' '));
    for (words, code) in [
        ("lease reserve 02:00:00:00:00:08 10.20.0.251 other", "taken"),
        (
            "lease reserve 02:00:00:00:00:08 10.20.0.1 other",
            "bad_request",
        ),
        ("lease reserve 02:00:00:00:00:08 10.20.0.252 web", "taken"),
    ] {
        controller.refused(words.split(' '), code);
    }
    let printer = Answer::Address([10, 20, 0, 251].into());
    assert_eq!(ask(controller, "web", "printer.prox.local"), printer);
    let plugged = "ip link add plug0 type veth peer name plug1
        ip link set plug0 master proximity-lan up
        ip link set plug1 address 02:00:00:00:00:07
        unshare --net sleep 60 & pid=$!
        until [ \"$(readlink /proc/$pid/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do :; done
        ip link set plug1 netns $pid
        nsenter --target $pid --net sh -c 'ip link set plug1 up
            busybox udhcpc -i plug1 -q -n -t 10 -s /bin/true 2>&1' || true
        kill $pid";
    let said = controller.script(plugged);
    assert!(said.contains("10.20.0.251"), "{said}");
    let leases = controller.json(["lease", "list"]);
    let lease = |l: &&Value| l["mac"] == "02:00:00:00:00:07";
    let lease = leases.as_array().unwrap().iter().find(lease);
    assert_eq!(lease.unwrap()["ip"], "10.20.0.251", "{leases}");
    controller.ok(["lease", "release", "02:00:00:00:00:07"]);
    assert_eq!(
        ask(controller, "web", "printer.prox.local"),
        Answer::NoSuchName
    );
}
