//! A daemon that does nothing: the real service over the real transport, on a socket in a temporary
//! folder. It remembers what was asked of it, and its guests are a handful of words.

mod guest;
mod records;
mod service;

pub use records::vm;

use banger_policy::Digest;
use banger_proto::daemon::Daemon as _;
use banger_proto::guest::GuestConfig;
use banger_proto::model::{JobResult, JobState, JobView, RefusedList, VmRecord};
use banger_proto::stream::{StreamRequest, Ticket};
use banger_proto::transport::{self, DAEMON_LIMITS};
use banger_proto::wire::Purpose;
use futures::StreamExt as _;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use tarpc::server::{BaseChannel, Channel as _};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};

#[derive(Default)]
pub struct State {
    pub vms: Vec<VmRecord>,
    /// In the order in which they came.
    pub calls: Vec<String>,
    /// `create_vm`, `delete_vm` and `start_vm` do not end before they are cancelled.
    pub slow: bool,
    /// So many looks at a job are refused: the user asks too often.
    pub too_often: u32,
    /// No job can be looked at.
    pub blind: bool,
    /// So many looks at a job end their connection.
    pub cuts: u32,
    /// Connections for calls that are open.
    pub connections: usize,
    /// Commands of the guest's that carry files do not end.
    pub stuck: bool,
    /// The user has none, and none is shared.
    pub no_kernel: bool,
    /// Stands in every text that is free: what a hostile daemon, guest or user would put there.
    pub evil: &'static str,
    /// Bytes that the last upload brought.
    pub uploaded: Vec<u8>,
    /// Images that it has: name, source and manifest.
    pub pulled: Vec<(String, String, Digest)>,
    /// What was last asked for, and not there.
    pub asked: Option<(String, String, Digest)>,
    /// Whose new VMs are; the caller's without it.
    pub owner: Option<u32>,
    /// The real agent behind the SSH streams, with its host key's public half and its table of
    /// users.
    pub agent: Option<(GuestConfig, String, PathBuf)>,
    /// What the network modes of all VMs have refused.
    pub refused: RefusedList,
    pub jobs: BTreeMap<u64, JobView>,
    streams: Vec<(Ticket, StreamRequest, Option<u64>)>,
}

impl State {
    fn text(&self, text: &str) -> String {
        format!("{text}{}", self.evil)
    }

    fn job(&mut self, title: &str, state: JobState) -> u64 {
        let id = self.jobs.len() as u64 + 1;
        let mut job = records::job(id, &self.text(title), state);
        for stage in &mut job.stages {
            (stage.name, stage.detail) = (self.text(&stage.name), self.text(&stage.detail));
        }
        if !self.evil.is_empty() {
            job.warnings.push(self.text("look out"));
        }
        self.jobs.insert(id, job);
        id
    }

    fn end_job(&mut self, id: u64, state: JobState) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.state = state;
            job.seq += 1;
        }
    }
}

#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    folder: Arc<tempfile::TempDir>,
    /// Ends the connections for calls.
    cut: Arc<tokio::sync::Notify>,
}

impl Fake {
    /// Listens until the test ends.
    pub fn start(vms: Vec<VmRecord>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = State { vms, ..State::default() };
        let fake = Self { state: Arc::new(Mutex::new(state)), folder: Arc::new(folder), cut: Arc::default() };
        let (ready, listening) = std::sync::mpsc::channel();
        let serving = fake.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(serving.socket()).unwrap();
                ready.send(()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serving.clone().connection(stream));
                }
            });
        });
        listening.recv().unwrap();
        fake
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("bangerd.sock")
    }

    /// Where the guests' files are.
    pub fn guest_home(&self) -> PathBuf {
        let home = self.folder.path().join("guest");
        std::fs::create_dir_all(&home).unwrap();
        home
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The real program, with this daemon and a home of its own.
    pub fn banger(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("BANGER_SOCKET", self.socket()).env("HOME", self.folder.path()).env_remove("XDG_DATA_HOME");
        command
    }

    async fn connection(self, mut stream: UnixStream) {
        let Ok(hello) = transport::accept(&mut stream).await else { return };
        match hello.purpose {
            Purpose::Calls => {
                self.state().connections += 1;
                let cut = Arc::clone(&self.cut);
                let channel = BaseChannel::with_defaults(transport::server(stream, DAEMON_LIMITS));
                tokio::select! {
                    () = channel.execute(self.clone().serve()).for_each_concurrent(None, |call| call) => {}
                    () = cut.notified() => {}
                }
                self.state().connections -= 1;
            }
            Purpose::Stream => {
                let mut ticket = [0; 32];
                stream.read_exact(&mut ticket).await.unwrap();
                let found = {
                    let mut state = self.state();
                    let at = state.streams.iter().position(|(known, ..)| known.0 == ticket);
                    at.map(|at| state.streams.remove(at))
                };
                if let Some((_, request, job)) = found {
                    guest::serve(self, stream, request, job).await;
                }
            }
        }
    }
}

fn done(vm: &VmRecord) -> JobState {
    JobState::Done(JobResult::Vm(Box::new(vm.clone())))
}
