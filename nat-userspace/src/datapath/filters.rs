//! The tc programs on kernels before 6.6, which have no tcx: filters of the clsact qdisc. Nothing holds them, so that
//! they outlive the daemon by themselves; who starts replaces them in place, by a number that is always the same.

use std::path::{Path, PathBuf};

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcHandle, qdisc_add_clsact};
use aya::programs::{ProgramError, SchedClassifier, TcAttach, TcAttachType};
use aya::util::KernelVersion;

use crate::host::remove_clsact_without_filters;

/// Where the filters of others, which begin at 0xc000 where nobody chooses, come after natgw's.
const PRIORITY: u16 = 0x6e61;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Whether filters it must be.
pub(super) fn are_needed() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0))
}

/// Puts a program on a hook, in the place of an earlier one. That the qdisc is natgw's is remembered by a pin.
pub(super) fn attach(
    program: &mut SchedClassifier,
    ifindex: u32,
    hook: TcAttachType,
    pins: &Path,
) -> Result<(), ProgramError> {
    let replaced = of(ifindex, hook).and_then(|earlier| program.attach_to_link(earlier));
    let id = if let Ok(id) = replaced {
        id
    } else {
        // Somebody else's qdisc will do.
        match qdisc_add_clsact(ifindex) {
            Ok(()) => {
                if let Err(error) = program.pin(mark(pins, ifindex)) {
                    tracing::debug!(%error, ifindex, "the clsact qdisc will stay");
                }
            }
            Err(error) => tracing::debug!(%error, ifindex, "no clsact qdisc was added"),
        }
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program.attach(ifindex, TcAttach::Netlink { parent: hook.into(), options })?
    };
    // Dropped, it would be detached; it holds nothing else.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Takes the programs off both hooks, and the qdisc away if it is natgw's and nobody else has filters on it.
pub(super) fn detach(ifindex: u32, pins: &Path) {
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        // Dropped, it is detached; the interface may be gone, and the filter with it.
        drop(of(ifindex, hook));
    }
    if std::fs::remove_file(mark(pins, ifindex)).is_ok()
        && let Err(error) = remove_clsact_without_filters(ifindex)
    {
        tracing::debug!(%error, ifindex, "the clsact qdisc stays");
    }
}

/// The pin that says whose the qdisc is.
fn mark(pins: &Path, ifindex: u32) -> PathBuf {
    pins.join(format!("clsact-{ifindex}"))
}

/// The filter of a hook, if there is one.
fn of(ifindex: u32, hook: TcAttachType) -> Result<SchedClassifierLink, ProgramError> {
    Ok(SchedClassifierLink::attached(ifindex, hook.into(), PRIORITY, HANDLE, None)?)
}
