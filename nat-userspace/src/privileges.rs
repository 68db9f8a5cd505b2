//! Privileges: what natgw needs, and giving up all else.

use rustix::thread::{CapabilitySet, CapabilitySets};

/// A capability, its name, what it is for.
type Need = (CapabilitySet, &'static str, &'static str);

/// Capabilities that are needed as long as natgw runs: interfaces come and go.
pub const KEPT: [Need; 5] = [
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN", "attach XDP and tc programs, ask for neighbours"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW", "open AF_XDP sockets"),
    (CapabilitySet::IPC_LOCK, "CAP_IPC_LOCK", "lock the memory of AF_XDP sockets"),
    (CapabilitySet::BPF, "CAP_BPF", "load eBPF programs and maps"),
    (CapabilitySet::PERFMON, "CAP_PERFMON", "let the verifier trust packet pointers"),
];

/// What is needed until the tables are there.
pub const AT_START: Need = (
    CapabilitySet::SYS_ADMIN,
    "CAP_SYS_ADMIN",
    "read the tables of an earlier daemon; given up once natgw runs",
);

/// The capabilities of the calling thread that count; none that can be asked for: all.
pub fn effective() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::all(), |sets| sets.effective)
}

/// Gives up every capability that is not [`KEPT`], for good: the calling thread and those that it starts from now
/// on have them no more, nor would a program that one of them ran.
///
/// Threads that run already keep theirs: each that was started before calls this as well.
pub fn drop_others() {
    let kept = KEPT.iter().fold(CapabilitySet::empty(), |sum, (one, ..)| sum | *one);
    // The bounding set only while there is the right to: a service manager may have done it.
    if effective().contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(kept).iter() {
            // A kernel may not know each.
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    let dropped = rustix::thread::capabilities(None).and_then(|now| {
        let (effective, permitted) = (now.effective & kept, now.permitted & kept);
        let inheritable = CapabilitySet::empty();
        rustix::thread::clear_ambient_capability_set()?;
        rustix::thread::set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
        rustix::thread::set_no_new_privs(true)
    });
    if let Err(error) = dropped {
        tracing::warn!(%error, "capabilities that are not needed could not be given up");
    }
}
