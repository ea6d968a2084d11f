//! Which package manager a host has, so that a command that mends something can be typed as it is
//! printed. Read from `os-release` (os-release(5)) by whoever has it.

/// Distributions whose commands are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// apt: Debian, Ubuntu and what is made from them.
    Debian,
    /// dnf: Fedora, RHEL and what is made from them.
    Fedora,
    /// Any other; packages can only be named.
    Other,
}

/// The file that says it.
pub const OS_RELEASE: &str = "/etc/os-release";

impl Family {
    /// By `ID=` and `ID_LIKE=`.
    #[must_use]
    pub fn of(os_release: &str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        let words = format!("{} {}", value("ID"), value("ID_LIKE"));
        let known = words.split_whitespace().find_map(|word| match word {
            "debian" | "ubuntu" => Some(Self::Debian),
            "fedora" | "rhel" | "centos" => Some(Self::Fedora),
            _ => None,
        });
        known.unwrap_or(Self::Other)
    }

    /// The command that brings back what banger's own package has put onto the host, where its file
    /// lies.
    #[must_use]
    pub const fn reinstall(self) -> &'static str {
        match self {
            Self::Debian | Self::Other => "sudo apt install --reinstall ./banger.deb",
            Self::Fedora => "sudo dnf reinstall ./banger.rpm",
        }
    }

    /// The command that installs a package, which the two families may call differently.
    #[must_use]
    pub fn install(self, debian: &str, fedora: &str) -> String {
        match self {
            Self::Debian => format!("sudo apt install {debian}"),
            Self::Fedora => format!("sudo dnf install {fedora}"),
            Self::Other => format!("install {debian} ({fedora} on Fedora) with this host's package manager"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        for (text, family) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nID=debian\n", Family::Debian),
            ("ID=ubuntu\nID_LIKE=debian\n", Family::Debian),
            ("ID=\"rhel\"\nID_LIKE=\"fedora\"\n", Family::Fedora),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Family::Fedora),
            ("ID=arch\n", Family::Other),
            ("VERSION_ID=debian\n", Family::Other),
            ("", Family::Other),
        ] {
            assert_eq!(Family::of(text), family, "{text}");
        }
    }

    #[test]
    fn a_package_is_installed_by_the_name_that_it_has_there() {
        assert_eq!(Family::Debian.install("openssh-client", "openssh-clients"), "sudo apt install openssh-client");
        assert_eq!(Family::Fedora.install("openssh-client", "openssh-clients"), "sudo dnf install openssh-clients");
        assert!(Family::Other.install("git", "git").contains("git"));
    }
}
