//! What a CPU has been lent, and what it reports: its own value of a map, of which the daemon reads and writes the other
//! ends.

use nat_common::{
    abi::WakeEvent,
    delegate::{LENT, LentSlots, Ring},
    report::{self, Report, Reports},
};

use crate::{atomic, maps};

/// What this CPU has been lent.
pub struct Lent(pub *mut LentSlots);

impl Ring for Lent {
    const PLACES: u32 = LENT;

    #[inline(always)]
    fn swap(&self, place: u32, value: u64) -> u64 {
        // SAFETY: one of the ring's places, an aligned word of a map, which everybody writes by atomic operations.
        unsafe { atomic::swap((&raw mut (*self.0).slots).cast::<u64>().add(place as usize), value) }
    }

    #[inline(always)]
    fn taken(&self) -> u64 {
        // SAFETY: a live word of a map, which nothing but this CPU writes.
        unsafe { (*self.0).taken }
    }

    #[inline(always)]
    fn set_taken(&self, taken: u64) {
        // SAFETY: as above.
        unsafe { (*self.0).taken = taken }
    }
}

impl Reports for Lent {
    const PLACES: u32 = LENT;

    #[inline(always)]
    fn reported(&self) -> u64 {
        // SAFETY: a live word of a map, which nothing but this CPU writes.
        unsafe { (*self.0).reported }
    }

    #[inline(always)]
    fn set_reported(&self, reported: u64) {
        // SAFETY: as above. A swap, after which all that was written before it is to be seen, and before what is read
        // next.
        let _ = unsafe { atomic::swap(&raw mut (*self.0).reported, reported) };
    }

    #[inline(always)]
    fn read(&self) -> u64 {
        // SAFETY: a live word of a map, which the daemon writes as a whole.
        unsafe { atomic::load(&raw const (*self.0).read) }
    }

    /// The daemon's.
    #[inline(always)]
    fn set_read(&self, _read: u64) {}

    #[inline(always)]
    fn report(&self, place: u32) -> [u64; 2] {
        // SAFETY: one of the ring's places.
        unsafe { (&raw const (*self.0).reports).cast::<[u64; 2]>().add(place as usize).read() }
    }

    #[inline(always)]
    fn set_report(&self, place: u32, report: [u64; 2]) {
        // SAFETY: as above, which the daemon does not read before it is counted.
        unsafe { (&raw mut (*self.0).reports).cast::<[u64; 2]>().add(place as usize).write(report) };
    }
}

/// Reports a session, and wakes the daemon if it sleeps: whoever finds it asleep does, and nobody after that.
#[inline(always)]
pub fn report(report: Report, lent: *mut LentSlots) {
    report::report(&Lent(lent), report.packed());
    let Some(sleep) = maps::SLEEP.get_ptr_mut(0) else { return };
    // SAFETY: an aligned word of a map, which everybody writes by atomic operations.
    if unsafe { atomic::load(sleep) != 0 && atomic::swap(sleep, 0) != 0 } {
        // Full: then the daemon has other reasons to be awake.
        let _ = maps::EVENTS.output(&WakeEvent { pad: 0 }, 0);
    }
}
