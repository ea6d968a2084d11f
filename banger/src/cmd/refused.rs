//! `vm refused`: where a guest wanted to go in vain.

use crate::cli::Json;
use crate::client::{Client, answer, soon};
use crate::output::{self, age, note, table};
use anyhow::Context as _;
use banger_proto::model::Refused;
use banger_proto::time::Timestamp;

/// How it is switched on. The service cannot be given a socket while it runs.
const NOT_RECORDED: &str = "nothing is recorded: the daemon was started without bangerd-refused.socket
  an administrator can change that: systemctl enable bangerd-refused.socket && systemctl restart bangerd.service";

pub(super) async fn run(vm: String, json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let what = format!("cannot show what was refused to {vm}");
    let list = answer(client.rpc.refused(soon(), vm.clone())).await.context(what)?;
    if json.json {
        output::json(&list)?;
        return Ok(0);
    }
    if !list.recorded {
        note(NOT_RECORDED);
    } else if list.destinations.is_empty() {
        note(&format!("nothing was refused to {vm} since it runs, and since the daemon runs"));
    } else {
        let now = Timestamp::now();
        let rows: Vec<Vec<String>> = list.destinations.iter().map(|one| row(one, now)).collect();
        table(&["ADDRESS", "PROTOCOL", "PORT", "TIMES", "FIRST", "LAST"], &rows, |_, _| None)?;
    }
    Ok(0)
}

fn row(one: &Refused, now: Timestamp) -> Vec<String> {
    vec![
        one.address.to_string(),
        one.protocol.clone(),
        one.port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
        one.times.to_string(),
        format!("{} ago", age(one.first_at, now)),
        format!("{} ago", age(one.last_at, now)),
    ]
}
