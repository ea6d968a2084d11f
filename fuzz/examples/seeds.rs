//! Writes one valid input of each shape into `corpus/`, for the fuzzer to start from. To be run
//! again when the wire or the ledger changes: `cargo run --example seeds` in this folder. What
//! fuzzing has found beyond these lies beside them.

use banger_fuzz::{documents, hasher, import_of, stack};
use banger_image::{Limits, import};
use banger_policy::helper::holding::{AttachedDisk, Cow, Disk, Process, Row, Tap};
use banger_policy::network::NetworkRequest;
use banger_policy::reach::{Mode, Reach, Target};
use banger_policy::vm::RestartPolicy;
use banger_policy::{Digest, VmId};
use banger_priv::record;
use banger_proto::command::{FromGuest, Opening, Purpose as Opens, Start, Terminal, ToGuest};
use banger_proto::daemon::{DaemonRequest, KillSignal};
use banger_proto::guest::{BootToken, GuestEvent, Hello as ControlHello};
use banger_proto::helper::{DiskIdentity, HelperRequest, TapIdentity};
use banger_proto::model::{CreateRequest, JobId, SetRequest};
use banger_proto::stream::StreamRequest;
use banger_proto::transport::{DAEMON_LIMITS, HELPER_LIMITS};
use banger_proto::wire::{Hello, Purpose, ToServer, encode};
use std::error::Error;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let vm = VmId::from_bytes([0x5a; 32])?;
    helper(vm)?;
    daemon()?;
    command()?;
    archives()?;
    images()?;
    root_disks()?;
    names()?;
    ledger(vm)?;
    for (name, hello) in [("hello-calls", Purpose::Calls), ("hello-stream", Purpose::Stream)] {
        write("text", name, &Hello::ours(hello).encode())?;
    }
    for text in ["512M", "1.5G", "demo-1", "debian:13", &vm.to_string()] {
        write("text", text.split(':').next().unwrap_or(text), text.as_bytes())?;
    }
    // Six bytes a request: acquire, attach, network, bind, release tap, detach, release.
    let life = [[0, 1, 9, 0, 0, 0], [2, 1, 0, 0, 0, 0], [4, 1, 0, 2, 0, 0], [5, 1, 7, 0, 1, 1], [1, 1, 0, 0, 0, 0]];
    write("policy", "a-life", &life.concat())?;
    write("policy", "an-end", &[life.concat(), vec![3, 1, 0, 0, 0, 0, 7, 1, 0, 0, 0, 0]].concat())
}

/// Superblocks of ext4, as far as `image register` looks: one file system of a block, and a disk
/// with partitions.
fn root_disks() -> Result<()> {
    let mut disk = vec![0; 4096];
    for (at, value) in [(0x4, 1_u32), (0x18, 2), (0x38, 0xef53), (0x5c, 0x4), (0x60, 0x2c2), (0xe0, 8)] {
        disk[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    write("registered", "ext4", &disk)?;
    let mut partitioned = vec![0; 600];
    partitioned[510..520].copy_from_slice(b"\x55\xaaEFI PART");
    write("registered", "partitions", &partitioned)
}

/// Questions of DNS: a name, with EDNS, an address, a pointer at itself.
fn names() -> Result<()> {
    let header = |more: u8| [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, more];
    let (name, a) = (b"\x03web\x05alice\x02vm\0".as_slice(), [0, 1, 0, 1]);
    write("dns", "name", &[&header(0), name, &a].concat())?;
    let edns = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    write("dns", "edns", &[&header(1), name, &a, &edns[..]].concat())?;
    let reverse = b"\x012\x010\x0216\x03172\x07in-addr\x04arpa\0".as_slice();
    write("dns", "address", &[&header(0), reverse, &[0, 12, 0, 1]].concat())?;
    write("dns", "pointer", &[&header(0)[..], &[0xc0, 12], &a].concat())
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
        ("set-network", HelperRequest::SetNetwork { vm, reach: Reach::of(Mode::Nat) }),
        ("set-network-list", HelperRequest::SetNetwork { vm, reach: list()? }),
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

/// A list, and a private network.
fn list() -> Result<Reach> {
    let targets = ["10.0.0.0/8", "9.9.9.9/32:53/udp"].map(|text| Target::try_from(text.to_owned()));
    let targets = targets.into_iter().collect::<std::result::Result<_, _>>()?;
    Ok(Reach { mode: Mode::Allow, targets, group: Digest::from_bytes([2; 32]).ok() })
}

fn daemon() -> Result<()> {
    let vm = || "demo".to_owned();
    let network = NetworkRequest {
        mode: Some(Mode::Allow),
        allow: Some(vec!["10.0.0.0/8".to_owned(), "example.org:443/tcp".to_owned()]),
        private: Some("lab".to_owned()),
    };
    let request = CreateRequest {
        name: Some(vm()),
        image_name: Some("debian".to_owned()),
        kernel_name: None,
        vcpu_count: Some(2),
        memory_mib: Some(512),
        system_overlay_size_bytes: Some(1 << 30),
        work_disk_size_bytes: None,
        restart: RestartPolicy::Always,
        no_start: false,
        network: network.clone(),
        publish: banger_proto::model::PublishRequest::default(),
    };
    let exec = StreamRequest::Command { vm: vm(), reads: false };
    let image = StreamRequest::ImportImage {
        name: vm(),
        source: "a.tar".to_owned(),
        build_size: Some(1 << 30),
        shared: false,
        reference: None,
        pulled: true,
    };
    let registered =
        StreamRequest::RegisterImage { name: vm(), source: "a.ext4".to_owned(), kernel: Some("6.12".to_owned()) };
    let requests = [
        ("info", DaemonRequest::Info {}),
        ("list-vms", DaemonRequest::ListVms { all: true, after: Some(VmId::from_bytes([1; 32])?) }),
        ("show-vm", DaemonRequest::ShowVm { vm: vm() }),
        ("create-vm", DaemonRequest::CreateVm { request, keep_on_error: false }),
        ("set-vm", DaemonRequest::SetVm { vm: vm(), request: SetRequest { network, ..SetRequest::default() } }),
        ("kill-vm", DaemonRequest::KillVm { vm: vm(), signal: KillSignal::Term }),
        ("ssh-access", DaemonRequest::SshAccess { vm: vm(), public_key: "ssh-ed25519 AAAA".to_owned() }),
        ("exec", DaemonRequest::OpenStream { request: exec }),
        ("import-image", DaemonRequest::OpenStream { request: image }),
        ("register-image", DaemonRequest::OpenStream { request: registered }),
        ("watch-job", DaemonRequest::WatchJob { job: JobId(3), after_seq: 5 }),
    ];
    for (name, body) in requests {
        let call = ToServer::Call { id: 1, timeout_ms: 30_000, body };
        write("daemon_frame", name, &encode(&call, DAEMON_LIMITS.max_frame)?)?;
    }
    Ok(())
}

fn command() -> Result<()> {
    let start = Start {
        words: vec![b"uname".to_vec(), b"-a".to_vec()],
        env: vec![(b"LANG".to_vec(), b"C.UTF-8".to_vec())],
        working_dir: Some(b"/srv".to_vec()),
        user: Some("app".to_owned()),
        terminal: Some(Terminal { term: "xterm".to_owned(), cols: 80, rows: 24, modes: vec![(42, 1)] }),
    };
    let told = [
        ToGuest::Start(Box::new(start)),
        ToGuest::Input(b"hello".to_vec()),
        ToGuest::InputEnd,
        ToGuest::Resize(100, 40),
        ToGuest::Signal(2),
    ];
    let said = [
        FromGuest::Started,
        FromGuest::Credit(5),
        FromGuest::Output(b"Linux".to_vec()),
        FromGuest::ErrorOutput(b"oops".to_vec()),
        FromGuest::Refused(127, "why".to_owned()),
        FromGuest::Exited(3),
        FromGuest::Killed(9),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (mut to, mut from) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        for frame in &told {
            frame.write(&mut to).await?;
        }
        for frame in &said {
            frame.write(&mut from).await?;
        }
        std::io::Result::Ok(())
    })?;
    write("command", "told", &to)?;
    write("command", "said", &from)?;
    let token = BootToken::new([7; 32]);
    write("command", "opening", &Opening { purpose: Opens::Command, token: token.clone() }.encode())?;
    write("command", "hello", &serde_json::to_vec(&ControlHello { token })?)?;
    write("command", "ready", &serde_json::to_vec(&GuestEvent::Ready { boot_id: "b".to_owned() })?)
}

/// A small root file system with an entry of each kind.
fn root(extra: bool) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, target: Option<&str>, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_size(data.len() as u64);
        match target {
            Some(target) => tar.append_link(&mut header, name, target),
            None => tar.append_data(&mut header, name, data),
        }
    };
    for folder in ["bin/", "etc/", "usr/", "root/"] {
        add(folder, tar::EntryType::Directory, None, b"")?;
    }
    add("bin/sh", tar::EntryType::Regular, None, b"#!")?;
    add("bin/bash", tar::EntryType::Link, Some("bin/sh"), b"")?;
    add("etc/link", tar::EntryType::Symlink, Some("/bin/sh"), b"")?;
    if extra {
        add("etc/.wh.gone", tar::EntryType::Regular, None, b"")?;
        add("usr/.wh..wh..opq", tar::EntryType::Regular, None, b"")?;
        add("etc/fifo", tar::EntryType::Fifo, None, b"")?;
        let pax = [("SCHILY.xattr.user.a", &b"b"[..]), ("mtime", b"1.5"), ("path", b"etc/\xff")];
        tar.append_pax_extensions(pax)?;
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        tar.append_data(&mut header, "etc/short", &b"x"[..])?;
    }
    Ok(tar.into_inner()?)
}

fn archives() -> Result<()> {
    let (plain, odd) = (root(false)?, root(true)?);
    write("image", "plain", &plain)?;
    write("image", "odd", &odd)?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&odd)?;
    write("image", "gzip", &gzip.finish()?)?;
    let file = |tar: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, data)
    };
    // What `docker save` wrote before it wrote layouts.
    let mut docker = tar::Builder::new(Vec::new());
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"User":"1"},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    file(&mut docker, "c.json", config)?;
    file(&mut docker, "l/layer.tar", &plain)?;
    file(&mut docker, "manifest.json", br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]"#)?;
    write("image", "docker", &docker.into_inner()?)?;
    let mut layout = tar::Builder::new(Vec::new());
    file(&mut layout, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}]}"#;
    file(&mut layout, "index.json", index.as_bytes())?;
    file(&mut layout, "blobs/sha256/44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", b"{}")?;
    write("image", "layout", &layout.into_inner()?)?;
    let mut kernel = tar::Builder::new(Vec::new());
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0".to_vec();
    elf.resize(300, 0);
    file(&mut kernel, "vmlinuz", &elf)?;
    file(&mut kernel, "modules/modules.dep", b"kernel/a.ko.xz: kernel/b.ko.xz\nkernel/b.ko.xz:\n")?;
    file(&mut kernel, "modules/modules.builtin", b"kernel/c.ko\n")?;
    write("kernel", "elf", &kernel.into_inner()?)?;
    let mut boot = vec![0; 0x260];
    boot[0x1f1] = 1;
    boot[0x202..0x206].copy_from_slice(b"HdrS");
    let mut kernel = tar::Builder::new(Vec::new());
    file(&mut kernel, "vmlinuz", &boot)?;
    write("kernel", "bzimage", &kernel.into_inner()?)?;
    let mut data = tar::Builder::new(Vec::new());
    for (name, bytes) in PACKAGED {
        file(&mut data, name, bytes)?;
    }
    write("package", "deb", &deb(&data.into_inner()?))?;
    write("package", "rpm", &rpm())
}

/// What a distribution's package has of a kernel.
const PACKAGED: [(&str, &[u8]); 4] = [
    ("boot/vmlinuz-6.1-x", b"\x7fELF\x02\x01\x01"),
    ("lib/modules/6.1-x/kernel/a.ko", b"\0depends=b\0alias=virtio:d1v*\0"),
    ("lib/modules/6.1-x/kernel/b.ko", b"\0depends=\0softdep=pre: a\0"),
    ("lib/modules/6.1-x/modules.builtin", b"kernel/fs/ext4/ext4.ko\n"),
];

/// Documents of an image that an import takes.
fn image(name: &str, documents: &[u8]) -> Result<()> {
    let (reference, archive) = documents::archive(documents);
    import_of("seeds", &archive, |source, folder, progress| {
        let most = 128 << 20;
        import(source, folder, most, reference.as_deref(), Limits::for_build_size(most), &hasher(), progress).map(drop)
    })?;
    write("oci", name, documents)
}

/// Documents of images, stacks of layers, and the seed of a work disk, as the targets' own modules
/// read them.
fn images() -> Result<()> {
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"WorkingDir":"/srv","User":"1","Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["#;
    let (plain, both) = ([&config[..], b"\x10]}}"].concat(), [&config[..], b"\x10,\x10]}}"].concat());
    let manifest = |layers: &[u8]| {
        [
            &br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","#[..],
            b"\x03},\"layers\":[",
            layers,
            b"]}",
        ]
        .concat()
    };
    let index = |below: &[u8]| [b"{\"manifests\":[".as_slice(), below, b"]}"].concat();
    let whole = |documents: &[&[u8]]| documents.join(&0);
    let one = index(b"{\x04,\"platform\":{\"architecture\":\"amd64\",\"os\":\"linux\"}}");
    let tagged = index(b"{\x04,\"annotations\":{\"org.opencontainers.image.ref.name\":\"a\"}},{\x05}");
    let nested = index(b"{\x05}");
    let artifact = br#"{"artifactType":"a/b","subject":{},"config":{"mediaType":"","digest":"","size":2},"layers":[]}"#;
    image("one", &whole(&[b"", &plain, &manifest(b"{\x01}"), &one]))?;
    image("compressed", &whole(&[b"", &both, &manifest(b"{\x02},{\x01}"), &one]))?;
    image("tagged", &whole(&[b"a", &plain, &manifest(b"{\x01}"), artifact, &tagged]))?;
    image("nested", &whole(&[b"", &plain, &manifest(b"{\x01}"), &one, &nested]))?;
    let saved = br#"[{"Config":"3","RepoTags":["a:1"],"Layers":["1"]}]"#;
    image("saved", &whole(&[b"a:1", &plain, saved]))?;
    let chain = br#"{"id":"c3","os":"linux","config":{"User":"1"},"container_config":{}}"#;
    let child = br#"{"id":"c4","parent":"c3","architecture":"amd64","os":"linux"}"#;
    image("chain", &whole(&[b"", chain, child, br#"R{"a":{"1":"c4"}}"#]))?;

    let [folder, file, pages, links, hard, sparse, many] = [0, 1, 2, 4, 5, 9, 10];
    let of_root = [file, 0x40, 6, 0, 40, sparse, 0x40, 7, 0, 5, 1, 0, 4, 9, many, 0x40, 16, 0, 200, 20];
    let below = [folder, 3, 0, pages, 0x43, 6, 63, 40, 2, 1, 7, 1, 200, 3, 1, 2, 0, 64, 9, links, 0x44, 6, 0, 0x45];
    let hides = [
        file, 0x40, 11, 0, 0, folder, 9, 0, hard, 0x43, 7, 0, 0x43, 6, file, 0x43, 9, 0, 0, 8, 5, 0, 6, 6, 0, 1, 2, 3,
        4,
    ];
    let stack = [&of_root[..], &[255], &below, &[255], &hides].concat();
    write("stack", "root", &of_root)?;
    write("stack", "layers", &stack)?;
    let seed = import_of("seeds", &stack::archive(&of_root[..14]), |source, folder, progress| {
        let most = 256 << 20;
        import(source, folder, most, None, Limits::for_build_size(most), &hasher(), progress)
            .map(|imported| std::fs::read(imported.seed_path))
    })??;
    write("work_disk", "of-an-image", &seed)?;
    write("work_disk", "odd", &root(true)?)
}

fn deb(data: &[u8]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), ("data.tar", data)] {
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", bytes.len()).bytes());
        out.extend(bytes);
    }
    out
}

/// Lead, two headers without entries, and a plain cpio archive.
fn rpm() -> Vec<u8> {
    let mut out = vec![0xed, 0xab, 0xee, 0xdb, 3, 0];
    out.resize(96, 0);
    for _ in 0..2 {
        out.extend([0x8e, 0xad, 0xe8, 1]);
        out.extend([0; 12]);
    }
    for (name, bytes) in PACKAGED.iter().chain(&[("TRAILER!!!", &b""[..])]) {
        out.extend(b"070701");
        for number in [1, 0o100_644, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            out.extend(format!("{number:08x}").bytes());
        }
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(*bytes);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn ledger(vm: VmId) -> Result<()> {
    let row = Row {
        vm,
        owner: 1001,
        generation: 7,
        tap: Tap::Held { address: Ipv4Addr::new(172, 16, 0, 2), ifindex: 12 },
        disk: Disk::Held(AttachedDisk { minor: 3, base_loop: 4, cow_loop: 5 }),
        reach: list()?,
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
