//! `image cache prune`.

use crate::cli::Cache;
use crate::output::{amount, line};
use crate::registry;
use anyhow::Context as _;

pub(super) fn run(command: &Cache) -> anyhow::Result<u8> {
    let Cache::Prune { dry_run } = command;
    let what = "cannot prune the cache";
    let cache = registry::cache().context(what)?;
    let pruned = cache.prune(*dry_run).context(what)?;
    let verb = if *dry_run { "would remove" } else { "removed" };
    let files = if pruned.files == 1 { "file" } else { "files" };
    let busy = match pruned.busy {
        0 => String::new(),
        busy => format!("; {busy} being downloaded just now, and left alone"),
    };
    let (folder, bytes) = (cache.folder().display(), amount(pruned.bytes));
    line(&format!("{verb} {} {files}, {bytes}, from {folder}{busy}", pruned.files))?;
    Ok(0)
}
