//! What can be typed. Values are texts here; they become checked types in `cmd`, with the daemon's messages.

mod repository;

pub(crate) use repository::{ExportWorkspace, Mode, PrepareWorkspace, Repository, Workspace};

use banger_policy::vm::RestartPolicy;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
A VM is named by its name, its id, or the beginning of its id. Administrators name another user's as USER/NAME.
Sizes: a number with B, K, M or G, such as 512M or 8G; a bare number is MiB.

Environment:
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
  ~/.cache/banger
                 downloaded layers";

/// microVM sandboxes for every user of a host, without sudo
#[derive(Debug, Parser)]
#[command(name = "banger", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Cli {
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
    /// Check that this host and this user can run VMs
    Doctor(Doctor),
    /// Show the versions of this program, of bangerd and of Firecracker
    Version(Json),
    /// Print a completion script
    Completion {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
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
pub(crate) enum Vm {
    /// Make a VM, start it, and open a shell or run a command in it
    Run(Run),
    /// Make a VM without starting it
    Create(Spec),
    /// Start VMs
    Start(Names),
    /// Shut VMs down cleanly
    Stop(Stop),
    /// Stop VMs and start them again
    Restart(Names),
    /// Change VMs: size while they are stopped, NAT and restart policy at any time
    Set(Set),
    /// End VMs without asking their guests
    Kill(Kill),
    /// Give VMs that do not run to another user (for administrators)
    Chown {
        /// The new owner's login name
        user: String,
        #[command(flatten)]
        names: Names,
    },
    /// Stop VMs and remove them with their disks
    #[command(visible_alias = "rm")]
    Delete(Names),
    /// List your VMs
    #[command(visible_alias = "ls")]
    List(List),
    /// Show one VM
    Show {
        /// The VM
        vm: String,
        #[command(flatten)]
        json: Json,
    },
    /// Print the console
    Logs {
        /// The VM
        vm: String,
        /// Go on with what is written from now on
        #[arg(short, long)]
        follow: bool,
        /// Only the last N lines
        #[arg(short = 'n', long, value_name = "N")]
        tail: Option<u32>,
    },
    /// Run a command in a VM, or a login shell
    Exec(Exec),
    /// Copy files and folders to a VM, from a VM, or between VMs
    Cp {
        /// VM:PATH, a path of this host, or - for a tar stream on standard input
        from: String,
        /// VM:PATH, a path of this host, or - for a tar stream to standard output
        to: String,
    },
    /// A repository of yours in a VM, and what was done there back to you
    #[command(subcommand)]
    Workspace(Workspace),
    /// Log in with ssh; what follows the name is ssh's: options, then a command
    Ssh {
        /// The VM
        vm: String,
        /// Options of ssh and a command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "SSH ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Bytes to and from a VM's ssh server: what `ssh` is given as its ProxyCommand
    #[command(hide = true)]
    Proxy {
        /// The VM
        vm: String,
    },
}

/// What a new VM is to be.
#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Its name [default: generated]
    // A value may begin with a hyphen here and below: then our own sentence says what is wrong with it.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) name: Option<String>,
    /// The image; one that is not here is pulled from its registry [default: the configured one, or your only one]
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// The kernel [default: the newest that is shared, or your newest]
    #[arg(long)]
    pub(crate) kernel: Option<String>,
    /// vCPUs [default: configured, or a quarter of the host's, at most 4]
    #[arg(long, value_name = "N")]
    pub(crate) vcpu: Option<u32>,
    /// Memory [default: configured, or an eighth of the host's, at most 8G]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// The disk on /root [default: configured, or 8G]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) disk_size: Option<String>,
    /// The root disk, a multiple of 128M [default: configured, or 8G]
    #[arg(long, visible_alias = "overlay-size", value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) root_size: Option<String>,
    /// Let the VM reach out through the host's network
    #[arg(long)]
    pub(crate) nat: bool,
    /// After a reboot of the host, start the VM again if it ran: no or always
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub(crate) restart: RestartPolicy,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) spec: Spec,
    /// Remove the VM at the end, whatever happens
    #[arg(long)]
    pub(crate) rm: bool,
    /// Keep a VM that did not get ready, to look at its console
    #[arg(long)]
    pub(crate) keep_on_error: bool,
    /// Only start the VM; print its name
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) with: With,
    #[command(flatten)]
    pub(crate) repository: Repository,
    /// A git repository: it is prepared in the VM, and the shell or command starts there
    pub(crate) path: Option<PathBuf>,
    /// The command; its exit status is ours [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// How a command is run in the VM, where that is not the image's to say.
#[derive(Debug, Args)]
pub(crate) struct With {
    /// Set a variable; with a NAME alone, to its value here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// The folder to start in [default: the workspace, else the image's, else the user's home]
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) workdir: Option<String>,
    /// A user of the VM, by name or number, with or without a group: app, 1000:1000 [default: the image's, or root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The VM
    pub(crate) vm: String,
    /// Give the command a terminal [default: when standard input and output are terminals]
    #[arg(short = 't', long, overrides_with = "no_tty")]
    pub(crate) tty: bool,
    /// Give the command no terminal
    #[arg(short = 'T', long)]
    pub(crate) no_tty: bool,
    /// Do not read standard input
    #[arg(short = 'n', long, conflicts_with = "tty")]
    pub(crate) no_stdin: bool,
    /// When HEAD of the workspace's repository has moved here, prepare it again before
    #[arg(long)]
    pub(crate) auto_prepare: bool,
    #[command(flatten)]
    pub(crate) with: With,
    /// The command; its exit status is ours [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// The VMs
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// The VMs
    #[arg(required_unless_present = "everyone", conflicts_with = "everyone", value_name = "VM")]
    pub(crate) vms: Vec<String>,
    /// Every running VM of every user, for root and members of group banger-admin
    #[arg(long)]
    pub(crate) everyone: bool,
    /// The host goes down: what is stopped now and has --restart always is started with the host again
    #[arg(long, requires = "everyone", hide = true)]
    pub(crate) host_down: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").args(["vcpu", "memory", "root_size", "disk_size", "nat", "restart"]).required(true).multiple(true)))]
pub(crate) struct Set {
    #[command(flatten)]
    pub(crate) names: Names,
    /// vCPUs, from the next start on
    #[arg(long, value_name = "N")]
    pub(crate) vcpu: Option<u32>,
    /// Memory, from the next start on
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// The root disk, which only grows, from the next start on
    #[arg(long, visible_alias = "overlay-size", value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) root_size: Option<String>,
    /// The disk on /root, which only grows, from the next start on
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) disk_size: Option<String>,
    /// Let the VM reach out through the host's network, or not: on or off
    #[arg(long, value_name = "SWITCH")]
    pub(crate) nat: Option<Switch>,
    /// After a reboot of the host, start the VM again if it ran: no or always
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<RestartPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    pub(crate) names: Names,
    /// KILL, TERM or INT
    #[arg(long, short, default_value = "KILL")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Everyone's, for root and members of group banger-admin
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Get an image from a registry, with your own network, logins (docker's) and certificate authorities
    Pull(PullImage),
    /// Make an image of a root file system: a tar, an OCI archive, the folder of an OCI layout, or what `docker save` writes
    Import(ImportImage),
    /// Let everybody use images, or only their owners again (for administrators)
    #[command(group(ArgGroup::new("whom").args(["shared", "private"]).required(true)))]
    Promote {
        /// Everybody may use them
        #[arg(long)]
        shared: bool,
        /// Only their owners may
        #[arg(long)]
        private: bool,
        /// The images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// List your images and those that are shared
    #[command(visible_alias = "ls")]
    List(ListImages),
    /// Show one image, and how commands run in it
    Show {
        /// The image
        image: String,
        #[command(flatten)]
        json: Json,
    },
    /// Remove images that no VM uses
    #[command(visible_alias = "rm")]
    Delete {
        /// The images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// What pulls keep on your own disk
    #[command(subcommand)]
    Cache(Cache),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cache {
    /// Remove all downloaded layers, those of interrupted downloads too
    Prune {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PullImage {
    /// Such as debian:13 (of docker.io), ghcr.io/acme/tool:v1, localhost:5000/tool
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// The image's name [default: REF as it is]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The most that it may hold; it is stored as small as its contents allow [default: 8G]
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) size: Option<String>,
    /// OS/ARCH[/VARIANT], when the image is made for several [default: that of this host]
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// For everybody (for administrators)
    #[arg(long)]
    pub(crate) shared: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListImages {
    #[command(flatten)]
    pub(crate) list: List,
    /// The short names of the catalogue instead, and what they stand for
    #[arg(long, conflicts_with = "all")]
    pub(crate) available: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportImage {
    /// The file (plain, or compressed with gzip, zstd, xz, bzip2 or lz4), the folder, or - for standard input
    pub(crate) path: PathBuf,
    /// The image's name
    #[arg(long)]
    pub(crate) name: String,
    /// The most that it may hold; it is stored as small as its contents allow [default: 8G]
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) size: Option<String>,
    /// Which image, when the archive holds several: its name or tag there
    #[arg(long = "ref", value_name = "NAME")]
    pub(crate) reference: Option<String>,
    /// For everybody (for administrators)
    #[arg(long)]
    pub(crate) shared: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// Import a distribution's kernel with the modules that a guest needs, or a plain vmlinux
    Import {
        /// Such as /boot/vmlinuz-6.12.41-cloud-amd64
        path: PathBuf,
        /// The folder with modules.dep in it [default: found by the kernel's release]
        #[arg(long, value_name = "FOLDER")]
        modules: Option<PathBuf>,
        /// The kernel's name [default: its release]
        #[arg(long)]
        name: Option<String>,
        /// For everybody (for administrators)
        #[arg(long)]
        shared: bool,
    },
    /// Let everybody use kernels (for administrators)
    Share {
        /// Only their owners again
        #[arg(long)]
        off: bool,
        /// The kernels
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<String>,
    },
    /// List your kernels and those that are shared
    #[command(visible_alias = "ls")]
    List(List),
    /// Remove kernels that no VM uses
    #[command(visible_alias = "rm")]
    Delete {
        /// The kernels
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// List your jobs, newest first
    #[command(visible_alias = "ls")]
    List(Json),
    /// Undo jobs that are running
    Cancel {
        /// Such as job-7
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<String>,
    },
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
