//! Makes frames. Run by `BPF_PROG_RUN` with live frames, whose pages come back with what the gateway wrote into them:
//! every field is written every time.

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, DevMap},
    programs::XdpContext,
};
use nat_bench_ebpf::{
    FIRST_CLIENT, FIRST_PORT, FIRST_REMOTE, FRESH, Plan, Probe, Progress, RANDOM, REMOTE_PORT, TTL, fold,
};

use crate::{PLAN, probe};

/// Slot 0 → where the generator is; read and written by it alone, on one CPU.
#[map]
static PROGRESS: Array<Progress> = Array::with_max_entries(1, 0);

/// Gateway under test → the client's interface toward it.
#[map]
static OUTS: DevMap = DevMap::with_max_entries(8, 0);

#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let (Some(plan), Some(progress), Some(frame)) = (PLAN.get(0), PROGRESS.get_ptr_mut(0), probe(&ctx))
    else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: one CPU at a time runs this program, and nothing else writes the map meanwhile.
    let flow = next_flow(plan, unsafe { &mut *progress });
    // SAFETY: `probe` compared the frame's end; any bytes are a Probe.
    write(plan, unsafe { &mut *frame }, flow);
    OUTS.redirect(plan.out, u64::from(xdp_action::XDP_ABORTED)).unwrap_or_else(|action| action)
}

#[inline(always)]
fn next_flow(plan: &Plan, progress: &mut Progress) -> u32 {
    let count = progress.counter;
    progress.counter = count + 1;
    match plan.pattern {
        FRESH => count as u32,
        RANDOM => {
            // xorshift64*
            let mut random = progress.random;
            random ^= random >> 12;
            random ^= random << 25;
            random ^= random >> 27;
            progress.random = random;
            (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32 & plan.flow_mask
        }
        _ => count as u32 & plan.flow_mask,
    }
}

#[inline(always)]
fn write(plan: &Plan, frame: &mut Probe, flow: u32) {
    let bits = plan.endpoint_bits & 31;
    let remote = flow >> bits;
    let endpoint = flow & ((1 << bits) - 1);
    let client = (endpoint + remote * plan.stride) & 0xff;
    frame.macs = plan.macs;
    frame.kind = 0x0800_u16.to_be();
    frame.version_and_length = 0x45;
    frame.tos = 0;
    frame.total_length = 46_u16.to_be();
    frame.id = 0;
    frame.fragment = 0;
    frame.ttl = TTL;
    frame.protocol = 17;
    frame.source = (FIRST_CLIENT + client).to_be();
    frame.destination = (FIRST_REMOTE + remote).to_be();
    frame.source_port = FIRST_PORT.wrapping_add(endpoint as u16).to_be();
    frame.destination_port = REMOTE_PORT.to_be();
    frame.udp_length = 26_u16.to_be();
    frame.flow = flow.to_be();
    frame.header_checksum = !fold(frame.header_sum());
    frame.udp_checksum = if plan.zero_checksum != 0 {
        0
    } else {
        match !fold(frame.udp_sum()) {
            0 => 0xffff,
            checksum => checksum,
        }
    };
}
