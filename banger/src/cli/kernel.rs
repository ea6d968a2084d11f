//! `banger kernel`.

use super::{Json, List};
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// Import a kernel: a distribution's file or packages with its modules, or a plain vmlinux
    Import {
        /// Such as /boot/vmlinuz-6.12.41-cloud-amd64, or all packages (.deb, .rpm) of one kernel
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
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
    /// Show one kernel, and the modules that it boots with
    Show {
        /// The kernel
        kernel: String,
        #[command(flatten)]
        json: Json,
    },
    /// Remove kernels that no VM uses
    #[command(visible_alias = "rm")]
    Delete {
        /// The kernels
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<String>,
    },
}
