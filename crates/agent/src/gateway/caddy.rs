//! Caddy's configuration: the one writer of it.
//!
//! It holds the zone's domain and nothing of any route: a request for `NAME.DOMAIN` goes to the
//! unix socket of that name, which the relay owns; gRPC, which Caddy cannot send to unix sockets, goes
//! to the relay's port on loopback. So routes and what they ask for come and go without a reload, and
//! nobody else's connection notices. Never contains a value that a guest or a client chose.

use std::path::Path;
use std::time::Duration;

use wire::agent::GRPC_PORT;
use wire::gateway::ZoneNetwork;
use wire::gateway::edge::Acme;

use super::authority::Authority;
use super::identity::CaddyUser;
use super::paths::Paths;
use super::system::Command;
use super::word::{UnsafeWord, word};

/// Where Caddy asks itself whether a name may have a certificate, on loopback.
const ASK_PORT: u16 = 39387;

/// The reverse proxy of a zone, with the operators' sites of a directory.
pub fn render(
    network: &ZoneNetwork,
    acme: Option<&Acme>,
    authority: &Authority,
    sites: &Path,
    paths: &Paths,
) -> Result<String, UnsafeWord> {
    let (asked, foreign) = match acme {
        Some(acme) => foreign_names(acme, paths)?,
        None => Default::default(),
    };
    let domain = word(&network.domain)?;
    let id = word(&authority.id)?;
    let root = word(authority.certificate.display())?;
    let key = word(authority.key.display())?;
    let admin = word(paths.caddy_admin().display())?;
    let routes = word(paths.routes().display())?;
    let operator_sites = word(paths.operator_sites().display())?;
    let sites = word(sites.display())?;
    Ok(format!(
        r#"# Written by proximity-agent from the zone's desired state; changes here are lost.
# Sites of your own go to {operator_sites}/NAME.caddy; accepted ones are copied to {sites}.
{{
	admin unix/{admin}
	auto_https disable_redirects
	skip_install_trust
	pki {{
		ca {id} {{
			name "Proximity {domain}"
			root {{
				cert {root}
				key {key}
			}}
		}}
	}}
{asked}	servers {{
		protocols h1 h2 h2c
		timeouts {{
			read_header 15s
			idle 5m
		}}
	}}
}}

(access_log) {{
	log {{
		output file /var/log/caddy/access.log {{
			roll_size 10MiB
			roll_keep 4
		}}
		format json
	}}
}}

# The socket is looked for first, so that an unknown name can be told from an app that is down.
(route) {{
	import access_log
	@known file {{
		root {routes}
		try_files /{{args.0}}
	}}
	@grpc {{
		file {{
			root {routes}
			try_files /{{args.0}}
		}}
		header Content-Type application/grpc*
		not header Content-Type application/grpc-web*
	}}
	handle @grpc {{
		reverse_proxy h2c://127.0.0.1:{GRPC_PORT} {{
			header_up Host {{args.0}}
			flush_interval -1
		}}
	}}
	handle @known {{
		reverse_proxy unix/{routes}/{{args.0}} {{
			flush_interval -1
			transport http {{
				dial_timeout 5s
			}}
		}}
	}}
	handle {{
		header Content-Type "text/plain; charset=utf-8"
		respond "No app answers to this name (404). See: proximity route list" 404
	}}
	handle_errors {{
		header Content-Type "text/plain; charset=utf-8"
		respond "The app behind this name does not answer ({{http.error.status_code}}). See: proximity app list"
	}}
}}

http://*.{domain} {{
	import route {{http.request.host}}
}}

https://*.{domain} {{
	tls {{
		issuer internal {{
			ca {id}
		}}
	}}
	import route {{http.request.host}}
}}

# Every browser leads *.localhost to this machine: a preview for whoever forwards port 80.
http://*.localhost {{
	import route {{http.request.host.labels.1}}.{domain}
}}

# Names of other domains, as far as there are routes for them.
http:// {{
	import route {{http.request.host}}
}}

{foreign}import {sites}/*.caddy
"#
    ))
}

/// Certificates for names of other domains, got when somebody asks for one and only if there is a route
/// of that name: what stands in the global options, and the sites. Caddy asks itself, by http, whether
/// the route's socket is there, so that nobody makes it ask an authority for names of their choice.
fn foreign_names(acme: &Acme, paths: &Paths) -> Result<(String, String), UnsafeWord> {
    let routes = word(paths.routes().display())?;
    let email = word(&acme.email)?;
    let directory = match &acme.directory {
        Some(directory) => format!("\t\t\tdir {}\n", word(directory)?),
        None => String::new(),
    };
    let asked = format!(
        "\ton_demand_tls {{\n\t\task http://127.0.0.1:{ASK_PORT}/\n\t\tinterval 2m\n\t\tburst 5\n\t}}\n"
    );
    let sites = format!(
        "https:// {{\n\ttls {{\n\t\ton_demand\n\t\tissuer acme {{\n\t\t\temail {email}\n{directory}\t\t}}\n\t}}\n\
         \timport route {{http.request.host}}\n}}\n\n\
         http://:{ASK_PORT} {{\n\tbind 127.0.0.1\n\t@known file {{\n\t\troot {routes}\n\
         \t\ttry_files /{{query.domain}}\n\t}}\n\trespond @known 200\n\trespond 404\n}}\n\n"
    );
    Ok((asked, sites))
}

/// Caddy's own check of a configuration file. Run as Caddy's user: the check makes the internal CA
/// if there is none yet, and a CA that root made could not be read by the service.
pub fn validate(candidate: &Path, user: Option<CaddyUser>) -> Command {
    let file = candidate.display().to_string();
    let argv = [
        "caddy",
        "validate",
        "--config",
        &file,
        "--adapter",
        "caddyfile",
    ];
    let mut command = Command::new(&argv, Duration::from_secs(30)).env("HOME", "/var/lib/caddy");
    if let Some(user) = user {
        command = command.user(user.uid, user.gid);
    }
    command
}

/// Hands the file to the running Caddy. It answers when the new configuration serves.
pub fn reload(paths: &Paths) -> Command {
    let file = paths.caddyfile().display().to_string();
    let admin = format!("unix/{}", paths.caddy_admin().display());
    let argv = [
        "caddy",
        "reload",
        "--config",
        &file,
        "--adapter",
        "caddyfile",
        "--address",
        &admin,
        "--force",
    ];
    Command::new(&argv, Duration::from_secs(30)).env("HOME", "/var/lib/caddy")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::fake;
    use proptest::prelude::*;

    fn authority() -> Authority {
        let home = Paths::appliance().authorities().join("prox.local");
        Authority {
            certificate: home.join("root.crt"),
            key: home.join("root.key"),
            id: "proximity-0123456789ab".into(),
        }
    }

    #[test]
    fn the_proxy_of_the_default_zone() {
        let network = fake::state().network;
        let paths = Paths::appliance();
        let text = render(
            &network,
            None,
            &authority(),
            &paths.accepted_sites(),
            &paths,
        );
        insta::assert_snapshot!(text.unwrap());
        let acme = Acme {
            email: "admin@example.com".into(),
            directory: Some("https://ca.example.com/directory".into()),
        };
        let (asked, sites) = foreign_names(&acme, &paths).unwrap();
        insta::assert_snapshot!("foreign_names", asked + &sites);
        let evil = Acme {
            email: "a b".into(),
            ..acme
        };
        assert!(foreign_names(&evil, &paths).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(network in fake::any_network()) {
            let paths = Paths::appliance();
            let text = render(&network, None, &authority(), &paths.accepted_sites(), &paths).unwrap();
            prop_assert_eq!(text.matches('{').count(), text.matches('}').count());
            let domain = network.domain.as_str();
            let mut sites: Vec<_> = text
                .lines()
                .filter(|l| l.starts_with("http"))
                .map(|l| l.trim_end_matches(" {"))
                .collect();
            sites.sort_unstable();
            let wanted = [
                "http://".to_owned(),
                format!("http://*.{domain}"),
                "http://*.localhost".to_owned(),
                format!("https://*.{domain}"),
            ];
            let mut wanted = wanted.to_vec();
            wanted.sort_unstable();
            prop_assert_eq!(sites, wanted);
        }
    }
}
