//! Addresses, mirrors and registries that do not answer, or not as they should.

use super::server::Server;
use super::*;
use crate::registry::connect::first_of;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// An address that swallows packets, as long as what comes with it lives: its queue is full.
async fn swallowing() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        queue.push(stream.unwrap());
    }
    (address, (listener, queue))
}

#[tokio::test]
async fn an_address_that_swallows_packets_does_not_keep_from_the_next_one() {
    let (full, _queue) = swallowing().await;
    let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let good = good.local_addr().map(|address| (address, good)).unwrap();
    let refused: SocketAddr = "127.0.0.1:1".parse().unwrap();
    for addresses in [vec![full, good.0], vec![full, refused, full, good.0], vec![refused, good.0], vec![good.0, full]]
    {
        let stream = timeout(Duration::from_secs(2), first_of(addresses.clone())).await;
        assert_eq!(stream.unwrap().unwrap().peer_addr().unwrap(), good.0, "{addresses:?}");
    }
    let error = first_of(vec![refused, "[2001:db8::1]:1".parse().unwrap()]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    assert!(first_of(Vec::new()).await.is_err());
}

/// A client for `registry` with this mirror.
fn with_mirror(user: &User, registry: &Server, mirror: &str) -> Registries {
    let mut client = user.client();
    client.patience.connect = Duration::from_millis(500);
    client.http = Arc::new(Http {
        connector: Connector::new(proxy::Proxies::default(), client.patience),
        patience: client.patience,
    });
    client.mirrors.insert(registry.address.clone(), vec![Url::parse(&format!("http://{mirror}/")).unwrap()]);
    client
}

#[tokio::test]
async fn a_mirror_that_does_not_answer_is_waited_for_once() {
    let sample = Sample::new(6);
    let answers = sample.clone();
    let registry = Server::start(move |seen| answers.answer(seen)).await;
    let pulled = async |mirror: &str| {
        let user = User::new();
        let began = Instant::now();
        let reference = format!("{}/debian:13", registry.address);
        is_whole(&pull(&with_mirror(&user, &registry, mirror), &reference).await.unwrap(), &sample);
        began.elapsed()
    };
    // It swallows packets.
    let (full, _queue) = swallowing().await;
    let took = pulled(&full.to_string()).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    // It takes connections, and says nothing on them.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mute, taken) = (listener.local_addr().unwrap().to_string(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&taken);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
    });
    pulled(&mute).await;
    assert_eq!(taken.load(Ordering::Relaxed), 1);
    // It answers, and never with what was asked for: five times each was asked.
    let broken = Server::start(|_| reply(502, b"<html>")).await;
    pulled(&broken.address).await;
    assert_eq!(broken.count("/v2/"), 5);
}

#[tokio::test]
async fn a_mirror_that_was_given_up_is_asked_again_before_the_pull_fails() {
    let (user, sample, asked) = (User::new(), Sample::new(1), AtomicUsize::new(0));
    let answers = sample.clone();
    // It has no layers.
    let registry = Server::start(move |seen| {
        if seen.path.ends_with(&sha256(&answers.parts[1])) { reply(404, b"{}") } else { answers.answer(seen) }
    })
    .await;
    let answers = sample.clone();
    let mirror = Server::start(move |seen| match asked.fetch_add(1, Ordering::Relaxed) {
        0..5 => reply(503, b"{}"),
        _ => answers.answer(seen),
    })
    .await;
    let client = with_mirror(&user, &registry, &mirror.address);
    is_whole(&pull(&client, &format!("{}/debian:13", registry.address)).await.unwrap(), &sample);
    // What it says of a failure is not what a user can mend.
    let user = User::new();
    let gone = with_mirror(&user, &registry, "127.0.0.1:1");
    let error = told(&pull(&gone, &format!("{}/debian:13", registry.address)).await.unwrap_err());
    assert!(error.contains("it is not there") && error.contains(&registry.address), "{error}");
}

/// As Go's server answers who speaks TLS to it.
#[tokio::test]
async fn a_registry_elsewhere_that_speaks_plain_http_is_named_with_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 16];
            drop(stream.read(&mut some).await);
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request").await);
        }
    });
    let (proxy, _) = wire::proxy(place, wire::OK).await;
    let user = User::new();
    let error = told(&pull(&wire::client(&user, &proxy, true), "registry.test:5000/debian:13").await.unwrap_err());
    for words in ["does not speak TLS", "ssh -N -L 5000:registry.test:5000 HOST", "--src-tls-verify=false"] {
        assert!(error.contains(words), "{words}: {error}");
    }
}
