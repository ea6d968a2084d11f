use super::*;
use banger_policy::VmId;
use banger_vmm::Vmm;
use banger_vmm::cgroup::Cgroups;
use banger_vmm::pidfd::Pidfd;

pub(crate) fn group() -> VmCgroup {
    Cgroups::untracked().vm(1000, &VmId::from_bytes([9; 32]).unwrap())
}

/// Something that lives until it is killed, in the place of a VMM.
pub(crate) fn vmm() -> Vmm {
    let child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
    let process = Pidfd::open(child.id().unwrap()).unwrap();
    Vmm::of_child(process, group(), child)
}

pub(crate) fn token() -> BootToken {
    BootToken::new([3; 32])
}

/// What an agent says first.
pub(crate) fn hello() -> String {
    format!("{}\n", serde_json::to_string(&Hello { token: token() }).unwrap())
}

/// Any process of the guest.
async fn process(control: &Control, lines: &str) -> UnixStream {
    let mut stream = UnixStream::connect(&control.socket).await.unwrap();
    stream.write_all(lines.as_bytes()).await.unwrap();
    stream
}

async fn agent(control: &Control, lines: &str) -> UnixStream {
    process(control, &(hello() + lines)).await
}

/// What the daemon says next.
async fn command(stream: &mut UnixStream) -> GuestCommand {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(timeout(SOON, stream.read_u8()).await.unwrap().unwrap());
    }
    serde_json::from_slice(&line).unwrap()
}

/// The end, or a reset because not everything was taken. An agent was told the time before.
async fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().is_err() || !rest.ends_with(b"noted\"}\n")
}

const READY: &str = "{\"event\":\"ready\",\"boot_id\":\"b-1\"}\n";
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn an_agent_gets_ready_again_and_is_told_to_shut_down() {
    let folder = tempfile::tempdir().unwrap();
    let vsock = folder.path().join("vsock.sock");
    std::fs::write(folder.path().join("vsock.sock_10001"), "left by an earlier daemon").unwrap();
    let control = Control::listen(&vsock, 10_001, group(), token()).unwrap();
    let mode = std::fs::metadata(&control.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let first = agent(&control, READY).await;
    assert_eq!(control.ready(SOON).await.unwrap().boot_id, "b-1");
    drop(first);
    let mut second = agent(&control, &READY.replace("b-1", "b-2")).await;
    control
        .view
        .clone()
        .wait_for(|view| view.ready.as_ref().is_some_and(|ready| ready.boot_id == "b-2"))
        .await
        .unwrap();
    assert!(control.shutdown(Duration::from_secs(20)).await);
    // Whoever has proved itself is told the time first.
    let GuestCommand::Time { unix_ms } = command(&mut second).await else { panic!("no time") };
    assert!(unix_ms.abs_diff(clock::unix_ms()) < 60_000);
    assert_eq!(command(&mut second).await, GuestCommand::Shutdown { within: Some(20) });
    second.write_all(b"{\"event\":\"shutdown\",\"kind\":\"halt\"}\n").await.unwrap();
    control.view.clone().wait_for(|view| view.ending == Some(ShutdownKind::Halt)).await.unwrap();
    assert_eq!(command(&mut second).await, GuestCommand::Noted);
    let socket = control.socket.clone();
    drop(control);
    assert!(!socket.exists());
}

#[tokio::test]
async fn commands_that_run_are_known_until_the_next_agent_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::listen(&folder.path().join("v"), 1, group(), token()).unwrap();
    let lines = format!("{READY}{{\"event\":\"in_use\",\"commands\":2}}\n{{\"event\":\"failed\",\"reason\":\"x\"}}\n");
    let _first = agent(&control, &lines).await;
    // The number alone wakes nobody.
    control.view.clone().wait_for(|view| view.failed.is_some()).await.unwrap();
    assert_eq!(control.view().commands, 2);
    let _second = agent(&control, &READY.replace("b-1", "b-2")).await;
    let again = |view: &View| view.ready.as_ref().is_some_and(|ready| ready.boot_id == "b-2");
    control.view.clone().wait_for(again).await.unwrap();
    assert_eq!(control.view().commands, 0);
}

#[tokio::test]
async fn nobody_to_tell_is_said_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::listen(&folder.path().join("v"), 1, group(), token()).unwrap();
    assert!(!control.shutdown(Duration::from_secs(20)).await);
    let silent = control.ready(Duration::from_millis(100)).await;
    assert_eq!(silent, Err(NotReady::TimedOut(0)));
}

#[tokio::test]
async fn a_guest_that_cannot_boot_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::listen(&folder.path().join("v"), 1, group(), token()).unwrap();
    let _agent = agent(&control, "{\"event\":\"failed\",\"reason\":\"no \\u001b[31mroot\"}\n").await;
    let failed = control.ready(SOON).await.unwrap_err();
    assert_eq!(failed.to_string(), "the guest cannot boot: no [31mroot");
}

#[tokio::test]
async fn what_is_no_line_ends_the_connection_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::listen(&folder.path().join("v"), 1, group(), token()).unwrap();
    let mut endless = agent(&control, &"x".repeat(4 * MAX_CONTROL_LINE)).await;
    assert!(is_closed(&mut endless).await);
    let lines = format!("garbage\n{{\"event\":\"sing\"}}\n{READY}");
    let _agent = agent(&control, &lines).await;
    assert_eq!(control.ready(SOON).await.unwrap().boot_id, "b-1");
}

#[tokio::test]
async fn a_process_without_the_token_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::listen(&folder.path().join("v"), 1, group(), token()).unwrap();
    let other = format!("{}\n", serde_json::to_string(&Hello { token: BootToken::new([4; 32]) }).unwrap());
    let lies = [READY, "{\"event\":\"shutdown\",\"kind\":\"halt\"}\n", "{\"event\":\"failed\",\"reason\":\"x\"}\n"];
    let lie = async |first: &str| {
        for line in lies {
            assert!(is_closed(&mut process(&control, &format!("{first}{line}")).await).await);
        }
    };
    lie("").await;
    lie(&other).await;
    let view = control.view();
    assert!(view.ready.is_none() && view.failed.is_none() && view.ending.is_none() && view.heard.is_none(), "{view:?}");
    let mut agent = agent(&control, READY).await;
    control.ready(SOON).await.unwrap();
    lie("").await;
    lie(&other).await;
    // Its place was not taken.
    assert!(control.view().ending.is_none() && control.view().failed.is_none());
    assert!(control.shutdown(Duration::from_secs(20)).await);
    assert!(matches!(command(&mut agent).await, GuestCommand::Time { .. }));
    assert_eq!(command(&mut agent).await, GuestCommand::Shutdown { within: Some(20) });
}

#[tokio::test]
async fn silent_connections_are_few_and_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::listen(&folder.path().join("v"), 1, group(), token()).unwrap();
    let (mut silent, begun) = (Vec::new(), Instant::now());
    for _ in 0..3 * MAX_UNPROVED {
        silent.push(UnixStream::connect(&control.socket).await.unwrap());
    }
    let _agent = agent(&control, READY).await;
    control.ready(SOON).await.unwrap();
    for oldest in silent.iter_mut().take(2 * MAX_UNPROVED) {
        assert!(is_closed(oldest).await);
    }
    assert!(begun.elapsed() < PROOF_WAIT, "the newer ones took their places: nobody waited for their time to pass");
    // Nor do the newest stay.
    assert!(is_closed(silent.last_mut().unwrap()).await);
}
