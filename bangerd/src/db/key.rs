//! Public keys of users, which every VM of that user lets in.

use super::{Db, DbError, signed};
use banger_policy::access::Owner;
use banger_proto::time::Timestamp;
use rusqlite::params;

/// Keys of one user; the oldest make room.
const KEYS_PER_USER: u32 = 16;
/// A key that was brought again so soon after is not written again, seconds: a commit waits for the
/// disk.
const SOON: i64 = 60 * 60;

impl Db {
    /// Remembers a key; a known one is success.
    pub(crate) async fn add_key(&self, owner: Owner, public_key: String) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let now = signed(Timestamp::now().unix());
            let known = "SELECT 1 FROM user_keys WHERE owner = ?1 AND owner_name = ?2 AND public_key = ?3 AND added_at > ?4";
            if sql.prepare_cached(known)?.exists(params![owner.uid, owner.name, public_key, now - SOON])? {
                return Ok(());
            }
            sql.execute("INSERT OR REPLACE INTO user_keys VALUES (?1, ?2, ?3, ?4)", params![
                owner.uid, owner.name, public_key, now
            ])?;
            sql.execute(
                "DELETE FROM user_keys WHERE owner = ?1 AND owner_name = ?2 AND rowid NOT IN
                 (SELECT rowid FROM user_keys WHERE owner = ?1 AND owner_name = ?2 ORDER BY added_at DESC, rowid DESC LIMIT ?3)",
                params![owner.uid, owner.name, KEYS_PER_USER],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn keys(&self, owner: Owner) -> Result<Vec<String>, DbError> {
        self.read(move |sql| {
            let mut query = sql.prepare_cached(
                "SELECT public_key FROM user_keys WHERE owner = ?1 AND owner_name = ?2 ORDER BY added_at",
            )?;
            let rows = query.query_map(params![owner.uid, owner.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }
}
