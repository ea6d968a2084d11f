//! Ctrl-C: large files of a run are removed, then the bench ends. QEMU needs nothing here, it ends with its parent.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

static DOOMED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Exit status of a program that a signal has ended, as shells count it: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Waits for signals in a thread of its own. Must be called before any other thread is started, for they inherit the mask; programs that are run do
/// not (the standard library gives them an empty one).
pub(super) fn watch() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("block the signals that end the bench")?;
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("banger-bench: {signal}, cleaning up");
            for folder in DOOMED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let _ = std::fs::remove_dir_all(folder);
            }
            std::process::exit(INTERRUPTED);
        }
    });
    Ok(())
}

/// Names a folder that must not outlive an interrupted bench.
pub(super) fn doom(folder: &Path) {
    DOOMED.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}
