//! The gateway's own sockets: asked before the daemon, so that a service or a connection of the
//! gateway never loses its packets to a mapping (behaviour LOC-02, LOC-04; CVE-2021-3773). Only a
//! forward, which someone wrote down, goes before a service.

use aya_ebpf::{
    bindings::{bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1},
    helpers::generated::{bpf_jiffies64, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::XdpContext,
};
use nat_common::{
    FlowKey,
    held::{self, HeldPorts, HeldWords},
    wire,
};

use crate::{atomic::Shared, maps};

/// `BPF_F_CURRENT_NETNS`: the namespace of the device.
const CURRENT_NETNS: u64 = u64::MAX;

/// Which socket of the gateway would take a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    /// None.
    Nobody,
    /// One that takes packets of anybody.
    Service,
    /// One that is connected to the packet's source.
    Connection,
}

/// `TCP_LISTEN`.
const LISTEN: u32 = 10;

/// The socket of the gateway that would take the packet.
#[inline(always)]
pub fn taker(ctx: &XdpContext, key: &FlowKey) -> Taker {
    let addresses = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: key.source,
        daddr: key.destination,
        sport: key.source_port,
        dport: key.destination_port,
    };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4: addresses } };
    let size = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32;
    let context = ctx.ctx.cast();
    // SAFETY: context and tuple are valid, the size is that of the IPv4 variant, and the reference
    // a successful lookup returns is released below.
    unsafe {
        let socket = match key.protocol {
            wire::TCP => bpf_skc_lookup_tcp(context, &raw mut tuple, size, CURRENT_NETNS, 0),
            wire::UDP => bpf_sk_lookup_udp(context, &raw mut tuple, size, CURRENT_NETNS, 0),
            _ => return Taker::Nobody,
        };
        if socket.is_null() {
            return Taker::Nobody;
        }
        // A UDP socket has a remote port once it is connected. Its state would say so, too, but the
        // verifier forbids one instruction to read both kinds of socket.
        let is_service =
            if key.protocol == wire::UDP { (*socket).dst_port == 0 } else { (*socket).state == LISTEN };
        bpf_sk_release(socket.cast());
        if is_service { Taker::Service } else { Taker::Connection }
    }
}

/// Whether a socket of the gateway may hold a port (host byte order): no, if the daemon has listed them a moment ago and it
/// was not there, nor was sent from since.
#[inline(always)]
pub fn may_hold(protocol: u8, port: u32) -> bool {
    let Some(ports) = maps::held(protocol) else { return true };
    // SAFETY: a live word of a map, which the daemon writes as a whole; the helper has no preconditions.
    let is_listed = unsafe { held::holds((&raw const (*ports).until).read_volatile(), bpf_jiffies64()) };
    let (held, bit) = held(ports, port);
    !is_listed || held.has(bit)
}

/// The gateway itself sends from a port (host byte order).
#[inline(always)]
pub fn mark(protocol: u8, port: u32) {
    let Some(ports) = maps::held(protocol) else { return };
    let (held, bit) = held(ports, port);
    held.mark(bit);
}

/// The words of a port, and its bit there.
#[inline(always)]
fn held(ports: *mut HeldPorts, port: u32) -> (HeldWords<Shared>, u64) {
    // The compiler knows that a port has 16 bits and leaves the mask out, the verifier does not: read like this, neither.
    // SAFETY: a live variable.
    let port = unsafe { (&raw const port).read_volatile() };
    let at = (port >> 6 & (held::WORDS - 1)) as usize;
    // SAFETY: one of the table's words of either kind, aligned, which everybody writes by atomic operations.
    let held = unsafe {
        HeldWords {
            listed: Shared::new((&raw mut (*ports).listed).cast::<u64>().add(at)),
            sent: Shared::new((&raw mut (*ports).sent).cast::<u64>().add(at)),
        }
    };
    (held, 1 << (port & 63))
}
