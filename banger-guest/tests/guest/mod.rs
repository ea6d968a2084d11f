//! The agent's SSH server on a port of the loopback, and the stock OpenSSH client.
#![allow(dead_code, reason = "each test program uses a part of it")]

use banger_guest::agent::Server;
use banger_policy::ImageConfig;
use banger_proto::command::{Answer, FromGuest, Opening, Purpose, Start, ToGuest};
use banger_proto::guest::GuestConfig;
use banger_proto::session::{self, Request};
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What runs as a session's process.
const PROGRAM: &str = env!("CARGO_BIN_EXE_banger-guest");

/// A command that has ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) out: String,
    pub(super) err: String,
    pub(super) status: u8,
}

pub(super) struct Guest {
    pub(super) folder: TempDir,
    port: u16,
    commands: u16,
}

impl Guest {
    /// A server in a thread of its own, with one user key.
    pub(super) fn start() -> Option<Self> {
        Self::of_image(ImageConfig::default(), "")
    }

    /// The same with what an image's configuration says, and users beside root.
    pub(super) fn of_image(image: ImageConfig, users: &str) -> Option<Self> {
        if Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_err() {
            eprintln!("skipped: no ssh client on this machine");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["host", "user", "other"] {
            let path = folder.path().join(name);
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path);
            assert!(keygen.status().unwrap().success());
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let config = GuestConfig {
            hostname: "test".into(),
            address: Ipv4Addr::LOCALHOST,
            gateway: Ipv4Addr::LOCALHOST,
            dns: Ipv4Addr::LOCALHOST,
            authorized_keys: vec![read("user.pub")],
            host_key: read("host"),
            control_port: 0,
            token: banger_proto::guest::BootToken::new([1; 32]),
            root_device: String::new(),
            work_device: None,
            modules_device: None,
            reads: false,
            image,
        };
        let passwd = folder.path().join("passwd");
        fs::write(&passwd, format!("root:x:0:0::{}:/bin/bash\n{users}", folder.path().display())).unwrap();
        let sessions = folder.path().to_owned();
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let server = Arc::new(Server::with_sessions_below(&config, passwd, &sessions, PROGRAM.into()).unwrap());
                let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                let commands = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                let port = |listener: &tokio::net::TcpListener| listener.local_addr().unwrap().port();
                send.send((port(&listener), port(&commands))).unwrap();
                loop {
                    let server = Arc::clone(&server);
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (stream, _) = accepted.unwrap();
                            tokio::spawn(async move { server.serve(stream).await });
                        }
                        accepted = commands.accept() => {
                            let (stream, _) = accepted.unwrap();
                            tokio::spawn(async move { server.serve_command(stream).await });
                        }
                    }
                }
            });
        });
        let (port, commands) = receive.recv().unwrap();
        let known = format!("[127.0.0.1]:{port} {}", read("host.pub"));
        fs::write(folder.path().join("known_hosts"), known).unwrap();
        Some(Self { folder, port, commands })
    }

    async fn open(&self, purpose: Purpose) -> tokio::net::TcpStream {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.commands)).await.unwrap();
        let opening = Opening { purpose, token: banger_proto::guest::BootToken::new([1; 32]) };
        stream.write_all(&opening.encode()).await.unwrap();
        assert_eq!(Answer::read(&mut stream).await.unwrap(), Answer::Open);
        stream
    }

    /// Runs a command as `vm exec` does it; a command that is not started says why as standard
    /// error.
    pub(super) fn exec(&self, words: &[&str]) -> Ended {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut stream = self.open(Purpose::Command).await;
            let words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
            ToGuest::Start(Box::new(Start { words, ..Start::default() })).write(&mut stream).await.unwrap();
            ToGuest::InputEnd.write(&mut stream).await.unwrap();
            let mut ended = Ended::default();
            loop {
                match FromGuest::read(&mut stream).await.unwrap().unwrap() {
                    FromGuest::Output(bytes) => ended.out += &String::from_utf8(bytes).unwrap(),
                    FromGuest::ErrorOutput(bytes) => ended.err += &String::from_utf8(bytes).unwrap(),
                    FromGuest::Exited(status) => return Ended { status, ..ended },
                    FromGuest::Refused(status, err) => return Ended { status, err, ..ended },
                    _ => {}
                }
            }
        })
    }

    /// Asks about sessions; all answers until the last one.
    pub(super) fn ask(&self, request: &Request) -> Vec<session::Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut stream = self.open(Purpose::Session).await;
            request.write(&mut stream).await.unwrap();
            let mut answers = Vec::new();
            loop {
                answers.push(session::Answer::read(&mut stream).await.unwrap().unwrap());
                if !matches!(answers.last(), Some(session::Answer::Record(_) | session::Answer::Gap(_))) {
                    return answers;
                }
            }
        })
    }

    /// Replaces the keys of users, as the daemon does it.
    pub(super) fn set_keys(&self, list: &str) -> Result<(), ()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut stream = self.open(Purpose::Keys).await;
            stream.write_all(&u32::try_from(list.len()).unwrap().to_be_bytes()).await.unwrap();
            stream.write_all(list.as_bytes()).await.unwrap();
            if stream.read_u8().await.unwrap() == 0 { Ok(()) } else { Err(()) }
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn ssh_as(&self, user: &str, key: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"]);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", self.path("known_hosts").display()));
        ssh.arg("-i").arg(self.path(key)).arg("-p").arg(self.port.to_string());
        ssh.args(["-l", user]);
        ssh.env_remove("SSH_AUTH_SOCK");
        ssh
    }

    /// A command as the user; options come before the host.
    pub(super) fn ssh(&self, options: &[&str], command: &[&str]) -> Command {
        let mut ssh = self.ssh_as("root", "user");
        ssh.args(options).arg("127.0.0.1").args(command).stdin(Stdio::null());
        ssh
    }
}

pub(super) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
