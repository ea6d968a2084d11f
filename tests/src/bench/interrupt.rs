//! Ctrl-C: large files of a run are removed, then the bench ends. QEMU needs nothing here, it ends
//! with its parent.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

static DOOMED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Exit status of a program that a signal has ended, as shells count it: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Waits for signals in a thread of its own. By handlers and not by a blocked mask, which every
/// program that the bench runs would inherit.
pub(super) fn watch() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("make a runtime")?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        eprintln!("banger-bench: interrupted, cleaning up");
        for folder in DOOMED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = std::fs::remove_dir_all(folder);
        }
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}

/// Names a folder that must not outlive an interrupted bench.
pub(super) fn doom(folder: &Path) {
    DOOMED.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}
