//! Links, addresses and routes. The only file that knows rtnetlink.

use crate::kernel::{KernelError, Link, LinkKind, Outcome};
use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkDummy, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr};

/// The route netlink socket.
#[derive(Debug)]
pub struct Links {
    handle: Handle,
}

/// How a tap or dummy link of ours is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The mark.
    pub alias: &'a str,
    /// Whose it is: the firewall counts by it.
    pub group: u32,
    /// The host's address on it.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
}

impl Links {
    /// Opens the socket. Its task lives on the caller's `LocalSet`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::task::spawn_local(connection);
        Ok(Self { handle })
    }

    /// Sets up a new link: mark first, so that it is never up without one; no IPv6 address of its
    /// own.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn set_up(&self, ifindex: u32, setup: &Setup<'_>) -> Outcome<()> {
        let no_ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let marked = LinkMessageBuilder::<LinkUnspec>::new()
            .index(ifindex)
            .alias(setup.alias)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_ipv6]))
            .append_extra_attribute(LinkAttribute::Group(setup.group))
            .build();
        self.handle.link().set(marked).execute().await.map_err(|error| failed("link-mark", &error))?;
        crate::fail::point("link-marked");
        let address = IpAddr::V4(setup.address);
        let add = self.handle.address().add(ifindex, address, setup.prefix).replace().execute().await;
        add.map_err(|error| failed("link-address", &error))?;
        crate::fail::point("link-addressed");
        let up = LinkMessageBuilder::<LinkUnspec>::new().index(ifindex).up().build();
        self.handle.link().set(up).execute().await.map_err(|error| failed("link-up", &error))
    }

    /// Takes every other IPv4 address from a link. The network of an earlier configuration would
    /// else stay routed there, and be in the way of whoever has it now. Taps of VMs that run since
    /// then have that gateway's address themselves, and keep it.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn keep_only(&self, ifindex: u32, address: Ipv4Addr, prefix: u8) -> Outcome<()> {
        let all = self.handle.address().get().set_link_index_filter(ifindex).execute();
        let all: Vec<AddressMessage> = all.try_collect().await.map_err(|error| failed("address-list", &error))?;
        let kept = AddressAttribute::Local(IpAddr::V4(address));
        let others = all.into_iter().filter(|message| {
            let ours = message.header.prefix_len == prefix && message.attributes.contains(&kept);
            message.header.family == AddressFamily::Inet && !ours
        });
        for other in others {
            match self.handle.address().del(other).execute().await {
                // With the first address of a network, its others may go (`promote_secondaries`).
                Err(error) if errno(&error) != libc::EADDRNOTAVAIL => return Err(failed("address-delete", &error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Routes one guest's address to its tap.
    ///
    /// # Errors
    /// EEXIST when there is another route to that address.
    pub async fn route(&self, guest: Ipv4Addr, ifindex: u32, source: Ipv4Addr) -> Outcome<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(guest, 32)
            .output_interface(ifindex)
            .pref_source(source)
            .scope(rtnetlink::packet_route::route::RouteScope::Link)
            .build();
        self.handle.route().add(route).execute().await.map_err(|error| failed("route-add", &error))
    }

    /// Makes a dummy link; it is down and unmarked.
    ///
    /// # Errors
    /// EEXIST when there is a link of that name.
    pub async fn make_dummy(&self, name: &str) -> Outcome<()> {
        let dummy = LinkDummy::new(name).build();
        self.handle.link().add(dummy).execute().await.map_err(|error| failed("bridge-make", &error))
    }

    /// One link by number.
    ///
    /// # Errors
    /// The kernel's; no such link is `None`.
    pub async fn by_index(&self, ifindex: u32) -> Outcome<Option<Link>> {
        one(self.handle.link().get().match_index(ifindex).execute().try_next().await)
    }

    /// One link by name.
    ///
    /// # Errors
    /// The kernel's; no such link is `None`.
    pub async fn by_name(&self, name: &str) -> Outcome<Option<Link>> {
        one(self.handle.link().get().match_name(name).execute().try_next().await)
    }

    /// All links.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn all(&self) -> Outcome<Vec<Link>> {
        let all = self.handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![]).execute();
        let links: Vec<LinkMessage> = all.try_collect().await.map_err(|error| failed("link-list", &error))?;
        Ok(links.iter().map(read).collect())
    }

    /// Removes a link; gone already is success.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn delete(&self, ifindex: u32) -> Outcome<()> {
        match self.handle.link().del(ifindex).execute().await {
            Err(error) if errno(&error) == libc::ENODEV => Ok(()),
            other => other.map_err(|error| failed("link-delete", &error)),
        }
    }
}

fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().saturating_neg(),
        _ => libc::EIO,
    }
}

fn failed(step: &'static str, error: &rtnetlink::Error) -> KernelError {
    KernelError { step, errno: errno(error) }
}

fn one(found: Result<Option<LinkMessage>, rtnetlink::Error>) -> Outcome<Option<Link>> {
    match found {
        Ok(message) => Ok(message.as_ref().map(read)),
        Err(error) if errno(&error) == libc::ENODEV => Ok(None),
        Err(error) => Err(failed("link-get", &error)),
    }
}

fn read(message: &LinkMessage) -> Link {
    let (ifindex, kind) = (message.header.index, LinkKind::Other);
    let mut link = Link { ifindex, name: String::new(), alias: String::new(), kind, carrier: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Carrier(carrier) => link.carrier = *carrier == 1,
            LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Tun)) => {
                link.kind = LinkKind::Tun
            }
            LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Dummy)) => {
                link.kind = LinkKind::Dummy;
            }
            _ => {}
        }
    }
    link
}
