//! Real images beside what other programs make of the same bytes: Debian as mmdebstrap makes it and
//! an Alpine that is given, each alone and in the layers of umoci and buildah.

use crate::seen::{Seen, look};
use crate::tools::{missing, shell};
use crate::{Declared, GNU, apart, bsdtar_differs, has_its_clock, must_agree, never, now, ours};
use rustix::fs::{XattrFlags, lsetxattr};
use std::path::Path;

/// Packages come from the machine's own apt sources, or from `BANGER_BENCH_MIRROR`, as for the
/// host VM of the bench; only the name of the release is ours.
const DEBIAN: &str = r#"
if [ -n "$BANGER_BENCH_MIRROR" ]; then echo "deb $BANGER_BENCH_MIRROR trixie main"
else apt-get indextargets --format '$(REPO_URI)|$(ORIGIN)|$(LABEL)' 'Created-By: Packages' | sort -u | sed -n \
    -e 's,^\(.*\)|Debian|Debian$,deb \1 trixie main,p' \
    -e 's,^\(.*\)|Debian|Debian-Security$,deb \1 trixie-security main,p'
fi >sources.list
apt-config dump Acquire | sed -n -E '/^Acquire::(https?::Proxy|Check-Valid-Until|Check-Date) "[^"]/p' >apt.conf
mmdebstrap --quiet --format=tar --aptopt="$PWD/apt.conf" "$@" trixie root.tar sources.list"#;

/// What a second layer does to the tree of the first: what is hidden, replaced, made anew, moved,
/// changed in its metadata alone, linked to what is below, and sparse.
const SECOND: &str = r#"
rm -rf usr/share/zoneinfo usr/share/misc etc/issue
rm -rf usr/share/terminfo lib/terminfo; ln -s /nowhere usr/share/terminfo
rm etc/passwd; mkdir etc/passwd; echo inside >etc/passwd/file
rm -r etc/profile.d; mkdir etc/profile.d; echo true >etc/profile.d/ours.sh
mv etc/fstab etc/fstab.moved; mv var/cache var/moved
chmod 2751 var/log; chown 12:34 var/lib; touch -h -d @1000000000 etc/group
ln etc/group usr/group.link; ln -s ../group etc/group.symlink
echo more >>etc/shells
truncate -s 64M var/sparse; echo end >>var/sparse
mknod dev/ours c 1 7; mkfifo var/fifo"#;

/// A third one takes back what the second has done.
const THIRD: &str = r#"
rm -r etc/passwd; echo root:x:0:0:root:/root:/bin/sh >etc/passwd
rm usr/share/terminfo; mkdir usr/share/terminfo
rm usr/group.link var/fifo; echo again >var/fifo
mkdir -p etc/issue/deep/er; touch etc/issue/.hidden"#;

const BUILDAH: &str = "buildah --root $PWD/storage --runroot $PWD/run --storage-driver vfs";

/// Attributes, which the second layer also sets.
fn mark(root: &Path) {
    // struct vfs_cap_data, revision 2, effective, CAP_NET_RAW (linux/capability.h).
    let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
    let capability: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let set = |path: &str, name: &str, value: &[u8]| {
        lsetxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
    };
    set("var/sparse", "user.note", b"a note");
    set("etc/fstab.moved", "security.capability", &capability);
}

/// A line of the shell in a folder.
fn run(at: &Path, line: &str) -> String {
    shell(&format!("set -e; cd {}; {line}", at.display())).unwrap()
}

fn agree(what: &str, ours: &Seen, theirs: &Seen, declared: Declared<'_>) {
    println!("{what}: {} entries", theirs.len());
    must_agree(what, ours, theirs, declared);
}

/// umoci and buildah write whole seconds into their layers, whatever the tree has.
fn whole_seconds(ours: &str, theirs: &str) -> bool {
    let ((ours, one), (theirs, other)) = (apart(ours, "mtime="), apart(theirs, "mtime="));
    let (Some((one, fraction)), Some((other, _))) =
        (one.and_then(|time| time.split_once('.')), other.and_then(|time| time.split_once('.')))
    else {
        return false;
    };
    let apart = one.parse::<i64>().unwrap() - other.parse::<i64>().unwrap();
    ours == theirs && fraction == "000000000" && (0..=1).contains(&apart)
}

/// One archive: `root.tar`.
fn alone(at: &Path, what: &str) {
    let (begun, ours) = (now(), ours(what, &at.join("root.tar")));
    let of_bsdtar = |ours: &str, theirs: &str| bsdtar_differs(begun, ours, theirs);
    let programs: [(&str, &str, Declared<'_>); 2] =
        [("tar", GNU, &never), ("bsdtar", "--xattrs --acls --numeric-owner --same-owner -p", &of_bsdtar)];
    for (program, arguments, declared) in programs {
        run(at, &format!("mkdir {program}; {program} -x {arguments} -C {program} -f root.tar"));
        agree(&format!("{what}, {program}"), &ours, &look(&at.join(program)).unwrap(), declared);
        run(at, &format!("rm -r {program}"));
    }
}

/// What umoci makes of the layout `oci:layout:a`, and what becomes of it when skopeo saves it.
fn layout(at: &Path, what: &str, ours: &Seen) {
    let begun = now();
    run(at, "umoci unpack --image layout:a unpacked");
    let of_umoci = |ours: &str, theirs: &str| has_its_clock(begun, ours, theirs);
    agree(&format!("{what}, umoci unpack"), ours, &look(&at.join("unpacked/rootfs")).unwrap(), &of_umoci);
    run(at, "skopeo copy --quiet --insecure-policy oci:layout:a docker-archive:docker.tar:b:c");
    let saved = crate::ours(what, &at.join("docker.tar"));
    agree(&format!("{what}, docker save by skopeo"), &saved, ours, &never);
    run(at, "rm -r layout unpacked docker.tar");
}

/// Layers by umoci, from `root.tar`.
fn by_umoci(at: &Path, what: &str) {
    let what = format!("{what} by umoci");
    let repack = "umoci repack --refresh-bundle --image layout:a bundle";
    run(at, "umoci init --layout layout; umoci new --image layout:a; umoci unpack --image layout:a bundle");
    run(at, &format!("tar -x {GNU} -C bundle/rootfs -f root.tar; {repack}"));
    let root = at.join("bundle/rootfs");
    for change in [SECOND, THIRD] {
        run(&root, change);
        mark(&root);
        run(at, repack);
    }
    run(at, "tar -C layout -cf oci.tar .");
    let built = look(&root).unwrap();
    agree(&format!("{what}, its bundle"), &ours(&what, &at.join("oci.tar")), &built, &whole_seconds);
    run(at, "mkdir -p inserted/folder; echo inserted >inserted/folder/file");
    run(at, "umoci insert --image layout:a --opaque inserted /etc; umoci insert --image layout:a inserted /srv/new");
    run(at, "umoci insert --image layout:a --whiteout /var/moved; tar -C layout -cf oci.tar .");
    let ours = ours(&what, &at.join("oci.tar"));
    assert!(!ours.contains_key("./etc/passwd") && !ours.contains_key("./var/moved"), "{what}: nothing is hidden");
    assert!(ours.contains_key("./etc/folder/file") && ours.contains_key("./srv/new/folder"), "{what}: nothing is new");
    layout(at, &what, &ours);
    run(at, "rm -r bundle inserted oci.tar");
}

/// Layers by buildah, from `root.tar`.
fn by_buildah(at: &Path, what: &str) {
    let what = format!("{what} by buildah");
    let commit = |name: &str| run(at, &format!("{BUILDAH} commit --quiet $(cat container) {name}"));
    run(at, &format!("{BUILDAH} from scratch >container; {BUILDAH} add --quiet $(cat container) root.tar /"));
    commit("first");
    let mut built = Seen::new();
    for (below, change, name) in [("first", SECOND, "second"), ("second", THIRD, "third")] {
        run(at, &format!("{BUILDAH} rm $(cat container); {BUILDAH} from --pull-never localhost/{below} >container"));
        let root = run(at, &format!("{BUILDAH} mount $(cat container)"));
        let root = Path::new(root.trim_end());
        run(root, change);
        mark(root);
        commit(name);
        built = look(root).unwrap();
    }
    // The root has an entry in none of buildah's layers.
    built.remove(".");
    for form in ["oci-archive", "docker-archive"] {
        run(at, &format!("{BUILDAH} push --quiet localhost/third {form}:$PWD/pushed.tar:b:c"));
        let ours = ours(&what, &at.join("pushed.tar"));
        let below_root = ours.clone().into_iter().filter(|(path, _)| path != ".").collect();
        agree(&format!("{what}, its tree, {form}"), &below_root, &built, &whole_seconds);
        run(at, &format!("skopeo copy --quiet --insecure-policy {form}:pushed.tar:b:c oci:layout:a; rm pushed.tar"));
        layout(at, &format!("{what}, {form}"), &ours);
    }
    run(at, &format!("{BUILDAH} rm --all; {BUILDAH} rmi --all --force; rm -r storage run container"));
}

fn compare(at: &Path, what: &str) {
    alone(at, what);
    by_umoci(at, what);
    by_buildah(at, what);
}

const PROGRAMS: [&str; 5] = ["tar", "bsdtar", "umoci", "skopeo", "buildah"];

fn debian(what: &str, options: &str) {
    if let Some(why) = missing(&PROGRAMS).or_else(|| missing(&["mmdebstrap", "apt-get"])) {
        println!("skipped: {why}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &format!("set -- {options}; {DEBIAN}"));
    compare(folder.path(), what);
}

#[test]
#[ignore = "makes Debian images, minutes: run by name"]
fn a_real_debian_minbase() {
    debian("Debian minbase", "--variant=minbase");
}

#[test]
#[ignore = "makes Debian images, minutes: run by name"]
fn a_real_debian_standard() {
    debian("Debian standard", "--variant=standard");
}

/// With a program that has a capability: ping.
#[test]
#[ignore = "makes Debian images, minutes: run by name"]
fn a_real_debian_with_systemd() {
    debian("Debian with systemd", "--variant=minbase --include=systemd-sysv,iputils-ping");
}

/// An Alpine as `docker save` has written it.
#[test]
#[ignore = "wants an archive: run by name"]
fn a_real_alpine() {
    if let Some(why) = missing(&PROGRAMS) {
        println!("skipped: {why}");
        return;
    }
    let Some(archive) = std::env::var_os("BANGER_ORACLE_ALPINE") else {
        println!("skipped: BANGER_ORACLE_ALPINE names no archive");
        return;
    };
    let (folder, archive) = (tempfile::tempdir().unwrap(), std::path::absolute(archive).unwrap());
    let at = folder.path();
    // skopeo does not read a whole archive that is compressed.
    run(at, &format!("zcat -f {} >saved.tar", archive.display()));
    run(at, "skopeo copy --quiet --insecure-policy docker-archive:saved.tar oci:layout:a; rm saved.tar");
    run(at, "umoci unpack --image layout:a tree");
    run(at, "tar -C tree/rootfs --numeric-owner --format=pax --xattrs --xattrs-include='*' -cf root.tar .; rm -r tree");
    layout(at, "Alpine", &ours("Alpine", &archive));
    compare(at, "Alpine");
}
