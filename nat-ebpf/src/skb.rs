//! The same translation on the tc hook, for what XDP cannot send: the stack's transmit path takes
//! every device, and the skb knows what is left to do for its checksum.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::generated::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use nat_common::{
    FlowKey, FlowValue, Parsed, Realm, Reason,
    abi::{HEAD, Interface, TooBigEvent},
    checksum::Sum,
    flow::{Action, Query, Rewrite},
    frame::Frame,
    next_hop::NextHop,
    parse::{ETHERNET, Kind, parse_ipv4},
    wire,
};

use crate::{
    count::count, flow, frame::PacketFrame, is_for, is_ipv4, maps, relay, sockets, stateless,
    trace::Finished, vlan,
};

/// Enough linear bytes for Ethernet, IPv4 without options and TCP.
const HEADERS: u32 = 14 + 20 + 20;

/// Finds the packet's flow, or its one-to-one rule, rewrites it and redirects it. `None` leaves
/// it to the stack: XDP has already judged that it may go there.
#[inline(always)]
pub fn translate(ctx: &TcContext, interface: &Interface, realm: u16) -> Option<Finished<i32>> {
    if ctx.data() + HEADERS as usize > ctx.data_end() {
        // Short packets cannot be pulled to this length, and need not be.
        let _ = ctx.pull_data(HEADERS.min(ctx.len()));
    }
    let frame = PacketFrame::of_tc(ctx);
    if !is_for(&frame, interface) {
        return None;
    }
    if !is_ipv4(&frame) {
        return None;
    }
    let whole = SkbFrame { linear: frame, length: ctx.len() as usize };
    let parsed = parse_ipv4(&whole, ETHERNET, realm).ok()?;
    let frame = PacketFrame::of_tc(ctx);
    if matches!(parsed.kind, Kind::Ported | Kind::Portless)
        && let Some(found) = maps::flow(&parsed.key)
    {
        let value = found.value();
        if value.action == Action::Bypass as u8 {
            return None;
        }
        let hop = maps::next_hop(u32::from(value.next_hop))?;
        let is_relay = value.action != Action::Translate as u8;
        if hop.flags & NextHop::VALID == 0 || (parsed.ttl <= 1 && !is_relay) {
            return None;
        }
        let room = hop.mtu.saturating_sub(relay::overhead(value));
        let excess = excess(ctx, &frame, &parsed, room);
        if excess > 0 && !make_fit(ctx, interface, &frame, &parsed, room, excess) {
            return Some(Finished::told(TC_ACT_SHOT, Reason::DropTooBig));
        }
        // Making it fit has moved the packet.
        flow::note(&PacketFrame::of_tc(ctx).skip(parsed.transport), &parsed, &found);
        return Some(sent(if is_relay {
            relay::by_stack(ctx, interface, &parsed, value, hop)
        } else {
            rewrite(ctx, interface, &parsed, value, hop)
        }));
    }
    let (value, hop) = match one_to_one(ctx, interface, &parsed, realm) {
        Ok(found) => found,
        Err(None) => return None,
        // The stack's own: XDP could not ask where it goes.
        Err(Some(action)) => return Some(Finished::told(action, Reason::Passed)),
    };
    let excess = excess(ctx, &frame, &parsed, hop.mtu);
    if excess > 0 && !make_fit(ctx, interface, &frame, &parsed, hop.mtu, excess) {
        return Some(Finished::told(TC_ACT_SHOT, Reason::DropTooBig));
    }
    Some(sent(rewrite(ctx, interface, &parsed, &value, &hop)))
}

/// What came of sending. A packet of which a part may have been rewritten never goes to the stack.
#[inline(always)]
fn sent(finished: Option<Finished<i32>>) -> Finished<i32> {
    finished.unwrap_or_else(|| {
        count(Reason::DropTransmit);
        Finished::told(TC_ACT_SHOT, Reason::DropTransmit)
    })
}

/// Takes note of the port that the gateway is about to send from. Whether the answer would be a client's.
#[inline(always)]
pub fn leave(ctx: &TcContext, realm: u16) -> bool {
    let frame = PacketFrame::of_tc(ctx);
    if !is_ipv4(&frame) {
        return false;
    }
    let whole = SkbFrame { linear: frame, length: ctx.len() as usize };
    let Ok(parsed) = parse_ipv4(&whole, ETHERNET, realm) else { return false };
    if parsed.kind != Kind::Ported {
        return false;
    }
    if matches!(parsed.key.protocol, wire::TCP | wire::UDP) {
        // Before it is asked who has the answer: only a session that another CPU has half opened by now sees neither.
        sockets::mark(parsed.key.protocol, u32::from(u16::from_be(parsed.key.source_port)));
    }
    let realm = if realm == Realm::Inside as u16 { Realm::Inside } else { Realm::Outside };
    maps::flow(&parsed.key.reversed(realm)).is_some_and(|flow| flow.value().action == Action::Translate as u8)
}

/// How far what will be on the wire exceeds the MTU of the way out: the segments of a merged
/// packet, else the packet. XDP has sent what is too big and whole to the daemon.
#[inline(always)]
fn excess(ctx: &TcContext, frame: &PacketFrame, parsed: &Parsed, mtu: u32) -> u32 {
    let segment = segment(ctx);
    let length = match segment {
        0 => u32::from(parsed.total_length),
        _ => (parsed.transport - parsed.network) as u32 + transport_header(frame, parsed) + segment,
    };
    length.saturating_sub(mtu)
}

/// What each segment of a merged packet carries; 0 for a packet that is one.
#[inline(always)]
fn segment(ctx: &TcContext) -> u32 {
    // SAFETY: a tc program is always given a valid context.
    unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).gso_size }
}

/// Length of the header that each segment repeats.
#[inline(always)]
fn transport_header(frame: &PacketFrame, parsed: &Parsed) -> u32 {
    match frame.skip(parsed.transport).at::<wire::Tcp>(0) {
        // SAFETY: `at` answered for the whole header.
        Some(tcp) if parsed.key.protocol == wire::TCP => unsafe { u32::from((*tcp).data_offset >> 4) * 4 },
        _ => size_of::<wire::Udp>() as u32,
    }
}

/// Makes the segments of a merged packet smaller if they may be, or has its sender told that they are too big. Whether
/// the packet can go on.
#[inline(always)]
fn make_fit(
    ctx: &TcContext,
    interface: &Interface,
    frame: &PacketFrame,
    parsed: &Parsed,
    mtu: u32,
    excess: u32,
) -> bool {
    let may_not_be_cut = frame.at::<wire::Ipv4>(parsed.network).is_none_or(|ip| {
        // SAFETY: `at` answered for the whole header.
        unsafe { u16::from_be((*ip).fragment) & wire::DONT_FRAGMENT != 0 }
    });
    let segment = segment(ctx);
    if !may_not_be_cut && parsed.key.protocol == wire::TCP && segment > excess && shrink(ctx, excess) {
        return true;
    }
    if may_not_be_cut && segment != 0 {
        tell(ctx, interface, mtu);
    }
    count(Reason::DropTooBig);
    false
}

/// Takes so much off each segment of a merged TCP packet. The helper does that where it makes room for another header;
/// the room is given back at once, the smaller segments stay.
#[inline(always)]
fn shrink(ctx: &TcContext, excess: u32) -> bool {
    /// The most that the helper makes room for.
    const MOST: u32 = 0xfff;
    if excess > MOST {
        return false;
    }
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    #[expect(clippy::cast_possible_wrap, reason = "at most 4095")]
    let room = excess as i32;
    // SAFETY: the skb is valid; every pointer into it is made anew afterwards.
    unsafe {
        bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, 0) == 0
            && bpf_skb_adjust_room(skb, -room, BPF_ADJ_ROOM_MAC, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO)) == 0
    }
}

/// Has the daemon tell the sender what fits.
#[inline(always)]
fn tell(ctx: &TcContext, interface: &Interface, mtu: u32) {
    let mut event = core::mem::MaybeUninit::<TooBigEvent>::uninit();
    let to = event.as_mut_ptr();
    // SAFETY: the skb is valid, the buffer as long as said. What the helper fills needs no zeroes before.
    let loaded = unsafe {
        (&raw mut (*to).ifindex).write(interface.ifindex);
        (&raw mut (*to).mtu).write(mtu);
        bpf_skb_load_bytes(ctx.as_ptr().cast(), 0, (&raw mut (*to).head).cast(), HEAD as u32)
    };
    // A full ring means that enough senders are being told.
    if loaded == 0 {
        // SAFETY: all three fields are written.
        let _ = maps::EVENTS.output(unsafe { event.assume_init_ref() }, 0);
    }
}

/// The translation of a packet that a one-to-one rule covers; else what [`translate`] returns.
#[inline(always)]
fn one_to_one(
    ctx: &TcContext,
    interface: &Interface,
    parsed: &Parsed,
    realm: u16,
) -> Result<(FlowValue, NextHop), Option<i32>> {
    let settings = maps::settings().ok_or(None)?;
    let key: &FlowKey = &parsed.key;
    let inbound = realm == Realm::Outside as u16;
    let mapping =
        maps::one_to_one(settings.generation, inbound, if inbound { key.destination } else { key.source })
            .ok_or(None)?;
    if parsed.kind == Kind::IcmpOther || (!inbound && maps::local(key.destination).is_some()) {
        return Err(None);
    }
    let rewrite = if inbound {
        Rewrite { destination: stateless::counterpart(mapping, key.destination), ..stateless::same(key) }
    } else {
        Rewrite { source: stateless::counterpart(mapping, key.source), ..stateless::same(key) }
    };
    let source = if inbound { rewrite.source } else { key.source };
    let (hop, outside) =
        stateless::route(ctx.as_ptr(), interface, parsed, source, rewrite.destination).map_err(|()| None)?;
    if !inbound && !outside {
        // XDP could not ask where a merged packet goes: from one inside network to another.
        return Err(Some(TC_ACT_OK));
    }
    if parsed.ttl <= 1 || outside == inbound {
        return Err(None);
    }
    Ok((FlowValue::translate(key, &rewrite, 0), hop))
}

/// Writes the packet through the helpers that keep the skb's checksum state, and redirects it. `None`
/// once a helper fails.
#[inline(always)]
fn rewrite(
    ctx: &TcContext,
    interface: &Interface,
    parsed: &Parsed,
    value: &FlowValue,
    hop: &NextHop,
) -> Option<Finished<i32>> {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    let network = parsed.network as u32;
    let transport = parsed.transport as u32;
    if matches!(parsed.kind, Kind::Ported | Kind::FirstFragment) {
        mend_transport_checksum(skb, parsed, value, transport)?;
    }
    if parsed.kind == Kind::Ported {
        write_ports(skb, parsed, value, transport)?;
    }
    let [old_ttl, new_ttl] = [
        u16::from_ne_bytes([parsed.ttl, parsed.key.protocol]),
        u16::from_ne_bytes([parsed.ttl.wrapping_sub(1), parsed.key.protocol]),
    ];
    let header = Sum::ZERO.add_u16(value.header_delta).subtract_u16(old_ttl).add_u16(new_ttl);
    let addresses = [value.source, value.destination];
    // SAFETY: the skb is valid; every source buffer is as long as said.
    unsafe {
        check(bpf_l3_csum_replace(skb, network + 10, 0, u64::from(header.fold()), 0))?;
        check(store(skb, network + 12, &addresses))?;
        check(store(skb, network + 8, &parsed.ttl.wrapping_sub(1)))?;
    }
    send(skb, interface, hop, Reason::TranslatedByStack)
}

/// MACs, tags, and out; counted under `reason`.
#[inline(always)]
pub fn send(
    skb: *mut __sk_buff,
    interface: &Interface,
    hop: &NextHop,
    reason: Reason,
) -> Option<Finished<i32>> {
    // SAFETY: the skb is valid; the source buffer is as long as said.
    unsafe { check(store(skb, 0, &[hop.destination, hop.source]))? };
    let mut device = hop.ifindex;
    if (interface.flags & Interface::VLAN != 0) | !hop.tags.is_empty() {
        device = maps::interface(hop.ifindex)?.device;
        vlan::leave_skb(skb, interface, hop.tags)?;
    }
    count(reason);
    // SAFETY: the helper has no preconditions.
    let action = unsafe { bpf_redirect(device, 0) } as i32;
    Some(Finished { out: hop.ifindex, ..Finished::told(action, reason) })
}

/// Brings the transport checksum after. What the pseudo-header changed is told apart, because a
/// partial checksum covers nothing else yet.
#[inline(always)]
fn mend_transport_checksum(
    skb: *mut __sk_buff,
    parsed: &Parsed,
    value: &FlowValue,
    transport: u32,
) -> Option<()> {
    let (field, flags) = match parsed.key.protocol {
        wire::TCP => (transport + 16, 0),
        wire::UDP | wire::UDPLITE => (transport + 6, u64::from(BPF_F_MARK_MANGLED_0)),
        wire::ICMP => (transport + 2, 0),
        _ => return Some(()),
    };
    let pseudo = value.pseudo_delta(parsed.key.protocol);
    let ports = Sum::ZERO.add_u16(value.transport_delta).subtract_u16(pseudo).fold();
    // SAFETY: the skb is valid; a field beyond its end makes the helper fail.
    unsafe {
        if pseudo != 0 {
            let pseudo = u64::from(pseudo);
            check(bpf_l4_csum_replace(skb, field, 0, pseudo, u64::from(BPF_F_PSEUDO_HDR) | flags))?;
        }
        if parsed.kind == Kind::Ported {
            check(bpf_l4_csum_replace(skb, field, 0, u64::from(ports), flags))?;
        }
    }
    Some(())
}

/// Writes ports, or the identifier of an ICMP query.
#[inline(always)]
fn write_ports(skb: *mut __sk_buff, parsed: &Parsed, value: &FlowValue, transport: u32) -> Option<()> {
    // SAFETY: the skb is valid; every source buffer is as long as said.
    unsafe {
        match parsed.key.protocol {
            wire::ICMP => {
                let is_request = parsed.key.query == Query::Request as u8;
                let id = if is_request { value.source_port } else { value.destination_port };
                check(store(skb, transport + 4, &id))
            }
            wire::TCP | wire::UDP | wire::UDPLITE => {
                check(store(skb, transport, &[value.source_port, value.destination_port]))
            }
            _ => Some(()),
        }
    }
}

/// Stores a value's bytes at an offset.
///
/// # Safety
/// `skb` must be this program's context.
#[inline(always)]
unsafe fn store<T>(skb: *mut __sk_buff, offset: u32, value: &T) -> i64 {
    // SAFETY: the buffer is `value`'s own.
    unsafe { bpf_skb_store_bytes(skb, offset, (&raw const *value).cast(), size_of::<T>() as u32, 0) }
}

/// A helper's return value as an option.
#[inline(always)]
fn check(result: i64) -> Option<()> {
    (result == 0).then_some(())
}

/// An skb whose length is that of the whole packet, while only its head is linear.
struct SkbFrame {
    linear: PacketFrame,
    length: usize,
}

impl Frame for SkbFrame {
    #[inline(always)]
    fn at<T: wire::Wire>(&self, offset: usize) -> Option<*mut T> {
        self.linear.at(offset)
    }

    #[inline(always)]
    fn at_in_loop<T: wire::Wire>(&self, offset: usize) -> Option<*mut T> {
        self.linear.at_in_loop(offset)
    }

    #[inline(always)]
    fn skip(&self, offset: usize) -> Self {
        Self { linear: self.linear.skip(offset), length: self.length.saturating_sub(offset) }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }
}
