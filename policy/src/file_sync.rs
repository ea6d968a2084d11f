//! `[[file_sync]]` of the configuration: files of a user that each new VM of theirs gets.

use serde::Deserialize;

/// A file or folder of the user who makes a VM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSync {
    /// `~/...` is that user's home.
    pub host: String,
    /// Under `/root`, or `~/...`.
    pub guest: String,
    /// Octal; 0600 for files and 0755 for folders when `None`.
    pub mode: Option<String>,
}

impl FileSync {
    /// Whether it can be used.
    ///
    /// # Errors
    /// The key, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let inside = self.guest == "/root" || self.guest.starts_with("/root/") || self.guest.starts_with("~/");
        if !inside || self.guest.split('/').any(|part| part == "..") {
            return Err(("file_sync.guest", format!("{:?} does not lie under /root", self.guest)));
        }
        match (&self.mode, self.mode()) {
            (Some(mode), None) => Err(("file_sync.mode", format!("{mode:?} is not an octal mode such as \"0600\""))),
            _ => Ok(()),
        }
    }

    /// The mode of files, when it names one.
    #[must_use]
    pub fn mode(&self) -> Option<u32> {
        let mode = u32::from_str_radix(self.mode.as_deref()?, 8).ok()?;
        (mode <= 0o7777).then_some(mode)
    }
}
