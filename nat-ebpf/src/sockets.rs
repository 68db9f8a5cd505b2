//! The gateway's own sockets: asked before the daemon, so that a service or a connection of the
//! gateway never loses its packets to a mapping (behaviour LOC-02, LOC-04; CVE-2021-3773).

use aya_ebpf::{
    bindings::{bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1},
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::XdpContext,
};
use nat_common::{FlowKey, wire};

/// `BPF_F_CURRENT_NETNS`: the namespace of the device.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether a socket of the gateway would take the packet: connected to its source, or listening.
#[inline(always)]
pub fn wants(ctx: &XdpContext, key: &FlowKey) -> bool {
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
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}
