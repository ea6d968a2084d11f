//! Public keys of users, which every VM of that user lets in.

use super::{Db, DbError, signed};
use banger_proto::time::Timestamp;
use rusqlite::params;

/// Keys of one user; the oldest make room.
const KEYS_PER_USER: u32 = 16;

impl Db {
    /// Remembers a key; a known one is success.
    pub(crate) async fn add_key(&self, owner: u32, public_key: String) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let now = signed(Timestamp::now().unix());
            sql.execute("INSERT OR REPLACE INTO user_keys VALUES (?1, ?2, ?3)", params![owner, public_key, now])?;
            sql.execute(
                "DELETE FROM user_keys WHERE owner = ?1 AND rowid NOT IN
                 (SELECT rowid FROM user_keys WHERE owner = ?1 ORDER BY added_at DESC, rowid DESC LIMIT ?2)",
                params![owner, KEYS_PER_USER],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn keys(&self, owner: u32) -> Result<Vec<String>, DbError> {
        self.transaction(move |sql| {
            let mut query =
                sql.prepare_cached("SELECT public_key FROM user_keys WHERE owner = ?1 ORDER BY added_at")?;
            let rows = query.query_map([owner], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }
}
