//! Pseudo-terminals: opening one as a client asked for it.

use nix::fcntl::{OFlag, open};
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices as Char, Termios, tcgetattr,
    tcsetattr,
};
use russh::Pty;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::pty::set_window_size;

/// Columns, rows, width and height in pixels, as SSH names them.
pub(super) type Size = (u32, u32, u32, u32);

/// The value of a special character that is switched off (RFC 4254 section 8).
const NO_CHARACTER: u32 = 255;

/// A terminal that a client asked for.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) term: String,
    size: Size,
    modes: Vec<(Pty, u32)>,
}

/// Both ends of an open terminal.
pub(super) struct Pair {
    /// Our end.
    pub(super) controller: OwnedFd,
    /// The end that looks like a terminal to the command.
    pub(super) user: OwnedFd,
    /// The user end's path.
    pub(super) name: String,
}

impl Terminal {
    pub(super) fn new(term: &str, size: Size, modes: &[(Pty, u32)]) -> Self {
        let usable = !term.is_empty() && !term.contains('\0');
        Self { term: if usable { term } else { "dumb" }.to_owned(), size, modes: modes.to_vec() }
    }

    /// As the protocol for commands has it.
    pub(super) fn of_command(asked: &banger_proto::command::Terminal) -> Self {
        let modes: Vec<(Pty, u32)> =
            asked.modes.iter().filter_map(|(number, value)| Some((Pty::from_u8(*number)?, *value))).collect();
        Self::new(&asked.term, (asked.cols.into(), asked.rows.into(), 0, 0), &modes)
    }

    pub(super) fn resize(&mut self, size: Size) {
        self.size = size;
    }

    /// Opens a new pseudo-terminal with this size and these modes.
    pub(super) fn open(&self) -> io::Result<Pair> {
        let controller = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        let name = ptsname_r(&controller)?;
        let user = open(name.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut settings = tcgetattr(&user)?;
        for (mode, value) in &self.modes {
            apply(&mut settings, *mode, *value);
        }
        // A client's odd modes are no reason to refuse the terminal.
        let _ = tcsetattr(&user, SetArg::TCSANOW, &settings);
        set_size(&user, self.size);
        Ok(Pair { controller: OwnedFd::from(controller), user, name })
    }
}

/// Gives a terminal a new size; one that it does not fit is cut to the largest there is.
pub(super) fn set_size(terminal: impl AsFd, (columns, rows, width, height): Size) {
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    let size =
        Winsize { ws_col: cells(columns), ws_row: cells(rows), ws_xpixel: cells(width), ws_ypixel: cells(height) };
    let _ = set_window_size(terminal, size);
}

/// The character that ends input; Ctrl-D unless a program has changed it.
pub(super) fn end_of_file(terminal: impl AsFd) -> u8 {
    let settings = tcgetattr(terminal);
    settings.ok().and_then(|settings| settings.control_chars.get(Char::VEOF as usize).copied()).unwrap_or(4)
}

fn apply(settings: &mut Termios, mode: Pty, value: u32) {
    if let Some(index) = character(mode) {
        let byte = if value == NO_CHARACTER { 0 } else { u8::try_from(value).unwrap_or(0) };
        if let Some(place) = settings.control_chars.get_mut(index as usize) {
            *place = byte;
        }
        return;
    }
    let on = value != 0;
    if let Some(flag) = input_flag(mode) {
        settings.input_flags.set(flag, on);
    } else if let Some(flag) = local_flag(mode) {
        settings.local_flags.set(flag, on);
    } else if let Some(flag) = output_flag(mode) {
        settings.output_flags.set(flag, on);
    } else if let Some(flag) = control_flag(mode) {
        settings.control_flags.set(flag, on);
    }
}

fn character(mode: Pty) -> Option<Char> {
    Some(match mode {
        Pty::VINTR => Char::VINTR,
        Pty::VQUIT => Char::VQUIT,
        Pty::VERASE => Char::VERASE,
        Pty::VKILL => Char::VKILL,
        Pty::VEOF => Char::VEOF,
        Pty::VEOL => Char::VEOL,
        Pty::VEOL2 => Char::VEOL2,
        Pty::VSTART => Char::VSTART,
        Pty::VSTOP => Char::VSTOP,
        Pty::VSUSP => Char::VSUSP,
        Pty::VREPRINT => Char::VREPRINT,
        Pty::VWERASE => Char::VWERASE,
        Pty::VLNEXT => Char::VLNEXT,
        Pty::VDISCARD => Char::VDISCARD,
        _ => return None,
    })
}

fn input_flag(mode: Pty) -> Option<InputFlags> {
    Some(match mode {
        Pty::IGNPAR => InputFlags::IGNPAR,
        Pty::PARMRK => InputFlags::PARMRK,
        Pty::INPCK => InputFlags::INPCK,
        Pty::ISTRIP => InputFlags::ISTRIP,
        Pty::INLCR => InputFlags::INLCR,
        Pty::IGNCR => InputFlags::IGNCR,
        Pty::ICRNL => InputFlags::ICRNL,
        Pty::IXON => InputFlags::IXON,
        Pty::IXANY => InputFlags::IXANY,
        Pty::IXOFF => InputFlags::IXOFF,
        Pty::IMAXBEL => InputFlags::IMAXBEL,
        Pty::IUTF8 => InputFlags::IUTF8,
        _ => return None,
    })
}

fn local_flag(mode: Pty) -> Option<LocalFlags> {
    Some(match mode {
        Pty::ISIG => LocalFlags::ISIG,
        Pty::ICANON => LocalFlags::ICANON,
        Pty::ECHO => LocalFlags::ECHO,
        Pty::ECHOE => LocalFlags::ECHOE,
        Pty::ECHOK => LocalFlags::ECHOK,
        Pty::ECHONL => LocalFlags::ECHONL,
        Pty::NOFLSH => LocalFlags::NOFLSH,
        Pty::TOSTOP => LocalFlags::TOSTOP,
        Pty::IEXTEN => LocalFlags::IEXTEN,
        Pty::ECHOCTL => LocalFlags::ECHOCTL,
        Pty::ECHOKE => LocalFlags::ECHOKE,
        Pty::PENDIN => LocalFlags::PENDIN,
        _ => return None,
    })
}

fn output_flag(mode: Pty) -> Option<OutputFlags> {
    Some(match mode {
        Pty::OPOST => OutputFlags::OPOST,
        Pty::ONLCR => OutputFlags::ONLCR,
        Pty::OCRNL => OutputFlags::OCRNL,
        Pty::ONOCR => OutputFlags::ONOCR,
        Pty::ONLRET => OutputFlags::ONLRET,
        _ => return None,
    })
}

fn control_flag(mode: Pty) -> Option<ControlFlags> {
    Some(match mode {
        Pty::CS7 => ControlFlags::CS7,
        Pty::CS8 => ControlFlags::CS8,
        Pty::PARENB => ControlFlags::PARENB,
        Pty::PARODD => ControlFlags::PARODD,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_terminal_has_the_modes_that_were_asked_for() {
        let modes = [(Pty::ECHO, 0), (Pty::ICANON, 1), (Pty::VINTR, 7), (Pty::VSUSP, NO_CHARACTER), (Pty::IUTF8, 1)];
        let pair = Terminal::new("xterm", (80, 24, 0, 0), &modes).open().unwrap();
        let settings = tcgetattr(&pair.user).unwrap();
        assert!(!settings.local_flags.contains(LocalFlags::ECHO));
        assert!(settings.local_flags.contains(LocalFlags::ICANON));
        assert!(settings.input_flags.contains(InputFlags::IUTF8));
        assert_eq!(settings.control_chars[Char::VINTR as usize], 7);
        assert_eq!(settings.control_chars[Char::VSUSP as usize], 0);
        assert!(pair.name.starts_with("/dev/pts/"));
    }

    #[test]
    fn a_useless_name_becomes_a_dumb_terminal() {
        assert_eq!(Terminal::new("", (0, 0, 0, 0), &[]).term, "dumb");
        assert_eq!(Terminal::new("a\0b", (0, 0, 0, 0), &[]).term, "dumb");
    }
}
