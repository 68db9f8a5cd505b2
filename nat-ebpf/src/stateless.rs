//! One-to-one NAT: the address is computed, no table entry is made (behaviour ONE-02).
#![expect(clippy::needless_bitwise_bool, reason = "a branch less is a path less for the verifier to walk")]

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as Fib,
    },
    helpers::generated::bpf_fib_lookup,
    programs::XdpContext,
};
use nat_common::{
    FlowKey, FlowValue, Parsed, Reason,
    abi::{Interface, StaticValue},
    flow::Rewrite,
    next_hop::NextHop,
    parse::Kind,
    translate,
};

use crate::{Verdict, fits, flow, frame::PacketFrame, is_merged, maps};

/// `AF_INET`.
pub const AF_INET: u8 = 2;

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
    let Ok((hop, false)) =
        route(ctx.ctx.cast(), interface, parsed, false, rewrite.source, rewrite.destination)
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
        route(ctx.ctx.cast(), interface, parsed, false, parsed.key.source, parsed.key.destination)
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
    merged: bool,
    source: u32,
    destination: u32,
) -> Result<(NextHop, bool), ()> {
    // SAFETY: all zeroes is a valid value of this C structure.
    let mut fib: Fib = unsafe { core::mem::zeroed() };
    fib.family = AF_INET;
    fib.l4_protocol = parsed.key.protocol;
    // What is merged is judged by its segments, on the tc hook.
    fib.__bindgen_anon_1.tot_len = if merged { 0 } else { parsed.total_length };
    fib.ifindex = interface.ifindex;
    fib.__bindgen_anon_3.ipv4_src = source;
    fib.__bindgen_anon_4.ipv4_dst = destination;
    #[expect(clippy::cast_possible_wrap, reason = "the size is 64")]
    // SAFETY: the context is valid and the size is the structure's.
    let found = unsafe { bpf_fib_lookup(context, &raw mut fib, size_of::<Fib>() as i32, 0) };
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return Err(());
    }
    let Some(egress) = maps::interface(fib.ifindex) else { return Err(()) };
    // SAFETY: on success the kernel has filled in the MACs.
    let macs = unsafe { fib.__bindgen_anon_6.__bindgen_anon_2 };
    let stack = if egress.flags & Interface::STACK != 0 { NextHop::STACK } else { 0 };
    let hop = NextHop {
        destination: macs.dmac,
        source: macs.smac,
        ifindex: egress.ifindex,
        port: egress.port,
        mtu: if merged { egress.mtu } else { u32::from(u16::MAX) },
        flags: NextHop::VALID | stack | (egress.flags as u16 & NextHop::CLAMP),
        tags: egress.tags,
    };
    Ok((hop, egress.flags & Interface::OUTSIDE != 0))
}

/// Whether answers to a packet's source would leave by an outside interface, or could not leave:
/// then it is forged, or its network's route is missing (RFC 3704 section 2.3, feasible path).
#[inline(always)]
pub fn comes_from_outside(ctx: &XdpContext, interface: &Interface, parsed: &Parsed) -> bool {
    // SAFETY: all zeroes is a valid value of this C structure.
    let mut fib: Fib = unsafe { core::mem::zeroed() };
    fib.family = AF_INET;
    fib.ifindex = interface.ifindex;
    fib.__bindgen_anon_3.ipv4_src = parsed.key.destination;
    fib.__bindgen_anon_4.ipv4_dst = parsed.key.source;
    #[expect(clippy::cast_possible_wrap, reason = "the size is 64")]
    // SAFETY: the context is valid and the size is the structure's.
    let found = unsafe { bpf_fib_lookup(ctx.ctx.cast(), &raw mut fib, size_of::<Fib>() as i32, 0) };
    #[expect(clippy::cast_sign_loss, reason = "the codes are positive; an error is none of them")]
    match found as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
            maps::interface(fib.ifindex).is_some_and(|way| way.flags & Interface::OUTSIDE != 0)
        }
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => true,
        // Not forwarded at all, or a source that the stack refuses by itself.
        _ => false,
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
