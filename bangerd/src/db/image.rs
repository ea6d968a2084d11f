//! Rows of images.

use super::{Db, DbError, Text, is_unique, signed, time, unsigned};
use crate::image::{ROOTFS_FILE, SEED_FILE};
use crate::paths::{Paths, text};
use banger_policy::Digest;
use banger_proto::model::ImageRecord;
use rusqlite::{Row, named_params};

impl Db {
    /// # Errors
    /// [`DbError::Taken`] when the name or the very same content is there already.
    pub(crate) async fn insert_image(&self, image: ImageRecord) -> Result<(), DbError> {
        self.transaction(move |sql| {
            sql.execute(
                "INSERT INTO images (id, name, owner, managed, build_size, allocated_bytes, docker, source, created_at, updated_at)
                 VALUES (:id, :name, :owner, :managed, :build, :allocated, :docker, :source, :created, :updated)",
                named_params! {
                    ":id": Text(image.id), ":name": image.name.as_str(), ":owner": image.owner, ":managed": image.managed,
                    ":build": signed(image.build_size), ":allocated": signed(image.allocated_bytes), ":docker": image.docker,
                    ":source": image.source, ":created": signed(image.created_at.unix()), ":updated": signed(image.updated_at.unix()),
                },
            )
            .map_err(|error| if is_unique(&error) { DbError::Taken(image.name.to_string()) } else { error.into() })?;
            Ok(())
        })
        .await
    }

    /// All images, by name.
    pub(crate) async fn images(&self, paths: &Paths) -> Result<Vec<ImageRecord>, DbError> {
        let paths = paths.clone();
        self.transaction(move |sql| {
            let mut query = sql.prepare_cached("SELECT * FROM images ORDER BY name")?;
            let rows = query.query_map([], |columns| row(columns, &paths))?.collect::<Result<_, _>>()?;
            Ok(rows)
        })
        .await
    }

    /// Removes the row. `Err(name)` when a VM uses it, whose name it says.
    pub(crate) async fn delete_image(&self, image: Digest) -> Result<Result<(), String>, DbError> {
        self.transaction(move |sql| super::delete_unused(sql, "images", "image_id", image)).await
    }
}

fn row(row: &Row<'_>, paths: &Paths) -> rusqlite::Result<ImageRecord> {
    let id = row.get::<_, Text<Digest>>("id")?.0;
    let dir = paths.image_dir(&id);
    Ok(ImageRecord {
        id,
        name: row.get::<_, Text<_>>("name")?.0,
        owner: row.get("owner")?,
        managed: row.get("managed")?,
        rootfs_path: text(&dir.join(ROOTFS_FILE)),
        work_seed_path: Some(text(&dir.join(SEED_FILE))),
        artifact_dir: text(&dir),
        build_size: unsigned(row, "build_size")?,
        allocated_bytes: unsigned(row, "allocated_bytes")?,
        docker: row.get("docker")?,
        source: row.get("source")?,
        created_at: time(row, "created_at")?,
        updated_at: time(row, "updated_at")?,
    })
}
