//! What people add to a zone's gateway. Each change is written, then the appliance is told; when it
//! cannot be told, the answer says so, and the zone's worker goes on trying.

use api::entry::{
    PortRequest, PortView, Protocol, RecordRequest, ReservationRequest, ReservationView,
    RouteSettings,
};
use api::gateway::RouteView;
use api::{HostName, InstanceName, MacAddr};
use wire::agent::{AGENT_PORT, NODE_PORT};
use wire::gateway::edge::OWN_PORTS;
use wire::gateway::policy::RoutePolicy;

use super::Controller;
use crate::error::Error;
use crate::gateway::entry::{
    Entry, PortEntry, RecordEntry, RecordTarget, ReservationEntry, RouteEntry, port_key,
    record_key, reservation_key, route_key,
};
use crate::gateway::{names, secret};
use crate::instance::InstanceRecord;
use crate::operation::StepError;
use crate::ports::PortError;
use crate::zone::{Wan, ZoneDesired, ZoneRecord};

/// The longest that an app may be waited for: an hour.
const LONGEST_TIMEOUT_MS: u64 = 3_600_000;

/// Routes.
impl Controller {
    /// Makes a host name lead to an app. Says whether it is new. Without `replace` a route of that
    /// host with other settings is left alone and refuses the call.
    pub async fn put_route(
        &self,
        zone: Option<&str>,
        host: &HostName,
        settings: &RouteSettings,
        replace: bool,
    ) -> Result<(RouteView, bool), Error> {
        let zone = self.zone_for_entries(zone).await?;
        names::check_route_host(&zone.spec, host)?;
        let instance = self.app_in(&zone, &settings.instance).await?;
        check_port(settings.port)?;
        let known = self.added_route(&zone, host).await?;
        let known = known.map(|route| route.policy);
        let entry = Entry::Route(RouteEntry {
            host: host.clone(),
            instance: instance.id,
            port: settings.port,
            policy: self.policy(settings, known).await?,
        });
        let new = self.put(&zone, &entry, replace).await?;
        let view = self.route(Some(zone.spec.name.as_str()), host.as_str());
        Ok((view.await?, new))
    }

    async fn policy(
        &self,
        settings: &RouteSettings,
        known: Option<RoutePolicy>,
    ) -> Result<RoutePolicy, Error> {
        let in_range = |value: Option<u64>, most| value.is_none_or(|v| (1..=most).contains(&v));
        if !in_range(settings.max_body_bytes, u64::MAX)
            || !in_range(settings.timeout_ms, LONGEST_TIMEOUT_MS)
        {
            return Err(Error::BadRequest {
                what: "a limit of the route is out of range".into(),
                hint: format!("max_body_bytes: 1 or more; timeout_ms: 1 to {LONGEST_TIMEOUT_MS}"),
            });
        }
        let auth = match settings.auth.clone() {
            None => None,
            Some(auth) => {
                secret::check(&auth)?;
                let salt = [
                    self.ports().entropy.id_bytes()?,
                    self.ports().entropy.id_bytes()?,
                ];
                let salt = u128::from_be_bytes(salt.concat().try_into().unwrap_or_default());
                let known = known.and_then(|policy| policy.auth);
                let keep = move || secret::keep(&auth, known.as_ref(), salt.to_be_bytes());
                let kept = tokio::task::spawn_blocking(keep).await;
                Some(kept.map_err(|e| PortError::new("digest a password", e))?)
            }
        };
        Ok(RoutePolicy {
            redirect_https: settings.redirect_https,
            auth,
            max_body_bytes: settings.max_body_bytes,
            answer_within_ms: settings.timeout_ms,
        })
    }

    /// Takes an added route away. An app's own name leads to it as before.
    pub async fn remove_route(&self, zone: Option<&str>, host: &str) -> Result<(), Error> {
        let zone = self.zone_for_entries(zone).await?;
        let host: HostName = host.parse()?;
        if self.remove(&zone, &route_key(&host)).await? {
            return Ok(());
        }
        let instances = self.ports().store.instances().await?;
        let own = instances.iter().find(|i| {
            i.zone == zone.spec.name && i.as_app().is_some() && i.host(&zone.spec) == host
        });
        Err(match own {
            Some(app) => Error::Conflict {
                what: format!("{host} is the own name of {}", app.name),
                hint: format!(
                    "it goes with the app; to close it to strangers: proximity route set {host} {}:PORT --auth token",
                    app.name
                ),
            },
            None => Error::UnknownRoute(host),
        })
    }
}

/// Published ports.
impl Controller {
    /// Makes a port of the zone's outside lead to an app. Says whether it is new.
    pub async fn publish_port(
        &self,
        zone: Option<&str>,
        request: &PortRequest,
    ) -> Result<(PortView, bool), Error> {
        let zone = self.zone_for_entries(zone).await?;
        let instance = self.app_in(&zone, &request.instance).await?;
        check_port(request.port)?;
        let (protocol, listen) = (request.protocol, request.listen.unwrap_or(request.port));
        if listen == 0 || OWN_PORTS.contains(&(protocol, listen)) {
            return Err(Error::BadRequest {
                what: format!("the appliance needs {protocol} port {listen} for itself"),
                hint: "choose another one with --listen; web pages need no port of their own: proximity route add"
                    .into(),
            });
        }
        let entry = Entry::Port(PortEntry {
            protocol,
            listen,
            instance: instance.id,
            port: request.port,
        });
        self.refuse_port_of_the_node(&zone, &entry, protocol, listen)
            .await?;
        let new = self.put(&zone, &entry, false).await?;
        let view = PortView {
            protocol,
            listen,
            instance: instance.name,
            port: request.port,
        };
        Ok((view, new))
    }

    /// With a managed WAN the port is open on the node too, where it must not be somebody else's. One
    /// that is published already is ours.
    async fn refuse_port_of_the_node(
        &self,
        zone: &ZoneRecord,
        entry: &Entry,
        protocol: Protocol,
        listen: u16,
    ) -> Result<(), Error> {
        let managed = |zone: &ZoneRecord| matches!(zone.spec.wan, Wan::Managed { .. });
        if !managed(zone) {
            return Ok(());
        }
        let store = &self.ports().store;
        let published = store.entries(&zone.spec.name).await?;
        if published.iter().any(|known| known.key() == entry.key()) {
            return Ok(());
        }
        // What another zone has there is the store's business, since two may ask at the same time.
        for other in store.zones().await? {
            let theirs = store.entries(&other.spec.name).await?;
            let same_node = managed(&other) && other.spec.node == zone.spec.node;
            if same_node && theirs.iter().any(|known| known.key() == entry.key()) {
                return Ok(());
            }
        }
        let network = zone.spec.node_network();
        match self
            .ports()
            .network
            .listens(&network, protocol, listen)
            .await?
        {
            true => Err(Error::Conflict {
                what: format!("something on the node listens on {protocol} port {listen}"),
                hint: "choose another port with --listen".into(),
            }),
            false => Ok(()),
        }
    }

    /// The published ports of a zone.
    pub async fn published_ports(&self, zone: Option<&str>) -> Result<Vec<PortView>, Error> {
        let zone = self.zone_for_entries(zone).await?;
        let entries = self.ports().store.entries(&zone.spec.name).await?;
        let instances = self.ports().store.instances().await?;
        let view = |entry: &Entry| match entry {
            Entry::Port(port) => Some(PortView {
                protocol: port.protocol,
                listen: port.listen,
                instance: instances
                    .iter()
                    .find(|i| i.id == port.instance)?
                    .name
                    .clone(),
                port: port.port,
            }),
            _ => None,
        };
        let mut ports: Vec<_> = entries.iter().filter_map(view).collect();
        ports.sort_by_key(|port| (port.protocol, port.listen));
        Ok(ports)
    }

    /// Takes a published port back.
    pub async fn unpublish_port(
        &self,
        zone: Option<&str>,
        protocol: Protocol,
        listen: u16,
    ) -> Result<(), Error> {
        let zone = self.zone_for_entries(zone).await?;
        match self.remove(&zone, &port_key(protocol, listen)).await? {
            true => Ok(()),
            false => Err(Error::UnknownEntry {
                what: format!("published {protocol} port {listen}"),
                list: "proximity port list",
            }),
        }
    }
}

/// Names and reserved addresses.
impl Controller {
    /// Adds a name. Says whether it is new.
    pub async fn add_record(
        &self,
        zone: Option<&str>,
        request: &RecordRequest,
    ) -> Result<bool, Error> {
        let zone = self.zone_for_entries(zone).await?;
        names::check_name(&zone.spec, &request.name)?;
        let target = match (&request.address, &request.instance) {
            (Some(address), None) => RecordTarget::Address(*address),
            (None, Some(name)) => RecordTarget::Instance(self.app_in(&zone, name).await?.id),
            _ => {
                return Err(Error::BadRequest {
                    what: "a name stands for an address or for an app".into(),
                    hint: "give one of `address` and `instance`".into(),
                });
            }
        };
        let name = request.name.clone();
        self.put(&zone, &Entry::Record(RecordEntry { name, target }), false)
            .await
    }

    /// Takes an added name away.
    pub async fn remove_record(&self, zone: Option<&str>, name: &str) -> Result<(), Error> {
        let zone = self.zone_for_entries(zone).await?;
        let name: HostName = name.parse()?;
        match self.remove(&zone, &record_key(&name)).await? {
            true => Ok(()),
            false => Err(Error::UnknownEntry {
                what: format!("added name {name}"),
                list: "proximity dns list; names of apps, routes and reservations go with these",
            }),
        }
    }

    /// Keeps an address and a name for a machine that is no instance. Says whether it is new.
    pub async fn reserve(
        &self,
        zone: Option<&str>,
        request: &ReservationRequest,
    ) -> Result<(ReservationView, bool), Error> {
        let zone = self.zone_for_entries(zone).await?;
        let host = HostName::in_domain(&request.name, &zone.spec.domain);
        names::check_label(&zone.spec, &request.name)?;
        let address = request.address;
        let subnet = zone.spec.subnet;
        let no_host = [subnet.network(), subnet.broadcast(), zone.spec.gateway()];
        if !subnet.contains(&address) || no_host.contains(&address) {
            return Err(Error::BadRequest {
                what: format!("{address} is not an address for a machine in {subnet}"),
                hint: format!("{}.2 to .254 are", prefix(&zone)),
            });
        }
        let [first, ..] = request.mac.bytes();
        // Ours begin with 52:78 and follow from the address.
        let ours = request.mac.bytes().starts_with(&[0x52, 0x78]);
        if first & 1 == 1 || request.mac.bytes() == [0; 6] || ours {
            return Err(Error::BadRequest {
                what: format!("{} is not the address of one machine of yours", request.mac),
                hint: "read it on the machine: ip link".into(),
            });
        }
        let kept = ReservationEntry {
            mac: request.mac,
            address,
            name: request.name.clone(),
            host: host.clone(),
        };
        let new = self.put(&zone, &Entry::Reservation(kept), false).await?;
        let view = ReservationView {
            mac: request.mac,
            address,
            name: host,
        };
        Ok((view, new))
    }

    /// The reserved addresses of machines that are no instances.
    pub async fn reservations(&self, zone: Option<&str>) -> Result<Vec<ReservationView>, Error> {
        let zone = self.zone_for_entries(zone).await?;
        let entries = self.ports().store.entries(&zone.spec.name).await?;
        let view = |entry: Entry| match entry {
            Entry::Reservation(kept) => Some(ReservationView {
                mac: kept.mac,
                address: kept.address,
                name: kept.host,
            }),
            _ => None,
        };
        Ok(entries.into_iter().filter_map(view).collect())
    }

    /// Gives a reserved address back.
    pub async fn release(&self, zone: Option<&str>, mac: MacAddr) -> Result<(), Error> {
        let zone = self.zone_for_entries(zone).await?;
        match self.remove(&zone, &reservation_key(mac)).await? {
            true => Ok(()),
            false => Err(Error::UnknownEntry {
                what: format!("reservation for {mac}"),
                list: "proximity lease list",
            }),
        }
    }
}

impl Controller {
    async fn zone_for_entries(&self, name: Option<&str>) -> Result<ZoneRecord, Error> {
        let spec = self.configured_zone(name)?;
        match self.ports().store.zone(&spec.name).await? {
            Some(zone) if zone.desired == ZoneDesired::Up => Ok(zone),
            _ => Err(Error::ZoneDown(spec.name.clone())),
        }
    }

    async fn app_in(
        &self,
        zone: &ZoneRecord,
        name: &InstanceName,
    ) -> Result<InstanceRecord, Error> {
        let record = self.instance_named(name.as_str()).await?;
        if record.zone != zone.spec.name {
            return Err(Error::BadRequest {
                what: format!(
                    "{name} is in zone {}, not in {}",
                    record.zone, zone.spec.name
                ),
                hint: format!("name that zone: ?zone={}", record.zone),
            });
        }
        if record.is_sandbox() {
            return Err(Error::BadRequest {
                what: format!("{name} is a sandbox: nothing outside leads to it"),
                hint: format!("for a port of it on your machine: proximity forward {name}:PORT"),
            });
        }
        Ok(record)
    }

    async fn put(&self, zone: &ZoneRecord, entry: &Entry, replace: bool) -> Result<bool, Error> {
        let store = &self.ports().store;
        let new = store.put_entry(&zone.spec.name, entry, replace).await?;
        self.tell(zone).await?;
        Ok(new)
    }

    /// Tells the appliance also when there was nothing to remove: the last try may have been cut off.
    async fn remove(&self, zone: &ZoneRecord, key: &str) -> Result<bool, Error> {
        let there = self
            .ports()
            .store
            .remove_entry(&zone.spec.name, key)
            .await?;
        self.tell(zone).await?;
        Ok(there)
    }

    async fn tell(&self, zone: &ZoneRecord) -> Result<(), Error> {
        let Err(StepError::Failed { cause, .. }) = self.sync_gateway(zone).await else {
            return Ok(());
        };
        let hint = "it is written down, and the controller goes on trying: proximity status";
        Err(PortError::new("tell the gateway", cause).hint(hint).into())
    }
}

fn prefix(zone: &ZoneRecord) -> String {
    let [a, b, c, _] = zone.spec.subnet.network().octets();
    format!("{a}.{b}.{c}")
}

fn check_port(port: u16) -> Result<(), Error> {
    if port != 0 && !(AGENT_PORT..=NODE_PORT).contains(&port) {
        return Ok(());
    }
    Err(Error::BadRequest {
        what: format!("port {port} of a guest can't be led to"),
        hint: format!(
            "choose the port of a service; {AGENT_PORT} to {NODE_PORT} are the agent's own"
        ),
    })
}
