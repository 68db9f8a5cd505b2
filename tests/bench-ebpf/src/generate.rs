//! Makes frames. Run by `BPF_PROG_RUN` with live frames, whose pages come back with what the gateway wrote into them:
//! every field is written every time.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_tail},
    macros::{map, xdp},
    maps::{Array, DevMap, PerCpuArray},
    programs::XdpContext,
};
use nat_bench_ebpf::{
    ESTABLISHED_EVERY, FLOOD, FLOOD_TURN, FRESH, LENGTHS, NEWCOMER, Plan, Probe, Progress, QUANTILE_BITS,
    QUANTILES, RANDOM, REMOTE_PORT, TCP, TTL, UDP, ZIPF, endpoints,
};

use crate::{PLAN, probe};

/// Slot 0 → where the generator of this CPU is.
#[map]
static PROGRESS: PerCpuArray<Progress> = PerCpuArray::with_max_entries(1, 0);

/// Gateway under test → the client's interface toward it.
#[map]
static OUTS: DevMap = DevMap::with_max_entries(8, 0);

/// Quantile → the first flow in it, written by the bench.
#[map]
static QUANTILE: Array<u32> = Array::with_max_entries(QUANTILES, 0);

#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let (Some(plan), Some(progress)) = (PLAN.get(0), PROGRESS.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: this CPU's own slot, and the program does not nest.
    let progress = unsafe { &mut *progress };
    let length = if plan.mixed == 0 { LENGTHS[0] } else { cut(&ctx, progress) };
    let Some(frame) = probe(&ctx) else { return xdp_action::XDP_ABORTED };
    let flow = next_flow(plan, progress);
    // SAFETY: `probe` compared the frame's end; any bytes are a Probe.
    write(plan, unsafe { &mut *frame }, flow, length);
    OUTS.redirect(plan.out, u64::from(xdp_action::XDP_ABORTED)).unwrap_or_else(|action| action)
}

/// Cuts a frame that came as long as any to one of the lengths.
#[inline(always)]
fn cut(ctx: &XdpContext, progress: &mut Progress) -> u16 {
    let length = match progress.draw() % 12 {
        0..7 => LENGTHS[0],
        7..11 => LENGTHS[1],
        _ => return LENGTHS[2],
    };
    // SAFETY: the context is valid; pointers into the frame are taken after this.
    unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), i32::from(length) - i32::from(LENGTHS[2])) };
    length
}

#[inline(always)]
fn next_flow(plan: &Plan, progress: &mut Progress) -> u32 {
    let count = progress.counter;
    progress.counter = count + 1;
    match plan.pattern {
        FRESH => plan.first + count as u32,
        RANDOM => progress.draw() & plan.flow_mask,
        ZIPF => rank(progress) & plan.flow_mask,
        FLOOD => {
            let turn = count % FLOOD_TURN;
            if turn.is_multiple_of(ESTABLISHED_EVERY) {
                progress.established += 1;
                progress.established as u32 & plan.flow_mask
            } else if turn == 1 {
                progress.newcomers += 1;
                NEWCOMER | (plan.first + progress.newcomers as u32)
            } else {
                plan.first + count as u32
            }
        }
        _ => count as u32 & plan.flow_mask,
    }
}

/// A flow by its rank: evenly within a quantile. Multiplied, so that flows of neighbouring ranks are no neighbours.
#[inline(always)]
fn rank(progress: &mut Progress) -> u32 {
    let random = progress.draw();
    let quantile = random >> (32 - QUANTILE_BITS);
    let (Some(from), Some(to)) = (QUANTILE.get(quantile), QUANTILE.get(quantile + 1)) else { return 0 };
    let within = u64::from(random << QUANTILE_BITS);
    let rank = from + ((u64::from(to.wrapping_sub(*from)) * within) >> 32) as u32;
    rank.wrapping_mul(0x9e37_79b1)
}

#[inline(always)]
fn write(plan: &Plan, frame: &mut Probe, flow: u32, length: u16) {
    let (client, port, remote) = endpoints(plan, flow);
    frame.macs = plan.macs;
    frame.kind = 0x0800_u16.to_be();
    frame.version_and_length = 0x45;
    frame.tos = 0;
    frame.total_length = (length - 14).to_be();
    frame.id = 0;
    frame.fragment = 0;
    frame.ttl = TTL;
    frame.source = client.to_be();
    frame.destination = remote.to_be();
    frame.source_port = port.to_be();
    frame.destination_port = REMOTE_PORT.to_be();
    frame.flow = flow.to_be();
    if plan.mixed != 0 && flow & 1 != 0 {
        frame.protocol = TCP;
        frame.udp_length = 0;
        frame.udp_checksum = 0;
        // Data offset 5, ACK; a window.
        frame.words = [0x5010_u16.to_be(), 0xffff, 0, 0];
    } else {
        frame.protocol = UDP;
        frame.udp_length = (length - 34).to_be();
        frame.words = [0; 4];
        if plan.stamped != 0 {
            // SAFETY: the helper has no preconditions.
            let now = unsafe { bpf_ktime_get_ns() };
            frame.words = [now as u16, (now >> 16) as u16, (now >> 32) as u16, (now >> 48) as u16];
        }
    }
    frame.seal(plan.zero_checksum != 0);
}
