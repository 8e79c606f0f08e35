//! A thousand apps listed over REST: the real server and the real store, over a node in memory, in this process.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use api::InstanceId;
use api::app::AppStatus;
use engine::catalog::Catalog;
use engine::fake::{FakeNode, instance_record, zone_spec};
use engine::store::{NewOperation, Store};
use engine::zone::{ZoneDesired, ZoneRecord};
use engine::{Config, Controller};
use store::SqliteStore;
use tokio_util::sync::CancellationToken;

use super::LoadPlan;
use crate::caller::Caller;
use crate::table::Table;
use crate::timing::{Times, short, timed};

const ROWS: u16 = 1000;
const ROUNDS: usize = 300;
const SLOWEST: Duration = Duration::from_millis(30);

/// Measures it.
pub fn measure(plan: &LoadPlan, table: &mut Table) -> anyhow::Result<()> {
    let dir = plan.disk.join("rows");
    std::fs::create_dir_all(&dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let stop = CancellationToken::new();
    let socket = dir.join("rows.sock");
    let serving = runtime.block_on(serve(&dir, &socket, stop.clone()))?;
    let mut caller = Caller::unix(&socket, "")?;
    let times = (0..ROUNDS).map(|_| {
        let (time, list) = timed(|| super::get::<Vec<serde_json::Value>>(&mut caller, "/apps"))?;
        ensure!(list.len() == usize::from(ROWS), "{} rows", list.len());
        Ok(time)
    });
    let times = times.collect::<anyhow::Result<Vec<_>>>();
    stop.cancel();
    drop(caller);
    let ended = runtime.block_on(serving).context("the server panicked")?;
    std::fs::remove_dir_all(&dir)?;
    ended?;
    let times = times.and_then(Times::new);
    let p99 = times.as_ref().map(|times| times.percentile(99));
    let p99 = p99.map_err(|error| anyhow::anyhow!("{error:#}"));
    let what = format!("{ROWS} apps listed over REST");
    table.bound(
        &format!("{what}, 99th percentile"),
        &p99,
        Some(SLOWEST),
        |t| short(*t),
    );
    table.bound_times(&what, &times, None);
    Ok(())
}

type Serving = tokio::task::JoinHandle<anyhow::Result<()>>;

/// Serves the rows. No worker looks after them: they are only listed.
async fn serve(dir: &Path, socket: &Path, stop: CancellationToken) -> anyhow::Result<Serving> {
    let store = SqliteStore::open(&dir.join("rows.db")).await?;
    fill(&store).await?;
    let ports = Arc::new(FakeNode::default()).ports(Arc::new(store));
    let config = Config::built_in().map_err(|error| anyhow::anyhow!("{error}"))?;
    let catalog = Catalog::new(&[]).map_err(|error| anyhow::anyhow!("{error}"))?;
    let controller = Controller::new(config, catalog, ports);
    let log = audit::Log::open(dir.join("audit.log"), audit::Options::default()).await?;
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let listeners = server::bind(any, socket).await?;
    let socket = socket.to_owned();
    Ok(tokio::spawn(async move {
        server::serve(controller, log.clone(), listeners, &socket, stop).await?;
        log.close().await;
        Ok(())
    }))
}

async fn fill(store: &SqliteStore) -> anyhow::Result<()> {
    let spec = zone_spec();
    let at = jiff::Timestamp::now();
    let operation = |number: u16, object: &str| {
        let [high, low] = number.to_be_bytes();
        NewOperation {
            id: api::OperationId::from_bytes([1, 0, 0, 0, 0, 0, high, low]),
            kind: "deploy".into(),
            target: object.into(),
            object: object.into(),
            at,
        }
    };
    let zone = ZoneRecord {
        appliance: InstanceId::from_bytes([0xff; 8]),
        desired: ZoneDesired::Up,
        settled: true,
        spec,
    };
    let name = zone.spec.name.clone();
    store
        .begin_zone(&zone, &operation(0, name.as_str()), true)
        .await?;
    for number in 1..=ROWS {
        let [high, low] = number.to_be_bytes();
        let mut record = instance_record(&format!("app-{number}"));
        record.id = InstanceId::from_bytes([2, 0, 0, 0, 0, 0, high, low]);
        record.status = AppStatus::Running;
        let operation = operation(number, record.id.as_str());
        // No zone has so many addresses: each gets one of its own.
        let address = Ipv4Addr::new(10, 20, high, low);
        let range = (address, address);
        store.begin_deploy(&record, range, &operation).await?;
    }
    Ok(())
}
