//! What the caller's own process finds: `banger/src/cmd/doctor/`.

use super::row::{ALICE, CAROL, Row, fail, not_here, warn};

/// Alice, in a session that began before she was put into the group.
const EARLY: &str = "setpriv --reuid=alice --regid=alice --clear-groups env HOME=/home/alice USER=alice bash";
/// Carol, in a session that began before she was taken out of the group.
const LATE: &str = "setpriv --reuid=carol --regid=carol --groups=banger env HOME=/home/carol USER=carol bash";
const CATALOGUE_BACK: &str = "rm -f /run/bench-catalogue";

pub(super) const ROWS: &[Row] = &[
    fail(
        "mod::all",
        ("the-daemon-does-not-answer", "bangerd"),
        "systemctl stop bangerd.socket bangerd.service",
        "cannot reach bangerd",
    ),
    warn("caller::checks", ("another-socket", "socket"), "", "another daemon is asked")
        .asked_in(ALICE)
        .typed_before("export BANGER_SOCKET=/run/banger/bangerd.sock"),
    not_here("caller::linux", "the host VM has one kernel; what mends it is another one"),
    not_here("caller::linux", "a kernel whose version is no number cannot be had"),
    not_here("caller::systemd_of", "the host VM has one systemd; what mends it is another one"),
    not_here("caller::systemd_of", "a host that systemd has not booted has no bangerd"),
    not_here("caller::systemd_of", "without its library there is no systemd"),
    fail("caller::file", ("the-socket-is-gone", "socket"), "rm /run/banger/bangerd.sock", "No such file"),
    fail(
        "caller::file",
        ("a-file-in-place-of-the-socket", "socket"),
        "rm /run/banger/bangerd.sock && touch /run/banger/bangerd.sock",
        "is no socket",
    ),
    fail("caller::owner", ("a-socket-for-everybody", "socket"), "chmod 0666 /run/banger/bangerd.sock", "with mode 666"),
    warn(
        "caller::unit_of",
        ("a-unit-is-not-enabled", "banger-guests.service"),
        "systemctl disable banger-guests.service",
        "not enabled",
    ),
    warn(
        "caller::unit_of",
        ("a-socket-that-is-masked", "banger-priv.socket"),
        "systemctl mask banger-priv.socket",
        "masked",
    )
    // A unit that says that it listens may have no socket any more: its service finds out.
    .after("systemctl restart banger-priv.service"),
    fail("caller::groups", ("a-session-from-before-the-group", "group banger"), "", "began before that")
        .asked_in(EARLY),
    warn("caller::groups", ("a-session-from-after-the-group", "group banger"), "", "no longer is")
        .asked_in(LATE)
        .after("gpasswd --delete carol banger"),
    fail("caller::groups", ("a-user-outside-the-group", "group banger"), "", "is not in it")
        .asked_in(CAROL)
        .after("gpasswd --delete carol banger"),
    not_here("caller::programs_of", "a package is installed from a mirror, and the host VM's network is closed"),
    warn(
        "caller::catalogue",
        ("a-catalogue-that-is-none", "catalogue"),
        "echo 'no table' > /usr/share/banger/catalogue.toml",
        "/usr/share/banger/catalogue.toml: ",
    ),
    warn(
        "caller::catalogue",
        ("the-catalogue-is-gone", "catalogue"),
        "mv /usr/share/banger/catalogue.toml /run/bench-catalogue",
        "No such file",
    )
    .after(CATALOGUE_BACK),
    warn("caller::home_of", ("no-home", "home folder"), "", "HOME is not set")
        .asked_in(ALICE)
        .typed_before("unset HOME"),
    fail(
        "caller::home_of",
        ("a-home-that-cannot-be-written", "home folder"),
        "stat -c %a /home/alice > /run/bench-mode && chmod 0500 /home/alice",
        "cannot be written",
    )
    .asked_in(ALICE)
    .after("chmod $(cat /run/bench-mode) /home/alice && rm /run/bench-mode"),
    not_here("caller::versions", "there is one release; the suite services plays a helper of another one"),
    warn(
        "caller::clock_of",
        ("the-clock-went-back", "clock's course"),
        "date --set='10 minutes ago' >/dev/null",
        "the clock went back",
    )
    .after("date --set='10 minutes' >/dev/null"),
];
