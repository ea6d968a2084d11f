//! The command line: what to do, and where things lie when they are not where the package puts
//! them.
//!
//! Every path has a flag and an environment variable, so that a build folder runs without systemd
//! or root's folders. A flag wins over the variable, the variable over the default.

use crate::paths::Paths;
use crate::start_error::StartError;
use std::ffi::OsString;
use std::path::PathBuf;

/// What `bangerd --help` prints.
pub(crate) const HELP: &str = "\
bangerd: the daemon of banger. systemd starts it; by hand, for development:

  bangerd [--config FILE] [--state-dir DIR] [--runtime-dir DIR] [--socket FILE]
          [--helper-socket FILE] [--metrics-socket FILE] [--guest-binary FILE] [--firecracker FILE]
  bangerd --check        says what is wrong with the configuration, and what a start would do with the
                         database (nothing, bring it to a newer schema, refuse it); changes nothing
  bangerd --check-config says what is wrong with the configuration; `systemctl reload` runs it
  bangerd --version

Each flag has a variable too: BANGER_CONFIG, BANGER_STATE_DIR, BANGER_RUNTIME_DIR, BANGER_SOCKET,
BANGER_HELPER_SOCKET, BANGER_METRICS_SOCKET, BANGER_GUEST_BINARY, BANGER_FIRECRACKER.
";

/// What is asked of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Serve,
    Check,
    CheckConfig,
    /// For the script that tells the host's resolver; not in the help.
    PrintDns,
    Version,
    Help,
}

/// The command line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) mode: Mode,
    pub(crate) paths: Paths,
    /// The configuration was named, so it must exist.
    pub(crate) config_named: bool,
    /// Wins over the configuration's `firecracker_bin`.
    pub(crate) firecracker: Option<PathBuf>,
}

/// # Errors
/// [`StartError::Usage`] for a word that is not known, and a flag without its value.
pub(crate) fn parse(
    words: impl Iterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Args, StartError> {
    let mut args = Args { mode: Mode::Serve, paths: Paths::default(), config_named: false, firecracker: None };
    let flags = [
        "config",
        "state-dir",
        "runtime-dir",
        "socket",
        "helper-socket",
        "metrics-socket",
        "guest-binary",
        "firecracker",
    ];
    for flag in flags {
        let variable = format!("BANGER_{}", flag.to_uppercase().replace('-', "_"));
        if let Some(value) = env(&variable).filter(|value| !value.is_empty()) {
            args.set(flag, value.into());
        }
    }
    let mut words = words;
    while let Some(word) = words.next() {
        let word = word.to_string_lossy().into_owned();
        match word.as_str() {
            "--check" => args.mode = Mode::Check,
            "--check-config" => args.mode = Mode::CheckConfig,
            "--print-dns" => args.mode = Mode::PrintDns,
            "--version" | "-V" => args.mode = Mode::Version,
            "--help" | "-h" => args.mode = Mode::Help,
            _ => {
                let known = word.strip_prefix("--").and_then(|name| flags.into_iter().find(|flag| *flag == name));
                let flag = known.ok_or_else(|| StartError::Usage(format!("unknown argument {word:?}")))?;
                let value = words.next().ok_or_else(|| StartError::Usage(format!("{word} needs a value")))?;
                args.set(flag, value.into());
            }
        }
    }
    Ok(args)
}

impl Args {
    fn set(&mut self, flag: &str, value: PathBuf) {
        match flag {
            "state-dir" => self.paths.state = value,
            "runtime-dir" => self.paths.runtime = value,
            "socket" => self.paths.socket = value,
            "helper-socket" => self.paths.helper_socket = value,
            "metrics-socket" => self.paths.metrics_socket = Some(value),
            "guest-binary" => self.paths.guest_binary = value,
            "firecracker" => self.firecracker = Some(value),
            _ => {
                self.paths.config = value;
                self.config_named = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn parsed(words: &[&str], env: &[(&str, &str)]) -> Result<Args, StartError> {
        let find = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        parse(words.iter().map(|word| word.into()), find)
    }

    #[test]
    fn a_flag_wins_over_the_variable() {
        let args = parsed(&["--socket", "/a"], &[("BANGER_SOCKET", "/b"), ("BANGER_STATE_DIR", "/s")]).unwrap();
        assert_eq!((args.paths.socket, args.paths.state), ("/a".into(), "/s".into()));
        assert!(!args.config_named);
        assert!(parsed(&["--config", "/c"], &[]).unwrap().config_named);
        assert_eq!(parsed(&[], &[("BANGER_FIRECRACKER", "/fc")]).unwrap().firecracker, Some("/fc".into()));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for words in [&["--sockets", "/a"][..], &["serve"], &["--socket"]] {
            assert!(matches!(parsed(words, &[]), Err(StartError::Usage(_))), "{words:?}");
        }
    }
}
