//! The server over real sockets of loopback, and real rows of VMs.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod message;

use super::message::LONGEST;
use super::socket;
use super::{Protocol, Server, SocketAddrV4};
use crate::vm::Ask;
use crate::vm::tests::{ALICE, BOB, ROOT, World, named};
use banger_policy::Peer;
use banger_proto::daemon::KillSignal;
use simple_dns::rdata::{RData, TYPE};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// A running server, and a client that is asked for as whoever the test says.
struct Served {
    own: SocketAddrV4,
    client: UdpSocket,
}

/// In the place of the kernel's tables: the port of the client says who it is. See [`Served::is`].
fn by_port(_: Protocol, peers: &[SocketAddrV4], _: SocketAddrV4) -> Vec<Option<u32>> {
    peers.iter().map(|peer| WHO.lock().unwrap().get(&peer.port()).copied()).collect()
}

static WHO: std::sync::Mutex<std::collections::BTreeMap<u16, u32>> =
    std::sync::Mutex::new(std::collections::BTreeMap::new());

fn question(name: &str, kind: TYPE) -> Vec<u8> {
    let mut packet = Packet::new_query(7);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name).unwrap(), kind.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().unwrap()
}

/// What an answer says: its code and the addresses or names in it.
fn said(bytes: &[u8]) -> (RCODE, Vec<String>) {
    let packet = Packet::parse(bytes).unwrap();
    let data = packet.answers.iter().map(|record| match &record.rdata {
        RData::A(a) => Ipv4Addr::from(a.address).to_string(),
        RData::PTR(name) => name.to_string(),
        other => panic!("{other:?}"),
    });
    (packet.rcode(), data.collect())
}

impl Served {
    fn new(world: &World) -> Self {
        let life = world.life();
        let server = Arc::new(Server::new(Arc::clone(&life.vms), by_port));
        let sockets = life.runtime.block_on(socket::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))).unwrap();
        let own = sockets.own;
        life.runtime.spawn(sockets.serve(server));
        Self { own, client: UdpSocket::bind("127.0.0.1:0").unwrap() }
    }

    fn is(self, peer: &Peer) -> Self {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        WHO.lock().unwrap().insert(client.local_addr().unwrap().port(), peer.uid);
        Self { client, ..self }
    }

    fn bytes(&self, query: &[u8]) -> Vec<u8> {
        self.client.send_to(query, self.own).unwrap();
        let mut buffer = [0; 2048];
        let length = self.client.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    fn ask(&self, name: &str, kind: TYPE) -> (RCODE, Vec<String>) {
        said(&self.bytes(&question(name, kind)))
    }

    fn address(&self, name: &str) -> Option<String> {
        self.ask(name, TYPE::A).1.pop()
    }
}

const NONE: Vec<String> = Vec::new();

#[test]
fn a_running_vm_has_a_name_for_its_owner_and_root() {
    let world = World::new();
    let vm = world.running("web");
    let address = vm.runtime.guest_ip.to_string();
    let served = Served::new(&world).is(&ALICE);
    assert_eq!(served.ask("web.alice.vm", TYPE::A), (RCODE::NoError, vec![address.clone()]));
    assert_eq!(served.ask("WEB.Alice.vm", TYPE::A).1, std::slice::from_ref(&address));
    // Guests have no address of IPv6, which is no reason to look for the name elsewhere.
    for kind in [TYPE::AAAA, TYPE::TXT, TYPE::MX, TYPE::SOA] {
        assert_eq!(served.ask("web.alice.vm", kind), (RCODE::NoError, NONE), "{kind:?}");
    }
    assert_eq!(served.ask("alice.vm", TYPE::A), (RCODE::NoError, NONE));
    assert_eq!(served.ask("nobody.vm", TYPE::A), (RCODE::NoError, NONE));
    for name in ["other.alice.vm", "web.bob.vm", "x.web.alice.vm", "web.u1001.vm"] {
        assert_eq!(served.ask(name, TYPE::A), (RCODE::NameError, NONE), "{name}");
    }
    for name in
        ["example.com", "web.alice.vm.example.com", "vm.example", "1.0.0.127.in-addr.arpa", "7.7.7.7.in-addr.arpa"]
    {
        assert_eq!(served.ask(name, TYPE::A), (RCODE::Refused, NONE), "{name}");
    }
    let reversed = reversed(vm.runtime.guest_ip);
    assert_eq!(served.ask(&reversed, TYPE::PTR), (RCODE::NoError, vec!["web.alice.vm".to_owned()]));
    let served = served.is(&ROOT);
    assert_eq!(served.address("web.alice.vm"), Some(address));
    // Of another user's VM bob learns what he learns of one that is not there.
    let served = served.is(&BOB);
    for (name, kind) in [("web.alice.vm", TYPE::A), ("web.alice.vm", TYPE::AAAA), (&*reversed, TYPE::PTR)] {
        assert_eq!(served.ask(name, kind), (RCODE::NameError, NONE), "{name}");
    }
}

/// A row that cannot be read fails whoever reads it.
#[test]
fn a_question_reads_the_vm_that_it_is_about_and_no_other() {
    let world = World::new();
    let [web, alices] = ["web", "other"].map(|name| world.running(name));
    let job = world.life().runtime.block_on(world.life().vms.create(&BOB, named("web"), false)).unwrap();
    world.wait(job);
    let sql = rusqlite::Connection::open(world.paths().database()).unwrap();
    let spoilt = "UPDATE vms SET network = '{' WHERE owner_name = 'bob' OR name = 'other'";
    assert_eq!(sql.execute(spoilt, []).unwrap(), 2);
    let address = web.runtime.guest_ip;
    let served = Served::new(&world).is(&ROOT);
    assert_eq!(served.ask(&reversed(address), TYPE::PTR), (RCODE::NoError, vec!["web.alice.vm".to_owned()]));
    assert_eq!(served.address("web.alice.vm"), Some(address.to_string()));
    // What is not the asker's is not read to find out that it is not.
    let served = served.is(&BOB);
    assert_eq!(served.ask(&reversed(alices.runtime.guest_ip), TYPE::PTR), (RCODE::NameError, NONE));
    assert_eq!(served.ask("other.alice.vm", TYPE::A), (RCODE::NameError, NONE));
    let served = served.is(&ALICE);
    assert_eq!(served.ask(&reversed(alices.runtime.guest_ip), TYPE::PTR), (RCODE::ServerFailure, NONE));
}

/// A VM runs with the address of its start, whatever the network's next one for it is.
#[test]
fn an_address_is_that_of_the_vm_that_runs_with_it() {
    let world = World::new();
    let [web, other] = ["web", "other"].map(|name| world.running(name));
    let (old, new) = (web.runtime.guest_ip, other.runtime.guest_ip);
    let sql = rusqlite::Connection::open(world.paths().database()).unwrap();
    // As if the leases were of another network than the one in which both were started.
    let leases = "UPDATE leases SET address_index = address_index + 7";
    assert_eq!(sql.execute(leases, []).unwrap(), 2);
    let served = Served::new(&world).is(&ALICE);
    let name = |address| served.ask(&reversed(address), TYPE::PTR).1;
    assert_eq!((name(old), name(new)), (vec!["web.alice.vm".to_owned()], vec!["other.alice.vm".to_owned()]));
    let leased = Ipv4Addr::from_bits(old.to_bits() + 7);
    assert_eq!(served.ask(&reversed(leased), TYPE::PTR), (RCODE::NameError, NONE), "nobody runs with it");
    // Of a start before the database knew addresses, the lease says it.
    sql.execute("UPDATE vms SET guest_ip = NULL", []).unwrap();
    assert_eq!(name(leased), ["web.alice.vm"]);
}

fn reversed(address: Ipv4Addr) -> String {
    let [first, second, third, last] = address.octets();
    format!("{last}.{third}.{second}.{first}.in-addr.arpa")
}

#[test]
fn whoever_cannot_be_told_is_told_nothing() {
    let world = World::new();
    world.running("web");
    let served = Served::new(&world);
    served.client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let query = question("web.alice.vm", TYPE::A);
    // That there is no such name would end the search: over TCP the same client is known.
    let answer = served.bytes(&query);
    assert!(Packet::parse(&answer).unwrap().has_flags(PacketFlag::TRUNCATION));
    assert_eq!(said(&answer), (RCODE::NoError, NONE));
    // What needs no look is answered.
    assert_eq!(served.ask("example.org", TYPE::A), (RCODE::Refused, NONE));
    let mut stream = TcpStream::connect(served.own).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes(), &*query].concat()).unwrap();
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).unwrap();
    assert_eq!(said(&answer[2..length]), (RCODE::NameError, NONE));
}

#[test]
fn a_resolver_asks_for_everybody_when_an_administrator_lets_it() {
    let resolver = Peer::new(990, "systemd-resolve", false);
    for (lets, answer) in [(true, RCODE::NoError), (false, RCODE::NameError)] {
        let world = World::new();
        world.running("web");
        world.users.set(resolver.uid, Some("systemd-resolve"));
        let mut server = Server::new(Arc::clone(&world.life().vms), by_port);
        if !lets {
            server.askers = super::Askers::new(Arc::clone(&world.life().vms.ctx.users), Vec::new());
        }
        let life = world.life();
        let sockets = life.runtime.block_on(socket::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))).unwrap();
        let own = sockets.own;
        life.runtime.spawn(sockets.serve(Arc::new(server)));
        let served = Served { own, client: UdpSocket::bind("127.0.0.1:0").unwrap() }.is(&resolver);
        assert_eq!(served.ask("web.alice.vm", TYPE::A).0, answer, "{lets}");
    }
}

#[test]
fn a_name_goes_and_comes_with_its_vm() {
    let world = World::new();
    let address = world.running("web").runtime.guest_ip.to_string();
    let served = Served::new(&world).is(&ALICE);
    assert_eq!(served.address("web.alice.vm"), Some(address.clone()));
    world.order_of(&ALICE, Ask::Kill(KillSignal::Kill), "web");
    assert_eq!(served.ask("web.alice.vm", TYPE::A), (RCODE::NameError, NONE), "it does not run");
    world.order_of(&ALICE, Ask::Start, "web");
    assert_eq!(served.address("web.alice.vm"), Some(address));
    world.order_of(&ALICE, Ask::Delete, "web");
    assert_eq!(served.ask("web.alice.vm", TYPE::A), (RCODE::NameError, NONE));
}

#[test]
fn the_next_user_of_a_number_finds_none_of_the_first_ones_names() {
    let world = World::new();
    world.running("web");
    world.users.set(ALICE.uid, Some("carol"));
    let served = Served::new(&world).is(&ALICE);
    for name in ["web.alice.vm", "web.carol.vm"] {
        assert_eq!(served.ask(name, TYPE::A), (RCODE::NameError, NONE), "{name}");
    }
    // Nor does root find what is about to be stopped.
    let served = served.is(&ROOT);
    assert_eq!(served.ask("web.alice.vm", TYPE::A), (RCODE::NameError, NONE));
}

#[test]
fn a_name_of_two_users_means_the_one_that_is_named() {
    let world = World::new();
    let alices = world.running("web").runtime.guest_ip.to_string();
    let job = world.life().runtime.block_on(world.life().vms.create(&BOB, named("web"), false)).unwrap();
    world.wait(job);
    let served = Served::new(&world).is(&ROOT);
    let bobs = served.address("web.bob.vm").unwrap();
    assert_eq!(served.address("web.alice.vm"), Some(alices.clone()));
    assert_ne!(alices, bobs);
}

#[test]
fn questions_over_a_connection() {
    let world = World::new();
    let address = world.running("web").runtime.guest_ip.to_string();
    let served = Served::new(&world);
    let mut asked = None;
    // The server may look before the test has said who it is: then the next connection is tried.
    let mut stream = TcpStream::connect(served.own).unwrap();
    for _ in 0..20 {
        stream = TcpStream::connect(served.own).unwrap();
        WHO.lock().unwrap().insert(stream.local_addr().unwrap().port(), ALICE.uid);
        let query = question("web.alice.vm", TYPE::A);
        let mut ask = || {
            stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).ok()?;
            stream.write_all(&query).ok()?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).ok()?;
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).ok()?;
            Some(said(&bytes))
        };
        let (first, second) = (ask(), ask());
        assert_eq!(first, second);
        asked = first;
        if asked.as_ref().is_some_and(|(code, _)| *code == RCODE::NoError) {
            break;
        }
    }
    assert_eq!(asked, Some((RCODE::NoError, vec![address])));
    // One that is too long ends the connection.
    stream.write_all(&u16::try_from(LONGEST + 1).unwrap().to_be_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn one_users_flood_costs_another_no_answer() {
    let world = World::new();
    let address = world.running("web").runtime.guest_ip.to_string();
    let served = Served::new(&world).is(&BOB);
    let query = question("web.alice.vm", TYPE::A);
    served.client.set_nonblocking(true).unwrap();
    let (mut answers, began) = (0, std::time::Instant::now());
    for _ in 0..6_000 {
        served.client.send_to(&query, served.own).unwrap();
        answers += u64::from(served.client.recv(&mut [0; 512]).is_ok());
    }
    let allowed = 1_000 + 200 * (began.elapsed().as_secs() + 1);
    assert!(answers <= allowed, "{answers}, and bob has 1000 at once and 200 a second: {allowed}");
    let served = served.is(&ALICE);
    served.client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    // What the flood has left in the queue may cost a datagram; clients ask again.
    let answered = (0..10).any(|_| {
        served.client.send_to(&query, served.own).unwrap();
        let mut buffer = [0; 512];
        served.client.recv(&mut buffer).is_ok_and(|length| said(&buffer[..length]).1 == [address.clone()])
    });
    assert!(answered);
}
