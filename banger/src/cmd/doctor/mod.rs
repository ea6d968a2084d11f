//! `doctor`: what this user and this host need. What only the daemon can see, the daemon checks.

mod caller;
mod leaks;
mod vm;

use crate::cli::{Doctor, DoctorOf};
use crate::client::{Client, answer, soon};
use crate::error::{Explained, FAILED};
use crate::output;
use banger_proto::model::{Check, CheckStatus};

pub(super) async fn run(asked: Doctor) -> anyhow::Result<u8> {
    if let Some(DoctorOf::Vm { vm, json }) = asked.of {
        return vm::run(vm, json).await;
    }
    if asked.leaks {
        return leaks::run(asked.fix, asked.json).await;
    }
    let checks = all().await;
    if asked.json.json {
        output::json(&checks)?;
    } else {
        show(&checks)?;
    }
    Ok(status(&checks))
}

/// The caller's checks and the daemon's.
pub(super) async fn all() -> Vec<Check> {
    let mut checks = caller::checks();
    let asked = async {
        let client = Client::connect().await?;
        let info = answer(client.rpc.info(soon())).await?;
        anyhow::Ok((info, answer(client.rpc.doctor(soon())).await?))
    };
    match asked.await {
        Ok((info, more)) => {
            checks.push(caller::versions(&info.version));
            checks.push(caller::clock(info.started_at));
            checks.extend(more);
        }
        Err(error) => {
            // Nobody else says it when the daemon does not.
            checks.insert(0, caller::linux());
            let hint = error.chain().find_map(|cause| cause.downcast_ref::<Explained>()).map(Explained::hint);
            let mend = caller::restart().or(hint.map(str::to_owned)).unwrap_or_default();
            checks.push(Check::fail("bangerd", format!("{error:#}"), mend));
        }
    }
    checks
}

fn status(checks: &[Check]) -> u8 {
    if checks.iter().any(|check| check.status == CheckStatus::Fail) { FAILED } else { 0 }
}

/// A line for each check, and below it what mends it.
fn show(checks: &[Check]) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for check in checks {
        rows.push(vec![word(check.status).to_owned(), check.name.clone(), check.detail.clone()]);
        if !check.mend.is_empty() {
            rows.push(vec![String::new(), String::new(), format!("-> {}", check.mend)]);
        }
    }
    output::table(&["", "CHECK", "FOUND"], &rows, |column, cell| match (column, cell) {
        (0, "PASS") => Some(32),
        (0, "FAIL") => Some(31),
        (0, "WARN") => Some(33),
        _ => None,
    })
}

fn word(status: CheckStatus) -> &'static str {
    match status {
        CheckStatus::Pass => "PASS",
        CheckStatus::Warn => "WARN",
        CheckStatus::Fail => "FAIL",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_the_exit_status_and_a_warning_is_not() {
        let warned = [Check::pass("a", ""), Check::warn("b", "x", "y")];
        assert_eq!(status(&warned), 0);
        assert_eq!(status(&[Check::fail("c", "x", "y")]), FAILED);
    }
}
