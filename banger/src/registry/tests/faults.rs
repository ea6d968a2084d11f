//! Registries that are slow, broken or hostile.

use super::server::{Body, Server};
use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A registry whose one layer is answered by `fault`, which is told how often it was asked before.
async fn faulty(
    sample: &Sample,
    fault: impl Fn(&Seen, usize, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let (sample, asked) = (sample.clone(), AtomicUsize::new(0));
    Server::start(move |seen| {
        let layer = &sample.parts[1];
        if !seen.path.ends_with(&sha256(layer)) {
            return sample.answer(seen);
        }
        fault(seen, asked.fetch_add(1, Ordering::Relaxed), layer).unwrap_or_else(|| sample.answer(seen))
    })
    .await
}

#[tokio::test]
async fn a_cut_connection_is_resumed() {
    let (user, sample) = (User::new(), Sample::new(1));
    let server = faulty(&sample, |seen, asked, layer| {
        let from = usize::try_from(seen.range.unwrap_or(0)).unwrap();
        let rest = &layer[from..];
        let mut answer = ranged(seen, layer);
        answer.body = match asked {
            0 => Body::Cut(rest[..30_000].to_vec(), rest.len()),
            1 => Body::Stalled(rest[..20_000].to_vec(), rest.len()),
            _ => return None,
        };
        Some(answer)
    })
    .await;
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    let ranges: Vec<_> = server
        .seen()
        .iter()
        .filter(|seen| seen.path.ends_with(&sha256(&sample.parts[1])))
        .map(|seen| seen.range)
        .collect();
    assert_eq!(ranges, [None, Some(30_000), Some(50_000)]);
}

#[tokio::test]
async fn who_does_not_know_ranges_is_asked_from_the_beginning() {
    let (user, sample) = (User::new(), Sample::new(1));
    let server = faulty(&sample, |seen, asked, layer| {
        Some(match (asked, seen.range) {
            (0, _) => Reply { body: Body::Cut(layer[..30_000].to_vec(), layer.len()), ..reply(200, b"") },
            // Another part than the one that was asked for.
            (1, Some(_)) => reply(206, &layer[5..]).header("Content-Range", "bytes 5-99999/100000"),
            _ => reply(200, layer),
        })
    })
    .await;
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
}

#[tokio::test]
async fn errors_of_the_server_are_asked_again_for_a_while() {
    let (user, sample) = (User::new(), Sample::new(1));
    let server =
        faulty(&sample, |_, asked, _| (asked < 3).then(|| reply(500 + u16::try_from(asked).unwrap(), b"oops"))).await;
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    let user = User::new();
    let server =
        faulty(&sample, |_, _, _| Some(reply(503, br#"{"errors":[{"message":"down for\u001b[2J repair"}]}"#))).await;
    let error = told(&user.pull(&server.address).await.unwrap_err());
    assert!(error.contains("503") && error.contains("down for[2J repair") && error.contains("layer 1 of 1"), "{error}");
    assert_eq!(server.count(&sha256(&sample.parts[1])), 5);
}

#[tokio::test]
async fn a_registry_that_wants_time_gets_it_within_reason() {
    let (user, sample) = (User::new(), Sample::new(1));
    let server = faulty(&sample, |_, asked, _| (asked < 1).then(|| reply(429, b"{}").header("Retry-After", "1"))).await;
    let began = Instant::now();
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let user = User::new();
    let server = faulty(&sample, |_, _, _| Some(reply(429, b"{}").header("Retry-After", "86400"))).await;
    let error = told(&user.pull(&server.address).await.unwrap_err());
    assert!(error.contains("429") && error.contains("86400 s") && error.contains("docker login"), "{error}");
    assert_eq!(server.count(&sha256(&sample.parts[1])), 1);
}

#[tokio::test]
async fn other_bytes_than_the_manifest_says_are_not_kept() {
    for (what, body) in [
        ("another digest", Body::Whole(vec![7; 100_000])),
        ("longer than the 100000 bytes", Body::Whole(vec![7; 100_001])),
        ("longer than the 100000 bytes", Body::Endless),
        ("ended after 0 of 100000 bytes", Body::Whole(Vec::new())),
    ] {
        let (user, sample) = (User::new(), Sample::new(1));
        let server = faulty(&sample, move |_, _, _| Some(Reply { body: body.clone(), ..reply(200, b"") })).await;
        let error = told(&user.pull(&server.address).await.unwrap_err());
        assert!(error.contains(what), "{what}: {error}");
        let left = user.cached();
        assert!(left.iter().all(|(name, bytes)| !name.contains(&sha256(&sample.parts[1])) || *bytes == 0), "{left:?}");
    }
}

#[tokio::test]
async fn manifests_have_bounds() {
    let user = User::new();
    for (what, body) in [
        ("longer than 4096 KiB", Body::Endless),
        ("longer than 4096 KiB", Body::Whole(vec![b' '; MAX_MANIFEST + 1])),
        ("is none", Body::Whole(b"<html>".to_vec())),
        ("names no layers", Body::Whole(br#"{"schemaVersion":2}"#.to_vec())),
        ("nothing arrived", Body::Stalled(b"{".to_vec(), 100)),
    ] {
        let server = Server::start(move |_| Reply { body: body.clone(), ..reply(200, b"") }).await;
        let error = told(&user.pull(&server.address).await.unwrap_err());
        assert!(error.contains(what), "{what}: {error}");
    }
    // Each index has the next one, and there is no image.
    let server = Server::start(move |seen| {
        let depth = seen.path.len();
        let next = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor(format!("{depth}").as_bytes()));
        reply(200, next.as_bytes())
    })
    .await;
    assert!(user.pull(&server.address).await.is_err());
    assert!(server.count("/manifests/") < 20);
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (user, sample) = (User::new(), Sample::new(1));
    let server =
        Server::start(|_| reply(404, br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#)).await;
    let error = told(&user.pull(&server.address).await.unwrap_err());
    assert!(error.contains("has no image") && error.contains("check the name and the tag"), "{error}");
    let server = faulty(&sample, |_, _, _| Some(reply(404, b"{}"))).await;
    let error = told(&user.pull(&server.address).await.unwrap_err());
    assert!(error.contains("it is not there"), "{error}");
    let error = told(&user.pull("127.0.0.1:1").await.unwrap_err());
    assert!(error.contains("127.0.0.1:1: cannot connect") && error.contains("HTTPS_PROXY"), "{error}");
    let sample = Sample::new(600);
    let server = Server::start(move |seen| sample.answer(seen)).await;
    let error = told(&user.pull(&server.address).await.unwrap_err());
    assert!(error.contains("600 layers"), "{error}");
}

#[tokio::test]
async fn an_image_for_another_machine_is_refused_before_its_layers_come() {
    let (user, mut sample) = (User::new(), Sample::new(1));
    sample.parts[0] = br#"{"os":"linux","architecture":"s390x"}"#.to_vec();
    let layers = [descriptor(&sample.parts[1])];
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": descriptor(&sample.parts[0]), "layers": layers });
    sample.manifest = manifest.to_string().into_bytes();
    let server = Server::start(move |seen| sample.answer(seen)).await;
    let error = told(&user.pull(&server.address).await.unwrap_err());
    assert!(error.contains("linux/s390x"), "{error}");
    assert_eq!(server.count("/blobs/"), 1);
}
