//! The database: one SQLite file, a thread that writes and one that reads, and typed functions that
//! send them work. Readers of a write-ahead log see what is committed and wait for no writer
//! (sqlite.org/wal.html): a list is quick while a thousand VMs are being reclaimed.
//!
//! Called by everything that keeps a record. It decides nothing: a function here is one
//! transaction.

mod address;
mod backup;
mod ballast;
mod care;
mod holdings;
mod image;
mod job;
mod kernel;
mod key;
mod named;
mod ports;
mod pulled;
pub(crate) mod store;
mod vm;
mod workspace;
mod writer;

#[cfg(test)]
mod network_tests;

pub(crate) use care::{Verdict, inspect};
pub(crate) use holdings::Has;
pub(crate) use image::Unshared;
pub(crate) use ports::Taken;
pub(crate) use pulled::Link;
pub(crate) use vm::{NewVm, VmRow};

use crate::turns::Places;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, TransactionBehavior};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use writer::{Record, Write, work_off};

/// Transactions of one user's calls that wait for their turn, those of the user's VMs, and
/// readings.
const WAITING: usize = 2;
/// Step N makes version N out of version N - 1. Never changed once released, only added to.
const MIGRATIONS: [&str; 8] = [
    include_str!("schema/0001.sql"),
    include_str!("schema/0002.sql"),
    include_str!("schema/0003.sql"),
    include_str!("schema/0004.sql"),
    include_str!("schema/0005.sql"),
    include_str!("schema/0006.sql"),
    include_str!("schema/0007.sql"),
    include_str!("schema/0008.sql"),
];
/// `bngr`: whose file it is (sqlite.org/pragma.html#pragma_application_id). What was written before
/// the first release has none.
const APPLICATION_ID: i32 = 0x626e_6772;

/// What goes wrong with records.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DbError {
    #[error("cannot create {}", .path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("cannot open {}", .path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "the host's disk is full, and the database {} cannot be used: `df -h {}` shows it. Make room there; the daemon then starts by itself",
        .path.display(),
        .path.parent().unwrap_or(.path).display()
    )]
    Full { path: PathBuf, source: rusqlite::Error },
    #[error(
        "{} was written by a newer banger (schema {found}, this one knows {known}): install that version again, or restore a copy from before the upgrade, which forgets the VMs made since: {}",
        .path.display(), care::restored(.path)
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "{} is damaged ({what}): keep a copy of it elsewhere, and put one of the daily copies in its place: {}",
        .path.display(), care::restored(.path)
    )]
    Damaged { path: PathBuf, what: String },
    #[error(
        "{} is of a pre-release of banger, whose state no release takes over. To begin anew, which loses its VMs, images and kernels: stop and delete the VMs with the version that made them, run `systemctl stop bangerd.socket bangerd.service banger-priv.socket banger-priv.service`, move {} and /var/lib/banger-priv away (or purge the package), and start again",
        .path.display(),
        .path.parent().unwrap_or(.path).display()
    )]
    PreRelease { path: PathBuf },
    #[error("cannot copy the database to {}", .path.display())]
    Backup { path: PathBuf, source: std::io::Error },
    #[error("schema step {step} failed")]
    Migration { step: i64, source: rusqlite::Error },
    #[error("the database refused")]
    Sql(#[from] rusqlite::Error),
    /// A unique name or number was taken.
    #[error("{0} is taken already")]
    Taken(String),
    #[error("{0} is shared, and only administrators change what everybody uses")]
    IsShared(String),
    #[error("{} is published already", .0.published.host())]
    PortTaken(Box<Taken>),
    #[error(transparent)]
    Limit(#[from] banger_policy::quota::Exceeded),
    #[error("its image or kernel was deleted meanwhile")]
    Gone,
    #[error("all {0} addresses of the VMs' network are in use")]
    NoAddress(u16),
    #[error("the database thread has ended")]
    Closed,
}

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle on the database's threads, which end with the last handle.
#[derive(Clone, Debug)]
pub(crate) struct Db {
    work: mpsc::Sender<Write>,
    reads: mpsc::Sender<Work>,
    places: Arc<AllPlaces>,
    /// Of the user on whose behalf it is written, and read.
    own: Option<Arc<Semaphore>>,
    own_reads: Option<Arc<Semaphore>>,
    /// Something of the store may have lost its last user.
    pub(crate) unused: Arc<Notify>,
}

/// The places of users in the queues.
#[derive(Debug)]
struct AllPlaces {
    calls: Places,
    /// Not the same: what becomes of a VM waits for no call.
    vms: Places,
    reads: Places,
}

impl Default for AllPlaces {
    fn default() -> Self {
        Self { calls: Places::new(WAITING), vms: Places::new(WAITING), reads: Places::new(WAITING) }
    }
}

impl Db {
    /// Opens or makes the file and brings it to the newest schema.
    ///
    /// # Errors
    /// [`DbError::Newer`] when a newer release wrote it, and what SQLite says.
    pub(crate) async fn open(path: &Path) -> Result<Self, DbError> {
        let work = Self::thread(path, open, work_off).await?;
        let read = |connection: &mut Connection, todo: &mpsc::Receiver<Work>| {
            while let Ok(work) = todo.recv() {
                work(connection);
            }
        };
        let reads = Self::thread(path, open_to_read, read).await?;
        Ok(Self { work, reads, places: Arc::default(), own: None, own_reads: None, unused: Arc::default() })
    }

    /// The same on behalf of a user. Each commit waits for the disk: so each user has a few in the
    /// queue at the most, and waits for a few of each of the others'.
    pub(crate) fn of(&self, owner: u32) -> Self {
        let (own, own_reads) = (self.places.calls.of(owner), self.places.reads.of(owner));
        Self { own: Some(own), own_reads: Some(own_reads), ..self.clone() }
    }

    /// The same on behalf of a user's VMs, whose actors write what becomes of them.
    pub(crate) fn of_vms(&self, owner: u32) -> Self {
        Self { own: Some(self.places.vms.of(owner)), own_reads: None, ..self.clone() }
    }

    /// How many more transactions of a user's VMs find a place at once.
    #[cfg(test)]
    pub(crate) fn vms_places(&self, owner: u32) -> usize {
        self.places.vms.of(owner).available_permits()
    }

    async fn place(own: Option<&Arc<Semaphore>>) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        Arc::clone(own?).acquire_owned().await.ok()
    }

    async fn thread<T: Send + 'static>(
        path: &Path,
        open: fn(&Path) -> Result<Connection, DbError>,
        work_off: fn(&mut Connection, &mpsc::Receiver<T>),
    ) -> Result<mpsc::Sender<T>, DbError> {
        let path = path.to_owned();
        let (work, todo) = mpsc::channel::<T>();
        let (opened, answer) = oneshot::channel();
        std::thread::spawn(move || {
            let connection = open(&path);
            let ok = connection.is_ok();
            let (connection, result) = match connection {
                Ok(connection) => (Some(connection), Ok(())),
                Err(error) => (None, Err(error)),
            };
            if opened.send(result).is_err() || !ok {
                return;
            }
            if let Some(mut connection) = connection {
                work_off(&mut connection, &todo);
            }
        });
        answer.await.map_err(|_| DbError::Closed)??;
        Ok(work)
    }

    /// Runs `look` on one state of the database, which has all that was written before.
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        let (reply, answer) = oneshot::channel();
        let place = Self::place(self.own_reads.as_ref()).await;
        let work: Work = Box::new(move |connection| {
            let seen = connection.transaction().map_err(DbError::from).and_then(|transaction| look(&transaction));
            drop(place);
            drop(reply.send(seen));
        });
        self.reads.send(work).map_err(|_| DbError::Closed)?;
        answer.await.map_err(|_| DbError::Closed)?
    }

    /// Runs `work` as one transaction on the database's thread. It runs to its end even if the
    /// caller goes away.
    async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        let (reply, answer) = oneshot::channel();
        let name = crate::fail::function_around(&work);
        // Given back when it is done, whether somebody still waits for that or not.
        let place = Self::place(self.own.as_ref()).await;
        let work: Work = Box::new(move |connection| {
            let rows = connection.total_changes();
            let result = (|| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let value = work(&transaction)?;
                transaction.commit()?;
                Ok(value)
            })();
            if connection.total_changes() != rows {
                crate::fail::point("row", name);
            }
            drop(place);
            // Nobody waits any more: the work is done nevertheless.
            drop(reply.send(result));
        });
        self.work.send(Write::Whole(work)).map_err(|_| DbError::Closed)?;
        answer.await.map_err(|_| DbError::Closed)?
    }

    /// Runs `work` in its turn, with others of its kind, without anybody waiting for it: for
    /// records that are a courtesy.
    fn post(&self, what: &'static str, work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        if self.work.send(Write::Record(Record { what, work: Box::new(work) })).is_err() {
            tracing::warn!("cannot record {what}: the database thread has ended");
        }
    }
}

/// On a full disk by what the ballast gives up, as long as there is some.
fn open(path: &Path) -> Result<Connection, DbError> {
    let connection = ballast::with_room(path, || open_and_check(path))?;
    // No start is at work yet.
    let forget = || {
        let forgotten = connection.execute("UPDATE vms SET starting = 0 WHERE starting", []);
        forgotten.map_err(|source| care::refused(path, source))
    };
    // Such VMs count as running until they are started or stopped: no reason to serve nobody.
    if let Err(error) = ballast::with_room(path, forget) {
        tracing::warn!("starts that were cut short count as running: {}", crate::error::chain(&error));
    }
    Ok(connection)
}

fn open_and_check(path: &Path) -> Result<Connection, DbError> {
    // SQLite makes files 0644 less the umask; whoever reads this one learns of other users' VMs.
    std::fs::File::options()
        .create(true)
        .truncate(false)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| DbError::Create { path: path.to_owned(), source })?;
    let refused = |source| care::refused(path, source);
    let mut connection = Connection::open(path).map_err(refused)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(refused)?;
    // Before anything is written to it.
    care::schema(&connection, path, known())?;
    connection.pragma_update(None, "journal_mode", "wal").map_err(refused)?;
    // A row must be on disk before the kernel object is made that it speaks of.
    connection.pragma_update(None, "synchronous", "full").map_err(refused)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(refused)?;
    care::check(&connection, path)?;
    bring_up(&mut connection, path, &MIGRATIONS)?;
    Ok(connection)
}

/// How many steps this release knows.
fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Takes the steps that are missing; a copy of what was there before is kept.
fn bring_up(connection: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), DbError> {
    let known = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    let found = care::schema(connection, path, known)?;
    if 0 < found && found < known {
        backup::copy_before(connection, path, found)?;
    }
    for (step, sql) in (1..).zip(steps).filter(|(step, _)| *step > found) {
        let migrate = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", step)?;
            transaction.commit()
        };
        migrate(connection).map_err(|source| DbError::Migration { step, source })?;
    }
    if found < known {
        // The package's scripts read the schema's number from the file's header, not from the log
        // beside it.
        let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
        connection.query_row(truncate, [], |_| Ok(())).map_err(|source| DbError::Migration { step: known, source })?;
    }
    Ok(())
}

/// A second connection to what [`open`] has opened.
fn open_to_read(path: &Path) -> Result<Connection, DbError> {
    let refused = |source| care::refused(path, source);
    let connection = Connection::open(path).map_err(refused)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(refused)?;
    connection.pragma_update(None, "query_only", true).map_err(refused)?;
    Ok(connection)
}

/// A checked type in a text column: what is stored is what `Display` says, and it is parsed again
/// when read.
struct Text<T>(T);

impl<T: std::fmt::Display> ToSql for Text<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0.to_string()))
    }
}

impl<T: std::str::FromStr> FromSql for Text<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map(Text).map_err(FromSqlError::other)
    }
}

/// A value in a text column as JSON, for what is shown and applied as a whole and never searched.
struct Json<T>(T);

impl<T: serde::Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let text = serde_json::to_string(&self.0);
        text.map(ToSqlOutput::from).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
    }
}

impl<T: serde::de::DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?).map(Json).map_err(FromSqlError::other)
    }
}

/// A byte count in SQLite's signed integer.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn unsigned(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn time(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<banger_proto::time::Timestamp> {
    unsigned(row, column).map(banger_proto::time::Timestamp::from_unix)
}

/// Was it a unique constraint that refused?
fn is_unique(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE) || code == Some(rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY)
}

/// Was it a reference to a row that is not there?
fn is_reference(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// A new database as an earlier release made it.
    pub(crate) fn of_schema(path: &Path, steps: usize) -> Connection {
        let mut raw = Connection::open(path).unwrap();
        bring_up(&mut raw, path, &MIGRATIONS[..steps]).unwrap();
        raw
    }

    #[tokio::test]
    async fn a_newer_database_is_refused_with_a_sentence_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        drop(Db::open(&path).await.unwrap());
        let raw = Connection::open(&path).unwrap();
        raw.pragma_update(None, "user_version", 99).unwrap();
        drop(raw);
        let error = Db::open(&path).await.unwrap_err();
        assert!(matches!(error, DbError::Newer { found: 99, .. }), "{error}");
        let raw = Connection::open(&path).unwrap();
        assert_eq!(raw.pragma_query_value::<i64, _>(None, "user_version", |row| row.get(0)).unwrap(), 99);
    }

    /// The scripts of the package read it there, while the daemon runs.
    #[tokio::test]
    async fn the_schema_stands_in_the_files_header_as_soon_as_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let _open = Db::open(&path).await.unwrap();
        let header = std::fs::read(&path).unwrap();
        assert_eq!(i64::from(u32::from_be_bytes(header[60..64].try_into().unwrap())), known());
    }

    #[tokio::test]
    async fn it_is_private_and_opens_twice_in_a_row() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        drop(Db::open(&path).await.unwrap());
        drop(Db::open(&path).await.unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        std::fs::write(&path, "hello, this is no database, it is a text of some length".repeat(40)).unwrap();
        assert!(matches!(Db::open(&path).await.unwrap_err(), DbError::Damaged { .. }));
    }
}
