//! Who is told which password.

use super::server::Server;
use super::*;
use data_encoding::BASE64;

const PASSWORD: &str = "Basic YWxpY2U6c2VjcmV0";

fn with_login(address: &str) -> User {
    let user = User::new();
    let auth = BASE64.encode(b"alice:secret");
    write(&user.docker_config(), &format!(r#"{{"auths":{{"{address}":{{"auth":"{auth}"}}}}}}"#));
    user
}

/// Gives tokens to those whose header it is told.
async fn token_server(wanted: Option<&'static str>) -> Server {
    Server::start(move |seen| match seen.authorization.as_deref() == wanted {
        true => reply(200, br#"{"token":"t0ken","expires_in":60}"#),
        false => reply(401, b"{}"),
    })
    .await
}

/// Wants a token from there.
async fn registry(realm: String, sample: Sample) -> Server {
    Server::start(move |seen| match seen.authorization.as_deref() {
        Some("Bearer t0ken") => sample.answer(seen),
        _ => reply(401, b"{}").header("WWW-Authenticate", format!(r#"Bearer realm="{realm}",service="reg istry""#)),
    })
    .await
}

#[tokio::test]
async fn a_public_image_needs_no_login() {
    let (user, sample) = (User::new(), Sample::new(2));
    let tokens = token_server(None).await;
    let server = registry(format!("http://{}/token?x=1", tokens.address), sample.clone()).await;
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
    let asked = tokens.seen();
    assert_eq!(asked.len(), 1, "one token serves a whole pull: {asked:?}");
    assert_eq!(asked[0].path, "/token?x=1&scope=repository%3Adebian%3Apull&service=reg%20istry");
}

#[tokio::test]
async fn the_password_is_for_the_token_server_and_the_token_for_the_registry() {
    let sample = Sample::new(1);
    let tokens = token_server(Some(PASSWORD)).await;
    let server = registry(format!("http://{}/token", tokens.address), sample.clone()).await;
    is_whole(&with_login(&server.address).pull(&server.address).await.unwrap(), &sample);
    assert!(tokens.seen()[0].path.contains("account=alice"));
    let told_to_registry: Vec<_> = server.seen().into_iter().filter_map(|seen| seen.authorization).collect();
    assert!(told_to_registry.iter().all(|value| value == "Bearer t0ken"), "{told_to_registry:?}");
    // Without a login, or with another one, it says which one was sent.
    let error = told(&User::new().pull(&server.address).await.unwrap_err());
    assert!(error.contains("no login was sent") && error.contains("docker login"), "{error}");
    let wrong = with_login(&server.address);
    write(&wrong.docker_config(), &fs::read_to_string(wrong.docker_config()).unwrap().replace("YWxp", "Ym9i"));
    let error = told(&wrong.pull(&server.address).await.unwrap_err());
    assert!(error.contains("the login is from auths of") && error.contains("config.json"), "{error}");
    assert!(!error.contains("c2VjcmV0") && !error.contains("secret"), "{error}");
}

/// Programs write `null` for what they have none of, and begin with an empty file.
#[tokio::test]
async fn what_is_null_or_empty_in_the_file_of_logins_is_not_there() {
    let sample = Sample::new(1);
    let tokens = token_server(None).await;
    let server = registry(format!("http://{}/token", tokens.address), sample.clone()).await;
    for config in [
        "",
        " \n",
        r#"{"auths":null,"credHelpers":null,"credsStore":null}"#,
        r#"{"auths":{"other.example":null}}"#,
        r#"{"auths":{"other.example":{"auth":null,"username":null,"password":null,"identitytoken":null}}}"#,
        r#"{"credsStore":"","credHelpers":{"other.example":null}}"#,
    ] {
        let user = User::new();
        write(&user.docker_config(), config);
        let pulled = user.pull(&server.address).await;
        is_whole(&pulled.unwrap_or_else(|error| panic!("{config:?}: {}", told(&error))), &sample);
    }
}

/// With whose login, of these entries, `team/app/debian` is pulled. One without a name has none.
async fn user_of(auths: &[(&str, &str)]) -> Option<String> {
    let user = User::new();
    let entry = |name: &str| match name {
        "" => serde_json::json!({}),
        name => serde_json::json!({ "Auth": BASE64.encode(format!("{name}:x").as_bytes()) }),
    };
    let auths: BTreeMap<&str, _> = auths.iter().map(|(key, name)| (*key, entry(name))).collect();
    write(&user.docker_config(), &serde_json::json!({ "AUTHS": auths }).to_string());
    let registry = if auths.keys().any(|key| key.contains("docker.io")) { "docker.io" } else { "reg.example" };
    let found = credentials::find(Some(&user.docker_config()), registry, "team/app/debian").await.unwrap();
    match found.login? {
        credentials::Login::Password { user, .. } => Some(user),
        credentials::Login::Refresh(_) => None,
    }
}

#[tokio::test]
async fn of_several_entries_for_a_registry_the_nearest_with_a_login_counts() {
    for (auths, user) in [
        (&[("https://reg.example/v1/", "old"), ("reg.example", "new")][..], "new"),
        (&[("https://reg.example", ""), ("reg.example", "new")], "new"),
        (&[("https://reg.example/v1/", "old"), ("reg.example", "")], "old"),
        (&[("https://reg.example/v1/", "old"), ("https://reg.example", "new")], "new"),
        (&[("reg.example/other", "a"), ("reg.example/team", "b"), ("reg.example/team/app", "c")], "c"),
        (&[("reg.example/tea", "a"), ("reg.example/team", "b")], "b"),
        (&[("reg.example/other", "a"), ("reg.example/team", "b"), ("reg.example", "c")], "c"),
        (&[("reg.example/other", "a")], "a"),
        (&[("https://index.docker.io/v1/", "d"), ("docker.io", "p")], "d"),
        (&[("docker.io", "p")], "p"),
    ] {
        assert_eq!(user_of(auths).await.as_deref(), Some(user), "{auths:?}");
    }
    for auths in [&[("reg.example:443", "a")][..], &[("reg.example.org", "a")], &[("reg.example", "")], &[]] {
        assert_eq!(user_of(auths).await, None, "{auths:?}");
    }
}

#[tokio::test]
async fn a_login_of_another_registry_is_not_sent() {
    let sample = Sample::new(1);
    let tokens = token_server(None).await;
    let server = registry(format!("http://{}/token", tokens.address), sample.clone()).await;
    is_whole(&with_login("127.0.0.1:1").pull(&server.address).await.unwrap(), &sample);
    assert_eq!(tokens.seen()[0].authorization, None);
}

#[tokio::test]
async fn a_registry_may_want_the_password_itself() {
    let sample = Sample::new(1);
    let answers = sample.clone();
    let server = Server::start(move |seen| match seen.authorization.as_deref() {
        Some(PASSWORD) => answers.answer(seen),
        _ => reply(401, b"{}").header("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await;
    is_whole(&with_login(&server.address).pull(&server.address).await.unwrap(), &sample);
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let (user, sample) = (User::new(), Sample::new(1));
    let tokens = Server::start(|seen| {
        match seen.form.contains("grant_type=refresh_token&client_id=banger&refresh_token=r%20t") {
            true => reply(200, br#"{"access_token":"t0ken"}"#),
            false => reply(400, b"{}"),
        }
    })
    .await;
    let server = registry(format!("http://{}/token", tokens.address), sample.clone()).await;
    let config = format!(r#"{{"auths":{{"http://{}/v1/":{{"identitytoken":"r t"}}}}}}"#, server.address);
    write(&user.docker_config(), &config);
    is_whole(&user.pull(&server.address).await.unwrap(), &sample);
}

#[tokio::test]
async fn who_is_redirected_takes_no_password_along() {
    let sample = Sample::new(1);
    let answers = sample.clone();
    let storage = Server::start(move |seen| answers.answer(seen)).await;
    let (answers, place) = (sample.clone(), storage.address.clone());
    let server = Server::start(move |seen| match (seen.authorization.as_deref(), seen.path.contains("/blobs/")) {
        (Some(PASSWORD), true) => {
            reply(307, b"").header("Location", format!("http://{place}{}?sig=x", seen.path).replace("?sig=x", ""))
        }
        (Some(PASSWORD), false) => answers.answer(seen),
        _ => reply(401, b"{}").header("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await;
    is_whole(&with_login(&server.address).pull(&server.address).await.unwrap(), &sample);
    assert_eq!(storage.seen().len(), 2);
    assert!(storage.seen().iter().all(|seen| seen.authorization.is_none()), "{:?}", storage.seen());
    // In circles, and out into the open.
    for to in ["/v2/debian/manifests/13", "http://registry.example/x", "ftp://127.0.0.1/x", ""] {
        let server = Server::start(move |_| reply(302, b"").header("Location", to)).await;
        assert!(User::new().pull(&server.address).await.is_err(), "{to:?}");
        assert!(server.seen().len() <= 6);
    }
}

#[tokio::test]
async fn hostile_challenges_lead_nowhere() {
    for challenge in [
        "Bearer realm=\"http://auth.example/token\"",
        "Bearer realm=\"file:///etc/passwd\"",
        "Bearer",
        "Negotiate",
        "Bearer realm=\"http://127.0.0.1:1/\"",
    ] {
        let server = Server::start(move |_| reply(401, b"{}").header("WWW-Authenticate", challenge)).await;
        let error = told(&with_login(&server.address).pull(&server.address).await.unwrap_err());
        assert!(!error.contains("secret") && server.seen().len() <= 5, "{challenge}: {error}");
        assert!(server.seen().iter().all(|seen| seen.authorization.is_none()), "{challenge}");
    }
    // A token that would be a second header.
    let sample = Sample::new(1);
    let tokens = Server::start(|_| reply(200, br#"{"token":"a\r\nX: y"}"#)).await;
    let server = registry(format!("http://{}/token", tokens.address), sample).await;
    let error = told(&User::new().pull(&server.address).await.unwrap_err());
    assert!(error.contains("cannot be sent"), "{error}");
}

#[tokio::test]
async fn forbidden_is_said_with_the_login() {
    let server =
        Server::start(|_| reply(403, br#"{"errors":[{"code":"DENIED","message":"requested access is denied"}]}"#))
            .await;
    let error = told(&User::new().pull(&server.address).await.unwrap_err());
    assert!(error.contains("403: requested access is denied") && error.contains("no login was sent"), "{error}");
    let user = User::new();
    write(&user.docker_config(), "{not json");
    let error = told(&user.pull(&server.address).await.unwrap_err());
    assert!(error.contains("config.json") && error.contains("mend it"), "{error}");
}
