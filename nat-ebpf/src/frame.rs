//! A frame as the kernel shows it: the only packet-pointer arithmetic in the program.

use aya_ebpf::programs::{TcContext, XdpContext};
use nat_common::{frame::Frame, wire::Wire};

/// First and last byte of the packet's linear part.
pub struct PacketFrame {
    start: usize,
    end: usize,
}

impl PacketFrame {
    /// The frame of an XDP context.
    #[inline(always)]
    pub fn of_xdp(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// The linear part of an skb.
    #[inline(always)]
    pub fn of_tc(ctx: &TcContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }
}

impl Frame for PacketFrame {
    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let header = self.start + offset;
        // In this form, and no other, the verifier learns the range of `header`.
        if header + size_of::<T>() > self.end {
            return None;
        }
        Some(header as *mut T)
    }

    #[inline(always)]
    fn at_in_loop<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        let header = self.start + offset;
        if header + size_of::<T>() > core::hint::black_box(self.end) {
            return None;
        }
        Some(header as *mut T)
    }

    #[inline(always)]
    fn skip(&self, offset: usize) -> Self {
        Self { start: self.start + offset, end: self.end }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.end - self.start
    }
}
