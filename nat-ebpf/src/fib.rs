//! The kernel's routing table, asked for what no entry answers.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as Fib,
    },
    helpers::generated::bpf_fib_lookup,
};

/// `AF_INET`.
const AF_INET: u8 = 2;

/// What is asked.
pub struct Question {
    /// The interface that the packet arrived on.
    pub ifindex: u32,
    /// IP protocol.
    pub protocol: u8,
    /// Addresses, network byte order.
    pub source: u32,
    /// See [`Question::source`].
    pub destination: u32,
}

/// What is answered.
pub enum Answer {
    /// By this interface and neighbour.
    Way(Way),
    /// By this interface; the neighbour is not known yet.
    NoNeighbour(u32),
    /// Nowhere: the route says so.
    Nowhere,
    /// The packet is not forwarded, or the routing table does not tell.
    Unknown,
}

/// A way out.
pub struct Way {
    /// The interface.
    pub ifindex: u32,
    /// The neighbour's address, network byte order.
    pub neighbour: u32,
    /// Its MAC.
    pub destination: [u8; 6],
    /// The interface's MAC.
    pub source: [u8; 6],
}

/// A question and its answer as the helper takes them, in words: the compiler would fill it byte by byte.
#[repr(C, align(8))]
union Asked {
    words: [u64; 8],
    fib: Fib,
}

const _: () = assert!(size_of::<Fib>() == 64);

/// Asks the kernel's routing table.
#[inline(always)]
pub fn ask(context: *mut c_void, question: &Question) -> Answer {
    let mut asked = core::mem::MaybeUninit::<Asked>::uninit();
    let words = asked.as_mut_ptr().cast::<u64>();
    // SAFETY: eight words of a live variable, of which every bit pattern is valid; volatile, lest they become a call.
    let fib = unsafe {
        words.write_volatile(0);
        words.add(1).write_volatile(0);
        words.add(2).write_volatile(0);
        words.add(3).write_volatile(0);
        words.add(4).write_volatile(0);
        words.add(5).write_volatile(0);
        words.add(6).write_volatile(0);
        words.add(7).write_volatile(0);
        &mut *words.cast::<Fib>()
    };
    fib.family = AF_INET;
    fib.l4_protocol = question.protocol;
    // No length, and so no comparison with an MTU: it would be with one that the gateway's own connections learnt.
    fib.ifindex = question.ifindex;
    fib.__bindgen_anon_3.ipv4_src = question.source;
    fib.__bindgen_anon_4.ipv4_dst = question.destination;
    #[expect(clippy::cast_possible_wrap, reason = "the size is 64")]
    // SAFETY: the context is valid and the size is the structure's.
    let found = unsafe { bpf_fib_lookup(context, fib, size_of::<Fib>() as i32, 0) };
    #[expect(clippy::cast_sign_loss, reason = "the codes are positive; an error is none of them")]
    match found as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            // SAFETY: on success the kernel has filled in the neighbour's address and the MACs.
            let (neighbour, macs) =
                unsafe { (fib.__bindgen_anon_4.ipv4_dst, fib.__bindgen_anon_6.__bindgen_anon_2) };
            Answer::Way(Way { ifindex: fib.ifindex, neighbour, destination: macs.dmac, source: macs.smac })
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => Answer::NoNeighbour(fib.ifindex),
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            Answer::Nowhere
        }
        _ => Answer::Unknown,
    }
}
