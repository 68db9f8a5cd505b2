//! x
#![no_std]
#![no_main]
use aya_ebpf::{macros::xdp, programs::XdpContext};
#[xdp]
pub fn natgw_xdp(_ctx: XdpContext) -> u32 {
    2
}
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
