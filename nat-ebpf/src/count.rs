//! Counting: one slot a reason, one copy a CPU.

use nat_common::Reason;

use crate::maps::COUNTERS;

/// Counts a packet under its reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason.index()) {
        // SAFETY: the slot is this CPU's own, and the program is not preempted by itself.
        unsafe { *counter += 1 };
    }
}
