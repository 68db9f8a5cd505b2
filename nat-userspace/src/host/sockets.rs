//! The ports that sockets of the gateway itself hold: NAT flows must not take their packets.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{DecodeError, NetlinkDeserializable as _, NetlinkHeader};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::hash::HashSet;

use super::{
    HostError,
    netlink::{Channel, Message},
};

/// The local ports of a namespace's sockets of one protocol.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct BoundPorts(HashSet<(Ipv4Addr, u16)>);

impl BoundPorts {
    /// Whether a packet to this address and port could be for a socket of the gateway.
    pub fn contains(&self, addr: Ipv4Addr, port: u16) -> bool {
        self.0.contains(&(Ipv4Addr::UNSPECIFIED, port)) || self.0.contains(&(addr, port))
    }

    /// Every held port with its local address, 0.0.0.0 for all.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, u16)> {
        self.0.iter().copied()
    }
}

/// Lists the ports held in the calling thread's namespace, by sockets of TCP (6) or UDP (17) in any state. The kernel looks
/// through its table of all namespaces' TCP connections for it.
pub fn bound_ports(protocol: u8) -> Result<BoundPorts, HostError> {
    let failed = |source| HostError::new("list the sockets of the gateway", source);
    let mut channel = Channel::open(NETLINK_SOCK_DIAG).map_err(failed)?;
    let mut ports = BoundPorts::default();
    for family in [AF_INET, AF_INET6] {
        channel
            .dump(request(family, protocol), |message| {
                ports.0.extend(held(&message)?);
                Ok(())
            })
            .map_err(failed)?;
    }
    Ok(ports)
}

fn request(family: u8, protocol: u8) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        // Also the states the library has no name for: a handshake under way, bound but not yet in use.
        states: StateFlags::from_bits_retain(u32::MAX),
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    })
}

/// The IPv4 address and port a socket holds, if it can receive IPv4 at all.
fn held(message: &Message<'_>) -> Result<Option<(Ipv4Addr, u16)>, DecodeError> {
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    let SockDiagMessage::InetResponse(socket) = SockDiagMessage::deserialize(&header, message.payload)?
    else {
        return Ok(None);
    };
    let InetResponse { header, nlas } = *socket;
    let port = header.socket_id.source_port;
    let v6_only = nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true)));
    let addr = match header.socket_id.source_address {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(addr) if addr.is_unspecified() && !v6_only => Some(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(addr) => addr.to_ipv4_mapped(),
    };
    Ok(addr.filter(|_| port != 0).map(|addr| (addr, port)))
}
