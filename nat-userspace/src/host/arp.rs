//! Who answers ARP for an address, asked on the wire: the kernel keeps the last answer only, and of its own addresses none.
#![expect(unsafe_code, reason = "no crate wraps sockaddr_ll")]

use std::{
    collections::BTreeSet,
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use super::Link;

/// `ETH_P_ARP`, and what a request says of hardware (Ethernet) and protocol (IPv4) addresses.
const ARP: u16 = 0x0806;
const REQUEST: [u8; 10] = [0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4, 0, 1];
const REPLY: [u8; 10] = [0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4, 0, 2];

/// The ARP frames of one interface.
#[derive(Debug)]
pub struct Arp {
    socket: OwnedFd,
    mac: [u8; 6],
}

impl Arp {
    /// Listens on an interface. Takes `CAP_NET_RAW`.
    pub fn open(link: &Link) -> io::Result<Self> {
        // Of no protocol, so that nothing is received before it is bound.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        address.sll_protocol = ARP.to_be();
        address.sll_ifindex = i32::try_from(link.index).map_err(io::Error::other)?;
        let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        // SAFETY: the pointer and the length are those of `address`.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { socket, mac: link.mac })
    }

    /// Asks for the Ethernet address of `asked`. With an `asker` of 0.0.0.0 it is a probe (RFC 5227 section 2.1.1), from
    /// which nobody learns anything: for the interface's own addresses.
    pub fn ask(&self, asker: Ipv4Addr, asked: Ipv4Addr) -> io::Result<()> {
        send(&self.socket, &request(self.mac, asker, asked), SendFlags::empty())?;
        Ok(())
    }

    /// Answers that have come so far: an address, and the Ethernet address that it is said to have.
    pub fn answers(&self) -> BTreeSet<(Ipv4Addr, [u8; 6])> {
        let mut answers = BTreeSet::new();
        let mut frame = [0; 64];
        while let Ok((_, length)) = recv(&self.socket, &mut frame, RecvFlags::empty()) {
            answers.extend(frame.get(..length).and_then(answer));
        }
        answers
    }
}

fn request(mac: [u8; 6], asker: Ipv4Addr, asked: Ipv4Addr) -> Vec<u8> {
    let ends = [&mac[..], &asker.octets(), &[0; 6], &asked.octets()].concat();
    [&[0xff; 6][..], &mac, &REQUEST, &ends].concat()
}

/// What a frame says, if it is a reply.
fn answer(frame: &[u8]) -> Option<(Ipv4Addr, [u8; 6])> {
    let rest = frame.get(12..)?.strip_prefix(&REPLY)?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    Some((Ipv4Addr::from(*rest.first_chunk::<4>()?), *mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_replies_are_answers() {
        let (asker, asked) = (Ipv4Addr::new(192, 168, 1, 1), Ipv4Addr::new(192, 168, 1, 10));
        let mut frame = request([2; 6], asker, asked);
        assert_eq!((frame.len(), answer(&frame)), (42, None));
        frame[21] = 2;
        assert_eq!(answer(&frame), Some((asker, [2; 6])));
        assert_eq!(answer(&frame[..30]), None);
    }
}
