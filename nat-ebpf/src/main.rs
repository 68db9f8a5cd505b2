//! natgw's fast path: what happens to a frame between one NIC and the next.
//!
//! The XDP program is attached to every interface natgw serves. The tc program beside it sends
//! what XDP could not: frames whose way out takes no redirected frame, and frames whose checksum
//! only the stack can finish. Both judge with nat-common and decide nothing themselves: what no
//! flow and no one-to-one rule covers goes to the daemon, to the gateway's own stack, or nowhere.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "atomic operations, see `atomic`")]
#![expect(missing_docs, reason = "the program macros make public symbols that no Rust code calls")]
#![expect(clippy::needless_pass_by_value, reason = "the program macros hand the context over by value")]
#![expect(clippy::not_unsafe_ptr_arg_deref, reason = "as above: nothing but the kernel calls a program")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets, sizes and helpers' codes, all small; a checked conversion is a branch for the verifier"
)]

mod atomic;
mod count;
mod enter;
mod fib;
mod flow;
mod frame;
mod known;
mod lent;
mod maps;
mod miss;
mod open;
mod relay;
mod skb;
mod sockets;
mod stateless;
mod trace;
mod verdict;
mod vlan;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    helpers::generated::{bpf_jiffies64, bpf_xdp_adjust_meta},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use nat_common::{
    Parsed, Realm, Reason,
    abi::{Interface, MARK, MARK_LENGTH},
    parse::{ETHERNET, Kind, parse_ipv4},
    table::EMPTY,
    wire::{ETHERTYPE_IPV4, Ethernet},
};

use crate::{count::count, frame::PacketFrame, trace::Finished, verdict::Verdict};
use nat_common::frame::Frame as _;

/// Ingress of every interface.
#[xdp]
#[inline(always)]
pub fn natgw_xdp(ctx: XdpContext) -> u32 {
    receive(&ctx).action
}

/// The same, in its place while somebody asks what it does.
#[xdp]
#[inline(always)]
pub fn natgw_xdp_traced(ctx: XdpContext) -> u32 {
    trace::begin_xdp(ctx.ctx);
    let finished = receive(&ctx);
    trace::note(&finished);
    trace::end_xdp(ctx.ctx);
    trace::tell();
    finished.action
}

#[inline(always)]
fn receive(ctx: &XdpContext) -> Finished<u32> {
    let mut ifindex = ctx.ingress_ifindex() as u32;
    if vlan::is_tagged(&PacketFrame::of_xdp(ctx)) {
        // In a VLAN that is no interface of ours: its own device's, or nobody's (behaviour L2X-02).
        ifindex = vlan::enter(ctx.ctx);
        if ifindex == 0 {
            count(Reason::Passed);
            return Finished::told(xdp_action::XDP_PASS, Reason::Passed);
        }
    }
    let Some(interface) = maps::interface(ifindex) else { return Finished::untold(xdp_action::XDP_PASS) };
    Finished { interface: ifindex, ..serve(ctx, interface) }
}

/// A frame of an interface of natgw's, without its tags.
#[inline(always)]
fn serve(ctx: &XdpContext, interface: &Interface) -> Finished<u32> {
    let verdict = if is_injected(interface) { Verdict::Injected } else { judge(ctx, interface) };
    match verdict {
        Verdict::Sent(action, reason, out) => return Finished { out, ..Finished::told(action, reason) },
        Verdict::Drop(reason) => {
            count(reason);
            return Finished::told(xdp_action::XDP_DROP, reason);
        }
        _ => {}
    }
    if !vlan::restore(ctx, interface) {
        count(Reason::DropTransmit);
        return Finished::told(xdp_action::XDP_DROP, Reason::DropTransmit);
    }
    match verdict {
        Verdict::Punt => return punt(ctx, interface),
        Verdict::Stack => mark(ctx),
        Verdict::Injected => {}
        _ => {
            count(Reason::Passed);
            return Finished::told(xdp_action::XDP_PASS, Reason::Passed);
        }
    }
    Finished::untold(xdp_action::XDP_PASS)
}

/// The packet's way, on one screen.
#[inline(always)]
fn judge(ctx: &XdpContext, interface: &Interface) -> Verdict {
    let frame = PacketFrame::of_xdp(ctx);
    if !is_for(&frame, interface) || !is_ipv4(&frame) {
        return Verdict::Pass;
    }
    let parsed = match parse_ipv4(&frame, ETHERNET, realm(interface)) {
        Ok(parsed) => parsed,
        Err(reason) => return Verdict::Drop(reason),
    };
    let transport = frame.skip(parsed.transport);
    let mut number = EMPTY;
    if matches!(parsed.kind, Kind::Ported | Kind::Portless) {
        number = maps::search(parsed.key.words());
    }
    if number == EMPTY {
        return miss::judge(ctx, interface, &parsed);
    }
    let Some(flow) = maps::flow_of(number) else { return Verdict::Punt };
    flow::forward(ctx, interface, &frame, &transport, &parsed, &flow)
}

/// Hands the frame to the daemon's socket of this queue; without one it goes nowhere, because a
/// packet that needs a decision must not leave untranslated.
#[inline(always)]
fn punt(ctx: &XdpContext, interface: &Interface) -> Finished<u32> {
    let queue = ctx.rx_queue_index();
    if queue >= interface.queues {
        // The slot would be another interface's, whose socket takes nothing from here.
        count(Reason::DropNoDaemon);
        return Finished::told(xdp_action::XDP_DROP, Reason::DropNoDaemon);
    }
    match maps::SOCKETS.redirect(interface.first_socket + queue, u64::from(xdp_action::XDP_DROP)) {
        Ok(action) => {
            count(Reason::Punted);
            Finished::untold(action)
        }
        Err(action) => {
            count(Reason::DropNoDaemon);
            Finished::told(action, Reason::DropNoDaemon)
        }
    }
}

/// Ingress of the tc hook: sends by the stack what XDP recognised and left alone.
#[classifier]
pub fn natgw_tc(ctx: TcContext) -> i32 {
    finish(&ctx).action
}

/// The same, in its place while somebody asks what it does.
#[classifier]
pub fn natgw_tc_traced(ctx: TcContext) -> i32 {
    trace::begin_skb(ctx.as_ptr().cast());
    let finished = finish(&ctx);
    trace::note(&finished);
    trace::end_skb(ctx.as_ptr().cast());
    trace::tell();
    finished.action
}

#[inline(always)]
fn finish(ctx: &TcContext) -> Finished<i32> {
    let entered = vlan::enter_skb(ctx.as_ptr().cast());
    let (ifindex, marked) = (entered as u32, entered & vlan::MARKED != 0);
    if ifindex == 0 {
        // In a VLAN that is no interface of ours.
        return Finished::untold(TC_ACT_OK);
    }
    let Some(interface) = maps::interface(ifindex) else { return Finished::untold(TC_ACT_OK) };
    Finished { interface: ifindex, ..serve_skb(ctx, interface, marked) }
}

/// An skb of an interface of natgw's, without its inner tag.
#[inline(always)]
fn serve_skb(ctx: &TcContext, interface: &Interface, marked: bool) -> Finished<i32> {
    match skb::translate(ctx, interface, realm(interface)) {
        Some(finished) => finished,
        None if marked => {
            count(Reason::DropNoSession);
            Finished::told(TC_ACT_SHOT, Reason::DropNoSession)
        }
        None if vlan::restore_skb(ctx, interface) => Finished::untold(TC_ACT_OK),
        None => {
            count(Reason::DropTransmit);
            Finished::told(TC_ACT_SHOT, Reason::DropTransmit)
        }
    }
}

/// Egress of outside interfaces, before the wire: the gateway's own packet from a port that a client has
/// to the same remote ends here. Its answer would be the client's (behaviour LOC-03). Of the others the port is noted.
#[classifier]
pub fn natgw_own(ctx: TcContext) -> i32 {
    // SAFETY: a tc program is always given a valid context.
    let (ifindex, received_on, is_tagged) = unsafe {
        let skb = ctx.as_ptr().cast::<__sk_buff>();
        ((*skb).ifindex, (*skb).ingress_ifindex, (*skb).vlan_present)
    };
    // What was forwarded or translated came in somewhere; what has a tag was judged at its VLAN's own device.
    if received_on != 0 || is_tagged != 0 {
        return TC_ACT_OK;
    }
    let Some(interface) = maps::interface(ifindex) else { return TC_ACT_OK };
    if skb::leave(&ctx, realm(interface)) {
        count(Reason::DropOwnClash);
        return TC_ACT_SHOT;
    }
    TC_ACT_OK
}

/// Run by the daemon, never attached: writes the clock that `last_seen` is told by.
#[xdp]
pub fn natgw_clock(_ctx: XdpContext) -> u32 {
    if let Some(clock) = maps::CLOCK.get_ptr_mut(0) {
        // SAFETY: an aligned word that only this program writes; the helper has no preconditions.
        unsafe { *clock = bpf_jiffies64() };
    }
    xdp_action::XDP_DROP
}

/// Run by the daemon on frames that are the stack's after all: they enter it as if received on
/// the interface the daemon names. Where XDP runs on skbs they would come by the program above
/// again, on this CPU and before any other packet: `INJECTED` tells it to let this one pass.
#[xdp]
pub fn natgw_inject(ctx: XdpContext) -> u32 {
    let generic = maps::interface(ctx.ingress_ifindex() as u32)
        .is_some_and(|interface| interface.flags & Interface::GENERIC != 0);
    if generic && let Some(injected) = maps::INJECTED.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own.
        unsafe { *injected = 1 };
    }
    xdp_action::XDP_PASS
}

/// Whether the frame is one that the daemon just handed to the stack.
#[inline(always)]
fn is_injected(interface: &Interface) -> bool {
    if interface.flags & Interface::GENERIC == 0 {
        return false;
    }
    let Some(injected) = maps::INJECTED.get_ptr_mut(0) else { return false };
    // SAFETY: the slot is this CPU's own.
    unsafe { core::ptr::replace(injected, 0) != 0 }
}

/// Room for the mark, as the helper takes it.
const MARK_ROOM: i32 = 4;
const _: () = assert!(MARK_ROOM as usize == MARK_LENGTH);

/// Marks a frame for the tc hook. A driver that carries no metadata leaves it unmarked, and the
/// hook then takes what it finds no flow for to be the stack's.
#[inline(always)]
fn mark(ctx: &XdpContext) {
    // SAFETY: a program is always given a valid context; the metadata is written within the
    // bounds it has after the helper has made room.
    unsafe {
        if bpf_xdp_adjust_meta(ctx.ctx, -MARK_ROOM) != 0 {
            return;
        }
        let metadata = ctx.metadata();
        if metadata + MARK_LENGTH <= ctx.metadata_end() {
            *(metadata as *mut u32) = MARK;
        }
    }
}

/// Whether XDP has marked a frame.
#[inline(always)]
pub fn is_marked(ctx: &TcContext) -> bool {
    // SAFETY: as for `mark`.
    unsafe {
        let skb = ctx.as_ptr().cast::<__sk_buff>();
        let metadata = (*skb).data_meta as usize;
        metadata + MARK_LENGTH <= (*skb).data as usize && *(metadata as *const u32) == MARK
    }
}

/// Which side an interface faces.
#[inline(always)]
fn realm(interface: &Interface) -> u16 {
    // Without a branch, which would make the verifier walk everything behind it twice.
    (interface.flags as u16 & Interface::OUTSIDE as u16) ^ Realm::Inside as u16
}

const _: () = assert!(Interface::OUTSIDE == 1 && Realm::Inside as u16 == 1 && Realm::Outside as u16 == 0);

const _: () = assert!(core::mem::offset_of!(Interface, mac) % 2 == 0);

/// Whether the frame is addressed to this interface: broadcasts and what a switch flooded are
/// the stack's to judge, never translated (behaviour L2X-03).
#[inline(always)]
fn is_for(frame: &PacketFrame, interface: &Interface) -> bool {
    let Some(ethernet) = frame.at::<Ethernet>(0) else { return false };
    #[expect(clippy::cast_ptr_alignment, reason = "at an even offset, as asserted above")]
    let own = (&raw const interface.mac).cast::<[u16; 3]>();
    // By words: byte arrays would be compared byte by byte.
    // SAFETY: `at` answered for the whole header, which begins with the MAC; both lie at even
    // addresses.
    unsafe {
        let to = *ethernet.cast::<[u16; 3]>();
        to[0] == (*own)[0] && to[1] == (*own)[1] && to[2] == (*own)[2]
    }
}

/// Whether a frame is IPv4, without tags.
#[inline(always)]
pub fn is_ipv4(frame: &PacketFrame) -> bool {
    // SAFETY: `at` answered for the whole header.
    frame.at::<Ethernet>(0).is_some_and(|ethernet| unsafe { (*ethernet).kind } == ETHERTYPE_IPV4.to_be())
}

/// Whether these are segments that an offload will cut apart: the stack keeps them together and knows
/// their size, a redirect from XDP would not take them.
#[inline(always)]
pub fn is_merged(interface: &Interface, parsed: &Parsed) -> bool {
    // Both without a branch between: the verifier walks what follows once for each way to "no".
    (interface.flags & Interface::GENERIC != 0) & (u32::from(parsed.total_length) > interface.mtu)
}

/// Whether the frame's TTL and size allow it through: the rest is the daemon's, who answers.
#[inline(always)]
pub fn fits(parsed: &Parsed, mtu: u32) -> bool {
    parsed.ttl > 1 && u32::from(parsed.total_length) <= mtu
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
