//! VMs as DNS asks for them: by name, whoever they belong to, and by address. What a question reads
//! grows neither with the VMs of the host nor with what is kept of each.

use super::{Db, DbError, Text};
use banger_policy::access::Owner;
use banger_policy::net::AddressIndex;
use banger_policy::{VmId, VmName};
use rusqlite::{OptionalExtension as _, Row, params};
use std::net::Ipv4Addr;

impl Db {
    /// VMs of a name whose rows say that they run, one of each owner at most, and whose they are.
    pub(crate) async fn running_named(&self, name: VmName) -> Result<Vec<(VmId, Owner)>, DbError> {
        self.read(move |sql| {
            let mut query = sql.prepare_cached(
                "SELECT id, owner, owner_name FROM vms WHERE name = ?1 AND state = 'running' AND NOT making",
            )?;
            let rows = query.query_map([name.as_str()], whose)?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }

    /// The VM whose row says that it runs with an address. `index`: whose lease the address is.
    /// `known`: the VM that is known to hold the address, when there is one, which may be another
    /// one than that of the lease while VMs run with addresses of an earlier network.
    pub(crate) async fn running_at(
        &self,
        address: Ipv4Addr,
        index: Option<AddressIndex>,
        known: Option<VmId>,
    ) -> Result<Option<(VmId, Owner)>, DbError> {
        self.read(move |sql| {
            let mut query = sql.prepare_cached(
                "SELECT id, owner, owner_name FROM vms WHERE id = ifnull(?1, (SELECT vm_id FROM leases WHERE address_index = ?2))
                 AND state = 'running' AND NOT making AND ifnull(guest_ip, ?3) = ?3",
            )?;
            let index = index.map(AddressIndex::get);
            Ok(query.query_row(params![known.map(Text), index, address.to_string()], whose).optional()?)
        })
        .await
    }
}

fn whose(row: &Row<'_>) -> rusqlite::Result<(VmId, Owner)> {
    let owner_name: String = row.get("owner_name")?;
    Ok((row.get::<_, Text<_>>("id")?.0, Owner { uid: row.get("owner")?, name: owner_name.into() }))
}
