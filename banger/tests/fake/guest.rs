//! The streams: what a guest, or an import, would say.

use super::{Fake, records};
use banger_proto::model::{ApiError, ErrorCode, JobResult, JobState};
use banger_proto::stream::{Frame, StreamRequest, read, write};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

pub(super) async fn serve(fake: Fake, stream: UnixStream, request: StreamRequest, job: Option<u64>) {
    let (mut from, mut to) = stream.into_split();
    match request {
        StreamRequest::Exec { command, terminal, env, working_dir, user, .. } => {
            fake.state().calls.extend(
                command.first().filter(|word| *word == "said").map(|_| format!("{working_dir:?} {user:?} {env:?}")),
            );
            let tty = terminal.map(|t| format!("{} {}x{}\n", t.term, t.cols, t.rows));
            if command.first().is_some_and(|word| word == banger_files::COMMAND) {
                return files(&fake, &mut from, &mut to, &command).await;
            }
            exec(&mut from, &mut to, &command, tty).await;
        }
        StreamRequest::Ssh { .. } => exec(&mut from, &mut to, &["cat".into()], None).await,
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
        StreamRequest::ImportKernel { name, .. } => {
            let name = name.unwrap_or_else(|| "6.12.41".into());
            let evil = fake.state().evil;
            let result = |bytes| {
                let kernel = records::kernel(&name, bytes);
                let version = format!("{}{evil}", kernel.version);
                JobResult::Kernel(Box::new(banger_proto::model::KernelRecord { version, ..kernel }))
            };
            import(&fake, &mut from, &mut to, job.unwrap_or_default(), false, result).await;
        }
    }
}

/// What the agent does itself, in a folder of this machine.
async fn files(fake: &Fake, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, command: &[String]) {
    let (mut input, mut output) = (Vec::new(), Vec::new());
    while let Ok(Some(Frame::Input(bytes))) = read(from).await {
        input.extend(bytes);
    }
    // The guest's `/root` is a folder of the test's.
    let home = fake.guest_home();
    let inside = |word: &String| match word.strip_prefix("/root") {
        Some(below) => format!("{}{below}", home.display()).into(),
        None => word.into(),
    };
    let words: Vec<std::ffi::OsString> = command.iter().skip(1).map(inside).collect();
    let ran = banger_files::program::run(&words, &home, &mut input.as_slice(), &mut output);
    for part in output.chunks(60_000) {
        say(to, Frame::Output(part.to_vec())).await;
    }
    if let Err(error) = &ran {
        say(to, Frame::ErrorOutput(error.to_string().into_bytes())).await;
    }
    say(to, Frame::Exit(u8::from(ran.is_err()))).await;
}

/// The client may be gone, which a test may want.
async fn say(to: &mut OwnedWriteHalf, frame: Frame) -> bool {
    write(to, &frame).await.is_ok()
}

async fn exec(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, command: &[String], tty: Option<String>) {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["exit", status] => {
            say(to, Frame::Exit(status.parse().unwrap())).await;
        }
        ["both"] => {
            say(to, Frame::Output(b"out\n".to_vec())).await;
            say(to, Frame::ErrorOutput(b"err\n".to_vec())).await;
            say(to, Frame::Exit(3)).await;
        }
        ["tty"] => {
            say(to, Frame::Output(tty.unwrap_or_else(|| "none\n".into()).into_bytes())).await;
            say(to, Frame::Exit(0)).await;
        }
        ["flood"] => while say(to, Frame::Output(vec![b'y'; 60_000])).await {},
        ["hang-up"] => {}
        ["signal"] => {
            say(to, Frame::Output(b"waiting\n".to_vec())).await;
            while let Ok(Some(frame)) = read(from).await {
                if let Frame::Signal(name) = frame {
                    say(to, Frame::Output(format!("{name}\n").into_bytes())).await;
                    say(to, Frame::Exit(130)).await;
                }
            }
        }
        ["deaf"] => {
            say(to, Frame::Output(b"waiting\n".to_vec())).await;
            while let Ok(Some(_)) = read(from).await {}
        }
        _ => {
            while let Ok(Some(frame)) = read(from).await {
                match frame {
                    Frame::Input(bytes) => say(to, Frame::Output(bytes)).await,
                    Frame::InputEnd => say(to, Frame::Exit(0)).await,
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
