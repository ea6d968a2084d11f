//! The host inventory: every kernel object, process and file that banger could leave behind, as
//! names and details that two moments can be compared by.
//!
//! Taken as root inside the host VM by the scenario runner before and after each scenario, and by
//! `banger-suite inventory`. It only looks: nothing here may change the host, open a database in
//! place or load a module.

mod block;
mod database;
mod diff;
mod files;
mod firewall;
mod network;
mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use database::DATABASE;
pub use diff::{Allow, Change, Difference, What, leaks};

/// One sort of thing that can leak. Every sort has a planted leak in the suite `inventory-control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Network interface, with its kind, owner and alias.
    Link,
    /// Address of an interface.
    Address,
    /// Route of any table.
    Route,
    /// Routing policy rule.
    Rule,
    /// Loop device with a backing file.
    Loop,
    /// Device-mapper table.
    Dm,
    /// Table, chain, rule, set or set element of nf_tables.
    Nft,
    /// Rule or policy as the iptables programs see it, nft and legacy.
    Iptables,
    /// User-space process.
    Process,
    /// Control group.
    Cgroup,
    /// Mount point.
    Mount,
    /// Listening socket: unix, TCP, UDP, vsock.
    Socket,
    /// File or folder below banger's state folders, the users' homes and the temporary folders.
    File,
    /// Row of the daemon's database.
    Row,
    /// Row of the helper's ledger.
    Ledger,
}

impl Kind {
    /// All sorts, in the order of reports.
    pub const ALL: [Self; 15] = [
        Self::Link,
        Self::Address,
        Self::Route,
        Self::Rule,
        Self::Loop,
        Self::Dm,
        Self::Nft,
        Self::Iptables,
        Self::Process,
        Self::Cgroup,
        Self::Mount,
        Self::Socket,
        Self::File,
        Self::Row,
        Self::Ledger,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Loop => "loop",
            Self::Dm => "dm",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::Process => "process",
            Self::Cgroup => "cgroup",
            Self::Mount => "mount",
            Self::Socket => "socket",
            Self::File => "file",
            Self::Row => "row",
            Self::Ledger => "ledger",
        };
        f.pad(name)
    }
}

/// What is there at one moment: per sort, name to detail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    items: BTreeMap<Kind, BTreeMap<String, String>>,
}

impl Inventory {
    /// Looks at the whole host, when udev has done what it had to: it gives a new link another
    /// address in its own time.
    pub fn take() -> Result<Self> {
        if Path::new("/run/udev/control").exists() {
            // That there is still something to do after this time shows in what follows.
            drop(Command::new("udevadm").args(["settle", "--timeout=10"]).stdin(Stdio::null()).status());
        }
        let mut inventory = Self::default();
        network::collect(&mut inventory).context("inventory of the network")?;
        block::collect(&mut inventory).context("inventory of block devices")?;
        firewall::collect(&mut inventory).context("inventory of the firewall")?;
        files::collect(&mut inventory).context("inventory of mounts, sockets and files")?;
        database::collect(&mut inventory).context("inventory of the database and ledger")?;
        // Last: by now no program that the inventory itself has run is alive.
        process::collect(&mut inventory).context("inventory of processes and cgroups")?;
        Ok(inventory)
    }

    /// Only the sorts that the helper makes: links, routes, loops, dm devices, firewall, ledger. In
    /// less than half the time.
    pub fn take_of_the_helpers() -> Result<Self> {
        let mut inventory = Self::default();
        network::collect(&mut inventory).context("inventory of the network")?;
        block::collect(&mut inventory).context("inventory of block devices")?;
        firewall::collect(&mut inventory).context("inventory of the firewall")?;
        database::collect(&mut inventory).context("inventory of the database and ledger")?;
        Ok(inventory)
    }

    /// What can be seen without running a program: links and block devices by their names,
    /// processes, cgroups, mounts, sockets, files, the ledger. In a small part of the time; it
    /// compares with its like only.
    pub fn take_quickly() -> Result<Self> {
        let mut inventory = Self::default();
        network::names(&mut inventory).context("inventory of links")?;
        block::names(&mut inventory).context("inventory of block devices")?;
        files::collect_quickly(&mut inventory).context("inventory of mounts, sockets and files")?;
        database::ledger(Path::new(database::LEDGER), &mut inventory).context("inventory of the ledger")?;
        process::collect(&mut inventory).context("inventory of processes and cgroups")?;
        Ok(inventory)
    }

    /// Notes one thing. Two things of the same name are both kept, the second as `name #2`.
    pub fn add(&mut self, kind: Kind, name: impl Into<String>, detail: impl Into<String>) {
        let names = self.items.entry(kind).or_default();
        let name = name.into();
        let mut unique = name.clone();
        for count in 2_u32.. {
            if !names.contains_key(&unique) {
                break;
            }
            unique = format!("{name} #{count}");
        }
        names.insert(unique, detail.into());
    }

    /// Name and detail of everything of one sort.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = (&str, &str)> {
        self.items.get(&kind).into_iter().flatten().map(|(name, detail)| (name.as_str(), detail.as_str()))
    }
}

/// Runs a program that only reads, and returns what it printed.
fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {} ended with {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("output of {program} is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_of_one_name_are_all_kept() {
        let mut inventory = Inventory::default();
        inventory.add(Kind::Process, "sleep 9", "uid 0");
        inventory.add(Kind::Process, "sleep 9", "uid 0");
        let names: Vec<&str> = inventory.of(Kind::Process).map(|(name, _)| name).collect();
        assert_eq!(names, ["sleep 9", "sleep 9 #2"]);
    }

    #[test]
    fn an_inventory_survives_its_json() -> Result<()> {
        let mut inventory = Inventory::default();
        for kind in Kind::ALL {
            inventory.add(kind, kind.to_string(), "detail");
        }
        let text = serde_json::to_string(&inventory)?;
        assert_eq!(serde_json::from_str::<Inventory>(&text)?, inventory);
        Ok(())
    }
}
