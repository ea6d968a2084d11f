//! What can be typed. Values are texts here; they become checked types in `cmd`, with the daemon's
//! messages.

mod context;
mod image;
mod job;
mod kernel;
mod repository;
pub(crate) mod session;
mod system;
mod vm;

pub(crate) use context::Context;
pub(crate) use image::{Cache, Image, ImportImage, ListImages, PullImage, RegisterImage};
pub(crate) use job::Job;
pub(crate) use kernel::Kernel;
pub(crate) use repository::{ExportWorkspace, Mode, PrepareWorkspace, Repository, Workspace};
pub(crate) use system::System;
pub(crate) use vm::{Exec, Net, Publish, Run, Set, Spec, Switch, Vm, With};

use clap::{Args, Parser, Subcommand};

const AFTER_HELP: &str = "\
A VM is named by its name, its id, or the beginning of its id. Administrators name another user's as USER/NAME.
Sizes: a number with B, K, M or G, such as 512M or 8G; a bare number is MiB.

Environment:
  BANGER_HOST    the machine whose daemon is asked, as --host
  BANGER_SSH     the ssh for --host [default: /usr/bin/ssh]
  BANGER_SOCKET  the daemon's socket [default: /run/banger/bangerd.sock]
  HTTPS_PROXY    the way to registries; NO_PROXY: hosts that are reached without it
  SSL_CERT_FILE  certificate authorities of registries, instead of the host's
  DOCKER_CONFIG  the folder with your logins to registries [default: ~/.docker]
  NO_COLOR       no colour

Files:
  ~/.config/banger/registries.toml
                 mirrors of registries, and the size of the cache:
                   cache_size = \"10G\"
                   [mirrors]
                   \"docker.io\" = [\"https://mirror.example\"]
  ~/.config/banger/contexts.toml
                 what `banger context` keeps
  ~/.config/banger/catalogue.toml
                 your own short names of images, as in /usr/share/banger/catalogue.toml
  ~/.cache/banger
                 downloaded layers";

/// microVM sandboxes for every user of a host, without sudo
#[derive(Debug, Parser)]
#[command(name = "banger", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Ask the daemon of another machine, over ssh: `ssh://[USER@]MACHINE[:PORT]`, or a name of
    /// `banger context`
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make, start, use and remove VMs
    #[command(subcommand)]
    Vm(Box<Vm>),
    /// List your VMs (as `vm list`)
    Ps(List),
    /// Root file systems that VMs are made from
    #[command(subcommand)]
    Image(Image),
    /// Kernels that VMs boot
    #[command(subcommand)]
    Kernel(Kernel),
    /// Work that bangerd does for you
    #[command(subcommand)]
    Job(Job),
    /// banger on this host in numbers
    #[command(subcommand)]
    System(System),
    /// Show your limits that are counted, what you have of each, and where they come from
    Quota(List),
    /// Show what VMs that run use, again and again; q ends it
    Top(Top),
    /// Check that this host and this user can run VMs
    Doctor(Doctor),
    /// Write a file for a bug report: versions, checks, your VMs and jobs, the host and its
    /// configuration, and the journal if you may read it; what looks like a secret is crossed out
    Bug(Bug),
    /// Let ssh, scp, sftp, rsync and git reach VMs as VM.banger; print the configuration of ssh
    /// that does it
    SshConfig(SshConfig),
    /// Serve an agent by the Model Context Protocol, on standard input and output
    Mcp,
    /// Names for other machines, whose daemon `--host` asks
    #[command(subcommand)]
    Context(Context),
    /// Copy bytes between ssh and the daemon's socket; started by `--host` on the other machine
    #[command(hide = true)]
    Relay,
    /// Show the versions of this program, of bangerd and of Firecracker
    Version(Json),
    /// Print a completion script
    Completion {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Doctor {
    #[command(subcommand)]
    pub(crate) of: Option<DoctorOf>,
    /// List what belongs to no VM: processes, devices, files (for administrators)
    #[arg(long)]
    pub(crate) leaks: bool,
    /// And remove it for good, disks and images included
    #[arg(long, requires = "leaks")]
    pub(crate) fix: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DoctorOf {
    /// How far a VM has come, what its VMM said, and the end of its console
    Vm {
        /// The VM
        vm: String,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Bug {
    /// The file to write [default: banger-bug-TIME.tar.gz in this folder]
    #[arg(long, short)]
    pub(crate) output: Option<std::path::PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SshConfig {
    /// Write it to a file, and name that file at the top of ~/.ssh/config
    #[arg(long)]
    pub(crate) install: bool,
    /// Take that out again; the rest of ~/.ssh/config stays as it is
    #[arg(long, conflicts_with = "install")]
    pub(crate) uninstall: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Everyone's, for root and members of group banger-admin
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) list: List,
    /// Print it once, as without a terminal
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ssh_gets_its_arguments_as_they_are() {
        let cli = Cli::parse_from(["banger", "vm", "ssh", "demo", "-L", "1:x:2", "--", "ls", "-l"]);
        let is_whole =
            |vm: &Vm| matches!(vm, Vm::Ssh { arguments, .. } if *arguments == ["-L", "1:x:2", "--", "ls", "-l"]);
        assert!(matches!(&cli.command, Command::Vm(vm) if is_whole(vm)), "{cli:?}");
    }
}
