//! What to do so that an instance becomes what it should be. Pure: no I/O, no clock, no randomness.
//!
//! ```text
//!            ┌────────── deploy / start ──────────┐
//!  image ▸ publish ▸ create ▸ start ▸ agent ▸ ready ▸ route    running
//!                                                      │
//!  forget ◂ withdraw ◂ destroy ◂ stop ◂ unroute ◂──────┘    delete
//!                                   └▸ stopped              stop
//! ```
//!
//! A sandbox takes the same road without `publish`, `ready` and `route`: nothing outside leads to it.

use api::app::AppStatus;

use super::{InstanceDesired, InstanceRecord};
use crate::ports::GuestState;

/// What was seen of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceObserved {
    /// Whether its image is in the cache.
    pub image_cached: bool,
    /// What became of its guest.
    pub guest: GuestState,
}

/// One thing to do. Each is idempotent; the variant's doc says what holds afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceAction {
    /// Its image is in the cache.
    BuildImage,
    /// Address and name are in the gateway.
    Publish,
    /// The guest is complete.
    Create,
    /// The guest runs.
    Start,
    /// The guest's agent has answered.
    AwaitAgent,
    /// The app has answered.
    AwaitReady,
    /// Its host name leads to it.
    OpenRoute,
    /// It counts as running.
    SettleRunning,
    /// Its guest vanished though nobody asked for it: that is said, not mended.
    SettleLost,
    /// No host name leads to it.
    CloseRoute,
    /// The guest does not run.
    Stop,
    /// It counts as stopped.
    SettleStopped,
    /// There is nothing of the guest left on the node.
    Destroy,
    /// Address and name are out of the gateway.
    Withdraw,
    /// There is no record; the address rests.
    Forget,
}

impl InstanceAction {
    /// The step that events and failures name; none for bookkeeping.
    pub fn step(self) -> Option<&'static str> {
        match self {
            Self::BuildImage => Some("image"),
            Self::Publish => Some("publish"),
            Self::Create => Some("create"),
            Self::Start => Some("start"),
            Self::AwaitAgent => Some("agent"),
            Self::AwaitReady => Some("ready"),
            Self::OpenRoute => Some("route"),
            Self::CloseRoute => Some("unroute"),
            Self::Stop => Some("stop"),
            Self::Destroy => Some("destroy"),
            Self::Withdraw => Some("withdraw"),
            Self::SettleRunning | Self::SettleLost | Self::SettleStopped | Self::Forget => None,
        }
    }
}

/// Plans the way from what is to what is wanted.
pub fn plan(record: &InstanceRecord, observed: InstanceObserved) -> Vec<InstanceAction> {
    match record.desired {
        InstanceDesired::Running => plan_running(record, observed),
        InstanceDesired::Stopped => plan_stopped(record, observed),
        InstanceDesired::Deleted => plan_deleted(record, observed),
    }
}

fn plan_running(record: &InstanceRecord, observed: InstanceObserved) -> Vec<InstanceAction> {
    use InstanceAction::*;
    match record.status {
        // A failed deploy waits for a person: --resume makes it `deploying` again.
        AppStatus::Failed | AppStatus::Lost | AppStatus::Deleting => return vec![],
        AppStatus::Running if observed.guest == GuestState::Running && is_settled(record) => {
            return vec![];
        }
        AppStatus::Running | AppStatus::Stopped if is_gone(observed.guest) => {
            return vec![SettleLost];
        }
        AppStatus::Deploying | AppStatus::Running | AppStatus::Stopped => {}
    }
    let mut actions = Vec::new();
    if record.restart && observed.guest == GuestState::Running {
        actions.extend([CloseRoute, Stop]);
    }
    if is_gone(observed.guest) && !observed.image_cached {
        actions.push(BuildImage);
    }
    actions.push(Publish);
    if is_gone(observed.guest) {
        actions.push(Create);
    }
    if record.restart || observed.guest != GuestState::Running {
        actions.push(Start);
    }
    actions.extend([AwaitAgent, AwaitReady, OpenRoute, SettleRunning]);
    without_gateway(record, actions)
}

/// What concerns the gateway is left out for a sandbox, which has neither lease nor name nor route.
fn without_gateway(
    record: &InstanceRecord,
    mut actions: Vec<InstanceAction>,
) -> Vec<InstanceAction> {
    use InstanceAction::*;
    if record.is_sandbox() {
        actions.retain(|a| !matches!(a, Publish | AwaitReady | OpenRoute | CloseRoute | Withdraw));
    }
    actions
}

/// Nothing was begun and left: no restart, no repair (it closes the route or leaves a failure behind
/// until the app has answered again).
fn is_settled(record: &InstanceRecord) -> bool {
    (record.routed || record.is_sandbox()) && !record.restart && record.failure.is_none()
}

fn is_gone(guest: GuestState) -> bool {
    matches!(guest, GuestState::Absent | GuestState::Partial)
}

fn plan_stopped(record: &InstanceRecord, observed: InstanceObserved) -> Vec<InstanceAction> {
    use InstanceAction::*;
    let stopped = record.status == AppStatus::Stopped
        && observed.guest != GuestState::Running
        && record.failure.is_none();
    if stopped || record.status == AppStatus::Lost {
        return vec![];
    }
    let mut actions = vec![CloseRoute];
    if observed.guest == GuestState::Running {
        actions.push(Stop);
    }
    actions.push(if is_gone(observed.guest) {
        SettleLost
    } else {
        SettleStopped
    });
    without_gateway(record, actions)
}

fn plan_deleted(record: &InstanceRecord, observed: InstanceObserved) -> Vec<InstanceAction> {
    use InstanceAction::*;
    // The route goes before the address, and the guest before both are given out again.
    let mut actions = vec![CloseRoute];
    if observed.guest == GuestState::Running {
        actions.push(Stop);
    }
    if observed.guest != GuestState::Absent {
        actions.push(Destroy);
    }
    actions.extend([Withdraw, Forget]);
    without_gateway(record, actions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn text(
        desired: InstanceDesired,
        status: AppStatus,
        restart: bool,
        cached: bool,
        guest: GuestState,
    ) -> String {
        let mut record = fake::instance_record("web");
        record.desired = desired;
        record.status = status;
        record.restart = restart;
        record.routed = matches!(status, AppStatus::Running | AppStatus::Lost);
        let actions = plan(
            &record,
            InstanceObserved {
                image_cached: cached,
                guest,
            },
        );
        let names: Vec<_> = actions.iter().map(|a| format!("{a:?}")).collect();
        format!(
            "{desired:?} {status:?}{} guest {guest:?}{}: {}",
            if restart { " restart" } else { "" },
            if cached { "" } else { ", no image" },
            if names.is_empty() {
                "nothing".into()
            } else {
                names.join(" ")
            }
        )
    }

    #[test]
    fn all_plans() {
        use AppStatus as S;
        use GuestState::*;
        use InstanceDesired as D;
        let mut lines = Vec::new();
        for guest in [Absent, Partial, Stopped, Running] {
            for status in [S::Deploying, S::Running, S::Stopped, S::Failed, S::Lost] {
                lines.push(text(D::Running, status, false, true, guest));
            }
            lines.push(text(D::Running, S::Deploying, false, false, guest));
            lines.push(text(D::Running, S::Running, true, true, guest));
            for status in [S::Running, S::Stopped] {
                lines.push(text(D::Stopped, status, false, true, guest));
            }
            lines.push(text(D::Deleted, S::Deleting, false, true, guest));
        }
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn what_was_begun_and_left_is_finished() {
        use InstanceAction::*;
        let check = |change: fn(&mut InstanceRecord), expect: &[InstanceAction]| {
            let mut record = fake::instance_record("web");
            record.status = AppStatus::Running;
            record.routed = true;
            change(&mut record);
            let observed = InstanceObserved {
                image_cached: true,
                guest: GuestState::Running,
            };
            assert_eq!(plan(&record, observed), expect);
        };
        let rest = [Publish, AwaitAgent, AwaitReady, OpenRoute, SettleRunning];
        check(|_| {}, &[]);
        check(|r| r.routed = false, &rest);
        check(
            |r| {
                r.failure = Some(api::app::Failure {
                    step: "ready".into(),
                    cause: String::new(),
                    next: String::new(),
                    console_tail: vec![],
                });
            },
            &rest,
        );
    }

    #[test]
    fn a_sandbox_has_nothing_in_the_gateway() {
        use InstanceAction::*;
        let check = |desired, status, guest, expect: &[InstanceAction]| {
            let mut record = fake::sandbox_record("box");
            record.desired = desired;
            record.status = status;
            let observed = InstanceObserved {
                image_cached: true,
                guest,
            };
            assert_eq!(plan(&record, observed), expect);
        };
        use InstanceDesired as D;
        let new = [Create, Start, AwaitAgent, SettleRunning];
        check(D::Running, AppStatus::Deploying, GuestState::Absent, &new);
        check(D::Running, AppStatus::Running, GuestState::Running, &[]);
        let gone = [Stop, Destroy, Forget];
        check(D::Deleted, AppStatus::Deleting, GuestState::Running, &gone);
    }

    #[test]
    fn a_guest_that_ran_is_never_made_again() {
        for status in [
            AppStatus::Running,
            AppStatus::Stopped,
            AppStatus::Lost,
            AppStatus::Failed,
        ] {
            for guest in [GuestState::Absent, GuestState::Partial] {
                let mut record = fake::instance_record("web");
                record.status = status;
                let actions = plan(
                    &record,
                    InstanceObserved {
                        image_cached: true,
                        guest,
                    },
                );
                assert!(
                    !actions.contains(&InstanceAction::Create),
                    "{status:?} {guest:?}"
                );
            }
        }
    }
}
