//! The guest, seen from inside, for whoever asks on a command's port ([`banger_proto::inside`]).
//!
//! Reads `/proc` and asks two file systems how full they are; on a thread for blocking work,
//! because a frozen disk answers nothing.

use banger_proto::inside::{Filled, Inside, Listener, MAX_LISTENERS};
use nix::sys::statvfs::statvfs;
use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Descriptors that are looked at in all, in search of the owners of sockets.
const MAX_DESCRIPTORS: usize = 100_000;

/// Looks.
pub(super) fn look() -> Inside {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (memory, load) = (text("/proc/meminfo"), text("/proc/loadavg"));
    let kib = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    let mut averages = load.split_whitespace().map(|number| number.parse::<f64>().unwrap_or(0.0));
    let mut average = || averages.next().unwrap_or(0.0);
    let uptime = text("/proc/uptime");
    Inside {
        uptime_seconds: uptime.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0),
        load: [average(), average(), average()],
        processes: u64::try_from(processes().count()).unwrap_or(0),
        memory_total: kib("MemTotal:") << 10,
        memory_available: kib("MemAvailable:") << 10,
        root: filled("/").unwrap_or_default(),
        work: is_mounted("/root").then(|| filled("/root")).flatten(),
        listeners: listeners(text),
    }
}

fn filled(path: &str) -> Option<Filled> {
    let found = statvfs(path).ok()?;
    let size = found.fragment_size();
    Some(Filled { total: size * found.blocks(), free: size * found.blocks_available() })
}

fn is_mounted(path: &str) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    device(Path::new(path)).is_some_and(|here| device(Path::new("/")) != Some(here))
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// From the tables of the kernel (proc_net(5)), with the processes that have the sockets open.
fn listeners(text: impl Fn(&str) -> String) -> Vec<Listener> {
    let mut found: Vec<(u64, Listener)> = ["tcp", "tcp6", "udp", "udp6"]
        .into_iter()
        .flat_map(|table| parse(table, &text(&format!("/proc/net/{table}"))))
        .take(MAX_LISTENERS)
        .collect();
    let mut owners = owners(&found.iter().map(|(inode, _)| *inode).collect::<Vec<_>>());
    found.sort_by(|(_, a), (_, b)| (a.port, &a.protocol, &a.address).cmp(&(b.port, &b.protocol, &b.address)));
    let with_owner = |(inode, listener)| {
        let owner = owners.remove(&inode);
        let (pid, program) = owner.map_or((None, String::new()), |(pid, program)| (Some(pid), program));
        Listener { pid, program, ..listener }
    };
    found.into_iter().map(with_owner).collect()
}

/// The lines of sockets that wait for others: their inodes, and where they listen.
fn parse(table: &str, text: &str) -> Vec<(u64, Listener)> {
    let protocol = table.trim_end_matches('6');
    // TCP_LISTEN; a UDP socket that is not connected is "closed" (include/net/tcp_states.h).
    let wanted = if protocol == "tcp" { "0A" } else { "07" };
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let local = words.nth(1)?;
        let state = words.nth(1)?;
        let inode = words.nth(5)?.parse().ok()?;
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
        let listener = Listener { protocol: protocol.to_owned(), address: ip(address)?, port, ..Listener::default() };
        (state == wanted).then_some((inode, listener))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Words of 32 bits as this machine has them.
fn ip(hex: &str) -> Option<String> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    if hex.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).to_string());
    }
    let bytes: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).to_string())
}

/// Which process has a socket open: its descriptors are links to `socket:[INODE]`.
fn owners(wanted: &[u64]) -> HashMap<u64, (u32, String)> {
    let mut owners = HashMap::new();
    let mut seen = 0;
    for pid in processes() {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MAX_DESCRIPTORS || owners.len() == wanted.len() {
                return owners;
            }
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                owners.entry(inode).or_insert_with(|| (pid, name.trim().to_owned()));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const HEADER: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    #[test]
    fn the_kernels_tables_are_read() {
        let tcp = format!(
            "{HEADER}   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1\n\
                 1: 0100007F:1F90 0100007F:0016 01 00000000:00000000 00:00000000 00000000     0        0 102 1\n"
        );
        let found = parse("tcp", &tcp);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].0, found[0].1.address.as_str(), found[0].1.port), (101, "127.0.0.1", 22));
        let all = "00000000000000000000000000000000:0050";
        let six = format!(
            "{HEADER}   0: {all} {all} 0A 00000000:00000000 00:00000000 00000000     0        0 103 1\n   1: rubbish\n"
        );
        let found = parse("tcp6", &six);
        assert_eq!((found[0].1.protocol.as_str(), found[0].1.address.as_str(), found[0].1.port), ("tcp", "::", 80));
        let udp = tcp.replace(" 0A ", " 07 ");
        assert_eq!(parse("udp", &udp).len(), 1);
    }

    #[test]
    fn a_listener_of_this_process_is_found_with_its_name() {
        let ours = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = ours.local_addr().unwrap().port();
        let inside = look();
        let found =
            inside.listeners.iter().find(|listener| listener.port == port && listener.protocol == "tcp").unwrap();
        assert_eq!(found.pid, Some(std::process::id()));
        assert!(!found.program.is_empty() && found.address == "127.0.0.1");
        assert!(inside.memory_total > inside.memory_available && inside.memory_available > 0, "{inside:?}");
        assert!(inside.root.total > 0 && inside.processes > 1 && inside.uptime_seconds > 0, "{inside:?}");
    }
}
