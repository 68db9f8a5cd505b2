//! A packet of a virtual server that goes to its server as it is: by the frame's destination, or inside another.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{
        bpf_get_prandom_u32,
        generated::{bpf_skb_adjust_room, bpf_skb_store_bytes, bpf_xdp_adjust_head},
    },
    programs::{TcContext, XdpContext},
};
use nat_common::{
    FlowValue, Parsed, Reason,
    abi::Interface,
    flow::Action,
    frame::Frame as _,
    next_hop::NextHop,
    parse::ETHERNET,
    translate,
    tunnel::{self, OVERHEAD},
    wire::{Ethernet, Ipv4},
};

use crate::{
    flow::{self, clamped, note, partial},
    frame::PacketFrame,
    is_merged,
    maps::{self, Flow},
    skb,
    trace::Finished,
    verdict::Verdict,
};

/// IPv4's, network byte order.
const ETHERTYPE: u16 = 0x0800u16.to_be();

/// Sends the packet to its server, or says who must.
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
    let Some(hop) = maps::next_hop(u32::from(value.next_hop)) else { return Verdict::Punt };
    if is_merged(interface, parsed) {
        return Verdict::Stack;
    }
    let length = u32::from(parsed.total_length) + overhead(value);
    if hop.flags & NextHop::VALID == 0 || length > hop.mtu || clamped(interface, hop, parsed) {
        return Verdict::Punt;
    }
    if value.action == Action::Direct as u8 && is_sent_back(interface, frame, hop) {
        return Verdict::Drop(Reason::DropLoop);
    }
    if hop.flags & NextHop::STACK != 0
        || (interface.flags & Interface::VIRTUAL != 0 && partial(transport, parsed))
    {
        return Verdict::Stack;
    }
    note(transport, parsed, flow);
    let done = if value.action == Action::Tunnel as u8 {
        encapsulate(ctx, frame, parsed, value, hop)
    } else {
        translate::address_frame(frame, hop)
    };
    match done {
        Some(()) => flow::redirect(ctx, interface, hop, Reason::Relayed),
        None => Verdict::Drop(Reason::DropTruncated),
    }
}

/// How much longer a flow's packets become.
#[inline(always)]
pub fn overhead(value: &FlowValue) -> u32 {
    if value.action == Action::Tunnel as u8 { u32::from(OVERHEAD) } else { 0 }
}

/// Whether the packet comes from where it would be sent: see the daemon's function of this name.
#[inline(always)]
fn is_sent_back(interface: &Interface, frame: &PacketFrame, hop: &NextHop) -> bool {
    if hop.ifindex != interface.ifindex {
        return false;
    }
    let Some(ethernet) = frame.at::<Ethernet>(0) else { return false };
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "at an even offset of a frame, which begins at an even address"
    )]
    // SAFETY: `at` answered for the whole header; both lie at even addresses.
    unsafe {
        let from = *(&raw const (*ethernet).source).cast::<[u16; 3]>();
        let server = *core::ptr::from_ref(hop).cast::<[u16; 3]>();
        from[0] == server[0] && from[1] == server[1] && from[2] == server[2]
    }
}

/// The header before a packet.
#[inline(always)]
fn outer(frame: &PacketFrame, parsed: &Parsed, value: &FlowValue) -> Option<Ipv4> {
    let inner = frame.at::<Ipv4>(parsed.network)?;
    // SAFETY: the helper has no preconditions.
    let id = unsafe { bpf_get_prandom_u32() } as u16;
    // SAFETY: `at` answered for the whole header, which is copied.
    Some(tunnel::outer(unsafe { &*inner }, value.source, value.destination, id))
}

/// Puts a packet inside another.
#[inline(always)]
fn encapsulate(
    ctx: &XdpContext,
    frame: &PacketFrame,
    parsed: &Parsed,
    value: &FlowValue,
    hop: &NextHop,
) -> Option<()> {
    let header = outer(frame, parsed, value)?;
    // SAFETY: a program is always given a valid context. What pointed into the packet is not used any more.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -i32::from(OVERHEAD)) } != 0 {
        return None;
    }
    let frame = PacketFrame::of_xdp(ctx);
    let ethernet = frame.at::<Ethernet>(0)?;
    // SAFETY: `at` answered for the whole header, which nothing else borrows.
    unsafe { (*ethernet).kind = ETHERTYPE };
    let ip = frame.at::<Ipv4>(ETHERNET)?;
    // SAFETY: as above.
    unsafe { *ip = header };
    translate::address_frame(&frame, hop)
}

/// The same on the tc hook, which has judged size and next hop: the action, `None` if a helper fails.
#[inline(always)]
pub fn by_stack(
    ctx: &TcContext,
    interface: &Interface,
    parsed: &Parsed,
    value: &FlowValue,
    hop: &NextHop,
) -> Option<Finished<i32>> {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    if value.action == Action::Tunnel as u8 {
        let header = outer(&PacketFrame::of_tc(ctx), parsed, value)?;
        let flags = u64::from(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
        let at = ETHERNET as u32;
        let length = u32::from(OVERHEAD);
        // SAFETY: the skb is valid, the buffer as long as said. What pointed into the packet is not used any more.
        let failed = unsafe {
            bpf_skb_adjust_room(skb, i32::from(OVERHEAD), BPF_ADJ_ROOM_MAC, flags) != 0
                || bpf_skb_store_bytes(skb, at, (&raw const header).cast(), length, 0) != 0
        };
        if failed {
            return None;
        }
    }
    skb::send(skb, interface, hop, Reason::Relayed)
}
