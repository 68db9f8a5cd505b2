//! ICMP errors the gateway sends itself (RFC 792, 1812 section 4.3): when, to whom, from where.

use std::time::Instant;

use nat_common::abi::TooBigEvent;
use nat_common::checksum::Sum;
use nat_common::classify::{is_group, is_martian_source};
use nat_common::frame::{Frame as _, SliceFrame};
use nat_common::parse::{ETHERNET, Kind};
use nat_common::vlan::Tags;
use nat_common::{FlowKey, Parsed, Reason, wire};

use super::{Emission, Gateway, Interface, Outcome, network};

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// 3/0.
    NetworkUnreachable,
    /// 3/1.
    HostUnreachable,
    /// 3/4 with the MTU of the next hop (RFC 1191).
    TooBig { mtu: u16 },
    /// 3/13 (RFC 5508 REQ-8).
    AdministrativelyProhibited,
    /// 11/0.
    TtlExceeded,
}

impl Error {
    /// Type, code and the word behind the checksum.
    const fn parts(self) -> (u8, u8, u32) {
        match self {
            Self::NetworkUnreachable => (wire::ICMP_UNREACHABLE, 0, 0),
            Self::HostUnreachable => (wire::ICMP_UNREACHABLE, 1, 0),
            Self::TooBig { mtu } => (wire::ICMP_UNREACHABLE, 4, mtu as u32),
            Self::AdministrativelyProhibited => (wire::ICMP_UNREACHABLE, 13, 0),
            Self::TtlExceeded => (wire::ICMP_TIME_EXCEEDED, 0, 0),
        }
    }
}

/// RFC 1812 section 4.3.2.3: as much of the offending packet as fits 576 bytes in all.
const QUOTE: usize = 576 - 20 - 8;

impl Gateway {
    /// Drops a packet for `reason` and tells its sender, at most [`super::ERRORS_PER_SECOND`]
    /// times a second in all, and never about what RFC 1812 section 4.3.2.7 excludes.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        ingress: &Interface,
        frame: &[u8],
        parsed: &Parsed,
        error: Error,
        reason: Reason,
    ) -> Outcome {
        let excluded = matches!(parsed.kind, Kind::IcmpOther | Kind::LaterFragment)
            || is_group(parsed.key.destination)
            || is_martian_source(parsed.key.source);
        if !excluded
            && self.errors.take(now)
            && let Some(frame) = build(ingress, frame, parsed, error)
        {
            self.emissions.push(Emission { ifindex: ingress.ifindex, frame });
        }
        Outcome::Drop(reason)
    }
}

impl Gateway {
    /// Tells the sender of a merged packet, which the tc program has dropped and counted, what fits.
    pub fn merged_too_big(&mut self, now: Instant, event: &TooBigEvent) {
        let Some(ingress) = self.interfaces.get(&event.ifindex).cloned() else { return };
        let mut head = event.head.to_vec();
        let Some(ip) = SliceFrame::new(&mut head).and_then(|view| {
            // SAFETY: `at` answers for the whole header, which is copied.
            view.at::<wire::Ipv4>(ETHERNET).map(|header| unsafe { *header })
        }) else {
            return;
        };
        // The quote is what there is of it: its header, and the ports behind.
        let quoted = ETHERNET + ip.header_length() + 8;
        let parsed = Parsed {
            network: ETHERNET,
            transport: ETHERNET + ip.header_length(),
            tags: Tags::NONE,
            total_length: u16::try_from(quoted - ETHERNET).unwrap_or(0),
            ttl: ip.ttl,
            kind: Kind::Ported,
            tcp_flags: 0,
            key: FlowKey {
                source: ip.source,
                destination: ip.destination,
                source_port: 0,
                destination_port: 0,
                protocol: ip.protocol,
                query: 0,
                realm: ingress.realm() as u16,
            },
        };
        let mtu = u16::try_from(event.mtu).unwrap_or(u16::MAX);
        self.answer(now, &ingress, &head, &parsed, Error::TooBig { mtu }, Reason::DropTooBig);
    }
}

/// The error about a frame, from the interface it came in by, back to where it came from.
fn build(ingress: &Interface, frame: &[u8], parsed: &Parsed, error: Error) -> Option<Vec<u8>> {
    let source = ingress.addresses.first().copied().map(network)?;
    let end = parsed.network + usize::from(parsed.total_length);
    let packet = frame.get(parsed.network..end)?;
    let quote = &packet[..packet.len().min(QUOTE)];
    let (kind, code, word) = error.parts();
    let mut out = Vec::with_capacity(parsed.network + 28 + quote.len());
    // Back to the frame's sender, VLAN tags and all.
    out.extend_from_slice(frame.get(6..12)?);
    out.extend_from_slice(&ingress.mac);
    out.extend_from_slice(frame.get(12..parsed.network)?);
    let total = u16::try_from(20 + 8 + quote.len()).ok()?;
    // DSCP of the offending packet (RFC 5508 section 7.7), ECN cleared: errors are not congestion.
    let tos = packet.get(1)? & 0xfc;
    let mut header = [0u8; 20];
    header[0] = 0x45;
    header[1] = tos;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[8] = 64;
    header[9] = wire::ICMP;
    header[12..16].copy_from_slice(&source.to_ne_bytes());
    header[16..20].copy_from_slice(&parsed.key.source.to_ne_bytes());
    let checksum = Sum::ZERO.add_bytes(&header).checksum();
    header[10..12].copy_from_slice(&checksum.to_ne_bytes());
    out.extend_from_slice(&header);
    let start = out.len();
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&word.to_be_bytes());
    out.extend_from_slice(quote);
    let checksum = Sum::ZERO.add_bytes(&out[start..]).checksum();
    out[start + 2..start + 4].copy_from_slice(&checksum.to_ne_bytes());
    Some(out)
}
