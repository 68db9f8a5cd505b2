//! The bench's XDP programs: a generator, the sink that counts what arrives, a router without NAT, and one that
//! drops everything.
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "the program macro hands the context over by value")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "counters are cut to a flow's number on purpose, the rest is small"
)]
#![expect(missing_docs, reason = "the program macros make public symbols that no Rust code calls")]

mod generate;
mod route;
mod sink;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};
use nat_bench_ebpf::{Plan, Probe};

/// Slot 0 → what to do; written by the bench between runs, read by generator and sink.
#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);

/// Counts nothing, forwards nothing: what remains is the generator's own cost.
#[xdp]
pub fn discard(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// The frame, if it is as long as the bench's are.
#[inline(always)]
fn probe(ctx: &XdpContext) -> Option<*mut Probe> {
    let start = ctx.data();
    if start + size_of::<Probe>() > ctx.data_end() {
        return None;
    }
    Some(start as *mut Probe)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers used are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
