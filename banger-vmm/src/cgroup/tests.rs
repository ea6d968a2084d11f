use super::*;
use std::process::Command;

fn vm(byte: u8) -> VmId {
    VmId::from_bytes([byte; 32]).unwrap()
}

#[test]
fn only_the_delegated_leaf_is_ours() {
    let root = Path::new("/sys/fs/cgroup");
    let base = |own| delegated_base(root, own);
    assert_eq!(own_path("9:name=systemd:/\n0::/a/daemon\n"), Some("/a/daemon"));
    assert_eq!(own_path("1:cpu:/\n"), None);
    assert_eq!(base("/system.slice/bangerd.service/daemon"), Some(root.join("system.slice/bangerd.service")));
    for foreign in ["/", "/daemon", "/user.slice/session-1.scope", "/system.slice/bangerd.service", "/../daemon/x"] {
        assert_eq!(base(foreign), None, "{foreign}");
    }
}

#[test]
fn keyed_files_are_read_by_whole_keys() {
    let text = "populated_x 7\npopulated 1\nfrozen 0\n";
    assert_eq!(keyed(text, "populated"), Some(1));
    assert_eq!(keyed(text, "frozen"), Some(0));
    assert_eq!(keyed(text, "missing"), None);
}

#[tokio::test]
async fn without_groups_the_process_is_held_by_pidfd() {
    let groups = Cgroups::untracked();
    let group = groups.vm(1000, &vm(1));
    group.create(&Limits { memory_bytes: 1, pids: 1, cpu_weight: 100 }).unwrap();
    assert!(!group.populated().unwrap());
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    group.track(&Pidfd::open(child.id()).unwrap());
    // The same VM through another value; another VM sees nothing.
    assert_eq!(groups.vm(1000, &vm(1)).procs().unwrap(), [child.id()]);
    assert!(groups.vm(1000, &vm(2)).procs().unwrap().is_empty());
    assert!(groups.vm(1000, &vm(1)).usage().unwrap().memory_bytes > 0);
    assert!(group.create(&Limits { memory_bytes: 1, pids: 1, cpu_weight: 100 }).is_err());
    group.kill().await.unwrap();
    assert!(!group.populated().unwrap());
    child.wait().unwrap();
    group.remove().unwrap();
    assert!(group.procs().unwrap().is_empty());
}
