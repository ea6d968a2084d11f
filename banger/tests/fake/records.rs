//! Records that look like real ones.

use banger_policy::lifecycle::State;
use banger_policy::vm::RestartPolicy;
use banger_policy::{Digest, ImageConfig, VmId};
use banger_proto::model::{ImageRecord, JobId, JobState, JobView, KernelRecord, Stage, VmRecord, VmRuntime, VmSpec};
use banger_proto::time::Timestamp;

fn hours_ago(hours: u64) -> Timestamp {
    Timestamp::from_unix(Timestamp::now().unix() - hours * 3600 - 60)
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32]).unwrap()
}

/// A VM whose id follows from its name's last character.
pub fn vm(name: &str, state: State) -> VmRecord {
    let number = name.bytes().fold(1_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte)).max(1);
    VmRecord {
        id: VmId::from_bytes([number; 32]).unwrap(),
        name: name.parse().unwrap(),
        image_id: digest(0xaa),
        image_name: "debian:13".parse().unwrap(),
        kernel_id: digest(0xbb),
        owner: 1001,
        owner_name: "alice".into(),
        state,
        created_at: hours_ago(3),
        updated_at: hours_ago(2),
        last_touched_at: hours_ago(1),
        restart: RestartPolicy::No,
        spec: VmSpec {
            vcpu_count: 2,
            memory_mib: 2048,
            system_overlay_size_bytes: 8 << 30,
            work_disk_size_bytes: 8 << 30,
            nat_enabled: false,
        },
        runtime: runtime(state),
        stats: None,
        workspace: None,
        network: banger_policy::network::VmNetwork::default(),
        published: Some(Vec::new()),
        refused: Some(0),
    }
}

fn runtime(state: State) -> VmRuntime {
    VmRuntime {
        state,
        guest_ip: std::net::Ipv4Addr::new(172, 16, 0, 2),
        api_sock_path: "/run/bangerd/vm/x/api.sock".into(),
        vsock_path: "/run/bangerd/vm/x/vsock.sock".into(),
        vsock_cid: 4,
        log_path: "/var/lib/banger/vms/x/console.log".into(),
        metrics_path: "/var/lib/banger/vms/x/metrics".into(),
        dns_name: "demo.alice.vm".into(),
        vm_dir: "/var/lib/banger/vms/x".into(),
        system_overlay_path: "/var/lib/banger-priv/cow/x".into(),
        work_disk_path: "/var/lib/banger/vms/x/work.ext4".into(),
        last_error: String::new(),
        tap_device: None,
        base_loop: None,
        cow_loop: None,
        dm_name: None,
        dm_dev: None,
        generation: None,
        vmm_version: None,
        vmm_sha256: None,
    }
}

pub fn job(id: u64, title: &str, state: JobState) -> JobView {
    JobView {
        id: JobId(id),
        title: title.into(),
        owner: 1001,
        seq: 1,
        started_at: hours_ago(0),
        stages: vec![
            Stage { name: "spec".into(), took_ms: Some(0), detail: "new: image debian:13, 2 vCPU".into() },
            Stage { name: "root disk".into(), took_ms: Some(12), detail: String::new() },
            Stage { name: "guest ready".into(), took_ms: Some(6214), detail: String::new() },
        ],
        warnings: Vec::new(),
        state,
    }
}

pub fn image(name: &str, bytes: u64) -> ImageRecord {
    ImageRecord {
        id: digest(0xaa),
        name: name.parse().unwrap(),
        owner: 1001,
        owner_name: "alice".into(),
        shared: false,
        managed: true,
        artifact_dir: "/var/lib/banger/images/aa".into(),
        rootfs_path: "/var/lib/banger/images/aa/rootfs.ext4".into(),
        work_seed_path: None,
        build_size: 8 << 30,
        allocated_bytes: bytes,
        docker: false,
        source: "/home/alice/root\x1b[31mfs.tar".into(),
        config: ImageConfig {
            env: vec!["PATH=/opt/bin:/usr/bin".into(), "BANNER=two\nlines\x1b[31m".into()],
            working_dir: Some("/srv".into()),
            user: Some("app".into()),
            entrypoint: vec!["/entry point".into(), "it's".into()],
            cmd: vec!["serve".into(), String::new()],
        },
        manifest_digest: None,
        kernel: None,
        kernel_id: None,
        created_at: hours_ago(3),
        updated_at: hours_ago(3),
    }
}

pub fn kernel(name: &str, bytes: u64) -> KernelRecord {
    KernelRecord {
        id: digest(0xbb),
        name: name.parse().unwrap(),
        owner: 0,
        owner_name: "root".into(),
        shared: true,
        version: "6.12.41+deb13-cloud-amd64".into(),
        modules: vec!["virtio_blk".into(), "ext4".into()],
        size_bytes: bytes,
        created_at: hours_ago(3),
    }
}
