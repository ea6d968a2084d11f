//! How far guests reach, in the rows of VMs: of those of before too.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::Db;
use banger_policy::access::Owner;
use banger_policy::network::{NetworkRequest, VmNetwork};
use banger_policy::quota::{HostLimits, UserLimits};
use banger_policy::reach::Mode;
use banger_policy::{Digest, VmId};

#[tokio::test]
async fn a_vm_of_before_reaches_what_its_nat_said_and_gets_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("banger.db");
    let content = Digest::from_bytes([4; 32]).unwrap();
    let (with, without) = (VmId::from_bytes([5; 32]).unwrap(), VmId::from_bytes([6; 32]).unwrap());
    let old = super::tests::of_schema(&path, 4);
    let row = |vm: VmId, index: u8, nat: bool| {
        format!(
            "INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at,
             updated_at, last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes,
             nat_enabled) VALUES ('{vm}', 1001, 'alice', 'demo-{index}', '{content}', 'debian:13', '{content}', 'stopped',
             0, 1, 1, 1, 1, 128, 134217728, 33554432, {nat});
             INSERT INTO leases (address_index, vm_id) VALUES ({index}, '{vm}');"
        )
    };
    old.execute_batch(&format!(
        "INSERT INTO images VALUES ('{content}', 1, 2, 0); INSERT INTO kernels VALUES ('{content}', '6.12', '[]', 1); {} {}",
        row(with, 2, true),
        row(without, 3, false)
    ))
    .unwrap();
    drop(old);
    let db = Db::open(&path).await.unwrap();
    let of = async |vm| db.vm(vm).await.unwrap().unwrap();
    assert_eq!(of(with).await.network, VmNetwork::of(Mode::Nat));
    assert!(of(with).await.spec.nat_enabled);
    assert_eq!(of(without).await.network, VmNetwork::default());
    // Given away before anything was written: it keeps its mode.
    let bob = Owner { uid: 1002, name: "bob".into() };
    db.give_vm(with, bob.clone(), UserLimits::NONE).await.unwrap();
    assert_eq!(of(with).await.network, VmNetwork::of(Mode::Nat));

    let row = of(without).await;
    let words: Vec<String> =
        (0..64).map(|n| format!("{}.{n}.example.org:65535/udp", ["a".repeat(60).as_str(); 3].join("."))).collect();
    let request = NetworkRequest { mode: None, allow: Some(words), private: Some("lab".to_owned()) };
    let network = row.network.changed(&request).unwrap();
    db.set_vm_spec(without, row.spec, network.clone(), row.restart, UserLimits::NONE, HostLimits::NONE).await.unwrap();
    assert_eq!(of(without).await.network, network, "the longest list has room");
    db.give_vm(without, bob, UserLimits::NONE).await.unwrap();
    assert_eq!(of(without).await.network, VmNetwork { private: None, ..network });
}
