//! Frames with VLAN tags: these come off before the frame is judged, and go on again, or others do.
//!
//! All else is written for frames without tags, and pays nothing for those that have some.

use core::ptr::NonNull;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_skb_vlan_pop, bpf_skb_vlan_push, bpf_xdp_adjust_head},
    programs::{TcContext, XdpContext},
};
use nat_common::{
    abi::Interface,
    frame::Frame as _,
    parse::ETHERNET,
    vlan::{TAG, Tags, is_tag},
    wire::{Ethernet, Vlan},
};

use crate::{frame::PacketFrame, is_marked, maps};

/// The MACs, by words.
type Macs = [u16; 6];

/// Whether a frame has a tag.
#[inline(always)]
pub fn is_tagged(frame: &PacketFrame) -> bool {
    // SAFETY: `at` answered for the whole header.
    frame.at::<Ethernet>(0).is_some_and(|ethernet| is_tag(unsafe { (*ethernet).kind }))
}

/// Takes the tags off a frame of a VLAN that natgw serves, remembers them, and tells the VLAN's interface. Zero, and
/// the frame as it was, for any other.
#[inline(never)]
pub fn enter(ctx: *mut xdp_md) -> u32 {
    let frame = PacketFrame::of_xdp(&XdpContext::new(ctx));
    let Some(tags) = tags_of(&frame) else { return 0 };
    // SAFETY: a program is always given a valid context.
    let device = unsafe { (*ctx).ingress_ifindex };
    let Some(interface) = maps::vlan(device, tags) else { return 0 };
    let Some(macs) = frame.at::<Macs>(0) else { return 0 };
    // SAFETY: `at` answered for them.
    let macs = unsafe { *macs };
    // SAFETY: the context is valid.
    if unsafe { bpf_xdp_adjust_head(ctx, length(tags)) } != 0 {
        return 0;
    }
    if write_macs(ctx, macs).is_none() {
        return 0;
    }
    maps::remember_tags(tags);
    interface
}

/// Bytes of tags, as the helper takes them.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "eight at most")]
fn length(tags: Tags) -> i32 {
    tags.length() as i32
}

/// Puts tags in front of what the MACs are followed by. Whether there was room.
#[inline(never)]
pub fn push(ctx: *mut xdp_md, tags: u64) -> u32 {
    let tags = Tags(tags);
    let frame = PacketFrame::of_xdp(&XdpContext::new(ctx));
    let Some(macs) = frame.at::<Macs>(0) else { return 0 };
    // SAFETY: `at` answered for them.
    let macs = unsafe { *macs };
    // SAFETY: the context is valid.
    if unsafe { bpf_xdp_adjust_head(ctx, -length(tags)) } != 0 || write_macs(ctx, macs).is_none() {
        return 0;
    }
    let frame = PacketFrame::of_xdp(&XdpContext::new(ctx));
    let [kind, tag, next, inner] = tags.words();
    let Some(outer) = frame.at::<[u16; 2]>(ETHERNET - size_of::<u16>()) else { return 0 };
    // SAFETY: `at` answered for it.
    unsafe { *outer = [kind, tag] };
    if tags.is_double() {
        let Some(second) = frame.at::<[u16; 2]>(ETHERNET - size_of::<u16>() + TAG) else { return 0 };
        // SAFETY: as above.
        unsafe { *second = [next, inner] };
    }
    1
}

/// A frame that is not natgw's to send has the tags again that it came with. `false` if it cannot.
#[inline(always)]
pub fn restore(ctx: &XdpContext, interface: &Interface) -> bool {
    interface.flags & Interface::VLAN == 0 || push(ctx.ctx, maps::remembered_tags().0) != 0
}

/// The tags that a frame leaves with: those of the way out, and the priority that it came with.
#[inline(always)]
pub fn leaving(interface: &Interface, tags: Tags) -> Tags {
    if interface.flags & Interface::VLAN == 0 { tags } else { tags.with_priority_of(maps::remembered_tags()) }
}

#[inline(always)]
fn write_macs(ctx: *mut xdp_md, macs: Macs) -> Option<()> {
    let frame = PacketFrame::of_xdp(&XdpContext::new(ctx));
    let place = frame.at::<Macs>(0)?;
    // SAFETY: `at` answered for it.
    unsafe { *place = macs };
    Some(())
}

/// The tags of a frame that has some.
#[inline(always)]
fn tags_of(frame: &PacketFrame) -> Option<Tags> {
    let ethernet = frame.at::<Ethernet>(0)?;
    let outer = frame.at::<Vlan>(ETHERNET)?;
    // SAFETY: `at` answered for both.
    let (kind, outer) = unsafe { ((*ethernet).kind, *outer) };
    if !is_tag(outer.kind) {
        return Some(Tags::of_wire([kind, outer.tag, 0, 0]));
    }
    let inner = frame.at::<Vlan>(ETHERNET + TAG)?;
    // SAFETY: as above.
    Some(Tags::of_wire([kind, outer.tag, outer.kind, unsafe { (*inner).tag }]))
}

/// In what [`enter_skb`] returns: XDP has marked the frame.
pub const MARKED: u64 = 1 << 32;

/// As [`enter`], for an skb: the stack has taken the outer tag into the skb's fields already, and an inner one is no longer
/// in the way afterwards. The interface, an skb's own if it has no tag and zero if natgw does not serve its VLAN, and [`MARKED`].
///
/// A function that the verifier walks for itself: what follows would be walked once for each way through it.
#[unsafe(no_mangle)]
pub extern "C" fn enter_skb(skb: *mut __sk_buff) -> u64 {
    let Some(skb) = NonNull::new(skb) else { return 0 };
    let ctx = TcContext::new(skb);
    let marked = if is_marked(&ctx) { MARKED } else { 0 };
    marked | u64::from(interface_of(&ctx).unwrap_or(0))
}

/// `None` if it is of a VLAN that natgw does not serve: it stays as it was.
#[inline(always)]
fn interface_of(ctx: &TcContext) -> Option<u32> {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: a tc program is always given a valid context.
    let (present, protocol, tag, device) =
        unsafe { ((*skb).vlan_present, (*skb).vlan_proto, (*skb).vlan_tci, (*skb).ifindex) };
    if present == 0 {
        return Some(device);
    }
    let (kind, tag) = (protocol as u16, (tag as u16).to_be());
    let frame = PacketFrame::of_tc(ctx);
    let ethernet = frame.at::<Ethernet>(0)?;
    // SAFETY: `at` answered for the whole header.
    let next = unsafe { (*ethernet).kind };
    let tags = if is_tag(next) {
        let inner = frame.at::<Vlan>(ETHERNET)?;
        // SAFETY: as above.
        Tags::of_wire([kind, tag, next, unsafe { (*inner).tag }])
    } else {
        Tags::of_wire([kind, tag, 0, 0])
    };
    let interface = maps::vlan(device, tags)?;
    // SAFETY: the skb is valid.
    if tags.is_double() && unsafe { bpf_skb_vlan_pop(skb) } != 0 {
        return None;
    }
    maps::remember_tags(tags);
    Some(interface)
}

/// An skb that is not natgw's to send has the outer tag again that [`enter_skb`] took off. `false` if it cannot.
#[inline(always)]
pub fn restore_skb(ctx: &TcContext, interface: &Interface) -> bool {
    let tags = maps::remembered_tags();
    interface.flags & Interface::VLAN == 0
        || !tags.is_double()
        || push_skb(ctx.as_ptr().cast(), tags.words()[0], tags.words()[1])
}

/// Takes the last tag off an skb that is about to leave, and puts those of its way out on.
#[inline(always)]
pub fn leave_skb(skb: *mut __sk_buff, interface: &Interface, tags: Tags) -> Option<()> {
    // SAFETY: the skb is valid.
    if interface.flags & Interface::VLAN != 0 && unsafe { bpf_skb_vlan_pop(skb) } != 0 {
        return None;
    }
    let [kind, tag, next, inner] = leaving(interface, tags).words();
    if next != 0 && !push_skb(skb, next, inner) {
        return None;
    }
    (kind == 0 || push_skb(skb, kind, tag)).then_some(())
}

#[inline(always)]
fn push_skb(skb: *mut __sk_buff, kind: u16, tag: u16) -> bool {
    // SAFETY: the skb is valid.
    unsafe { bpf_skb_vlan_push(skb, kind, u16::from_be(tag)) == 0 }
}
