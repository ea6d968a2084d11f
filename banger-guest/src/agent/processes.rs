//! The processes of the guest, for its end.

/// `PF_KTHREAD` of linux/sched.h, in proc_pid_stat(5)'s flags: a thread of the kernel.
const KERNEL: u64 = 0x0020_0000;

/// A process of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) name: String,
    /// When it was started, by the kernel's clock: a number is given again.
    pub(super) start: u64,
}

/// All that run, but PID 1, the agent and its supervisor.
pub(super) fn all() -> Vec<Process> {
    let ours = [1, std::process::id(), std::os::unix::process::parent_id()];
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pids = pids.filter(|pid| !ours.contains(pid));
    pids.filter_map(|pid| parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)).collect()
}

/// Whether one of these is still among those that run `now`. Whatever was started since is not
/// asked for: a script in the place of an init may start programs without an end.
pub(super) fn are_left(these: &[Process], now: &[Process]) -> bool {
    these.iter().any(|one| now.iter().any(|other| (one.pid, one.start) == (other.pid, other.start)))
}

/// A line of proc_pid_stat(5). `None` for a thread of the kernel and for what has ended.
fn parse(line: &[u8]) -> Option<Process> {
    let line = String::from_utf8_lossy(line);
    // The name may have anything in it.
    let (head, rest) = line.rsplit_once(')')?;
    let (pid, name) = head.split_once(" (")?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    let signed = |at: usize| words.get(at)?.parse::<i32>().ok();
    let lives = !matches!(*words.first()?, "Z" | "X") && number(6)? & KERNEL == 0;
    let (parent, group, start) = (signed(1)?, signed(2)?, number(19)?);
    lives.then(|| Some(Process { pid: pid.parse().ok()?, parent, group, name: name.to_owned(), start }))?
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_name_is() {
        let line = |name: &str, state: &str, flags: u64| {
            format!("77 ({name}) {state} 5 76 76 0 -1 {flags} 98 0 0 0 1 2 0 0 20 0 1 0 1234 5 6\n").into_bytes()
        };
        let process = |name: &str| Process { pid: 77, parent: 5, group: 76, name: name.to_owned(), start: 1234 };
        assert_eq!(parse(&line("bash", "S", 4_194_304)), Some(process("bash")));
        assert_eq!(parse(&line("a) S 1 (b", "R", 0)), Some(process("a) S 1 (b")));
        assert_eq!(parse(&line("bash", "Z", 0)), None);
        assert_eq!(parse(&line("kworker/0:0", "I", 69_238_880)), None);
        assert_eq!(parse(b"garbage"), None);
        // This machine's own.
        let ours = parse(&std::fs::read("/proc/self/stat").unwrap()).unwrap();
        assert_eq!((ours.pid, ours.group), (std::process::id().cast_signed(), nix::unistd::getpgrp().as_raw()));
    }

    #[test]
    fn a_process_is_left_until_it_ends_and_no_other_takes_its_place() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id().cast_signed();
        let these: Vec<Process> = all().into_iter().filter(|one| one.pid == pid).collect();
        assert!(these.len() == 1 && are_left(&these, &all()));
        let later: Vec<Process> = these.iter().map(|one| Process { start: one.start + 1, ..one.clone() }).collect();
        assert!(!are_left(&these, &later) && !are_left(&[], &all()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!are_left(&these, &all()));
    }
}
