//! A certificate of a public authority: one of Debian's package `pebble` on the LAN, which asks the appliance back as
//! such an authority does, and looks names up in a DNS of its own.

use std::path::Path;

use super::controller::Controller;
use super::edge::on_the_lan;
use super::eventually;

/// The authority's address is its machine's on the LAN.
const CONFIG: &str = "zones: { default: { wan: { bridge: vmbr0, address: dhcp }, \
    acme: { email: admin@example.com, directory: 'https://192.168.50.20:14000/dir' } } }\n";

/// What the authority's API is reached by, and what makes the appliance believe it.
const KEYS: &str = "mkdir -p /run/acme; cd /run/acme
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 -keyout ca.key -out ca.crt \
        -subj '/CN=API of the authority' -addext 'basicConstraints=critical,CA:true' 2>/dev/null
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout api.key -out api.csr -subj /CN=api 2>/dev/null
    printf 'subjectAltName=IP:192.168.50.20,IP:127.0.0.1\\n' > san
    openssl x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san -out api.crt 2>/dev/null
    cat > pebble.json <<-'END'
	{ \"pebble\": { \"listenAddress\": \"192.168.50.20:14000\", \"managementListenAddress\": \"127.0.0.1:15000\",
	  \"certificate\": \"/run/acme/api.crt\", \"privateKey\": \"/run/acme/api.key\",
	  \"httpPort\": 80, \"tlsPort\": 443, \"ocspResponderURL\": \"\", \"externalAccountBindingRequired\": false } }
	END
    cat ca.crt";

#[test]
fn an_authority_outside_signs_for_names_of_routes_and_for_no_other() {
    if !Path::new("/usr/bin/pebble").exists() {
        println!("SKIPPED: certificates by ACME need the package pebble");
        return;
    }
    let controller = Controller::configured(CONFIG);
    controller.ok(["up"]);
    let wan = controller.wan_address();
    controller.deploy("web");
    controller.ok(["route", "add", "shop.example.com", "web:80"]);
    let certificate = controller.script(KEYS);
    let believe = "cat > /usr/local/share/ca-certificates/api.crt && update-ca-certificates && systemctl restart caddy";
    let words = ["exec", "prox-appliance", "--", "sh", "-c", believe];
    controller.run_with(words, certificate.as_bytes()).expect(0);

    // They end with the host. All names of the world are the appliance's.
    on_the_lan(
        &controller,
        &format!(
            "cd /run/acme
            setsid pebble-challtestsrv -management 127.0.0.1:8055 -dns01 127.0.0.1:8053 -http01 \"\" -https01 \"\" \
                -tlsalpn01 \"\" -defaultIPv4 {wan} -defaultIPv6 \"\" > dns.log 2>&1 < /dev/null &
            PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=0 setsid pebble -config pebble.json \
                -dnsserver 127.0.0.1:8053 > pebble.log 2>&1 < /dev/null &"
        ),
    );
    let root = "curl --silent --fail --max-time 5 --cacert /run/acme/ca.crt --output /run/acme/root.crt https://127.0.0.1:15000/roots/0 && echo there || echo not";
    eventually("the authority runs", || {
        on_the_lan(&controller, root).contains("there")
    });
    let page = |name: &str| {
        let ask = format!(
            "curl --silent --show-error --max-time 30 --cacert /run/acme/root.crt --resolve {name}:443:{wan} https://{name}/ 2>&1 || true"
        );
        on_the_lan(&controller, &ask)
    };
    let log = || controller.script("tail -n 60 /run/acme/pebble.log");
    eventually(
        "the page is served with the authority's certificate",
        || page("shop.example.com").contains("nginx"),
    );
    assert!(log().contains("shop.example.com"), "{}", log());
    // There is no such route, so nobody is asked for a certificate.
    let refused = page("other.example.com");
    assert!(refused.contains("curl: (35)"), "{refused}");
    assert!(!log().contains("other.example.com"), "{}", log());
    // The certificate is kept: it is there without the authority.
    controller.script("for p in $(pidof pebble); do kill $p; done");
    controller.exec("prox-appliance", ["systemctl", "restart", "caddy"]);
    eventually("it is served without the authority", || {
        page("shop.example.com").contains("nginx")
    });
}
