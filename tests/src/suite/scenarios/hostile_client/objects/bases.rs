//! Base images that are none.

use anyhow::{Result, ensure};
use banger_proto::helper::HelperRequest;

use super::{Image, MIN_ROOT, OWNER, with_helper};
use crate::suite::list::Outcome;
use crate::suite::peer::vm;
use crate::suite::scene::Scene;

/// A plain file as it must be, as long as the root disk.
const GOOD: &str = "truncate -s 128M $P; chown bangerd:root $P; chmod 0440 $P";

/// What lies where the base should: `$F` the file, `$D` its folder, `$G` a line that makes a good
/// file elsewhere as `$X`.
const WRONG: &[(&str, &str)] = &[
    ("nothing", "true"),
    ("a symbolic link to a good file", "$G; ln -s $X $F"),
    ("a symbolic link to a device", "ln -s /dev/vda $F"),
    ("a symbolic link to a secret", "ln -s /etc/shadow $F"),
    ("a hard link", "$G; ln $X $F"),
    ("a fifo", "mkfifo -m 0440 $F; chown bangerd:root $F"),
    ("a folder", "mkdir -m 0440 $F; chown bangerd:root $F"),
    ("a block device", "mknod -m 0440 $F b 254 0; chown bangerd:root $F"),
    ("a character device", "mknod -m 0440 $F c 1 5; chown bangerd:root $F"),
    (
        "a socket",
        "socat -u UNIX-LISTEN:$F,unlink-close=0 /dev/null & sleep 1; kill $!; test -S $F; chown bangerd:root $F",
    ),
    ("root's file", "$G; mv $X $F; chown root:root $F"),
    ("alice's file", "$G; mv $X $F; chown alice:root $F"),
    ("of no bytes", "$G; mv $X $F; : > $F"),
    ("of an odd size", "$G; mv $X $F; truncate -s 1048577 $F"),
    ("shorter than the root disk", "$G; mv $X $F; truncate -s 127M $F"),
    ("of half a sector", "$G; mv $X $F; truncate -s 256 $F"),
    ("writable by its owner's processes", "$G; mv $X $F; chmod 0660 $F"),
    ("a folder that is a symbolic link", "$G; mkdir $D.else; mv $X $D.else/rootfs.ext4; rmdir $D; ln -s $D.else $D"),
    ("another VM's COW file, by a symbolic link", "ln -s $C $F"),
    ("another VM's COW file, by a hard link", "ln $C $F"),
];

pub(super) fn bases(scene: &mut Scene) -> Result<Outcome> {
    with_helper(scene, |scene, helper| {
        let good = Image::new(scene)?;
        let other = vm(60)?;
        helper.ok(&HelperRequest::CreateDisk { vm: other, owner: OWNER, image: good.digest, root_bytes: MIN_ROOT })?;
        let create = |image| {
            Ok::<_, anyhow::Error>(HelperRequest::CreateDisk { vm: vm(61)?, owner: OWNER, image, root_bytes: MIN_ROOT })
        };
        let wrong = Image::named(0x2e)?;
        let elsewhere = "/var/lib/banger/tmp/bench-base";
        for (what, line) in WRONG {
            let made_good = GOOD.replace("$P", elsewhere);
            let line = line
                .replace("$G", &made_good)
                .replace("$X", elsewhere)
                .replace("$C", &format!("/var/lib/banger-priv/cow/{other}"));
            let asked = wrong.make(scene, &line).and_then(|()| {
                scene.step(&format!("{what}: refused"), |_| {
                    helper.expect(&create(wrong.digest)?, &["BadImage"]).map(drop)
                })
            });
            scene.root(&format!("rm -rf {0} {0}.else {elsewhere}", wrong.folder))?;
            asked?;
        }
        scene.step("no trace of any of them", |scene| {
            helper.expect(&HelperRequest::Identity { vm: vm(61)? }, &["NotYours"])?;
            let files = scene.root("ls /var/lib/banger-priv/cow; losetup --list --noheadings")?;
            ensure!(!files.contains(&vm(61)?.to_string()) && !files.contains("rootfs.ext4"), "left:\n{files}");
            Ok(())
        })?;
        scene.step("a good one is taken, and with another image afterwards it is another request", |scene| {
            helper.ok(&create(good.digest)?)?;
            wrong.make(scene, &GOOD.replace("$P", "$F"))?;
            helper.expect(&create(wrong.digest)?, &["BadState"])?;
            wrong.remove(scene)
        })?;
        scene.step("a base that was exchanged between create and attach is refused", |scene| {
            let attach = HelperRequest::AttachDisk { vm: vm(61)?, owner: OWNER };
            scene.root(&format!("cp -a {0} {0}.kept; truncate -s 4194304 {0}", good.path))?;
            helper.expect(&attach, &["BadImage"])?;
            scene.root(&format!("rm {0}; ln -s {0}.kept {0}", good.path))?;
            helper.expect(&attach, &["BadImage"])?;
            scene.root(&format!("mv {0}.kept {0}", good.path))?;
            helper.ok(&attach)
        })?;
        good.remove(scene)
    })
}
