//! Loop devices from sysfs and device-mapper tables from `dmsetup`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Inventory, Kind, output};

pub(super) fn collect(inventory: &mut Inventory) -> Result<()> {
    loops(Path::new("/sys/block"), inventory)?;
    // Without the control node there is no device-mapper, and asking dmsetup would load the module.
    if fs::read_to_string("/proc/misc").context("read /proc/misc")?.contains("device-mapper") {
        tables(&output("dmsetup", &["table", "--showkeys"])?, &named()?, inventory);
    }
    Ok(())
}

/// Loop devices, and device-mapper devices by name alone.
pub(super) fn names(inventory: &mut Inventory) -> Result<()> {
    let sysfs = Path::new("/sys/block");
    loops(sysfs, inventory)?;
    for entry in fs::read_dir(sysfs).with_context(|| format!("read {}", sysfs.display()))? {
        if let Ok(name) = fs::read_to_string(entry?.path().join("dm/name")) {
            inventory.add(Kind::Dm, name.trim(), "");
        }
    }
    Ok(())
}

fn loops(sysfs: &Path, inventory: &mut Inventory) -> Result<()> {
    for entry in fs::read_dir(sysfs).with_context(|| format!("read {}", sysfs.display()))? {
        let entry = entry?;
        let folder = entry.path().join("loop");
        // A loop device without a backing file is a free one; the kernel keeps its node.
        let Ok(backing) = fs::read_to_string(folder.join("backing_file")) else { continue };
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default().trim().to_owned();
        let detail = format!(
            "{}, autoclear {}, offset {}, sizelimit {}, read-only {}",
            entry.file_name().display(),
            read("autoclear"),
            read("offset"),
            read("sizelimit"),
            fs::read_to_string(entry.path().join("ro")).unwrap_or_default().trim()
        );
        // Named by the file: numbers are reused and mean nothing.
        inventory.add(Kind::Loop, backing.trim_end_matches('\n'), detail);
    }
    Ok(())
}

/// `name uuid` pairs.
fn named() -> Result<Vec<(String, String)>> {
    let text = output("dmsetup", &["info", "--columns", "--noheadings", "--separator", "\t", "-o", "name,uuid"])?;
    Ok(name_pairs(&text))
}

fn name_pairs(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, uuid)| (name.to_owned(), uuid.to_owned()))
        .collect()
}

fn tables(text: &str, names: &[(String, String)], inventory: &mut Inventory) {
    for line in text.lines() {
        // "No devices found" has no colon.
        let Some((name, table)) = line.split_once(": ") else { continue };
        let uuid = names.iter().find(|(known, _)| known == name).map_or("", |(_, uuid)| uuid.as_str());
        inventory.add(Kind::Dm, name, format!("uuid {uuid}, {table}"));
    }
    // A device without a table (created, never loaded) is a leak as well.
    for (name, uuid) in names {
        if !text.lines().any(|line| line.split_once(": ").is_some_and(|(known, _)| known == name)) {
            inventory.add(Kind::Dm, name, format!("uuid {uuid}, no table"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_carry_their_uuid_and_empty_devices_are_seen() {
        let names = name_pairs("bgr-aa\tBANGER-aa-1\nempty\t\n");
        let mut inventory = Inventory::default();
        tables("bgr-aa: 0 2097152 snapshot 7:0 7:1 PO 8\n", &names, &mut inventory);
        let seen: Vec<_> = inventory.of(Kind::Dm).collect();
        assert_eq!(
            seen,
            [("bgr-aa", "uuid BANGER-aa-1, 0 2097152 snapshot 7:0 7:1 PO 8"), ("empty", "uuid , no table")]
        );
    }

    #[test]
    fn no_devices_is_not_a_device() {
        let mut inventory = Inventory::default();
        tables("No devices found\n", &name_pairs("No devices found\n"), &mut inventory);
        assert_eq!(inventory.of(Kind::Dm).count(), 0);
    }

    #[test]
    fn a_loop_is_named_by_its_file() -> Result<()> {
        let sysfs = tempfile::tempdir()?;
        for (name, backing) in [("loop0", Some("/var/lib/x (deleted)\n")), ("loop1", None)] {
            let folder = sysfs.path().join(name).join("loop");
            fs::create_dir_all(&folder)?;
            if let Some(backing) = backing {
                fs::write(folder.join("backing_file"), backing)?;
                fs::write(folder.join("autoclear"), "1\n")?;
            }
        }
        let mut inventory = Inventory::default();
        loops(sysfs.path(), &mut inventory)?;
        let names: Vec<_> = inventory.of(Kind::Loop).map(|(name, _)| name).collect();
        assert_eq!(names, ["/var/lib/x (deleted)"]);
        Ok(())
    }
}
