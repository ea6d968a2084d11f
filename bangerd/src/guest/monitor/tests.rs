#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use crate::guest::control::{socket_path, tests as fakes};
use rustix::process::Signal;
use std::io::Write;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// What `vm list` has.
const TRUTH: Duration = Duration::from_secs(5);

struct Guest {
    folder: tempfile::TempDir,
    parts: Parts,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::listen(&folder.path().join("v"), 1, fakes::group()).unwrap();
        let console = folder.path().join("console.log");
        std::fs::write(&console, "[ 0.0] Linux\r\n").unwrap();
        Self { parts: Parts { vmm: Arc::new(fakes::vmm()), control: Arc::new(control), console }, folder }
    }

    fn print(&self, text: &str) {
        let mut file = std::fs::File::options().append(true).open(&self.parts.console).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    async fn agent(&self) -> UnixStream {
        let mut agent = UnixStream::connect(socket_path(&self.folder.path().join("v"), 1)).await.unwrap();
        agent.write_all(b"{\"event\":\"ready\",\"boot_id\":\"b\"}\n").await.unwrap();
        agent
    }

    async fn reason(&self) -> String {
        timeout(TRUTH, watch(self.parts.clone())).await.unwrap().reason
    }

    fn kill(&self) {
        self.parts.vmm.signal(Signal::KILL).unwrap();
    }
}

#[tokio::test]
async fn a_vmm_that_is_killed_is_seen_at_once() {
    let guest = Guest::new();
    let (reason, ()) = tokio::join!(guest.reason(), async { guest.kill() });
    assert_eq!(reason, "firecracker was killed (signal 9)");
}

#[tokio::test]
async fn the_kernels_last_word_is_the_reason() {
    for (words, reason) in [
        ("[ 1.0] reboot: Power down\r\n", "guest powered off"),
        ("[ 1.0] reboot: System halted\r\n", "guest halted"),
        (
            "[ 1.0] Kernel panic - not syncing: sysrq triggered crash\r\n",
            "guest kernel panicked: sysrq triggered crash",
        ),
    ] {
        let guest = Guest::new();
        let agent = guest.agent().await;
        guest.print(words);
        drop(agent);
        assert_eq!(guest.reason().await, reason);
        guest.kill();
    }
}

#[tokio::test]
async fn a_restart_is_told_by_the_console_when_the_vmm_ends() {
    let guest = Guest::new();
    guest.print("[ 1.0] reboot: Restarting system\r\n");
    guest.kill();
    assert!(guest.reason().await.starts_with("guest rebooted"));
}

#[tokio::test]
async fn an_agent_that_goes_on_proves_the_words_wrong() {
    let guest = Guest::new();
    let mut agent = guest.agent().await;
    guest.print("[ 1.0] reboot: Power down\r\n");
    let alive = async {
        for _ in 0..16 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            agent.write_all(b"{\"event\":\"heartbeat\"}\n").await.unwrap();
        }
    };
    tokio::select! {
        () = alive => {}
        ended = watch(guest.parts.clone()) => assert_eq!(ended.reason, "nothing"),
    }
    guest.kill();
}

#[test]
fn silence_is_counted_in_looks() {
    let start = Instant::now();
    let mut agent = Agent::default();
    agent.look(Some(start), None, start);
    // The daemon was stopped for an hour: that is not the guest's silence.
    agent.look(Some(start), None, start + Duration::from_secs(3600));
    assert!(agent.silent <= 4 * LOOK);
    let mut now = start + Duration::from_secs(3600);
    while agent.silent < SILENCE {
        assert_eq!(reason_of_silence(agent.silent, agent.word(), None), None);
        now += LOOK;
        agent.look(Some(start), None, now);
    }
    let reason = reason_of_silence(agent.silent, agent.word(), None).unwrap();
    assert_eq!(reason, "no sign of life from the guest for 30 s");
    let announced = reason_of_silence(agent.silent, agent.word(), Some(ShutdownKind::Poweroff)).unwrap();
    assert_eq!(announced, "guest powered off");
    agent.look(Some(now), None, now + LOOK);
    assert_eq!(agent.silent, Duration::ZERO);
}

#[test]
fn an_announcement_alone_ends_nothing() {
    // The guest still unmounts its disks.
    assert_eq!(reason_of_silence(Duration::from_secs(20), None, Some(ShutdownKind::Poweroff)), None);
}

#[test]
fn a_last_word_waits_only_for_an_agent_that_announced_nothing() {
    let word = LastWord::PowerDown;
    let said = |silent, ending| reason_of_silence(silent, Some(&word), ending);
    assert_eq!(said(Duration::ZERO, None), None);
    assert_eq!(said(CONFIRM, None).as_deref(), Some("guest powered off"));
    assert_eq!(said(Duration::ZERO, Some(ShutdownKind::Poweroff)).as_deref(), Some("guest powered off"));
}

#[test]
fn every_end_of_a_vmm_has_a_reason() {
    let panic = LastWord::Panic("x".into());
    assert_eq!(reason_of_end(VmmEnd::Exited(0), Some(&panic), None), "guest kernel panicked: x");
    assert_eq!(reason_of_end(VmmEnd::Exited(0), None, Some(ShutdownKind::Poweroff)), "guest powered off");
    assert_eq!(reason_of_end(VmmEnd::Exited(148), None, None), "firecracker exited (status 148)");
    let killed = reason_of_end(VmmEnd::Killed(9), None, Some(ShutdownKind::Reboot));
    assert_eq!(killed, "firecracker was killed (signal 9)");
    assert_eq!(reason_of_end(VmmEnd::Unknown, None, None), "firecracker was killed (signal unknown)");
}
