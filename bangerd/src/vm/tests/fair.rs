//! One user's VMs, and those of others, in the daemon's own queues.

use super::*;
use banger_policy::vm::RestartPolicy;
use banger_proto::model::SetRequest;
use rusqlite::Connection;
use std::collections::HashMap;

#[test]
fn what_the_helper_does_not_answer_about_is_measured_nevertheless_and_delays_no_other() {
    let world = World::new();
    let vms: Vec<VmRecord> = (0..20).map(|number| world.running(&format!("vm-{number}"))).collect();
    world.helper.set_busy(true);
    let life = world.life();
    let measured = life.runtime.block_on(async {
        let before = HashMap::new();
        let measure = crate::vm::stats::measure(&life.vms, &before);
        tokio::time::timeout(Duration::from_secs(20), measure).await.unwrap()
    });
    assert_eq!(measured.len(), vms.len());
    assert!(vms.iter().all(|vm| world.show(ALICE, vm.name.as_str()).unwrap().stats.is_some()));
    world.helper.set_busy(false);
}

#[test]
fn what_actors_write_stands_in_the_queue_for_the_vms_owner() {
    let world = World::new();
    let names: Vec<String> = (0..6).map(|number| format!("vm-{number}")).collect();
    for name in &names {
        assert!(matches!(world.create(CreateRequest { no_start: true, ..named(name) }, false), JobState::Done(_)));
        // The next order is no new use, which would be written as the caller's.
        assert!(matches!(world.order(Ask::Set(SetRequest::default()), name), JobState::Done(_)));
    }
    let db = &world.life().vms.ctx.db;
    assert_eq!(db.vms_places(ALICE.uid), 2);
    // Nothing can be committed for now.
    let mut other = Connection::open(world.paths().database()).unwrap();
    let held = other.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let always = SetRequest { restart: Some(RestartPolicy::Always), ..SetRequest::default() };
    let jobs: Vec<JobId> = names.iter().map(|name| world.begin(Ask::Set(always.clone()), name)).collect();
    world.until_true("their writes wait", || db.vms_places(ALICE.uid) == 0);
    drop(held);
    for job in jobs {
        assert!(matches!(world.wait(job), JobState::Done(_)));
    }
}

/// The largest number that limits give.
#[test]
fn a_list_of_many_vms_has_few_pages_that_fit() {
    let world = World::new();
    for number in 0..70 {
        let request = CreateRequest { no_start: true, ..named(&format!("vm-{number}")) };
        assert!(matches!(world.create(request, false), JobState::Done(_)));
    }
    let list = |after| world.life().runtime.block_on(world.life().vms.list(&ALICE, false, after)).unwrap();
    let (mut pages, mut count, mut after) = (0, 0, None);
    loop {
        let page = list(after);
        assert!(banger_proto::wire::encoded_bytes(&page) <= banger_proto::transport::DAEMON_LIMITS.max_frame);
        (pages, count, after) = (pages + 1, count + page.vms.len(), page.next);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(count, 70);
    assert!(pages <= 3, "{pages}");
}
