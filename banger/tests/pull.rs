//! `image pull` and `vm run --image REF` of the real program, with a registry on loopback and a
//! fake daemon.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]
#![expect(dead_code, reason = "the fake and the registry have more than these tests use")]

mod fake;
#[path = "../src/registry/tests/server.rs"]
mod server;

use banger_policy::lifecycle::State;
use fake::{Fake, vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use server::{Body, Reply, Seen, Server, ranged, reply};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

const LAYER: usize = 300_000;

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn image() -> (String, Vec<Vec<u8>>) {
    let config = br#"{"os":"linux","architecture":"amd64"}"#.to_vec();
    let layer: Vec<u8> = (0..LAYER).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let described =
        |bytes: &[u8]| serde_json::json!({ "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() });
    let manifest =
        serde_json::json!({ "schemaVersion": 2, "config": described(&config), "layers": [described(&layer)] });
    (manifest.to_string(), vec![config, layer])
}

/// A registry with `debian:13`; a fault may come first.
fn registry(fault: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let (tell, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (manifest, parts) = image();
            let answer = move |seen: &Seen| {
                if let Some(reply) = fault(seen) {
                    return reply;
                }
                if seen.path == "/v2/debian/manifests/13" {
                    return reply(200, manifest.as_bytes());
                }
                let part = parts.iter().find(|part| seen.path.ends_with(&sha256(part)));
                part.map_or_else(|| reply(404, b"{}"), |part| ranged(seen, part))
            };
            tell.send(Server::start(answer).await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    started.recv().unwrap()
}

/// The real program, without what the environment of the tests may say of registries.
fn banger(fake: &Fake, arguments: &[&str]) -> Command {
    let mut command = fake.banger(arguments);
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    for name in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "SSL_CERT_FILE"] {
        command.env_remove(name);
    }
    command
}

fn daemon() -> Fake {
    Fake::start(vec![vm("other", State::Stopped)])
}

fn home(fake: &Fake) -> PathBuf {
    fake.socket().parent().unwrap().to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// The daemon keeps what was sent.
fn remember(fake: &Fake) {
    let mut state = fake.state();
    let asked = state.asked.take().unwrap();
    state.pulled.push(asked);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_vm_of_an_image_that_is_not_here_is_run_and_the_second_time_nothing_is_moved() {
    let (fake, server) = (daemon(), registry(|_| None));
    let name = format!("{}/debian:13", server.address);
    let run = || banger(&fake, &["vm", "run", "--image", &name, "--", "exit", "7"]).output().unwrap();
    let output = run();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(7), "{text}");
    assert!(text.contains(&format!("image {name} is not here: pulling {name}")) && text.contains("pulled"), "{text}");
    assert!(!text.contains("left"), "no moving line without a terminal: {text}");
    let calls = fake.state().calls.clone();
    assert!(calls[0].starts_with(&format!("link {name} from {name}")) && calls[1].starts_with("create"), "{calls:?}");
    let mut names = Vec::new();
    for entry in tar::Archive::new(fake.state().uploaded.as_slice()).entries().unwrap() {
        names.push(entry.unwrap().path().unwrap().display().to_string());
    }
    let (manifest, parts) = image();
    for blob in [manifest.as_bytes(), &parts[0], &parts[1]] {
        assert!(names.contains(&format!("blobs/sha256/{}", sha256(blob))), "{names:?}");
    }
    remember(&fake);
    fake.state().uploaded.clear();
    let (asked, output) = (server.seen().len(), run());
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert_eq!((server.seen().len(), fake.state().uploaded.len()), (asked, 0), "a known name asks nobody");
    let output = banger(&fake, &["image", "pull", &name, "--name", "mine"]).output().unwrap();
    assert!(said(&output).contains("is up to date; nothing was downloaded"), "{}", said(&output));
    assert_eq!((server.seen().len(), fake.state().uploaded.len()), (asked + 1, 0), "the manifest alone");
}

#[test]
fn what_cannot_be_pulled_makes_no_vm() {
    let (fake, server) = (daemon(), registry(|_| None));
    for (image, what) in [
        (format!("{}/debian:99", server.address), "has no image"),
        (format!("{}/Debian", server.address), "no such image"),
        ("127.0.0.1:1/debian".to_owned(), "cannot connect"),
    ] {
        let output = banger(&fake, &["vm", "create", "--image", &image]).output().unwrap();
        assert!(output.status.code() == Some(1) && said(&output).contains(what), "{}", said(&output));
    }
    assert_eq!(fake.state().calls, Vec::<String>::new());
    let output = banger(&fake, &["image", "pull", "debian:13", "--platform", "linux/s390x"]).output().unwrap();
    assert!(said(&output).contains("VMs of this host run linux/"), "{}", said(&output));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_name_of_the_catalogue_is_what_the_catalogue_says() {
    let (fake, server) = (daemon(), registry(|_| None));
    let (manifest, _) = image();
    let reference = format!("{}/debian:13", server.address);
    let write = |text: &str| {
        fs::create_dir_all(home(&fake).join(".config/banger")).unwrap();
        fs::write(home(&fake).join(".config/banger/catalogue.toml"), text).unwrap();
    };
    let entry = |digest: &str| format!("[images.mine]\nreference = \"{reference}\"\ndigest = \"sha256:{digest}\"\n");
    let right = sha256(manifest.as_bytes());
    write(&entry(&right));
    let available = said(&banger(&fake, &["image", "list", "--available"]).output().unwrap());
    let is_listed = |line: &str| line.starts_with("mine") && line.contains(&reference) && line.contains(&right);
    assert!(available.lines().any(is_listed), "{available}");
    let output = banger(&fake, &["vm", "create", "--image", "mine"]).output().unwrap();
    assert!(said(&output).contains(&format!("image mine is not here: pulling {reference}")), "{}", said(&output));
    assert_eq!(fake.state().calls[0], format!("link mine from {reference}"));
    let output = banger(&fake, &["image", "pull", "mine"]).output().unwrap();
    assert!(said(&output).starts_with("pulled mine "), "{}", said(&output));
    // The tag was moved.
    fake.state().calls.clear();
    let other = "ab".repeat(32);
    write(&entry(&other));
    let output = banger(&fake, &["image", "pull", "mine"]).output().unwrap();
    let text = said(&output);
    assert!(output.status.code() == Some(1) && fake.state().calls.is_empty(), "{text}");
    let repository = format!("{}/debian", server.address);
    for part in [&right, &other, &format!("banger image pull {repository}@sha256:{other} --name NAME")] {
        assert!(text.contains(part.as_str()), "{part}: {text}");
    }
    // What is wrong with the catalogue stops nobody who names a registry.
    write("[images");
    assert!(
        said(&banger(&fake, &["image", "pull", "mine"]).output().unwrap()).contains("catalogue.toml cannot be used")
    );
    let output = banger(&fake, &["image", "pull", &reference]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn without_a_kernel_nothing_is_downloaded_for_a_vm() {
    let (fake, server) = (daemon(), registry(|_| None));
    let name = format!("{}/debian:13", server.address);
    let refused = |kernel: &[&str], said_of: &str| {
        let output = banger(&fake, &[&["vm", "run", "--image", &name], kernel].concat()).output().unwrap();
        let want = format!("banger: cannot run a VM: no such kernel: {said_of}\n  Import the host's own.\n");
        assert_eq!((output.status.code(), said(&output)), (Some(1), want));
    };
    refused(&["--kernel", "7.0"], "7.0");
    fake.state().no_kernel = true;
    refused(&[], "6.12");
    assert!(server.seen().is_empty() && fake.state().calls.is_empty());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_interrupted_pull_leaves_a_part_and_goes_on_from_there() {
    let (_, parts) = image();
    let layer = sha256(&parts[1]);
    let stalled = move |seen: &Seen| {
        let is_it = seen.path.ends_with(&layer) && seen.range.is_none();
        is_it.then(|| Reply { body: Body::Stalled(parts[1][..200_000].to_vec(), LAYER), ..reply(200, b"") })
    };
    let (fake, server) = (daemon(), registry(stalled));
    let name = format!("{}/debian:13", server.address);
    let blobs = home(&fake).join(".cache/banger/blobs/sha256");
    let sizes = || {
        let files = fs::read_dir(&blobs).into_iter().flatten().flatten();
        let mut sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
        sizes.sort_unstable();
        sizes
    };
    let child = banger(&fake, &["image", "pull", &name]).spawn().unwrap();
    for _ in 0..500 {
        if sizes().contains(&200_000) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains("the next pull goes on from there"), "{}", said(&output));
    assert_eq!(sizes(), [37, 200_000]);
    assert!(fake.state().uploaded.is_empty());
    let output = banger(&fake, &["image", "pull", &name]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(server.seen().last().unwrap().range, Some(200_000));
    let prune =
        |flags: &[&str]| said(&banger(&fake, &[&["image", "cache", "prune"], flags].concat()).output().unwrap());
    assert!(prune(&["--dry-run"]).starts_with("would remove 2 files"));
    assert!(prune(&[]).starts_with("removed 2 files"));
    assert_eq!(sizes(), [0_u64; 0]);
}

/// Many desktops set one for every program.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_proxy_that_banger_cannot_use_stops_only_what_would_go_through_it() {
    let (fake, server) = (daemon(), registry(|_| None));
    let pull = |name: &str, except: &str| {
        let mut command = banger(&fake, &["image", "pull", name]);
        said(&command.env("ALL_PROXY", "socks5h://u:secret@127.0.0.1:1").env("NO_PROXY", except).output().unwrap())
    };
    let text = pull(&format!("{}/debian:13", server.address), "");
    assert!(text.starts_with("pulled"), "{text}");
    let text = pull("registry.invalid/debian:13", "");
    assert!(text.contains("ALL_PROXY") && text.contains("socks5h") && !text.contains("secret"), "{text}");
    let text = pull("registry.invalid/debian:13", "registry.invalid");
    assert!(text.contains("cannot find registry.invalid"), "{text}");
}

#[test]
fn helpers_of_docker_are_the_users_own_programs() {
    let wants_login = |seen: &Seen| {
        // alice:secret
        let known = seen.authorization.as_deref() == Some("Basic YWxpY2U6c2VjcmV0");
        (!known).then(|| reply(401, b"{}").header("WWW-Authenticate", "Basic realm=\"x\""))
    };
    let (fake, server) = (daemon(), registry(wants_login));
    let (home, name) = (home(&fake), format!("{}/debian:13", server.address));
    fs::create_dir(home.join(".docker")).unwrap();
    let config = format!(r#"{{"credHelpers":{{"{}":"test"}},"credsStore":"other"}}"#, server.address);
    fs::write(home.join(".docker/config.json"), config).unwrap();
    let path = format!("{}:{}", home.display(), std::env::var("PATH").unwrap());
    let pull = || said(&banger(&fake, &["image", "pull", &name]).env("PATH", &path).output().unwrap());
    let helper = |script: &str| {
        let file = home.join("docker-credential-test");
        fs::write(&file, format!("#!/bin/sh\nread server\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let text = pull();
    assert!(text.contains("docker-credential-test (credHelpers of") && text.contains("it is not on PATH"), "{text}");
    helper("echo 'credentials not found in native keychain'; exit 1");
    assert!(pull().contains("has none for"), "{}", pull());
    helper("echo broken; exit 3");
    assert!(pull().contains("exit status: 3: broken"), "{}", pull());
    helper("echo '{\"Username\":\"bob\",\"Secret\":\"wrong\"}'");
    let text = pull();
    assert!(text.contains("the login is from docker-credential-test") && !text.contains("wrong"), "{text}");
    let right = format!(
        "test \"$1 $server\" = 'get {}' && echo '{{\"Username\":\"alice\",\"Secret\":\"secret\"}}'",
        server.address
    );
    helper(&right);
    let text = pull();
    assert!(text.contains("pulled") || text.contains("the image is for"), "{text}");
}
