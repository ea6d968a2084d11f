//! A helper that serves the real kernel, and a client that it takes for the daemon.
#![allow(clippy::allow_attributes, clippy::unwrap_used, reason = "shared by test programs that each use a part")]

use super::common::{DAEMON, Folders};
use banger_priv::proc::Processes;
use banger_proto::helper::HelperClient;
use banger_proto::transport::{self, HELPER_LIMITS};
use banger_proto::wire::Purpose;
use futures::FutureExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// A helper that serves; ended with the value.
pub(crate) struct Served {
    program: Option<Child>,
    socket: PathBuf,
}

impl Served {
    /// Starts it in these folders, with `state` as its own, and in the namespaces of the calling
    /// thread.
    ///
    /// `BANGER_PRIV_PROGRAM` names a release build of the program, which is confined then as it is
    /// under systemd but for the unit. Without it, this process serves, unconfined. (A debug build
    /// of the program cannot: it asks by fcntl(2) whether each descriptor that it closes is open,
    /// and its filter kills it.)
    pub(crate) async fn start(folders: &Folders) -> Self {
        let socket = folders.path("socket");
        let Some(program) = std::env::var_os("BANGER_PRIV_PROGRAM") else {
            let machine = folders.start().await;
            machine.watch_all();
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let processes = Rc::new(Processes::open(None).unwrap());
            tokio::task::spawn_local(banger_priv::serve::serve(listener, machine, processes, DAEMON));
            return Self { program: None, socket };
        };
        let mut command = Command::new(program);
        command.args(["--no-cgroup-check", "--boot-id", "this-boot", "--config", "/nowhere"]);
        command.arg("--daemon-user").arg(DAEMON.to_string());
        command.arg("--images").arg(folders.path("images")).arg("--state").arg(folders.path("state"));
        command.arg("--runtime").arg(folders.path("run")).arg("--socket").arg(&socket);
        let mut program = command.spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(program.try_wait().unwrap().is_none(), "the helper does not start");
            assert!(Instant::now() < end, "the helper does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { program: Some(program), socket }
    }

    /// A connection of the daemon's user.
    pub(crate) async fn client(&self) -> HelperClient {
        // The group is the thread's own.
        std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let stream = as_daemon(|| std::os::unix::net::UnixStream::connect(&self.socket).unwrap());
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        transport::connect(&mut stream, Purpose::Calls).await.unwrap();
        let wire = transport::client(stream, HELPER_LIMITS);
        let client = HelperClient::new(tarpc::client::Config::default(), wire);
        tokio::task::spawn_local(client.dispatch.map(drop));
        client.client
    }

    /// Ends it, as by SIGKILL.
    fn end(&mut self) {
        if let Some(mut program) = self.program.take() {
            drop(program.kill());
            drop(program.wait());
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

/// Does it with the daemon's user as the thread's effective one, which is what a socket's peer is
/// told.
fn as_daemon<T>(act: impl FnOnce() -> T) -> T {
    // By system call, so that it is this thread's: libc's functions change all threads of the
    // process.
    let set = |call: libc::c_long, id: u32| {
        // SAFETY: the arguments are numbers.
        let answer = unsafe { libc::syscall(call, u32::MAX, id, u32::MAX) };
        assert_eq!(answer, 0, "setres[ug]id to {id}");
    };
    set(libc::SYS_setresuid, DAEMON);
    let done = act();
    set(libc::SYS_setresuid, 0);
    done
}
