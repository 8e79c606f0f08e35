//! The calls of the API, one function each, grouped by noun.

use std::time::Duration;

use api::app::{App, DeployAccepted, DeployRequest, OperationAccepted, RecipeSummary};
use api::audit::AuditTail;
use api::gateway::{
    AppliancePassword, ApplianceStatus, DnsRecord, DownRequest, Health, Infrastructure, LeaseView,
    RouteView, ZoneStatus,
};
use api::operation::Operation;
use api::status::Status;
use api::{HostName, InstanceName, OperationId, RecipeId, ZoneName};
use reqwest::Method;

use crate::connection::{CALL_DEADLINE, Call, Client};
use crate::error::Error;
use crate::events::{OperationWatch, Patience};

/// What can be done to an app that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Start its guest.
    Start,
    /// Stop its guest.
    Stop,
    /// Both, in that order.
    Restart,
}

impl Change {
    /// The word in the path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// The controller itself.
impl Client {
    /// `GET /system/health`.
    pub async fn health(&self) -> Result<Health, Error> {
        self.json(Call::get(&["system", "health"])).await
    }

    /// `GET /system/infrastructure`: the facts of `zone`, or of the default one.
    pub async fn infrastructure(&self, zone: Option<&ZoneName>) -> Result<Infrastructure, Error> {
        self.json(Call::get(&["system", "infrastructure"]).query("zone", zone))
            .await
    }

    /// `GET /status`.
    pub async fn status(&self) -> Result<Status, Error> {
        self.json(Call::get(&["status"])).await
    }
}

/// Zones.
impl Client {
    /// `GET /zones`.
    pub async fn zones(&self) -> Result<Vec<ZoneStatus>, Error> {
        self.json(Call::get(&["zones"])).await
    }

    /// `POST /zones/{zone}/up`.
    pub async fn zone_up(&self, zone: &ZoneName) -> Result<OperationAccepted, Error> {
        self.json(Call::new(Method::POST, &["zones", zone.as_str(), "up"]))
            .await
    }

    /// `POST /zones/{zone}/down`. Refused while instances exist, unless they are to go too.
    pub async fn zone_down(
        &self,
        zone: &ZoneName,
        request: &DownRequest,
    ) -> Result<OperationAccepted, Error> {
        let path = ["zones", zone.as_str(), "down"];
        self.json_with(Call::new(Method::POST, &path), request)
            .await
    }
}

/// The catalog and the apps.
impl Client {
    /// `GET /catalog`.
    pub async fn catalog(&self) -> Result<Vec<RecipeSummary>, Error> {
        self.json(Call::get(&["catalog"])).await
    }

    /// `GET /catalog/{id}`.
    pub async fn recipe(&self, id: &RecipeId) -> Result<RecipeSummary, Error> {
        self.json(Call::get(&["catalog", id.as_str()])).await
    }

    /// `POST /apps/deploy`: starts a deploy. The same key with the same request means the same
    /// deploy, for 24 hours.
    pub async fn deploy(
        &self,
        request: &DeployRequest,
        idempotency_key: Option<&str>,
    ) -> Result<DeployAccepted, Error> {
        let mut call = Call::new(Method::POST, &["apps", "deploy"]);
        call.idempotency_key = idempotency_key;
        self.json_with(call, request).await
    }

    /// `POST /apps/deploy?wait=`: deploys and answers when the app has answered.
    pub async fn deploy_and_wait(
        &self,
        request: &DeployRequest,
        idempotency_key: Option<&str>,
        wait: Duration,
    ) -> Result<App, Error> {
        let mut call = Call::new(Method::POST, &["apps", "deploy"])
            .query("wait", Some(format!("{}s", wait.as_secs())));
        call.idempotency_key = idempotency_key;
        call.deadline = wait + CALL_DEADLINE;
        self.json_with(call, request).await
    }

    /// `GET /apps`.
    pub async fn apps(&self) -> Result<Vec<App>, Error> {
        self.json(Call::get(&["apps"])).await
    }

    /// `GET /apps/{name}`.
    pub async fn app(&self, name: &InstanceName) -> Result<App, Error> {
        self.json(Call::get(&["apps", name.as_str()])).await
    }

    /// `DELETE /apps/{name}`.
    pub async fn delete_app(&self, name: &InstanceName) -> Result<OperationAccepted, Error> {
        self.json(Call::new(Method::DELETE, &["apps", name.as_str()]))
            .await
    }

    /// `POST /apps/{name}/{start,stop,restart}`.
    pub async fn change_app(
        &self,
        name: &InstanceName,
        change: Change,
    ) -> Result<OperationAccepted, Error> {
        let path = ["apps", name.as_str(), change.as_str()];
        self.json(Call::new(Method::POST, &path)).await
    }

    /// `GET /apps/{name}/logs`: the last lines, as the guest wrote them.
    pub async fn app_logs(&self, name: &InstanceName, lines: u32) -> Result<Vec<u8>, Error> {
        let path = ["apps", name.as_str(), "logs"];
        let call = Call::get(&path).query("lines", Some(lines));
        let request = self.request(&call)?;
        self.body(request, &call).await
    }
}

/// The appliance and what it serves.
impl Client {
    /// `GET /appliance/status`.
    pub async fn appliance(&self, zone: Option<&ZoneName>) -> Result<ApplianceStatus, Error> {
        self.json(Call::get(&["appliance", "status"]).query("zone", zone))
            .await
    }

    /// `GET /appliance/dhcp/leases`.
    pub async fn leases(&self) -> Result<Vec<LeaseView>, Error> {
        self.json(Call::get(&["appliance", "dhcp", "leases"])).await
    }

    /// `GET /appliance/dns/records`.
    pub async fn dns_records(&self) -> Result<Vec<DnsRecord>, Error> {
        self.json(Call::get(&["appliance", "dns", "records"])).await
    }

    /// `GET /appliance/vhosts`.
    pub async fn routes(&self) -> Result<Vec<RouteView>, Error> {
        self.json(Call::get(&["appliance", "vhosts"])).await
    }

    /// `GET /appliance/vhosts/{host}`.
    pub async fn route(&self, host: &HostName) -> Result<RouteView, Error> {
        self.json(Call::get(&["appliance", "vhosts", host.as_str()]))
            .await
    }

    /// `PUT /appliance/password`: opens the login of the management page.
    pub async fn set_appliance_password(&self, password: &AppliancePassword) -> Result<(), Error> {
        let call = Call::new(Method::PUT, &["appliance", "password"]);
        let request = self.request(&call)?.json(password);
        self.body(request, &call).await.map(drop)
    }
}

/// Operations.
impl Client {
    /// `GET /operations`.
    pub async fn operations(&self) -> Result<Vec<Operation>, Error> {
        self.json(Call::get(&["operations"])).await
    }

    /// `GET /operations/{id}`.
    pub async fn operation(&self, id: &OperationId) -> Result<Operation, Error> {
        self.json(Call::get(&["operations", id.as_str()])).await
    }

    /// `GET /operations/{id}/events`: follows an operation from its first event to its end.
    pub fn watch(&self, id: OperationId) -> OperationWatch {
        OperationWatch::new(self.clone(), id, Patience::default())
    }
}

/// The audit log.
impl Client {
    /// `GET /audit`: the last records, of one target or of all, the newest last.
    pub async fn audit(&self, target: Option<&str>, limit: usize) -> Result<AuditTail, Error> {
        let call = Call::get(&["audit"]).query("target", target);
        self.json(call.query("limit", Some(limit))).await
    }
}
