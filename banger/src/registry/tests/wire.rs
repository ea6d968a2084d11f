//! TLS, and proxies. The key beside this file is for these tests only, and nobody trusts it.

use super::server::Server;
use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const CERTIFICATE: &str = include_str!("cert.pem");
const KEY: &str = include_str!("key.pem");
/// Of the same key: as `openssl req -x509` makes it, which is that of an authority (`CA:TRUE`).
const SELF_SIGNED: &str = include_str!("self-signed.pem");
/// The same, until 2021.
const EXPIRED: &str = include_str!("expired.pem");

/// A registry that speaks TLS; gives its address.
async fn tls_server(answer: impl Fn(&Seen) -> Reply + Clone + Send + Sync + 'static) -> (Server, String) {
    tls_server_with(CERTIFICATE, answer).await
}

async fn tls_server_with(
    certificate: &str,
    answer: impl Fn(&Seen) -> Reply + Clone + Send + Sync + 'static,
) -> (Server, String) {
    let certificates = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(certificates, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Server::start(|_| reply(500, b"")).await;
    let serving = server.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, serving, answer) = (acceptor.clone(), serving.clone(), answer.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.ok()?;
                serving.talk(stream, Arc::new(answer)).await
            });
        }
    });
    (server, address)
}

fn answers(sample: &Sample) -> impl Fn(&Seen) -> Reply + Clone + Send + Sync + 'static {
    let sample = sample.clone();
    move |seen| sample.answer(seen)
}

/// A proxy that connects to one place, wherever it is asked to; gives its address and remembers
/// what was asked.
pub(super) async fn proxy(to: String, answer: &'static str) -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let told = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (to, told) = (to.clone(), Arc::clone(&told));
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.ok()?);
                }
                told.lock().unwrap().push(String::from_utf8(head).unwrap());
                stream.write_all(answer.as_bytes()).await.ok()?;
                let mut onward = TcpStream::connect(to).await.ok()?;
                tokio::io::copy_bidirectional(&mut stream, &mut onward).await.ok()
            });
        }
    });
    (address, asked)
}

pub(super) fn client(user: &User, proxy: &str, trusted: bool) -> Registries {
    client_with(user, proxy, trusted.then_some(CERTIFICATE))
}

fn client_with(user: &User, proxy: &str, trusted: Option<&str>) -> Registries {
    let own = user.home.path().join("ca.pem");
    let proxies = proxy::Proxies::new(Some(("HTTPS_PROXY", &format!("http://u:p@{proxy}"))), "");
    let patience = user.client().patience;
    let mut connector = Connector::new(proxies, patience);
    if let Some(trusted) = trusted {
        write(&own, trusted);
        connector = connector.trusting(tls::of_bundle(&own).unwrap());
    }
    Registries { http: Arc::new(Http { connector, patience }), ..user.client() }
}

pub(super) const OK: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

#[tokio::test]
async fn through_a_proxy_with_ones_own_authority() {
    let (user, sample) = (User::new(), Sample::new(2));
    let (server, address) = tls_server(answers(&sample)).await;
    let (proxy, asked) = proxy(address, OK).await;
    is_whole(&pull(&client(&user, &proxy, true), "registry.test/debian:13").await.unwrap(), &sample);
    assert_eq!(server.count("/v2/debian/"), 4);
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|head| head.starts_with("CONNECT registry.test:443 HTTP/1.1\r\n")), "{asked:?}");
    assert!(asked[0].contains("\r\nProxy-Authorization: Basic dTpw\r\n"), "{asked:?}");
}

#[tokio::test]
async fn who_is_not_trusted_is_told_nothing() {
    let (user, sample) = (User::new(), Sample::new(1));
    let (server, address) = tls_server(answers(&sample)).await;
    let (proxy, _) = proxy(address, OK).await;
    for (reference, trusted) in [("registry.test/debian:13", false), ("another.test/debian:13", true)] {
        let error = told(&pull(&client(&user, &proxy, trusted), reference).await.unwrap_err());
        assert!(error.contains("certificate is not trusted") && error.contains("SSL_CERT_FILE"), "{error}");
    }
    assert_eq!(server.seen().len(), 0);
}

/// The certificate of a registry of one's own has mostly signed itself, and so is an authority's,
/// too: whoever trusts that certificate trusts its holder.
#[tokio::test]
async fn a_registry_whose_certificate_has_signed_itself_is_trusted_by_whoever_trusts_that() {
    let (user, sample) = (User::new(), Sample::new(1));
    let both = format!("{CERTIFICATE}{SELF_SIGNED}");
    for (shown, trusted, reference, why) in [
        (SELF_SIGNED, SELF_SIGNED, "registry.test/debian:13", None),
        (SELF_SIGNED, both.as_str(), "registry.test/debian:13", None),
        (SELF_SIGNED, both.as_str(), "mirror.test/debian:13", Some("not valid for name")),
        (SELF_SIGNED, CERTIFICATE, "registry.test/debian:13", Some("UnknownIssuer")),
        (SELF_SIGNED, EXPIRED, "registry.test/debian:13", Some("UnknownIssuer")),
        (EXPIRED, EXPIRED, "registry.test/debian:13", Some("expired")),
    ] {
        let (server, address) = tls_server_with(shown, answers(&sample)).await;
        let (proxy, _) = proxy(address, OK).await;
        let pulled = pull(&client_with(&user, &proxy, Some(trusted)), reference).await;
        match why {
            None => is_whole(&pulled.unwrap(), &sample),
            Some(why) => {
                let error = told(&pulled.unwrap_err());
                assert!(error.contains(why) && error.contains("certificate is not trusted"), "{why}: {error}");
                assert_eq!(server.seen().len(), 0, "{why}");
            }
        }
    }
}

#[tokio::test]
async fn a_registry_elsewhere_sends_nobody_to_this_host() {
    let user = User::new();
    let tokens = Server::start(|_| reply(200, br#"{"token":"t0ken"}"#)).await;
    let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.address);
    let challenges = move |_: &Seen| reply(401, b"{}").header("WWW-Authenticate", challenge.clone());
    let (server, address) = tls_server(challenges).await;
    let (proxy, _) = proxy(address, OK).await;
    let error = told(&pull(&client(&user, &proxy, true), "registry.test/debian:13").await.unwrap_err());
    assert!(error.contains("where a password would go unencrypted"), "{error}");
    assert!(server.count("/v2/") > 0 && tokens.seen().is_empty(), "{:?}", tokens.seen());
}

/// `localhost/app` means two ports: 443 with TLS, and 80 without.
#[tokio::test]
async fn without_a_port_a_registry_here_may_speak_either() {
    let user = User::new();
    let (_server, tls) = tls_server(|_| reply(500, b"")).await;
    let plain = Server::start(|_| reply(500, b"")).await;
    let closed = "127.0.0.1:1";
    let client = client(&user, closed, true);
    for (secure, open, is_plain) in
        [(tls.as_str(), closed, false), (&tls, &plain.address, false), (closed, &plain.address, true)]
    {
        let url = |scheme: &str, address: &str| Url::parse(&format!("{scheme}://{address}/")).unwrap();
        let asked = client.http.connector.is_plain(&url("https", secure), &url("http", open)).await;
        assert_eq!(asked.map_err(|fault| told(&fault.error)), Ok(is_plain), "{secure} {open}");
    }
    let nobody = Url::parse(&format!("http://{closed}/")).unwrap();
    assert!(client.http.connector.is_plain(&nobody, &nobody).await.is_err());
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let user = User::new();
    for (answer, what) in [
        ("HTTP/1.1 407 Login\r\n\r\n", "it wants a login"),
        ("HTTP/1.1 403 No\r\n\r\n", "it refused: HTTP/1.1 403 No"),
        ("SSH-2.0-x\r\n\r\n", "it refused"),
    ] {
        let (proxy, _) = proxy("127.0.0.1:1".to_owned(), answer).await;
        let error = told(&pull(&client(&user, &proxy, true), "registry.test/debian:13").await.unwrap_err());
        assert!(error.contains(what) && error.contains(&proxy), "{error}");
    }
}
