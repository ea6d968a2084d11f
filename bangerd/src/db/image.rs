//! Rows of images.

use super::store::{IMAGES, SEEN, bytes_fit, name_fits, stored};
use super::{Db, DbError, Json, Text, is_unique, signed, time, unsigned};
use crate::paths::Paths;
use crate::util::text;
use banger_image::{ROOTFS_FILE, SEED_FILE};
use banger_policy::Digest;
use banger_policy::access::Owner;
use banger_policy::quota::UserLimits;
use banger_proto::model::ImageRecord;
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params, params};

/// All names of images, each with the name of its kernel, as those know it who may use the image: a
/// shared image's kernel by its shared name only.
pub(super) const NAMED: &str =
    "SELECT *, (SELECT name FROM kernel_names WHERE kernel_names.kernel_id = image_names.kernel_id
        AND (kernel_names.shared OR (NOT image_names.shared AND kernel_names.owner = image_names.owner
            AND kernel_names.owner_name = image_names.owner_name))
        ORDER BY kernel_names.shared, kernel_names.created_at DESC LIMIT 1) AS kernel
    FROM image_names JOIN images ON images.id = image_names.image_id";

/// Why a name was not shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unshared {
    /// It no longer means what it meant: its owner has pulled something else, or removed it.
    Gone,
    /// The kernel of an image is not shared itself: its owner's login name, and its name; `None`
    /// when nobody has a name for it.
    Kernel(Option<(String, String)>),
}

impl Db {
    /// A name, and the content unless it is there.
    ///
    /// # Errors
    /// [`DbError::Taken`] when the owner has an image of that name, [`DbError::Gone`] when its
    /// kernel is none that the owner may use, [`DbError::Limit`].
    pub(crate) async fn insert_image(&self, image: ImageRecord, limits: UserLimits) -> Result<(), DbError> {
        self.transaction(move |sql| {
            let owner = Owner { uid: image.owner, name: image.owner_name.clone().into() };
            name_fits(sql, &IMAGES, &owner, &limits)?;
            let before = stored(sql, &owner)?;
            insert_content(sql, &image)?;
            // Minutes may have passed since it was named.
            if let Some(kernel) = image.kernel_id
                && !is_usable(sql, kernel, &owner)?
            {
                return Err(DbError::Gone);
            }
            insert_name(sql, &image)?;
            bytes_fit(sql, &owner, before, &limits)
        })
        .await
    }

    /// The names of images that somebody may use, or all, by name.
    pub(crate) async fn images(&self, paths: &Paths, by: Option<Owner>) -> Result<Vec<ImageRecord>, DbError> {
        let paths = paths.clone();
        self.read(move |sql| {
            let order = "ORDER BY image_names.name, image_names.owner, image_names.owner_name";
            let mut query = sql.prepare_cached(&format!("{NAMED} WHERE {SEEN} {order}"))?;
            let (uid, name) = by.map(|owner| (owner.uid, owner.name)).unzip();
            let rows =
                query.query_map(params![uid, name], |columns| row(columns, &paths))?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }

    /// Makes an image managed, and everybody's if it shall be `shared`. `Err` when its kernel would
    /// not be everybody's.
    ///
    /// # Errors
    /// [`DbError::Taken`] when another image of that name is shared.
    pub(crate) async fn promote_image(
        &self,
        owner: Owner,
        name: String,
        id: Digest,
        shared: bool,
    ) -> Result<Result<(), Unshared>, DbError> {
        self.transaction(move |sql| {
            let of_name = "owner = ?1 AND owner_name = ?2 AND name = ?3";
            let kernel = format!("SELECT kernel_id FROM image_names WHERE {of_name}");
            let kernel = sql
                .query_row(&kernel, params![owner.uid, owner.name, name], |row| row.get::<_, Option<String>>(0))
                .optional()?
                .flatten();
            if let Some(kernel) = kernel.filter(|_| shared) {
                // The image owner's name for it first: it is the one that an administrator shares.
                let names = "SELECT shared, owner_name, name FROM kernel_names WHERE kernel_id = ?1
                    ORDER BY shared DESC, owner = ?2 AND owner_name = ?3 DESC, created_at DESC LIMIT 1";
                let best = sql.query_row(names, params![kernel, owner.uid, owner.name], |row| {
                    Ok((row.get::<_, bool>(0)?, (row.get(1)?, row.get(2)?)))
                });
                match best.optional()? {
                    Some((true, _)) => {}
                    best => return Ok(Err(Unshared::Kernel(best.map(|(_, name)| name)))),
                }
            }
            let update =
                format!("UPDATE image_names SET managed = 1, shared = shared OR ?4 WHERE {of_name} AND image_id = ?5");
            let updated = sql.execute(&update, params![owner.uid, owner.name, name, shared, Text(id)]);
            updated
                .map(|rows| if rows > 0 { Ok(()) } else { Err(Unshared::Gone) })
                .map_err(|error| if is_unique(&error) { DbError::Taken(name) } else { error.into() })
        })
        .await
    }
}

/// Has the owner a name for the kernel, or everybody?
fn is_usable(sql: &Transaction<'_>, kernel: Digest, owner: &Owner) -> Result<bool, DbError> {
    let names = "SELECT EXISTS (SELECT 1 FROM kernel_names
        WHERE kernel_id = ?1 AND (shared OR (owner = ?2 AND owner_name = ?3)))";
    Ok(sql.query_row(names, params![Text(kernel), owner.uid, owner.name], |row| row.get(0))?)
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
        "INSERT INTO image_names (owner, owner_name, name, image_id, managed, source, manifest, config, kernel_id, shared,
         created_at, updated_at)
         VALUES (:owner, :owner_name, :name, :id, :managed, :source, :manifest, :config, :kernel, :shared, :created,
         :updated)",
        named_params! {
            ":owner": image.owner, ":owner_name": image.owner_name, ":name": image.name.as_str(), ":id": Text(image.id),
            ":managed": image.managed, ":source": image.source, ":manifest": image.manifest_digest.map(Text),
            ":config": Json(&image.config), ":kernel": image.kernel_id.map(Text),
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
        kernel: row.get::<_, Option<Text<_>>>("kernel")?.map(|name| name.0),
        kernel_id: row.get::<_, Option<Text<Digest>>>("kernel_id")?.map(|digest| digest.0),
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
    const KERNELS_OF_IMAGES: &str = include_str!("schema/0008.sql");

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
            let images = db.images(&Paths::default(), None).await.unwrap();
            (images, db.vm(id.parse().unwrap()).await.unwrap().unwrap())
        });
        assert_eq!((images.len(), images[0].source.as_str(), &images[0].config), (1, "x.tar", &ImageConfig::default()));
        assert_eq!((vm.name.as_str(), vm.image_config), ("demo", ImageConfig::default()));
    }
    /// From the state before, whatever other steps there are.
    #[tokio::test]
    async fn images_of_before_name_no_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let before = MIGRATIONS.iter().position(|step| *step == KERNELS_OF_IMAGES).unwrap();
        let raw = super::super::tests::of_schema(&path, before);
        let digest = "cd".repeat(32);
        raw.execute_batch(&format!(
            "INSERT INTO images (id, build_size, allocated_bytes, docker) VALUES ('{digest}', 1, 1, 0);
             INSERT INTO kernels (id, version, modules, size_bytes) VALUES ('{digest}', '6.12', '[]', 1);
             INSERT INTO kernel_names (owner, owner_name, name, kernel_id, shared, created_at)
             VALUES (1001, 'alice', 'k', '{digest}', 0, 5);
             INSERT INTO image_names (owner, owner_name, name, image_id, managed, source, shared, created_at, updated_at)
             VALUES (1001, 'alice', 'old', '{digest}', 1, 'x.tar', 0, 5, 5);"
        ))
        .unwrap();
        drop(raw);
        let db = Db::open(&path).await.unwrap();
        let old = db.images(&Paths::default(), None).await.unwrap().remove(0);
        assert_eq!((old.name.as_str(), old.managed, &old.kernel, old.kernel_id), ("old", true, &None, None));
        let kernel_id = Some(digest.parse().unwrap());
        let new = ImageRecord { name: "new".parse().unwrap(), managed: false, kernel_id, ..old };
        db.insert_image(new, UserLimits::NONE).await.unwrap();
        let new = db.images(&Paths::default(), None).await.unwrap().remove(0);
        assert_eq!((new.name.as_str(), new.managed, new.kernel_id), ("new", false, kernel_id));
        assert_eq!(new.kernel.unwrap().as_str(), "k");
    }
}
