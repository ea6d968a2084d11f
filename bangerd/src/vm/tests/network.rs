//! How far guests reach: what the helper is told, from the row and from what names have for
//! addresses.

use super::set::{set, to};
use super::*;
use banger_policy::network::VmNetwork;
use banger_policy::reach::Reach;
use banger_proto::model::ErrorCode;

fn allow(words: &[&str]) -> SetRequest {
    let allow = Some(words.iter().map(|word| (*word).to_owned()).collect());
    SetRequest { network: NetworkRequest { allow, ..NetworkRequest::default() }, ..SetRequest::default() }
}

fn private(name: &str) -> NetworkRequest {
    NetworkRequest { private: Some(name.to_owned()), ..NetworkRequest::default() }
}

fn targets(reach: &Reach) -> Vec<String> {
    reach.targets.iter().map(ToString::to_string).collect()
}

/// Has the VM's names asked for again, as the daemon does every half minute.
fn refresh(world: &World, vm: &VmRecord) {
    let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    entry.orders.send(Order::AskNames).unwrap();
}

#[test]
fn a_new_vm_reaches_what_was_asked_else_what_is_configured_else_nothing() {
    let world = World::new();
    let vm = |name: &str, network| {
        let request = CreateRequest { network, ..named(name) };
        match world.create(request, false) {
            JobState::Done(JobResult::Vm(vm)) => *vm,
            other => panic!("{other:?}"),
        }
    };
    let nothing = vm("nothing", NetworkRequest::default());
    assert_eq!((nothing.network, world.helper.reach(nothing.id)), (VmNetwork::default(), Reach::default()));
    let public = vm("public", to(Mode::Public));
    assert_eq!((public.network.mode, public.spec.nat_enabled), (Mode::Public, false));
    assert_eq!(world.helper.reach(public.id), Reach::of(Mode::Public));

    let config = Config::built_in();
    let vm_defaults = VmDefaults { net: Mode::Public, ..config.vm_defaults };
    let world = World::with(Config { vm_defaults, ..config });
    world.create(CreateRequest { network: NetworkRequest::default(), ..named("demo") }, false);
    let demo = world.show(ALICE, "demo").unwrap();
    assert_eq!((demo.network.mode, world.helper.reach(demo.id).mode), (Mode::Public, Mode::Public));
}

#[test]
fn a_list_is_told_to_the_helper_shown_to_the_user_and_kept() {
    let mut world = World::new();
    let vm = world.running("demo");
    let changed = set(&world, allow(&["10.0.0.5:443/tcp", "192.168.0.0/16"])).unwrap();
    assert_eq!(changed.network.mode, Mode::Allow);
    assert!(!changed.spec.nat_enabled);
    assert_eq!(targets(&world.helper.reach(vm.id)), ["10.0.0.5/32:443/tcp", "192.168.0.0/16"]);
    world.restart();
    assert_eq!(world.show(ALICE, "demo").unwrap().network, changed.network);
    let listed = world.life().runtime.block_on(world.life().vms.list(&ALICE, false, None)).unwrap();
    assert!(listed.vms[0].network.allow.is_empty(), "a page of VMs must fit a frame");
    assert_eq!(listed.vms[0].network.mode, Mode::Allow);
    for (request, word) in [
        (allow(&["10.0.0.1/8"]), "10.0.0.0/8"),
        (allow(&["no name"]), "no name"),
        (allow(&[]), "needs a list"),
        (SetRequest { network: private("Not A Name"), ..SetRequest::default() }, "Not A Name"),
    ] {
        let error = set(&world, request).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.message.contains(word), "{error:?}");
        assert_eq!(world.show(ALICE, "demo").unwrap().network, changed.network);
    }
    world.order(STOP, "demo");
    world.order(Ask::Start, "demo");
    assert_eq!(targets(&world.helper.reach(vm.id)).len(), 2, "the next boot has it, too");
}

#[test]
fn names_are_resolved_refreshed_and_never_lead_inside() {
    let mut world = World::new();
    world.names.set("example.org", &[[9, 9, 9, 9], [10, 0, 0, 7]]);
    let vm = world.running("demo");
    set(&world, allow(&["example.org:443/tcp"])).unwrap();
    let dns = ["1.1.1.1/32:53/tcp", "1.1.1.1/32:53/udp"];
    let with = |more: &[&'static str]| [&dns[..], more].concat();
    assert_eq!(targets(&world.helper.reach(vm.id)), with(&["9.9.9.9/32:443/tcp"]));
    world.names.set("example.org", &[[8, 8, 8, 8], [127, 0, 0, 1]]);
    refresh(&world, &vm);
    let both = with(&["8.8.8.8/32:443/tcp", "9.9.9.9/32:443/tcp"]);
    world.until_true("the new address counts, the old one still does", || targets(&world.helper.reach(vm.id)) == both);
    // The same again tells the helper nothing.
    world.take_log();
    refresh(&world, &vm);
    set(&world, SetRequest { restart: Some(banger_policy::vm::RestartPolicy::Always), ..SetRequest::default() })
        .unwrap();
    assert!(!world.take_log().contains(&"set the network"));
    // A new run of the daemon asks again.
    world.restart();
    let new = with(&["8.8.8.8/32:443/tcp"]);
    world.until_true("what the name has now", || targets(&world.helper.reach(vm.id)) == new);
}

#[test]
fn a_name_that_is_not_resolved_keeps_no_vm_from_starting() {
    let world = World::new();
    let vm = world.running("demo");
    set(&world, allow(&["nowhere.example"])).unwrap();
    assert_eq!(targets(&world.helper.reach(vm.id)).len(), 2, "the resolver alone");
    world.names.set("nowhere.example", &[[9, 9, 9, 9]]);
    refresh(&world, &vm);
    world.until_true("it is there now", || targets(&world.helper.reach(vm.id)).len() == 3);
}

#[test]
fn a_private_network_is_its_owners_and_goes_with_a_new_owner() {
    let world = World::new();
    let make = |peer: Peer, name: &str| {
        let request = CreateRequest { network: private("lab"), ..named(name) };
        let JobState::Done(JobResult::Vm(vm)) = world.wait(world.begin_create(peer, request, false).unwrap()) else {
            panic!("{name}")
        };
        (vm.id, world.helper.reach(vm.id).group)
    };
    let (_, one) = make(ALICE, "one");
    let (_, two) = make(ALICE, "two");
    let (_, his) = make(BOB, "one");
    assert!(one.is_some() && one == two);
    assert!(his.is_some() && his != one, "another user's network of the same name");
    let other = SetRequest { network: private("other"), ..SetRequest::default() };
    let JobState::Done(_) = world.order(Ask::Set(other), "two") else { panic!() };
    let vm = world.show(ALICE, "two").unwrap();
    assert_ne!(world.helper.reach(vm.id).group, one);
    let none = SetRequest { network: private("none"), ..SetRequest::default() };
    let JobState::Done(_) = world.order(Ask::Set(none), "two") else { panic!() };
    assert_eq!(world.helper.reach(vm.id).group, None);
    // Who gets a VM does not get it into a network of the same name.
    let db = world.life().vms.ctx.db.clone();
    world.order(STOP, "one");
    let one = world.show(ALICE, "one").unwrap();
    let given = world.life().runtime.block_on(async {
        db.give_vm(one.id, Peer::new(1003, "carol", false).owner(), UserLimits::NONE).await.unwrap();
        db.vm(one.id).await.unwrap().unwrap()
    });
    assert_eq!((given.network.private, given.network.mode), (None, Mode::None));
}

#[test]
fn guests_of_one_private_network_are_told_each_other_and_nobody_else() {
    let mut world = World::new();
    let make = |world: &World, peer: Peer, name: &str, network: &str| {
        let request = CreateRequest { network: private(network), ..named(name) };
        let JobState::Done(JobResult::Vm(vm)) = world.wait(world.begin_create(peer, request, false).unwrap()) else {
            panic!("{name}")
        };
        vm.id
    };
    let told = |world: &World, vm: VmId, lines: &[&str]| {
        world.until_true("it is told", || world.machine.known(&vm).is_some_and(|known| known == lines));
    };
    let one = make(&world, ALICE, "one", "lab");
    let apart = make(&world, ALICE, "apart", "other");
    let his = make(&world, BOB, "his", "lab");
    told(&world, one, &[]);
    // Made after it, and never one's own name for itself.
    let two = make(&world, ALICE, "two", "lab");
    make(&world, ALICE, "localhost", "lab");
    told(&world, one, &["172.16.0.5 two two.alice.vm"]);
    told(&world, two, &["172.16.0.2 one one.alice.vm"]);
    for alone in [apart, his] {
        told(&world, alone, &[]);
    }

    // One that does not run keeps its name; one that leaves, or is gone, does not.
    world.order(STOP, "one");
    told(&world, two, &["172.16.0.2 one one.alice.vm"]);
    world.order(Ask::Start, "one");
    told(&world, one, &["172.16.0.5 two two.alice.vm"]);
    let other = SetRequest { network: private("other"), ..SetRequest::default() };
    world.order(Ask::Set(other), "one");
    told(&world, two, &[]);
    told(&world, one, &["172.16.0.3 apart apart.alice.vm"]);
    world.order(Ask::Delete, "apart");
    told(&world, one, &[]);

    // A daemon that was killed does not know what it has told.
    world.machine.forget_known();
    world.restart();
    told(&world, one, &[]);
    told(&world, two, &[]);
}
