//! What the package changes on a host, against the table of docs/admin.md that explains it: what
//! the inventory shows and the page does not name is either a leak or a gap in the page.

use anyhow::{Result, ensure};

use crate::inventory::{Allow, Inventory, Kind, leaks};

/// Things of a sort whose name matches, and the words of the page's table that explain them.
const EXPLAINED: &[(Kind, &str, &str)] = &[
    (Kind::Link, "br-fc", "link `br-fc`"),
    (Kind::Address, "* dev br-fc", "172.16.0.1/20"),
    (Kind::Route, "* dev br-fc table *", "the routes to it"),
    (Kind::Nft, "* inet banger*", "tables `inet banger`"),
    (Kind::Nft, "* arp banger*", "`arp banger`"),
    (Kind::Iptables, "*banger-static*", "`banger-static`"),
    // Whoever looks at a table of the kernel's is shown its empty chains from then on.
    (Kind::Iptables, "* chain *", "FORWARD"),
    (Kind::Nft, "* ip filter*", "FORWARD"),
    (Kind::Process, "*bangerd*", "a process each"),
    (Kind::Process, "*banger-priv*", "a process each"),
    (Kind::Cgroup, "*banger*", "a cgroup each"),
    (Kind::Cgroup, "*modprobe*", "modules"),
    (Kind::Socket, "unix /run/banger/*", "`/run/banger`"),
    (Kind::Socket, "unix /run/bangerd*", "`/run/bangerd`"),
    (Kind::Socket, "* 127.0.0.1:42069", "127.0.0.1:42069"),
    (Kind::File, "/etc/banger*", "`/etc/banger/banger.toml`"),
    (Kind::File, "/var/lib/banger*", "`/var/lib/banger`"),
    (Kind::File, "/run/banger*", "`/run/banger`"),
    (Kind::File, "/tmp/systemd-private-*", "private folders in `/tmp`"),
    (Kind::File, "/var/tmp/systemd-private-*", "private folders in `/tmp`"),
    (Kind::Mount, "*banger*", "units"),
    (Kind::Row, "*", "database, images, kernels"),
    (Kind::Ledger, "*", "the helper's ledger"),
];

/// Everything that is another than before must be explained.
pub(super) fn all(before: &Inventory) -> Result<()> {
    let reason = "explained by docs/admin.md";
    let known: Vec<Allow> = EXPLAINED.iter().map(|(kind, name, _)| Allow::anything(*kind, *name, reason)).collect();
    let rest = leaks(before, &Inventory::take()?, &known);
    ensure!(!rest.declared.is_empty(), "the package has changed nothing");
    ensure!(rest.leaks.is_empty(), "docs/admin.md does not explain what the package changes:\n{rest}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::docs::ADMIN;
    use super::*;

    /// The section that explains it.
    const SECTION: &str = "## What changes on the host";

    #[test]
    fn the_page_has_the_words() -> Result<()> {
        let section = ADMIN.split_once(SECTION).map(|(_, rest)| rest.split("\n## ").next().unwrap_or_default());
        let section = section.unwrap_or_default();
        ensure!(section.contains("| what | why |"), "there is no table below {SECTION}");
        let missing: Vec<_> = EXPLAINED.iter().filter(|(.., words)| !section.contains(words)).collect();
        ensure!(missing.is_empty(), "docs/admin.md explains nothing by these words: {missing:?}");
        let kinds = Kind::ALL.iter().filter(|kind| !EXPLAINED.iter().any(|(known, ..)| known == *kind));
        // Without a VM there are none of these; what VMs have beside them stands below the table.
        let without: Vec<_> = kinds.collect();
        ensure!(without == [&Kind::Rule, &Kind::Loop, &Kind::Dm], "no words for {without:?}");
        Ok(())
    }
}
