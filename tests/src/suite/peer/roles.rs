//! What the program does that a suite starts as another user or in another cgroup: `banger-suite
//! peer ROLE`. Each role prints JSON.

use std::io::{BufRead, stdin};

use anyhow::{Result, bail};
use banger_proto::helper::HelperRequest;

use super::connection::Connection;
use super::helper::Told;
use crate::suite::report::print_line;
use crate::suite::scenarios::{hostile_client, services, two_users};

/// Plays a role.
pub(in crate::suite) fn play(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if words == ["calls"] {
        return calls();
    }
    for roles in [
        hostile_client::identity_role,
        hostile_client::wire_role,
        hostile_client::fuzz_role,
        services::role,
        two_users::role,
    ] {
        if let Some(told) = roles(&words)? {
            print_line(&told.to_string());
            return Ok(());
        }
    }
    bail!("there is no role {words:?}")
}

/// A request per line, a reply per line; see [`super::helper::Helper`].
fn calls() -> Result<()> {
    let mut connection = None;
    for (id, line) in (1..).zip(stdin().lock().lines()) {
        let request: HelperRequest = serde_json::from_str(&line?)?;
        let told = call(&mut connection, id, request);
        if matches!(told, Told::Closed(_)) {
            connection = None;
        }
        print_line(&serde_json::to_string(&told)?);
    }
    Ok(())
}

fn call(connection: &mut Option<Connection>, id: u64, request: HelperRequest) -> Told {
    let asked = || {
        let live = match connection {
            Some(live) => live,
            None => connection.insert(Connection::open()?),
        };
        live.call(id, request)?;
        live.reply()
    };
    match asked() {
        Ok(Some(reply)) => Told::Reply(reply.body),
        Ok(None) => Told::Closed("closed".to_owned()),
        Err(error) => Told::Closed(error.to_string()),
    }
}
