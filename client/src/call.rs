//! One call of the client's user: its deadline, its pauses, and whether an attempt may have taken effect.

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tonic::{Response, Status};

use crate::{
    Options,
    error::{Error, Failure, Result},
    limits,
};

/// What a repetition would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Changes nothing: may always be repeated.
    Read,
    /// A blind write: repeated after an unknown outcome only if the options say so.
    Write,
    /// A conditional write: never repeated after an unknown outcome.
    Conditional,
}

/// The progress of one call over all its attempts.
pub(crate) struct Call {
    operation: &'static str,
    kind: Kind,
    retry_unknown: bool,
    deadline: Instant,
    pause: Duration,
    pause_max: Duration,
    /// Set once an attempt may have taken effect. Invariant: never set for a read.
    uncertain: bool,
    last_reason: String,
}

impl Call {
    pub(crate) fn new(operation: &'static str, kind: Kind, options: &Options) -> Call {
        Call {
            operation,
            kind,
            retry_unknown: kind == Kind::Write && options.retry_unknown,
            deadline: Instant::now() + options.deadline,
            pause: limits::BACKOFF_MIN,
            pause_max: options.pause_max,
            uncertain: false,
            last_reason: String::new(),
        }
    }

    /// A part of this call that goes its own way under the same deadline.
    pub(crate) fn part(&self) -> Call {
        Call { last_reason: String::new(), pause: limits::BACKOFF_MIN, ..*self }
    }

    /// A read on behalf of this call, for example where a region is.
    pub(crate) fn lookup(&self, operation: &'static str) -> Call {
        Call { operation, kind: Kind::Read, retry_unknown: false, uncertain: false, ..self.part() }
    }

    /// What a repetition would do.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Awaits an attempt for as long as this call has for it. The text says why there is no answer in time.
    pub(crate) async fn attempt<T>(
        &self,
        answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> std::result::Result<T, Status> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let repeatable = self.kind == Kind::Read || self.retry_unknown;
        let limit = if repeatable { left.min(limits::ATTEMPT) } else { left };
        match timeout(limit, answer).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} ms", limit.as_millis()))),
        }
    }

    /// Notes that an attempt may have taken effect. Fails if it must not be repeated.
    pub(crate) fn uncertain(&mut self, reason: String) -> Result<()> {
        self.last_reason = reason;
        if self.kind == Kind::Read {
            return Ok(());
        }
        self.uncertain = true;
        if self.retry_unknown { Ok(()) } else { Err(self.give_up()) }
    }

    /// Waits before the next attempt, a little longer each time. Fails if the deadline would pass meanwhile.
    pub(crate) async fn back_off(&mut self, reason: impl Into<String>) -> Result<()> {
        let pause = jitter(self.pause);
        self.pause = (self.pause * 2).min(self.pause_max);
        self.wait(pause, reason).await
    }

    /// Waits as long as the answering store asked for.
    pub(crate) async fn wait(&mut self, pause: Duration, reason: impl Into<String>) -> Result<()> {
        self.last_reason = reason.into();
        if Instant::now() + pause >= self.deadline {
            return Err(self.give_up());
        }
        sleep(pause).await;
        Ok(())
    }

    /// The request can never succeed.
    pub(crate) fn refuse(&self, reason: impl Into<String>) -> Error {
        let failure = Failure { operation: self.operation, reason: reason.into() };
        if self.uncertain { Error::Unknown(failure) } else { Error::Invalid(failure) }
    }

    fn give_up(&self) -> Error {
        let failure = Failure { operation: self.operation, reason: self.last_reason.clone() };
        if self.uncertain { Error::Unknown(failure) } else { Error::Failed(failure) }
    }
}

/// Between half of `pause` and all of it, so that many clients do not come back at once.
fn jitter(pause: Duration) -> Duration {
    let half = pause / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_nanos(RandomState::new().hash_one(0) % nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(kind: Kind, retry_unknown: bool, deadline_ms: u64) -> Call {
        let deadline = Duration::from_millis(deadline_ms);
        Call::new("test", kind, &Options { retry_unknown, deadline, ..Options::default() })
    }

    #[tokio::test]
    async fn a_write_that_may_have_happened_is_never_called_failed() {
        let mut blind = call(Kind::Write, false, 1000);
        assert!(blind.uncertain("connection lost".into()).unwrap_err().is_unknown());

        let mut repeated = call(Kind::Write, true, 0);
        repeated.uncertain("connection lost".into()).unwrap();
        assert!(repeated.back_off("no leader").await.unwrap_err().is_unknown());
        assert!(repeated.refuse("too large").is_unknown());

        let mut conditional = call(Kind::Conditional, true, 1000);
        assert!(conditional.uncertain("timeout".into()).unwrap_err().is_unknown());
    }

    #[tokio::test]
    async fn a_read_or_a_refused_write_fails_definitely() {
        let mut read = call(Kind::Read, false, 0);
        read.uncertain("connection lost".into()).unwrap();
        assert!(matches!(read.back_off("no leader").await, Err(Error::Failed(_))));
        let mut write = call(Kind::Write, false, 0);
        assert!(matches!(write.back_off("no leader").await, Err(Error::Failed(_))));
        assert!(matches!(write.refuse("too large"), Error::Invalid(_)));
    }

    #[tokio::test]
    async fn an_attempt_ends_with_the_deadline() {
        let call = call(Kind::Write, false, 20);
        let never = std::future::pending::<std::result::Result<Response<()>, Status>>();
        let status = call.attempt(never).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }
}
