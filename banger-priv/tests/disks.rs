//! Disks on the real kernel. Without device-mapper, only that nothing is left behind is shown.
#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;

use banger_policy::limits::{HOST_RESERVE_BYTES, MIN_ROOT_BYTES};
use banger_policy::snapshot::cow_file_bytes;
use banger_priv::host::Host;
use banger_priv::kernel::Kernel;
use banger_priv::ops::Machine;
use banger_proto::helper::{DiskIdentity, HelperError};
use common::{Folders, OWNER, exists, image, in_namespace, is_root, run, skipped, vm, works};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Longer than the largest disk of these tests.
const BASE: u64 = 512 << 20;

fn code<T: std::fmt::Debug>(result: banger_priv::ops::Answer<T>) -> HelperError {
    result.unwrap_err().code
}

/// Loops and dm devices of this host that could be ours.
fn objects() -> String {
    run(
        "cat /sys/block/loop*/loop/backing_file 2>/dev/null || true; dmsetup info -c --noheadings -o name,uuid 2>/dev/null || true",
    )
}

fn dm_is_there() -> bool {
    // The node may be there without the driver.
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/mapper/control").is_ok()
}

/// For tests that show nothing without it.
fn has_dm() -> bool {
    if !dm_is_there() {
        skipped("this kernel has no device-mapper");
    }
    dm_is_there()
}

/// A test with an image and a helper's machine, where there is root and what it needs.
fn with_image(there_is: fn() -> bool, test: impl AsyncFnOnce(Folders, Rc<Machine<Host>>)) {
    if is_root() && there_is() {
        in_namespace(async {
            let folders = Folders::new();
            folders.add_image(BASE);
            let machine = folders.start().await;
            test(folders, machine).await;
        });
    }
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
    with_image(has_loop, async |folders, machine| {
        let record = machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        assert!(record.allocated_bytes >= MIN_ROOT_BYTES, "reserved: {}", record.allocated_bytes);
        assert_eq!(machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap(), record);
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
        if !dm_is_there() {
            assert!(matches!(code(machine.attach_disk(vm(1), OWNER).await), HelperError::Kernel(_)));
        }
        assert_eq!(objects(), before);
        machine.discard_disk(vm(1)).await.unwrap();
        machine.discard_disk(vm(1)).await.unwrap();
        assert_eq!(std::fs::read_dir(folders.path("state/cow")).unwrap().count(), 0);
    });
}

#[test]
fn a_file_becomes_a_loop_device_and_is_freed_with_its_handle() {
    with_image(has_loop, async |folders, machine| {
        let path = folders.path("images").join(image().to_string()).join("rootfs.ext4");
        let file = std::fs::File::open(&path).unwrap();
        use std::os::fd::AsFd;
        let device = machine.kernel().attach_loop(file.as_fd(), true, &vm(1)).unwrap();
        assert!(machine.kernel().loop_still_on(&device, file.as_fd()).unwrap());
        let other = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(!machine.kernel().loop_still_on(&device, other.as_fd()).unwrap());
        let folder = format!("/sys/block/loop{}", Host::loop_number(&device));
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
    with_image(has_dm, async |folders, machine| {
        let before = objects();
        machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        assert_eq!(code(machine.attach_disk(vm(1), OWNER + 1).await), HelperError::NotYours);
        let disk = machine.attach_disk(vm(1), OWNER).await.unwrap();
        assert_eq!(machine.attach_disk(vm(1), OWNER).await.unwrap(), disk, "the stored answer");
        let node = std::fs::metadata(&disk.dm_dev).unwrap();
        assert_eq!((node.uid(), node.gid(), node.mode() & 0o7777), (0, common::DAEMON, 0o660));
        let table = run(&format!("dmsetup table {}", disk.dm_name));
        assert!(
            table.starts_with(&format!("0 {} snapshot ", MIN_ROOT_BYTES / 512)) && table.contains(" PO 8"),
            "{table}"
        );
        assert_eq!(code(machine.discard_disk(vm(1)).await), HelperError::BadState);
        // What is written stays over a detach, and the base is untouched.
        let device = std::fs::OpenOptions::new().read(true).write(true).open(&disk.dm_dev).unwrap();
        device.write_all_at(b"changed", 4096 * 7).unwrap();
        device.sync_all().unwrap();
        let detach = {
            let (machine, disk) = (Rc::clone(&machine), disk.clone());
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

/// Each chunk of a disk, written twice, then the disk twice as large: never an overflow, and
/// nothing lost.
#[test]
fn a_disk_that_is_written_whole_stays_a_disk() {
    with_image(has_dm, async |_folders, machine| {
        machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        for size in [MIN_ROOT_BYTES, 2 * MIN_ROOT_BYTES, 3 * MIN_ROOT_BYTES] {
            let grown = machine.grow_disk(vm(1), OWNER, size).await.unwrap();
            assert_eq!(grown.root_bytes, size);
            assert_eq!(machine.grow_disk(vm(1), OWNER, size).await.unwrap(), grown, "the stored answer");
            for byte in [0xaa, 0xbb] {
                let disk = machine.attach_disk(vm(1), OWNER).await.unwrap();
                assert_eq!(code(machine.grow_disk(vm(1), OWNER, 4 * MIN_ROOT_BYTES).await), HelperError::BadState);
                let device = std::fs::OpenOptions::new().read(true).write(true).open(&disk.dm_dev).unwrap();
                let mut seen = [0];
                device.read_exact_at(&mut seen, MIN_ROOT_BYTES - 1).unwrap();
                let before = if byte == 0xbb {
                    0xaa
                } else if size == MIN_ROOT_BYTES {
                    0
                } else {
                    0xbb
                };
                assert_eq!(seen, [before], "what was written before, at {size}");
                let mebibyte = vec![byte; 1 << 20];
                for n in 0..size >> 20 {
                    device.write_all_at(&mebibyte, n << 20).unwrap();
                }
                device.sync_all().unwrap();
                drop(device);
                let status = run(&format!("dmsetup status {}", disk.dm_name));
                assert!(!status.contains("Invalid") && !status.contains("Overflow"), "{size}: {status}");
                machine.release(vm(1)).await.unwrap();
            }
        }
        machine.discard_disk(vm(1)).await.unwrap();
    });
}

/// The host's disk is a file system of its own, so that what is free is known.
#[test]
fn what_would_touch_the_hosts_reserve_is_refused_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(BASE);
        let cow = folders.path("state/cow");
        // Not seen by any other process: the mounts of this thread are its own.
        run("mount --make-rprivate /");
        let room = (HOST_RESERVE_BYTES + cow_file_bytes(MIN_ROOT_BYTES) + cow_file_bytes(2 * MIN_ROOT_BYTES)) >> 20;
        run(&format!("mount -t tmpfs -o mode=0700,size={}M tmpfs {}", room + 1, cow.display()));
        let machine = folders.start().await;
        // The first fits; a second of the same size fits; nothing more does, in either way.
        machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        let second = machine.create_disk(vm(2), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        let files = || run(&format!("ls -ls {}", cow.display()));
        let before = files();
        let grown = machine.grow_disk(vm(2), OWNER, 3 * MIN_ROOT_BYTES).await;
        assert_eq!(code(grown), HelperError::NoSpace);
        assert_eq!(code(machine.create_disk(vm(3), OWNER, image(), 2 * MIN_ROOT_BYTES).await), HelperError::NoSpace);
        assert_eq!(files(), before, "nothing was begun");
        assert_eq!(machine.identity(vm(2)).unwrap().cow, Some(second));
        // What fits exactly is done.
        machine.grow_disk(vm(2), OWNER, 2 * MIN_ROOT_BYTES).await.unwrap();
        assert_eq!(code(machine.create_disk(vm(3), OWNER, image(), MIN_ROOT_BYTES).await), HelperError::NoSpace);
        // Room that is taken by others in the middle of it: all of it is undone.
        machine.discard_disk(vm(1)).await.unwrap();
        let before = files();
        let (racing, spoil) = (machine.grow_disk(vm(2), OWNER, 3 * MIN_ROOT_BYTES), async {
            tokio::task::yield_now().await;
            std::fs::write(cow.join("others"), vec![1; 64 << 20]).unwrap();
        });
        let (raced, ()) = futures::future::join(racing, spoil).await;
        assert_eq!(code(raced), HelperError::NoSpace);
        std::fs::remove_file(cow.join("others")).unwrap();
        assert_eq!(files(), before, "the file has its length back");
        machine.grow_disk(vm(2), OWNER, 3 * MIN_ROOT_BYTES).await.unwrap();
        drop(machine);
        run(&format!("umount {}", cow.display()));
    });
}

/// The file system is full of files, which takes less memory than one that is full of bytes.
#[test]
fn what_fills_the_hosts_disk_to_the_last_byte_can_be_discarded() {
    if !is_root() {
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(BASE);
        let cow = folders.path("state/cow");
        run("mount --make-rprivate /");
        let room = (HOST_RESERVE_BYTES + cow_file_bytes(MIN_ROOT_BYTES)) >> 20;
        // The folder, the file, its record, and a record that takes its place.
        let options = format!("mode=0700,size={}M,nr_inodes=4", room + 1);
        run(&format!("mount -t tmpfs -o {options} tmpfs {}", cow.display()));
        let machine = folders.start().await;
        machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        std::fs::write(cow.join("others"), b"").unwrap();
        assert!(std::fs::write(cow.join("control"), b"").is_err(), "control: no record can be written");
        machine.discard_disk(vm(1)).await.unwrap();
        assert_eq!(std::fs::read_dir(&cow).unwrap().count(), 1, "what others have written");
        drop(machine);
        run(&format!("umount {}", cow.display()));
    });
}

#[test]
fn a_file_that_was_brought_back_with_holes_is_reserved_again_before_it_is_used() {
    if !is_root() || !has_loop() {
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(BASE);
        let cow = folders.path("state/cow");
        run("mount --make-rprivate /");
        let bytes = cow_file_bytes(MIN_ROOT_BYTES);
        let room = (HOST_RESERVE_BYTES + bytes) >> 20;
        run(&format!("mount -t tmpfs -o mode=0700,size={}M tmpfs {}", room + 1, cow.display()));
        let path = cow.join(vm(1).to_string());
        let machine = folders.start().await;
        machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        drop(machine);
        // As `rsync --sparse` does it, but for the last piece.
        let hole = bytes - (8 << 20);
        run(&format!("fallocate --punch-hole --offset 0 --length {hole} {}", path.display()));
        assert!(path.metadata().unwrap().blocks() * 512 < bytes);
        let machine = folders.start().await;
        std::fs::write(cow.join("others"), vec![1; 64 << 20]).unwrap();
        let before = objects();
        assert_eq!(code(machine.attach_disk(vm(1), OWNER).await), HelperError::NoSpace);
        assert_eq!(objects(), before, "nothing is attached");
        std::fs::remove_file(cow.join("others")).unwrap();
        // What follows needs device-mapper.
        drop(machine.attach_disk(vm(1), OWNER).await);
        assert!(path.metadata().unwrap().blocks() * 512 >= bytes);
        machine.release(vm(1)).await.unwrap();
        assert!(machine.identity(vm(1)).unwrap().cow.unwrap().allocated_bytes >= bytes);
        drop(machine);
        run(&format!("umount --lazy {}", cow.display()));
    });
}

#[test]
fn a_disk_that_somebody_else_has_touched_is_left() {
    with_image(has_dm, async |folders, machine| {
        machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
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
