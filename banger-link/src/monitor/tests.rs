use super::*;
use crate::control::{socket_path, tests as fakes};
use rustix::process::Signal;
use std::io::Write;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{interval, timeout};

const POWER_DOWN: &str = "[ 1.0] reboot: Power down\r\n";
/// What `vm list` has.
const TRUTH: Duration = Duration::from_secs(5);

struct Guest {
    folder: tempfile::TempDir,
    parts: Parts,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::listen(&folder.path().join("v"), 1, fakes::group(), fakes::token()).unwrap();
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
        agent.write_all(fakes::hello().as_bytes()).await.unwrap();
        agent.write_all(b"{\"event\":\"ready\",\"boot_id\":\"b\"}\n").await.unwrap();
        agent
    }

    async fn reason(&self) -> String {
        self.reason_of(self.begin().await).await
    }

    async fn begin(&self) -> Watch {
        Watch::begin(self.parts.clone()).await
    }

    async fn reason_of(&self, watch: Watch) -> String {
        timeout(TRUTH, watch.end()).await.unwrap().reason
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
        let watch = guest.begin().await;
        guest.print(words);
        drop(agent);
        assert_eq!(guest.reason_of(watch).await, reason);
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
    let watch = guest.begin().await;
    guest.print(POWER_DOWN);
    let alive = async {
        for _ in 0..16 {
            sleep(Duration::from_millis(250)).await;
            agent.write_all(b"{\"event\":\"heartbeat\"}\n").await.unwrap();
        }
    };
    tokio::select! {
        () = alive => {}
        ended = watch.end() => assert_eq!(ended.reason, "nothing"),
    }
    guest.kill();
}

#[tokio::test]
async fn a_word_from_before_a_shutdown_is_not_about_it() {
    let guest = Guest::new();
    let mut agent = guest.agent().await;
    guest.print(POWER_DOWN);
    let mut end = std::pin::pin!(guest.begin().await.end());
    agent.write_all(b"{\"event\":\"shutdown\",\"kind\":\"poweroff\"}\n").await.unwrap();
    drop(agent);
    // The guest still writes its disks.
    let early = timeout(CONFIRM + 2 * LOOK, &mut end).await;
    assert!(early.is_err(), "{early:?}");
    assert!(guest.parts.control.view().ending.is_some());
    guest.print(POWER_DOWN);
    assert_eq!(timeout(TRUTH, end).await.unwrap().reason, "guest powered off");
    guest.kill();
}

#[tokio::test]
async fn an_adopted_guest_is_not_dead_by_what_its_console_said_before() {
    let guest = Guest::new();
    guest.print(POWER_DOWN);
    // Its agent has not come back yet.
    let early = timeout(CONFIRM + 2 * LOOK, watch(guest.parts.clone())).await;
    assert!(early.is_err(), "{early:?}");
    guest.kill();
}

#[tokio::test]
async fn a_console_that_cannot_be_read_at_first_is_older_when_it_can() {
    let guest = Guest::new();
    let away = guest.folder.path().join("away");
    std::fs::rename(&guest.parts.console, &away).unwrap();
    // Not even root reads a folder.
    std::fs::create_dir(&guest.parts.console).unwrap();
    let mut console = Console::default();
    assert!(console.scan(guest.parts.console.clone()).await.is_none());
    std::fs::remove_dir(&guest.parts.console).unwrap();
    std::fs::rename(&away, &guest.parts.console).unwrap();
    guest.print(POWER_DOWN);
    assert!(console.scan(guest.parts.console.clone()).await.is_some_and(|said| !said.fresh));
    guest.print(POWER_DOWN);
    assert!(console.scan(guest.parts.console.clone()).await.is_some_and(|said| said.fresh));
    guest.kill();
}

#[test]
fn silence_is_counted_in_looks() {
    let start = Instant::now();
    let mut agent = Agent::default();
    agent.look(Some(start), None, start, false);
    // The daemon was stopped for an hour: that is not the guest's silence.
    agent.look(Some(start), None, start + Duration::from_secs(3600), false);
    assert!(agent.silent <= CALM + DOUBT, "{:?}", agent.silent);
    let mut now = start + Duration::from_secs(3600);
    while agent.silent < SILENCE {
        assert_eq!(by_silence(&agent, None, Patience::Usual), None);
        now += DOUBT;
        let before = agent.silent;
        agent.look(Some(start), None, now, true);
        assert_eq!(agent.silent, before, "a VMM that waits for the host's disk passes nothing on");
        now += DOUBT;
        agent.look(Some(start), None, now, false);
    }
    let ended = by_silence(&agent, None, Patience::Usual).unwrap();
    assert_eq!(ended, Ended::new("no sign of life from the guest for 30 s", false));
    assert_eq!(by_silence(&agent, None, Patience::Endless), None);
    // Heard a while ago, and looked at now.
    agent.look(Some(now), None, now + LOOK, false);
    assert_eq!(agent.silent, LOOK);
}

/// One that said nothing for so long, since a last word and altogether.
fn silent(silent: Duration, said: Option<Said>) -> Agent {
    let now = Instant::now();
    Agent { heard: Some(now), looked: Some(now), silent, said: said.map(|said| (said, now, silent)) }
}

#[test]
fn an_announcement_alone_ends_nothing() {
    // The guest still ends its services and unmounts its disks, whether its agent had time to say
    // so or not.
    for ending in [None, Some(ShutdownKind::Poweroff), Some(ShutdownKind::Reboot)] {
        let goodbye = Patience::Goodbye(GOODBYE);
        assert_eq!(by_silence(&silent(GOODBYE - LOOK, None), ending, goodbye), None);
        let ended = by_silence(&silent(GOODBYE, None), ending, goodbye).unwrap();
        assert!(!ended.clean && ended.reason.contains("180 s"), "{ended:?}");
    }
}

#[test]
fn a_last_word_waits_only_for_an_agent_that_announced_nothing() {
    let said = |since, ending| {
        let fresh = Said { word: LastWord::PowerDown, fresh: true };
        by_silence(&silent(since, Some(fresh)), ending, Patience::Goodbye(GOODBYE)).map(|ended| ended.reason)
    };
    assert_eq!(said(CONFIRM - LOOK, None), None);
    assert_eq!(said(CONFIRM, None).as_deref(), Some("guest powered off"));
    assert_eq!(said(Duration::ZERO, Some(ShutdownKind::Poweroff)).as_deref(), Some("guest powered off"));
}

#[test]
fn a_word_that_the_watch_found_waits_for_an_agent_that_may_come_back_and_says_nothing_of_an_end_announced_now() {
    let said = |since, ending| {
        let found = Said { word: LastWord::Halted, fresh: false };
        by_silence(&silent(since, Some(found)), ending, Patience::Goodbye(GOODBYE)).map(|ended| ended.reason)
    };
    assert_eq!(said(CONFIRM_FOUND - LOOK, None), None);
    assert_eq!(said(CONFIRM_FOUND, None).as_deref(), Some("guest halted"));
    assert_eq!(said(GOODBYE - LOOK, Some(ShutdownKind::Poweroff)), None);
}

#[test]
fn a_word_after_a_long_silence_is_not_certain_by_that_silence() {
    let start = Instant::now();
    let mut agent = Agent::default();
    agent.look(Some(start), None, start, false);
    let now = start + CALM;
    agent.look(Some(start), Some(Said { word: LastWord::PowerDown, fresh: true }), now, false);
    assert_eq!(by_silence(&agent, None, Patience::Usual), None);
    agent.look(Some(start), None, now + 4 * LOOK, false);
    assert_eq!(by_silence(&agent, None, Patience::Usual), None);
    for looks in 5..=10 {
        agent.look(Some(start), None, now + looks * LOOK, false);
    }
    assert!(by_silence(&agent, None, Patience::Usual).is_some());
}

#[test]
fn an_agent_that_is_heard_or_a_new_word_takes_the_place_of_a_found_one() {
    let start = Instant::now();
    let found = || Some(Said { word: LastWord::Halted, fresh: false });
    let mut agent = Agent::default();
    agent.look(None, found(), start, false);
    let later = start + IN_FLIGHT + LOOK;
    agent.look(Some(later), None, later, false);
    assert!(agent.said().is_none());

    let mut agent = Agent::default();
    agent.look(None, found(), start, false);
    agent.look(None, Some(Said { word: LastWord::PowerDown, fresh: true }), start + LOOK, false);
    let ended = by_silence(&agent, Some(ShutdownKind::Poweroff), Patience::Goodbye(GOODBYE));
    assert_eq!(ended, Some(Ended::new("guest powered off", true)));
}

#[test]
fn every_end_of_a_vmm_has_a_reason() {
    let panic = Said { word: LastWord::Panic("x".into()), fresh: true };
    let poweroff = Some(ShutdownKind::Poweroff);
    for (end, said, ending, reason, clean) in [
        (VmmEnd::Exited(0), Some(&panic), None, "guest kernel panicked: x", false),
        (VmmEnd::Exited(0), None, poweroff, "guest powered off", true),
        (VmmEnd::Unknown, None, poweroff, "guest powered off", true),
        (VmmEnd::Exited(148), None, None, "firecracker exited (status 148)", false),
        (VmmEnd::Exited(148), None, poweroff, "firecracker exited (status 148)", false),
        (VmmEnd::Exited(0), None, None, "firecracker exited (status 0)", true),
        (VmmEnd::Killed(9), None, poweroff, "firecracker was killed (signal 9)", false),
        (VmmEnd::Unknown, None, None, UNKNOWN, false),
    ] {
        assert_eq!(by_end(end, said, ending), Ended::new(reason, clean));
    }
}

/// Longer than any wait for the agent would be.
const FOR_EVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_guest_that_ends_before_its_agent_speaks_is_not_waited_for() {
    for (words, reason) in [
        (POWER_DOWN, "guest powered off"),
        ("[ 1.0] Kernel panic - not syncing: VFS: no root\r\n", "guest kernel panicked: VFS: no root"),
    ] {
        let guest = Guest::new();
        let booting = async {
            sleep(Duration::from_millis(300)).await;
            guest.print(words);
        };
        let (ready, ()) = tokio::join!(timeout(TRUTH, ready(&guest.parts, FOR_EVER)), booting);
        assert_eq!(ready.unwrap(), Err(NotReady::Ended(reason.to_owned())));
        guest.kill();
    }
}

#[tokio::test]
async fn a_vmm_that_ends_before_the_agent_speaks_is_not_waited_for_and_the_console_says_why() {
    let guest = Guest::new();
    guest.print("[ 1.0] Kernel panic - not syncing: x\r\n");
    let (ready, ()) = tokio::join!(timeout(TRUTH, ready(&guest.parts, FOR_EVER)), async { guest.kill() });
    assert_eq!(ready.unwrap(), Err(NotReady::Ended("guest kernel panicked: x".to_owned())));
}

#[tokio::test]
async fn words_like_the_kernels_end_no_boot_whose_agent_comes() {
    let guest = Guest::new();
    let coming = async {
        guest.print(POWER_DOWN);
        sleep(CONFIRM / 2).await;
        guest.agent().await
    };
    let (ready, _agent) = tokio::join!(timeout(TRUTH, ready(&guest.parts, FOR_EVER)), coming);
    assert_eq!(ready.unwrap().unwrap().boot_id, "b");
    guest.kill();
}

#[tokio::test]
async fn a_silent_guest_that_boots_has_all_the_time_that_it_is_given() {
    let guest = Guest::new();
    assert_eq!(ready(&guest.parts, Duration::from_secs(1)).await, Err(NotReady::TimedOut(1)));
    guest.kill();
}

#[tokio::test]
async fn an_agent_in_doubt_is_asked_to_speak() {
    let guest = Guest::new();
    let mut agent = BufReader::new(guest.agent().await);
    let watch = guest.begin().await;
    guest.print(POWER_DOWN);
    let answering = async {
        let (mut questions, mut line) = (0, String::new());
        while questions < 8 {
            line.clear();
            agent.read_line(&mut line).await.unwrap();
            if line.contains("speak") {
                questions += 1;
                agent.get_mut().write_all(b"{\"event\":\"heartbeat\"}\n").await.unwrap();
                // Words that are taken back are asked about no more.
                guest.print(POWER_DOWN);
            }
        }
    };
    tokio::select! {
        () = answering => {}
        ended = watch.end() => assert_eq!(ended.reason, "nothing"),
    }
    guest.kill();
}

/// Voluntary context switches of all threads of this process (proc_pid_status(5)).
fn wake_ups() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    tasks.map(of).sum()
}

/// `cargo nextest run --run-ignored only --no-capture -E 'test(wake_ups_of_250_idle_guests)'`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of 20 seconds: it says a number, and fails by none"]
async fn wake_ups_of_250_idle_guests() {
    let guests: Vec<Guest> = (0..250).map(|_| Guest::new()).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for guest in &guests {
        let mut agent = guest.agent().await;
        tasks.spawn(async move {
            let mut heartbeat = interval(Duration::from_millis(HEARTBEAT_MS));
            loop {
                heartbeat.tick().await;
                agent.write_all(b"{\"event\":\"heartbeat\"}\n").await.unwrap();
            }
        });
        let parts = guest.parts.clone();
        tasks.spawn(async move { panic!("{:?}", watch(parts).await) });
    }
    sleep(Duration::from_secs(2)).await;
    let before = wake_ups();
    sleep(Duration::from_secs(20)).await;
    let count = wake_ups() - before;
    tasks.shutdown().await;
    guests.iter().for_each(Guest::kill);
    println!("250 idle guests, 20 s, agents included: {} wake-ups a second", count / 20);
}
