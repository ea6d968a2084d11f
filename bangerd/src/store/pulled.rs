//! What the daemon has of an image that a user's command line found in a registry.
//!
//! A digest is only a question here: whoever asks is given what is his own already, or what an
//! administrator has pulled and shares. That another user has the same image is not told, and what
//! others claim about digests is not believed.

use super::Store;
use super::error::StoreError;
use super::import::not_inserted;
use super::wanted::{Wanted, WantedImage};
use crate::db::Link;
use crate::db::store::IMAGES;
use banger_policy::Peer;
use banger_proto::model::{ImageRecord, LinkRequest};
use banger_proto::time::Timestamp;

impl Store {
    /// Gives a name to what is there; `None`: it has to be uploaded.
    ///
    /// # Errors
    /// What an upload would be refused for, before it is made.
    pub(crate) async fn link_image(
        &self,
        peer: &Peer,
        request: LinkRequest,
    ) -> Result<Option<ImageRecord>, StoreError> {
        let LinkRequest { name, source, manifest, build_size, shared } = request;
        let wanted = WantedImage::new(peer, &name, &source, build_size, shared)?.pulled(true);
        self.check_free(peer, &Wanted::Image(wanted.clone())).await?;
        let id = banger_image::digest_of(&manifest, wanted.build_size).ok_or(StoreError::NoDigest)?;
        let link = Link {
            owner: peer.owner(),
            name: name.clone(),
            source: wanted.source,
            manifest,
            id,
            shared,
            by_admin: peer.admin,
            now: Timestamp::now(),
        };
        let linked = self.db.of(peer.uid).link_image(link, peer.limits, &self.paths).await;
        let linked = linked.map_err(|error| not_inserted(peer, &IMAGES, &name, error))?;
        if let Some(image) = &linked {
            tracing::info!(banger_uid = peer.uid, %id, "image {} is there already: nothing is sent", image.name);
        }
        Ok(linked)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::tests::{id, image, world};
    use super::*;
    use crate::vm::tests::{ALICE, BOB, ROOT};
    use banger_policy::limits::DEFAULT_BUILD_BYTES;
    use banger_policy::quota::UserLimits;
    use banger_policy::{Digest, ImageConfig};
    use banger_proto::model::{ApiError, ErrorCode};

    const SOURCE: &str = "docker.io/library/debian:13";

    /// What a pull of the manifest comes to.
    fn pulled(peer: &Peer, name: &str, manifest: u8) -> ImageRecord {
        let content = banger_image::digest_of(&id(manifest), DEFAULT_BUILD_BYTES).unwrap();
        ImageRecord {
            id: content,
            manifest_digest: Some(id(manifest)),
            source: SOURCE.to_owned(),
            ..image(peer, name, manifest)
        }
    }

    fn link(name: &str, manifest: u8) -> LinkRequest {
        LinkRequest {
            name: name.to_owned(),
            source: SOURCE.to_owned(),
            manifest: id(manifest),
            build_size: None,
            shared: false,
        }
    }

    #[test]
    fn only_ones_own_and_what_administrators_pulled_for_all_need_not_be_sent() {
        let world = world(&[], &[]);
        world.store(async |store| {
            let insert = |peer: &Peer, name: &str, manifest: u8| {
                store.db.insert_pulled(pulled(peer, name, manifest), peer.admin, UserLimits::NONE)
            };
            insert(&ALICE, "hers", 1).await.unwrap();
            insert(&BOB, "his", 2).await.unwrap();
            insert(&ROOT, "roots", 3).await.unwrap();
            // Bob says of his content that it is this manifest; that an administrator shares it
            // makes that no truer.
            store.share::<ImageRecord>(&ROOT, "bob/his", true).await.unwrap();
            let known = async |peer: &Peer, name: &str, manifest: u8| {
                store.link_image(peer, link(name, manifest)).await.unwrap().map(|image| image.name.to_string())
            };
            assert_eq!(known(&ALICE, "again", 1).await.as_deref(), Some("again"));
            for (peer, manifest) in [(&BOB, 1), (&ALICE, 2), (&ROOT, 1), (&ALICE, 3), (&BOB, 9)] {
                assert_eq!(known(peer, "new", manifest).await, None, "{} {manifest}", peer.name);
            }
            store.share::<ImageRecord>(&ROOT, "roots", true).await.unwrap();
            assert_eq!(known(&ALICE, "new", 3).await.as_deref(), Some("new"));
            let seen = store.show::<ImageRecord>(&ALICE, "new").await.unwrap();
            assert_eq!((seen.manifest_digest, seen.source.as_str(), seen.shared), (Some(id(3)), SOURCE, false));
            // For another size it is another image.
            let larger = LinkRequest { build_size: Some(9 << 30), ..link("larger", 3) };
            assert_eq!(store.link_image(&ALICE, larger).await.unwrap(), None);
            let for_all = LinkRequest { shared: true, ..link("for-all", 3) };
            assert_eq!(
                ApiError::from(store.link_image(&ALICE, for_all.clone()).await.unwrap_err()).code,
                ErrorCode::Denied
            );
            assert!(store.link_image(&ROOT, for_all).await.unwrap().unwrap().shared);
            // What she has by a link is hers; that it was an administrator's does not go on with
            // it.
            store.share::<ImageRecord>(&ROOT, "alice/new", true).await.unwrap();
            store.share::<ImageRecord>(&ROOT, "roots", false).await.unwrap();
            store.share::<ImageRecord>(&ROOT, "for-all", false).await.unwrap();
            assert_eq!(known(&BOB, "new", 3).await, None);
        });
    }

    #[test]
    fn a_name_that_is_pulled_again_moves_and_others_are_taken() {
        let world = world(&[image(&ALICE, "imported", 8)], &[]);
        world.store(async |store| {
            let limits = UserLimits { images: 2, ..UserLimits::BUILT_IN };
            let insert =
                |name: &str, manifest: u8| store.db.insert_pulled(pulled(&ALICE, name, manifest), false, limits);
            insert("debian:13", 1).await.unwrap();
            let old = store.show::<ImageRecord>(&ALICE, "debian:13").await.unwrap();
            // At the limit, the name may still move.
            insert("debian:13", 2).await.unwrap();
            let new = store.show::<ImageRecord>(&ALICE, "debian:13").await.unwrap();
            assert!(new.id != old.id && new.manifest_digest == Some(id(2)), "{new:?}");
            store.collect().await.unwrap();
            assert!(!store.db.contents(&IMAGES).await.unwrap().contains(&old.id), "nobody uses the old content");
            let taken = insert("imported", 1).await.unwrap_err();
            assert!(matches!(taken, crate::db::DbError::Taken(_)), "{taken}");
            let taken = store.link_image(&ALICE, link("imported", 2)).await.unwrap_err();
            assert!(matches!(taken, StoreError::Taken { .. }));
        });
    }

    #[test]
    fn what_everybody_uses_is_not_changed_by_its_owner() {
        let world = world(&[], &[]);
        world.store(async |store| {
            let insert = |peer: &Peer, manifest: u8| {
                store.db.insert_pulled(pulled(&ALICE, "debian:13", manifest), peer.admin, UserLimits::NONE)
            };
            insert(&ALICE, 1).await.unwrap();
            store.share::<ImageRecord>(&ROOT, "alice/debian:13", true).await.unwrap();
            insert(&ALICE, 1).await.unwrap();
            let refused = insert(&ALICE, 2).await.unwrap_err();
            assert!(matches!(refused, crate::db::DbError::IsShared(_)), "{refused}");
            assert!(
                !store.db.contents(&IMAGES).await.unwrap().contains(&pulled(&ALICE, "x", 2).id),
                "nothing of it stays"
            );
            // The same content that starts otherwise, and under another manifest.
            let same = pulled(&ALICE, "debian:13", 1);
            let evil = ImageConfig { user: Some("evil".into()), ..ImageConfig::default() };
            let others = [
                ImageRecord { config: evil.clone(), ..same.clone() },
                ImageRecord { manifest_digest: Some(id(2)), ..same.clone() },
            ];
            for other in others {
                let refused = store.db.insert_pulled(other, false, UserLimits::NONE).await.unwrap_err();
                assert!(matches!(refused, crate::db::DbError::IsShared(_)), "{refused}");
            }
            let kept = store.show::<ImageRecord>(&BOB, "debian:13").await.unwrap();
            assert_eq!((kept.manifest_digest, kept.config), (Some(id(1)), same.config.clone()));
            store.db.insert_pulled(ImageRecord { config: evil, ..same }, true, UserLimits::NONE).await.unwrap();
        });
    }

    /// Between the look of whoever shares it and the row.
    #[test]
    fn what_is_shared_is_what_was_looked_at() {
        let world = world(&[], &[]);
        world.store(async |store| {
            let insert =
                |manifest: u8| store.db.insert_pulled(pulled(&ALICE, "debian:13", manifest), false, UserLimits::NONE);
            insert(1).await.unwrap();
            let looked_at = pulled(&ALICE, "debian:13", 1).id;
            insert(2).await.unwrap();
            let share = |id| store.db.share(&IMAGES, ALICE.owner(), "debian:13".to_owned(), id, true);
            assert!(!share(looked_at).await.unwrap());
            assert!(!store.show::<ImageRecord>(&ALICE, "debian:13").await.unwrap().shared);
            assert!(share(pulled(&ALICE, "debian:13", 2).id).await.unwrap());
        });
    }

    #[tokio::test]
    async fn images_of_before_manifests_were_kept_are_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("banger.db");
        let content: Digest = id(4);
        crate::db::tests::of_schema(&path, 1)
            .execute_batch(&format!(
                "INSERT INTO images VALUES ('{content}', 1, 2, 0);
             INSERT INTO image_names VALUES (1001, 'alice', 'old', '{content}', 1, '/home/alice/x.tar', 1, 5, 6);"
            ))
            .unwrap();
        let db = crate::db::Db::open(&path).await.unwrap();
        let images = db.images(&crate::paths::Paths::default(), None).await.unwrap();
        assert_eq!((images[0].name.as_str(), images[0].manifest_digest, images[0].shared), ("old", None, true));
        db.insert_pulled(pulled(&ALICE, "new", 1), false, UserLimits::NONE).await.unwrap();
        assert_eq!(db.images(&crate::paths::Paths::default(), None).await.unwrap().len(), 2);
    }
}
