//! In-tree doubles of the ports, for tests. They keep state in memory and can be told to fail; they
//! are not simulations of LXC.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::app::{AppStatus, Limits};
use api::egress::Egress;
use api::entry::Protocol;
use api::session::WindowSize;
use api::{HostName, ImageDigest, InstanceId};
use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use wire::gateway::edge::EdgeReport;
use wire::gateway::{
    GatewayDiff, GatewayReport, GatewayState, NameRecord, ProbeRequest, Readiness, RouteReport,
    ServiceReport,
};

use wire::identity::Bundle;

use crate::controller::Ports;
use crate::image::{ImageSpec, Images};
use crate::instance::{AppWorkload, InstanceDesired, InstanceRecord, InstanceSpec, Workload};
use crate::ports::{
    Backend, Channel, ChannelError, ChannelTarget, CommandEnd, CommandOutcome, Gateway,
    GuestCommand, GuestObserved, GuestSpec, GuestState, NetworkObserved, NodeNetwork,
    NodeNetworkSpec, PortError, Session, SessionInput, SessionOutput, Store, SystemEntropy,
};
use crate::zone::ZoneSpec;

/// The built-in zone.
pub fn zone_spec() -> ZoneSpec {
    let Ok(config) = crate::Config::built_in() else {
        unreachable!("the built-in configuration is sound")
    };
    let Some(zone) = config.zones.into_values().next() else {
        unreachable!("it has a zone")
    };
    zone
}

/// An instance on its way, at `.100`.
pub fn instance_record(name: &str) -> InstanceRecord {
    let zone = zone_spec();
    let image = ImageSpec {
        family: Default::default(),
        suite: "bookworm".into(),
        packages: vec![],
        files: vec![],
        init: crate::image::Init::Systemd,
        enable: vec![],
        mask: vec![],
        ids: Default::default(),
    };
    let mut id = [0u8; 8];
    for (slot, byte) in id.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    let (Ok(name), Ok(recipe)) = (name.parse(), "nginx".parse()) else {
        unreachable!("tests use legal names")
    };
    InstanceRecord {
        id: InstanceId::from_bytes(id),
        name,
        zone: zone.name.clone(),
        address: zone.dhcp_range().0,
        expires_at: None,
        spec: InstanceSpec {
            workload: Workload::App(AppWorkload {
                recipe,
                port: 80,
                readiness: Readiness::Tcp,
                ready_timeout_s: 5,
            }),
            image_digest: image.digest(),
            image,
            limits: Limits {
                cpu_millis: 500,
                memory_mb: 128,
                pids: 100,
                disk_gb: None,
            },
            files: vec![],
        },
        egress: Egress::Internet,
        desired: InstanceDesired::Running,
        status: AppStatus::Deploying,
        published: false,
        routed: false,
        restart: false,
        failure: None,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// A sandbox on its way, at `.2`.
pub fn sandbox_record(name: &str) -> InstanceRecord {
    let Ok(image) = "debian".parse() else {
        unreachable!("it is a legal name")
    };
    let mut record = instance_record(name);
    record.address = zone_spec().static_range().0;
    record.spec.workload = Workload::Sandbox { image };
    record.expires_at = Some(jiff::Timestamp::MAX);
    record
}

fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node in memory: backend, network, gateway, images and a channel in one.
#[derive(Default)]
pub struct FakeNode {
    /// Guests by id: spec, and whether they run.
    pub guests: Mutex<BTreeMap<InstanceId, (GuestSpec, bool)>>,
    /// Zones whose network is there.
    pub networks: Mutex<BTreeSet<String>>,
    /// What is in the way.
    pub conflicts: Mutex<Vec<String>>,
    /// Ports of the node that lead to appliances, by zone.
    pub published: Mutex<BTreeMap<String, Vec<(Protocol, u16)>>>,
    /// The last applied gateway state by appliance.
    pub gateways: Mutex<BTreeMap<InstanceId, GatewayState>>,
    /// Images that are there.
    pub images: Mutex<BTreeSet<ImageDigest>>,
    /// Calls that fail, by name (`start`, `probe`, `apply` …), with the cause.
    pub failing: Mutex<BTreeMap<&'static str, String>>,
    /// Calls that do not go on, by name.
    pub held: Mutex<BTreeSet<&'static str>>,
    /// Every call, in order, from its beginning.
    pub calls: Mutex<Vec<String>>,
    /// Guests whose identity ends soon.
    pub due: Mutex<BTreeSet<InstanceId>>,
    changed: watch::Sender<()>,
}

impl FakeNode {
    /// Makes a call fail until [`FakeNode::mend`].
    pub fn fail(&self, call: &'static str, cause: &str) {
        locked(&self.failing).insert(call, cause.into());
    }

    /// Makes a call hang at its beginning until [`FakeNode::mend`].
    pub fn hold(&self, call: &'static str) {
        locked(&self.held).insert(call);
    }

    /// Undoes [`FakeNode::fail`] and [`FakeNode::hold`].
    pub fn mend(&self, call: &str) {
        locked(&self.failing).remove(call);
        locked(&self.held).remove(call);
        self.changed.send_replace(());
    }

    /// Waits until something holds of the node; looks again after each call.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        while !holds(self) {
            // The sender is ours, so this ends with a change only.
            let _ = changed.changed().await;
        }
    }

    /// Waits until a call of that name has begun.
    pub async fn until_called(&self, call: &str) {
        self.until(|node| {
            let calls = locked(&node.calls);
            calls.iter().any(|c| c.split(' ').next() == Some(call))
        })
        .await;
    }

    /// A controller's ports: this node beside a store and the machine's clock.
    pub fn ports(self: &Arc<Self>, store: Arc<dyn Store>) -> Ports {
        Ports {
            store,
            backend: self.clone(),
            network: self.clone(),
            gateway: self.clone(),
            images: self.clone(),
            channels: vec![self.clone(), Arc::new(FakeAttach(self.clone()))],
            entropy: Arc::new(SystemEntropy),
        }
    }

    async fn called(
        &self,
        call: &'static str,
        what: impl std::fmt::Display,
    ) -> Result<(), PortError> {
        locked(&self.calls).push(format!("{call} {what}"));
        self.changed.send_replace(());
        self.until(|node| !locked(&node.held).contains(call)).await;
        match locked(&self.failing).get(call) {
            Some(cause) => Err(PortError::new(call, cause)),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Backend for FakeNode {
    async fn observe(&self, id: &InstanceId) -> Result<GuestObserved, PortError> {
        Ok(match locked(&self.guests).get(id) {
            None => GuestObserved {
                state: GuestState::Absent,
                spec: None,
            },
            Some((spec, running)) => GuestObserved {
                state: if *running {
                    GuestState::Running
                } else {
                    GuestState::Stopped
                },
                spec: Some(spec.clone()),
            },
        })
    }

    async fn inventory(&self) -> Result<Vec<InstanceId>, PortError> {
        Ok(locked(&self.guests).keys().cloned().collect())
    }

    async fn create(&self, spec: &GuestSpec) -> Result<(), PortError> {
        self.called("create", &spec.name).await?;
        locked(&self.guests).insert(spec.id.clone(), (spec.clone(), false));
        Ok(())
    }

    async fn start(&self, id: &InstanceId) -> Result<(), PortError> {
        self.called("start", id).await?;
        match locked(&self.guests).get_mut(id) {
            Some(guest) => guest.1 = true,
            None => return Err(PortError::new("start", "no such guest")),
        }
        Ok(())
    }

    async fn due_identity(&self, id: &InstanceId) -> Result<Option<Bundle>, PortError> {
        Ok(locked(&self.due).contains(id).then(|| Bundle {
            instance: id.to_string(),
            key: Default::default(),
            certificate: String::new(),
            authority: String::new(),
            not_after: 0,
            controller: String::new(),
        }))
    }

    async fn place_identity(&self, id: &InstanceId, _identity: &Bundle) -> Result<(), PortError> {
        self.called("place", id).await?;
        locked(&self.due).remove(id);
        self.changed.send_replace(());
        Ok(())
    }

    async fn stop(&self, id: &InstanceId, _grace: Duration) -> Result<(), PortError> {
        self.called("stop", id).await?;
        if let Some(guest) = locked(&self.guests).get_mut(id) {
            guest.1 = false;
        }
        Ok(())
    }

    async fn destroy(&self, id: &InstanceId) -> Result<(), PortError> {
        self.called("destroy", id).await?;
        locked(&self.guests).remove(id);
        locked(&self.gateways).remove(id);
        Ok(())
    }

    async fn console_tail(&self, _id: &InstanceId, _lines: usize) -> Vec<String> {
        vec!["console".into()]
    }
}

#[async_trait]
impl NodeNetwork for FakeNode {
    async fn observe(&self, spec: &NodeNetworkSpec) -> Result<NetworkObserved, PortError> {
        let there = locked(&self.networks).contains(spec.zone.as_str());
        Ok(NetworkObserved {
            drift: if there {
                vec![]
            } else {
                vec![format!("{} is missing", spec.bridge)]
            },
            conflicts: locked(&self.conflicts).clone(),
        })
    }

    async fn ensure(&self, spec: &NodeNetworkSpec) -> Result<(), PortError> {
        self.called("network", &spec.zone).await?;
        locked(&self.networks).insert(spec.zone.to_string());
        Ok(())
    }

    async fn publish(
        &self,
        spec: &NodeNetworkSpec,
        ports: &[(Protocol, u16)],
    ) -> Result<(), PortError> {
        let mut published = locked(&self.published);
        if published
            .get(spec.zone.as_str())
            .map_or(&[][..], Vec::as_slice)
            != ports
        {
            published.insert(spec.zone.to_string(), ports.to_vec());
        }
        Ok(())
    }

    async fn listens(
        &self,
        _spec: &NodeNetworkSpec,
        _protocol: Protocol,
        port: u16,
    ) -> Result<bool, PortError> {
        Ok(port == 22)
    }

    async fn remove(&self, spec: &NodeNetworkSpec) -> Result<(), PortError> {
        self.called("unnetwork", &spec.zone).await?;
        locked(&self.networks).remove(spec.zone.as_str());
        Ok(())
    }
}

#[async_trait]
impl Gateway for FakeNode {
    async fn apply(
        &self,
        appliance: &InstanceId,
        state: &GatewayState,
    ) -> Result<GatewayDiff, PortError> {
        let size = format!("{} hosts, {} routes", state.hosts.len(), state.routes.len());
        self.called("apply", size).await?;
        locked(&self.gateways).insert(appliance.clone(), state.clone());
        Ok(GatewayDiff::default())
    }

    async fn read(&self, appliance: &InstanceId) -> Result<GatewayReport, PortError> {
        if let Some(cause) = locked(&self.failing).get("read") {
            return Err(PortError::new("read", cause));
        }
        let gateways = locked(&self.gateways);
        let state = gateways
            .get(appliance)
            .ok_or_else(|| PortError::new("read the gateway", "no state was applied"))?;
        let services = ["caddy", "cockpit", "dnsmasq", "nftables", "relay"];
        Ok(GatewayReport {
            agent_version: "fake".into(),
            wan_address: Some([10, 19, 255, 2].into()),
            lan_address: Some(state.network.gateway),
            services: services
                .iter()
                .map(|n| ServiceReport {
                    name: (*n).into(),
                    state: "active".into(),
                })
                .collect(),
            leases: vec![],
            refused: vec![],
            names: state
                .hosts
                .iter()
                .map(|h| NameRecord {
                    name: api::HostName::in_domain(&h.name, &state.network.domain),
                    address: h.address,
                })
                .collect(),
            routes: state
                .routes
                .iter()
                .filter_map(|r| {
                    let host = state.hosts.iter().find(|h| h.instance == r.instance)?;
                    Some(RouteReport {
                        host: r.host.clone(),
                        instance: r.instance.clone(),
                        address: host.address,
                        port: r.port,
                        healthy: true,
                        connections: 0,
                    })
                })
                .collect(),
            edge: EdgeReport {
                authority: Some("a certificate".into()),
                sites: vec![],
            },
        })
    }

    async fn look(&self, appliance: &InstanceId) -> Result<GatewayReport, PortError> {
        let report = self.read(appliance).await?;
        Ok(GatewayReport {
            names: vec![],
            routes: vec![],
            ..report
        })
    }

    async fn route(
        &self,
        appliance: &InstanceId,
        host: &HostName,
    ) -> Result<Option<RouteReport>, PortError> {
        let report = self.read(appliance).await?;
        Ok(report.routes.into_iter().find(|r| r.host == *host))
    }

    async fn renew(&self, appliance: &InstanceId, _identity: &Bundle) -> Result<(), PortError> {
        self.called("renew", appliance).await
    }

    async fn probe(
        &self,
        _appliance: &InstanceId,
        request: &ProbeRequest,
    ) -> Result<(), PortError> {
        self.called("probe", request.address).await
    }
}

#[async_trait]
impl Images for FakeNode {
    async fn cached(&self, digest: &ImageDigest) -> bool {
        locked(&self.images).contains(digest)
    }

    async fn ensure(
        &self,
        spec: &ImageSpec,
        progress: &(dyn Fn(String) + Send + Sync),
    ) -> Result<ImageDigest, PortError> {
        progress("building".into());
        self.called("image", spec.digest()).await?;
        locked(&self.images).insert(spec.digest());
        Ok(spec.digest())
    }
}

#[async_trait]
impl Channel for FakeNode {
    fn name(&self) -> &'static str {
        "agent"
    }

    async fn run(
        &self,
        _guest: &ChannelTarget,
        command: GuestCommand,
    ) -> Result<CommandOutcome, ChannelError> {
        let program = command.argv.first().map_or("", String::as_str);
        if let Err(e) = self.called("exec", program).await {
            return Err(ChannelError::OutcomeUnknown(e.cause));
        }
        Ok(CommandOutcome {
            stdout: command.argv.join(" ").into_bytes(),
            stderr: command.stdin,
            end: CommandEnd::Exited(0),
            truncated: false,
            duration: Duration::from_millis(1),
        })
    }

    async fn renew(&self, guest: &ChannelTarget, _identity: &Bundle) -> Result<(), ChannelError> {
        self.called("renew", &guest.id)
            .await
            .map_err(|e| ChannelError::Unreachable(e.cause))
    }

    /// Writes the arguments, then what it reads until end-of-file, and exits with 0.
    async fn open(
        &self,
        _guest: &ChannelTarget,
        command: GuestCommand,
        _tty: Option<WindowSize>,
    ) -> Result<Session, ChannelError> {
        let program = command.argv.first().map_or("", String::as_str);
        if let Err(e) = self.called("session", program).await {
            return Err(ChannelError::NothingRan(e.cause));
        }
        let (input, mut typed) = mpsc::channel(4);
        let (output, told) = mpsc::channel(4);
        tokio::spawn(async move {
            let first = command.argv.join(" ").into_bytes();
            let _ = output.send(SessionOutput::Stdout(first.into())).await;
            while let Some(SessionInput::Stdin(bytes)) = typed.recv().await {
                let _ = output.send(SessionOutput::Stdout(bytes)).await;
            }
            let ended = SessionOutput::Ended {
                end: CommandEnd::Exited(0),
                duration: Duration::from_millis(1),
            };
            let _ = output.send(ended).await;
        });
        let (signals, _) = mpsc::channel(1);
        Ok(Session {
            pid: 1,
            input,
            signals,
            output: told,
        })
    }

    async fn ready(&self, guest: &ChannelTarget, _patience: Duration) -> Result<(), ChannelError> {
        self.called("ready", guest.address)
            .await
            .map_err(|e| ChannelError::NothingRan(e.cause))
    }
}

/// The same double under the name of the channel that leads into appliances.
#[derive(Clone)]
struct FakeAttach(Arc<FakeNode>);

#[async_trait]
impl Channel for FakeAttach {
    fn name(&self) -> &'static str {
        "lxc-attach"
    }

    async fn run(
        &self,
        guest: &ChannelTarget,
        command: GuestCommand,
    ) -> Result<CommandOutcome, ChannelError> {
        self.0.run(guest, command).await
    }

    async fn open(
        &self,
        guest: &ChannelTarget,
        command: GuestCommand,
        tty: Option<WindowSize>,
    ) -> Result<Session, ChannelError> {
        self.0.open(guest, command, tty).await
    }

    async fn ready(&self, guest: &ChannelTarget, patience: Duration) -> Result<(), ChannelError> {
        self.0.ready(guest, patience).await
    }
}
