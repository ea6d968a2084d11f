//! Images of registries: a name whose content is another one after the next pull, and content that
//! need not be sent again.

use super::image::{NAMED, insert_content, insert_name, row};
use super::store::{IMAGES, bytes_fit, name_fits, stored};
use super::{Db, DbError, Json, Text, is_unique, signed};
use crate::paths::Paths;
use banger_policy::access::Owner;
use banger_policy::quota::UserLimits;
use banger_policy::{Digest, ImageConfig};
use banger_proto::model::ImageRecord;
use banger_proto::time::Timestamp;
use rusqlite::{OptionalExtension as _, Transaction, named_params, params};

/// A name for what is there.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) owner: Owner,
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) manifest: Digest,
    /// The content that an import of this manifest, for the size that was asked for, comes to.
    pub(crate) id: Digest,
    pub(crate) shared: bool,
    /// Does an administrator ask?
    pub(crate) by_admin: bool,
    pub(crate) now: Timestamp,
}

/// Of the owner's own names, and of those that an administrator has pulled and shared: never of
/// another user's.
const KNOWN: &str = "WHERE image_id = :id AND manifest = :manifest
    AND ((owner = :owner AND owner_name = :owner_name) OR (shared AND by_admin))
    ORDER BY by_admin DESC LIMIT 1";

impl Db {
    /// Content that was uploaded, and its name: a new one, or one that was pulled from the same
    /// source before.
    ///
    /// # Errors
    /// [`DbError::Taken`] when the name is of something else, [`DbError::IsShared`],
    /// [`DbError::Limit`].
    pub(crate) async fn insert_pulled(
        &self,
        image: ImageRecord,
        by_admin: bool,
        limits: UserLimits,
    ) -> Result<(), DbError> {
        let done = self.transaction(move |sql| {
            insert_content(sql, &image)?;
            name_it(sql, &image, by_admin, &limits)
        });
        done.await?;
        // What the name meant before may have lost its last user.
        self.unused.notify_one();
        Ok(())
    }

    /// Gives a name to what is there, if something is; `None`: it must be uploaded.
    ///
    /// # Errors
    /// As [`Db::insert_pulled`].
    pub(crate) async fn link_image(
        &self,
        link: Link,
        limits: UserLimits,
        paths: &Paths,
    ) -> Result<Option<ImageRecord>, DbError> {
        let paths = paths.clone();
        // One transaction: content that is found is not collected before it has the name.
        let done = self.transaction(move |sql| {
            let wanted = named_params! {
                ":id": Text(link.id), ":manifest": Text(link.manifest), ":owner": link.owner.uid, ":owner_name": link.owner.name,
            };
            let known = sql.query_row(&format!("{NAMED} {KNOWN}"), wanted, |columns| {
                Ok((row(columns, &paths)?, columns.get::<_, bool>("by_admin")?))
            });
            let Some((known, known_by_admin)) = known.optional()? else { return Ok(None) };
            let (owner, name) = (link.owner.clone(), link.name.clone());
            let image = ImageRecord {
                name: name.parse().map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?,
                owner: owner.uid,
                owner_name: owner.name.clone().into_owned(),
                shared: link.shared,
                source: link.source,
                created_at: link.now,
                updated_at: link.now,
                ..known
            };
            name_it(sql, &image, link.by_admin && known_by_admin, &limits)?;
            let named = format!("{NAMED} WHERE owner = ?1 AND owner_name = ?2 AND name = ?3");
            let named = sql.query_row(&named, params![owner.uid, owner.name, name], |columns| row(columns, &paths))?;
            Ok(Some(named))
        });
        let linked = done.await?;
        if linked.is_some() {
            self.unused.notify_one();
        }
        Ok(linked)
    }
}

fn name_it(sql: &Transaction<'_>, image: &ImageRecord, by_admin: bool, limits: &UserLimits) -> Result<(), DbError> {
    let owner = Owner { uid: image.owner, name: image.owner_name.clone().into() };
    let name = image.name.as_str();
    let of_name = "owner = ?1 AND owner_name = ?2 AND name = ?3";
    let known = sql.query_row(
        &format!("SELECT source, shared FROM image_names WHERE {of_name}"),
        params![owner.uid, owner.name, name],
        |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)),
    );
    let before = stored(sql, &owner)?;
    match known.optional()? {
        None => {
            name_fits(sql, &IMAGES, &owner, limits)?;
            insert_name(sql, image)?;
        }
        Some((source, _)) if source != image.source => return Err(DbError::Taken(name.to_owned())),
        // What everybody uses is an administrator's to change, and how it starts is part of it.
        Some((_, true)) if !by_admin && is_other(sql, image)? => return Err(DbError::IsShared(name.to_owned())),
        Some(_) => {
            let update = format!(
                "UPDATE image_names SET image_id = ?4, manifest = ?5, shared = shared OR ?6, updated_at = ?7, config = ?8,
                 kernel_id = NULL, managed = 1 WHERE {of_name}"
            );
            let manifest = image.manifest_digest.map(Text);
            let updated = signed(image.updated_at.unix());
            let config = Json(&image.config);
            let values = params![owner.uid, owner.name, name, Text(image.id), manifest, image.shared, updated, config];
            sql.execute(&update, values)
                .map_err(|error| if is_unique(&error) { DbError::Taken(name.to_owned()) } else { error.into() })?;
        }
    }
    let update = format!("UPDATE image_names SET by_admin = ?4 WHERE {of_name}");
    sql.execute(&update, params![owner.uid, owner.name, name, by_admin])?;
    bytes_fit(sql, &owner, before, limits)
}

/// Would whoever uses the name get something else than now?
fn is_other(sql: &Transaction<'_>, image: &ImageRecord) -> Result<bool, DbError> {
    let is_same = sql.query_row(
        "SELECT image_id, manifest, config FROM image_names WHERE owner = ?1 AND owner_name = ?2 AND name = ?3",
        params![image.owner, image.owner_name, image.name.as_str()],
        |row| {
            let (id, Json(config)) = (row.get::<_, Text<Digest>>(0)?.0, row.get::<_, Json<ImageConfig>>(2)?);
            let manifest = row.get::<_, Option<Text<Digest>>>(1)?.map(|digest| digest.0);
            Ok((id, manifest, config) == (image.id, image.manifest_digest, image.config.clone()))
        },
    )?;
    Ok(!is_same)
}
