//! Exit codes: the contract with scripts.

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(u8);

impl Exit {
    /// All went well.
    pub const OK: Self = Self(0);
    /// It was tried and failed, or the answer is no.
    pub const FAILED: Self = Self(1);
    /// The command line or its surroundings are wrong.
    pub const WRONG_USE: Self = Self(2);
    /// The controller cannot be reached, or went away.
    pub const UNREACHABLE: Self = Self(3);
    /// `exec`: nobody knows whether the command ran, or how it ended.
    pub const OUTCOME_UNKNOWN: Self = Self(123);
    /// `exec`: the deadline ended the command.
    pub const DEADLINE: Self = Self(124);
    /// `exec`: a failure of ours; nothing ran.
    pub const NOTHING_RAN: Self = Self(125);
    /// Ended by Ctrl-C.
    pub const INTERRUPTED: Self = Self(130);

    /// The code of a command that ran to its end; like the kernel, eight bits of it.
    pub fn of_command(code: i32) -> Self {
        Self(code.to_le_bytes()[0])
    }

    /// The code of a command that a signal ended.
    pub fn of_signal(signal: i32) -> Self {
        Self::of_command(128_i32.saturating_add(signal))
    }

    /// The number for the system.
    pub fn code(self) -> u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_keep_their_codes() {
        assert_eq!(Exit::of_command(0), Exit::OK);
        assert_eq!(Exit::of_command(127).code(), 127);
        assert_eq!(Exit::of_command(256 + 7).code(), 7);
        assert_eq!(Exit::of_command(-1).code(), 255);
        assert_eq!(Exit::of_signal(9).code(), 137);
        assert_eq!(Exit::of_signal(15).code(), 143);
    }
}
