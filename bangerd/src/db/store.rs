//! What images and kernels have in common: content by digest, names by owner. Content goes when it
//! has no name, no VM uses it, and no image names it as its kernel.

use super::{Db, DbError, Text, is_unique, signed, unsigned};
use banger_policy::Digest;
use banger_policy::access::Owner;
use banger_policy::quota::{self, Limited, UserLimits};
use rusqlite::{OptionalExtension as _, Transaction, params};

/// The tables of images, or of kernels. Its texts are ours: they become part of statements.
#[derive(Debug)]
pub(crate) struct Kind {
    /// `image`, `kernel`.
    pub(crate) word: &'static str,
    content: &'static str,
    names: &'static str,
    /// What the content takes on the disk, in its table.
    bytes: &'static str,
    /// Refers to the content, in the table of names and in those of its users.
    column: &'static str,
    /// The tables of what needs the content beside its names.
    users: Users,
    limited: Limited,
}

/// Tables, and what a row's name stands for.
type Users = &'static [(&'static str, fn(String) -> Thing)];

pub(crate) static IMAGES: Kind = Kind {
    word: "image",
    content: "images",
    names: "image_names",
    bytes: "allocated_bytes",
    column: "image_id",
    users: &[("vms", Thing::Vm)],
    limited: Limited::Images,
};
pub(crate) static KERNELS: Kind = Kind {
    word: "kernel",
    content: "kernels",
    names: "kernel_names",
    bytes: "size_bytes",
    column: "kernel_id",
    users: &[("vms", Thing::Vm), ("image_names", Thing::Image)],
    limited: Limited::Kernels,
};

/// For what a name stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) what: Thing,
    pub(crate) owner: Owner,
}

/// Something that needs content of the store, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Thing {
    Vm(String),
    /// VMs of it get this kernel.
    Image(String),
}

/// Of names, those that somebody may use, `?1` with the login name `?2`; all, when that is NULL.
pub(super) const SEEN: &str = "(?1 IS NULL OR shared OR (owner = ?1 AND owner_name = ?2))";

/// Every content that has a name of the owner, once, and what it takes; and what nobody has a name
/// for any more, but a VM or an image of the owner's still needs.
const STORED: &str = "WITH
    image_users AS (SELECT image_id AS id, owner, owner_name FROM vms
        WHERE image_id NOT IN (SELECT image_id FROM image_names)),
    kernel_users AS (SELECT kernel_id AS id, owner, owner_name FROM vms
        WHERE kernel_id NOT IN (SELECT kernel_id FROM kernel_names)
        UNION ALL SELECT kernel_id, owner, owner_name FROM image_names
        WHERE kernel_id NOT IN (SELECT kernel_id FROM kernel_names))
    SELECT coalesce(sum(bytes), 0) AS bytes FROM (
    SELECT allocated_bytes AS bytes FROM images
        WHERE id IN (SELECT image_id FROM image_names WHERE owner = ?1 AND owner_name = ?2)
        OR id IN (SELECT id FROM image_users WHERE owner = ?1 AND owner_name = ?2)
    UNION ALL
    SELECT size_bytes AS bytes FROM kernels
        WHERE id IN (SELECT kernel_id FROM kernel_names WHERE owner = ?1 AND owner_name = ?2)
        OR id IN (SELECT id FROM kernel_users WHERE owner = ?1 AND owner_name = ?2))";

/// May the owner have one more name? To be asked in the transaction that adds it.
pub(super) fn name_fits(sql: &Transaction<'_>, kind: &Kind, owner: &Owner, limits: &UserLimits) -> Result<(), DbError> {
    Ok(quota::fits(kind.limited, limits, names(sql, kind, owner)?, 1)?)
}

/// How many names the owner has.
pub(super) fn names(sql: &Transaction<'_>, kind: &Kind, owner: &Owner) -> Result<u64, DbError> {
    let count = format!("SELECT count(*) AS count FROM {} WHERE owner = ?1 AND owner_name = ?2", kind.names);
    Ok(sql.query_row(&count, params![owner.uid, owner.name], |row| unsigned(row, "count"))?)
}

/// Does all that the owner has stored fit? To be asked in the transaction that added something to
/// it.
pub(super) fn bytes_fit(sql: &Transaction<'_>, owner: &Owner, before: u64, limits: &UserLimits) -> Result<(), DbError> {
    let after = stored(sql, owner)?;
    Ok(quota::fits(Limited::Store, limits, before, after.saturating_sub(before))?)
}

pub(super) fn stored(sql: &Transaction<'_>, owner: &Owner) -> Result<u64, DbError> {
    Ok(sql.query_row(STORED, params![owner.uid, owner.name], |row| unsigned(row, "bytes"))?)
}

impl Db {
    /// What all that an owner has stored takes, bytes.
    pub(crate) async fn stored_by(&self, owner: Owner) -> Result<u64, DbError> {
        self.read(move |sql| stored(sql, &owner)).await
    }

    /// What content takes, as it was counted anew.
    pub(crate) async fn set_taken(&self, kind: &'static Kind, taken: Vec<(Digest, u64)>) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let Kind { content, bytes, .. } = kind;
            let mut update =
                sql.prepare(&format!("UPDATE {content} SET {bytes} = ?2 WHERE id = ?1 AND {bytes} != ?2"))?;
            for (id, bytes) in taken {
                update.execute(params![Text(id), signed(bytes)])?;
            }
            Ok(())
        })
        .await
    }

    /// Ids of all content.
    pub(crate) async fn contents(&self, kind: &'static Kind) -> Result<Vec<Digest>, DbError> {
        self.read(move |sql| {
            let mut query = sql.prepare(&format!("SELECT id FROM {}", kind.content))?;
            let ids = query.query_map([], |row| Ok(row.get::<_, Text<Digest>>(0)?.0))?.collect::<Result<_, _>>()?;
            Ok(ids)
        })
        .await
    }

    /// Lets everybody use the name, or only its owner again. False when the name no longer means
    /// `id`: its owner has pulled something else, or removed it.
    ///
    /// # Errors
    /// [`DbError::Taken`] when another entry of that name is shared.
    pub(crate) async fn share(
        &self,
        kind: &'static Kind,
        owner: Owner,
        name: String,
        id: Digest,
        shared: bool,
    ) -> Result<bool, DbError> {
        self.transaction(move |sql| {
            let Kind { names, column, .. } = kind;
            let update = format!(
                "UPDATE {names} SET shared = ?4 WHERE owner = ?1 AND owner_name = ?2 AND name = ?3 AND {column} = ?5"
            );
            let updated = sql.execute(&update, params![owner.uid, owner.name, name, shared, Text(id)]);
            updated
                .map(|rows| rows > 0)
                .map_err(|error| if is_unique(&error) { DbError::Taken(name) } else { error.into() })
        })
        .await
    }

    /// Removes a name. `Err(user)` when a VM of its owner's uses the content, or an image of its
    /// owner's names it as its kernel; or, of a shared one, anybody's. The content is another
    /// matter:
    /// [`Db::remove_unused`].
    pub(crate) async fn remove_name(
        &self,
        kind: &'static Kind,
        owner: Owner,
        name: String,
    ) -> Result<Result<(), User>, DbError> {
        self.transaction(move |sql| {
            let Kind { names, column, users, .. } = kind;
            let of_name = "owner = ?1 AND owner_name = ?2 AND name = ?3";
            for (table, thing) in *users {
                // The owner's own first: it is the one that may be told.
                let user = sql.query_row(
                    &format!(
                        "SELECT user.name, user.owner, user.owner_name FROM {table} AS user
                         JOIN {names} AS entry ON user.{column} = entry.{column}
                         WHERE entry.owner = ?1 AND entry.owner_name = ?2 AND entry.name = ?3
                         AND (entry.shared OR (user.owner = ?1 AND user.owner_name = ?2))
                         ORDER BY user.owner = ?1 AND user.owner_name = ?2 DESC LIMIT 1"
                    ),
                    params![owner.uid, owner.name, name],
                    |row| {
                        let owner = Owner { uid: row.get(1)?, name: row.get::<_, String>(2)?.into() };
                        Ok(User { what: thing(row.get(0)?), owner })
                    },
                );
                if let Some(user) = user.optional()? {
                    return Ok(Err(user));
                }
            }
            sql.execute(&format!("DELETE FROM {names} WHERE {of_name}"), params![owner.uid, owner.name, name])?;
            Ok(Ok(()))
        })
        .await
    }

    /// Content without a name that nothing uses.
    pub(crate) async fn unused(&self, kind: &'static Kind) -> Result<Vec<Digest>, DbError> {
        self.read(move |sql| {
            let mut query = sql.prepare(&format!("SELECT id FROM {} WHERE {}", kind.content, is_unused(kind)))?;
            let ids = query.query_map([], |row| Ok(row.get::<_, Text<Digest>>(0)?.0))?.collect::<Result<_, _>>()?;
            Ok(ids)
        })
        .await
    }

    /// Removes the record of content, if it is still unused. True when it was.
    pub(crate) async fn remove_unused(&self, kind: &'static Kind, id: Digest) -> Result<bool, DbError> {
        self.transaction(move |sql| {
            let delete = format!("DELETE FROM {} WHERE id = ?1 AND {}", kind.content, is_unused(kind));
            Ok(sql.execute(&delete, [Text(id)])? > 0)
        })
        .await
    }
}

fn is_unused(kind: &Kind) -> String {
    let Kind { names, column, users, .. } = kind;
    let mut text = format!("id NOT IN (SELECT {column} FROM {names})");
    for (table, _) in *users {
        // Not in a list with a NULL is never true.
        text.push_str(&format!(" AND id NOT IN (SELECT {column} FROM {table} WHERE {column} IS NOT NULL)"));
    }
    text
}
