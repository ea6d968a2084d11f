//! Packages made in code, and their faults; the bytes of a real one are looked at where there is
//! one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::index::Index;
use super::{PackageError, unpack};
use crate::source::{Budget, Window};
use crate::tests::maker::{gzip, zstd};
use std::collections::BTreeMap;
use std::io::Write as _;

type Files<'a> = [(&'a str, &'a [u8])];

fn window(bytes: &[u8]) -> Window {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Window::whole(file).unwrap()
}

fn ar(members: &Files<'_>) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, data) in members {
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", data.len()).bytes());
        out.extend(*data);
        out.resize(out.len().next_multiple_of(2), b'\n');
    }
    out
}

fn deb(files: &Files<'_>, data: &str, pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, format!("./{name}"), *bytes).unwrap();
    }
    let tar = pack(&tar.into_inner().unwrap());
    ar(&[("debian-binary", b"2.0\n"), ("control.tar.gz/", &gzip(b"odd")), (data, &tar)])
}

fn cpio(files: &Files<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in files.iter().chain(&[("TRAILER!!!", &b""[..])]) {
        let numbers = [1, 0o100_644, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        out.extend(b"070701");
        numbers.iter().for_each(|number| out.extend(format!("{number:08x}").bytes()));
        out.extend([name.as_bytes(), &[0]].concat());
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(*data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn rpm(files: &Files<'_>, pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut out = vec![0xed, 0xab, 0xee, 0xdb, 3, 0];
    out.resize(96, 0);
    for (entries, bytes) in [(1_u32, 5_u32), (2, 7)] {
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend([0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0]);
        out.extend([entries.to_be_bytes(), bytes.to_be_bytes()].concat());
        out.resize(out.len() + entries as usize * 16 + bytes as usize, 1);
    }
    out.extend(pack(&cpio(files)));
    out
}

fn run(packages: &[Vec<u8>]) -> Result<BTreeMap<String, Vec<u8>>, PackageError> {
    let windows: Vec<Window> = packages.iter().map(|bytes| window(bytes)).collect();
    let staging = tempfile::tempdir().unwrap();
    let mut budget = Budget::new(1 << 24, 1000);
    let files = unpack(&windows.iter().collect::<Vec<_>>(), staging.path(), &mut budget, &())?;
    Ok(files.into_iter().map(|(name, file)| (name, file.read_all().unwrap())).collect())
}

const NET: &[u8] = b"\0depends=fail-over,crc\0alias=virtio:d00000001v*\0alias=net-[a-z]-x\0softdep=pre: crc\0";
const FAILOVER: &[u8] = b"\0depends=crc\0";

#[test]
fn a_debian_package_is_a_kernel_and_its_modules() {
    let net = gzip(NET);
    let files: [(&str, &[u8]); 5] = [
        ("boot/vmlinuz-6.1-x", b"kernel"),
        ("usr/lib/modules/6.1-x/kernel/net.ko.gz", &net),
        ("usr/lib/modules/6.1-x/kernel/fail-over.ko", FAILOVER),
        ("lib/modules/6.1-x/kernel/crc.ko", b"\0depends=\0"),
        ("lib/modules/6.1-x/modules.builtin", b"kernel/fs/ext4/ext4.ko\n"),
    ];
    for package in
        [deb(&files, "data.tar.gz", gzip), deb(&files, "data.tar.zst/", zstd), deb(&files, "data.tar", <[u8]>::to_vec)]
    {
        let found = run(&[package]).unwrap();
        let text = |name: &str| String::from_utf8(found.get(&format!("modules/{name}")).unwrap().clone()).unwrap();
        assert_eq!(found.get("vmlinuz").unwrap(), b"kernel");
        assert_eq!(
            text("modules.dep"),
            "kernel/crc.ko:\nkernel/fail-over.ko: kernel/crc.ko\n\
             kernel/net.ko.gz: kernel/fail-over.ko kernel/crc.ko\n"
        );
        assert_eq!(text("modules.alias"), "alias virtio:d00000001v* net\nalias net-[a-z]-x net\n");
        assert_eq!(text("modules.softdep"), "softdep net pre: crc\n");
    }
}

#[test]
fn the_packages_of_one_kernel_are_given_together() {
    let core = [("./lib/modules/6.1-x/vmlinuz", &b"kernel"[..]), ("./lib/modules/6.1-x/modules.builtin", b"")];
    let more = [("./lib/modules/6.1-x/kernel/a.ko", &b"\0depends=\0"[..])];
    let other = [("./lib/modules/6.2-x/kernel/a.ko", &b"\0depends=\0"[..])];
    for pack in [gzip, zstd, |plain: &[u8]| plain.to_vec()] {
        let found = run(&[rpm(&more, pack), rpm(&core, pack)]).unwrap();
        assert_eq!(found.get("modules/modules.dep").unwrap(), b"kernel/a.ko:\n");
        assert_eq!(found.get("vmlinuz").unwrap(), b"kernel");
    }
    let error = run(&[rpm(&core, gzip)]).unwrap_err();
    assert!(matches!(&error, PackageError::NoModules { release, others } if release == "6.1-x" && others.is_empty()));
    let error = run(&[rpm(&core, gzip), rpm(&other, gzip)]).unwrap_err().to_string();
    assert!(error.contains("6.1-x") && error.contains("but of 6.2-x"), "{error}");
    assert!(matches!(run(&[rpm(&more, gzip)]).unwrap_err(), PackageError::NoKernel { packages: 1 }));
    let second = [("boot/vmlinuz-6.2-x", &b"kernel"[..])];
    let error = run(&[rpm(&core, gzip), deb(&second, "data.tar.gz", gzip)]).unwrap_err();
    assert!(matches!(&error, PackageError::Several { releases } if releases == &["6.1-x", "6.2-x"]), "{error}");
}

/// A module that is an object file, whose section has no NUL before its first text.
fn object(modinfo: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    let names = b"\0.text\0.modinfo\0";
    let mut elf = b"\x7fELF\x02\x01".to_vec();
    elf.resize(HEADER, 0);
    let code = b"code without an end";
    let bodies: [(u32, &[u8]); 3] = [(1, code), (7, modinfo), (0, names)];
    let mut table = Vec::new();
    for (name, body) in bodies {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(elf.len() as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(body.len() as u64).to_le_bytes());
        table.extend(header);
        elf.extend(body);
    }
    let start = elf.len() as u64;
    elf[0x28..0x30].copy_from_slice(&start.to_le_bytes());
    for (at, number) in [(0x3a, 64_u16), (0x3c, 3), (0x3e, 2)] {
        elf[at..at + 2].copy_from_slice(&number.to_le_bytes());
    }
    elf.extend(table);
    elf
}

#[test]
fn each_module_comes_before_what_it_needs_also_by_two_ways() {
    // As virtio_net of Debian's 6.1: by the shorter way, virtio_ring would come too early.
    let files: [(&str, Vec<u8>); 6] = [
        ("boot/vmlinuz-6", b"kernel".to_vec()),
        ("lib/modules/6/net.ko", object(b"depends=fail,virtio_ring,virtio\0alias=first\0")),
        ("lib/modules/6/virtio.ko", object(b"depends=virtio_ring\0")),
        ("lib/modules/6/virtio_ring.ko", object(b"license=GPL\0depends=\0")),
        ("lib/modules/6/fail.ko", object(b"depends=\0")),
        ("lib/modules/6/tun.ko", object(b"alias=devname:net/tun\0alias=char-major-10-200\0depends=\0")),
    ];
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let found = run(&[deb(&files, "data.tar.gz", gzip)]).unwrap();
    let text = |name: &str| String::from_utf8(found.get(&format!("modules/{name}")).unwrap().clone()).unwrap();
    let dep = text("modules.dep");
    let net: Vec<&str> = dep.lines().find(|line| line.starts_with("net.ko")).unwrap().split(' ').skip(1).collect();
    let at = |name: &str| net.iter().position(|file| *file == name).unwrap();
    assert!(net.len() == 3 && at("virtio.ko") < at("virtio_ring.ko"), "{dep}");
    assert!(text("modules.alias").contains("alias first net\n"), "the first text of the section counts");
    assert_eq!(text("modules.devname"), "tun net/tun c10:200\n");
}

#[test]
fn dependencies_in_a_circle_end() {
    let files: [(&str, &[u8]); 3] = [
        ("boot/vmlinuz-6", b"kernel"),
        ("lib/modules/6/a.ko", b"\0depends=b,none\0"),
        ("lib/modules/6/b.ko", b"\0depends=a\0"),
    ];
    let found = run(&[deb(&files, "data.tar.gz", gzip)]).unwrap();
    assert_eq!(found.get("modules/modules.dep").unwrap(), b"a.ko: b.ko\nb.ko: a.ko\n");
}

#[test]
fn every_cut_and_every_wrong_byte_is_an_error_or_a_kernel() {
    let files: [(&str, &[u8]); 2] = [("boot/vmlinuz-6", b"kernel"), ("lib/modules/6/a.ko", b"\0depends=\0")];
    for whole in [deb(&files, "data.tar", <[u8]>::to_vec), rpm(&files, <[u8]>::to_vec)] {
        assert!(run(std::slice::from_ref(&whole)).is_ok());
        for cut in (0..200).chain([whole.len() / 2]) {
            assert!(run(&[whole[..cut].to_vec()]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len().min(700) {
            let mut odd = whole.clone();
            odd[at] ^= 0xff;
            let _ = run(&[odd]);
        }
    }
    assert!(matches!(run(&[b"#!/bin/sh".to_vec()]).unwrap_err(), PackageError::Kind { number: 1 }));
    let lying = ar(&[("debian-binary", b"2.0\n")]);
    assert!(matches!(run(&[lying]).unwrap_err(), PackageError::Damaged { number: 1, .. }));
}

/// As kmod reads it (`index_read` in `libkmod/libkmod-index.c`).
fn read(bytes: &[u8], offset: u32, before: &[u8], found: &mut BTreeMap<Vec<u8>, Vec<Vec<u8>>>) {
    let mut at = (offset & 0x0fff_ffff) as usize;
    let text = |at: &mut usize| {
        let end = *at + bytes[*at..].iter().position(|byte| *byte == 0).unwrap();
        let text = bytes[*at..end].to_vec();
        *at = end + 1;
        text
    };
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut key = before.to_vec();
    if offset & 0x8000_0000 != 0 {
        key.extend(text(&mut at));
    }
    if offset & 0x2000_0000 != 0 {
        let (first, last) = (bytes[at], bytes[at + 1]);
        at += 2;
        for byte in first..=last {
            let child = number(at);
            at += 4;
            if child != 0 {
                read(bytes, child, &[&key[..], &[byte]].concat(), found);
            }
        }
    }
    if offset & 0x4000_0000 != 0 {
        let count = number(at);
        at += 4;
        for _ in 0..count {
            at += 4;
            found.entry(key.clone()).or_default().push(text(&mut at));
        }
    }
}

#[test]
fn an_index_is_read_as_it_was_written() {
    let keys = ["", "a", "ab", "abc", "abd", "b", "virtio:*", "virtio:d1", "x~"];
    let mut index = Index::default();
    for key in keys {
        index.add(key, &format!("of {key}"));
        index.add(key, "");
    }
    index.add("not\u{e9}ascii", "left out");
    let bytes = index.bytes();
    assert_eq!(bytes[..8], [0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1]);
    let mut found = BTreeMap::new();
    read(&bytes, u32::from_be_bytes(bytes[8..12].try_into().unwrap()), b"", &mut found);
    let expected = keys.map(|key| (key.into(), vec![format!("of {key}").into_bytes(), Vec::new()]));
    assert_eq!(found, BTreeMap::from(expected));
    assert_eq!(Index::default().bytes().len(), 12);
}
