//! Rows of kernels.

use super::store::{KERNELS, SEEN, bytes_fit, name_fits, stored};
use super::{Db, DbError, Json, Text, is_unique, signed, time, unsigned};
use banger_policy::access::Owner;
use banger_policy::quota::UserLimits;
use banger_proto::model::KernelRecord;
use rusqlite::{Row, named_params, params};

impl Db {
    /// A name, and the content unless it is there.
    ///
    /// # Errors
    /// [`DbError::Taken`] when the owner has a kernel of that name, [`DbError::Limit`].
    pub(crate) async fn insert_kernel(&self, kernel: KernelRecord, limits: UserLimits) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let owner = Owner { uid: kernel.owner, name: kernel.owner_name.clone().into() };
            name_fits(sql, &KERNELS, &owner, &limits)?;
            let before = stored(sql, &owner)?;
            sql.execute(
                "INSERT INTO kernels (id, version, modules, size_bytes) VALUES (:id, :version, :modules, :size)
                 ON CONFLICT (id) DO NOTHING",
                named_params! {
                    ":id": Text(kernel.id), ":version": kernel.version, ":modules": Json(&kernel.modules), ":size": signed(kernel.size_bytes),
                },
            )?;
            sql.execute(
                "INSERT INTO kernel_names (owner, owner_name, name, kernel_id, shared, created_at)
                 VALUES (:owner, :owner_name, :name, :id, :shared, :created)",
                named_params! {
                    ":owner": kernel.owner, ":owner_name": kernel.owner_name, ":name": kernel.name.as_str(),
                    ":id": Text(kernel.id), ":shared": kernel.shared, ":created": signed(kernel.created_at.unix()),
                },
            )
            .map_err(|error| if is_unique(&error) { DbError::Taken(kernel.name.to_string()) } else { error.into() })?;
            bytes_fit(sql, &owner, before, &limits)
        })
        .await
    }

    /// The names of kernels that somebody may use, or all, newest first.
    pub(crate) async fn kernels(&self, by: Option<Owner>) -> Result<Vec<KernelRecord>, DbError> {
        self.read(move |sql| {
            let mut query = sql.prepare_cached(&format!(
                "SELECT * FROM kernel_names JOIN kernels ON kernels.id = kernel_names.kernel_id
                 WHERE {SEEN} ORDER BY created_at DESC, kernel_names.rowid DESC"
            ))?;
            let (uid, name) = by.map(|owner| (owner.uid, owner.name)).unzip();
            let rows = query.query_map(params![uid, name], row)?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }
}

fn row(row: &Row<'_>) -> rusqlite::Result<KernelRecord> {
    Ok(KernelRecord {
        id: row.get::<_, Text<_>>("id")?.0,
        name: row.get::<_, Text<_>>("name")?.0,
        owner: row.get("owner")?,
        owner_name: row.get("owner_name")?,
        shared: row.get("shared")?,
        version: row.get("version")?,
        modules: row.get::<_, Json<_>>("modules")?.0,
        size_bytes: unsigned(row, "size_bytes")?,
        created_at: time(row, "created_at")?,
    })
}
