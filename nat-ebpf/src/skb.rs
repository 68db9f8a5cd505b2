//! The same translation on the tc hook, for what XDP cannot send: the stack's transmit path takes
//! every device, and the skb knows what is left to do for its checksum.

use aya_ebpf::{
    EbpfContext as _,
    bindings::TC_ACT_SHOT,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_store_bytes},
    programs::TcContext,
};
use nat_common::{
    FlowKey, FlowValue, Parsed, Realm, Reason,
    abi::Interface,
    checksum::Sum,
    flow::{Action, Query, Rewrite},
    frame::Frame,
    next_hop::NextHop,
    parse::{ETHERNET, Kind, parse_ipv4},
    wire,
};

use crate::{count::count, fits, flow, frame::PacketFrame, is_for, is_ipv4, maps, relay, stateless, vlan};

/// Enough linear bytes for Ethernet, IPv4 without options and TCP.
const HEADERS: u32 = 14 + 20 + 20;

/// Finds the packet's flow, or its one-to-one rule, rewrites it and redirects it. `None` leaves
/// it to the stack: XDP has already judged that it may go there.
#[inline(always)]
pub fn translate(ctx: &TcContext, interface: &Interface, realm: u16) -> Option<i32> {
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
        if too_big(ctx, &parsed, hop.mtu.saturating_sub(relay::overhead(value))) {
            count(Reason::DropTooBig);
            return Some(TC_ACT_SHOT);
        }
        flow::note(&frame.skip(parsed.transport), &parsed, &found);
        return if is_relay {
            relay::by_stack(ctx, interface, &parsed, value, hop)
        } else {
            rewrite(ctx, interface, &parsed, value, hop)
        };
    }
    let (value, hop) = one_to_one(ctx, interface, &parsed, realm)?;
    rewrite(ctx, interface, &parsed, &value, &hop)
}

/// Whether the answer to a packet that is about to leave is a client's.
#[inline(always)]
pub fn answer_is_taken(ctx: &TcContext, realm: u16) -> bool {
    let frame = PacketFrame::of_tc(ctx);
    if !is_ipv4(&frame) {
        return false;
    }
    let whole = SkbFrame { linear: frame, length: ctx.len() as usize };
    let Ok(parsed) = parse_ipv4(&whole, ETHERNET, realm) else { return false };
    if parsed.kind != Kind::Ported {
        return false;
    }
    let realm = if realm == Realm::Inside as u16 { Realm::Inside } else { Realm::Outside };
    maps::flow(&parsed.key.reversed(realm)).is_some_and(|flow| flow.value().action == Action::Translate as u8)
}

/// Whether what will be on the wire exceeds the MTU of the way out: the segments of a merged
/// packet, else the packet. XDP has sent what is too big and whole to the daemon.
#[inline(always)]
fn too_big(ctx: &TcContext, parsed: &Parsed, mtu: u32) -> bool {
    /// IPv4 and TCP without options: with options a segment carries less, so this never errs
    /// against one that fits.
    const HEADERS: u32 = 20 + 20;
    // SAFETY: a tc program is always given a valid context.
    let segment = unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).gso_size };
    if segment == 0 { u32::from(parsed.total_length) > mtu } else { segment + HEADERS > mtu }
}

/// The translation of a packet that a one-to-one rule covers.
#[inline(always)]
fn one_to_one(
    ctx: &TcContext,
    interface: &Interface,
    parsed: &Parsed,
    realm: u16,
) -> Option<(FlowValue, NextHop)> {
    let settings = maps::settings()?;
    let key: &FlowKey = &parsed.key;
    let inbound = realm == Realm::Outside as u16;
    let mapping =
        maps::one_to_one(settings.generation, inbound, if inbound { key.destination } else { key.source })?;
    if parsed.kind == Kind::IcmpOther || (!inbound && maps::local(key.destination).is_some()) {
        return None;
    }
    let rewrite = if inbound {
        Rewrite { destination: stateless::counterpart(mapping, key.destination), ..stateless::same(key) }
    } else {
        Rewrite { source: stateless::counterpart(mapping, key.source), ..stateless::same(key) }
    };
    let source = if inbound { rewrite.source } else { key.source };
    let (hop, outside) =
        stateless::route(ctx.as_ptr(), interface, parsed, source, rewrite.destination).ok()?;
    if !fits(parsed, hop.mtu) || outside == inbound {
        return None;
    }
    Some((FlowValue::translate(key, &rewrite, 0), hop))
}

/// Writes the packet through the helpers that keep the skb's checksum state, and redirects it.
#[inline(always)]
fn rewrite(
    ctx: &TcContext,
    interface: &Interface,
    parsed: &Parsed,
    value: &FlowValue,
    hop: &NextHop,
) -> Option<i32> {
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
pub fn send(skb: *mut __sk_buff, interface: &Interface, hop: &NextHop, reason: Reason) -> Option<i32> {
    // SAFETY: the skb is valid; the source buffer is as long as said.
    unsafe { check(store(skb, 0, &[hop.destination, hop.source]))? };
    let mut device = hop.ifindex;
    if (interface.flags & Interface::VLAN != 0) | !hop.tags.is_empty() {
        device = maps::interface(hop.ifindex)?.device;
        vlan::leave_skb(skb, interface, hop.tags)?;
    }
    count(reason);
    // SAFETY: the helper has no preconditions.
    Some(unsafe { bpf_redirect(device, 0) } as i32)
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
