//! One-to-one NAT: the address is computed, no table entry is made (behaviour ONE-02).
#![expect(clippy::needless_bitwise_bool, reason = "a branch less is a path less for the verifier to walk")]

use core::ffi::c_void;

use aya_ebpf::programs::XdpContext;
use nat_common::{
    FlowKey, FlowValue, Parsed, Reason,
    abi::{Interface, StaticValue},
    flow::Rewrite,
    next_hop::NextHop,
    parse::Kind,
    translate,
};

use crate::{
    fib::{self, Answer, Question},
    fits, flow,
    frame::PacketFrame,
    is_merged, maps,
    verdict::Verdict,
};

/// To a one-to-one external address: the destination becomes the inside host.
#[inline(always)]
pub fn inbound(
    ctx: &XdpContext,
    interface: &Interface,
    frame: &PacketFrame,
    transport: &PacketFrame,
    parsed: &Parsed,
    mapping: &StaticValue,
) -> Verdict {
    if interface.flags & Interface::OUTSIDE == 0 || parsed.kind == Kind::IcmpOther {
        // Hairpin turns both ends, an error turns its quote, too: the daemon's.
        return Verdict::Punt;
    }
    let rewrite = Rewrite { destination: counterpart(mapping, parsed.key.destination), ..same(&parsed.key) };
    if is_merged(interface, parsed) & (parsed.ttl > 1) {
        return Verdict::Stack;
    }
    // A way that leads outside is that of an inside host whose link is down: the daemon's, too.
    let Ok((hop, false)) = route(ctx.ctx.cast(), interface, parsed, rewrite.source, rewrite.destination)
    else {
        return Verdict::Punt;
    };
    send(ctx, interface, frame, transport, parsed, &rewrite, &hop)
}

/// From a one-to-one inside host: the source becomes its external address where the way out is
/// outside, and stays where it is not.
#[inline(always)]
pub fn outbound(
    ctx: &XdpContext,
    interface: &Interface,
    frame: &PacketFrame,
    transport: &PacketFrame,
    parsed: &Parsed,
    mapping: &StaticValue,
) -> Verdict {
    if parsed.kind == Kind::IcmpOther {
        return Verdict::Punt;
    }
    let rewrite = Rewrite { source: counterpart(mapping, parsed.key.source), ..same(&parsed.key) };
    if is_merged(interface, parsed) & (parsed.ttl > 1) {
        return Verdict::Stack;
    }
    let Ok((hop, outside)) =
        route(ctx.ctx.cast(), interface, parsed, parsed.key.source, parsed.key.destination)
    else {
        return Verdict::Punt;
    };
    if !outside {
        return Verdict::Pass;
    }
    send(ctx, interface, frame, transport, parsed, &rewrite, &hop)
}

/// The other side's address with the same host bits.
#[inline(always)]
pub fn counterpart(mapping: &StaticValue, address: u32) -> u32 {
    (address & mapping.host_mask) | mapping.network
}

/// The endpoints as they are.
#[inline(always)]
pub fn same(key: &FlowKey) -> Rewrite {
    Rewrite {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
    }
}

/// Asks the kernel's routing table: without an entry there is no next hop to remember. `Err` is
/// for the daemon: no neighbour yet, no route, forwarding off on this interface.
#[inline(always)]
pub fn route(
    context: *mut c_void,
    interface: &Interface,
    parsed: &Parsed,
    source: u32,
    destination: u32,
) -> Result<(NextHop, bool), ()> {
    let question =
        Question { ifindex: interface.ifindex, protocol: parsed.key.protocol, source, destination };
    let Answer::Way(way) = fib::ask(context, &question) else { return Err(()) };
    let Some(egress) = maps::interface(way.ifindex) else { return Err(()) };
    let stack = if egress.flags & Interface::STACK != 0 { NextHop::STACK } else { 0 };
    let hop = NextHop {
        destination: way.destination,
        source: way.source,
        ifindex: egress.ifindex,
        port: egress.port,
        mtu: maps::narrow(destination).map_or(egress.mtu, |mtu| egress.mtu.min(mtu)),
        flags: NextHop::VALID | stack | (egress.flags as u16 & NextHop::CLAMP),
        tags: egress.tags,
    };
    Ok((hop, egress.flags & Interface::OUTSIDE != 0))
}

/// Whether answers to a packet's source would leave by an outside interface, or could not leave:
/// then it is forged, or its network's route is missing (RFC 3704 section 2.3, feasible path).
#[inline(always)]
pub fn comes_from_outside(ctx: &XdpContext, interface: &Interface, parsed: &Parsed) -> bool {
    let question = Question {
        ifindex: interface.ifindex,
        protocol: 0,
        source: parsed.key.destination,
        destination: parsed.key.source,
    };
    match fib::ask(ctx.ctx.cast(), &question) {
        Answer::Way(fib::Way { ifindex, .. }) | Answer::NoNeighbour(ifindex) => {
            maps::interface(ifindex).is_some_and(|way| way.flags & Interface::OUTSIDE != 0)
        }
        Answer::Nowhere => true,
        // Not forwarded at all, or a source that the stack refuses by itself.
        Answer::Unknown => false,
    }
}

/// Rewrites the addresses and sends; fragments of any order pass, only a first (or whole) packet
/// has a transport checksum to mend.
#[inline(always)]
fn send(
    ctx: &XdpContext,
    interface: &Interface,
    frame: &PacketFrame,
    transport: &PacketFrame,
    parsed: &Parsed,
    rewrite: &Rewrite,
    hop: &NextHop,
) -> Verdict {
    if !fits(parsed, hop.mtu) || flow::clamped(interface, hop, parsed) {
        return Verdict::Punt;
    }
    if hop.flags & NextHop::STACK != 0
        || (interface.flags & Interface::VIRTUAL != 0 && flow::partial(transport, parsed))
    {
        return Verdict::Stack;
    }
    let value = FlowValue::translate(&parsed.key, rewrite, 0);
    let done = match parsed.kind {
        Kind::Ported => translate::rewrite(frame, transport, parsed, &value),
        Kind::FirstFragment => translate::rewrite_addresses(frame, parsed.network, &value)
            .and_then(|()| translate::adjust_transport(transport, parsed.key.protocol, &value)),
        _ => translate::rewrite_addresses(frame, parsed.network, &value),
    };
    if done.is_none() {
        // A first fragment whose checksum is in the next one (behaviour FRG-17).
        return Verdict::Drop(Reason::DropFragment);
    }
    flow::send(ctx, interface, frame, parsed, hop, Reason::TranslatedStatic)
}
