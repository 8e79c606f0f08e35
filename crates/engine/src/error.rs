//! Everything that can be wrong with a request, and its one mapping to problem details.

use api::{HostName, InstanceName, InvalidName, Problem, RecipeId, ZoneName};

use crate::ports::{ChannelError, FileError, PortError};
use crate::store::StoreError;

/// Why a request was not done. Nothing was changed, except where the variant says otherwise.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A name, address or id is malformed.
    #[error(transparent)]
    Invalid(#[from] InvalidName),
    /// A request contradicts itself or a recipe.
    #[error("{what}")]
    BadRequest {
        /// What is wrong.
        what: String,
        /// What to send instead.
        hint: String,
    },
    /// The catalog has no such recipe.
    #[error("there is no recipe {id:?}")]
    UnknownRecipe {
        /// What was asked for.
        id: String,
        /// What may have been meant.
        nearest: Option<RecipeId>,
    },
    /// There is no such instance.
    #[error("there is no instance {0:?}")]
    UnknownInstance(String),
    /// The configuration has no such zone.
    #[error("there is no zone {0:?}")]
    UnknownZone(String),
    /// There is no such orphan.
    #[error("there is no orphan {0:?}")]
    UnknownOrphan(String),
    /// There is no such operation.
    #[error("there is no operation {0:?}")]
    UnknownOperation(String),
    /// There is no such route.
    #[error("there is no route {0}")]
    UnknownRoute(HostName),
    /// Nobody added that to the gateway.
    #[error("there is no {what}")]
    UnknownEntry {
        /// What was asked for.
        what: String,
        /// Where to look what there is.
        list: &'static str,
    },
    /// The zone is not up.
    #[error("zone {0} is not up")]
    ZoneDown(ZoneName),
    /// Something is in the way on the node.
    #[error("{what}")]
    Conflict {
        /// What is in the way.
        what: String,
        /// How to get past it.
        hint: String,
    },
    /// The instance is not in a state for that.
    #[error("instance {name} is {state}")]
    WrongState {
        /// Which one.
        name: InstanceName,
        /// What it is.
        state: &'static str,
        /// What to do first.
        hint: String,
    },
    /// A port failed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A command could not be carried to its end.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store failed or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// The error as it goes to people and programs.
    pub fn problem(&self) -> Problem {
        let detail = self.to_string();
        let (status, code, hint): (u16, &str, Option<String>) = match self {
            Self::Invalid(_) => (422, "invalid_name", None),
            Self::BadRequest { hint, .. } => (422, "bad_request", Some(hint.clone())),
            Self::UnknownRecipe { nearest, .. } => (
                404,
                "unknown_recipe",
                Some(match nearest {
                    Some(n) => format!("did you mean `{n}`? All recipes: proximity app catalog"),
                    None => "all recipes: proximity app catalog".into(),
                }),
            ),
            Self::UnknownInstance(_) => (
                404,
                "unknown_instance",
                Some("what there is: proximity app list".into()),
            ),
            Self::UnknownZone(_) => (
                404,
                "unknown_zone",
                Some(
                    "zones come from the configuration; what there is: proximity zone list".into(),
                ),
            ),
            Self::UnknownOrphan(_) => (
                404,
                "unknown_orphan",
                Some("guests that no record knows: proximity orphan list".into()),
            ),
            Self::UnknownOperation(_) => (
                404,
                "unknown_operation",
                Some("the newest ones: proximity operation list".into()),
            ),
            Self::UnknownRoute(_) => (
                404,
                "unknown_route",
                Some("what there is: proximity route list".into()),
            ),
            Self::UnknownEntry { list, .. } => {
                (404, "unknown_entry", Some(format!("what there is: {list}")))
            }
            Self::ZoneDown(_) => (
                409,
                "zone_down",
                Some("bring it up first: proximity up".into()),
            ),
            Self::Conflict { hint, .. } => (409, "conflict", Some(hint.clone())),
            Self::WrongState { hint, .. } => (409, "wrong_state", Some(hint.clone())),
            Self::Port(e) => (502, "backend_failed", e.hint.clone()),
            Self::Channel(ChannelError::NothingRan(_)) => (
                502,
                "nothing_ran",
                Some("correct what it says, then try again".into()),
            ),
            Self::Channel(ChannelError::Unreachable(_)) => (
                502,
                "nothing_ran",
                Some("trying again is safe; is the guest running? proximity status".into()),
            ),
            Self::Channel(ChannelError::OutcomeUnknown(_)) => (
                502,
                "outcome_unknown",
                Some("look before you run it again: it may have run, wholly or in part".into()),
            ),
            Self::File(FileError::Refused(problem)) => return (**problem).clone(),
            Self::File(FileError::Channel(e)) => return Self::Channel(e.clone()).problem(),
            Self::Store(e) => return store_problem(e, detail),
        };
        let problem = Problem::new(status, code, detail);
        match hint {
            Some(h) => problem.hint(h),
            None => problem,
        }
    }
}

fn store_problem(error: &StoreError, detail: String) -> Problem {
    match error {
        StoreError::NameTaken(name) => Problem::new(409, "name_taken", detail).hint(format!(
            "choose another name, or look at it: proximity app show {name}"
        )),
        StoreError::Taken { .. } => Problem::new(409, "taken", detail).hint(
            "choose another one, or remove that first; what there is: proximity route list, port list, dns list, lease list",
        ),
        StoreError::NoAddress(_) => Problem::new(409, "no_address", detail)
            .hint("delete an instance and wait a minute: a freed address rests before it is given out again"),
        StoreError::Busy { operation, .. } => Problem::new(409, "busy", detail)
            .hint(format!("wait for it: proximity operation watch {operation}")),
        StoreError::HasInstances { .. } => Problem::new(409, "zone_has_instances", detail)
            .hint("delete them first, or with the zone: proximity down --with-instances"),
        StoreError::ZoneDown(_) => {
            Problem::new(409, "zone_down", detail).hint("bring it up first: proximity up")
        }
        StoreError::Missing(_) => Problem::new(404, "gone", detail),
        StoreError::Failed { .. } => Problem::new(500, "store_failed", detail)
            .hint("nothing was changed; look at the controller's log and the data directory's disk"),
    }
}
