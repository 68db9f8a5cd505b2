//! Rewriting a packet in place: the same bytes whether the program or the daemon does it.

use crate::checksum::Delta;
use crate::flow::FlowValue;
use crate::frame::Frame;
use crate::next_hop::NextHop;
use crate::parse::Parsed;
use crate::wire::{self, Ethernet, Icmp, Ipv4, Tcp, Udp};

/// Writes a flow's addresses and ports, and brings the checksums after. The TTL is
/// [`decrement_ttl`]'s and the MACs [`address_frame`]'s.
///
/// `None` if the frame ends before a header does, which [`crate::parse()`] has excluded.
///
/// `transport` is the frame from [`Parsed::transport`] on.
#[inline(always)]
pub fn rewrite<F: Frame>(frame: &F, transport: &F, parsed: &Parsed, flow: &FlowValue) -> Option<()> {
    rewrite_addresses(frame, parsed.network, flow)?;
    rewrite_transport(transport, parsed.key.protocol, flow)
}

/// The addresses of the IPv4 header at `network`, and its checksum.
#[inline(always)]
pub fn rewrite_addresses<F: Frame>(frame: &F, network: usize, flow: &FlowValue) -> Option<()> {
    let header = frame.at::<Ipv4>(network)?;
    // SAFETY: `at` answered for the whole header, which nothing else borrows.
    unsafe {
        (*header).source = flow.source;
        (*header).destination = flow.destination;
        (*header).checksum = Delta(flow.header_delta).apply((*header).checksum);
    }
    Some(())
}

/// The ports or identifier of the header that `transport` begins with, and its checksum.
#[inline(always)]
pub fn rewrite_transport<F: Frame>(transport: &F, protocol: u8, flow: &FlowValue) -> Option<()> {
    let delta = Delta(flow.transport_delta);
    match protocol {
        wire::TCP => {
            let tcp = transport.at::<Tcp>(0)?;
            // SAFETY: `at` answered for the whole header, which nothing else borrows.
            unsafe {
                (*tcp).source = flow.source_port;
                (*tcp).destination = flow.destination_port;
                (*tcp).checksum = delta.apply((*tcp).checksum);
            }
        }
        wire::UDP | wire::UDPLITE => {
            let udp = transport.at::<Udp>(0)?;
            // SAFETY: as above.
            unsafe {
                (*udp).source = flow.source_port;
                (*udp).destination = flow.destination_port;
                (*udp).checksum = delta.apply_udp((*udp).checksum);
            }
        }
        wire::ICMP => {
            let icmp = transport.at::<Icmp>(0)?;
            // SAFETY: as above.
            unsafe {
                let is_reply = matches!((*icmp).kind, wire::ICMP_ECHO_REPLY | wire::ICMP_TIMESTAMP_REPLY);
                (*icmp).id = if is_reply { flow.destination_port } else { flow.source_port };
                // A message of zeros only, such as an echo reply to 0, has a sum of +0, and is right with -0 alone; to
                // any other both zeros are the same (RFC 1624 section 3). What does not change keeps its own.
                let checksum = delta.apply((*icmp).checksum);
                (*icmp).checksum = if checksum == 0 && delta.0 != 0 { u16::MAX } else { checksum };
            }
        }
        _ => {}
    }
    Some(())
}

/// Change of the header checksum when the TTL, first byte of its word, loses one.
const TTL_DELTA: Delta = Delta(u16::from_ne_bytes([0xfe, 0xff]));

/// Takes one off the TTL of the IPv4 header at `network` (RFC 1812 section 5.3.1).
#[inline(always)]
pub fn decrement_ttl<F: Frame>(frame: &F, network: usize) -> Option<()> {
    let header = frame.at::<Ipv4>(network)?;
    // SAFETY: `at` answered for the whole header, which nothing else borrows.
    unsafe {
        (*header).ttl -= 1;
        (*header).checksum = TTL_DELTA.apply((*header).checksum);
    }
    Some(())
}

/// Writes the MACs of the way out.
#[inline(always)]
pub fn address_frame<F: Frame>(frame: &F, hop: &NextHop) -> Option<()> {
    let ethernet = frame.at::<Ethernet>(0)?;
    let (from, to) = (core::ptr::from_ref(hop).cast::<u16>(), ethernet.cast::<u16>());
    // By words, all of them read first: the compiler copies arrays byte by byte where the target has no such instruction.
    // SAFETY: `at` answered for the whole header, which nothing else borrows; its first 12 bytes are the MACs, as are
    // the next hop's, whose alignment is no less.
    unsafe {
        let words = [*from, *from.add(1), *from.add(2), *from.add(3), *from.add(4), *from.add(5)];
        *to = words[0];
        *to.add(1) = words[1];
        *to.add(2) = words[2];
        *to.add(3) = words[3];
        *to.add(4) = words[4];
        *to.add(5) = words[5];
    }
    Some(())
}

/// Mends the transport checksum of a packet whose ports stay: the first fragment of a one-to-one
/// datagram. A fragment too short to hold the field is `None`: sent on, its checksum would be wrong.
#[inline(always)]
pub fn adjust_transport<F: Frame>(transport: &F, protocol: u8, flow: &FlowValue) -> Option<()> {
    let delta = Delta(flow.transport_delta);
    match protocol {
        wire::TCP => {
            let tcp = transport.at::<Tcp>(0)?;
            // SAFETY: `at` answered for the whole header, which nothing else borrows.
            unsafe { (*tcp).checksum = delta.apply((*tcp).checksum) };
        }
        wire::UDP | wire::UDPLITE => {
            let udp = transport.at::<Udp>(0)?;
            // SAFETY: as above.
            unsafe { (*udp).checksum = delta.apply_udp((*udp).checksum) };
        }
        _ => {}
    }
    Some(())
}
