//! `--self-check`: this process confines itself as the helper that serves does, then says what
//! holds. It takes no lock, reads no record and changes nothing on the host, so it can run beside
//! the service.

use crate::config::{Call, Config};
use crate::confine::{self, KEEP, LANDLOCK};
use crate::disk_thread::DiskThread;
use crate::kernel::At;
use crate::proc::Processes;
use crate::sys::{call, start};
use crate::{StartError, filter, reach, record, step};
use banger_policy::process::field;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use rustix::fs::{Mode, OFlags, openat2};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// The filter's budget.
const CALLS: usize = 35;

pub(crate) fn run(config: &Config, asked: Option<Call>) -> Result<Infallible, StartError> {
    confine::alone()?;
    start::share_one_heap();
    let processes = Processes::open(None)?;
    let root = record::folder(Path::new("/"), OFlags::PATH).at("open-root")?;
    confine::privileges()?;
    confine::landlock(reach(config))?;
    let disk = DiskThread::default();
    let threads = [std::process::id(), step("start the disk's thread", disk.start())?];
    // These two ask by calls that the filter refuses. Nothing that it allows could change their
    // answers.
    let tcp = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .and_then(|tcp| connect(tcp.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 1)));
    let dumpable = nix::sys::prctl::get_dumpable().at("dumpable")?;
    confine::seccomp()?;
    if let Some((number, arguments)) = asked {
        let answer = call::by_number(number, arguments)
            .unwrap_or_else(|error| error.raw_os_error().map_or(-1, |errno| i64::from(errno).wrapping_neg()));
        step("write", io::stdout().write_all(format!("answer {answer}\n").as_bytes()))?;
        call::exit(0);
    }
    let mut statuses = Vec::new();
    for thread in threads {
        statuses.push(step("read the status of a thread", processes.own_status(thread))?);
    }
    let is = |name: &str, value: &str| statuses.iter().all(|status| field(status, name) == Some(value));
    let refused_here = is_refused_outside(&root);
    let refused_there = disk.begin(move || Ok(is_refused_outside(&root))).blocking_recv() == Ok(Ok(true));
    let kept = format!("{:016x}", KEEP.iter().fold(0, |set, capability| set | capability.bitmask()));
    let none = "0".repeat(16);
    let facts = [
        ("permitted, effective and bounding capabilities are NET_ADMIN and SYS_ADMIN", {
            ["CapPrm", "CapEff", "CapBnd"].iter().all(|set| is(set, &kept))
        }),
        ("no capability can be inherited", is("CapInh", &none) && is("CapAmb", &none)),
        ("no_new_privs", is("NoNewPrivs", "1")),
        ("two threads, of which all this is said", is("Threads", "2")),
        ("not dumpable", !dumpable),
        ("Landlock refuses a file outside", refused_here && refused_there),
        // Under the unit there is not even such a socket (RestrictAddressFamilies=).
        ("TCP is refused", matches!(tcp, Err(Errno::EACCES | Errno::EAFNOSUPPORT))),
        ("seccomp in filter mode", is("Seccomp", "2")),
        ("system calls within their budget", filter::ROWS.len() <= CALLS),
    ];
    let mut text = String::new();
    for (fact, holds) in &facts {
        text.push_str(if *holds { "holds: " } else { "DOES NOT HOLD: " });
        text.push_str(fact);
        text.push('\n');
    }
    let filters = statuses.first().and_then(|status| field(status, "Seccomp_filters")).unwrap_or_default();
    let _ = writeln!(text, "landlock {LANDLOCK:?}\nfilters {filters}\nsyscalls {} of {CALLS}", filter::ROWS.len());
    for row in filter::ROWS {
        let _ = writeln!(text, "row {row}");
    }
    step("write", io::stdout().write_all(text.as_bytes()))?;
    // Not by returning: what Rust does after `main` has no row.
    call::exit(i32::from(facts.iter().any(|(_, holds)| !holds)))
}

/// Is the calling thread refused a file that anybody may read?
fn is_refused_outside(root: &OwnedFd) -> bool {
    let opened = openat2(root, "etc/passwd", OFlags::RDONLY, Mode::empty(), record::beneath());
    opened.is_err_and(|error| error == rustix::io::Errno::ACCESS)
}
