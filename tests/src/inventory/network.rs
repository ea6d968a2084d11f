//! Links, addresses, routes and rules, from the JSON of `ip`.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Inventory, Kind, output};

pub(super) fn collect(inventory: &mut Inventory) -> Result<()> {
    links(&output("ip", &["-d", "-j", "link", "show"])?, inventory)?;
    addresses(&output("ip", &["-j", "address", "show"])?, inventory)?;
    for family in ["-4", "-6"] {
        routes(family, &output("ip", &[family, "-d", "-j", "route", "show", "table", "all"])?, inventory)?;
        rules(family, &output("ip", &[family, "-j", "rule", "show"])?, inventory)?;
    }
    Ok(())
}

/// Links, by name and alias alone.
pub(super) fn names(inventory: &mut Inventory) -> Result<()> {
    for entry in std::fs::read_dir("/sys/class/net").context("read /sys/class/net")? {
        let entry = entry?;
        let alias = std::fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
        inventory.add(Kind::Link, entry.file_name().display().to_string(), alias.trim());
    }
    Ok(())
}

fn rows(text: &str) -> Result<Vec<Value>> {
    // `ip -j` prints nothing at all for an empty list of some objects.
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).context("read the JSON of ip")
}

/// Strings as they are, everything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn fields(row: &Value, names: &[&str]) -> String {
    let shown = names.iter().filter_map(|name| match row.get(name) {
        None | Some(Value::Null) => None,
        Some(value) => Some(format!("{name} {}", plain(value))),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn links(text: &str, inventory: &mut Inventory) -> Result<()> {
    for row in rows(text)? {
        let name = row.get("ifname").map(plain).context("a link without a name")?;
        let mut detail = fields(&row, &["ifindex", "ifalias", "address", "master", "mtu", "inet6_addr_gen_mode"]);
        if let Some(info) = row.get("linkinfo") {
            // Kind, and for a tap its type, persistence and owner: who may attach to it.
            detail.push_str(", ");
            detail.push_str(&fields(info, &["info_kind"]));
            if let Some(data) = info.get("info_data") {
                detail.push_str(", ");
                detail.push_str(&fields(data, &["type", "persist", "vnet_hdr", "user", "group"]));
            }
        }
        let up = row.get("flags").and_then(Value::as_array).is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
        detail.push_str(if up { ", up" } else { ", down" });
        inventory.add(Kind::Link, name, detail);
    }
    Ok(())
}

fn addresses(text: &str, inventory: &mut Inventory) -> Result<()> {
    for row in rows(text)? {
        let link = row.get("ifname").map(plain).unwrap_or_default();
        for address in row.get("addr_info").and_then(Value::as_array).into_iter().flatten() {
            let local = address.get("local").map(plain).unwrap_or_default();
            let length = address.get("prefixlen").map(plain).unwrap_or_default();
            inventory.add(
                Kind::Address,
                format!("{local}/{length} dev {link}"),
                fields(address, &["scope", "peer", "address"]),
            );
        }
    }
    Ok(())
}

fn routes(family: &str, text: &str, inventory: &mut Inventory) -> Result<()> {
    for row in rows(text)? {
        let table = row.get("table").map_or_else(|| "main".to_owned(), plain);
        let target = row.get("dst").map(plain).unwrap_or_default();
        let device = row.get("dev").map(plain).unwrap_or_default();
        let detail = fields(&row, &["type", "gateway", "protocol", "scope", "prefsrc", "metric"]);
        inventory.add(Kind::Route, format!("{family} {target} dev {device} table {table}"), detail);
    }
    Ok(())
}

fn rules(family: &str, text: &str, inventory: &mut Inventory) -> Result<()> {
    for row in rows(text)? {
        let text = row.as_object().into_iter().flatten().map(|(name, value)| format!("{name} {}", plain(value)));
        inventory.add(Kind::Rule, format!("{family} {}", text.collect::<Vec<_>>().join(" ")), "");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(inventory: &Inventory, kind: Kind) -> Vec<String> {
        inventory.of(kind).map(|(name, detail)| format!("{name} ({detail})")).collect()
    }

    #[test]
    fn a_tap_shows_kind_owner_and_alias() -> Result<()> {
        let text = r#"[{"ifindex":7,"ifname":"bgr-abc","flags":["BROADCAST","MULTICAST","UP"],"mtu":1500,"operstate":"DOWN",
            "address":"02:00:00:00:00:01","ifalias":"banger:1:aa:bb","inet6_addr_gen_mode":"none",
            "linkinfo":{"info_kind":"tun","info_data":{"type":"tap","pi":false,"vnet_hdr":true,"persist":true,"user":"bangerd"}}}]"#;
        let mut inventory = Inventory::default();
        links(text, &mut inventory)?;
        assert_eq!(
            only(&inventory, Kind::Link),
            [
                "bgr-abc (ifindex 7, ifalias banger:1:aa:bb, address 02:00:00:00:00:01, mtu 1500, inet6_addr_gen_mode none, \
              info_kind tun, type tap, persist true, vnet_hdr true, user bangerd, up)"
            ]
        );
        Ok(())
    }

    #[test]
    fn routes_of_every_table_and_rules_are_named() -> Result<()> {
        let mut inventory = Inventory::default();
        routes(
            "-4",
            r#"[{"type":"unicast","dst":"172.16.0.2","dev":"bgr-abc","protocol":"boot","scope":"link","flags":[]},
                {"type":"local","dst":"127.0.0.1","dev":"lo","table":"local","protocol":"kernel","scope":"host","prefsrc":"127.0.0.1","flags":[]}]"#,
            &mut inventory,
        )?;
        rules("-4", r#"[{"priority":32766,"src":"all","table":"main"}]"#, &mut inventory)?;
        routes("-6", "", &mut inventory)?;
        assert_eq!(
            only(&inventory, Kind::Route),
            [
                "-4 127.0.0.1 dev lo table local (type local, protocol kernel, scope host, prefsrc 127.0.0.1)",
                "-4 172.16.0.2 dev bgr-abc table main (type unicast, protocol boot, scope link)"
            ]
        );
        assert_eq!(only(&inventory, Kind::Rule), ["-4 priority 32766 src all table main ()"]);
        Ok(())
    }

    #[test]
    fn addresses_carry_their_link() -> Result<()> {
        let mut inventory = Inventory::default();
        addresses(
            r#"[{"ifname":"br-fc","addr_info":[{"family":"inet","local":"172.16.0.1","prefixlen":24,"scope":"global","valid_life_time":4294967295}]}]"#,
            &mut inventory,
        )?;
        assert_eq!(only(&inventory, Kind::Address), ["172.16.0.1/24 dev br-fc (scope global)"]);
        Ok(())
    }
}
