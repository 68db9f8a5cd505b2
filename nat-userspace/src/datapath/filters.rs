//! The tc programs on kernels before 6.6, which have no tcx: filters of the clsact qdisc. Nothing holds them, so that
//! they outlive the daemon by themselves; who starts replaces them in place, by a number that is always the same.

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcHandle, qdisc_add_clsact};
use aya::programs::{ProgramError, SchedClassifier, TcAttach, TcAttachType};
use aya::util::KernelVersion;

/// Where the filters of others, which begin at 0xc000 where nobody chooses, come after natgw's.
const PRIORITY: u16 = 0x6e61;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Whether filters it must be.
pub(super) fn are_needed() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0))
}

/// Puts a program on a hook, in the place of an earlier one.
pub(super) fn attach(
    program: &mut SchedClassifier,
    ifindex: u32,
    hook: TcAttachType,
) -> Result<(), ProgramError> {
    let replaced = of(ifindex, hook).and_then(|earlier| program.attach_to_link(earlier));
    let id = if let Ok(id) = replaced {
        id
    } else {
        // Somebody else's qdisc will do.
        if let Err(error) = qdisc_add_clsact(ifindex) {
            tracing::debug!(%error, ifindex, "no clsact qdisc was added");
        }
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program.attach(ifindex, TcAttach::Netlink { parent: hook.into(), options })?
    };
    // Dropped, it would be detached; it holds nothing else.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Takes a program off a hook.
pub(super) fn detach(ifindex: u32, hook: TcAttachType) {
    // Dropped, it is detached; the interface may be gone, and the filter with it.
    drop(of(ifindex, hook));
}

/// The filter of a hook, if there is one.
fn of(ifindex: u32, hook: TcAttachType) -> Result<SchedClassifierLink, ProgramError> {
    Ok(SchedClassifierLink::attached(ifindex, hook.into(), PRIORITY, HANDLE, None)?)
}
