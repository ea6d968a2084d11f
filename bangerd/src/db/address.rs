//! Addresses of VMs when the network is another one than it was: which VM needs another lease.

use super::{Db, DbError, Text};
use crate::net::lease;
use banger_policy::VmId;
use banger_policy::net::{AddressIndex, Network};
use rusqlite::{OptionalExtension as _, Transaction, params};
use std::net::Ipv4Addr;

impl Db {
    /// The address index with which a VM is started in this network: the one that it has, unless
    /// the network has no such address, a VM that runs with an address of an earlier network has
    /// that address, or it is among the `foreign` ones, to which something else of the host has a
    /// route. Then the lowest free one is leased.
    ///
    /// # Errors
    /// [`DbError::NoAddress`] when all are taken.
    pub(crate) async fn lease_again(
        &self,
        vm: VmId,
        network: Network,
        foreign: Vec<Ipv4Addr>,
    ) -> Result<AddressIndex, DbError> {
        self.transaction(move |sql| {
            let had = "SELECT address_index FROM leases WHERE vm_id = ?1";
            let had: u32 = sql.query_row(had, [Text(vm)], |row| row.get(0))?;
            if let Ok(index) = network.index(had)
                && !is_used(sql, vm, network.guest(index))?
                && !foreign.contains(&network.guest(index))
            {
                return Ok(index);
            }
            let index = lowest_free(sql, network, &foreign)?;
            sql.execute("UPDATE leases SET address_index = ?2 WHERE vm_id = ?1", params![Text(vm), index.get()])?;
            Ok(index)
        })
        .await
    }
}

/// Does another VM run with it?
fn is_used(sql: &Transaction<'_>, vm: VmId, address: Ipv4Addr) -> Result<bool, DbError> {
    let other = "SELECT 1 FROM vms WHERE guest_ip = ?2 AND id != ?1";
    let other = sql.query_row(other, params![Text(vm), address.to_string()], |_| Ok(())).optional()?;
    Ok(other.is_some())
}

/// The lowest index without a lease, without a VM that still runs with its address, and whose
/// address is not `foreign`.
pub(super) fn lowest_free(
    sql: &Transaction<'_>,
    network: Network,
    foreign: &[Ipv4Addr],
) -> Result<AddressIndex, DbError> {
    let mut query = sql.prepare_cached("SELECT address_index FROM leases")?;
    let mut taken = query.query_map([], |row| row.get::<_, u32>(0))?.collect::<Result<Vec<_>, _>>()?;
    let mut query = sql.prepare_cached("SELECT guest_ip FROM vms WHERE guest_ip IS NOT NULL")?;
    let used = query.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    let used = used.iter().filter_map(|address| address.parse().ok()).chain(foreign.iter().copied());
    let used = used.filter_map(|address| network.index_of(address));
    taken.extend(used.map(|index| u32::from(index.get())));
    taken.sort_unstable();
    lease::lowest_free(&taken, network).ok_or_else(|| DbError::NoAddress(network.guests()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::tests::of_schema;
    use super::*;

    const BEFORE: usize = 5;

    /// Two VMs of before the column came, with the leases 3 and 200.
    async fn before(dir: &tempfile::TempDir) -> (Db, [VmId; 2]) {
        let path = dir.path().join("banger.db");
        let ids = [1, 2].map(|byte| VmId::from_bytes([byte; 32]).unwrap());
        let raw = of_schema(&path, BEFORE);
        for (id, lease) in ids.iter().zip([3, 200]) {
            let row = format!(
                "PRAGMA foreign_keys = off; INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state,
                 making, created_at, updated_at, last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes,
                 work_disk_size_bytes, nat_enabled) VALUES ('{id}', 1, 'alice', 'vm{lease}', 'ii', 'i', 'kk', 'stopped', 0, 1, 1, 1,
                 1, 1, 1, 1, 0); INSERT INTO leases (address_index, vm_id) VALUES ({lease}, '{id}')"
            );
            raw.execute_batch(&row).unwrap();
        }
        drop(raw);
        (Db::open(&path).await.unwrap(), ids)
    }

    fn network(gateway: [u8; 4], prefix: u8) -> Network {
        Network::new(gateway.into(), prefix).unwrap()
    }

    #[tokio::test]
    async fn a_vm_of_before_keeps_its_lease_where_the_network_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (db, [first, last]) = before(&dir).await;
        let wide = network([172, 16, 0, 1], 24);
        assert_eq!(db.lease_again(first, wide, Vec::new()).await.unwrap().get(), 3);
        assert_eq!(db.lease_again(last, wide, Vec::new()).await.unwrap().get(), 200);
        // A smaller one: the lowest that is free, and that one from then on.
        let small = network([10, 9, 0, 1], 29);
        assert_eq!(db.lease_again(last, small, Vec::new()).await.unwrap().get(), 1);
        assert_eq!(db.lease_again(last, small, Vec::new()).await.unwrap().get(), 1);
        assert_eq!(db.lease_again(first, small, Vec::new()).await.unwrap().get(), 3);
    }

    #[tokio::test]
    async fn no_vm_gets_the_address_with_which_another_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (db, [first, last]) = before(&dir).await;
        // It runs since the network was 172.16.0.0/16, with what is now the address of index 3.
        let running =
            crate::held::Handles { guest_ip: Some([172, 16, 1, 4].into()), ..crate::held::Handles::default() };
        db.set_vm_mirror(last, running).await.unwrap();
        let now = network([172, 16, 1, 1], 24);
        assert_eq!(db.lease_again(first, now, Vec::new()).await.unwrap().get(), 1);
        db.set_vm_mirror(last, crate::held::Handles::default()).await.unwrap();
        assert_eq!(db.lease_again(first, now, Vec::new()).await.unwrap().get(), 1, "it stays");
    }

    #[tokio::test]
    async fn no_vm_gets_an_address_that_a_route_of_the_host_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (db, [first, _]) = before(&dir).await;
        let network = network([172, 16, 0, 1], 24);
        let foreign = |last: &[u8]| last.iter().map(|last| Ipv4Addr::new(172, 16, 0, *last)).collect::<Vec<_>>();
        assert_eq!(db.lease_again(first, network, foreign(&[2, 5])).await.unwrap().get(), 3);
        assert_eq!(db.lease_again(first, network, foreign(&[2, 4])).await.unwrap().get(), 2);
        assert_eq!(db.lease_again(first, network, Vec::new()).await.unwrap().get(), 2, "it stays");
    }

    #[tokio::test]
    async fn a_network_without_room_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (db, [_, last]) = before(&dir).await;
        let sql = db.lease_again(last, network([10, 9, 0, 1], 30), Vec::new()).await.unwrap();
        assert_eq!(sql.get(), 1);
        let first = VmId::from_bytes([1; 32]).unwrap();
        let refused = db.lease_again(first, network([10, 9, 0, 1], 30), Vec::new()).await;
        assert!(matches!(refused, Err(DbError::NoAddress(1))), "{refused:?}");
    }
}
