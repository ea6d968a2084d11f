//! Pulls that go well, and what stays in the cache.

use super::server::{Body, Server};
use super::*;

#[tokio::test]
async fn an_image_is_downloaded_once() {
    let (user, sample) = (User::new(), Sample::new(5));
    let answers = sample.clone();
    let server = Server::start(move |seen| answers.answer(seen)).await;
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    assert_eq!((server.count("/manifests/"), server.count("/blobs/")), (1, 6));
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    assert_eq!((server.count("/manifests/"), server.count("/blobs/")), (2, 6), "a tag may have moved, blobs are here");
    assert!(user.cached().iter().all(|(name, _)| name.len() == 64), "{:?}", user.cached());
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&user.blob(&sample.parts[1])), mode(&user.home.path().join("banger/blobs"))), (0o600, 0o700));
}

#[tokio::test]
async fn a_layer_that_is_there_twice_is_downloaded_once() {
    let (user, mut sample) = (User::new(), Sample::new(1));
    let layer = descriptor(&sample.parts[1]);
    let manifest =
        serde_json::json!({ "schemaVersion": 2, "config": descriptor(&sample.parts[0]), "layers": [layer, layer] });
    sample.manifest = manifest.to_string().into_bytes();
    let answers = sample.clone();
    let server = Server::start(move |seen| answers.answer(seen)).await;
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    assert_eq!(server.count("/blobs/"), 2);
}

#[tokio::test]
async fn the_manifest_of_this_machine_is_taken_from_an_index() {
    let (user, sample) = (User::new(), Sample::new(1));
    let (os, architecture) = host();
    let mut ours = descriptor(&sample.manifest);
    ours["platform"] = serde_json::json!({ "os": os, "architecture": architecture });
    let mut other = descriptor(b"other");
    other["platform"] = serde_json::json!({ "os": os, "architecture": "s390x" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [other, ours] }).to_string();
    let answers = sample.clone();
    let named = index.clone();
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v2/debian/manifests/13" => reply(200, named.as_bytes()),
        _ => answers.answer(seen),
    })
    .await;
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    assert_eq!(server.count("/manifests/"), 3, "the index twice, and the manifest below it once");
    let wrong = format!("{}/debian@sha256:{}", server.address, sha256(b"x"));
    assert!(pull(&user.client(), &wrong).await.is_err());
    let right = format!("{}/debian@sha256:{}", server.address, sample.digest());
    is_whole(&pull(&user.client(), &right).await.unwrap(), &sample);
}

/// A model has as many gigabytes as twenty images.
#[tokio::test]
async fn what_is_no_image_is_refused_before_anything_of_it_is_asked_for() {
    for (kind, is_image) in [
        ("application/vnd.cncf.helm.config.v1+json", false),
        ("application/vnd.docker.ai.model.config.v0.1+json", false),
        ("application/vnd.oci.empty.v1+json", false),
        ("application/octet-stream", true),
        ("text/html", true),
    ] {
        let (user, mut sample) = (User::new(), Sample::new(1));
        let mut manifest: serde_json::Value = serde_json::from_slice(&sample.manifest).unwrap();
        manifest["config"]["mediaType"] = serde_json::json!(kind);
        sample.manifest = manifest.to_string().into_bytes();
        let answers = sample.clone();
        let server = Server::start(move |seen| answers.answer(seen)).await;
        match user.pull(&server.address).await {
            Ok(archive) => {
                assert!(is_image, "{kind}");
                is_whole(&archive, &sample);
            }
            Err(error) => {
                let error = told(&error);
                assert!(!is_image && error.contains(&format!("an artifact of type {kind}")), "{error}");
                assert_eq!(server.count("/blobs/"), 0, "{kind}");
            }
        }
    }
}

#[tokio::test]
async fn a_layer_that_nobody_may_pass_on_is_named_as_that() {
    for (kind, has) in [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", false),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", false),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", true),
    ] {
        let (user, mut sample) = (User::new(), Sample::new(1));
        let mut manifest: serde_json::Value = serde_json::from_slice(&sample.manifest).unwrap();
        manifest["layers"][0]["mediaType"] = serde_json::json!(kind);
        manifest["layers"][0]["urls"] = serde_json::json!(["https://layers.example/x"]);
        sample.manifest = manifest.to_string().into_bytes();
        let (answers, layer) = (sample.clone(), sha256(&sample.parts[1]));
        let lacks = move |seen: &Seen| !has && seen.path.ends_with(&layer);
        let server =
            Server::start(move |seen| if lacks(seen) { reply(404, b"{}") } else { answers.answer(seen) }).await;
        match user.pull(&server.address).await {
            Ok(archive) => {
                assert!(has, "{kind}");
                is_whole(&archive, &sample);
            }
            Err(error) => {
                let error = told(&error);
                assert!(!has && error.contains("layer 1 of 1") && error.contains("a foreign layer"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_damaged_in_the_cache_is_fetched_again() {
    for damage in [&b""[..], b"short", &[0; 100_000]] {
        let (user, sample) = (User::new(), Sample::new(2));
        let answers = sample.clone();
        let server = Server::start(move |seen| answers.answer(seen)).await;
        user.pull(&server.address).await.unwrap();
        fs::write(user.blob(&sample.parts[1]), damage).unwrap();
        is_whole(&user.pull(&server.address).await.unwrap(), &sample);
        assert_eq!(server.count("/blobs/"), 4, "one of three is fetched a second time");
    }
}

#[tokio::test]
async fn an_interrupted_download_goes_on_where_it_was() {
    let (user, sample) = (User::new(), Sample::new(1));
    let answers = sample.clone();
    let server = Server::start(move |seen| {
        let mut answer = answers.answer(seen);
        if seen.path.ends_with(&sha256(&answers.parts[1])) && seen.range.is_none() {
            answer.body = Body::Stalled(answers.parts[1][..70_000].to_vec(), 100_000);
        }
        answer
    })
    .await;
    let patient = Patience { idle: Duration::from_secs(60), ..user.client().patience };
    let client = Registries {
        http: Arc::new(Http { connector: Connector::new(proxy::Proxies::default(), patient), patience: patient }),
        ..user.client()
    };
    let reference = format!("{}/debian:13", server.address);
    let interrupted = tokio::time::timeout(Duration::from_secs(2), pull(&client, &reference));
    assert!(interrupted.await.is_err());
    let left = user.cached();
    assert_eq!(
        left.iter().map(|(name, _)| name.len()).collect::<Vec<_>>().iter().sum::<usize>(),
        64 + 64 + ".partial".len()
    );
    assert!(left.iter().any(|(name, bytes)| name.ends_with(".partial") && *bytes == 70_000), "{left:?}");
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    assert!(server.seen().iter().any(|seen| seen.range == Some(70_000)));
}

#[tokio::test]
async fn two_of_the_same_user_download_a_blob_once() {
    let (user, sample) = (User::new(), Sample::new(3));
    let answers = sample.clone();
    let server = Server::start(move |seen| answers.answer(seen)).await;
    let (one, two) = tokio::join!(user.pull(&server.address), user.pull(&server.address));
    is_whole(&one.unwrap(), &sample);
    is_whole(&two.unwrap(), &sample);
    assert_eq!(server.count("/blobs/"), 4);
}

#[tokio::test]
async fn what_was_not_used_for_longest_goes_first() {
    let (mut user, sample) = (User::new(), Sample::new(2));
    user.cache_size = 250_000;
    let answers = sample.clone();
    let server = Server::start(move |seen| answers.answer(seen)).await;
    let old = user.home.path().join("banger/blobs/sha256").join("ab".repeat(32));
    fs::create_dir_all(old.parent().unwrap()).unwrap();
    fs::write(&old, vec![1; 50_000]).unwrap();
    let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(hour).unwrap();
    fs::write(user.home.path().join("banger/blobs/sha256/notes"), "mine").unwrap();
    user.pull(&server.address).await.unwrap();
    let names: Vec<String> = user.cached().into_iter().map(|(name, _)| name).collect();
    assert!(names.len() == 4 && !names.contains(&"ab".repeat(32)) && names.contains(&"notes".to_owned()), "{names:?}");
    // An image that is larger than the cache is pulled, and goes then.
    user.cache_size = 150_000;
    fs::remove_file(user.blob(&sample.parts[1])).unwrap();
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    let client = user.client();
    client.tidy();
    assert!(user.cached().iter().map(|(_, bytes)| bytes).sum::<u64>() <= 150_004, "{:?}", user.cached());
    let (would, did) = (client.cache.prune(true).unwrap(), client.cache.prune(false).unwrap());
    assert_eq!(would, did);
    assert_eq!(user.cached(), [("notes".to_owned(), 4)]);
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_need_not_be_there() {
    let (user, sample) = (User::new(), Sample::new(1));
    let answers = sample.clone();
    let broken = sample.clone();
    let registry = Server::start(move |seen| answers.answer(seen)).await;
    // It has the manifest, and another layer under the name of the right one.
    let layer = sha256(&sample.parts[1]);
    let mirror = Server::start(move |seen| {
        let plain = Seen { path: seen.path.replace("/prefix", ""), ..seen.clone() };
        if seen.path.ends_with(&layer) { reply(200, &[7; 100_000]) } else { broken.answer(&plain) }
    })
    .await;
    let mut client = user.client();
    let mirrors = ["http://127.0.0.1:1/".to_owned(), format!("http://{}/prefix", mirror.address)];
    let mirrors = mirrors.iter().map(|mirror| Url::parse(mirror).unwrap()).collect();
    client.mirrors.insert(registry.address.clone(), mirrors);
    is_whole(&pull(&client, &format!("{}/debian:13", registry.address)).await.unwrap(), &sample);
    assert_eq!((mirror.count("/prefix/v2/debian/manifests/13"), registry.count("manifests")), (1, 0));
    assert_eq!(registry.count("/blobs/"), 1, "only what the mirror had wrong");
}

#[tokio::test]
async fn what_is_expected_is_an_index_or_a_manifest_and_a_mirror_may_lag_behind() {
    let (user, sample, older) = (User::new(), Sample::new(1), Sample::new(2));
    let (os, architecture) = host();
    let mut ours = descriptor(&sample.manifest);
    ours["platform"] = serde_json::json!({ "os": os, "architecture": architecture });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [ours] }).to_string();
    let (answers, named) = (sample.clone(), index.clone());
    let registry = Server::start(move |seen| match seen.path.as_str() {
        "/v2/debian/manifests/13" => reply(200, named.as_bytes()),
        _ => answers.answer(seen),
    })
    .await;
    let mirror = Server::start(move |seen| older.answer(seen)).await;
    let mut client = user.client();
    client.mirrors.insert(registry.address.clone(), vec![Url::parse(&format!("http://{}/", mirror.address)).unwrap()]);
    let reference = Reference::parse(&format!("{}/debian:13", registry.address)).unwrap();
    let find = async |expected: &str| {
        client.find(&reference, Platform::of_host(), Some(expected.parse().unwrap())).await.map(|found| found.digest)
    };
    assert_eq!(find(&sha256(index.as_bytes())).await.unwrap().to_string(), sample.digest());
    assert_eq!(mirror.count("/manifests/13"), 1);
    // The manifest below the index is not what the registry names.
    let error = find(&sample.digest()).await.unwrap_err();
    assert!(told(&error).contains(&sha256(index.as_bytes())) && told(&error).contains(&sample.digest()), "{error:#}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_asked_for_and_drives_nothing_out() {
    let (mut user, good) = (User::new(), Sample::new(2));
    let answers = good.clone();
    let server = Server::start(move |seen| answers.answer(seen)).await;
    user.pull(&server.address).await.unwrap();
    let before = user.cached();
    let mut bad = Sample::new(1);
    let mut layer = descriptor(&bad.parts[1]);
    layer["size"] = (1_u64 << 62).into();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": descriptor(&bad.parts[0]), "layers": [layer] });
    bad.manifest = manifest.to_string().into_bytes();
    let server = Server::start(move |seen| bad.answer(seen)).await;
    let refused = told(&user.pull(&server.address).await.unwrap_err());
    assert!(refused.contains("and the image may have") && refused.contains("--size"), "{refused}");
    assert_eq!((server.count("/blobs/"), user.cached()), (0, before.clone()));
    // More than any disk: nothing is removed for it, though the cache is too large.
    user.cache_size = 1;
    let digest = Digest::from_bytes([7; 32]).unwrap();
    let full = user.client().cache.make_room_for(&[(digest, 1 << 60)].into()).unwrap_err();
    assert!(full.to_string().contains("there is room for"), "{full}");
    assert_eq!(user.cached(), before);
}

#[tokio::test]
async fn a_full_disk_keeps_no_part() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let (user, sample) = (User::new(), Sample::new(1));
    let answers = sample.clone();
    let server = Server::start(move |seen| answers.answer(seen)).await;
    user.pull(&server.address).await.unwrap();
    fs::remove_file(user.blob(&sample.parts[1])).unwrap();
    // Each write to /dev/full says that the disk is full (full(4)).
    let partial = user.blob(&sample.parts[1]).with_extension("partial");
    if let Err(error) = mknod(&partial, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 7)) {
        eprintln!("skipped: no device can be made: {error}");
        return;
    }
    let full = user.pull(&server.address).await.unwrap_err();
    assert!(format!("{full:#}").contains("No space left"), "{full:#}");
    assert!(!partial.exists());
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
}
