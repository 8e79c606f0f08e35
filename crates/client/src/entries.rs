//! What people add to a zone's gateway.

use api::entry::{
    PortRequest, PortView, Protocol, RecordRequest, ReservationRequest, ReservationView,
    RouteRequest, RouteSettings,
};
use api::gateway::{Authority, RouteView, SiteView};
use api::{HostName, MacAddr, ZoneName};
use reqwest::Method;

use crate::connection::{Call, Client};
use crate::error::Error;

/// Certificates and sites.
impl Client {
    /// `GET /appliance/ca`.
    pub async fn authority(&self, zone: Option<&ZoneName>) -> Result<Authority, Error> {
        self.json(Call::get(&["appliance", "ca"]).query("zone", zone))
            .await
    }

    /// `GET /appliance/sites`.
    pub async fn sites(&self, zone: Option<&ZoneName>) -> Result<Vec<SiteView>, Error> {
        self.json(Call::get(&["appliance", "sites"]).query("zone", zone))
            .await
    }
}

/// Routes.
impl Client {
    /// `POST /appliance/vhosts`.
    pub async fn add_route(
        &self,
        zone: Option<&ZoneName>,
        request: &RouteRequest,
    ) -> Result<RouteView, Error> {
        let path = ["appliance", "vhosts"];
        let call = Call::new(Method::POST, &path).query("zone", zone);
        self.json_with(call, request).await
    }

    /// `PUT /appliance/vhosts/{host}`.
    pub async fn set_route(
        &self,
        zone: Option<&ZoneName>,
        host: &HostName,
        settings: &RouteSettings,
    ) -> Result<RouteView, Error> {
        let path = ["appliance", "vhosts", host.as_str()];
        let call = Call::new(Method::PUT, &path).query("zone", zone);
        self.json_with(call, settings).await
    }

    /// `DELETE /appliance/vhosts/{host}`.
    pub async fn remove_route(
        &self,
        zone: Option<&ZoneName>,
        host: &HostName,
    ) -> Result<(), Error> {
        self.remove(zone, &["appliance", "vhosts", host.as_str()])
            .await
    }
}

/// Published ports.
impl Client {
    /// `GET /appliance/ports`.
    pub async fn published_ports(&self, zone: Option<&ZoneName>) -> Result<Vec<PortView>, Error> {
        self.json(Call::get(&["appliance", "ports"]).query("zone", zone))
            .await
    }

    /// `POST /appliance/ports`.
    pub async fn publish_port(
        &self,
        zone: Option<&ZoneName>,
        request: &PortRequest,
    ) -> Result<PortView, Error> {
        let call = Call::new(Method::POST, &["appliance", "ports"]).query("zone", zone);
        self.json_with(call, request).await
    }

    /// `DELETE /appliance/ports/{protocol}/{listen}`.
    pub async fn unpublish_port(
        &self,
        zone: Option<&ZoneName>,
        protocol: Protocol,
        listen: u16,
    ) -> Result<(), Error> {
        let (protocol, listen) = (protocol.to_string(), listen.to_string());
        self.remove(zone, &["appliance", "ports", &protocol, &listen])
            .await
    }
}

/// Names and reserved addresses.
impl Client {
    /// `POST /appliance/dns/records`.
    pub async fn add_record(
        &self,
        zone: Option<&ZoneName>,
        request: &RecordRequest,
    ) -> Result<(), Error> {
        let path = ["appliance", "dns", "records"];
        let call = Call::new(Method::POST, &path).query("zone", zone);
        let sent = self.request(&call)?.json(request);
        self.body(sent, &call).await.map(drop)
    }

    /// `DELETE /appliance/dns/records/{name}`.
    pub async fn remove_record(
        &self,
        zone: Option<&ZoneName>,
        name: &HostName,
    ) -> Result<(), Error> {
        self.remove(zone, &["appliance", "dns", "records", name.as_str()])
            .await
    }

    /// `GET /appliance/dhcp/reservations`.
    pub async fn reservations(
        &self,
        zone: Option<&ZoneName>,
    ) -> Result<Vec<ReservationView>, Error> {
        self.json(Call::get(&["appliance", "dhcp", "reservations"]).query("zone", zone))
            .await
    }

    /// `POST /appliance/dhcp/reservations`.
    pub async fn reserve(
        &self,
        zone: Option<&ZoneName>,
        request: &ReservationRequest,
    ) -> Result<ReservationView, Error> {
        let path = ["appliance", "dhcp", "reservations"];
        let call = Call::new(Method::POST, &path).query("zone", zone);
        self.json_with(call, request).await
    }

    /// `DELETE /appliance/dhcp/reservations/{mac}`.
    pub async fn release(&self, zone: Option<&ZoneName>, mac: MacAddr) -> Result<(), Error> {
        let mac = mac.to_string();
        self.remove(zone, &["appliance", "dhcp", "reservations", &mac])
            .await
    }

    async fn remove(&self, zone: Option<&ZoneName>, path: &[&str]) -> Result<(), Error> {
        let call = Call::new(Method::DELETE, path).query("zone", zone);
        let sent = self.request(&call)?;
        self.body(sent, &call).await.map(drop)
    }
}
