//! Counts what arrives at the server, and while the bench inspects, checks it.

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};
use nat_bench_ebpf::{
    COUNTERS, DELIVERED, FLOWS_SEEN, INSPECTED_FLOWS, Plan, Probe, REMOTE_PORT, TTL, WRONG, fold,
};

use crate::{PLAN, probe};

/// `DELIVERED`, `FLOWS_SEEN`, `WRONG` → how many; written by the sink, read by the bench.
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// Flow → the inspection it was last seen in.
#[map]
static SEEN: Array<u32> = Array::with_max_entries(INSPECTED_FLOWS, 0);

#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    let (Some(plan), Some(frame)) = (PLAN.get(0), probe(&ctx)) else { return xdp_action::XDP_DROP };
    // SAFETY: `probe` compared the frame's end; any bytes are a Probe.
    let frame = unsafe { &*frame };
    if frame.kind != 0x0800_u16.to_be()
        || frame.protocol != 17
        || frame.destination_port != REMOTE_PORT.to_be()
    {
        // ARP and the like: none of ours.
        return xdp_action::XDP_DROP;
    }
    let mut right = frame.source & plan.source_mask == plan.source && frame.ttl == TTL - 1;
    if plan.inspection != 0 {
        right &= inspect(plan, frame);
        if right {
            remember(plan, u32::from_be(frame.flow));
        }
    }
    count(if right { DELIVERED } else { WRONG });
    xdp_action::XDP_DROP
}

#[inline(always)]
fn inspect(plan: &Plan, frame: &Probe) -> bool {
    let from = [frame.macs[6], frame.macs[7], frame.macs[8], frame.macs[9], frame.macs[10], frame.macs[11]];
    let wanted = plan.delivered_mac;
    let mac = from == [wanted[0], wanted[1], wanted[2], wanted[3], wanted[4], wanted[5]];
    let header = fold(frame.header_sum() + u32::from(frame.header_checksum)) == 0xffff;
    let udp = if plan.zero_checksum != 0 {
        frame.udp_checksum == 0
    } else {
        frame.udp_checksum != 0 && fold(frame.udp_sum() + u32::from(frame.udp_checksum)) == 0xffff
    };
    mac && header && udp
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
