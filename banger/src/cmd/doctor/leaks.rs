//! `doctor --leaks`: what belongs to no VM, for administrators.

use crate::cli::Json;
use crate::client::{Client, answer, watching};
use crate::error::FAILED;
use crate::output;
use banger_proto::model::{Leak, Leaks};

/// What belongs to no VM. Fails while something of it is left.
pub(super) async fn run(fix: bool, json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let Leaks { leaks, more } = answer(client.rpc.leaks(watching(), fix)).await?;
    let left = more > 0 || leaks.iter().any(|leak| leak.fixed != Some(true));
    if more > 0 {
        output::note(&format!("{more} more are not shown: the first have to be released before"));
    }
    if json.json {
        output::json(&leaks)?;
    } else if leaks.is_empty() {
        output::line("nothing is left behind")?;
    } else {
        let state = |leak: &Leak| match leak.fixed {
            None => "found",
            Some(true) => "released",
            Some(false) => "FAILED",
        };
        let rows: Vec<Vec<String>> = leaks
            .iter()
            .map(|leak| vec![state(leak).into(), leak.kind.to_string(), leak.name.clone(), leak.detail.clone()])
            .collect();
        output::table(&["", "KIND", "NAME", "WHAT"], &rows, |column, cell| match (column, cell) {
            (0, "released") => Some(32),
            (0, "FAILED") => Some(31),
            _ => None,
        })?;
        if leaks.iter().any(|leak| leak.fixed == Some(false)) {
            output::note("`journalctl -u bangerd -u banger-priv` says why something could not be released");
        } else if left {
            output::note("bangerd releases by itself, within two minutes, what has no data in it");
            output::note(
                "`banger doctor --leaks --fix` removes all of it at once, disks and images too: if the database is an older copy, bring the right one back first",
            );
        }
    }
    Ok(if left { FAILED } else { 0 })
}
