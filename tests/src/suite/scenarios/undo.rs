//! A start that fails, at each step in turn: everything is undone, the VM is in state `error` with
//! a reason, and the next start works.
//!
//! The faults come from outside, as they would on a real host: a name that is taken, a file that is
//! gone, a VMM that ends or hangs. The guest does not matter, so none is booted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_policy::VmId;

use crate::inventory::{Allow, Inventory, Kind, leaks};
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "undo",
    about: "a start that fails at each step in turn undoes everything",
    setup: Setup::Still,
    scenarios,
};

/// A fault: how it comes about and is mended. `$ID`, `$TAP`, `$DM` and `$VMM` stand for the VM's
/// id, its tap, its dm device and the VMM's binary.
struct Fault {
    step: &'static str,
    comes: &'static str,
    mended: &'static str,
}

const FAULTS: &[Fault] = &[
    Fault { step: "preflight-no-kvm", comes: "mv /dev/kvm /dev/kvm.away", mended: "mv /dev/kvm.away /dev/kvm" },
    Fault { step: "preflight-no-vmm", comes: "mv $VMM $VMM.away", mended: "mv $VMM.away $VMM" },
    Fault {
        step: "kernel-gone",
        comes: "for k in /var/lib/banger/kernels/*/vmlinux; do mv $k $k.away; done",
        mended: "for k in /var/lib/banger/kernels/*/vmlinux.away; do mv $k ${k%.away}; done",
    },
    Fault {
        step: "root-disk-name-taken",
        comes: "dmsetup create $DM --table '0 8 error'",
        mended: "dmsetup remove $DM",
    },
    Fault {
        step: "base-image-gone",
        comes: "for i in /var/lib/banger/images/*/rootfs.ext4; do mv $i $i.away; done",
        mended: "for i in /var/lib/banger/images/*/rootfs.ext4.away; do mv $i ${i%.away}; done",
    },
    Fault {
        step: "work-disk-gone",
        comes: "mv /var/lib/banger/vms/$ID/work.ext4 /var/lib/banger/vms/$ID/work.away",
        mended: "mv /var/lib/banger/vms/$ID/work.away /var/lib/banger/vms/$ID/work.ext4",
    },
    Fault {
        step: "vm-folder-cannot-be-written",
        comes: "chattr +i /var/lib/banger/vms/$ID",
        mended: "chattr -i /var/lib/banger/vms/$ID",
    },
    Fault { step: "tap-name-taken", comes: "ip link add $TAP type dummy", mended: "ip link del $TAP" },
    Fault {
        step: "vmm-ends-at-once",
        comes: "cp -a $VMM $VMM.away; printf '#!/bin/sh\\necho out of luck\\nexit 3\\n' > $VMM.new; chmod 755 $VMM.new; mv $VMM.new $VMM",
        mended: "mv $VMM.away $VMM",
    },
    Fault { step: "vmm-refuses-every-request", comes: REFUSING, mended: "mv $VMM.away $VMM" },
    Fault {
        step: "vmm-never-opens-its-socket",
        comes: "cp -a $VMM $VMM.away; printf '#!/bin/sh\\nexec sleep 3600\\n' > $VMM.new; chmod 755 $VMM.new; mv $VMM.new $VMM",
        mended: "mv $VMM.away $VMM",
    },
];

/// Called as `--api-sock PATH --id ID`.
const REFUSING: &str = r#"cp -a $VMM $VMM.away; cat > $VMM.new <<'END'
#!/bin/sh
exec socat "UNIX-LISTEN:$2,fork" SYSTEM:'printf "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n{\"fault_message\":\"out of luck\"}"'
END
chmod 755 $VMM.new; mv $VMM.new $VMM"#;

/// A start that hangs is given up within this, under KVM.
const GIVEN_UP: Duration = Duration::from_secs(150);

fn scenarios() -> Vec<Scenario> {
    FAULTS.iter().map(|fault| Scenario::new(fault.step, move |scene| fails(scene, fault))).collect()
}

fn fails(scene: &mut Scene, fault: &Fault) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::create(scene, "alice", "faulty")?;
    let id: VmId = guest.id.parse().with_context(|| format!("{:?} is no VM id", guest.id))?;
    let (tap, dm) = (id.tap_name(), id.dm_name());
    let filled = |line: &str| {
        line.replace("$ID", &guest.id)
            .replace("$TAP", &tap)
            .replace("$DM", &dm)
            .replace("$VMM", crate::suite::product::VMM)
    };

    scene.root(&filled(fault.comes))?;
    let stopped = Inventory::take();
    let ended = scene.start_banger("alice", &["vm", "start", "faulty"]).and_then(|run| run.wait(scene.limit(GIVEN_UP)));
    let looked = look(scene, &guest, stopped);
    scene.root(&filled(fault.mended))?;

    scene.step("the start is refused with a reason", |_| ended?.refused(&["faulty"]).map(drop))?;
    scene.step("everything is undone", |_| looked)?;
    scene.step("the next start works", |scene| {
        guest.order(scene, "start")?.ok()?;
        guest.is(scene, "running")
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// State and reason, and the host as it was before the start but for the VM's own files.
fn look(scene: &Scene, guest: &Guest, stopped: Result<Inventory>) -> Result<()> {
    let stopped = stopped?;
    let (state, reason) = guest.state(scene)?;
    ensure!(state == "error" && !reason.is_empty(), "the VM is {state}, for the reason {reason:?}");
    let own = [
        Allow::altered(Kind::File, "/var/lib/banger/*", "the VM's own files and the database"),
        Allow::anything(Kind::File, format!("/var/lib/banger/vms/{}/*", guest.id), "the VM's own files"),
    ];
    scene
        .wait_until("the host is as before the start", Duration::from_secs(5), || {
            let difference = leaks(&stopped, &Inventory::take()?, &own);
            Ok((!difference.leaks.is_empty()).then(|| difference.to_string()))
        })
        .map(drop)
}
