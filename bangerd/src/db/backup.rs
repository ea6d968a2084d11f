//! Copies of the database: one a day, and one before every change of the schema.

use super::care::check;
use super::{Db, DbError, Work, Write, ballast};
use crate::room;
use crate::util::{WorkerEnded, blocking};
use banger_proto::time::Timestamp;
use rusqlite::Connection;
use rusqlite::backup::Backup;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Daily copies that are kept.
const KEPT: usize = 7;
/// How often the calendar is looked at.
const LOOK: Duration = Duration::from_secs(60 * 60);
/// Names of daily copies: this, the day (UTC, ISO 8601), this.
const DAILY: (&str, &str) = ("banger-", ".db");
/// Pages that are copied without a break.
const PAGES: i32 = 1000;

/// Copies the database into the folder `backups` beside it, before its schema is changed.
pub(super) fn copy_before(connection: &Connection, path: &Path, from: i64) -> Result<(), DbError> {
    let folder = path.parent().unwrap_or(Path::new("/")).join(crate::paths::BACKUPS);
    copy(connection, &folder, &format!("before-schema-{}.db", from.saturating_add(1)))
}

impl Db {
    /// Copies the database once a day, and keeps its ballast whole, from now on and as long as the
    /// daemon runs.
    pub(crate) fn back_up_daily(&self, database: PathBuf, folder: PathBuf) {
        let db = self.clone();
        tokio::spawn(async move {
            loop {
                let of = database.clone();
                if let Err(error) = blocking(move || ballast::fill_up(&of).map_err(Unfilled::Kernel)).await {
                    tracing::warn!("{}", crate::error::chain(&error));
                }
                match db.back_up(&folder, Timestamp::now()).await {
                    Ok(None) => {}
                    Ok(Some(name)) => tracing::info!("database copied to {}", folder.join(name).display()),
                    // Told each hour until somebody makes room: a daemon without a copy still
                    // serves.
                    Err(error) => tracing::warn!("{}", crate::error::chain(&error)),
                }
                tokio::time::sleep(LOOK).await;
            }
        });
    }

    /// Makes the copy of that day unless it is there, and removes the oldest beyond [`KEPT`].
    /// Answers the new copy's name.
    async fn back_up(&self, folder: &Path, now: Timestamp) -> Result<Option<String>, DbError> {
        let day: String = now.to_string().chars().take("YYYY-MM-DD".len()).collect();
        let name = format!("{}{day}{}", DAILY.0, DAILY.1);
        let folder = folder.to_owned();
        if folder.join(&name).exists() {
            return Ok(None);
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        let made = name.clone();
        let work: Work = Box::new(move |connection| {
            let done = may_copy(connection, &folder)
                .and_then(|()| copy(connection, &folder, &made))
                .and_then(|()| forget_oldest(&folder, &day));
            drop(reply.send(done));
        });
        self.work.send(Write::Whole(work)).map_err(|_| DbError::Closed)?;
        answer.await.map_err(|_| DbError::Closed)??;
        Ok(Some(name))
    }
}

/// Why the ballast is not whole.
#[derive(Debug, thiserror::Error)]
enum Unfilled {
    #[error("no room is kept for the database on a full disk")]
    Kernel(#[source] std::io::Error),
    #[error(transparent)]
    WorkerEnded(#[from] WorkerEnded),
}

/// A daily copy leaves the host's reserve alone, like everything that is made; the one before a
/// change of the schema does not wait for room, since the daemon could not serve without it.
fn may_copy(connection: &Connection, folder: &Path) -> Result<(), DbError> {
    let bytes = connection.path().and_then(|path| Path::new(path).metadata().ok()).map_or(0, |meta| meta.len());
    room::claim("a copy of the database", &[(folder, bytes)]).map_err(|error| {
        let source = std::io::Error::new(std::io::ErrorKind::StorageFull, crate::error::chain(&error));
        DbError::Backup { path: folder.to_owned(), source }
    })
}

/// A whole copy under a name that only ever stands for a whole copy.
fn copy(connection: &Connection, folder: &Path, name: &str) -> Result<(), DbError> {
    let target = folder.join(name);
    let failed = |source| DbError::Backup { path: target.clone(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let unfinished = folder.join(format!("{name}.new"));
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(&unfinished).map_err(failed)?;
    let copied = || -> rusqlite::Result<Connection> {
        let mut copy = Connection::open(&unfinished)?;
        Backup::new(connection, &mut copy)?.run_to_completion(PAGES, Duration::ZERO, None)?;
        // What was being made at that moment is a VM like any other when this copy is brought back,
        // and not to be removed as cut short.
        copy.execute("UPDATE vms SET making = 0 WHERE making", []).or_else(no_such_column)?;
        Ok(copy)
    };
    let copied = copied().map_err(|error| failed(std::io::Error::other(error)));
    // A copy of a damaged database must not push out a sound one.
    let whole = copied.and_then(|copy| {
        check(&copy, Path::new(connection.path().unwrap_or_default()))?;
        copy.close().map_err(|(_, error)| failed(std::io::Error::other(error)))
    });
    let whole = whole.and_then(|()| {
        file.sync_all().map_err(failed)?;
        std::fs::rename(&unfinished, &target).map_err(failed)
    });
    if whole.is_err() {
        drop(std::fs::remove_file(&unfinished));
    }
    whole
}

/// A schema of long ago has no such VMs.
fn no_such_column(error: rusqlite::Error) -> rusqlite::Result<usize> {
    if matches!(error, rusqlite::Error::SqlInputError { .. }) { Ok(0) } else { Err(error) }
}

/// Only what has a daily copy's name is looked at: an administrator's own files stay. Copies of
/// days that have not come, made while the clock was ahead, go first: else each new one would be
/// the oldest.
fn forget_oldest(folder: &Path, today: &str) -> Result<(), DbError> {
    let failed = |source| DbError::Backup { path: folder.to_owned(), source };
    let mut days = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let day = name.to_str().and_then(|name| name.strip_prefix(DAILY.0)?.strip_suffix(DAILY.1).map(str::to_owned));
        days.extend(day.filter(|day| day.len() == "YYYY-MM-DD".len() && !day.contains(|c: char| c.is_alphabetic())));
    }
    days.sort_by_key(|day| (day.as_str() <= today, day.clone()));
    let surplus = days.len().saturating_sub(KEPT);
    for day in days.into_iter().take(surplus) {
        std::fs::remove_file(folder.join(format!("{}{day}{}", DAILY.0, DAILY.1))).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::MIGRATIONS;
    use super::super::care::tests::names;
    use super::super::care::{Verdict, inspect};
    use super::*;

    #[tokio::test]
    async fn seven_days_are_kept_and_foreign_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("banger.db")).await.unwrap();
        let folder = dir.path().join("backups");
        let day = |n: u64| Timestamp::from_unix(1_700_000_000 + n * 86_400);
        for n in 0..9 {
            assert!(db.back_up(&folder, day(n)).await.unwrap().is_some());
            assert!(db.back_up(&folder, day(n)).await.unwrap().is_none(), "once a day");
            std::fs::write(folder.join("banger-by-me.db"), "mine").unwrap();
        }
        let names = names(&folder);
        assert_eq!(names.len(), KEPT + 1, "{names:?}");
        assert!(names.contains(&"banger-by-me.db".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("2023-11-14") || name.contains("2023-11-15")), "{names:?}");
        let newest = folder.join("banger-2023-11-22.db");
        assert_eq!(
            inspect(&newest).unwrap(),
            Verdict::Fine { schema: MIGRATIONS.len() as i64 },
            "a copy is a whole database"
        );
    }

    #[tokio::test]
    async fn copies_of_days_to_come_push_out_no_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("banger.db")).await.unwrap();
        let folder = dir.path().join("backups");
        let day = |n: u64| Timestamp::from_unix(n * 86_400);
        for n in 30_000..30_009 {
            db.back_up(&folder, day(n)).await.unwrap();
        }
        for n in 20_000..20_008 {
            let made = db.back_up(&folder, day(n)).await.unwrap().unwrap();
            assert!(folder.join(&made).exists(), "{made} is no copy");
            assert_eq!(names(&folder).len(), KEPT, "{:?}", names(&folder));
        }
        assert!(names(&folder).iter().all(|name| name.contains("-2024-")), "{:?}", names(&folder));
    }

    #[tokio::test]
    async fn a_copy_that_fails_leaves_none_that_looks_whole() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("banger.db")).await.unwrap();
        let folder = dir.path().join("backups");
        std::fs::write(&folder, "not a folder").unwrap();
        assert!(matches!(db.back_up(&folder, Timestamp::now()).await, Err(DbError::Backup { .. })));
        std::fs::remove_file(&folder).unwrap();
        assert!(db.back_up(&folder, Timestamp::now()).await.unwrap().is_some());
        assert_eq!(names(&folder).len(), 1);
    }

    #[tokio::test]
    async fn a_copy_of_a_damaged_database_does_not_push_out_a_sound_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, folder) = (dir.path().join("banger.db"), dir.path().join("backups"));
        drop(super::super::open(&path).unwrap());
        let raw = Connection::open(&path).unwrap();
        raw.pragma_update(None, "journal_mode", "delete").unwrap();
        copy(&raw, &folder, "sound.db").unwrap();
        drop(raw);
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4096..].fill(0xff);
        std::fs::write(&path, &bytes).unwrap();
        let damaged = copy(&Connection::open(&path).unwrap(), &folder, "damaged.db");
        assert!(matches!(&damaged, Err(DbError::Damaged { path: named, .. }) if *named == path), "{damaged:?}");
        assert_eq!(names(&folder), ["sound.db"]);
    }

    #[tokio::test]
    async fn what_is_being_made_is_made_in_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (path, folder) = (dir.path().join("banger.db"), dir.path().join("backups"));
        let raw = super::super::open(&path).unwrap();
        let insert = "PRAGMA foreign_keys = off; INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, \
             making, created_at, updated_at, last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, \
             nat_enabled) VALUES ('aa', 1, 'alice', 'a', 'ii', 'i', 'kk', 'created', 1, 1, 1, 1, 1, 1, 1, 1, 0)";
        raw.execute_batch(insert).unwrap();
        copy(&raw, &folder, "copy.db").unwrap();
        let making = |connection: &Connection| {
            connection.query_row("SELECT making FROM vms", [], |row| row.get::<_, bool>(0)).unwrap()
        };
        assert!(making(&raw) && !making(&Connection::open(folder.join("copy.db")).unwrap()));
        assert_eq!(names(&folder), ["copy.db"]);
    }
}
