//! Disks on the real kernel. Without device-mapper, only that nothing is left behind is shown.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;

use banger_policy::limits::MIN_OVERLAY_BYTES;
use banger_priv::kernel::Kernel;
use banger_proto::helper::{DiskIdentity, HelperError};
use common::{Folders, OWNER, exists, image, in_namespace, is_root, run, skipped, vm, works};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const BASE: u64 = 96 << 20;

fn code<T: std::fmt::Debug>(result: banger_priv::ops::Answer<T>) -> HelperError {
    result.unwrap_err().code
}

/// Loops and dm devices of this host that could be ours.
fn objects() -> String {
    run(
        "cat /sys/block/loop*/loop/backing_file 2>/dev/null || true; dmsetup info -c --noheadings -o name,uuid 2>/dev/null || true",
    )
}

fn has_dm() -> bool {
    // The node may be there without the driver.
    let dm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/mapper/control").is_ok();
    if !dm {
        skipped("this kernel has no device-mapper");
    }
    dm
}

fn has_loop() -> bool {
    let loops = exists(Path::new("/dev/loop-control"));
    if !loops {
        skipped("this kernel has no loop devices");
    }
    loops
}

#[test]
fn a_failed_attach_leaves_nothing() {
    if !is_root() || !has_loop() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(BASE);
        let machine = folders.start().await;
        let record = machine.create_disk(vm(1), OWNER, image(), MIN_OVERLAY_BYTES).await.unwrap();
        assert!(record.allocated_bytes >= MIN_OVERLAY_BYTES, "reserved: {}", record.allocated_bytes);
        assert_eq!(machine.create_disk(vm(1), OWNER, image(), MIN_OVERLAY_BYTES).await.unwrap(), record);
        // Given away, it is the new owner's only; the record outlives the helper.
        machine.give_disk(vm(1), OWNER + 1).await.unwrap();
        machine.give_disk(vm(1), OWNER + 1).await.unwrap();
        assert_eq!(code(machine.give_disk(vm(2), OWNER).await), HelperError::NotYours);
        drop(machine);
        let machine = folders.start().await;
        assert_eq!(machine.identity(vm(1)).unwrap().owner, OWNER + 1);
        assert_eq!(code(machine.attach_disk(vm(1), OWNER).await), HelperError::NotYours);
        machine.give_disk(vm(1), OWNER).await.unwrap();
        let before = objects();
        // The base vanishes between create and attach.
        let path = folders.path("images").join(image().to_string()).join("rootfs.ext4");
        std::fs::rename(&path, path.with_extension("away")).unwrap();
        assert_eq!(code(machine.attach_disk(vm(1), OWNER).await), HelperError::BadImage);
        std::fs::rename(path.with_extension("away"), &path).unwrap();
        if !has_dm() {
            assert!(matches!(code(machine.attach_disk(vm(1), OWNER).await), HelperError::Kernel(_)));
        }
        assert_eq!(objects(), before);
        machine.discard_disk(vm(1)).await.unwrap();
        machine.discard_disk(vm(1)).await.unwrap();
        assert_eq!(std::fs::read_dir(folders.path("cow")).unwrap().count(), 0);
    });
}

#[test]
fn a_file_becomes_a_loop_device_and_is_freed_with_its_handle() {
    if !is_root() || !has_loop() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(BASE);
        let machine = folders.start().await;
        let path = folders.path("images").join(image().to_string()).join("rootfs.ext4");
        let file = std::fs::File::open(&path).unwrap();
        use std::os::fd::AsFd;
        let device = machine.kernel().attach_loop(file.as_fd(), true, &vm(1)).unwrap();
        assert!(machine.kernel().loop_still_on(&device, file.as_fd()).unwrap());
        let other = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(!machine.kernel().loop_still_on(&device, other.as_fd()).unwrap());
        let folder = format!("/sys/block/loop{}", banger_priv::host::Host::loop_number(&device));
        let read =
            |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default().trim().to_owned();
        assert_eq!(
            (read("ro"), read("loop/autoclear"), read("size")),
            ("1".into(), "1".into(), (BASE / 512).to_string())
        );
        assert_eq!(read("loop/backing_file"), path.to_str().unwrap());
        drop(device);
        assert!(!exists(Path::new(&format!("{folder}/loop/backing_file"))), "freed");
    });
}

#[test]
fn a_disk_is_attached_written_kept_and_detached() {
    if !is_root() || !has_dm() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(BASE);
        let machine = folders.start().await;
        let before = objects();
        machine.create_disk(vm(1), OWNER, image(), MIN_OVERLAY_BYTES).await.unwrap();
        assert_eq!(code(machine.attach_disk(vm(1), OWNER + 1).await), HelperError::NotYours);
        let disk = machine.attach_disk(vm(1), OWNER).await.unwrap();
        assert_eq!(machine.attach_disk(vm(1), OWNER).await.unwrap(), disk, "the stored answer");
        let node = std::fs::metadata(&disk.dm_dev).unwrap();
        assert_eq!((node.uid(), node.gid(), node.mode() & 0o7777), (0, common::DAEMON, 0o660));
        let table = run(&format!("dmsetup table {}", disk.dm_name));
        assert!(table.starts_with(&format!("0 {} snapshot ", BASE / 512)) && table.contains(" PO 8"), "{table}");
        assert_eq!(code(machine.discard_disk(vm(1)).await), HelperError::BadState);
        // What is written stays over a detach, and the base is untouched.
        let device = std::fs::OpenOptions::new().read(true).write(true).open(&disk.dm_dev).unwrap();
        device.write_all_at(b"changed", 4096 * 7).unwrap();
        device.sync_all().unwrap();
        let detach = {
            let (machine, disk) = (std::rc::Rc::clone(&machine), disk.clone());
            tokio::task::spawn_local(async move { machine.detach_disk(vm(1), &disk).await })
        };
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!detach.is_finished(), "it is still open");
        drop(device);
        detach.await.unwrap().unwrap();
        machine.detach_disk(vm(1), &disk).await.unwrap();
        assert_eq!(objects(), before, "the loops have freed themselves");
        machine.release(vm(1)).await.unwrap();
        let again = machine.attach_disk(vm(1), OWNER).await.unwrap();
        assert_ne!(again.generation, disk.generation);
        let mut bytes = [0; 7];
        std::fs::File::open(&again.dm_dev).unwrap().read_exact_at(&mut bytes, 4096 * 7).unwrap();
        assert_eq!(&bytes, b"changed");
        for wrong in [
            DiskIdentity { generation: disk.generation, ..again.clone() },
            DiskIdentity { dm_dev: "/dev/dm-77".to_owned(), ..again.clone() },
            DiskIdentity { base_loop: again.cow_loop.clone(), ..again.clone() },
            DiskIdentity { dm_name: vm(2).dm_name(), ..again.clone() },
        ] {
            assert_eq!(code(machine.detach_disk(vm(1), &wrong).await), HelperError::NotYours);
        }
        // A restart of the helper keeps it.
        drop(machine);
        tokio::task::yield_now().await;
        let machine = folders.start().await;
        assert_eq!(machine.attach_disk(vm(1), OWNER).await.unwrap(), again);
        machine.release(vm(1)).await.unwrap();
        assert_eq!(objects(), before);
        machine.discard_disk(vm(1)).await.unwrap();
    });
}

#[test]
fn a_full_overlay_fails_the_write_and_keeps_the_disk() {
    if !is_root() || !has_dm() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(BASE);
        let machine = folders.start().await;
        machine.create_disk(vm(1), OWNER, image(), MIN_OVERLAY_BYTES).await.unwrap();
        let disk = machine.attach_disk(vm(1), OWNER).await.unwrap();
        {
            let device = std::fs::OpenOptions::new().read(true).write(true).open(&disk.dm_dev).unwrap();
            let mebibyte = vec![0xaa; 1 << 20];
            for n in 0..MIN_OVERLAY_BYTES >> 20 {
                device.write_all_at(&mebibyte, n << 20).unwrap();
            }
            device.sync_all().unwrap();
            // The cap holds in full; beyond it and its reserve nothing more is taken.
            let mut failed = false;
            for n in (MIN_OVERLAY_BYTES >> 20)..(BASE >> 20) {
                failed |= device.write_all_at(&mebibyte, n << 20).is_err() || device.sync_all().is_err();
            }
            assert!(failed, "the base is larger than the cap");
        }
        let status = run(&format!("dmsetup status {}", disk.dm_name));
        assert!(!status.contains("Invalid"), "{status}");
        machine.release(vm(1)).await.unwrap();
        let again = machine.attach_disk(vm(1), OWNER).await.unwrap();
        let mut byte = [0];
        std::fs::File::open(&again.dm_dev).unwrap().read_exact_at(&mut byte, MIN_OVERLAY_BYTES - 1).unwrap();
        assert_eq!(byte, [0xaa], "what was within the cap is there");
        machine.release(vm(1)).await.unwrap();
    });
}

#[test]
fn a_disk_that_somebody_else_has_touched_is_left() {
    if !is_root() || !has_dm() {
        return;
    }
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(BASE);
        let machine = folders.start().await;
        machine.create_disk(vm(1), OWNER, image(), MIN_OVERLAY_BYTES).await.unwrap();
        // Renamed.
        let disk = machine.attach_disk(vm(1), OWNER).await.unwrap();
        run(&format!("dmsetup rename {} elsewhere", disk.dm_name));
        assert_eq!(code(machine.detach_disk(vm(1), &disk).await), HelperError::Quarantined);
        assert!(works("dmsetup info elsewhere"));
        run(&format!("dmsetup rename elsewhere {}", disk.dm_name));
        machine.release(vm(1)).await.unwrap();
        // Another table under our name and UUID.
        let disk = machine.attach_disk(vm(1), OWNER).await.unwrap();
        run(&format!("dmsetup suspend {0}; echo 0 8 zero | dmsetup load {0}; dmsetup resume {0}", disk.dm_name));
        assert_eq!(code(machine.release(vm(1)).await), HelperError::Quarantined);
        run(&format!("dmsetup remove --retry {}", disk.dm_name));
        machine.release(vm(1)).await.unwrap();
        // Removed by the administrator: gone is success.
        let disk = machine.attach_disk(vm(1), OWNER).await.unwrap();
        run(&format!("dmsetup remove --retry {}", disk.dm_name));
        machine.detach_disk(vm(1), &disk).await.unwrap();
        machine.release(vm(1)).await.unwrap();
        // Our name taken before.
        run(&format!("dmsetup create {} --table '0 8 zero'", vm(1).dm_name()));
        assert_eq!(code(machine.attach_disk(vm(1), OWNER).await), HelperError::Busy);
        assert!(works(&format!("dmsetup info {}", vm(1).dm_name())));
        run(&format!("dmsetup remove --retry {}", vm(1).dm_name()));
        // An orphan is swept at start; a foreign device with a mark that is not whole stays.
        machine.attach_disk(vm(1), OWNER).await.unwrap();
        drop(machine);
        std::fs::remove_file(folders.path("run").join(vm(1).to_string())).unwrap();
        run("dmsetup create foreign --uuid BANGER-foreign --table '0 8 zero'");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let machine = folders.start().await;
        assert!(!works(&format!("dmsetup info {}", vm(1).dm_name())));
        assert!(works("dmsetup info foreign"));
        run("dmsetup remove --retry foreign");
        machine.attach_disk(vm(1), OWNER).await.unwrap();
        machine.release(vm(1)).await.unwrap();
        machine.discard_disk(vm(1)).await.unwrap();
    });
}
