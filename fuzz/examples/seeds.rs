//! Writes one valid input of each shape into `corpus/`, for the fuzzer to start from. To be run again when the wire or the ledger changes:
//! `cargo run --example seeds` in this folder. What fuzzing has found beyond these lies beside them.

use banger_policy::holding::{AttachedDisk, Cow, Disk, Process, Row, Tap};
use banger_policy::vm::RestartPolicy;
use banger_policy::{Digest, VmId};
use banger_proto::daemon::{DaemonRequest, KillSignal};
use banger_proto::helper::{DiskIdentity, HelperRequest, TapIdentity};
use banger_proto::model::{CreateRequest, JobId, SetRequest};
use banger_proto::stream::StreamRequest;
use banger_proto::transport::{DAEMON_LIMITS, HELPER_LIMITS};
use banger_proto::wire::{Hello, Purpose, ToServer, encode};
use banger_priv::record;
use std::error::Error;
use std::net::Ipv4Addr;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let vm = VmId::from_bytes([0x5a; 32])?;
    helper(vm)?;
    daemon()?;
    ledger(vm)?;
    for (name, hello) in [("hello-calls", Purpose::Calls), ("hello-stream", Purpose::Stream)] {
        write("text", name, &Hello::ours(hello).encode())?;
    }
    for text in ["512M", "1.5G", "demo-1", "debian:13", &vm.to_string()] {
        write("text", text.split(':').next().unwrap_or(text), text.as_bytes())?;
    }
    // Six bytes a request: acquire, attach, NAT, bind, release tap, detach, release.
    let life = [[0, 1, 9, 0, 0, 0], [2, 1, 0, 0, 0, 0], [4, 1, 0, 0, 1, 0], [5, 1, 7, 0, 1, 1], [1, 1, 0, 0, 0, 0]];
    write("policy", "a-life", &life.concat())?;
    write("policy", "an-end", &[life.concat(), vec![3, 1, 0, 0, 0, 0, 7, 1, 0, 0, 0, 0]].concat())
}

fn helper(vm: VmId) -> Result<()> {
    let tap = TapIdentity { tap_device: vm.tap_name(), generation: 7 };
    let disk = DiskIdentity {
        dm_name: vm.dm_name(),
        dm_dev: "/dev/dm-3".to_owned(),
        base_loop: "/dev/loop4".to_owned(),
        cow_loop: "/dev/loop5".to_owned(),
        generation: 7,
    };
    let image = Digest::from_bytes([1; 32])?;
    let requests = [
        ("acquire-tap", HelperRequest::AcquireTap { vm, owner: 1001, address_index: 1 }),
        ("release-tap", HelperRequest::ReleaseTap { vm, tap }),
        ("create-disk", HelperRequest::CreateDisk { vm, owner: 1001, image, root_bytes: 1 << 30 }),
        ("attach-disk", HelperRequest::AttachDisk { vm, owner: 1001 }),
        ("give-disk", HelperRequest::GiveDisk { vm, owner: 1001 }),
        ("detach-disk", HelperRequest::DetachDisk { vm, disk }),
        ("discard-disk", HelperRequest::DiscardDisk { vm }),
        ("enable-nat", HelperRequest::EnableNat { vm }),
        ("disable-nat", HelperRequest::DisableNat { vm }),
        ("bind-process", HelperRequest::BindProcess { vm, pid: 4711 }),
        ("process-running", HelperRequest::ProcessRunning { vm, pid: 4711 }),
        ("identity", HelperRequest::Identity { vm }),
        ("list", HelperRequest::List { after: Some(vm) }),
        ("release", HelperRequest::Release { vm }),
        ("grow-disk", HelperRequest::GrowDisk { vm, owner: 1001, root_bytes: 2 << 30 }),
    ];
    for (name, body) in requests {
        let call = ToServer::Call { id: 1, timeout_ms: 30_000, body };
        write("helper_frame", name, &encode(&call, HELPER_LIMITS.max_frame)?)?;
    }
    write("helper_frame", "cancel", &encode(&ToServer::<HelperRequest>::Cancel { id: 1 }, HELPER_LIMITS.max_frame)?)
}

fn daemon() -> Result<()> {
    let vm = || "demo".to_owned();
    let request = CreateRequest {
        name: Some(vm()),
        image_name: Some("debian".to_owned()),
        kernel_name: None,
        vcpu_count: Some(2),
        memory_mib: Some(512),
        system_overlay_size_bytes: Some(1 << 30),
        work_disk_size_bytes: None,
        nat: true,
        restart: RestartPolicy::Always,
        no_start: false,
    };
    let exec = StreamRequest::Exec {
        vm: vm(),
        command: vec!["uname".to_owned(), "-a".to_owned()],
        env: vec![("LANG".to_owned(), "C.UTF-8".to_owned())],
        working_dir: Some("/srv".to_owned()),
        user: Some("app".to_owned()),
        terminal: None,
    };
    let image = StreamRequest::ImportImage { name: vm(), source: "a.tar".to_owned(), build_size: Some(1 << 30), shared: false, reference: None, pulled: true };
    let requests = [
        ("info", DaemonRequest::Info {}),
        ("list-vms", DaemonRequest::ListVms { all: true, after: Some(VmId::from_bytes([1; 32])?) }),
        ("show-vm", DaemonRequest::ShowVm { vm: vm() }),
        ("create-vm", DaemonRequest::CreateVm { request, keep_on_error: false }),
        ("set-vm", DaemonRequest::SetVm { vm: vm(), request: SetRequest { nat: Some(true), ..SetRequest::default() } }),
        ("kill-vm", DaemonRequest::KillVm { vm: vm(), signal: KillSignal::Term }),
        ("ssh-access", DaemonRequest::SshAccess { vm: vm(), public_key: "ssh-ed25519 AAAA".to_owned() }),
        ("exec", DaemonRequest::OpenStream { request: exec }),
        ("import-image", DaemonRequest::OpenStream { request: image }),
        ("watch-job", DaemonRequest::WatchJob { job: JobId(3), after_seq: 5 }),
    ];
    for (name, body) in requests {
        let call = ToServer::Call { id: 1, timeout_ms: 30_000, body };
        write("daemon_frame", name, &encode(&call, DAEMON_LIMITS.max_frame)?)?;
    }
    Ok(())
}

fn ledger(vm: VmId) -> Result<()> {
    let row = Row {
        vm,
        owner: 1001,
        generation: 7,
        tap: Tap::Held { address: Ipv4Addr::new(172, 16, 0, 2), ifindex: 12 },
        disk: Disk::Held(AttachedDisk { minor: 3, base_loop: 4, cow_loop: 5 }),
        nat: true,
        process: Some(Process { pid: 4711, pidfd_inode: 99, start_ticks: 100_000 }),
        quarantined: false,
    };
    let cow = Cow {
        vm,
        owner: 1001,
        image: Digest::from_bytes([1; 32])?,
        base_bytes: 1 << 32,
        root_bytes: 1 << 30,
        file_bytes: 1 << 30,
        growing_to: None,
        generation: 8,
        ready: true,
    };
    write("ledger", "row", &record::encode(&row)?)?;
    write("ledger", "cow", &record::encode(&cow)?)?;
    write("ledger", "bare-row", &serde_json::to_vec(&row)?)
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&folder)?;
    Ok(std::fs::write(folder.join(name), bytes)?)
}
