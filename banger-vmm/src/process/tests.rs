use super::*;
use crate::api::{Drive, Interface, VmmConfig, configure_and_start, version};
use crate::cgroup::Cgroups;
use crate::confine::Files;
use banger_policy::VmId;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

/// Answers HTTP requests as Firecracker does and gives them back as `PUT /path body`.
async fn fake(listener: UnixListener, refuse: Option<&'static str>) -> Vec<String> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut seen = Vec::new();
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap() == 0 {
                return seen;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            if head.is_empty() {
                head = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let refused = refuse.is_some_and(|path| head.ends_with(path));
        seen.push(format!("{head} {}", String::from_utf8(body).unwrap()));
        let answer = if refused {
            let fault = r#"{"fault_message":"Unable to open the tap"}"#;
            format!("HTTP/1.1 400 \r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{fault}", fault.len())
        } else {
            "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n".to_owned()
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn config(folder: &Path) -> VmmConfig {
    VmmConfig {
        vcpu_count: 2,
        mem_size_mib: 512,
        kernel: "/k/vmlinux".into(),
        initrd: "/i".into(),
        boot_args: "console=ttyS0".into(),
        drives: vec![Drive { id: "root".into(), path: "/dev/dm-3".into(), read_only: false }],
        network: Some(Interface { tap: "bgr-x".into(), mac: "06:00:ac:10:00:02".into() }),
        vsock_cid: 4,
        vsock_path: folder.join("vsock.sock"),
        metrics_path: Some(folder.join("metrics")),
    }
}

#[tokio::test]
async fn a_vmm_is_told_everything_and_started_last() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    std::fs::write(folder.path().join("vsock.sock"), "left").unwrap();
    let seen = tokio::spawn(fake(UnixListener::bind(&socket).unwrap(), None));
    configure_and_start(&socket, &config(folder.path())).await.unwrap();
    let seen = seen.await.unwrap();
    let paths: Vec<&str> = seen.iter().filter_map(|request| request.split(' ').nth(1)).collect();
    let expected =
        "/logger /metrics /machine-config /boot-source /drives/root /network-interfaces/eth0 /vsock /actions";
    assert_eq!(paths.join(" "), expected);
    let drive = seen.iter().find(|request| request.contains("/drives/root")).unwrap();
    for part in [r#""cache_type":"Writeback""#, r#""is_root_device":false"#, r#""path_on_host":"/dev/dm-3""#] {
        assert!(drive.contains(part), "{drive}");
    }
    let vsock = seen.iter().find(|request| request.contains("/vsock")).unwrap();
    assert!(vsock.contains(r#""uds_path":"vsock.sock""#), "{vsock}");
    assert!(seen.last().unwrap().contains("InstanceStart"));
    assert!(!folder.path().join("vsock.sock").exists(), "a left socket is in Firecracker's way");
    assert_eq!(std::fs::metadata(folder.path().join("metrics")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_refusal_names_the_step_and_stops_there() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let seen = tokio::spawn(fake(UnixListener::bind(&socket).unwrap(), Some("/eth0")));
    let error = configure_and_start(&socket, &config(folder.path())).await.unwrap_err();
    assert_eq!(error.to_string(), "firecracker refused network-interface: Unable to open the tap");
    assert!(!seen.await.unwrap().iter().any(|request| request.contains("InstanceStart")));
    let nobody = configure_and_start(&folder.path().join("none"), &config(folder.path())).await;
    assert!(matches!(nobody, Err(VmmError::Unanswered { .. })));
}

#[tokio::test]
async fn a_vmm_that_hangs_up_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let hang_up = tokio::spawn(async move { drop(listener.accept().await.unwrap()) });
    let error = configure_and_start(&socket, &config(folder.path())).await.unwrap_err();
    assert!(matches!(error, VmmError::Unanswered { step: "logger", .. }), "{error}");
    hang_up.await.unwrap();
}

fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn a_binary_says_its_version_or_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let good = script(folder.path(), "good", "echo 'Firecracker v1.16.0'; echo; echo more");
    assert_eq!(version(&good).await.unwrap(), "Firecracker v1.16.0");
    let bad = script(folder.path(), "bad", "echo no; exit 3");
    assert!(matches!(version(&bad).await, Err(VmmError::Version { .. })));
    assert!(matches!(version(Path::new("/nonexistent")).await, Err(VmmError::Binary { .. })));
}

fn order(folder: &Path, launcher: PathBuf) -> Launch {
    let vm = VmId::from_bytes([7; 32]).unwrap();
    Launch {
        binary: "/bin/false".into(),
        id: vm.short(),
        api_socket: folder.join("api.sock"),
        console: folder.join("console.log"),
        cgroup: Cgroups::untracked().vm(1000, &vm),
        files: Files::default(),
        stand_in: None,
        launcher,
    }
}

#[tokio::test]
async fn what_the_launcher_says_is_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let launcher = script(folder.path(), "launcher", "echo 'cannot enter /x' >&2; exit 126");
    let error = launch(&order(folder.path(), launcher)).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot start firecracker: cannot enter /x");
}

#[tokio::test]
async fn a_vmm_that_ends_at_once_is_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let console = folder.path().join("console.log");
    let text = format!("exec 2>/dev/null; echo 'KVM is not there' > {}; exit 1", console.display());
    let launcher = script(folder.path(), "launcher", &text);
    let error = launch(&order(folder.path(), launcher)).await.unwrap_err();
    assert_eq!(error.to_string(), "firecracker ended at once (exit status 1): KVM is not there");
}

#[tokio::test]
async fn a_start_that_is_dropped_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let launcher = script(folder.path(), "launcher", "exec 2>/dev/null; exec sleep 1000");
    let order = order(folder.path(), launcher);
    assert!(timeout(Duration::from_millis(500), launch(&order)).await.is_err());
    for _ in 0..100 {
        if !order.cgroup.populated().unwrap() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert!(!order.cgroup.populated().unwrap());
}

#[tokio::test]
async fn only_what_answers_on_the_socket_is_adopted_without_groups() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let groups = Cgroups::untracked();
    let group = groups.vm(1000, &VmId::from_bytes([7; 32]).unwrap());
    // A number alone, even of a living process, proves nothing.
    let found = Vmm::adopt(group.clone(), &socket, Some(std::process::id())).await.unwrap();
    assert!(found.is_none());
    let _listener = UnixListener::bind(&socket).unwrap();
    let found = Vmm::adopt(group.clone(), &socket, None).await.unwrap().unwrap();
    assert_eq!(found.pid(), std::process::id());
    assert!(found.is_alive() && group.populated().unwrap());
}
