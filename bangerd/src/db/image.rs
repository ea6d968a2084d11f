//! Rows of images.

use super::store::{IMAGES, bytes_fit, name_fits, stored};
use super::{Db, DbError, Json, Text, is_unique, signed, time, unsigned};
use crate::paths::Paths;
use crate::util::text;
use banger_image::{ROOTFS_FILE, SEED_FILE};
use banger_policy::Digest;
use banger_policy::access::Owner;
use banger_policy::quota::UserLimits;
use banger_proto::model::ImageRecord;
use rusqlite::{Row, Transaction, named_params};

impl Db {
    /// A name, and the content unless it is there.
    ///
    /// # Errors
    /// [`DbError::Taken`] when the owner has an image of that name, [`DbError::Limit`].
    pub(crate) async fn insert_image(&self, image: ImageRecord, limits: UserLimits) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let owner = Owner { uid: image.owner, name: image.owner_name.clone().into() };
            name_fits(sql, &IMAGES, &owner, &limits)?;
            let before = stored(sql, &owner)?;
            insert_content(sql, &image)?;
            insert_name(sql, &image)?;
            bytes_fit(sql, &owner, before, &limits)
        })
        .await
    }

    /// All names of images, by name.
    pub(crate) async fn images(&self, paths: &Paths) -> Result<Vec<ImageRecord>, DbError> {
        let paths = paths.clone();
        self.read(move |sql| {
            let mut query = sql.prepare_cached(
                "SELECT * FROM image_names JOIN images ON images.id = image_names.image_id ORDER BY name, owner, owner_name",
            )?;
            let rows = query.query_map([], |columns| row(columns, &paths))?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }
}

/// The row of the content, unless there is one.
pub(super) fn insert_content(sql: &Transaction<'_>, image: &ImageRecord) -> Result<(), DbError> {
    sql.execute(
        "INSERT INTO images (id, build_size, allocated_bytes, docker) VALUES (:id, :build, :allocated, :docker)
         ON CONFLICT (id) DO NOTHING",
        named_params! {
            ":id": Text(image.id), ":build": signed(image.build_size), ":allocated": signed(image.allocated_bytes),
            ":docker": image.docker,
        },
    )?;
    Ok(())
}

/// The row of a new name.
pub(super) fn insert_name(sql: &Transaction<'_>, image: &ImageRecord) -> Result<(), DbError> {
    sql.execute(
        "INSERT INTO image_names (owner, owner_name, name, image_id, managed, source, manifest, config, shared, created_at,
         updated_at)
         VALUES (:owner, :owner_name, :name, :id, :managed, :source, :manifest, :config, :shared, :created, :updated)",
        named_params! {
            ":owner": image.owner, ":owner_name": image.owner_name, ":name": image.name.as_str(), ":id": Text(image.id),
            ":managed": image.managed, ":source": image.source, ":manifest": image.manifest_digest.map(Text),
            ":config": Json(&image.config),
            ":shared": image.shared, ":created": signed(image.created_at.unix()), ":updated": signed(image.updated_at.unix()),
        },
    )
    .map_err(|error| if is_unique(&error) { DbError::Taken(image.name.to_string()) } else { error.into() })?;
    Ok(())
}

pub(super) fn row(row: &Row<'_>, paths: &Paths) -> rusqlite::Result<ImageRecord> {
    let id = row.get::<_, Text<Digest>>("id")?.0;
    let dir = paths.image_dir(&id);
    Ok(ImageRecord {
        id,
        name: row.get::<_, Text<_>>("name")?.0,
        owner: row.get("owner")?,
        owner_name: row.get("owner_name")?,
        shared: row.get("shared")?,
        managed: row.get("managed")?,
        rootfs_path: text(&dir.join(ROOTFS_FILE)),
        work_seed_path: Some(text(&dir.join(SEED_FILE))),
        artifact_dir: text(&dir),
        build_size: unsigned(row, "build_size")?,
        allocated_bytes: unsigned(row, "allocated_bytes")?,
        docker: row.get("docker")?,
        source: row.get("source")?,
        config: row.get::<_, Json<_>>("config")?.0,
        manifest_digest: row.get::<_, Option<Text<Digest>>>("manifest")?.map(|digest| digest.0),
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::{MIGRATIONS, bring_up, open};
    use super::*;
    use banger_policy::ImageConfig;
    use rusqlite::Connection;

    const THIS: &str = include_str!("schema/0003.sql");

    /// From the state before, whatever other steps there are.
    #[test]
    fn images_and_vms_of_before_configurations_have_empty_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let before = MIGRATIONS.iter().position(|step| *step == THIS).unwrap();
        let mut raw = Connection::open(&path).unwrap();
        bring_up(&mut raw, &path, &MIGRATIONS[..before]).unwrap();
        let (id, digest) = ("ab".repeat(32), "cd".repeat(32));
        raw.execute_batch(&format!(
            "INSERT INTO images (id, build_size, allocated_bytes, docker) VALUES ('{digest}', 1, 1, 0);
             INSERT INTO image_names (owner, owner_name, name, image_id, managed, source, shared, created_at, updated_at)
             VALUES (1001, 'alice', 'debian', '{digest}', 1, 'x.tar', 0, 5, 5);
             INSERT INTO kernels (id, version, modules, size_bytes) VALUES ('{digest}', '6.12', '[\"a.ko\"]', 1);
             INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at, updated_at,
             last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, nat_enabled)
             VALUES ('{id}', 1001, 'alice', 'demo', '{digest}', 'debian', '{digest}', 'stopped', 0, 0, 0, 0, 1, 256, 1, 1, 0);
             INSERT INTO leases (address_index, vm_id) VALUES (1, '{id}');"
        ))
        .unwrap();
        drop(raw);
        drop(open(&path).unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (images, vm) = runtime.block_on(async {
            let db = Db::open(&path).await.unwrap();
            let images = db.images(&Paths::default()).await.unwrap();
            (images, db.vm(id.parse().unwrap()).await.unwrap().unwrap())
        });
        assert_eq!((images.len(), images[0].source.as_str(), &images[0].config), (1, "x.tar", &ImageConfig::default()));
        assert_eq!((vm.name.as_str(), vm.image_config), ("demo", ImageConfig::default()));
    }
}
