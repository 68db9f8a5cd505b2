//! A router and nothing else: what a gateway costs before it translates anything.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup, xdp_action},
    helpers::bpf_fib_lookup,
    macros::{map, xdp},
    maps::DevMap,
    programs::XdpContext,
};

use crate::probe;

/// Interface → itself, for those frames may leave by; written by the bench.
#[map]
static LINKS: DevMap = DevMap::with_max_entries(256, 0);

#[xdp]
pub fn route(ctx: XdpContext) -> u32 {
    let Some(frame) = probe(&ctx) else { return xdp_action::XDP_PASS };
    // SAFETY: `probe` compared the frame's end; any bytes are a Probe.
    let frame = unsafe { &mut *frame };
    if frame.kind != 0x0800_u16.to_be() || frame.version_and_length != 0x45 || frame.ttl <= 1 {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: integers all, for which zero is a value.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    query.family = 2;
    query.l4_protocol = frame.protocol;
    query.__bindgen_anon_1.tot_len = u16::from_be(frame.total_length);
    query.__bindgen_anon_2.tos = frame.tos;
    query.__bindgen_anon_3.ipv4_src = frame.source;
    query.__bindgen_anon_4.ipv4_dst = frame.destination;
    query.ifindex = ctx.ingress_ifindex() as u32;
    #[expect(clippy::cast_possible_wrap, reason = "the size is 64")]
    // SAFETY: the context is valid, and `query` lives on this stack with the length given.
    let found = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut query, size_of::<FibLookup>() as i32, 0) };
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return xdp_action::XDP_PASS;
    }
    frame.ttl -= 1;
    // RFC 1141: the TTL is the upper byte of its word, so the checksum grows by 0x0100, with the carry put back.
    let sum = u32::from(u16::from_be(frame.header_checksum)) + 0x0100;
    frame.header_checksum = ((sum + (sum >> 16)) as u16).to_be();
    // SAFETY: on success the helper fills in both addresses.
    let hop = unsafe { query.__bindgen_anon_6.__bindgen_anon_2 };
    let (to, from) = (hop.dmac, hop.smac);
    frame.macs =
        [to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5]];
    LINKS.redirect(query.ifindex, u64::from(xdp_action::XDP_DROP)).unwrap_or_else(|action| action)
}
