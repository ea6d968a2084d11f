//! Where log lines go: to the journal with `BANGER_VM`, `BANGER_JOB` and `BANGER_UID` as fields of
//! their own when systemd gave us the journal as standard error, else to standard error as text.

use crate::start_error::StartError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Sets the level of a daemon that runs.
#[derive(Debug)]
pub(crate) struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// # Errors
    /// [`StartError::LogLevel`] when it is neither a level nor a filter; nothing has changed then.
    pub(crate) fn set(&self, level: &str) -> Result<(), StartError> {
        self.0.reload(filter(level)?).map_err(StartError::LogFilter)
    }
}

/// # Errors
/// [`StartError::LogLevel`].
pub(crate) fn check(level: &str) -> Result<(), StartError> {
    filter(level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, StartError> {
    EnvFilter::try_new(format!("{level},tarpc=error,russh=warn")).map_err(|_| StartError::LogLevel(level.to_owned()))
}

/// # Errors
/// [`StartError::LogLevel`] when the level is neither a level nor a filter.
pub(crate) fn init(level: &str) -> Result<Level, StartError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets JOURNAL_STREAM when standard error is the journal (systemd.exec(5)).
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(layer) => registry.with(layer.with_field_prefix(None)).init(),
        None => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false)).init(),
    }
    Ok(Level(handle))
}
