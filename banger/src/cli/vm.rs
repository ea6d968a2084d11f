//! `banger vm`.

use super::repository::{Repository, Workspace};
use super::session::Session;
use super::{Json, List};
use banger_policy::limits::{MAX_STOP_SECONDS, MIN_STOP_SECONDS};
use banger_policy::reach::Mode;
use banger_policy::vm::RestartPolicy;
use clap::builder::RangedI64ValueParser;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

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
    /// Change VMs: size while they are stopped, network and restart policy at any time
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
    /// Remove those of your VMs that do not run, with their disks
    Prune {
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
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
    /// Show what a VM uses, as the host and as the guest sees it
    Stats {
        /// The VM
        vm: String,
        /// Go on, every two seconds
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        json: Json,
    },
    /// List who listens on the network in a VM, and which ports are published
    Ports {
        /// The VM
        vm: String,
        #[command(flatten)]
        json: Json,
    },
    /// List the destinations that a VM's network mode has refused
    Refused {
        /// The VM
        vm: String,
        #[command(flatten)]
        json: Json,
    },
    /// Publish ports of a VM on this host, for you and root only
    Publish(Publish),
    /// Take published ports back
    Unpublish {
        /// The VM
        vm: String,
        /// The ports on this host, each PORT or ADDRESS:PORT, and /udp for UDP
        #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "PORT")]
        ports: Vec<String>,
        /// All of the VM's
        #[arg(long)]
        all: bool,
    },
    /// Check a VM layer by layer; the exit status is 1 if a layer is unhealthy
    Health {
        /// The VM
        vm: String,
        #[command(flatten)]
        json: Json,
    },
    /// Run a command in a VM, or a login shell
    Exec(Exec),
    /// Commands in the background of a VM, with a name, a log and a kept exit status
    #[command(subcommand)]
    Session(Session),
    /// Copy files and folders to a VM, from a VM, or between VMs
    Cp {
        /// VM:PATH, a path of this host, or - for a tar stream on standard input
        from: OsString,
        /// VM:PATH, a path of this host, or - for a tar stream to standard output
        to: OsString,
    },
    /// A repository of yours in a VM, and what was done there back to you
    #[command(subcommand)]
    Workspace(Workspace),
    /// Log in with ssh, without your ~/.ssh/config; what follows the VM is passed to ssh: options,
    /// then a command
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
        /// The VM, or VM.banger
        vm: String,
    },
    /// The host key of a VM: what `ssh` is given as its KnownHostsCommand
    #[command(hide = true)]
    HostKey {
        /// The VM, or VM.banger
        vm: String,
    },
}

/// What a new VM is to be.
#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Its name [default: generated]
    // A value may begin with a hyphen here and below: then our own sentence says what is wrong with
    // it.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) name: Option<String>,
    /// The image; one that is not here is pulled from its registry [default: the configured one, or
    /// your only one]
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
    /// Let the VM reach out through the host's network: short for --net nat
    #[arg(long, conflicts_with_all = ["net", "allow"])]
    pub(crate) nat: bool,
    #[command(flatten)]
    pub(crate) net: Net,
    /// After a reboot of the host, start the VM again if it ran: no or always
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub(crate) restart: RestartPolicy,
    /// Publish a port of the VM on this host, as `vm publish` does; may be given several times
    #[arg(short, long, value_name = MAPPING)]
    pub(crate) publish: Vec<String>,
    /// Whoever reaches the published ports may use them, not only you and root
    #[arg(long, requires = "publish")]
    pub(crate) public: bool,
    /// Tell the VM's programs who connects to published ports, by the PROXY protocol (version 2)
    #[arg(long, requires = "publish")]
    pub(crate) proxy_protocol: bool,
}

/// How a port is written.
const MAPPING: &str = "[[ADDRESS:]PORT:]PORT[/udp]";

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The VM
    pub(crate) vm: String,
    /// This host's port, then the VM's: 8080:80; without the first, or with 0, a free one is chosen
    /// and printed. The address is 127.0.0.1 when none is given
    #[arg(required = true, value_name = MAPPING)]
    pub(crate) ports: Vec<String>,
    /// Whoever reaches the ports may use them, not only you and root
    #[arg(long)]
    pub(crate) public: bool,
    /// Tell the VM's programs who connects, by the PROXY protocol (version 2)
    #[arg(long)]
    pub(crate) proxy_protocol: bool,
    #[command(flatten)]
    pub(crate) json: Json,
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
    /// Only start the VM, with the command as its session `app`; print its name
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Run the image's Entrypoint and Cmd as the session `app`; COMMAND takes the place of Cmd
    #[arg(long)]
    pub(crate) entrypoint: bool,
    /// Say what happens as JSON on standard output, an object a line: stages, output, exit, errors
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) json: bool,
    /// Do not read standard input
    #[arg(short = 'n', long)]
    pub(crate) no_stdin: bool,
    #[command(flatten)]
    pub(crate) with: With,
    #[command(flatten)]
    pub(crate) repository: Repository,
    /// A git repository: it is prepared in the VM, and the shell or command starts there
    pub(crate) path: Option<PathBuf>,
    /// The command; banger exits with its status [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// How a command is run in the VM, where that is not the image's to say.
#[derive(Debug, Args)]
pub(crate) struct With {
    /// Set a variable; with a NAME alone, to its value here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// The folder to start in [default: the workspace, else the image's, else the user's home]
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) workdir: Option<String>,
    /// A user of the VM, by name or number, with or without a group: app, 1000:1000 [default: the
    /// image's, or root]
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
    /// Say what happens as JSON on standard output, an object a line: output, exit, errors
    #[arg(long, conflicts_with = "tty")]
    pub(crate) json: bool,
    /// If HEAD of the repository on this host has moved, prepare the workspace again before the
    /// command runs
    #[arg(long)]
    pub(crate) auto_prepare: bool,
    #[command(flatten)]
    pub(crate) with: With,
    /// The command; banger exits with its status [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// The VMs
    #[arg(required = true, value_name = "VM")]
    pub(crate) vms: Vec<String>,
}

fn seconds() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(i64::from(MIN_STOP_SECONDS)..=i64::from(MAX_STOP_SECONDS))
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// The VMs
    #[arg(required_unless_present = "everyone", conflicts_with = "everyone", value_name = "VM")]
    pub(crate) vms: Vec<String>,
    /// How long the guests may take before they are ended, 1 to 3600 seconds [default: 90]
    #[arg(long, value_name = "SECONDS", value_parser = seconds())]
    pub(crate) timeout: Option<u32>,
    /// Every running VM of every user, for root and members of group banger-admin
    #[arg(long)]
    pub(crate) everyone: bool,
    /// The host goes down: what is stopped now and has --restart always is started with the host
    /// again
    #[arg(long, requires = "everyone", conflicts_with = "timeout", hide = true)]
    pub(crate) host_down: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").args(["vcpu", "memory", "root_size", "disk_size", "nat", "net", "allow", "network", "restart"]).required(true).multiple(true)))]
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
    /// Let the VM reach out through the host's network, or not: on or off; short for --net nat and
    /// --net none
    #[arg(long, value_name = "SWITCH", conflicts_with_all = ["net", "allow"])]
    pub(crate) nat: Option<Switch>,
    #[command(flatten)]
    pub(crate) net: Net,
    /// After a reboot of the host, start the VM again if it ran: no or always
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<RestartPolicy>,
}

/// How far a VM's guest reaches.
#[derive(Debug, Args)]
pub(crate) struct Net {
    /// How far the VM reaches: none, public (the internet and no private network), nat (wherever
    /// the host routes to) or allow (what --allow says) [default: configured, or none]
    #[arg(long, value_name = "MODE")]
    pub(crate) net: Option<Mode>,
    /// Let the VM reach this and nothing else: ADDRESS[/PREFIX] or a name, perhaps with :PORT,
    /// :PORT/tcp or :PORT/udp; can be given several times and says the whole list
    #[arg(long, value_name = "DESTINATION", allow_hyphen_values = true)]
    pub(crate) allow: Vec<String>,
    /// Put the VM into a private network of yours, in which your VMs reach each other; none: into
    /// no network
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub(crate) network: Option<String>,
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
