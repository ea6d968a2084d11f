//! Ports that are published, by VM: gone with it, and when it is given away.

use super::{Db, DbError, Json, Text, unsigned};
use banger_policy::VmId;
use banger_policy::access::Owner;
use banger_policy::publish::Published;
use banger_policy::quota::{self, Limited, UserLimits};
use rusqlite::{Transaction, params};

/// A published port, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) vm: String,
    pub(crate) owner: Owner,
    pub(crate) published: Published,
}

/// How many ports a user has published.
pub(super) fn published(sql: &Transaction<'_>, owner: &Owner) -> Result<u64, DbError> {
    Ok(sql.query_row(
        "SELECT count(*) AS ports FROM published_ports JOIN vms ON vms.id = vm_id WHERE owner = ?1 AND owner_name = ?2",
        params![owner.uid, owner.name],
        |row| unsigned(row, "ports"),
    )?)
}

impl Db {
    /// All that are published on this host, of VMs that run or not.
    pub(crate) async fn published(&self) -> Result<Vec<Taken>, DbError> {
        self.read(all).await
    }

    /// Publishes ports of a VM, all or none.
    ///
    /// # Errors
    /// [`DbError::PortTaken`] with the one that another row excludes, and [`DbError::Limit`].
    pub(crate) async fn publish(&self, vm: VmId, ports: Vec<Published>, limits: UserLimits) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let owner = super::vm::owner_of(sql, vm)?;
            let has = published(sql, &owner)?;
            quota::fits(Limited::Ports, &limits, has, u64::try_from(ports.len()).unwrap_or(u64::MAX))?;
            let mut taken = all(sql)?;
            for port in ports {
                if let Some(other) = taken.iter().find(|other| other.published.excludes(&port)) {
                    return Err(DbError::PortTaken(Box::new(other.clone())));
                }
                sql.execute(
                    "INSERT INTO published_ports VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        Text(vm),
                        port.protocol.as_str(),
                        port.address.to_string(),
                        port.host_port,
                        port.guest_port,
                        port.public,
                        port.proxy_protocol
                    ],
                )?;
                taken.push(Taken { vm: vm.to_string(), owner: owner.clone(), published: port });
            }
            Ok(())
        })
        .await
    }

    /// Takes ports of a VM back. Gone is fine.
    pub(crate) async fn unpublish(&self, vm: VmId, ports: Vec<Published>) -> Result<(), DbError> {
        self.transaction(move |sql| {
            for port in ports {
                sql.execute(
                    "DELETE FROM published_ports WHERE vm_id = ?1 AND protocol = ?2 AND address = ?3 AND host_port = ?4",
                    params![Text(vm), port.protocol.as_str(), port.address.to_string(), port.host_port],
                )?;
            }
            Ok(())
        })
        .await
    }
}

/// Of a VM that gets another owner.
pub(super) fn withdraw_all(sql: &Transaction<'_>, vm: VmId) -> Result<(), DbError> {
    sql.execute("DELETE FROM published_ports WHERE vm_id = ?1", [Text(vm)])?;
    Ok(())
}

fn all(sql: &Transaction<'_>) -> Result<Vec<Taken>, DbError> {
    let mut query = sql.prepare_cached(
        "SELECT name, owner, owner_name, json_object('protocol', protocol, 'address', address, 'host_port', host_port,
            'guest_port', guest_port, 'public', json(iif(public, 'true', 'false')),
            'proxy_protocol', json(iif(proxy_protocol, 'true', 'false'))) AS published
         FROM published_ports JOIN vms ON vms.id = vm_id",
    )?;
    let rows = query.query_map([], |row| {
        Ok(Taken {
            vm: row.get("name")?,
            owner: Owner { uid: row.get("owner")?, name: row.get::<_, String>("owner_name")?.into() },
            published: row.get::<_, Json<_>>("published")?.0,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::Digest;
    use banger_policy::publish::Protocol;

    fn port(address: &str, host_port: u16) -> Published {
        let address = address.parse().unwrap();
        Published { protocol: Protocol::Tcp, address, host_port, guest_port: 80, public: true, proxy_protocol: false }
    }

    #[tokio::test]
    async fn a_vm_of_before_gets_ports_which_go_with_it_and_when_it_is_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let content = Digest::from_bytes([4; 32]).unwrap();
        let [one, two] = [5, 6].map(|byte| VmId::from_bytes([byte; 32]).unwrap());
        let old = crate::db::tests::of_schema(&path, 6);
        old.execute_batch(&format!(
            "INSERT INTO images VALUES ('{content}', 1, 2, 0); INSERT INTO kernels VALUES ('{content}', '6.12', '[]', 1);"
        ))
        .unwrap();
        for (index, (vm, owner, name)) in [(one, 1001, "alice"), (two, 1002, "bob")].into_iter().enumerate() {
            old.execute_batch(&format!(
                "INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at,
                 updated_at, last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes,
                 nat_enabled) VALUES ('{vm}', {owner}, '{name}', 'demo{index}', '{content}', 'debian:13', '{content}', 'stopped', 0,
                 1, 1, 1, 1, 128, 134217728, 33554432, 0);
                 INSERT INTO leases (address_index, vm_id) VALUES ({index} + 2, '{vm}');"
            ))
            .unwrap();
        }
        drop(old);
        let db = Db::open(&path).await.unwrap();
        assert_eq!(db.vm(one).await.unwrap().unwrap().published, []);
        let limits = UserLimits { ports: 2, ..UserLimits::BUILT_IN };
        let both = vec![port("127.0.0.2", 9000), port("127.0.0.1", 8080)];
        db.publish(one, both.clone(), limits).await.unwrap();
        assert_eq!(db.vm(one).await.unwrap().unwrap().published, both);
        let full = db.publish(one, vec![port("127.0.0.1", 8081)], limits).await.unwrap_err();
        assert!(matches!(full, DbError::Limit(_)), "{full}");
        // All or none, and everywhere excludes each address.
        let clash = db.publish(two, vec![port("127.0.0.1", 7000), port("0.0.0.0", 9000)], limits).await.unwrap_err();
        assert!(
            matches!(&clash, DbError::PortTaken(taken) if taken.vm == "demo0" && taken.owner.uid == 1001),
            "{clash}"
        );
        assert_eq!(db.vm(two).await.unwrap().unwrap().published, []);
        db.unpublish(two, both.clone()).await.unwrap();
        db.unpublish(one, vec![both[0]]).await.unwrap();
        assert_eq!(db.vm(one).await.unwrap().unwrap().published, [both[1]]);
        db.give_vm(one, Owner { uid: 1002, name: "bob".into() }, UserLimits::NONE).await.unwrap();
        assert_eq!(db.published().await.unwrap(), []);
        db.publish(one, both, limits).await.unwrap();
        db.delete_vm(one).await.unwrap();
        assert_eq!(db.published().await.unwrap(), []);
    }
}
