//! What users and the host have already, as the limits count it. To be asked in the transaction
//! that adds something: so of several requests at once, no two take the same room.

use super::{Db, DbError, Text, unsigned};
use crate::db::store::{IMAGES, KERNELS, Kind};
use banger_policy::VmId;
use banger_policy::access::Owner;
use banger_policy::quota::{self, HostLimits, Limited, UserLimits};
use banger_policy::shares::{COMMITTED_SQL, committed_mib};
use rusqlite::{Transaction, named_params, params};

/// What somebody has, or all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) vms: u64,
    /// And those that are being started, or will be after a reboot: see [`RUNS`].
    pub(crate) running: u64,
    pub(crate) disk: u64,
    /// Of those that count as running, bytes.
    pub(crate) memory: u64,
}

/// Rows that count as running. What the host's shutdown has ended and starts again keeps its room
/// until it runs, or until somebody stops it: else others would take it meanwhile.
const RUNS: &str = "(state = 'running' OR starting OR (restart = 'always' AND boot_id IS NOT NULL))";

impl Holdings {
    /// Without one VM, when that is asked for; `None`: of everybody.
    pub(super) fn of(sql: &Transaction<'_>, owner: Option<&Owner>, without: Option<VmId>) -> Result<Self, DbError> {
        let query = format!(
            "SELECT count(*) AS vms, coalesce(sum({RUNS}), 0) AS running,
             coalesce(sum(system_overlay_size_bytes + work_disk_size_bytes), 0) AS disk,
             coalesce(sum(CASE WHEN {RUNS} THEN {COMMITTED_SQL} ELSE 0 END), 0) AS memory
             FROM vms WHERE (:uid IS NULL OR (owner = :uid AND owner_name = :name)) AND (:vm IS NULL OR id != :vm)"
        );
        let (uid, name) = owner.map(|owner| (owner.uid, owner.name.clone())).unzip();
        let values = named_params! { ":uid": uid, ":name": name, ":vm": without.map(Text) };
        Ok(sql.query_row(&query, values, |row| {
            Ok(Self {
                vms: unsigned(row, "vms")?,
                running: unsigned(row, "running")?,
                disk: unsigned(row, "disk")?,
                memory: unsigned(row, "memory")?.saturating_mul(1 << 20),
            })
        })?)
    }
}

/// May a VM of this owner with so much memory run?
pub(super) fn may_run(
    sql: &Transaction<'_>,
    owner: &Owner,
    vm: Option<VmId>,
    memory_mib: u32,
    limits: &UserLimits,
    host: &HostLimits,
) -> Result<(), DbError> {
    let more = committed_mib(memory_mib).saturating_mul(1 << 20);
    let has = Holdings::of(sql, Some(owner), vm)?;
    quota::fits(Limited::Running, limits, has.running, 1)?;
    quota::fits(Limited::Memory, limits, has.memory, more)?;
    Ok(quota::host_fits(Limited::HostMemory, host, Holdings::of(sql, None, vm)?.memory, more)?)
}

/// May the disks of all VMs become so much larger?
pub(super) fn host_has_disk(sql: &Transaction<'_>, host: &HostLimits, more: u64) -> Result<(), DbError> {
    Ok(quota::host_fits(Limited::HostDisk, host, Holdings::of(sql, None, None)?.disk, more)?)
}

/// What one user has of everything that rows tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Has {
    pub(crate) owner: Owner,
    pub(crate) vms: Holdings,
    pub(crate) images: u64,
    pub(crate) kernels: u64,
    pub(crate) store: u64,
    pub(crate) ports: u64,
}

/// Everybody who has something.
const OWNERS: &str = "SELECT owner, owner_name FROM vms UNION SELECT owner, owner_name FROM image_names
    UNION SELECT owner, owner_name FROM kernel_names";

impl Db {
    /// What users have, ordered by number and name, after the one given; or one user, who may have
    /// nothing.
    pub(crate) async fn has(&self, one: Option<Owner>, after: Option<Owner>, limit: u32) -> Result<Vec<Has>, DbError> {
        self.read(move |sql| {
            let owners = match one {
                Some(owner) => vec![owner],
                None => {
                    let mut query = sql.prepare_cached(&format!(
                        "SELECT owner, owner_name FROM ({OWNERS})
                         WHERE ?1 IS NULL OR (owner, owner_name) > (?1, ?2) ORDER BY owner, owner_name LIMIT ?3"
                    ))?;
                    let (uid, name) = after.map(|owner| (owner.uid, owner.name)).unzip();
                    let owner =
                        |row: &rusqlite::Row<'_>| Ok(Owner { uid: row.get(0)?, name: row.get::<_, String>(1)?.into() });
                    query.query_map(params![uid, name, limit], owner)?.collect::<Result<Vec<_>, _>>()?
                }
            };
            let count = |kind: &Kind, owner: &Owner| super::store::names(sql, kind, owner);
            let all = owners.into_iter().map(|owner| {
                Ok(Has {
                    vms: Holdings::of(sql, Some(&owner), None)?,
                    images: count(&IMAGES, &owner)?,
                    kernels: count(&KERNELS, &owner)?,
                    store: super::store::stored(sql, &owner)?,
                    ports: super::ports::published(sql, &owner)?,
                    owner,
                })
            });
            all.collect()
        })
        .await
    }

    /// What all have together.
    pub(crate) async fn host_has(&self) -> Result<Holdings, DbError> {
        self.read(|sql| Holdings::of(sql, None, None)).await
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::lifecycle::State;
    use rusqlite::Connection;

    const ALICE: Owner = Owner { uid: 1001, name: std::borrow::Cow::Borrowed("alice") };

    /// A row of each owner in each state, being started or not.
    fn rows(sql: &Connection) {
        sql.execute_batch(
            "INSERT INTO images (id, build_size, allocated_bytes, docker) VALUES ('i', 1, 1, 0);
             INSERT INTO kernels (id, version, modules, size_bytes) VALUES ('k', '6', '[]', 1);",
        )
        .unwrap();
        let mut number = 0;
        for (owner, name) in [(1001, "alice"), (1001, "carol"), (1002, "bob")] {
            for state in State::ALL {
                for starting in [false, true] {
                    number += 1;
                    sql.execute(
                        "INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, starting,
                         created_at, updated_at, last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes,
                         work_disk_size_bytes, nat_enabled)
                         VALUES (?1, ?2, ?3, ?1, 'i', 'i', 'k', ?4, 0, ?5, 1, 1, 1, 1, 256, 100, 11, 0)",
                        params![format!("{number:064x}"), owner, name, state.as_str(), starting],
                    )
                    .unwrap();
                }
            }
        }
    }

    #[tokio::test]
    async fn rows_by_limits_the_last_one_fits_and_the_next_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let db = Db::open(&path).await.unwrap();
        rows(&Connection::open(&path).unwrap());
        // Four states, each once being started: those four and the one that runs count, of three
        // owners.
        let each = 276 << 20;
        let has = db.has(Some(ALICE), None, 1).await.unwrap().remove(0);
        assert_eq!(has.vms, Holdings { vms: 8, running: 5, disk: 888, memory: 5 * each });
        assert_eq!(db.host_has().await.unwrap(), Holdings { vms: 24, running: 15, disk: 2664, memory: 15 * each });
        let owners: Vec<_> = db.has(None, None, 9).await.unwrap().into_iter().map(|has| has.owner.name).collect();
        assert_eq!(owners, ["alice", "carol", "bob"]);
        let after = db.has(None, Some(ALICE), 1).await.unwrap();
        assert_eq!(after.first().map(|has| &*has.owner.name), Some("carol"));

        let (user, host) = (UserLimits::NONE, HostLimits::NONE);
        // What ran when the host went down, and is to run again, counts.
        let waits = |restart: &str, boot: Option<&str>| {
            let update = "UPDATE vms SET restart = ?1, boot_id = ?2 WHERE owner_name = 'alice' AND state = 'stopped' AND NOT starting";
            Connection::open(&path).unwrap().execute(update, params![restart, boot]).unwrap()
        };
        for (restart, boot, running) in
            [("always", Some("earlier"), 6), ("no", Some("earlier"), 5), ("always", None, 5)]
        {
            assert_eq!(waits(restart, boot), 1);
            let has = db.has(Some(ALICE), None, 1).await.unwrap().remove(0).vms;
            assert_eq!((has.running, has.memory), (running, running * each), "{restart} {boot:?}");
        }
        for (user, host, refused) in [
            (user, host, None),
            (UserLimits { running: 6, ..user }, host, None),
            (UserLimits { running: 5, ..user }, host, Some(Limited::Running)),
            (UserLimits { memory: 6 * each, ..user }, host, None),
            (UserLimits { memory: 6 * each - 1, ..user }, host, Some(Limited::Memory)),
            (user, HostLimits { memory: 16 * each, ..host }, None),
            (user, HostLimits { memory: 16 * each - 1, ..host }, Some(Limited::HostMemory)),
        ] {
            let asked = db.read(move |sql| may_run(sql, &ALICE, None, 256, &user, &host)).await;
            let what = match asked {
                Ok(()) => None,
                Err(DbError::Limit(why)) => Some(why.what()),
                Err(other) => unreachable!("{other}"),
            };
            assert_eq!(what, refused, "{user:?} {host:?}");
        }
        for (disk, fits) in [(2667, true), (2666, false)] {
            let host = HostLimits { disk, ..host };
            assert_eq!(db.read(move |sql| host_has_disk(sql, &host, 3)).await.is_ok(), fits, "{disk}");
        }
    }
}
