//! nf_tables as `nft` lists it, and what the four iptables programs see. Counters are left out:
//! they change by themselves. So are elements that rules make and that go by themselves.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Inventory, Kind, output};

pub(super) fn collect(inventory: &mut Inventory) -> Result<()> {
    ruleset(&output("nft", &["--json", "--stateless", "list", "ruleset"])?, inventory)?;
    for program in ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
        saved(program.trim_end_matches("-save"), &output(program, &[])?, inventory);
    }
    Ok(())
}

fn ruleset(text: &str, inventory: &mut Inventory) -> Result<()> {
    let root: Value = serde_json::from_str(text).context("read the JSON of nft")?;
    let objects = root.get("nftables").and_then(Value::as_array).context("nft printed no list of objects")?;
    for object in objects {
        for (kind, body) in object.as_object().into_iter().flatten() {
            if kind != "metainfo" {
                named(kind, body, inventory);
            }
        }
    }
    Ok(())
}

fn named(kind: &str, body: &Value, inventory: &mut Inventory) {
    let field = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let home = match kind {
        "table" => format!("{} {}", field("family"), field("name")),
        "rule" => format!("{} {}/{}", field("family"), field("table"), field("chain")),
        _ => format!("{} {}/{}", field("family"), field("table"), field("name")),
    };
    let mut rest = body.clone();
    let elements = rest.as_object_mut().map(|object| {
        // The handle is the kernel's running number; an unchanged rule that was loaded again has
        // another.
        for known in ["handle", "family", "table", "chain", "name"] {
            object.remove(known);
        }
        object.remove("elem")
    });
    if kind == "rule" {
        let expression = rest.get("expr").map(Value::to_string).unwrap_or_default();
        inventory.add(Kind::Nft, format!("rule {home} {} {expression}", field("comment")), "");
        return;
    }
    inventory.add(Kind::Nft, format!("{kind} {home}"), rest.to_string());
    // nft says of a set in JSON that its elements have a timeout, and not that rules make them.
    let timed = rest.get("flags").is_some_and(|flags| flags.to_string().contains("timeout"));
    if timed || ["inet banger/flows", "inet banger/towards"].contains(&home.as_str()) {
        return;
    }
    for element in elements.flatten().iter().filter_map(Value::as_array).flatten() {
        inventory.add(Kind::Nft, format!("element {home} {element}"), "");
    }
}

fn saved(program: &str, text: &str, inventory: &mut Inventory) {
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            inventory.add(Kind::Iptables, format!("{program} {table} chain {name}"), format!("policy {policy}"));
        } else if line.starts_with("-A") {
            inventory.add(Kind::Iptables, format!("{program} {table} {line}"), "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_of_a_ruleset_is_named_and_elements_singly() -> Result<()> {
        let text = r#"{"nftables":[{"metainfo":{"version":"1.1.3","json_schema_version":1}},
            {"table":{"family":"inet","name":"banger","handle":4}},
            {"set":{"family":"inet","name":"nat","table":"banger","type":["ifname","ipv4_addr"],"handle":5,
                "elem":[{"concat":["bgr-a","172.16.0.2"]},{"concat":["bgr-b","172.16.0.3"]}]}},
            {"set":{"family":"inet","name":"asked","table":"banger","type":"ipv4_addr","handle":6,"size":65535,
                "flags":["timeout"],"timeout":10,"elem":[{"elem":{"val":"172.16.0.2","timeout":10,"expires":7}}]}},
            {"chain":{"family":"inet","table":"banger","name":"post","handle":1,"type":"nat","hook":"postrouting","prio":100,"policy":"accept"}},
            {"rule":{"family":"inet","table":"banger","chain":"post","handle":9,"comment":"nat","expr":[{"masquerade":null}]}}]}"#;
        let mut inventory = Inventory::default();
        ruleset(text, &mut inventory)?;
        let names: Vec<_> = inventory.of(Kind::Nft).map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "chain inet banger/post",
                r#"element inet banger/nat {"concat":["bgr-a","172.16.0.2"]}"#,
                r#"element inet banger/nat {"concat":["bgr-b","172.16.0.3"]}"#,
                r#"rule inet banger/post nat [{"masquerade":null}]"#,
                "set inet banger/asked",
                "set inet banger/nat",
                "table inet banger"
            ]
        );
        Ok(())
    }

    #[test]
    fn counters_of_iptables_are_not_part_of_a_name() {
        let text = "# Generated\n*filter\n:INPUT ACCEPT [12:345]\n:FORWARD DROP [0:0]\n-A FORWARD -i bgr-+ -j ACCEPT\nCOMMIT\n";
        let mut inventory = Inventory::default();
        saved("iptables-nft", text, &mut inventory);
        let seen: Vec<_> = inventory.of(Kind::Iptables).collect();
        assert_eq!(
            seen,
            [
                ("iptables-nft filter -A FORWARD -i bgr-+ -j ACCEPT", ""),
                ("iptables-nft filter chain FORWARD", "policy DROP"),
                ("iptables-nft filter chain INPUT", "policy ACCEPT")
            ]
        );
    }
}
