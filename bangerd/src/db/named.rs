//! VMs as DNS asks for them: by name, whoever they belong to, and by address.

use super::vm::{SELECT, VmRow, row};
use super::{Db, DbError};
use banger_policy::VmName;

impl Db {
    /// All VMs of a name, one of each owner at most.
    pub(crate) async fn vms_named(&self, name: VmName) -> Result<Vec<VmRow>, DbError> {
        self.read(move |sql| {
            let mut query = sql.prepare_cached(&format!("{SELECT} WHERE vms.name = ?1"))?;
            let rows = query.query_map([name.as_str()], row)?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }
}
