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

/// A folder in the place of the kernel's: what is written can be read, and nothing is enforced.
fn folder(controllers: &str) -> (tempfile::TempDir, Cgroups) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
    let groups = Cgroups::under(dir.path(), CONTROLLERS).unwrap();
    (dir, groups)
}

/// The kernel has these in each group.
fn files_of_the_kernel(group: &Path) {
    fs::create_dir_all(group).unwrap();
    for file in ["cpu.weight", "memory.high", "memory.max", "pids.max", "io.weight"] {
        fs::write(group.join(file), "").unwrap();
    }
}

#[test]
fn a_user_has_a_share_from_the_first_vm_on_and_another_one_at_once() {
    let (dir, groups) = folder("cpuset cpu io memory pids");
    let alice = dir.path().join("vms/1001");
    let told = |file: &str| fs::read_to_string(alice.join(file)).unwrap();
    let share = Share { cpu_weight: 300, memory_max: Some(5 << 30), ..Share::BUILT_IN };
    // Nothing of hers runs: it is kept.
    groups.share(1001, share).unwrap();
    assert!(!alice.exists());
    files_of_the_kernel(&alice);
    groups.vm(1001, &vm(1)).create(&Limits { memory_bytes: 1, pids: 1, cpu_weight: 100 }).unwrap();
    let values = ["cpu.weight", "memory.high", "memory.max", "pids.max", "io.weight"].map(told);
    assert_eq!(values, ["300", "max", "5368709120", "16384", "default 100"]);
    groups.share(1001, Share { io_weight: 7, memory_high: Some(1 << 30), ..Share::BUILT_IN }).unwrap();
    assert_eq!(["memory.high", "memory.max", "io.weight"].map(told), ["1073741824", "max", "default 7"]);
    assert_eq!(groups.owners(), [1001]);
    assert_eq!(fs::read_to_string(alice.join("cgroup.subtree_control")).unwrap(), "+memory +pids +cpu +io");
}

#[test]
fn a_kernel_without_io_shares_the_rest() {
    let (dir, groups) = folder("cpu memory pids");
    let bob = dir.path().join("vms/1002");
    files_of_the_kernel(&bob);
    groups.share(1002, Share::BUILT_IN).unwrap();
    assert_eq!(fs::read_to_string(bob.join("io.weight")).unwrap(), "");
    assert_eq!(fs::read_to_string(bob.join("cpu.weight")).unwrap(), "100");
}

#[test]
fn whose_limit_ended_a_vm_is_told_by_the_kernels_counts() {
    let (dir, groups) = folder("cpu memory pids");
    let group = groups.vm(1001, &vm(3));
    group.create(&Limits { memory_bytes: 1, pids: 1, cpu_weight: 100 }).unwrap();
    let (own, users) = (group.path().unwrap(), dir.path().join("vms/1001"));
    let write = |path: &Path, file: &str, text: &str| fs::write(path.join(file), text).unwrap();
    assert_eq!(group.out_of_memory(), None);
    write(own, "memory.events", "low 0\nhigh 9\nmax 3\noom 1\noom_kill 0\n");
    assert_eq!(group.out_of_memory(), None);
    write(own, "memory.events", "oom 0\noom_kill 1\noom_group_kill 1\n");
    assert_eq!(group.out_of_memory(), Some(OutOfMemory::Host));
    write(&users, "memory.events.local", "oom 2\n");
    assert_eq!(group.out_of_memory(), Some(OutOfMemory::User));
    write(own, "memory.events.local", "oom 1\n");
    assert_eq!(group.out_of_memory(), Some(OutOfMemory::Vm));
}

#[test]
fn who_parses_has_a_small_share_beside_vms() {
    let (dir, groups) = folder("memory pids cpu io");
    let group = dir.path().join("convert");
    files_of_the_kernel(&group);
    groups.hold_converter(4711).unwrap();
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
    assert_eq!([read("cgroup.procs"), read("cpu.weight"), read("io.weight")], ["4711", "20", "default 20"]);
    assert_eq!(read("memory.max"), (5_u64 << 30).to_string());
    assert!(groups.all().is_empty() && groups.owners().is_empty(), "it is no VM and no user");
    Cgroups::untracked().hold_converter(4711).unwrap();
}
