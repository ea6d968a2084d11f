//! The control channel: as a process of the guest that does not know the token, and as the guest's
//! root, who does.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use banger_proto::guest::{BootToken, GuestConfig, GuestEvent, Hello, ShutdownKind};

use super::line;
use crate::standin::still::{keep_talking, send};

/// After all attempts.
pub const OVER: &str = "attempts on the control channel are over";

/// How long the daemon may take to hang up on whoever has not proved itself; it waits for five
/// seconds.
const HANGS_UP: Duration = Duration::from_secs(40);

/// What the daemon does at once.
const AT_ONCE: Duration = Duration::from_secs(5);

/// How long a flood goes on that the daemon slows down and does not cut.
const FLOOD: Duration = Duration::from_secs(3);

/// Connections at once: several times what the daemon listens to, which gives each its five
/// seconds.
const MANY: usize = 32;

pub(super) struct Guest<'a> {
    token: &'a BootToken,
    control: &'a Path,
}

type Attempt = fn(&Guest<'_>) -> io::Result<()>;

/// In this order. Each succeeds when the daemon has hung up, or, with the token, when it has let
/// itself be talked to.
pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("control-ready-without-token", |guest| guest.lies(&[&ready("x")])),
    ("control-failed-without-token", |guest| guest.lies(&[&GuestEvent::Failed { reason: "a lie".into() }])),
    ("control-shutdown-without-token", |guest| guest.lies(&[&GuestEvent::Shutdown { kind: ShutdownKind::Poweroff }])),
    ("control-another-token", |guest| guest.hello(BootToken::new([0; 32]))),
    ("control-empty-token", |guest| guest.hello(serde_json::from_str("\"\"")?)),
    ("control-half-of-the-token", |guest| {
        let half = guest.token.reveal().get(..32).unwrap_or_default().to_owned();
        guest.hello(serde_json::from_value(half.into())?)
    }),
    ("control-token-twice-as-long", |guest| {
        let twice = guest.token.reveal().repeat(2);
        guest.hello(serde_json::from_value(twice.into())?)
    }),
    ("control-line-of-a-megabyte-without-token", |guest| {
        let stream = guest.connect()?;
        let _ = (&stream).write_all(&vec![b'x'; 1 << 20]);
        hung_up(&stream)
    }),
    ("control-silent-connection", |guest| hung_up(&guest.connect()?)),
    ("control-byte-by-byte", |guest| {
        let stream = guest.connect()?;
        let begun = Instant::now();
        while begun.elapsed() < HANGS_UP {
            if (&stream).write_all(b"{").is_err() {
                return Ok(());
            }
            sleep(Duration::from_millis(500));
        }
        Err(io::ErrorKind::TimedOut.into())
    }),
    ("control-many-silent-connections", |guest| {
        let streams: Vec<UnixStream> = (0..MANY).filter_map(|_| guest.connect().ok()).collect();
        streams.iter().try_for_each(hung_up)
    }),
    ("control-many-connections-one-by-one", |guest| (0..10 * MANY).try_for_each(|_| guest.connect().map(drop))),
    ("control-line-of-a-megabyte", |guest| {
        let stream = guest.proved()?;
        let _ = (&stream).write_all(&vec![b'x'; 1 << 20]);
        hung_up(&stream)
    }),
    ("control-lines-for-ever", |guest| flood(&guest.proved()?, &GuestEvent::Heartbeat)),
    ("control-nonsense-for-ever", |guest| flood(&guest.proved()?, &["sing", "dance"])),
    ("control-long-and-odd-words", |guest| {
        let stream = guest.proved()?;
        send(&stream, &ready(&"\u{1b}[31m\u{202e}".repeat(20)))
    }),
    ("control-many-proved-connections", |guest| {
        let streams: Vec<UnixStream> = (0..MANY).filter_map(|_| guest.proved().ok()).collect();
        // One of them is the agent's now. The others are hung up on at once: who waited longer for
        // each would be silent for as long as dead guests are.
        let is_left =
            |stream: &&UnixStream| stream.set_read_timeout(Some(AT_ONCE)).is_err() || hung_up(stream).is_err();
        let left = streams.iter().filter(is_left).take(2).count();
        if left <= 1 { Ok(()) } else { Err(io::Error::other("more than one is left")) }
    }),
    ("control-announces-its-end-and-goes-on", |guest| {
        let stream = guest.proved()?;
        send(&stream, &GuestEvent::Shutdown { kind: ShutdownKind::Reboot })?;
        send(&stream, &ready("still here"))
    }),
];

/// The attempts, and afterwards an agent that behaves, so that the VM is there for the others.
pub(super) fn lives(guest: &GuestConfig, control: &Path) {
    if guest.hostname == super::NAME {
        let hostile = Guest { token: &guest.token, control };
        // The daemon waits for it, or there would be no VM.
        while hostile.proved().is_err() {
            sleep(Duration::from_millis(200));
        }
        for (name, attempt) in ATTEMPTS {
            // A guest that says nothing for half a minute is dead to the daemon, and that would be
            // the end of the attempts.
            let _spoken = hostile.proved();
            let result = match attempt(&hostile) {
                Ok(()) => "ended as it must".to_owned(),
                Err(error) => format!("not as it must: {error}"),
            };
            say(&format!("{}{result}", line(name)));
        }
        say(OVER);
    }
    keep_talking(guest, control);
}

fn say(line: &str) {
    let mut output = io::stdout();
    // The console is all that there is to say it to.
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn ready(boot_id: &str) -> GuestEvent {
    GuestEvent::Ready { boot_id: boot_id.to_owned() }
}

impl Guest<'_> {
    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.control)?;
        stream.set_read_timeout(Some(HANGS_UP))?;
        stream.set_write_timeout(Some(FLOOD))?;
        Ok(stream)
    }

    /// Says all this without the token.
    fn lies(&self, events: &[&GuestEvent]) -> io::Result<()> {
        let stream = self.connect()?;
        for event in events {
            // It may have hung up already.
            let _ = send(&stream, event);
        }
        hung_up(&stream)
    }

    fn hello(&self, token: BootToken) -> io::Result<()> {
        let stream = self.connect()?;
        send(&stream, &Hello { token })?;
        let _ = send(&stream, &ready("x"));
        hung_up(&stream)
    }

    fn proved(&self) -> io::Result<UnixStream> {
        let stream = self.connect()?;
        send(&stream, &Hello { token: self.token.clone() })?;
        send(&stream, &ready("hostile"))?;
        Ok(stream)
    }
}

/// The other side has closed: the end, or a reset because it has not read everything. It may have
/// said something before.
fn hung_up(mut stream: &UnixStream) -> io::Result<()> {
    let mut said = [0; 512];
    loop {
        match stream.read(&mut said) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// As fast as it is taken: slowly, or not at all any more.
fn flood(stream: &UnixStream, line: &impl serde::Serialize) -> io::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < FLOOD {
        if send(stream, line).is_err() {
            break;
        }
    }
    Ok(())
}
