//! The streams: what a guest, or an import, would say.

use super::{Fake, records};
use banger_guest::agent::Server;
use banger_proto::command::{FromGuest, Start, ToGuest};
use banger_proto::inside::{Filled, Inside, Listener};
use banger_proto::model::{ApiError, ErrorCode, JobResult, JobState};
use banger_proto::session::{Answer, Record, Refusal, Request, Session, Status};
use banger_proto::stream::{Frame, OPENED_BYTES, StreamRequest, read, write};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::IoSlice;
use std::os::fd::AsRawFd as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub(super) async fn serve(fake: Fake, stream: UnixStream, request: StreamRequest, job: Option<u64>) {
    if let StreamRequest::Session { .. } = request {
        return sessions(&fake, stream).await;
    }
    if !matches!(
        request,
        StreamRequest::Logs { .. }
            | StreamRequest::ImportImage { .. }
            | StreamRequest::RegisterImage { .. }
            | StreamRequest::ImportKernel { .. }
    ) {
        return hand_over(&fake, stream, &request).await;
    }
    let (mut from, mut to) = stream.into_split();
    match request {
        StreamRequest::Command { .. }
        | StreamRequest::Inside { .. }
        | StreamRequest::Session { .. }
        | StreamRequest::Ssh { .. } => {
            unreachable!("handed over")
        }
        StreamRequest::Logs { .. } => {
            let evil = fake.state().evil;
            say(&mut to, Frame::Output(format!("console\r\n\x1b[2J{evil}").into_bytes())).await;
            if !evil.is_empty() {
                say(&mut to, Frame::ErrorOutput(format!("trouble{evil}\n").into_bytes())).await;
            }
            say(&mut to, Frame::Exit(0)).await;
        }
        StreamRequest::ImportImage { name, .. } => {
            let refused = name == "refused";
            let result = |bytes| JobResult::Image(Box::new(records::image(&name, bytes)));
            import(&fake, &mut from, &mut to, job.unwrap_or_default(), refused, result).await;
        }
        StreamRequest::RegisterImage { name, source, kernel } => {
            fake.state().calls.push(format!("register {name} of {source} with {kernel:?}"));
            if name == "slow" {
                // Until the client goes away.
                while let Ok(Some(_)) = read(&mut from).await {}
                return;
            }
            let refused = name.contains("refused");
            let result = |bytes| {
                let kernel_id = kernel.as_ref().map(|_| records::kernel("x", 0).id);
                let kernel = kernel.as_ref().map(|kernel| kernel.parse().unwrap());
                let image = records::image(&name, bytes);
                JobResult::Image(Box::new(banger_proto::model::ImageRecord { kernel, kernel_id, ..image }))
            };
            import(&fake, &mut from, &mut to, job.unwrap_or_default(), refused, result).await;
        }
        StreamRequest::ImportKernel { name, .. } => {
            let name = name.unwrap_or_else(|| "6.12.41".into());
            let evil = fake.state().evil;
            fake.state().calls.push(format!("import kernel {name}"));
            let result = |bytes| {
                let kernel = records::kernel(&name, bytes);
                let version = format!("{}{evil}", kernel.version);
                JobResult::Kernel(Box::new(banger_proto::model::KernelRecord { version, ..kernel }))
            };
            import(&fake, &mut from, &mut to, job.unwrap_or_default(), false, result).await;
        }
    }
}

/// The client may be gone, which a test may want.
async fn say(to: &mut OwnedWriteHalf, frame: Frame) -> bool {
    write(to, &frame).await.is_ok()
}

/// As the daemon does it; gives the guest's end.
fn passed(client: &UnixStream) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let rights = [theirs.as_raw_fd()];
    let beside = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(&OPENED_BYTES)], &beside, MsgFlags::empty(), None).unwrap();
    drop(theirs);
    ours
}

async fn hand_over(fake: &Fake, client: UnixStream, request: &StreamRequest) {
    let ours = passed(&client);
    let agent = fake.state().agent.clone();
    if let (StreamRequest::Ssh { .. }, Some((config, _, passwd))) = (request, agent) {
        return Server::with_passwd(&config, passwd).unwrap().serve(ours).await;
    }
    let (mut from, mut to) = ours.into_split();
    if matches!(request, StreamRequest::Inside { .. }) {
        return inside(fake).write(&mut to).await.unwrap();
    }
    if matches!(request, StreamRequest::Ssh { .. }) {
        let mut bytes = vec![0; 60_000];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            to.write_all(&bytes[..count]).await.unwrap();
        }
        return;
    }
    if let Ok(Some(ToGuest::Start(start))) = ToGuest::read(&mut from).await {
        tell(&mut to, FromGuest::Started).await;
        exec(fake, &mut from, &mut to, *start).await;
    }
}

/// The agent's own program, as the agent starts it.
async fn files(fake: &Fake, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, words: &[&str]) {
    if fake.state().stuck {
        fake.state().calls.push("files".to_owned());
        while let Ok(Some(_)) = ToGuest::read(from).await {}
        return;
    }
    let (mut input, mut output) = (Vec::new(), Vec::new());
    while let Ok(Some(ToGuest::Input(bytes))) = ToGuest::read(from).await {
        let credit = u32::try_from(bytes.len()).unwrap();
        input.extend(bytes);
        tell(to, FromGuest::Credit(credit)).await;
    }
    // The guest's `/root` is a folder of the test's.
    let home = fake.guest_home();
    let inside = |word: &&str| match word.strip_prefix("/root") {
        Some(below) => format!("{}{below}", home.display()).into(),
        None => (*word).into(),
    };
    let words: Vec<std::ffi::OsString> = words.iter().skip(1).map(inside).collect();
    let ran = banger_files::program::run(&words, &home, &mut input.as_slice(), &mut output);
    for part in output.chunks(60_000) {
        tell(to, FromGuest::Output(part.to_vec())).await;
    }
    let said = ran.as_ref().map_or_else(ToString::to_string, |lines| lines.join("\n"));
    if !said.is_empty() {
        tell(to, FromGuest::ErrorOutput(said.into_bytes())).await;
    }
    tell(to, FromGuest::Exited(u8::from(ran.is_err()))).await;
}

/// A guest whose root disk is full.
fn inside(fake: &Fake) -> Inside {
    let listener = |port, program: &str| Listener {
        protocol: "tcp".into(),
        address: "0.0.0.0".into(),
        port,
        pid: Some(100),
        program: format!("{program}{}", fake.state().evil),
    };
    Inside {
        uptime_seconds: 90,
        load: [0.5, 0.25, 0.125],
        processes: 12,
        memory_total: 1 << 30,
        memory_available: 1 << 29,
        root: Filled { total: 8 << 30, free: 1 << 20 },
        work: Some(Filled { total: 1 << 30, free: 1 << 29 }),
        listeners: vec![listener(22, "banger-agent"), listener(8080, "web")],
    }
}

/// A guest with the sessions `web`, which runs and takes input, `deaf`, which takes none, and
/// `old`, which has ended.
async fn sessions(fake: &Fake, client: UnixStream) {
    let mut guest = passed(&client);
    let evil = fake.state().evil;
    let session = |name: &str, number: u64, status, stdin| Session {
        id: format!("{name}.{number}"),
        name: format!("{name}{evil}"),
        command: vec!["serve".into(), format!("--all{evil}")],
        status,
        stdin,
        tty: name == "app",
        // No age: it is in the future.
        started_at: 4_070_908_800,
        ended_at: (status != Status::Running).then_some(4_070_908_860),
        log_path: format!("/root/.banger/sessions/{name}.{number}/log{evil}"),
        again: name == "app",
    };
    let known = [
        session("old", 1, Status::Exited(3), false),
        session("web", 2, Status::Running, true),
        session("deaf", 3, Status::Running, false),
        session("lost", 4, Status::LostGuest, false),
    ];
    let Ok(Some(request)) = Request::read(&mut guest).await else { return };
    fake.state().calls.push(format!("{request:?}"));
    // What `vm run` has started is followed by its id.
    let app = session("app", 5, Status::Running, false);
    let all = || known.iter().chain([&app]);
    let found = request.session().map(|word| all().find(|one| one.id.starts_with(word)).cloned());
    let answers = match (&request, found) {
        (_, Some(None)) => vec![Answer::Refused(Refusal::Unknown)],
        (Request::List, _) => vec![Answer::Sessions(known.to_vec())],
        (Request::Show { .. }, Some(Some(found))) => vec![Answer::Sessions(vec![found])],
        (Request::Start(new), _) => match new.start.words.first().map(Vec::as_slice) {
            Some(b"missing") => vec![Answer::Refused(Refusal::Command(127, format!("no such program{evil}\nmore")))],
            Some(b"nothing") => vec![Answer::Refused(Refusal::NoEntrypoint)],
            _ => vec![Answer::Sessions(vec![session(new.name.as_deref().unwrap_or("s5"), 5, Status::Running, false)])],
        },
        (Request::Logs { .. }, Some(Some(found))) => vec![
            record(false, format!("out{evil}\n")),
            record(true, format!("err{evil}\n")),
            Answer::Gap(7),
            record(false, "last\n".into()),
            Answer::Ended(match found.status {
                Status::Running => Status::Exited(9),
                status => status,
            }),
        ],
        (Request::Send { .. }, Some(Some(found))) => match found.status {
            Status::Running if found.stdin => return take(fake, guest).await,
            Status::Running => vec![Answer::Refused(Refusal::NoInput)],
            status => vec![Answer::Refused(Refusal::Ended(status))],
        },
        (Request::Attach { .. }, Some(Some(found))) if found.status == Status::Running => {
            Answer::Opened.write(&mut guest).await.unwrap();
            let (mut from, mut to) = guest.into_split();
            tell(&mut to, FromGuest::Output(format!("now{evil}\n").into_bytes())).await;
            if let Ok(Some(ToGuest::Input(bytes))) = ToGuest::read(&mut from).await {
                tell(&mut to, FromGuest::Output(bytes)).await;
            }
            tell(&mut to, FromGuest::Exited(4)).await;
            return;
        }
        (Request::Wait { .. } | Request::Stop { .. }, Some(Some(found))) => vec![Answer::Ended(match found.status {
            Status::Running => Status::Killed(15),
            status => status,
        })],
        (Request::Remove { .. }, Some(Some(found))) if found.status == Status::Running => {
            vec![Answer::Refused(Refusal::Runs)]
        }
        (Request::Kill { .. } | Request::Remove { .. }, _) => vec![Answer::Done],
        (_, Some(Some(found))) => vec![Answer::Refused(Refusal::Ended(found.status))],
        (_, None) => vec![],
    };
    for answer in answers {
        if answer.write(&mut guest).await.is_err() {
            return;
        }
    }
}

fn record(error: bool, text: String) -> Answer {
    Answer::Record(Record { at: 1_763_632_800_000, error, bytes: text.into_bytes() })
}

/// Takes input and keeps it. It closes its input at the word `enough`.
async fn take(fake: &Fake, mut guest: UnixStream) {
    Answer::Opened.write(&mut guest).await.unwrap();
    while let Ok(Some(frame)) = ToGuest::read(&mut guest).await {
        let answer = match frame {
            ToGuest::Input(bytes) if bytes == b"enough" => Answer::InputClosed,
            ToGuest::Input(bytes) => {
                let credit = u32::try_from(bytes.len()).unwrap();
                fake.state().uploaded.extend(bytes);
                Answer::Credit(credit)
            }
            ToGuest::InputEnd => Answer::Credit(0),
            _ => continue,
        };
        if answer.write(&mut guest).await.is_err() {
            return;
        }
    }
}

/// As [`say`].
async fn tell(to: &mut OwnedWriteHalf, frame: FromGuest) -> bool {
    frame.write(to).await.is_ok()
}

async fn exec(fake: &Fake, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, start: Start) {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let words: Vec<String> = start.words.iter().map(text).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if words.first().is_some_and(|word| *word == banger_files::COMMAND) {
        return files(fake, from, to, &words).await;
    }
    match words.as_slice() {
        ["said"] => {
            let env: Vec<(String, String)> = start.env.iter().map(|(name, value)| (text(name), text(value))).collect();
            let folder = start.working_dir.as_ref().map(text);
            fake.state().calls.push(format!("{folder:?} {:?} {env:?}", start.user));
            tell(to, FromGuest::Exited(0)).await;
        }
        ["exit", status] => {
            tell(to, FromGuest::Exited(status.parse().unwrap())).await;
        }
        ["killed", number] => {
            tell(to, FromGuest::Killed(number.parse().unwrap())).await;
        }
        ["missing"] => {
            let evil = fake.state().evil;
            tell(to, FromGuest::Refused(127, format!("missing: there is no such program{evil}\nsecond line"))).await;
        }
        ["both"] => {
            tell(to, FromGuest::Output(b"out\n".to_vec())).await;
            tell(to, FromGuest::ErrorOutput(b"err\n".to_vec())).await;
            tell(to, FromGuest::Exited(3)).await;
        }
        ["tty"] => {
            let tty = start.terminal.map(|t| format!("{} {}x{}\n", t.term, t.cols, t.rows));
            tell(to, FromGuest::Output(tty.unwrap_or_else(|| "none\n".into()).into_bytes())).await;
            tell(to, FromGuest::Exited(0)).await;
        }
        ["much", bytes] => {
            for _ in 0..bytes.parse::<usize>().unwrap() / 50_000 {
                tell(to, FromGuest::Output(vec![b'o'; 50_000])).await;
                tell(to, FromGuest::ErrorOutput(vec![b'e'; 50_000])).await;
            }
            tell(to, FromGuest::Exited(0)).await;
        }
        ["flood"] => while tell(to, FromGuest::Output(vec![b'y'; 60_000])).await {},
        ["hang-up"] => {}
        ["generous"] => {
            for _ in 0..3 {
                tell(to, FromGuest::Credit(u32::MAX)).await;
            }
            tell(to, FromGuest::Exited(0)).await;
        }
        ["signal"] => {
            tell(to, FromGuest::Output(b"waiting\n".to_vec())).await;
            while let Ok(Some(frame)) = ToGuest::read(from).await {
                if let ToGuest::Signal(number) = frame {
                    let name = banger_proto::signal::name(number).unwrap();
                    tell(to, FromGuest::Output(format!("{name}\n").into_bytes())).await;
                    tell(to, FromGuest::Exited(130)).await;
                }
            }
        }
        // A VM that ends under its command, which the daemon notes a little later; and a connection
        // that ends for another reason.
        ["vanish"] => {
            let fake = fake.clone();
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(300));
                for vm in &mut fake.state().vms {
                    vm.state = banger_policy::lifecycle::State::Stopped;
                    vm.runtime.last_error = "firecracker exited (status 0)\nmore".into();
                }
            });
        }
        ["cut"] => {}
        ["lost"] => {
            tell(to, FromGuest::Output(b"waiting\n".to_vec())).await;
            while let Ok(Some(frame)) = ToGuest::read(from).await {
                if let ToGuest::Signal(_) = frame {
                    return;
                }
            }
        }
        ["deaf"] => {
            tell(to, FromGuest::Output(b"waiting\n".to_vec())).await;
            while let Ok(Some(_)) = ToGuest::read(from).await {}
        }
        _ => {
            while let Ok(Some(frame)) = ToGuest::read(from).await {
                match frame {
                    ToGuest::Input(bytes) => {
                        let credit = u32::try_from(bytes.len()).unwrap();
                        tell(to, FromGuest::Output(bytes)).await;
                        tell(to, FromGuest::Credit(credit)).await
                    }
                    ToGuest::InputEnd => tell(to, FromGuest::Exited(0)).await,
                    _ => continue,
                };
            }
        }
    }
}

async fn import(
    fake: &Fake,
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    job: u64,
    refused: bool,
    result: impl Fn(u64) -> JobResult,
) {
    let mut all = Vec::new();
    while let Ok(Some(frame)) = read(from).await {
        match frame {
            Frame::Input(_) if refused => {
                let why =
                    ApiError::new(ErrorCode::BadRequest, "the file is not a tar archive").hint("make one with tar");
                fake.state().end_job(job, JobState::Failed(why));
                say(to, Frame::Failed("no more".into())).await;
                return;
            }
            Frame::Input(bytes) => all.extend(bytes),
            Frame::InputEnd => {
                let state = JobState::Done(result(all.len() as u64));
                fake.state().uploaded = all;
                fake.state().end_job(job, state);
                say(to, Frame::Exit(0)).await;
                return;
            }
            _ => {}
        }
    }
}
