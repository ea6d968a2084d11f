//! An imported tree beside what other programs make of the same bytes: umoci and skopeo, GNU tar
//! and bsdtar. Every entry is compared as the kernel shows it, from an ext4 of ours that is
//! mounted: type, mode, owner, size, content, link target, device, time, attributes, and which
//! names are one file.
//!
//! Needs root, loop devices, and those programs; what is missing is said.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "a test fails by panicking, and says its seed and why it is skipped"
)]

mod dice;
mod layout;
mod real;
mod seen;
mod stack;
mod tarball;
mod tools;

use dice::Dice;
use seen::{Seen, differences, look};
use stack::Stack;
use std::fs;
use std::path::Path;
use tools::{imported, missing, shell};

/// GNU tar with all that it can restore. Without `-P`, a folder cannot take the place of a link
/// that leads out of the tree; without the last word, folders keep the time at which something was
/// put into them late.
const GNU: &str = "--xattrs --xattrs-include='*' --numeric-owner --same-owner -p -P --delay-directory-restore";
/// Stacks of one run. Each takes a second.
const STACKS: u32 = 8;

/// Whether a difference, ours and theirs, is one that is declared.
type Declared<'a> = &'a dyn Fn(&str, &str) -> bool;

fn must_agree(what: &str, ours: &Seen, theirs: &Seen, declared: &dyn Fn(&str, &str) -> bool) {
    let lines = differences(ours, theirs, declared);
    assert!(lines.is_empty(), "{what}, {} entries:\n{}", theirs.len(), lines.join("\n"));
}

fn ours(what: &str, archive: &Path) -> Seen {
    imported(archive).unwrap_or_else(|error| unreachable!("{what}: {error}"))
}

fn never(_: &str, _: &str) -> bool {
    false
}

/// Seconds since the epoch.
fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| i64::try_from(since.as_secs()).unwrap())
}

/// The facts of an entry but for one, and that one.
fn apart<'a>(text: &'a str, fact: &str) -> (Vec<&'a str>, Option<&'a str>) {
    let (one, others) = text.split(' ').partition::<Vec<_>, _>(|word| word.starts_with(fact));
    (others, one.first().map(|word| &word[fact.len()..]))
}

/// A folder that has the time at which the other program put something into it or took it out.
///
/// umoci leaves that time on folders from which it has removed what a whiteout hides, and bsdtar on
/// the folder that it unpacks into. The archive's own entry for the folder says another time, which
/// docker, containerd and GNU tar set at the end.
fn has_its_clock(begun: i64, ours: &str, theirs: &str) -> bool {
    let ((ours, _), (theirs, time)) = (apart(ours, "mtime="), apart(theirs, "mtime="));
    let time = time.and_then(|time| time.split('.').next()?.parse::<i64>().ok());
    ours.first() == Some(&"dir") && ours == theirs && time.is_some_and(|time| time >= begun)
}

/// bsdtar reads ACLs from records of their own (`SCHILY.acl.access`), and not those that stand
/// among the attributes, as GNU tar's `--xattrs` and docker write them.
fn bsdtar_differs(begun: i64, ours: &str, theirs: &str) -> bool {
    fn acls_apart(text: &str) -> (Vec<&str>, Vec<&str>) {
        text.split(' ').partition(|word| word.starts_with("system.posix_acl_"))
    }
    let ((acls, ours), (none, theirs)) = (acls_apart(ours), acls_apart(theirs));
    let (ours, theirs) = (ours.join(" "), theirs.join(" "));
    let is_declared = acls == none || none.is_empty();
    is_declared && (ours == theirs || has_its_clock(begun, &ours, &theirs))
}

#[test]
fn layers_come_to_what_umoci_and_skopeo_make_of_them() {
    if let Some(why) = missing(&["umoci", "skopeo"]) {
        println!("skipped: {why}");
        return;
    }
    let (mut dice, begun) = (Dice::new("layers"), now());
    for number in 0..STACKS {
        let folder = tempfile::tempdir().unwrap();
        let (at, shown) = (folder.path(), folder.path().display());
        let mut stack = Stack::new(dice.fork(), true);
        let layers: Vec<Vec<u8>> = (0..dice.below(5) + 2).map(|_| stack.layer().end()).collect();
        let what = format!("stack {number} of {} layers", layers.len());
        layout::write(&at.join("layout"), &layers);
        shell(&format!("tar -C {shown}/layout -cf {shown}/oci.tar .")).unwrap();
        let of_layout = ours(&what, &at.join("oci.tar"));
        must_agree(&format!("{what}, the model"), &of_layout, &stack.expected(), &never);
        shell(&format!("umoci unpack --image {shown}/layout:a {shown}/bundle")).unwrap();
        let umocis = look(&at.join("bundle/rootfs")).unwrap();
        let of_umoci = |ours: &str, theirs: &str| has_its_clock(begun, ours, theirs);
        must_agree(&format!("{what}, umoci"), &of_layout, &umocis, &of_umoci);
        let copy =
            format!("skopeo copy --quiet --insecure-policy oci:{shown}/layout:a docker-archive:{shown}/docker.tar:b:c");
        shell(&copy).unwrap();
        must_agree(&format!("{what}, docker save"), &ours(&what, &at.join("docker.tar")), &of_layout, &never);
    }
}

#[test]
fn an_archive_comes_to_what_gnu_tar_and_bsdtar_make_of_it() {
    if let Some(why) = missing(&["tar", "bsdtar"]) {
        println!("skipped: {why}");
        return;
    }
    let (mut dice, begun) = (Dice::new("one archive"), now());
    for number in 0..STACKS {
        let folder = tempfile::tempdir().unwrap();
        let (archive, shown) = (folder.path().join("root.tar"), folder.path().display());
        let mut stack = Stack::new(dice.fork(), false);
        fs::write(&archive, stack.layer().end()).unwrap();
        let what = format!("archive {number}");
        let ours = ours(&what, &archive);
        must_agree(&format!("{what}, the model"), &ours, &stack.expected(), &never);
        let of_bsdtar = |ours: &str, theirs: &str| bsdtar_differs(begun, ours, theirs);
        let programs: [(&str, &str, Declared<'_>); 2] =
            [("tar", GNU, &never), ("bsdtar", "--xattrs --acls --numeric-owner --same-owner -p", &of_bsdtar)];
        for (program, arguments, declared) in programs {
            shell(&format!(
                "mkdir {shown}/{program} && {program} -x {arguments} -C {shown}/{program} -f {shown}/root.tar"
            ))
            .unwrap();
            let theirs = look(&folder.path().join(program)).unwrap();
            must_agree(&format!("{what}, {program}"), &ours, &theirs, declared);
        }
    }
}

/// The other way round: a tree of files, as each program packs it.
#[test]
fn what_gnu_tar_and_bsdtar_pack_comes_to_what_they_packed() {
    if let Some(why) = missing(&["tar", "bsdtar"]) {
        println!("skipped: {why}");
        return;
    }
    let mut dice = Dice::new("packed");
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().display();
    fs::write(folder.path().join("root.tar"), Stack::new(dice.fork(), false).layer().end()).unwrap();
    let unpack = format!("mkdir {shown}/tree && tar -x {GNU} -C {shown}/tree -f {shown}/root.tar");
    let hole = format!("truncate -s 3M {shown}/tree/sparse && echo end >> {shown}/tree/sparse");
    shell(&format!("{unpack} && {hole}")).unwrap();
    let whole = look(&folder.path().join("tree")).unwrap();
    for (program, arguments) in [
        ("tar", "--format=pax --xattrs --xattrs-include='*' -S"),
        ("tar", "--format=pax --xattrs --xattrs-include='*' --acls --sparse-version=0.1 -S"),
        ("bsdtar", "--format=pax --xattrs --acls"),
        ("tar", "--format=pax --xattrs --xattrs-include='*' --zstd"),
    ] {
        let archive = folder.path().join("packed.tar");
        shell(&format!("{program} -c {arguments} --numeric-owner -C {shown}/tree -f {shown}/packed.tar .")).unwrap();
        let what = format!("{program} {arguments}");
        must_agree(&what, &ours(&what, &archive), &whole, &never);
    }
}
