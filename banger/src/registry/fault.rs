//! What goes wrong between us and a registry, and whether asking again may help.

use std::time::Duration;

/// How long we bear with a registry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a connection, TLS included.
    pub(super) connect: Duration,
    /// Without a byte.
    pub(super) idle: Duration,
    /// Failures in a row, without progress between them.
    pub(super) attempts: u32,
    /// The same of those without a byte.
    pub(super) silent: u32,
    /// Before the second attempt; doubled each time.
    pub(super) pause: Duration,
    /// A registry that asks for more than this is not waited for.
    pub(super) longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            idle: Duration::from_secs(30),
            attempts: 5,
            silent: 5,
            pause: Duration::from_secs(1),
            longest: Duration::from_secs(60),
        }
    }
}

/// Whether the same question may have another answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// Once: it takes long, and hardly ever helps.
    Once,
    Soon,
    /// The registry says when.
    After(Duration),
}

/// A failure with what it means for the next attempt.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) again: Again,
    /// There was no connection, or not a byte on it: each further attempt takes as long.
    pub(super) silent: bool,
    pub(super) error: anyhow::Error,
}

impl Fault {
    pub(super) fn never(error: anyhow::Error) -> Self {
        Self { again: Again::Never, silent: false, error }
    }

    pub(super) fn soon(error: anyhow::Error) -> Self {
        Self { again: Again::Soon, silent: false, error }
    }

    pub(super) fn silent(self) -> Self {
        Self { silent: true, ..self }
    }

    /// What a person is told before the next attempt.
    pub(super) fn waits(&self, pause: Duration) -> String {
        format!("{:#}; trying again in {}", self.error, crate::output::took(pause))
    }

    pub(super) fn context(self, what: String) -> Self {
        Self { error: self.error.context(what), ..self }
    }
}

impl Patience {
    /// How long to wait before the next attempt; `None` when there is none.
    pub(super) fn pause(&self, failed: u32, fault: &Fault) -> Option<Duration> {
        if failed >= if fault.silent { self.silent } else { self.attempts } {
            return None;
        }
        match fault.again {
            Again::Never => None,
            Again::Once => Some(self.pause).filter(|_| failed == 1),
            Again::Soon => Some(self.pause.saturating_mul(1 << failed.saturating_sub(1).min(5))),
            Again::After(time) => Some(time).filter(|time| *time <= self.longest),
        }
    }

    /// Asks until there is an answer, or no hope of one. Whoever waits is told why.
    pub(super) async fn ask<T>(&self, mut question: impl AsyncFnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        let mut failed = 0;
        loop {
            let fault = match question().await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            failed += 1;
            let Some(pause) = self.pause(failed, &fault) else { return Err(fault) };
            crate::output::remark(&fault.waits(pause));
            tokio::time::sleep(pause).await;
        }
    }
}
