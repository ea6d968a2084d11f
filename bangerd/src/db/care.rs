//! Whether the file is well: checked when it is opened, and looked at without being changed.

use super::{DbError, ballast};
use rusqlite::Connection;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How often damage must be seen before it is believed.
const LOOKS: u32 = 3;

/// What a start would do with a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is none; it will be made.
    Absent,
    /// It is used as it is.
    Fine { schema: i64 },
    /// It is brought to a newer schema.
    Migrate { from: i64, to: i64 },
}

/// Looks at a copy: even a read-only connection could replay a log or make files beside the
/// original. A daemon that writes meanwhile may tear the copy, so damage must be seen each time.
///
/// # Errors
/// What a start would fail with: [`DbError::Newer`], [`DbError::Damaged`], and what SQLite says.
pub(crate) fn inspect(path: &Path) -> Result<Verdict, DbError> {
    if !path.exists() {
        return Ok(Verdict::Absent);
    }
    let mut seen = inspect_copy(path);
    for _ in 1..LOOKS {
        if !matches!(seen, Err(DbError::Damaged { .. })) {
            break;
        }
        seen = inspect_copy(path);
    }
    seen
}

/// What puts a copy in the place of the database, as commands; `COPY` is chosen from the folder.
pub(super) fn restored(database: &Path) -> String {
    let (path, folder) = (database.display(), database.parent().unwrap_or(database).join(crate::paths::BACKUPS));
    format!(
        "systemctl stop bangerd.socket bangerd.service; ls {0}; runuser -u bangerd -- rm -f {path}-wal {path}-shm; \
         runuser -u bangerd -- cp {0}/COPY {path}; systemctl start bangerd.socket bangerd.service",
        folder.display()
    )
}

fn inspect_copy(path: &Path) -> Result<Verdict, DbError> {
    let create = |source| DbError::Create { path: path.to_owned(), source };
    let folder = tempfile::tempdir().map_err(create)?;
    let copy = folder.path().join("banger.db");
    copy_file(path, &copy)?;
    let log = beside(path, "-wal");
    if log.exists() {
        copy_file(&log, &beside(&copy, "-wal"))?;
    }
    let connection = Connection::open(&copy).map_err(|error| refused(path, error))?;
    check(&connection, path)?;
    let known = super::known();
    let found = schema(&connection, path, known)?;
    Ok(if found == known { Verdict::Fine { schema: found } } else { Verdict::Migrate { from: found, to: known } })
}

/// Not a link to another file, and nothing that never ends: an administrator looks into a folder of
/// the daemon's.
fn copy_file(from: &Path, to: &Path) -> Result<(), DbError> {
    let failed = |source| DbError::Create { path: from.to_owned(), source };
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut opened = std::fs::File::options().read(true).custom_flags(flags).open(from).map_err(failed)?;
    if !opened.metadata().map_err(failed)?.is_file() {
        return Err(DbError::Damaged { path: from.to_owned(), what: "it is no file".to_owned() });
    }
    let mut copy = std::fs::File::create_new(to).map_err(failed)?;
    std::io::copy(&mut opened, &mut copy).map_err(failed)?;
    Ok(())
}

/// Is the file sound, as far as SQLite can tell quickly (`PRAGMA quick_check`)?
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), DbError> {
    let said: String =
        connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(|error| refused(path, error))?;
    if said == "ok" { Ok(()) } else { Err(DbError::Damaged { path: path.to_owned(), what: said }) }
}

/// The schema's number, if this release, which knows `known` of them, can use it.
pub(super) fn schema(connection: &Connection, path: &Path, known: i64) -> Result<i64, DbError> {
    let number =
        |name| connection.pragma_query_value(None, name, |row| row.get(0)).map_err(|error| refused(path, error));
    let found: i64 = number("user_version")?;
    let application = number("application_id")?;
    if found > 0 && application == 0 {
        return Err(DbError::PreRelease { path: path.to_owned() });
    }
    if application != 0 && application != i64::from(super::APPLICATION_ID) {
        let what = format!("it is another program's, application_id {application}");
        return Err(DbError::Damaged { path: path.to_owned(), what });
    }
    if found > known { Err(DbError::Newer { path: path.to_owned(), found, known }) } else { Ok(found) }
}

/// What SQLite says when it cannot use a file, and what is damaged about it.
pub(super) fn refused(path: &Path, source: rusqlite::Error) -> DbError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase, SystemIoFailure};
    let full = ballast::has_nothing(path);
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => DbError::Damaged { path, what: source.to_string() },
        Some(DiskFull) => DbError::Full { path, source },
        Some(SystemIoFailure) if full => DbError::Full { path, source },
        _ => DbError::Open { path, source },
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::{Db, MIGRATIONS};
    use super::*;
    use std::time::Duration;

    const KNOWN: i64 = MIGRATIONS.len() as i64;

    pub(in crate::db) fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_a_start_would_do_is_said_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        assert_eq!(inspect(&path).unwrap(), Verdict::Absent);
        drop(Db::open(&path).await.unwrap());
        let raw = Connection::open(&path).unwrap();
        for (version, expected) in [
            (KNOWN, Ok(Verdict::Fine { schema: KNOWN })),
            (KNOWN - 1, Ok(Verdict::Migrate { from: KNOWN - 1, to: KNOWN })),
            (KNOWN + 1, Err(())),
        ] {
            raw.pragma_update(None, "user_version", version).unwrap();
            let before = (names(dir.path()), std::fs::read(&path).unwrap());
            assert_eq!(inspect(&path).map_err(drop), expected);
            assert_eq!((names(dir.path()), std::fs::read(&path).unwrap()), before);
        }
    }

    #[test]
    fn an_older_schema_is_brought_up_with_its_rows_and_a_copy_of_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let mut raw = super::super::open(&path).unwrap();
        let (id, digest) = ("ab".repeat(32), "cd".repeat(32));
        raw.execute_batch(&format!(
            "INSERT INTO images VALUES ('{digest}', 1, 1, 0);
             INSERT INTO kernels VALUES ('{digest}', '6.12', '[]', 1);
             INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at, updated_at, last_touched_at,
             vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, nat_enabled)
             VALUES ('{id}', 1001, 'alice', 'demo', '{digest}', 'debian', '{digest}', 'stopped', 0, 0, 0, 0, 1, 256, 1, 1, 0);
             INSERT INTO leases VALUES (1, '{id}');"
        ))
        .unwrap();
        // As a later release would have it.
        let steps: Vec<&str> =
            MIGRATIONS.into_iter().chain(["ALTER TABLE vms ADD COLUMN later TEXT NOT NULL DEFAULT 'new'"]).collect();
        super::super::bring_up(&mut raw, &path, &steps).unwrap();
        let row = raw.query_row("SELECT name || later FROM vms", [], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!((row.as_str(), schema(&raw, &path, KNOWN + 1).unwrap()), ("demonew", KNOWN + 1));
        let copies = names(&dir.path().join(crate::paths::BACKUPS));
        assert_eq!(copies, [format!("before-schema-{}.db", KNOWN + 1)]);
        let copy = dir.path().join(crate::paths::BACKUPS).join(&copies[0]);
        assert_eq!(inspect(&copy).unwrap(), Verdict::Fine { schema: KNOWN });
    }

    #[tokio::test]
    async fn a_database_of_before_the_first_release_is_called_so_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        // As the last pre-release left it.
        let raw = Connection::open(&path).unwrap();
        raw.execute_batch(
            "CREATE TABLE vms (id TEXT PRIMARY KEY, owner INTEGER NOT NULL, name TEXT NOT NULL) STRICT;
             INSERT INTO vms VALUES ('aa', 1001, 'demo'); PRAGMA user_version = 2;",
        )
        .unwrap();
        drop(raw);
        let before = std::fs::read(&path).unwrap();
        for error in [inspect(&path).map(drop).unwrap_err(), Db::open(&path).await.map(drop).unwrap_err()] {
            assert!(matches!(error, DbError::PreRelease { .. }), "{error:?}");
            let said = error.to_string();
            for part in ["pre-release", "systemctl stop", "move", "start again"] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
        let raw = Connection::open(&path).unwrap();
        assert_eq!(raw.query_row("SELECT name FROM vms", [], |row| row.get::<_, String>(0)).unwrap(), "demo");
        drop(raw);
        assert_eq!(std::fs::read(&path).unwrap().len(), before.len());
    }

    #[test]
    fn what_is_no_file_is_called_so_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (reply, answer) = std::sync::mpsc::channel();
        let fifo = path.clone();
        std::thread::spawn(move || reply.send(inspect(&fifo)));
        let seen = answer.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(&seen, Err(DbError::Damaged { what, .. }) if what == "it is no file"), "{seen:?}");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(inspect(&path), Err(DbError::Create { .. })));
    }

    #[test]
    fn another_programs_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let raw = Connection::open(&path).unwrap();
        raw.execute_batch("PRAGMA application_id = 7; PRAGMA user_version = 1; CREATE TABLE x (y)").unwrap();
        let seen = inspect(&path);
        assert!(matches!(&seen, Err(DbError::Damaged { what, .. }) if what.contains("another program")), "{seen:?}");
    }

    #[tokio::test]
    async fn a_damaged_file_is_called_so_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        // Not by its thread, which ends a moment after its last handle.
        drop(super::super::open(&path).unwrap());
        let raw = Connection::open(&path).unwrap();
        raw.pragma_update(None, "journal_mode", "delete").unwrap();
        drop(raw);
        let mut bytes = std::fs::read(&path).unwrap();
        // The second page is a table's or an index's root.
        bytes[4096..4196].fill(0xff);
        std::fs::write(&path, &bytes).unwrap();
        let seen = inspect(&path);
        assert!(matches!(seen, Err(DbError::Damaged { .. })), "{seen:?}");
        let opened = Db::open(&path).await.map(drop);
        assert!(matches!(opened, Err(DbError::Damaged { .. })), "{opened:?}");
        assert_eq!(std::fs::read(&path).unwrap()[4096..4196], [0xff; 100]);
        std::fs::write(&path, "no database at all, but a text of some length".repeat(40)).unwrap();
        assert!(matches!(inspect(&path), Err(DbError::Damaged { .. })));
    }
}
