//! Counts what arrives at the server, and while the bench inspects, checks it; sends it back if it is told to, and
//! counts it at the client then.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};
use nat_bench_ebpf::{
    COUNTERS, DELIVERED, ESTABLISHED, FLOOD, FLOWS_SEEN, INSPECTED_FLOWS, NEWCOMER, NEWCOMERS, Plan, Probe,
    REMOTE_PORT, SLOTS, TCP, TTL, UDP, WRONG, endpoints, slot_of,
};

use crate::{PLAN, probe};

/// `DELIVERED`, `FLOWS_SEEN`, `WRONG` … → how many; written by the sink, read by the bench.
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// Flow → the inspection it was last seen in.
#[map]
static SEEN: Array<u32> = Array::with_max_entries(INSPECTED_FLOWS, 0);

/// `slot_of` the time a stamped frame took → frames.
#[map]
static TIMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS, 0);

/// The server's end of a lane.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    let (Some(plan), Some(frame)) = (PLAN.get(0), probe(&ctx)) else { return xdp_action::XDP_DROP };
    // SAFETY: `probe` compared the frame's end; any bytes are a Probe.
    let frame = unsafe { &mut *frame };
    if !is_ours(frame) || frame.destination_port != REMOTE_PORT.to_be() {
        return xdp_action::XDP_DROP;
    }
    let mut right = frame.source & plan.source_mask == plan.source && frame.ttl == TTL - 1;
    if plan.inspection != 0 {
        right &= comes_from(frame, &plan.delivered_mac) && frame.is_sealed(plan.zero_checksum != 0);
    }
    if plan.reflected == 0 || !right {
        arrived(plan, frame, right);
        return xdp_action::XDP_DROP;
    }
    turn_around(plan, frame);
    #[expect(clippy::cast_sign_loss, reason = "an action, which is no error and small")]
    // Not XDP_TX: a veth wakes its peer after that only if the peer has a program of its own (veth_xdp_flush).
    // SAFETY: the helper has no preconditions; the interface is the one the frame came by.
    let action = unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) } as u32;
    action
}

/// The client's end of a lane.
#[xdp]
pub fn returned(ctx: XdpContext) -> u32 {
    let (Some(plan), Some(frame)) = (PLAN.get(0), probe(&ctx)) else { return xdp_action::XDP_DROP };
    // SAFETY: `probe` compared the frame's end; any bytes are a Probe.
    let frame = unsafe { &*frame };
    if !is_ours(frame) || frame.source_port != REMOTE_PORT.to_be() {
        return xdp_action::XDP_DROP;
    }
    let (client, port, remote) = endpoints(plan, u32::from_be(frame.flow));
    let mut right = frame.destination == client.to_be()
        && frame.destination_port == port.to_be()
        && frame.source == remote.to_be()
        && frame.ttl == TTL - 1;
    if plan.inspection != 0 {
        right &= comes_from(frame, &plan.returned_mac) && frame.is_sealed(plan.zero_checksum != 0);
    }
    arrived(plan, frame, right);
    xdp_action::XDP_DROP
}

/// Not ARP and the like.
#[inline(always)]
fn is_ours(frame: &Probe) -> bool {
    frame.kind == 0x0800_u16.to_be() && (frame.protocol == UDP || frame.protocol == TCP)
}

#[inline(always)]
fn comes_from(frame: &Probe, wanted: &[u8; 8]) -> bool {
    let from = [frame.macs[6], frame.macs[7], frame.macs[8], frame.macs[9], frame.macs[10], frame.macs[11]];
    from == [wanted[0], wanted[1], wanted[2], wanted[3], wanted[4], wanted[5]]
}

/// Makes an answer of a frame.
#[inline(always)]
fn turn_around(plan: &Plan, frame: &mut Probe) {
    let macs = frame.macs;
    frame.macs = [
        macs[6], macs[7], macs[8], macs[9], macs[10], macs[11], macs[0], macs[1], macs[2], macs[3], macs[4],
        macs[5],
    ];
    (frame.source, frame.destination) = (frame.destination, frame.source);
    (frame.source_port, frame.destination_port) = (frame.destination_port, frame.source_port);
    frame.ttl = TTL;
    frame.seal(plan.zero_checksum != 0);
}

/// Counts a frame at the end of its way.
#[inline(always)]
fn arrived(plan: &Plan, frame: &Probe, right: bool) {
    let flow = u32::from_be(frame.flow);
    if !right {
        count(WRONG);
        return;
    }
    if plan.inspection != 0 {
        remember(plan, flow);
    }
    if plan.pattern == FLOOD {
        if flow >= NEWCOMER {
            count(NEWCOMERS);
        } else if flow < plan.first {
            count(ESTABLISHED);
        }
    }
    if plan.stamped != 0 {
        note_time(frame);
    }
    count(DELIVERED);
}

#[inline(always)]
fn note_time(frame: &Probe) {
    let words = frame.words;
    let made = u64::from(words[0])
        | u64::from(words[1]) << 16
        | u64::from(words[2]) << 32
        | u64::from(words[3]) << 48;
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(frames) = TIMES.get_ptr_mut(slot_of(now.wrapping_sub(made))) {
        // SAFETY: this CPU's own slot, and XDP programs do not nest.
        unsafe { *frames += 1 };
    }
}

#[inline(always)]
fn remember(plan: &Plan, flow: u32) {
    let Some(seen) = SEEN.get_ptr_mut(flow) else { return };
    // SAFETY: the slot lives as long as the map; the sink runs on one CPU at a time.
    unsafe {
        if *seen != plan.inspection {
            *seen = plan.inspection;
            count(FLOWS_SEEN);
        }
    }
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(value) = COUNTS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own slot, and XDP programs do not nest.
        unsafe { *value += 1 };
    }
}
