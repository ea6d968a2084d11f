//! The history of jobs: enough that a client which comes back after a restart of the daemon learns
//! the end.

use super::{Db, DbError, signed, time, unsigned};
use banger_policy::access::Owner;
use banger_proto::time::Timestamp;
use rusqlite::params;

/// Rows of one user that are kept.
const HISTORY: u32 = 64;

/// A job of an earlier run of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PastJob {
    pub(crate) id: u64,
    pub(crate) owner: Owner,
    pub(crate) title: String,
    pub(crate) started_at: Timestamp,
    /// `done`, `failed`, `cancelled`; `None` when the daemon ended before the job did.
    pub(crate) outcome: Option<String>,
    pub(crate) message: String,
}

impl Db {
    /// A job begins. Nobody waits for the record; beginning and end are written in their order.
    pub(crate) fn record_job(&self, id: u64, owner: Owner, title: String) {
        let now = signed(Timestamp::now().unix());
        self.post("a job", move |sql| {
            sql.execute(
                "INSERT INTO jobs (id, owner, owner_name, title, started_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![signed(id), owner.uid, owner.name, title, now],
            )?;
            let oldest = "DELETE FROM jobs WHERE owner = ?1 AND owner_name = ?2 AND id NOT IN
                (SELECT id FROM jobs WHERE owner = ?1 AND owner_name = ?2 ORDER BY id DESC LIMIT ?3)";
            sql.execute(oldest, params![owner.uid, owner.name, HISTORY]).map(drop)
        });
    }

    /// A job ended.
    pub(crate) fn record_job_end(&self, id: u64, outcome: &'static str, message: String) {
        let now = signed(Timestamp::now().unix());
        self.post("the end of a job", move |sql| {
            let row = params![signed(id), outcome, message, now];
            sql.execute("UPDATE jobs SET outcome = ?2, message = ?3, ended_at = ?4 WHERE id = ?1", row).map(drop)
        });
    }

    /// All that are kept, oldest first.
    pub(crate) async fn past_jobs(&self) -> Result<Vec<PastJob>, DbError> {
        self.transaction(move |sql| {
            let mut query = sql.prepare("SELECT * FROM jobs ORDER BY id")?;
            let rows = query.query_map([], |row| {
                Ok(PastJob {
                    id: unsigned(row, "id")?,
                    owner: Owner { uid: row.get("owner")?, name: row.get::<_, String>("owner_name")?.into() },
                    title: row.get("title")?,
                    started_at: time(row, "started_at")?,
                    outcome: row.get("outcome")?,
                    message: row.get("message")?,
                })
            })?;
            let rows = rows.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }
}
