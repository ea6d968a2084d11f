//! Calls and streams over a real socket, against the simulated host.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod registered;

use super::*;
use crate::args;
use crate::vm::tests::{ALICE, BOB, ROOT, World, named};
use banger_policy::Peer;
use banger_policy::lifecycle::State;
use banger_proto::daemon::{DaemonClient, KillSignal};
use banger_proto::model::{ApiError, ErrorCode, JobId, JobResult, JobState, LinkRequest, SetRequest};
use banger_proto::stream::{Frame, MAX_PAYLOAD, StreamRequest, Ticket, read, write};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Door {
    daemon: Arc<Daemon>,
    admission: Arc<Admission>,
}

impl Door {
    fn of(world: &World) -> Self {
        let args = args::parse(std::iter::empty(), |_| None).unwrap();
        let life = world.life();
        let daemon = Daemon::new(Arc::clone(&life.vms), Arc::clone(&life.store), &args);
        let admission = Arc::new(Admission::of_daemon(nix::unistd::Uid::from_raw(0)));
        Self { daemon, admission }
    }

    /// A connection of `peer`, before its hello.
    fn connect(&self, peer: Peer) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let place = self.admission.enter(peer).unwrap();
        tokio::spawn(connection(theirs, place, Arc::clone(&self.daemon)));
        ours
    }

    async fn client(&self, peer: Peer) -> DaemonClient {
        let mut stream = self.connect(peer);
        transport::connect(&mut stream, Purpose::Calls).await.unwrap();
        DaemonClient::new(tarpc::client::Config::default(), transport::client(stream, DAEMON_LIMITS)).spawn()
    }

    async fn stream(&self, peer: Peer, ticket: &Ticket) -> UnixStream {
        let mut stream = self.connect(peer);
        transport::connect(&mut stream, Purpose::Stream).await.unwrap();
        stream.write_all(&ticket.0).await.unwrap();
        stream
    }
}

fn now() -> tarpc::context::Context {
    let mut context = tarpc::context::current();
    context.deadline = std::time::Instant::now() + Duration::from_secs(40);
    context
}

async fn end_of(client: &DaemonClient, job: JobId) -> JobState {
    let mut seq = 0;
    loop {
        let view = client.watch_job(now(), job, seq).await.unwrap().unwrap();
        if view.state != JobState::Running {
            return view.state;
        }
        seq = view.seq;
    }
}

fn upload(name: &str) -> StreamRequest {
    StreamRequest::ImportImage {
        name: name.into(),
        source: "test".into(),
        build_size: Some(64 << 20),
        shared: false,
        reference: None,
        pulled: false,
    }
}

#[test]
fn a_vm_is_made_listed_and_deleted_by_calls() {
    let world = World::new();
    let door = Door::of(&world);
    world.life().runtime.block_on(async {
        let (alice, bob) = (door.client(ALICE).await, door.client(BOB).await);
        let job = alice.create_vm(now(), named("demo"), false).await.unwrap().unwrap();
        assert!(matches!(end_of(&alice, job).await, JobState::Done(JobResult::Vm(_))));
        let page = alice.list_vms(now(), false, None).await.unwrap().unwrap();
        assert_eq!(
            page.vms.iter().map(|vm| (vm.name.as_str(), vm.state)).collect::<Vec<_>>(),
            [("demo", State::Running)]
        );

        assert!(bob.list_vms(now(), false, None).await.unwrap().unwrap().vms.is_empty());
        for refused in [
            bob.show_vm(now(), "demo".into()).await.unwrap().map(drop),
            bob.delete_vm(now(), page.vms[0].id.to_string()).await.unwrap().map(drop),
            bob.watch_job(now(), job, 0).await.unwrap().map(drop),
            bob.cancel_job(now(), job).await.unwrap(),
            bob.open_stream(now(), StreamRequest::Logs { vm: "demo".into(), follow: false, tail: None })
                .await
                .unwrap()
                .map(drop),
        ] {
            assert_eq!(refused.unwrap_err().code, ErrorCode::NotFound);
        }
        let job = alice.delete_vm(now(), "demo".into()).await.unwrap().unwrap();
        assert!(matches!(end_of(&alice, job).await, JobState::Done(_)));
    });
    world.assert_nothing_at_all();
}

/// Makes a call with none of the user's tokens left; true when it was refused for that.
async fn costs<T>(daemon: &Daemon, call: impl AsyncFn() -> Result<T, ApiError>) -> bool {
    // A token comes back every 10 ms: one may come between the last one's end and the call.
    for _ in 0..100 {
        while daemon.calls.take(Who::Uid(ALICE.uid)) {}
        let too_many = |error: &ApiError| error.code == ErrorCode::Limit && error.message.contains("too many calls");
        if call().await.is_err_and(|error| too_many(&error)) {
            return true;
        }
    }
    false
}

#[test]
fn every_call_costs_its_user_a_token_and_nobody_else() {
    let world = World::new();
    let door = Door::of(&world);
    world.life().runtime.block_on(async {
        let alice = door.client(ALICE).await;
        let job = JobId(1);
        let name = || "demo".to_owned();
        let mut missing = Vec::new();
        macro_rules! all {
            ($($call:ident($($argument:expr),*)),* $(,)?) => {$(
                let call = async || alice.$call(now(), $($argument),*).await.unwrap().map(drop);
                if !costs(&door.daemon, call).await {
                    missing.push(stringify!($call));
                }
            )*};
        }
        all![
            info(),
            doctor(),
            leaks(false),
            list_vms(false, None),
            show_vm(name()),
            create_vm(named("demo"), false),
            start_vm(name()),
            stop_vm(name(), None, false),
            restart_vm(name()),
            set_vm(name(), SetRequest::default()),
            kill_vm(name(), KillSignal::Term),
            give_vm(name(), name()),
            delete_vm(name()),
            prune_vm(name()),
            ssh_access(name(), String::new()),
            open_stream(upload("new")),
            list_images(false, None),
            show_image(name()),
            promote_image(name()),
            share_image(name(), true),
            delete_image(name()),
            list_kernels(false, None),
            pick_kernel(None),
            share_kernel(name(), true),
            delete_kernel(name()),
            list_jobs(None),
            watch_job(job, 0),
            cancel_job(job),
            set_workspace(name(), None),
            quotas(false, None),
        ];
        let link = LinkRequest {
            name: name(),
            source: name(),
            manifest: banger_policy::Digest::from_bytes([7; 32]).unwrap(),
            build_size: None,
            shared: false,
        };
        all![link_image(link.clone())];
        assert!(missing.is_empty(), "{missing:?}");
        // Everybody else has tokens of their own.
        while door.daemon.calls.take(Who::Uid(ALICE.uid)) {}
        assert!(door.client(BOB).await.list_vms(now(), false, None).await.unwrap().is_ok());
    });
}

#[test]
fn who_follows_a_console_is_shown_no_more_of_it_when_the_vm_is_given_away() {
    let world = World::new();
    let door = Door::of(&world);
    let vm = world.running("demo");
    world.life().runtime.block_on(async {
        let (alice, root) = (door.client(ALICE).await, door.client(ROOT).await);
        let follow = |vm: &str| StreamRequest::Logs { vm: vm.into(), follow: true, tail: None };
        let hers = alice.open_stream(now(), follow("demo")).await.unwrap().unwrap();
        let roots = root.open_stream(now(), follow("alice/demo")).await.unwrap().unwrap();
        let console = world.paths().vm(&vm.id).console();
        std::fs::write(&console, "hers\n").unwrap();
        let (mut hers, mut roots) = (door.stream(ALICE, &hers.ticket).await, door.stream(ROOT, &roots.ticket).await);
        for stream in [&mut hers, &mut roots] {
            assert_eq!(read(stream).await.unwrap(), Some(Frame::Output(b"hers\n".to_vec())));
        }
        let stopped = alice.stop_vm(now(), "demo".into(), None, false).await.unwrap().unwrap();
        assert!(matches!(end_of(&alice, stopped).await, JobState::Done(_)));
        let given = root.give_vm(now(), "alice/demo".into(), "bob".into()).await.unwrap().unwrap();
        assert!(matches!(end_of(&root, given).await, JobState::Done(_)));
        std::fs::write(&console, "hers\nhis\n").unwrap();
        for stream in [&mut hers, &mut roots] {
            let next = tokio::time::timeout(Duration::from_secs(20), read(stream)).await.unwrap();
            assert!(matches!(next, Ok(None)), "{next:?}");
        }
        let refused = alice.open_stream(now(), follow("demo")).await.unwrap().unwrap_err();
        assert_eq!(refused.code, ErrorCode::NotFound);
    });
}

#[test]
fn who_follows_a_console_is_told_the_end_when_the_vm_is_deleted() {
    let world = World::new();
    let door = Door::of(&world);
    let vm = world.running("demo");
    world.life().runtime.block_on(async {
        let alice = door.client(ALICE).await;
        let follow = StreamRequest::Logs { vm: "demo".into(), follow: true, tail: None };
        let opened = alice.open_stream(now(), follow).await.unwrap().unwrap();
        std::fs::write(world.paths().vm(&vm.id).console(), "boot\n").unwrap();
        let mut stream = door.stream(ALICE, &opened.ticket).await;
        assert_eq!(read(&mut stream).await.unwrap(), Some(Frame::Output(b"boot\n".to_vec())));
        let deleted = alice.delete_vm(now(), "demo".into()).await.unwrap().unwrap();
        assert!(matches!(end_of(&alice, deleted).await, JobState::Done(_)));
        let next = tokio::time::timeout(Duration::from_secs(20), read(&mut stream)).await.unwrap();
        assert!(matches!(next, Ok(Some(Frame::Exit(0)))), "{next:?}");
    });
}

#[test]
fn a_client_that_goes_away_changes_nothing_about_its_job() {
    let world = World::new();
    let door = Door::of(&world);
    let job = world.life().runtime.block_on(async {
        let alice = door.client(ALICE).await;
        let job = alice.create_vm(now(), named("demo"), false).await.unwrap().unwrap();
        drop(alice);
        job
    });
    assert!(matches!(world.wait(job), JobState::Done(JobResult::Vm(vm)) if vm.state == State::Running));
}

#[test]
fn a_ticket_that_is_not_the_callers_opens_nothing() {
    let world = World::new();
    let door = Door::of(&world);
    world.life().runtime.block_on(async {
        let alice = door.client(ALICE).await;
        let open = alice.open_stream(now(), upload("new")).await.unwrap().unwrap();
        for (peer, ticket) in [(BOB, open.ticket.clone()), (ALICE, Ticket([0; 32]))] {
            let mut stream = door.stream(peer, &ticket).await;
            // Let in, it would be waited for as long as it sends nothing.
            let answer = tokio::time::timeout(Duration::from_secs(20), read(&mut stream)).await.unwrap();
            assert!(matches!(answer.unwrap(), Some(Frame::Failed(_))));
        }
        let mut stream = door.stream(ALICE, &open.ticket).await;
        write(&mut stream, &Frame::Input(b"not a tar".repeat(100))).await.unwrap();
        write(&mut stream, &Frame::InputEnd).await.unwrap();
        assert_eq!(read(&mut stream).await.unwrap(), Some(Frame::Exit(0)), "all bytes have arrived");
        let end = end_of(&alice, open.job.unwrap()).await;
        assert!(matches!(&end, JobState::Failed(ApiError { code: ErrorCode::BadRequest, .. })), "{end:?}");
        let mut again = door.stream(ALICE, &open.ticket).await;
        assert!(matches!(read(&mut again).await.unwrap(), Some(Frame::Failed(_))));
        assert_eq!(alice.list_images(now(), false, None).await.unwrap().unwrap().entries.len(), 1);
    });
    assert_eq!(std::fs::read_dir(world.paths().images()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(world.paths().staging()).unwrap().count(), 0);
}

/// An upload to its end.
async fn import(door: &Door, peer: Peer, name: &str, archive: &[u8]) -> JobState {
    send(door, peer, upload(name), archive).await
}

async fn send(door: &Door, peer: Peer, request: StreamRequest, bytes: &[u8]) -> JobState {
    let client = door.client(peer.clone()).await;
    let open = client.open_stream(now(), request).await.unwrap().unwrap();
    let mut stream = door.stream(peer, &open.ticket).await;
    for piece in bytes.chunks(MAX_PAYLOAD) {
        write(&mut stream, &Frame::Input(piece.to_owned())).await.unwrap();
    }
    write(&mut stream, &Frame::InputEnd).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap(), Some(Frame::Exit(0)));
    end_of(&client, open.job.unwrap()).await
}

/// That two contents have one digest is the word of a converter, which may have been taken over.
#[test]
fn nobody_is_given_content_that_is_not_what_the_own_import_has_made() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(5);
    archive.append_data(&mut header, "etc/hostname", &b"guest"[..]).unwrap();
    let archive = archive.into_inner().unwrap();
    for file in [banger_image::ROOTFS_FILE, banger_image::SEED_FILE] {
        let world = World::new();
        let door = Door::of(&world);
        world.life().runtime.block_on(async {
            let made = import(&door, ALICE, "hers", &archive).await;
            let JobState::Done(JobResult::Image(image)) = &made else { unreachable!("{made:?}") };
            let all = crate::util::allocated_below(&world.paths().image_dir(&image.id));
            assert!(all > 0 && image.allocated_bytes == all, "both files count: {} of {all}", image.allocated_bytes);
            let same = import(&door, BOB, "same", &archive).await;
            assert!(matches!(&same, JobState::Done(JobResult::Image(same)) if same.id == image.id), "{same:?}");
            // In the place of a converter that says the digest of something else.
            let path = world.paths().image_dir(&image.id).join(file);
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            let last = std::fs::File::options().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&last, b"changed", 1 << 10).unwrap();
            // Nobody who publishes waits for the comparison.
            let _publishing = door.daemon.store.publishing().await;
            let other = import(&door, BOB, "other", &archive).await;
            assert!(
                matches!(&other, JobState::Failed(why) if why.message.contains("not what its digest stands for")),
                "{file}: {other:?}"
            );
        });
    }
}

#[test]
fn an_upload_that_is_cancelled_leaves_nothing() {
    let world = World::new();
    let door = Door::of(&world);
    world.life().runtime.block_on(async {
        let alice = door.client(ALICE).await;
        let open = alice.open_stream(now(), upload("new")).await.unwrap().unwrap();
        let mut stream = door.stream(ALICE, &open.ticket).await;
        write(&mut stream, &Frame::Input(vec![0; 1000])).await.unwrap();
        alice.cancel_job(now(), open.job.unwrap()).await.unwrap().unwrap();
        assert_eq!(end_of(&alice, open.job.unwrap()).await, JobState::Cancelled);
        // The connection is closed, which is how the client learns that nobody wants its bytes.
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
    });
    assert_eq!(std::fs::read_dir(world.paths().images()).unwrap().count(), 0);
}

#[test]
fn names_that_are_taken_are_refused_before_the_upload() {
    let world = World::new();
    let door = Door::of(&world);
    world.life().runtime.block_on(async {
        let alice = door.client(ALICE).await;
        let root = door.client(ROOT).await;
        let error = root.open_stream(now(), upload("debian")).await.unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        let error = alice.open_stream(now(), upload("bad name")).await.unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        let error = alice.delete_image(now(), "debian".into()).await.unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::Denied);
    });
}

#[test]
fn what_is_no_hello_closes_its_own_connection_only() {
    let world = World::new();
    let door = Door::of(&world);
    world.life().runtime.block_on(async {
        let alice = door.client(ALICE).await;
        for garbage in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &[0; 32], &[0xff; 64]] {
            let mut stream = door.connect(BOB);
            stream.write_all(garbage).await.unwrap();
            let mut answer = Vec::new();
            drop(stream.read_to_end(&mut answer).await);
            assert!(answer.len() <= 32, "no more than our own hello");
        }
        let info = alice.info(now()).await.unwrap().unwrap();
        assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    });
}
