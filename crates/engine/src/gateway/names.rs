//! Which names people may give away. Pure.

use api::{Domain, HostName, InstanceName};

use crate::error::Error;
use crate::zone::ZoneSpec;

/// The longest host of a route: it names a unix socket.
const LONGEST: usize = 80;

/// What stands before the zone's domain, if the name is in it: one label or more.
pub fn label_in<'a>(host: &'a HostName, domain: &Domain) -> Option<&'a str> {
    host.as_str()
        .strip_suffix(domain.as_str())?
        .strip_suffix('.')
}

/// Refuses a host that no route of the zone can have.
pub fn check_route_host(zone: &ZoneSpec, host: &HostName) -> Result<(), Error> {
    let domain = &zone.domain;
    if host.as_str().len() > LONGEST {
        return Err(refused(
            format!("{host} is longer than {LONGEST} characters"),
            "choose a shorter one",
        ));
    }
    match label_in(host, domain) {
        Some(_) => check_name(zone, host).map(drop),
        None if host.as_str() == domain.as_str() => Err(refused(
            format!("{host} is the zone's domain itself"),
            &format!("name something in it: NAME.{domain}"),
        )),
        None if host.as_str().ends_with(".localhost") => Err(refused(
            format!("{host} means everybody's own machine"),
            &format!("choose NAME.{domain}, or a name of a domain of yours"),
        )),
        None => Ok(()),
    }
}

/// The label of a name in the zone's domain; refuses what is elsewhere, deeper or reserved.
pub fn check_name(zone: &ZoneSpec, host: &HostName) -> Result<InstanceName, Error> {
    let domain = &zone.domain;
    let hint = format!("choose NAME.{domain} with one label for NAME");
    let Some(label) = label_in(host, domain) else {
        return Err(refused(
            format!("{host} is not in the zone's domain {domain}"),
            &hint,
        ));
    };
    if label.contains('.') {
        return Err(refused(
            format!("{host} has more than one label in front of {domain}"),
            &hint,
        ));
    }
    let label: InstanceName = label.parse()?;
    check_label(zone, &label)?;
    Ok(label)
}

/// Refuses a label that is reserved.
pub fn check_label(zone: &ZoneSpec, label: &InstanceName) -> Result<(), Error> {
    if label.is_reserved() || *label == zone.appliance.name {
        return Err(refused(
            format!("the name {label} is reserved"),
            "it means something to resolvers, browsers or Proximity; choose another one",
        ));
    }
    Ok(())
}

fn refused(what: String, hint: &str) -> Error {
    Error::BadRequest {
        what,
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_routes() {
        let zone = crate::fake::zone_spec();
        let check = |host: &str, ok: bool| {
            let host: HostName = host.parse().unwrap();
            assert_eq!(check_route_host(&zone, &host).is_ok(), ok, "{host}");
        };
        for good in ["api.prox.local", "shop.example.com", "notprox.local"] {
            check(good, true);
        }
        for bad in [
            "prox.local",
            "a.b.prox.local",
            "wpad.prox.local",
            "gateway.prox.local",
            "prox-appliance.prox.local",
            "dyn.prox.local",
            "x.localhost",
            "xn--bcher-kva.prox.local",
            &format!("{0}.{0}.example.com", "x".repeat(40)),
        ] {
            check(bad, false);
        }
    }

    #[test]
    fn names_are_in_the_zone() {
        let zone = crate::fake::zone_spec();
        let label = |host: &str| check_name(&zone, &host.parse().unwrap()).ok();
        assert_eq!(label("nas.prox.local").unwrap().as_str(), "nas");
        for bad in ["shop.example.com", "a.b.prox.local", "localhost.prox.local"] {
            assert_eq!(label(bad), None, "{bad}");
        }
    }
}
