//! The guest's `/etc/hosts` (hosts(5)): its own name, written by init, and the other VMs of its
//! private network, which the daemon tells the agent. All other lines are the guest's.

use std::net::{IpAddr, Ipv4Addr};

/// The file.
pub(crate) const HOSTS: &str = "/etc/hosts";
/// Longest `/etc/hosts`, bytes: lists of blocked names have some MiB. A longer one is left as it
/// is.
pub(crate) const MAX_HOSTS: u64 = 16 << 20;
/// The end of the line with the guest's own name, which is replaced at each boot.
const MARK: &str = "# banger";
/// The end of a line for another VM.
const NETWORK_MARK: &str = "# banger network";

/// The image's hosts file with our line in it: other lines stay, our lines of an earlier boot go,
/// and so does 127.0.1.1, by which Debian names the machine.
pub(crate) fn at_boot(old: &[u8], address: Ipv4Addr, hostname: &str) -> Vec<u8> {
    let kept = || lines(old).filter(|line| !ends(line, MARK) && !ends(line, NETWORK_MARK) && !names(line, "127.0.1.1"));
    let mut text = Vec::with_capacity(old.len() + 100);
    if !kept().any(|line| names(line, "127.0.0.1")) {
        text.extend_from_slice(b"127.0.0.1\tlocalhost\n");
    }
    kept().for_each(|line| add(&mut text, line));
    text.extend_from_slice(format!("{address}\t{hostname} {MARK}\n").as_bytes());
    text
}

/// The file with these VMs in the place of those that it had.
pub(crate) fn with_network<'a>(old: &[u8], network: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut text = Vec::with_capacity(old.len() + 100);
    lines(old).filter(|line| !ends(line, NETWORK_MARK)).for_each(|line| add(&mut text, line));
    network.for_each(|line| add(&mut text, &[line, b" ", NETWORK_MARK.as_bytes()].concat()));
    text
}

/// The addresses of a name.
pub(crate) fn addresses(text: &[u8], name: &str) -> Vec<IpAddr> {
    /// Of one name.
    const MOST: usize = 16;
    let of = |line: &[u8]| -> Option<IpAddr> {
        let line = std::str::from_utf8(line.split(|byte| *byte == b'#').next()?).ok()?;
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    lines(text).filter_map(of).take(MOST).collect()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.split(|byte| *byte == b'\n').filter(|_| !text.is_empty())
}

fn add(text: &mut Vec<u8>, line: &[u8]) {
    text.extend_from_slice(line);
    text.push(b'\n');
}

fn ends(line: &[u8], mark: &str) -> bool {
    line.trim_ascii_end().ends_with(mark.as_bytes())
}

fn names(line: &[u8], address: &str) -> bool {
    line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()) == Some(address.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

    #[test]
    fn an_empty_hosts_file_gets_both_lines() {
        assert_eq!(at_boot(b"", WEB, "web"), b"127.0.0.1\tlocalhost\n172.16.0.2\tweb # banger\n");
    }

    #[test]
    fn foreign_lines_stay_and_ours_is_replaced() {
        let old = b"127.0.0.1 localhost\n127.0.1.1 debian\n::1 ip6-localhost\n10.0.0.9 db\n172.16.0.7\told # banger\n";
        let new = b"127.0.0.1 localhost\n::1 ip6-localhost\n10.0.0.9 db\n172.16.0.2\tweb # banger\n";
        assert_eq!(at_boot(old, WEB, "web"), new);
        assert_eq!(at_boot(new, WEB, "web"), new);
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        let old = b"127.0.0.1 localhost\n# caf\xe9\n\n10.0.0.9 db";
        let new = b"127.0.0.1 localhost\n# caf\xe9\n\n10.0.0.9 db\n172.16.0.2\tweb # banger\n";
        assert_eq!(at_boot(old, WEB, "web"), new);
    }

    #[test]
    fn a_name_has_the_addresses_of_its_lines() {
        let text = b"127.0.0.1 localhost\n#10.0.0.8 db\n10.0.0.9\tlog DB # not: web\n# caf\xe9\nbad db\n\
                     ::1 db\n172.16.0.3 web web.alice.vm # banger network";
        assert_eq!(addresses(text, "db"), [IpAddr::from([10, 0, 0, 9]), "::1".parse().unwrap_or([0; 4].into())]);
        assert_eq!(addresses(text, "web.alice.VM"), [IpAddr::from([172, 16, 0, 3])]);
        assert_eq!(addresses(text, "web"), [IpAddr::from([172, 16, 0, 3])], "what is behind # is no name");
        assert!(addresses(text, "nothing").is_empty() && addresses(text, "10.0.0.9").is_empty());
        assert_eq!(addresses(&b"10.0.0.1 many\n".repeat(1000), "many").len(), 16);
    }

    #[test]
    fn the_network_is_replaced_as_a_whole_and_gone_at_the_next_boot() {
        let own = b"127.0.0.1 localhost\n# caf\xe9\n172.16.0.2\tweb # banger\n";
        let two = with_network(own, [&b"172.16.0.3 db db.alice.vm"[..], b"172.16.0.4 log log.alice.vm"].into_iter());
        let lines = b"172.16.0.3 db db.alice.vm # banger network\n172.16.0.4 log log.alice.vm # banger network\n";
        assert_eq!(two, [&own[..], lines].concat());
        let one = with_network(&two, std::iter::once(&b"172.16.0.9 new new.alice.vm"[..]));
        assert_eq!(one, [&own[..], b"172.16.0.9 new new.alice.vm # banger network\n"].concat());
        assert_eq!(with_network(&one, std::iter::empty()), own);
        assert_eq!(at_boot(&one, WEB, "web"), own);
    }
}
