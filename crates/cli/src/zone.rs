//! `up`, `down` and `zone list`.

use api::ZoneName;
use api::gateway::{DownRequest, ZoneStatus};
use api::operation::{Operation, OperationStatus};
use client::Client;

use crate::arguments::{DownArgs, UpArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::follow;
use crate::screen::Screen;
use crate::table::Table;

/// Brings zones up, one after the other.
pub async fn up(client: &Client, args: &UpArgs, screen: &Screen) -> Result<Exit, Failure> {
    let zones = chosen(client, &args.zones).await?;
    let mut outcomes = Outcomes::default();
    for zone in &zones {
        let started = client.zone_up(zone).await;
        let followed = match started {
            Ok(accepted) => follow::follow(client, &accepted.operation_id, screen).await,
            Err(error) => Err(error.into()),
        };
        outcomes.take(followed, zone, screen)?;
    }
    outcomes.finish(screen, "is up")
}

/// Takes zones down. A zone that fails does not keep the others up.
pub async fn down(client: &Client, args: &DownArgs, screen: &Screen) -> Result<Exit, Failure> {
    let zones = chosen(client, &args.zones).await?;
    if args.with_instances {
        let names: Vec<&str> = zones.iter().map(ZoneName::as_str).collect();
        let question = format!(
            "Delete every instance of {} with its data?",
            names.join(", ")
        );
        screen.confirm(&question, args.yes)?;
    }
    let request = DownRequest {
        with_instances: args.with_instances,
    };
    let mut outcomes = Outcomes::default();
    for zone in &zones {
        let started = client.zone_down(zone, &request).await;
        if let Err(client::Error::Problem(problem)) = &started
            && problem.code == "zone_down"
        {
            screen.note(&format!("zone {zone} is down already"));
            continue;
        }
        let followed = match started {
            Ok(accepted) => follow::follow(client, &accepted.operation_id, screen).await,
            Err(error) => Err(error.into()),
        };
        outcomes.take(followed, zone, screen)?;
    }
    outcomes.finish(screen, "is down")
}

/// Lists the zones.
pub async fn list(client: &Client, screen: &Screen) -> Result<Exit, Failure> {
    let zones = client.zones().await?;
    screen.list(&zones, "no zones are configured", table)
}

/// Zones as a table.
pub fn table(zones: &[ZoneStatus]) -> String {
    let mut table = Table::new(&[
        "ZONE",
        "NODE",
        "BRIDGE",
        "SUBNET",
        "DOMAIN",
        "WANTED",
        "STATE",
        "INSTANCES",
    ]);
    for zone in zones {
        table.row([
            zone.name.to_string(),
            zone.node.to_string(),
            zone.bridge.to_string(),
            zone.subnet.clone(),
            zone.domain.clone(),
            zone.desired.clone(),
            zone.state.clone(),
            zone.instances.to_string(),
        ]);
    }
    table.text()
}

/// The zones that were named, or all.
async fn chosen(client: &Client, named: &[ZoneName]) -> Result<Vec<ZoneName>, Failure> {
    if !named.is_empty() {
        return Ok(named.to_vec());
    }
    let zones: Vec<ZoneName> = client.zones().await?.into_iter().map(|z| z.name).collect();
    if zones.is_empty() {
        return Err(Failure::local("no zones are configured").next(
            "add one under `zones:` in /etc/proximity/config.yml, then restart the controller",
        ));
    }
    Ok(zones)
}

/// What became of several zones: every operation is kept, and of several refusals the first.
#[derive(Default)]
struct Outcomes {
    operations: Vec<Operation>,
    refused: Option<Failure>,
}

impl Outcomes {
    fn take(
        &mut self,
        followed: Result<Operation, Failure>,
        zone: &ZoneName,
        screen: &Screen,
    ) -> Result<(), Failure> {
        match followed {
            Ok(operation) => {
                if operation.status != OperationStatus::Succeeded {
                    follow::report(&operation, screen);
                }
                self.operations.push(operation);
                Ok(())
            }
            Err(Failure::Call(client::Error::Problem(problem))) => {
                if self.refused.is_some() {
                    screen.warn(&format!("error: zone {zone}: {problem}"));
                } else {
                    self.refused = Some(client::Error::Problem(problem).into());
                }
                Ok(())
            }
            // Without a connection, or after Ctrl-C, there is no going on.
            Err(failure) => Err(failure),
        }
    }

    fn finish(self, screen: &Screen, done: &str) -> Result<Exit, Failure> {
        let good = |o: &&Operation| o.status == OperationStatus::Succeeded;
        if !screen.json() {
            for operation in self.operations.iter().filter(good) {
                screen.print(&crate::guest_text::line(&format!(
                    "zone {} {done}",
                    operation.target
                )))?;
            }
        }
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        if screen.json() {
            screen.document(&self.operations)?;
        }
        if self.operations.iter().all(|o| good(&o)) {
            Ok(Exit::OK)
        } else {
            Err(Failure::Reported(Exit::FAILED))
        }
    }
}
