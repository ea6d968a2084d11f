//! A guest that writes: numbered lines on both disks, each made durable with fsync, read back from
//! the disk past the page cache, and compared.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::suite::guests::Guest;
use crate::suite::scene::Scene;

/// On the work disk, and on the root disk.
const FILES: [&str; 2] = ["/root/numbers", "/var/numbers"];
/// What was not read back as it was written.
const WRONG: &str = "/root/wrong";

/// What was found in the files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    /// The last number that is on both disks.
    pub(super) last: u64,
    /// The longest time from one line to the next, seconds of the guest's own clock.
    pub(super) longest_pause: f64,
}

/// Starts it; it goes on until the guest ends.
pub(super) fn start(scene: &Scene, guest: &Guest) -> Result<()> {
    let files = FILES.join(" ");
    let line = format!(
        "(n=0; while true; do n=$((n+1)); read up rest < /proc/uptime; for f in {files}; do \
           echo $n $up | dd of=$f oflag=append conv=notrunc,fsync status=none || echo $n $f not written >> {WRONG}; \
           got=$(dd if=$f iflag=direct bs=64k status=none | tail -n 1); \
           [ \"$got\" = \"$n $up\" ] || echo $n $up in $f was read as $got >> {WRONG}; \
         done; sleep 0.1; done) </dev/null >/dev/null 2>&1 &"
    );
    guest.shell(scene, &line)?.ok()?;
    scene
        .wait_until("the guest writes", Duration::from_secs(5), || {
            let text = guest.shell(scene, "cat /var/numbers 2>/dev/null; :")?.ok()?.stdout;
            Ok((text.lines().count() < 3).then_some(text))
        })
        .map(drop)
}

/// No line is missing, none came twice, none was read as anything else.
pub(super) fn check(scene: &Scene, guest: &Guest) -> Result<Written> {
    let wrong = guest.shell(scene, &format!("cat {WRONG} 2>/dev/null; :"))?.ok()?.stdout;
    ensure!(wrong.is_empty(), "the guest did not read what it had written:\n{wrong}");
    let mut written = Written { last: u64::MAX, longest_pause: 0.0 };
    for file in FILES {
        let text = guest.shell(scene, &format!("cat {file}"))?.ok()?.stdout;
        let (last, pause) = numbered(&text).with_context(|| format!("{file} in {}", guest.name))?;
        written = Written { last: written.last.min(last), longest_pause: written.longest_pause.max(pause) };
    }
    Ok(written)
}

fn numbered(text: &str) -> Result<(u64, f64)> {
    let (mut last, mut pause, mut earlier) = (0, 0.0_f64, None);
    for line in text.lines() {
        let (number, up) = line.split_once(' ').with_context(|| format!("{line:?} is no line of the writer"))?;
        let (number, up): (u64, f64) = (number.parse().context(line.to_owned())?, up.parse().context(line.to_owned())?);
        ensure!(number == last + 1, "after {last} comes {number}");
        if let Some(earlier) = earlier {
            ensure!(up >= earlier, "the guest's clock went back at {number}");
            pause = pause.max(up - earlier);
        }
        (last, earlier) = (number, Some(up));
    }
    ensure!(last > 0, "nothing was written");
    Ok((last, pause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_a_repeated_and_a_torn_line_are_seen() -> Result<()> {
        assert_eq!(numbered("1 4.50\n2 4.75\n3 6.00\n")?, (3, 1.25));
        for bad in ["", "1 4.5\n3 4.6\n", "1 4.5\n1 4.6\n", "2 4.5\n", "1 4.5\n2", "1 4.5\n2 4.4\n", "1 4.5\n\0\0\n"] {
            assert!(numbered(bad).is_err(), "{bad:?}");
        }
        Ok(())
    }
}
