//! What can go wrong between the controller and a guest or an appliance, and whether the thing that was
//! asked for may have happened all the same. That question has one answer, [`LinkError::may_have_run`].

use api::Problem;

/// Why a call came to nothing. Texts that a peer sent are cut to a bounded length.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// No connection was made, so nothing ran.
    #[error("{peer} is not reachable: {reason}")]
    NotReachable {
        /// Who should have answered: an instance's id.
        peer: String,
        /// At which step, and why.
        reason: String,
    },
    /// Whoever answered could not show the certificate of that instance, so nothing was sent to it.
    #[error("{peer} is not who answers at its address: {reason}")]
    Untrusted {
        /// Who should have answered: an instance's id.
        peer: String,
        /// What was wrong with the certificate.
        reason: String,
    },
    /// The peer answered with a problem of its own.
    #[error("{peer} refused: {problem}")]
    Refused {
        /// Who refused: an instance's id.
        peer: String,
        /// What it said.
        problem: Box<Problem>,
    },
    /// Nothing ran, and trying again is safe.
    #[error("nothing ran in {peer}: {reason}")]
    NothingRan {
        /// Where nothing ran: an instance's id.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The request was sent and no usable answer came: it may have been carried out, wholly or in part.
    #[error("outcome unknown: {peer}: {reason}")]
    OutcomeUnknown {
        /// Who was asked: an instance's id.
        peer: String,
        /// What came instead of an answer.
        reason: String,
    },
    /// The peer said something that the protocol does not know.
    #[error("{peer} answered what cannot be understood: {reason}")]
    Garbage {
        /// Who answered: an instance's id.
        peer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or a token could not be made; nothing was sent.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
}

impl LinkError {
    /// Whether what was asked for may have happened, wholly or in part. Trying again is safe only when
    /// it has not.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::NotReachable { .. }
            | Self::Untrusted { .. }
            | Self::NothingRan { .. }
            | Self::Identity(_) => false,
            // A request that the peer found fault with was not carried out; what any other status
            // means only its code can tell.
            Self::Refused { problem, .. } => {
                !(400..500).contains(&problem.status)
                    && ![wire_code::NOTHING_RAN, wire_code::BUSY].contains(&problem.code.as_str())
            }
            Self::OutcomeUnknown { .. } | Self::Garbage { .. } => true,
        }
    }
}

/// Codes of the agent's problems and events that mean something here.
pub(crate) mod wire_code {
    /// No process was started.
    pub const NOTHING_RAN: &str = "nothing_ran";
    /// There was no room for the request: it was turned away at the door.
    pub const BUSY: &str = "busy";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_surely_not_carried_out_may_be_tried_again() {
        let refused = |status, code: &str| LinkError::Refused {
            peer: "i-1".into(),
            problem: Box::new(Problem::new(status, code, "…")),
        };
        let (peer, reason) = (String::from("i-1"), String::from("…"));
        for (error, may_have_run) in [
            (refused(422, "nothing_ran"), false),
            (refused(503, "nothing_ran"), false),
            (refused(401, "no_token"), false),
            (refused(500, "internal"), true),
            (refused(101, "unexpected_answer"), true),
            (
                LinkError::NotReachable {
                    peer: peer.clone(),
                    reason: reason.clone(),
                },
                false,
            ),
            (LinkError::OutcomeUnknown { peer, reason }, true),
        ] {
            assert_eq!(error.may_have_run(), may_have_run, "{error}");
        }
    }
}
