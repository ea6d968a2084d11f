//! The real launcher: `bangerd launch-vmm` becomes the VMM, here a script that tells about itself.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use banger_policy::VmId;
use banger_vmm::cgroup::{Cgroups, Limits};
use banger_vmm::{Files, Launch, StandIn, VmmEnd, VmmError, launch};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(20);

fn vmm(folder: &Path) -> PathBuf {
    let path = folder.join("firecracker");
    fs::write(&path, "#!/bin/sh\necho \"$$ $*\"; umask; pwd; echo error >&2\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn orders(folder: &Path, groups: &Cgroups) -> Launch {
    let vm = VmId::from_bytes([3; 32]).unwrap();
    Launch {
        binary: vmm(folder),
        id: vm.short(),
        api_socket: folder.join("api.sock"),
        console: folder.join("console.log"),
        cgroup: groups.vm(1000, &vm),
        files: Files::default(),
        // A script needs its interpreter and what that runs.
        stand_in: Some(StandIn { paths: vec!["/usr/bin".into()] }),
        launcher: env!("CARGO_BIN_EXE_bangerd").into(),
    }
}

/// What Firecracker does: listens some time after its start.
async fn listen_later(path: PathBuf) -> UnixListener {
    sleep(Duration::from_millis(300)).await;
    UnixListener::bind(path).unwrap()
}

/// The script has become what it runs.
async fn settled(pid: u32) {
    let wait = async {
        while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != "sleep" {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, wait).await.unwrap();
}

#[tokio::test]
async fn the_vmm_starts_with_nothing_of_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let orders = orders(folder.path(), &Cgroups::untracked());
    fs::write(&orders.console, "the last boot").unwrap();
    fs::write(&orders.api_socket, "left").unwrap();
    // A descriptor that somebody forgot to mark.
    let forgotten = File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&forgotten, rustix::io::FdFlags::empty()).unwrap();

    let (vmm, _listener) = tokio::join!(launch(&orders), listen_later(orders.api_socket.clone()));
    let vmm = vmm.unwrap();
    let pid = vmm.pid();
    settled(pid).await;

    let said = fs::read_to_string(&orders.console).unwrap();
    let there = folder.path().display();
    assert_eq!(said, format!("{pid} --api-sock api.sock --id {}\n0077\n{there}\nerror\n", orders.id));
    assert_eq!(fs::metadata(&orders.console).unwrap().permissions().mode() & 0o777, 0o600);
    let mut open: Vec<(String, PathBuf)> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_link(entry.path()).unwrap()))
        .collect();
    open.sort();
    let console = orders.console.clone();
    let expected = [("0".into(), "/dev/null".into()), ("1".into(), console.clone()), ("2".into(), console)];
    assert_eq!(open, expected);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(!String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/environ")).unwrap()).contains("PATH="));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Session, field 6 (proc_pid_stat(5)): its own.
    assert_eq!(stat.rsplit_once(") ").unwrap().1.split(' ').nth(3), Some(pid.to_string().as_str()));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    // Soft and hard: what the host allows others is not what is left to it.
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert!(core.split_whitespace().take(2).eq(["0", "0"]), "{limits}");

    orders.cgroup.kill().await.unwrap();
    assert_eq!(timeout(SOON, vmm.ended()).await.unwrap(), VmmEnd::Killed(9));
    assert!(!vmm.is_alive());
}

/// Runs as root here, mostly: what is refused is refused by the confinement, not by modes.
#[tokio::test]
async fn a_vmm_reaches_its_own_files_and_no_others() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (own, secret) = (folder.path().join("kernel"), elsewhere.path().join("secret"));
    fs::write(&own, "own").unwrap();
    fs::write(&secret, "secret").unwrap();
    let mut orders = orders(folder.path(), &Cgroups::untracked());
    orders.files.read.push(own.clone());
    let script = format!(
        "#!/bin/sh\ncat {own}; echo; cat {secret}; echo >> {own}; ls {there}; true > {there}/made; chmod 777 {own}; kill -0 {pid}; \
         cat /proc/{pid}/comm; ls /; mkfifo api.sock_1; (echo forked)\necho done\nexec sleep 1000\n",
        own = own.display(),
        secret = secret.display(),
        there = elsewhere.path().display(),
        pid = std::process::id(),
    );
    fs::write(&orders.binary, script).unwrap();
    let (vmm, _listener) = tokio::join!(launch(&orders), listen_later(orders.api_socket.clone()));
    let vmm = vmm.unwrap();
    settled(vmm.pid()).await;
    orders.cgroup.kill().await.unwrap();
    let said = fs::read_to_string(&orders.console).unwrap();
    let refusals = said.lines().filter(|line| line.contains("denied") || line.contains("not permitted")).count();
    assert!(said.starts_with("own\n") && said.ends_with("forked\ndone\n"), "{said}");
    assert_eq!((refusals, said.lines().filter(|line| !line.is_empty()).count()), (9, 12), "{said}");
    assert!(!elsewhere.path().join("made").exists() && fs::read(&own).unwrap() == b"own");
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let groups = Cgroups::untracked();
    let missing = Launch { binary: "/nonexistent/firecracker".into(), ..orders(folder.path(), &groups) };
    let error = launch(&missing).await.unwrap_err();
    assert!(matches!(error, VmmError::Launcher(_)));
    let said = error.to_string();
    assert!(said.contains("/nonexistent/firecracker") && said.contains("No such file"), "{said}");
    let no_console = Launch { console: "/nonexistent/console".into(), ..orders(folder.path(), &groups) };
    let error = launch(&no_console).await.unwrap_err();
    assert!(error.to_string().contains("cannot open the console /nonexistent/console"), "{error}");
    assert!(!no_console.cgroup.populated().unwrap());
}

/// In a cgroup of its own. Controllers are not needed for this, only a folder of the unified
/// hierarchy.
#[tokio::test]
#[ignore = "needs BANGER_TEST_CGROUP, an empty writable cgroup2 folder"]
async fn the_vmm_runs_in_its_group_and_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let base = PathBuf::from(std::env::var_os("BANGER_TEST_CGROUP").unwrap());
    let groups = Cgroups::under(&base, &[]).unwrap();
    let orders = orders(folder.path(), &groups);
    let group = orders.cgroup.clone();
    assert!(!group.populated().unwrap() && group.procs().unwrap().is_empty());
    group.kill().await.unwrap();
    let limits = Limits { memory_bytes: 1 << 30, pids: 64, cpu_weight: 100 };
    group.create(&limits).unwrap();
    let (vmm, _listener) = tokio::join!(launch(&orders), listen_later(orders.api_socket.clone()));
    let vmm = vmm.unwrap();
    assert_eq!(group.procs().unwrap(), [vmm.pid()]);
    assert!(group.create(&limits).is_err() && group.remove().is_err());
    // Another daemon finds it by its group alone; the socket is this process', which is not in it.
    let adopted = banger_vmm::Vmm::adopt(group.clone(), &orders.api_socket, Some(vmm.pid())).await.unwrap();
    assert_eq!(adopted.unwrap().pid(), vmm.pid());
    let stranger = banger_vmm::Vmm::adopt(group.clone(), &orders.api_socket, Some(std::process::id())).await;
    assert!(stranger.unwrap().is_none());
    group.kill().await.unwrap();
    assert!(!group.populated().unwrap());
    group.remove().unwrap();
    group.remove().unwrap();
    assert!(!base.join("vms/1000").exists(), "the owner's group goes with its last VM");
}
