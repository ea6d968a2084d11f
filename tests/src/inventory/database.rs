//! Rows of the daemon's database, by the `sqlite3` program, and rows of the helper's ledger, by
//! their files.
//!
//! The database is copied first: opened in place by root, it would get side files of root's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Inventory, Kind, output};

/// The daemon's database.
pub const DATABASE: &str = "/var/lib/banger/banger.db";
/// One file per VM.
pub(super) const LEDGER: &str = "/run/banger-priv";

/// Tables that are history on purpose: a job stays listed after its VM is gone. Everything else
/// must be empty when nothing is left.
const HISTORY: &[&str] = &["job", "jobs", "job_event", "job_events"];

pub(super) fn collect(inventory: &mut Inventory) -> Result<()> {
    rows(Path::new(DATABASE), inventory)?;
    ledger(Path::new(LEDGER), inventory)
}

fn rows(database: &Path, inventory: &mut Inventory) -> Result<()> {
    if !database.exists() {
        return Ok(());
    }
    let folder =
        tempfile::Builder::new().prefix("inventory.").tempdir_in("/run").context("make a folder for the copy")?;
    let copy = folder.path().join("copy.db");
    for suffix in ["", "-wal"] {
        let (from, to) = (with_suffix(database, suffix), with_suffix(&copy, suffix));
        match fs::copy(&from, &to) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !suffix.is_empty() => {}
            Err(error) => return Err(error).with_context(|| format!("copy {}", from.display())),
        }
    }
    // Two questions for all tables: a program's start is what takes time under emulation.
    let selects = ask(&copy, SELECTS)?;
    let selects: Vec<&str> = selects.lines().filter_map(|line| select(line, HISTORY)).collect();
    for row in ask(&copy, &selects.join("; "))?.lines() {
        inventory.add(Kind::Row, row, "");
    }
    Ok(())
}

/// For each table a line of its name, a tab, and the query for its rows: the table's name and the
/// row's primary key, as SQL would quote it.
const SELECTS: &str = r#"
SELECT t.name || char(9) || 'SELECT ' || quote(t.name || ' ') || ' || ' || coalesce(
    (SELECT group_concat('quote("' || replace(k.name, '"', '""') || '")', ' || '','' || ')
     FROM (SELECT name FROM pragma_table_info(t.name) WHERE pk > 0 ORDER BY pk) AS k),
    'quote(rowid)') || ' FROM "' || replace(t.name, '"', '""') || '"'
FROM sqlite_schema AS t WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\_%' ESCAPE '\'"#;

/// The query of such a line, unless the table is one of these.
fn select<'a>(line: &'a str, but: &[&str]) -> Option<&'a str> {
    let (table, query) = line.split_once('\t')?;
    (!but.contains(&table)).then_some(query)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn ask(database: &Path, query: &str) -> Result<String> {
    let path = database.to_str().context("the copy's path is not text")?;
    output("sqlite3", &["-batch", "-noheader", "-list", path, query])
}

pub(super) fn ledger(folder: &Path, inventory: &mut Inventory) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    for entry in entries {
        let entry = entry.context("read an entry of the ledger")?;
        let metadata = entry.metadata().with_context(|| format!("stat {}", entry.path().display()))?;
        let detail = format!("{:04o} {}:{}", metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        inventory.add(Kind::Ledger, entry.file_name().display().to_string(), detail);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_row_is_a_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("aabb"), "row")?;
        let mut inventory = Inventory::default();
        ledger(folder.path(), &mut inventory)?;
        ledger(&folder.path().join("missing"), &mut inventory)?;
        assert_eq!(inventory.of(Kind::Ledger).map(|(name, _)| name).collect::<Vec<_>>(), ["aabb"]);
        Ok(())
    }

    #[test]
    fn history_is_not_asked_for() {
        assert_eq!(select("vms\tSELECT 1", HISTORY), Some("SELECT 1"));
        assert_eq!(select("jobs\tSELECT 1", HISTORY), None);
    }

    #[test]
    fn a_missing_database_has_no_rows() -> Result<()> {
        let mut inventory = Inventory::default();
        rows(Path::new("/nonexistent/banger.db"), &mut inventory)?;
        assert_eq!(inventory, Inventory::default());
        Ok(())
    }
}
