//! Signals by their names and numbers: the one table of agent, daemon and command line.

/// The names of signal(7) without `SIG`, from 1 on; the numbers are those of x86-64 and of 64-bit
/// ARM.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// The names of SSH (RFC 4254 section 6.10). Every other one carries a domain.
const SSH: [&str; 13] =
    ["ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"];
/// The domain of names that SSH does not know.
const DOMAIN: &str = "@banger";
/// The last one, of the real-time signals, which have numbers only.
pub const LAST: u8 = 64;

/// A signal's name without `SIG`, when it has one.
#[must_use]
pub fn name(number: u8) -> Option<&'static str> {
    NAMES.get(usize::from(number.checked_sub(1)?)).copied()
}

/// A signal by its name, with or without `SIG`, or by its number.
#[must_use]
pub fn number(name: &str) -> Option<u8> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let named = NAMES.iter().zip(1_u8..).find(|(known, _)| **known == name).map(|(_, number)| number);
    named.or_else(|| name.parse().ok().filter(|number| (1..=LAST).contains(number)))
}

/// As it travels in SSH: `KILL`, `BUS@banger`, `34@banger`.
#[must_use]
pub fn to_ssh(number: u8) -> String {
    match name(number) {
        Some(name) if SSH.contains(&name) => name.to_owned(),
        Some(name) => format!("{name}{DOMAIN}"),
        None => format!("{number}{DOMAIN}"),
    }
}

/// The reverse of [`to_ssh`], whosever domain it has.
#[must_use]
pub fn from_ssh(text: &str) -> Option<u8> {
    number(text.split('@').next().unwrap_or_default())
}

/// What a shell reports for a program that the signal ended. No signal's number comes near the end
/// of the range.
#[must_use]
pub const fn status(number: u8) -> u8 {
    number.saturating_add(128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;

    #[test]
    fn the_table_is_the_systems() {
        for signal in Signal::iterator() {
            let (text, code) = (signal.as_str(), u8::try_from(signal as i32));
            assert_eq!(number(text), code.ok(), "{text}");
            assert_eq!(code.ok().and_then(name), text.strip_prefix("SIG"), "{text}");
        }
        assert_eq!(NAMES.len(), Signal::iterator().count());
    }

    #[test]
    fn every_signal_comes_back_and_has_its_status() {
        for signal in 1..=LAST {
            assert_eq!(from_ssh(&to_ssh(signal)), Some(signal));
            assert_eq!(status(signal), 128 + signal);
        }
        assert_eq!(status(31), 159);
        assert_eq!((to_ssh(9), to_ssh(12), to_ssh(31)), ("KILL".into(), "USR2".into(), "SYS@banger".into()));
        for unknown in ["", "0", "65", "200@banger", "NONE", "SIG", "@banger", "-1", "kill"] {
            assert_eq!(from_ssh(unknown), None, "{unknown}");
        }
    }
}
