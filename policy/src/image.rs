//! What an image's configuration says about the commands that run in it (OCI image specification,
//! `config.md`), and the bounds of what is kept of it.
//!
//! Read by the importer, kept with each name of an image, shown to users, and applied by the
//! guest's agent. The text of an image is its author's: only what no process could have, or what
//! does not fit a record, is refused.

use serde::{Deserialize, Serialize};

/// All texts of a configuration together, each counted with [`OVERHEAD`]: a record of an image must
/// fit one frame of the wire with its paths and its job's stages and warnings. Images of
/// distributions have less than 1 KiB, the largest known ones 6 KiB.
pub const MAX_CONFIG_BYTES: usize = 24 << 10;
/// What each text costs beside its bytes: its length on the wire.
const OVERHEAD: usize = 8;

/// Environment, folder, user and command of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value`, in the image's order; of two with one name the last counts.
    pub env: Vec<String>,
    /// Where commands start, absolute; `None`: in the user's home.
    pub working_dir: Option<String>,
    /// Who runs commands: `user`, `uid`, `user:group` or `uid:gid`; `None`: root.
    pub user: Option<String>,
    /// The first words of the image's own command.
    pub entrypoint: Vec<String>,
    /// The words behind them, or the command when there are none.
    pub cmd: Vec<String>,
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    /// The kernel ends every text of a process at a NUL.
    #[error("a text of {field} contains NUL, which no process can be given; such an image is damaged or hostile")]
    Nul {
        /// Its name in the image's JSON.
        field: &'static str,
    },
    /// No folder or user is called so.
    #[error("{field} contains control characters; such an image is damaged or hostile")]
    Control {
        /// Its name in the image's JSON.
        field: &'static str,
    },
    /// Commands cannot start there.
    #[error("WorkingDir is not an absolute path")]
    Relative,
    /// No variable has such a form.
    #[error("an entry of Env is not NAME=value")]
    NotAVariable,
    /// More than a record has room for.
    #[error(
        "Env, WorkingDir, User, Entrypoint and Cmd have {bytes} bytes together, and at most {MAX_CONFIG_BYTES} are kept"
    )]
    TooLong {
        /// What they have.
        bytes: usize,
    },
}

/// Name and value of an entry of `env`; `None` when it is no variable.
#[must_use]
pub fn variable(entry: &str) -> Option<(&str, &str)> {
    entry.split_once('=').filter(|(name, _)| !name.is_empty())
}

impl ImageConfig {
    /// Whether it can be kept and applied. Everything that is kept has passed this.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), ConfigFault> {
        let fields = self.fields();
        let texts = || fields.iter().flat_map(|(field, texts)| texts.iter().map(|text| (*field, text.as_str())));
        let bytes = texts().fold(0_usize, |sum, (_, text)| sum.saturating_add(text.len()).saturating_add(OVERHEAD));
        if bytes > MAX_CONFIG_BYTES {
            return Err(ConfigFault::TooLong { bytes });
        }
        if let Some((field, _)) = texts().find(|(_, text)| text.contains('\0')) {
            return Err(ConfigFault::Nul { field });
        }
        for (field, text) in [("WorkingDir", &self.working_dir), ("User", &self.user)] {
            if text.as_ref().is_some_and(|text| text.contains(char::is_control)) {
                return Err(ConfigFault::Control { field });
            }
        }
        if self.working_dir.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return Err(ConfigFault::Relative);
        }
        if self.env.iter().any(|entry| variable(entry).is_none()) {
            return Err(ConfigFault::NotAVariable);
        }
        Ok(())
    }

    /// The texts by the names that they have in an image's JSON.
    fn fields(&self) -> [(&'static str, &[String]); 5] {
        [
            ("Env", &self.env),
            ("WorkingDir", self.working_dir.as_slice()),
            ("User", self.user.as_slice()),
            ("Entrypoint", &self.entrypoint),
            ("Cmd", &self.cmd),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(env: &[&str], working_dir: &str, user: &str, cmd: &[&str]) -> ImageConfig {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        ImageConfig {
            env: words(env),
            working_dir: some(working_dir),
            user: some(user),
            entrypoint: Vec::new(),
            cmd: words(cmd),
        }
    }

    #[test]
    fn what_images_say_is_kept_as_it_is() {
        for config in [
            ImageConfig::default(),
            with(
                &["PATH=/usr/bin", "KEY=-----BEGIN\n\tx\u{1b}", "EMPTY=", "A=b=c"],
                "/srv/ä b",
                "1000:1000",
                &["sh", "-c", "a\nb", ""],
            ),
        ] {
            assert_eq!(config.check(), Ok(()), "{config:?}");
        }
    }

    #[test]
    fn what_no_process_can_have_is_refused() {
        use ConfigFault::{Control, NotAVariable, Nul, Relative};
        for (config, fault) in [
            (with(&["A=\0"], "", "", &[]), Nul { field: "Env" }),
            (with(&[], "", "", &["a\0b"]), Nul { field: "Cmd" }),
            (with(&[], "/a\0", "", &[]), Nul { field: "WorkingDir" }),
            (with(&[], "/a\n", "", &[]), Control { field: "WorkingDir" }),
            (with(&[], "", "a\u{1b}", &[]), Control { field: "User" }),
            (with(&[], "srv", "", &[]), Relative),
            (with(&["A"], "", "", &[]), NotAVariable),
            (with(&["=b"], "", "", &[]), NotAVariable),
        ] {
            assert_eq!(config.check(), Err(fault), "{config:?}");
        }
    }

    #[test]
    fn a_record_has_room_for_it() {
        let long = "x".repeat(MAX_CONFIG_BYTES - OVERHEAD);
        assert_eq!(with(&[], "", "", &[&long]).check(), Ok(()));
        assert!(matches!(with(&[], "", "", &[&long, ""]).check(), Err(ConfigFault::TooLong { .. })));
        let many = vec![""; MAX_CONFIG_BYTES / OVERHEAD + 1];
        assert!(matches!(with(&[], "", "", &many).check(), Err(ConfigFault::TooLong { .. })));
    }
}
