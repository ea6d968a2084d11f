//! Published ports over the life of a VM and of the daemon.

use super::*;
use banger_proto::model::{PublishRequest, PublishedPort};
use std::net::{SocketAddr, TcpListener};

impl World {
    fn publish(&self, peer: Peer, vm: &str, ports: &[&str]) -> Result<Vec<PublishedPort>, ApiError> {
        let ports = ports.iter().map(|port| (*port).to_owned()).collect();
        let request = PublishRequest { ports, ..PublishRequest::default() };
        let job = self.life().runtime.block_on(self.life().vms.publish(&peer, vm, request))?;
        self.ports(job)
    }

    fn unpublish(&self, vm: &str, ports: &[&str]) -> Result<Vec<PublishedPort>, ApiError> {
        let ports: Vec<String> = ports.iter().map(|port| (*port).to_owned()).collect();
        let job = self.life().runtime.block_on(self.life().vms.unpublish(&ALICE, vm, &ports))?;
        self.ports(job)
    }

    fn ports(&self, job: JobId) -> Result<Vec<PublishedPort>, ApiError> {
        match self.wait(job) {
            JobState::Done(JobResult::Vm(vm)) => Ok(vm.published.unwrap()),
            JobState::Failed(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }
}

fn at(port: &PublishedPort) -> SocketAddr {
    SocketAddr::new(port.address, port.host_port)
}

fn listens(port: SocketAddr) -> bool {
    TcpListener::bind(port).is_err()
}

#[test]
fn a_port_is_open_while_its_vm_runs_whatever_is_restarted() {
    let mut world = World::new();
    world.running("demo");
    let published = world.publish(ALICE, "demo", &["80", "81"]).unwrap();
    let port = at(&published[0]);
    assert!(listens(port) && published[0].problem.is_none());
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    assert!(!listens(port));
    assert_eq!(world.show(ALICE, "demo").unwrap().published.unwrap().len(), 2, "remembered");
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert!(listens(port));
    world.kill_daemon();
    world.until_true("the port is closed with its daemon", || !listens(port));
    world.boot();
    world.until_true("the port is open again", || listens(port));
    assert_eq!(world.unpublish("demo", &[&port.to_string()]).unwrap().len(), 1);
    assert!(!listens(port) && listens(at(&published[1])));
    let unknown = world.unpublish("demo", &["9"]).unwrap_err();
    assert!(unknown.message.contains("does not publish port 9"), "{}", unknown.message);
    assert!(matches!(world.order(Ask::Delete, "demo"), JobState::Done(_)));
    assert!(!listens(at(&published[1])));
}

#[test]
fn a_port_that_is_no_longer_its_owners_stays_closed_at_the_next_start() {
    let world = World::new();
    world.running("demo");
    let published = world.publish(ALICE, "demo", &["80"]).unwrap();
    let port = at(&published[0]);
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    let range = if port.port() < 26_000 { "30000-30009" } else { "20000-20009" };
    let limits = UserLimits { port_range: Some(range.parse().unwrap()), ..ALICE.limits };
    let alice = Peer { limits, ..ALICE };
    assert!(matches!(world.order_of(&alice, Ask::Start, "demo"), JobState::Done(_)));
    assert!(!listens(port));
    let shown = world.show(ALICE, "demo").unwrap().published.unwrap();
    let problem = shown[0].problem.as_deref().unwrap_or_default();
    assert!(problem.contains("not one of yours") && problem.contains(range), "{problem}");
}

#[test]
fn a_port_in_use_says_by_whom_as_far_as_the_asker_may_know() {
    let world = World::new();
    for (name, peer) in [("demo", ALICE), ("other", ALICE), ("bobs", BOB)] {
        let request = CreateRequest { no_start: true, ..named(name) };
        assert!(matches!(world.wait(world.begin_create(peer, request, false).unwrap()), JobState::Done(_)));
    }
    // Of VMs that do not run.
    let port = world.publish(ALICE, "demo", &["80"]).unwrap()[0].host_port;
    let again = format!("{port}:80");
    let said = |peer, vm, ports: &[&str]| world.publish(peer, vm, ports).unwrap_err().message;
    assert!(said(ALICE, "other", &[&again]).ends_with("by your VM demo"));
    let bob = said(BOB, "bobs", &[&again]);
    assert!(bob.ends_with("by another user") && !bob.contains("demo") && !bob.contains("alice"), "{bob}");
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("{}:80", program.local_addr().unwrap().port());
    assert!(said(ALICE, "other", &["81", &taken]).ends_with("another program of this host has the port"));
    assert_eq!(world.show(ALICE, "other").unwrap().published.unwrap(), [], "all or none");
    assert!(said(ALICE, "other", &["80:80"]).contains("system's"));
    let limits = UserLimits { ports: 1, ..UserLimits::BUILT_IN };
    let limited = Peer { limits, ..ALICE };
    assert!(said(limited, "other", &["80"]).contains("the limit ports is 1"));
    let range = "20500-20500".parse().unwrap();
    let ranged = Peer { limits: UserLimits { port_range: Some(range), ..UserLimits::BUILT_IN }, ..ALICE };
    assert!(said(ranged.clone(), "other", &["20501:80"]).contains("20500-20500"));
    assert_eq!(world.publish(ranged.clone(), "other", &["80"]).unwrap()[0].host_port, 20500);
    assert!(said(ranged, "other", &["81"]).contains("no port of 20500-20500 is free"));
}

#[test]
fn a_port_that_is_taken_meanwhile_keeps_no_vm_from_running() {
    let world = World::new();
    let request = CreateRequest {
        no_start: true,
        publish: PublishRequest { ports: vec!["80".into()], ..PublishRequest::default() },
        ..named("demo")
    };
    let JobState::Done(JobResult::Vm(vm)) = world.create(request, false) else { panic!("not made") };
    let port = at(&vm.published.unwrap()[0]);
    let _program = TcpListener::bind(port).unwrap();
    let job = world.begin(Ask::Start, "demo");
    assert!(matches!(world.wait(job), JobState::Done(_)));
    let shown = world.show(ALICE, "demo").unwrap();
    assert_eq!(shown.state, State::Running);
    assert!(shown.published.unwrap()[0].problem.as_ref().unwrap().contains("another program"));
    let life = world.life();
    let seen = life.runtime.block_on(life.vms.ctx.jobs.watch(&ALICE, job, 0, Duration::from_secs(1))).unwrap();
    assert!(seen.warnings.iter().any(|warning| warning.contains(&port.to_string())), "{:?}", seen.warnings);
    // A VM that would be made with it is not made.
    let request = CreateRequest {
        publish: PublishRequest { ports: vec![format!("{}:80", port.port())], ..PublishRequest::default() },
        ..named("second")
    };
    assert!(matches!(world.create(request, false), JobState::Failed(_)));
    assert!(world.show(ALICE, "second").is_err());
}

#[test]
fn who_is_given_a_vm_decides_on_its_ports_anew() {
    let world = World::new();
    world.running("demo");
    world.publish(ALICE, "demo", &["80"]).unwrap();
    world.order(STOP, "demo");
    let job = world.life().runtime.block_on(world.life().vms.give(&ROOT, "alice/demo", "bob".into())).unwrap();
    assert!(matches!(world.wait(job), JobState::Done(_)));
    assert_eq!(world.show(BOB, "demo").unwrap().published.unwrap(), []);
}

#[test]
fn whoever_is_given_a_vm_that_is_theirs_loses_nothing() {
    let world = World::new();
    world.running("demo");
    let published = world.publish(ALICE, "demo", &["80"]).unwrap();
    // Also while it runs: there is nothing to do.
    world.give(&ROOT, "alice/demo", "alice").unwrap();
    assert!(listens(at(&published[0])));
    world.order(STOP, "demo");
    world.give(&ROOT, "alice/demo", "alice").unwrap();
    assert_eq!(world.show(ALICE, "demo").unwrap().published.unwrap().len(), 1);
}

#[test]
fn a_vm_whose_ports_are_taken_and_whose_row_cannot_be_removed_is_removed_later() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap().port());
    // As if the disk were full.
    sql(&world, "CREATE TRIGGER full BEFORE DELETE ON vms BEGIN SELECT RAISE(ABORT, 'no room'); END");
    let publish = PublishRequest { ports: vec![port], ..PublishRequest::default() };
    let made = world.create(CreateRequest { publish, ..named("demo") }, false);
    assert!(matches!(made, JobState::Failed(_)), "{made:?}");
    sql(&world, "DROP TRIGGER full");
    let life = world.life();
    world.until_true("nothing counts as running", || {
        life.runtime.block_on(crate::vm::sweep::once(&life.vms.ctx));
        let counted = life.runtime.block_on(life.vms.ctx.db.host_has()).unwrap().vms;
        counted == 0 && life.vms.ctx.actors.lock().is_empty()
    });
    world.assert_nothing_at_all();
}
