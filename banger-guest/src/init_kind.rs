//! Which program is PID 1, and by which words the agent is told.
//!
//! Written by init, which executes it, and read by the agent, which asks it to end.

/// The init of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitKind {
    /// This program, for an image that has none.
    Own,
    /// systemd.
    Systemd,
    /// sysvinit, which hears of run levels by a pipe.
    Sysvinit,
    /// busybox.
    Busybox,
    /// OpenRC's own init, with a pipe too.
    Openrc,
    /// A script: it may become another program.
    Script,
    /// A program of which nothing is known.
    Other,
}

impl InitKind {
    const ALL: [(Self, &str); 7] = [
        (Self::Own, "--init=own"),
        (Self::Systemd, "--init=systemd"),
        (Self::Sysvinit, "--init=sysvinit"),
        (Self::Busybox, "--init=busybox"),
        (Self::Openrc, "--init=openrc"),
        (Self::Script, "--init=script"),
        (Self::Other, "--init=other"),
    ];

    /// The agent's argument.
    pub(crate) fn flag(self) -> &'static str {
        Self::ALL.into_iter().find(|(kind, _)| *kind == self).map_or("", |(_, flag)| flag)
    }

    /// What [`Self::flag`] says.
    pub(crate) fn of_flag(flag: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, other)| *other == flag).map(|(kind, _)| kind)
    }

    /// By the name of the program's own file, links followed. `init` and the like say nothing.
    pub(crate) fn of_program(name: &str) -> Option<Self> {
        match name {
            "systemd" => Some(Self::Systemd),
            "openrc-init" => Some(Self::Openrc),
            _ => None,
        }
    }

    /// What it is now: a script may have executed an init since, and the program that runs says so.
    pub(crate) fn now(self) -> Self {
        let running = std::fs::read_link("/proc/1/exe").unwrap_or_default();
        self.running(running.file_name().and_then(|name| name.to_str()).unwrap_or_default())
    }

    fn running(self, program: &str) -> Self {
        match self {
            Self::Script | Self::Other => Self::of_program(program).unwrap_or(self),
            known => known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_word_of_its_own() {
        for (kind, flag) in InitKind::ALL {
            assert_eq!((kind.flag(), InitKind::of_flag(flag)), (flag, Some(kind)));
        }
        assert_eq!(InitKind::of_flag("--serve"), None);
    }

    #[test]
    fn a_script_may_become_an_init_and_an_init_stays_what_it_is() {
        assert_eq!(InitKind::Script.running("systemd"), InitKind::Systemd);
        assert_eq!(InitKind::Script.running("bash"), InitKind::Script);
        // The helper of systemd's last phase, and a busybox that runs a script of its own.
        assert_eq!(InitKind::Systemd.running("systemd-shutdown"), InitKind::Systemd);
        assert_eq!(InitKind::Busybox.running("busybox"), InitKind::Busybox);
    }
}
