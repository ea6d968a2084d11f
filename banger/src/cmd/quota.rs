//! `banger quota`: how much one may have and has, and where each limit comes from.

use crate::cli::List;
use crate::client::{Client, answer, soon};
use crate::output::{self, amount, size, table};
use anyhow::Context as _;
use banger_proto::model::{Quota, QuotaLimit};
use serde::Serialize;

/// Everything, for programs.
#[derive(Debug, Serialize)]
struct Quotas {
    users: Vec<Quota>,
    host: Vec<QuotaLimit>,
}

async fn all_of(client: &Client, all: bool) -> anyhow::Result<Quotas> {
    let (mut users, mut after) = (Vec::new(), None);
    loop {
        let page = answer(client.rpc.quotas(soon(), all, after)).await.context("cannot show limits")?;
        users.extend(page.quotas);
        after = page.next;
        if after.is_none() {
            return Ok(Quotas { users, host: page.host });
        }
    }
}

pub(super) async fn run(options: List) -> anyhow::Result<u8> {
    let quotas = all_of(&Client::connect().await?, options.all).await?;
    if options.json.json {
        output::json(&quotas)?;
        return Ok(0);
    }
    let of_users = quotas.users.iter().flat_map(|user| user.limits.iter().map(|limit| row(&user.owner_name, limit)));
    let of_host = quotas.host.iter().map(|limit| row("(all users)", limit));
    let rows: Vec<Vec<String>> = of_users.chain(of_host).collect();
    table(&["USER", "LIMIT", "USED", "OF", "FROM"], &rows, |_, _| None)?;
    Ok(0)
}

fn row(user: &str, limit: &QuotaLimit) -> Vec<String> {
    let used = if limit.bytes { amount(limit.used) } else { limit.used.to_string() };
    let most = match limit.limit {
        None => "no limit".to_owned(),
        Some(bytes) if limit.bytes && bytes < 1 << 37 => size(bytes),
        Some(bytes) if limit.bytes => amount(bytes),
        Some(count) => count.to_string(),
    };
    vec![user.to_owned(), limit.name.clone(), used, most, limit.from.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_shown_in_its_unit() {
        let limit = |bytes, used, limit| QuotaLimit { name: "x".into(), bytes, used, limit, from: "built in".into() };
        let shown = |limit: &QuotaLimit| row("alice", limit)[2..4].join(" of ");
        assert_eq!(shown(&limit(false, 3, Some(64))), "3 of 64");
        assert_eq!(shown(&limit(true, 276 << 20, Some(16 << 30))), "276 MiB of 16G");
        assert_eq!(shown(&limit(true, 0, Some(1 << 40))), "0 B of 1024.0 GiB");
        assert_eq!(shown(&limit(true, 0, None)), "0 B of no limit");
    }
}
