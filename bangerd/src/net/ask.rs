//! One question to a resolver of this host, for the checks of `doctor`.

use simple_dns::rdata::TYPE;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;
use tokio::net::UdpSocket;

/// How long a resolver of this host may take. `doctor` waits for it.
const PATIENCE: Duration = Duration::from_millis(400);

/// What it says about a name: `None` when it does not answer.
pub(crate) async fn ask(server: SocketAddrV4, name: &str) -> Option<RCODE> {
    let mut query = Packet::new_query(1);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    query.questions.push(Question::new(Name::new(name).ok()?, TYPE::A.into(), CLASS::IN.into(), false));
    let bytes = query.build_bytes_vec().ok()?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?;
    // Only that server's answers come in.
    socket.connect(server).await.ok()?;
    socket.send(&bytes).await.ok()?;
    let mut buffer = [0; 512];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.ok()?.ok()?;
    simple_dns::header_buffer::rcode(buffer.get(..length)?).ok()
}
