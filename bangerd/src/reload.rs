//! A reload: `systemctl reload bangerd`, or SIGHUP. The configuration is read anew, checked as a
//! whole, and swapped. systemd waits for the end of it (sd_notify(3), `Type=notify-reload`).

use crate::args::Args;
use crate::config::{self, FileState, Live, Reloaded};
use crate::listen;
use crate::log::Level;
use crate::start_error::StartError;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Takes the signal, whose default would end the daemon. Before systemd is told that the daemon is
/// ready, because from then on it sends it.
///
/// # Errors
/// [`StartError::Signal`].
pub(crate) fn signals() -> Result<Signal, StartError> {
    signal(SignalKind::hangup()).map_err(StartError::Signal)
}

/// Reloads at each signal, as long as the daemon runs. New VMs, starts, imports and jobs ask for
/// their values each time; what has applied a value already waits for [`Live::changes`].
pub(crate) fn at_each(mut signals: Signal, args: Args, level: Level, config: Live) {
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            listen::announce_reload();
            let done = once(&args, &level, &config);
            listen::announce_reloaded(&said(&done));
        }
    });
}

fn once(args: &Args, level: &Level, live: &Live) -> Result<Reloaded, StartError> {
    let file = FileState::of(&args.paths.config);
    let read = || config::load(&args.paths.config, args.config_named);
    let done = config::reload(live, file, read, |new| level.set(new));
    match &done {
        Ok(done) => {
            tracing::info!("{}", said_of(done));
            if !done.restart.is_empty() {
                tracing::warn!(
                    "{} counts after a restart: run systemctl restart banger-priv bangerd (VMs go on running)",
                    done.restart.join(", ")
                );
            }
        }
        Err(error) => {
            tracing::error!(
                "the configuration was not reloaded, the former one still counts: {}",
                crate::error::chain(error)
            );
        }
    }
    done
}

fn said_of(done: &Reloaded) -> String {
    if done.applied.is_empty() {
        return "the configuration was reloaded; no value that a reload applies has changed".to_owned();
    }
    format!("the configuration was reloaded; changed: {}", done.applied.join(", "))
}

/// One line for `systemctl status`.
fn said(done: &Result<Reloaded, StartError>) -> String {
    match done {
        Ok(done) if done.restart.is_empty() => "configuration reloaded".to_owned(),
        Ok(done) => format!("configuration reloaded; waiting for a restart: {}", done.restart.join(", ")),
        Err(error) => format!("configuration not reloaded: {}", crate::error::chain(error)),
    }
}
