//! Real sockets on loopback; the guest is a listener of the test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use banger_policy::publish::rules::Caller;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};

/// Whoever asks is this one. Locked: the kernel does not answer.
#[derive(Debug)]
struct Always(Mutex<Caller>);

impl Callers for Always {
    fn tcp(&self, _: SocketAddr, _: SocketAddr) -> Caller {
        *self.0.lock().unwrap()
    }

    fn udp(&self, _: SocketAddr) -> Caller {
        *self.0.lock().unwrap()
    }
}

struct World {
    ports: Ports,
    caller: Arc<Always>,
}

const OWNER: u32 = 1001;
const OTHER: u32 = 1002;

impl World {
    fn new(caller: Caller) -> Self {
        let caller = Arc::new(Always(Mutex::new(caller)));
        let guests = Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap();
        let rules = Rules { networks: Vec::new(), guests };
        Self { ports: Ports::start(rules, Arc::clone(&caller) as Arc<dyn Callers>).unwrap(), caller }
    }

    /// Publishes a port of the "guest" on a free one; where that is.
    fn publish(&self, guest: SocketAddr, protocol: Protocol, change: impl Fn(Published) -> Published) -> SocketAddr {
        self.publish_for(OWNER, guest, protocol, change)
    }

    fn publish_for(
        &self,
        owner: u32,
        guest: SocketAddr,
        protocol: Protocol,
        change: impl Fn(Published) -> Published,
    ) -> SocketAddr {
        let free = match protocol {
            Protocol::Tcp => TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
            Protocol::Udp => UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        };
        let published = change(Published {
            protocol,
            address: free.ip(),
            host_port: free.port(),
            guest_port: guest.port(),
            public: false,
            proxy_protocol: false,
        });
        let bound = self.ports.bind(&published).unwrap();
        let IpAddr::V4(address) = guest.ip() else { unreachable!() };
        self.ports.open(vm(), owner, address, published, bound);
        published.host()
    }

    fn close(&self) {
        futures::executor::block_on(self.ports.close(&vm(), |_| true));
    }
}

fn vm() -> VmId {
    VmId::from_bytes([5; 32]).unwrap()
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Answers each connection with what it sent, after its end.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let (mut stream, mut all) = (stream.unwrap(), Vec::new());
                if stream.read_to_end(&mut all).is_ok() {
                    drop(stream.write_all(&all));
                }
            });
        }
    });
    address
}

fn is_refused(to: SocketAddr) -> bool {
    let mut stream = connect(to);
    drop(stream.write_all(b"x"));
    drop(stream.shutdown(Shutdown::Write));
    !matches!(stream.read(&mut [0; 1]), Ok(1))
}

#[test]
fn what_is_sent_comes_back_after_half_a_close_and_ends_with_the_port() {
    let world = World::new(Caller::Uid(OWNER));
    let port = world.publish(echo(), Protocol::Tcp, |port| port);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let mut stream = connect(port);
    let writer = thread::spawn({
        let (mut stream, sent) = (stream.try_clone().unwrap(), sent.clone());
        move || {
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(back == sent, "{} of {} bytes", back.len(), sent.len());
    let mut open = connect(port);
    open.write_all(b"x").unwrap();
    world.close();
    assert!(!matches!(open.read(&mut [0; 1]), Ok(1)), "a connection outlived its port");
    // The listener is gone when close returns, and the port is free again.
    TcpListener::bind(port).unwrap();
}

#[test]
fn only_the_owner_and_root_pass_unless_it_is_public() {
    let world = World::new(Caller::Unknown);
    let guest = echo();
    let port = world.publish(guest, Protocol::Tcp, |port| port);
    let public = world.publish(guest, Protocol::Tcp, |port| Published { public: true, ..port });
    for (caller, refused) in
        [(Caller::Unknown, true), (Caller::Uid(1002), true), (Caller::Uid(OWNER), false), (Caller::Uid(0), false)]
    {
        *world.caller.0.lock().unwrap() = caller;
        assert_eq!(is_refused(port), refused, "{caller:?}");
        assert!(!is_refused(public), "{caller:?}");
    }
}

#[test]
fn a_guest_that_does_not_listen_is_a_reset_soon() {
    let world = World::new(Caller::Uid(OWNER));
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let port = world.publish(gone, Protocol::Tcp, |port| port);
    let began = Instant::now();
    let error = connect(port).read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_program_is_told_who_connects_when_asked() {
    let world = World::new(Caller::Uid(OWNER));
    let port = world.publish(echo(), Protocol::Tcp, |port| Published { proxy_protocol: true, ..port });
    let mut stream = connect(port);
    let own = stream.local_addr().unwrap().port();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len(), 28 + 5);
    assert_eq!((&seen[..12], &seen[24..26]), (&b"\r\n\r\n\0\r\nQUIT\n"[..], &own.to_be_bytes()[..]));
    assert!(seen.ends_with(b"hello"));
}

#[test]
fn many_connections_are_served_at_once_and_the_port_is_taken() {
    let world = World::new(Caller::Uid(OWNER));
    let port = world.publish(echo(), Protocol::Tcp, |port| port);
    let mut open: Vec<TcpStream> = (0..64).map(|_| connect(port)).collect();
    for stream in &mut open {
        stream.write_all(b"y").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 2]).unwrap(), 1);
    }
    let refused = world.ports.bind(&Published {
        protocol: Protocol::Tcp,
        address: port.ip(),
        host_port: port.port(),
        guest_port: 1,
        public: false,
        proxy_protocol: false,
    });
    assert!(matches!(refused, Err(NotBound::InUse)), "{refused:?}");
}

#[test]
fn datagrams_pass_both_ways_by_flow_and_a_flow_is_asked_again() {
    let world = World::new(Caller::Uid(1002));
    let guest = UdpSocket::bind("127.0.0.1:0").unwrap();
    guest.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let port = world.publish(guest.local_addr().unwrap(), Protocol::Udp, |port| port);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 16];
    client.send_to(b"no", port).unwrap();
    guest.recv_from(&mut buffer).unwrap_err();
    *world.caller.0.lock().unwrap() = Caller::Uid(OWNER);
    client.send_to(b"ping", port).unwrap();
    let (size, flow) = guest.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..size], b"ping");
    guest.send_to(b"pong!", flow).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap(), (5, port));
    // The sender's port is another user's now, who neither sends nor is sent anything.
    *world.caller.0.lock().unwrap() = Caller::Unknown;
    thread::sleep(Duration::from_millis(1100));
    client.send_to(b"again", port).unwrap();
    guest.recv_from(&mut buffer).unwrap_err();
    guest.send_to(b"secret", flow).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    client.recv_from(&mut buffer).unwrap_err();
    // After a pause it is a new flow, from another port.
    thread::sleep(Duration::from_millis(1500));
    *world.caller.0.lock().unwrap() = Caller::Uid(OWNER);
    client.send_to(b"ping", port).unwrap();
    assert_ne!(guest.recv_from(&mut buffer).unwrap().1, flow);
    world.close();
    UdpSocket::bind(port).unwrap();
}

/// Whether a mirror answers.
fn passes(stream: &mut TcpStream) -> bool {
    stream.write_all(b"x").unwrap();
    stream.read(&mut [0; 1]).is_ok_and(|size| size == 1)
}

/// Answers each byte at once.
fn mirror() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    address
}

#[test]
fn questions_to_the_kernel_hold_up_no_bytes() {
    let world = World::new(Caller::Uid(OWNER));
    let mut open = connect(world.publish(mirror(), Protocol::Tcp, |port| port));
    assert!(passes(&mut open));
    let ports: Vec<SocketAddr> = (0..2 * THREADS)
        .flat_map(|_| [Protocol::Tcp, Protocol::Udp])
        .map(|protocol| world.publish_for(OTHER, mirror(), protocol, |port| port))
        .collect();
    let kernel = world.caller.0.lock().unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let asked: Vec<_> = ports.iter().map(|port| (client.send_to(b"x", port).unwrap(), connect_any(*port))).collect();
    thread::sleep(Duration::from_millis(200));
    open.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(passes(&mut open), "while {} ports wait for the kernel's answer", asked.len());
    drop(kernel);
}

/// Without waiting for anything; a port of UDP takes no connection.
fn connect_any(to: SocketAddr) -> Option<TcpStream> {
    TcpStream::connect(to).ok()
}

#[test]
fn a_flow_gets_what_came_while_the_kernel_was_asked() {
    let world = World::new(Caller::Uid(OWNER));
    let guest = UdpSocket::bind("127.0.0.1:0").unwrap();
    guest.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = world.publish(guest.local_addr().unwrap(), Protocol::Udp, |port| port);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut buffer = [0; 16];
    // Of a new flow, and of one of which the last answer is old.
    for _ in 0..2 {
        let kernel = world.caller.0.lock().unwrap();
        for number in 0..8 {
            client.send_to(&[number], port).unwrap();
        }
        thread::sleep(Duration::from_millis(200));
        drop(kernel);
        for number in 0..8 {
            assert_eq!(guest.recv_from(&mut buffer).unwrap().0, 1);
            assert_eq!(buffer[0], number);
        }
        thread::sleep(Duration::from_millis(1100));
    }
}

#[test]
fn so_many_new_senders_wait_for_the_kernel_and_no_more() {
    let world = World::new(Caller::Uid(OWNER));
    let guest = UdpSocket::bind("127.0.0.1:0").unwrap();
    guest.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let port = world.publish(guest.local_addr().unwrap(), Protocol::Udp, |port| port);
    let kernel = world.caller.0.lock().unwrap();
    let clients: Vec<_> = (0..2 * udp::NEW).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    clients.iter().for_each(|client| assert_eq!(client.send_to(b"x", port).unwrap(), 1));
    thread::sleep(Duration::from_millis(500));
    drop(kernel);
    let passed = std::iter::from_fn(|| guest.recv_from(&mut [0; 16]).ok()).count();
    assert_eq!(passed, udp::NEW);
    // The answers have made room for others.
    clients.iter().for_each(|client| assert_eq!(client.send_to(b"x", port).unwrap(), 1));
    let passed = std::iter::from_fn(|| guest.recv_from(&mut [0; 16]).ok()).count();
    assert!(passed >= udp::NEW, "{passed}");
}

/// All turns of a user, as if many connections were always ready.
fn take_turns(share: &Share) -> Vec<tokio::sync::SemaphorePermit<'_>> {
    (0..THREADS).map(|_| futures::executor::block_on(share.turn()).unwrap()).collect()
}

#[test]
fn what_a_user_sends_waits_for_that_users_turn() {
    let world = World::new(Caller::Uid(0));
    let mirror = mirror();
    let [mut one, mut other] = [OWNER, OTHER].map(|owner| {
        let mut stream = connect(world.publish_for(owner, mirror, Protocol::Tcp, |port| port));
        assert!(passes(&mut stream));
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        stream
    });
    let guest = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = world.publish(guest.local_addr().unwrap(), Protocol::Tcp, |port| port);
    let share = world.ports.shares.of(OWNER);
    let turns = take_turns(&share);
    assert!(!passes(&mut one) && passes(&mut other));
    let _late = connect(port);
    thread::sleep(Duration::from_millis(300));
    guest.set_nonblocking(true).unwrap();
    assert_eq!(guest.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "accepted out of turn");
    drop(turns);
    one.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(one.read(&mut [0; 1]).unwrap(), 1);
    guest.set_nonblocking(false).unwrap();
    guest.accept().unwrap();
}

#[test]
fn datagrams_wait_for_the_users_turn_both_ways() {
    let world = World::new(Caller::Uid(0));
    let [guest, client] = [(); 2].map(|()| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    });
    let port = world.publish(guest.local_addr().unwrap(), Protocol::Udp, |port| port);
    let mut buffer = [0; 16];
    client.send_to(b"first", port).unwrap();
    let flow = guest.recv_from(&mut buffer).unwrap().1;
    let share = world.ports.shares.of(OWNER);
    for (from, to, address) in [(&client, &guest, port), (&guest, &client, flow)] {
        let turns = take_turns(&share);
        from.send_to(b"x", address).unwrap();
        to.recv_from(&mut buffer).unwrap_err();
        drop(turns);
        to.recv_from(&mut buffer).unwrap();
    }
}

#[test]
fn a_connection_through_a_port_is_use_of_the_vm_as_long_as_it_is_open() {
    let world = World::new(Caller::Uid(OWNER));
    let port = world.publish(echo(), Protocol::Tcp, |port| port);
    let becomes = |used: bool| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while world.ports.used(&vm()) != used {
            assert!(Instant::now() < deadline, "never {used}");
            thread::sleep(Duration::from_millis(5));
        }
    };
    assert!(!world.ports.used(&vm()));
    let open = connect(port);
    becomes(true);
    drop(open);
    becomes(false);
}
