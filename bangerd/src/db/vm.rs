//! Rows of VMs and their leases.

use super::holdings::{Holdings, host_has_disk, may_run};
use super::{Db, DbError, Json, Text, address, is_reference, is_unique, signed, time, unsigned};
use crate::held::Handles;
use banger_policy::access::{Owner, Peer};
use banger_policy::lifecycle::State;
use banger_policy::limits::ID_DIGITS_OF_OTHERS;
use banger_policy::net::Network;
use banger_policy::network::VmNetwork;
use banger_policy::publish::Published;
use banger_policy::quota::{self, HostLimits, Limited, UserLimits};
use banger_policy::reach::Mode;
use banger_policy::vm::{CheckedSpec, RestartPolicy};
use banger_policy::{Digest, ImageConfig, ImageName, VmId, VmName};
use banger_proto::model::{VmSpec, Workspace};
use banger_proto::time::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params, params};

/// The durable facts of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmRow {
    pub(crate) id: VmId,
    pub(crate) owner: u32,
    pub(crate) owner_name: String,
    pub(crate) name: VmName,
    pub(crate) image_id: Digest,
    pub(crate) image_name: ImageName,
    /// The image's when the VM was made.
    pub(crate) image_config: ImageConfig,
    pub(crate) kernel_id: Digest,
    pub(crate) state: State,
    /// The creation has not come to its end, or the removal has begun.
    pub(crate) making: bool,
    pub(crate) last_error: String,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) last_touched_at: Timestamp,
    pub(crate) restart: RestartPolicy,
    /// The boot of the host in which it runs, or ran until the host went down.
    pub(crate) boot_id: Option<String>,
    pub(crate) spec: VmSpec,
    /// The copy of its handles, without the pid.
    pub(crate) mirror: Handles,
    /// The raw address index; [`Network::index`] checks it.
    pub(crate) address_index: u32,
    /// What the owner has prepared in it.
    pub(crate) workspace: Option<Workspace>,
    /// How far its guest reaches; `spec.nat_enabled` follows from it.
    pub(crate) network: VmNetwork,
    /// Its ports on the host, in the order in which they were published.
    pub(crate) published: Vec<Published>,
}

impl VmRow {
    /// The host's shutdown has ended it, and it is to be started again.
    pub(crate) fn waits_to_run(&self) -> bool {
        self.state != State::Running && self.restart == RestartPolicy::Always && self.boot_id.is_some()
    }

    /// Whose it is.
    pub(crate) fn who(&self) -> Owner {
        Owner { uid: self.owner, name: self.owner_name.clone().into() }
    }
}

/// What a new row is made from.
#[derive(Clone, Debug)]
pub(crate) struct NewVm {
    pub(crate) id: VmId,
    pub(crate) owner: Owner,
    pub(crate) name: VmName,
    pub(crate) image_id: Digest,
    pub(crate) image_name: ImageName,
    pub(crate) image_config: ImageConfig,
    pub(crate) kernel_id: Digest,
    pub(crate) spec: CheckedSpec,
    pub(crate) network: VmNetwork,
    pub(crate) restart: RestartPolicy,
    /// It is started as soon as it is made.
    pub(crate) starts: bool,
}

pub(super) const SELECT: &str = "SELECT vms.*, leases.address_index,
    (SELECT json_group_array(json_object('protocol', protocol, 'address', address, 'host_port', host_port, 'guest_port', guest_port,
        'public', json(iif(public, 'true', 'false')), 'proxy_protocol', json(iif(proxy_protocol, 'true', 'false'))) ORDER BY rowid)
     FROM published_ports WHERE vm_id = vms.id) AS published
    FROM vms JOIN leases ON leases.vm_id = vms.id";

impl Db {
    /// Writes the row, still marked as being made, and leases the lowest free address: the intent
    /// that comes before anything is made.
    ///
    /// # Errors
    /// [`DbError::Taken`] when the owner has a VM of that name, [`DbError::Limit`],
    /// [`DbError::NoAddress`], and [`DbError::Gone`] when image or kernel were removed meanwhile.
    pub(crate) async fn insert_vm(
        &self,
        vm: NewVm,
        network: Network,
        limits: UserLimits,
        host: HostLimits,
    ) -> Result<VmRow, DbError> {
        self.transaction(move |sql| {
            let now = signed(Timestamp::now().unix());
            let has = Holdings::of(sql, Some(&vm.owner), None)?;
            quota::fits(Limited::Vms, &limits, has.vms, 1)?;
            let disk = vm.spec.root_bytes().saturating_add(vm.spec.work_disk_bytes());
            quota::fits(Limited::Disk, &limits, has.disk, disk)?;
            host_has_disk(sql, &host, disk)?;
            if vm.starts {
                may_run(sql, &vm.owner, None, vm.spec.memory_mib(), &limits, &host)?;
            }
            sql.execute(
                "INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, starting, created_at,
                 updated_at, last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, nat_enabled,
                 restart, image_config, network)
                 VALUES (:id, :owner, :owner_name, :name, :image_id, :image_name, :kernel_id, 'created', 1, :starts, :now, :now, :now,
                 :vcpus, :memory, :overlay, :work, :nat, :restart, :image_config,
                 :network)",
                named_params! {
                    ":id": Text(vm.id), ":owner": vm.owner.uid, ":owner_name": vm.owner.name, ":name": vm.name.as_str(),
                    ":starts": vm.starts,
                    ":image_id": Text(vm.image_id), ":image_name": vm.image_name.as_str(), ":kernel_id": Text(vm.kernel_id),
                    ":now": now, ":vcpus": vm.spec.vcpus(), ":memory": vm.spec.memory_mib(),
                    ":overlay": signed(vm.spec.root_bytes()), ":work": signed(vm.spec.work_disk_bytes()), 
                    ":nat": vm.network.mode == Mode::Nat, ":network": Json(&vm.network),
                    ":restart": vm.restart.as_str(), ":image_config": Json(&vm.image_config),
                },
            )
            .map_err(|error| match error {
                error if is_unique(&error) => DbError::Taken(vm.name.to_string()),
                error if is_reference(&error) => DbError::Gone,
                error => error.into(),
            })?;
            let index = address::lowest_free(sql, network, &[])?;
            sql.execute("INSERT INTO leases (address_index, vm_id) VALUES (?1, ?2)", params![index.get(), Text(vm.id)])?;
            Ok(sql.query_row(&format!("{SELECT} WHERE vms.id = ?1"), [Text(vm.id)], row)?)
        })
        .await
    }

    pub(crate) async fn vm(&self, vm: VmId) -> Result<Option<VmRow>, DbError> {
        self.read(move |sql| Ok(sql.query_row(&format!("{SELECT} WHERE vms.id = ?1"), [Text(vm)], row).optional()?))
            .await
    }

    /// VMs of one owner, or of all, ordered by id, after the one given.
    pub(crate) async fn vms(
        &self,
        owner: Option<Owner>,
        after: Option<VmId>,
        limit: u32,
    ) -> Result<Vec<VmRow>, DbError> {
        self.read(move |sql| {
            let after = after.map_or_else(String::new, |id| id.to_string());
            let mut query = sql.prepare_cached(&format!(
                "{SELECT} WHERE vms.id > ?1 AND (?2 IS NULL OR (owner = ?2 AND owner_name = ?3)) ORDER BY vms.id LIMIT ?4"
            ))?;
            let (uid, name) = owner.map(|owner| (owner.uid, owner.name)).unzip();
            let rows = query.query_map(params![after, uid, name, limit], row)?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }

    /// What a word may mean to somebody: their VM of that exact name, else, for an administrator,
    /// another user's as `user/name`, else by id or prefix of an id; another user's by
    /// [`ID_DIGITS_OF_OTHERS`] of it at least. A bare name never means another user's VM. At most
    /// two, which is enough to know that it is ambiguous.
    pub(crate) async fn find_vms(&self, peer: &Peer, word: String) -> Result<Vec<VmRow>, DbError> {
        let (caller, everyone) = (peer.owner(), peer.admin);
        self.read(move |sql| {
            let own = sql.query_row(
                &format!("{SELECT} WHERE name = ?1 AND owner = ?2 AND owner_name = ?3 AND ?3 != ''"),
                params![word, caller.uid, caller.name],
                row,
            );
            if let Some(own) = own.optional()? {
                return Ok(vec![own]);
            }
            if let Some((user, name)) = word.split_once('/') {
                let mut query = sql.prepare_cached(&format!(
                    "{SELECT} WHERE owner_name = ?1 AND name = ?2 AND (?3 OR (owner = ?4 AND owner_name = ?5)) LIMIT 2"
                ))?;
                let found = params![user, name, everyone, caller.uid, caller.name];
                let rows = query.query_map(found, row)?.collect::<Result<_, _>>()?;
                return Ok(rows);
            }
            let is_prefix = !word.is_empty() && word.len() <= 64 && word.bytes().all(|c| c.is_ascii_hexdigit());
            if !is_prefix {
                return Ok(Vec::new());
            }
            let mut query = sql.prepare_cached(&format!(
                "{SELECT} WHERE substr(vms.id, 1, length(?1)) = ?1 AND (?2 OR (owner = ?3 AND owner_name = ?4 AND ?4 != ''))
                 ORDER BY vms.id LIMIT 2"
            ))?;
            let everyone = everyone && word.len() >= ID_DIGITS_OF_OTHERS;
            let found = params![word, everyone, caller.uid, caller.name];
            let rows = query.query_map(found, row)?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }

    /// The state, its reason, the host's boot that it belongs to, and the mirror, in one step.
    pub(crate) async fn set_vm_state(
        &self,
        vm: VmId,
        state: State,
        last_error: String,
        boot_id: Option<String>,
        mirror: Handles,
    ) -> Result<(), DbError> {
        self.transaction(move |sql| {
            set_mirror(sql, vm, &mirror)?;
            // A VM that runs has been made, whatever else its creation had to do.
            sql.execute(
                "UPDATE vms SET state = ?2, last_error = ?3, boot_id = ?4, starting = 0, making = making AND ?2 != 'running' WHERE id = ?1",
                params![Text(vm), state.as_str(), last_error, boot_id],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn set_vm_mirror(&self, vm: VmId, mirror: Handles) -> Result<(), DbError> {
        self.transaction(move |sql| set_mirror(sql, vm, &mirror)).await
    }

    /// From now on it counts as running for its owner's limits, until its state is written.
    ///
    /// # Errors
    /// [`DbError::Limit`].
    pub(crate) async fn begin_start(&self, vm: VmId, limits: UserLimits, host: HostLimits) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let memory = "SELECT memory_mib FROM vms WHERE id = ?1";
            let memory: u32 = sql.query_row(memory, [Text(vm)], |row| row.get(0))?;
            may_run(sql, &owner_of(sql, vm)?, Some(vm), memory, &limits, &host)?;
            sql.execute("UPDATE vms SET starting = 1 WHERE id = ?1", [Text(vm)])?;
            Ok(())
        })
        .await
    }

    /// Gives a VM that does not run to somebody else. It leaves its private network: that of the
    /// same name is the new owner's. It no longer waits to be started: that was the former owner's
    /// wish.
    ///
    /// # Errors
    /// [`DbError::Taken`] when the new owner has a VM of that name, [`DbError::Limit`] when the new
    /// owner has no room for it.
    pub(crate) async fn give_vm(&self, vm: VmId, to: Owner, limits: UserLimits) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let from = owner_of(sql, vm)?;
            let stored = super::store::stored(sql, &to)?;
            if from != to {
                let has = Holdings::of(sql, Some(&to), None)?;
                quota::fits(Limited::Vms, &limits, has.vms, 1)?;
                let disk = "SELECT system_overlay_size_bytes + work_disk_size_bytes AS disk FROM vms WHERE id = ?1";
                let disk = sql.query_row(disk, [Text(vm)], |row| unsigned(row, "disk"))?;
                quota::fits(Limited::Disk, &limits, has.disk, disk)?;
            }
            let now = signed(Timestamp::now().unix());
            let given = sql.execute(
                "UPDATE vms SET owner = ?2, owner_name = ?3, updated_at = ?4, workspace = NULL, boot_id = NULL,
                 network = json_remove(network, '$.private') WHERE id = ?1",
                params![Text(vm), to.uid, to.name, now],
            );
            given.map_err(|error| {
                if is_unique(&error) { DbError::Taken(to.name.clone().into_owned()) } else { error.into() }
            })?;
            // The host listened for its owner: the next one decides anew.
            super::ports::withdraw_all(sql, vm)?;
            super::store::bytes_fit(sql, &to, stored, &limits)?;
            forget_keys(sql)
        })
        .await
    }

    /// Sizes, network and restart policy.
    ///
    /// # Errors
    /// [`DbError::Limit`] when its disks become larger than the owner's limit allows.
    pub(crate) async fn set_vm_spec(
        &self,
        vm: VmId,
        spec: VmSpec,
        network: VmNetwork,
        restart: RestartPolicy,
        limits: UserLimits,
        host: HostLimits,
    ) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let disk = spec.system_overlay_size_bytes.saturating_add(spec.work_disk_size_bytes);
            let had = "SELECT system_overlay_size_bytes + work_disk_size_bytes AS disk FROM vms WHERE id = ?1";
            let had = sql.query_row(had, [Text(vm)], |row| unsigned(row, "disk"))?;
            // What is there already stays, however a limit was lowered.
            if disk > had {
                let has = Holdings::of(sql, Some(&owner_of(sql, vm)?), None)?;
                quota::fits(Limited::Disk, &limits, has.disk, disk - had)?;
                host_has_disk(sql, &host, disk - had)?;
            }
            sql.execute(
                "UPDATE vms SET vcpu_count = :vcpus, memory_mib = :memory, system_overlay_size_bytes = :root,
                 work_disk_size_bytes = :work, nat_enabled = :nat, network = :network, restart = :restart, updated_at = :now WHERE id = :id",
                named_params! {
                    ":id": Text(vm), ":vcpus": spec.vcpu_count, ":memory": spec.memory_mib,
                    ":nat": network.mode == Mode::Nat, ":network": Json(&network),
                    ":root": signed(spec.system_overlay_size_bytes), ":work": signed(spec.work_disk_size_bytes),
                    ":restart": restart.as_str(), ":now": signed(Timestamp::now().unix()),
                },
            )?;
            Ok(())
        })
        .await
    }

    /// The creation came to its end.
    pub(crate) async fn set_vm_made(&self, vm: VmId) -> Result<(), DbError> {
        self.set_vm_making(vm, false).await
    }

    /// Its files are about to be removed: from now on it is no whole VM any more.
    pub(crate) async fn set_vm_unmade(&self, vm: VmId) -> Result<(), DbError> {
        self.set_vm_making(vm, true).await
    }

    async fn set_vm_making(&self, vm: VmId, making: bool) -> Result<(), DbError> {
        self.transaction(move |sql| {
            sql.execute("UPDATE vms SET making = ?2 WHERE id = ?1", params![Text(vm), making])?;
            Ok(())
        })
        .await
    }

    /// Somebody used it.
    pub(crate) async fn touch_vm(&self, vm: VmId) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let now = signed(Timestamp::now().unix());
            sql.execute("UPDATE vms SET last_touched_at = ?2 WHERE id = ?1", params![Text(vm), now])?;
            Ok(())
        })
        .await
    }

    /// Removes row and lease, and with the owner's last VM the owner's keys: the CLI brings them
    /// again when they are needed. Gone is fine.
    pub(crate) async fn delete_vm(&self, vm: VmId) -> Result<(), DbError> {
        self.transaction(move |sql| {
            sql.execute("DELETE FROM vms WHERE id = ?1", [Text(vm)])?;
            forget_keys(sql)
        })
        .await?;
        // It may have been the last to use an image or a kernel.
        self.unused.notify_one();
        Ok(())
    }
}

/// Keys of owners without a VM.
fn forget_keys(sql: &Transaction<'_>) -> Result<(), DbError> {
    sql.execute("DELETE FROM user_keys WHERE (owner, owner_name) NOT IN (SELECT owner, owner_name FROM vms)", [])?;
    Ok(())
}

pub(super) fn owner_of(sql: &Transaction<'_>, vm: VmId) -> Result<Owner, DbError> {
    let owner = sql.query_row("SELECT owner, owner_name FROM vms WHERE id = ?1", [Text(vm)], |row| {
        Ok(Owner { uid: row.get(0)?, name: row.get::<_, String>(1)?.into() })
    });
    Ok(owner?)
}

fn set_mirror(sql: &Transaction<'_>, vm: VmId, mirror: &Handles) -> Result<(), DbError> {
    let Handles { pid: _, tap_device, base_loop, cow_loop, dm_name, dm_dev, generation, guest_ip } = mirror;
    sql.execute(
        "UPDATE vms SET tap_device = :tap, base_loop = :base, cow_loop = :cow, dm_name = :name, dm_dev = :dev,
         generation = :generation, guest_ip = :guest_ip, updated_at = :now WHERE id = :id",
        named_params! {
            ":id": Text(vm), ":tap": tap_device, ":base": base_loop, ":cow": cow_loop,
            ":name": dm_name, ":dev": dm_dev, ":now": signed(Timestamp::now().unix()),
            ":generation": generation.map(u64::cast_signed),
            ":guest_ip": guest_ip.map(|address| address.to_string()),
        },
    )?;
    Ok(())
}

pub(super) fn row(row: &Row<'_>) -> rusqlite::Result<VmRow> {
    let state: String = row.get("state")?;
    let nat: bool = row.get("nat_enabled")?;
    let network = row.get::<_, Option<Json<VmNetwork>>>("network")?.map(|network| network.0);
    let network = network.unwrap_or_else(|| VmNetwork::of(if nat { Mode::Nat } else { Mode::None }));
    Ok(VmRow {
        id: row.get::<_, Text<_>>("id")?.0,
        owner: row.get("owner")?,
        owner_name: row.get("owner_name")?,
        name: row.get::<_, Text<_>>("name")?.0,
        image_id: row.get::<_, Text<_>>("image_id")?.0,
        image_name: row.get::<_, Text<_>>("image_name")?.0,
        image_config: row.get::<_, Json<_>>("image_config")?.0,
        kernel_id: row.get::<_, Text<_>>("kernel_id")?.0,
        // The column's CHECK leaves no other word.
        state: State::ALL.into_iter().find(|known| known.as_str() == state).unwrap_or(State::Error),
        making: row.get("making")?,
        last_error: row.get("last_error")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
        last_touched_at: time(row, "last_touched_at")?,
        restart: row.get::<_, Text<_>>("restart")?.0,
        boot_id: row.get("boot_id")?,
        spec: VmSpec {
            vcpu_count: row.get("vcpu_count")?,
            memory_mib: row.get("memory_mib")?,
            system_overlay_size_bytes: unsigned(row, "system_overlay_size_bytes")?,
            work_disk_size_bytes: unsigned(row, "work_disk_size_bytes")?,
            nat_enabled: network.mode == Mode::Nat,
        },
        mirror: Handles {
            pid: None,
            tap_device: row.get("tap_device")?,
            base_loop: row.get("base_loop")?,
            cow_loop: row.get("cow_loop")?,
            dm_name: row.get("dm_name")?,
            dm_dev: row.get("dm_dev")?,
            generation: row.get::<_, Option<i64>>("generation")?.map(i64::cast_unsigned),
            guest_ip: row.get::<_, Option<String>>("guest_ip")?.and_then(|address| address.parse().ok()),
        },
        address_index: row.get("address_index")?,
        workspace: row.get::<_, Option<Json<_>>>("workspace")?.map(|workspace| workspace.0),
        network,
        published: row.get::<_, Json<_>>("published")?.0,
    })
}
