//! What a failed call tells its caller.

use std::fmt;

/// The result of a client call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call did not succeed, and what became of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// It had no effect: nothing was written. Trying again may help.
    #[error("{0}")]
    Failed(Failure),
    /// It may or may not have taken effect, and may still do so; of a batch, parts may have.
    #[error("{0}; the outcome is unknown")]
    Unknown(Failure),
    /// The request itself is refused and had no effect; trying again is of no use.
    #[error("{0}")]
    Invalid(Failure),
}

impl Error {
    pub(crate) fn invalid(operation: &'static str, reason: impl Into<String>) -> Error {
        Error::Invalid(Failure { operation, reason: reason.into() })
    }

    pub(crate) fn failed(operation: &'static str, reason: impl Into<String>) -> Error {
        Error::Failed(Failure { operation, reason: reason.into() })
    }

    /// Whether the call may have taken effect.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Error::Unknown(_))
    }

    /// The error of a call of which another part succeeded or may have: nothing may be called "no effect" any more.
    pub(crate) fn after_partial_effect(self) -> Error {
        match self {
            Error::Failed(failure) | Error::Invalid(failure) | Error::Unknown(failure) => Error::Unknown(failure),
        }
    }
}

/// What was attempted and what went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The operation, for example "raw put".
    pub operation: &'static str,
    /// The last thing that went wrong.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.reason)
    }
}
