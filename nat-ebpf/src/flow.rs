//! An established packet: one lookup was made, its value is the verdict.

use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_jiffies64, programs::XdpContext};
use nat_common::{
    Parsed, Reason,
    abi::{Interface, SessionEvent},
    activity::TICK_SHIFT,
    flow::{Action, is_partial},
    frame::Frame as _,
    next_hop::NextHop,
    table::session_of,
    tcp, translate,
    wire::{self, Tcp, Udp},
};

use crate::{
    count::count,
    fits,
    frame::PacketFrame,
    is_merged,
    maps::{self, Flow},
    relay,
    verdict::Verdict,
    vlan,
};

/// Translates the packet and sends it on, or says who must.
///
/// The next hop is judged before the first byte is written: what cannot be finished here leaves
/// here untouched.
#[inline(always)]
pub fn forward(
    ctx: &XdpContext,
    interface: &Interface,
    frame: &PacketFrame,
    transport: &PacketFrame,
    parsed: &Parsed,
    flow: &Flow,
) -> Verdict {
    let value = flow.value();
    if value.action != Action::Translate as u8 {
        if value.action == Action::Bypass as u8 {
            note(transport, parsed, flow);
            return Verdict::Pass;
        }
        return relay::forward(ctx, interface, frame, transport, parsed, flow);
    }
    let Some(hop) = maps::next_hop(u32::from(value.next_hop)) else { return Verdict::Punt };
    if is_merged(interface, parsed) {
        return Verdict::Stack;
    }
    if hop.flags & NextHop::VALID == 0 || !fits(parsed, hop.mtu) || clamped(interface, hop, parsed) {
        return Verdict::Punt;
    }
    if hop.flags & NextHop::STACK != 0
        || (interface.flags & Interface::VIRTUAL != 0 && partial(transport, parsed))
    {
        return Verdict::Stack;
    }
    note(transport, parsed, flow);
    if translate::rewrite(frame, transport, parsed, value).is_none() {
        return Verdict::Drop(Reason::DropTruncated);
    }
    send(ctx, interface, frame, parsed, hop, Reason::Translated)
}

/// Whether the packet is a SYN whose MSS the daemon has to look at.
#[inline(always)]
pub fn clamped(interface: &Interface, hop: &NextHop, parsed: &Parsed) -> bool {
    parsed.tcp_flags & tcp::SYN != 0 && (interface.flags as u16 | hop.flags) & NextHop::CLAMP != 0
}

/// TTL, MACs, tags, and out; counted under `reason`.
#[inline(always)]
pub fn send(
    ctx: &XdpContext,
    interface: &Interface,
    frame: &PacketFrame,
    parsed: &Parsed,
    hop: &NextHop,
    reason: Reason,
) -> Verdict {
    if translate::decrement_ttl(frame, parsed.network).is_none()
        || translate::address_frame(frame, hop).is_none()
    {
        return Verdict::Drop(Reason::DropTruncated);
    }
    redirect(ctx, interface, hop, reason)
}

/// Tags, and out as it is; counted under `reason`.
#[inline(always)]
pub fn redirect(ctx: &XdpContext, interface: &Interface, hop: &NextHop, reason: Reason) -> Verdict {
    if !hop.tags.is_empty() && vlan::push(ctx.ctx, vlan::leaving(interface, hop.tags).0) == 0 {
        return Verdict::Drop(Reason::DropTransmit);
    }
    match maps::DEVICES.redirect(u32::from(hop.port), u64::from(xdp_action::XDP_DROP)) {
        Ok(action) => {
            count(reason);
            Verdict::Sent(action, reason, hop.ifindex)
        }
        Err(_) => Verdict::Drop(Reason::DropTransmit),
    }
}

/// Writes the flow's line: counters, last seen, and for TCP what it has come to.
#[inline(always)]
pub fn note(transport: &PacketFrame, parsed: &Parsed, flow: &Flow) {
    // SAFETY: the line is the session's for as long as this program runs. Two CPUs may race on the
    // counters, which then miss a packet; nothing else depends on them.
    let own = unsafe { &mut *flow.line };
    // SAFETY: the helper has no preconditions.
    let now = (unsafe { bpf_jiffies64() } >> TICK_SHIFT) as u32;
    own.packets += 1;
    own.bytes += u64::from(parsed.total_length);
    if own.last_seen != now {
        own.last_seen = now;
    }
    if parsed.key.protocol == wire::TCP
        && let Some(header) = transport.at::<Tcp>(0)
    {
        // SAFETY: `at` answered for the whole header.
        let (sequence, acknowledgement) =
            unsafe { (u32::from_be((*header).sequence), u32::from_be((*header).acknowledgement)) };
        // SAFETY: as above, and another line than `own`.
        let other = unsafe { &mut *flow.other };
        let seen = tcp::note(own.into(), other.into(), parsed.tcp_flags, sequence, acknowledgement);
        if seen != 0 {
            let session = session_of(flow.number).unwrap_or(0);
            let event = SessionEvent { session, seen, direction: (flow.number & 1) as u8, pad: 0 };
            if maps::EVENTS.output(&event, 0).is_err() {
                count(Reason::EventLost);
            }
        }
    }
}

/// Whether the transport checksum is left to an offload: see [`is_partial`].
#[inline(always)]
pub fn partial(transport: &PacketFrame, parsed: &Parsed) -> bool {
    let checksum = match parsed.key.protocol {
        // SAFETY: `at` answered for the whole header.
        wire::TCP => transport.at::<Tcp>(0).map(|tcp| unsafe { (*tcp).checksum }),
        // SAFETY: as above.
        wire::UDP => transport.at::<Udp>(0).map(|udp| unsafe { (*udp).checksum }),
        _ => None,
    };
    let length = parsed.total_length - (parsed.transport - parsed.network) as u16;
    checksum.is_some_and(|checksum| {
        is_partial(parsed.key.source, parsed.key.destination, parsed.key.protocol, length, checksum)
    })
}
