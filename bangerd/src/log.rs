//! Where log lines go: to the journal with `BANGER_VM`, `BANGER_JOB` and `BANGER_UID` as fields of
//! their own when systemd gave us the journal as standard error, else to standard error as text.

use crate::start_error::StartError;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// # Errors
/// [`StartError::LogLevel`] when the level is neither a level nor a filter.
pub(crate) fn init(level: &str) -> Result<(), StartError> {
    let filter = EnvFilter::try_new(format!("{level},tarpc=error,russh=warn"))
        .map_err(|_| StartError::LogLevel(level.to_owned()))?;
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets JOURNAL_STREAM when standard error is the journal (systemd.exec(5)).
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    match journal {
        Some(layer) => registry.with(layer.with_field_prefix(None)).init(),
        None => registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false)).init(),
    }
    Ok(())
}
