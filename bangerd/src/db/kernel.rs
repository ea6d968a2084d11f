//! Rows of kernels.

use super::{Db, DbError, Text, is_unique, signed, time, unsigned};
use banger_policy::Digest;
use banger_proto::model::KernelRecord;
use rusqlite::types::Type;
use rusqlite::{Row, named_params};

impl Db {
    /// # Errors
    /// [`DbError::Taken`] when the name or the very same content is there already.
    pub(crate) async fn insert_kernel(&self, kernel: KernelRecord) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let modules = serde_json::to_string(&kernel.modules)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            sql.execute(
                "INSERT INTO kernels (id, name, owner, version, modules, size_bytes, created_at)
                 VALUES (:id, :name, :owner, :version, :modules, :size, :created)",
                named_params! {
                    ":id": Text(kernel.id), ":name": kernel.name.as_str(), ":owner": kernel.owner, ":version": kernel.version,
                    ":modules": modules, ":size": signed(kernel.size_bytes), ":created": signed(kernel.created_at.unix()),
                },
            )
            .map_err(|error| if is_unique(&error) { DbError::Taken(kernel.name.to_string()) } else { error.into() })?;
            Ok(())
        })
        .await
    }

    /// All kernels, newest first.
    pub(crate) async fn kernels(&self) -> Result<Vec<KernelRecord>, DbError> {
        self.transaction(move |sql| {
            let mut query = sql.prepare_cached("SELECT * FROM kernels ORDER BY created_at DESC, rowid DESC")?;
            let rows = query.query_map([], row)?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }

    /// Removes the row. `Err(name)` when a VM uses it, whose name it says.
    pub(crate) async fn delete_kernel(&self, kernel: Digest) -> Result<Result<(), String>, DbError> {
        self.transaction(move |sql| super::delete_unused(sql, "kernels", "kernel_id", kernel)).await
    }
}

fn row(row: &Row<'_>) -> rusqlite::Result<KernelRecord> {
    let modules: String = row.get("modules")?;
    let modules = serde_json::from_str(&modules)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))?;
    Ok(KernelRecord {
        id: row.get::<_, Text<_>>("id")?.0,
        name: row.get::<_, Text<_>>("name")?.0,
        owner: row.get("owner")?,
        version: row.get("version")?,
        modules,
        size_bytes: unsigned(row, "size_bytes")?,
        created_at: time(row, "created_at")?,
    })
}
