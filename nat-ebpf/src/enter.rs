//! Lines that the program enters into the index: only where nothing ever was.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use nat_common::{
    report::Entered,
    table::{self, EMPTY, SEARCHED, Secret},
};

use crate::{atomic, maps};

/// A place being looked for; the loop's context.
struct Place {
    hash: u64,
    level: u32,
    step: u32,
    entry: u32,
    /// [`Entered`], as a number.
    entered: u32,
}

/// Enters a line into the level of the index that was in force, at the first place where none ever was.
#[inline(always)]
pub fn enter(words: [u64; 2], number: u32, secret: &Secret, in_force: u64) -> Entered {
    let hash = table::hash(words, secret);
    let level = table::level_of(in_force);
    let entry = table::entry(hash, number);
    let Some((pair, shift)) = maps::place(table::place(hash, level, 0)) else { return Entered::Unsure };
    // SAFETY: an aligned word of a map, whose halves everybody writes as a whole.
    let before = unsafe { atomic::load(pair) };
    if (before >> shift) as u32 == EMPTY
        // SAFETY: as above. Where its neighbour has changed meanwhile the place is tried again below.
        && unsafe { atomic::exchange(pair, before, before | u64::from(entry) << shift) }
    {
        return Entered::AtHome;
    }
    let mut place = Place { hash, level, step: 0, entry, entered: Entered::Behind as u32 };
    let context = (&raw mut place).cast::<c_void>();
    // SAFETY: the context lives as long as the loop, whose body takes it for what it is.
    unsafe { bpf_loop(SEARCHED, try_place as *mut c_void, context, 0) };
    // A place that was found ends the loop with no entry left.
    if place.entry == EMPTY && place.entered == Entered::Behind as u32 {
        Entered::Behind
    } else {
        Entered::Unsure
    }
}

/// The body of the loop: 1 ends it.
extern "C" fn try_place(_round: u32, context: *mut c_void) -> i64 {
    // SAFETY: `enter` gives its context and nothing else calls this.
    let place = unsafe { &mut *context.cast::<Place>() };
    let Some((pair, shift)) = maps::place(table::place(place.hash, place.level, place.step)) else {
        return 1;
    };
    // SAFETY: an aligned word of a map, whose halves everybody writes as a whole.
    let before = unsafe { atomic::load(pair) };
    let there = (before >> shift) as u32;
    // Not where one was removed: the daemon moves others there.
    if there != EMPTY {
        if table::may_be_alike(there, place.hash) {
            place.entered = Entered::Unsure as u32;
        }
        place.step += 1;
        return 0;
    }
    // SAFETY: as above. Where its neighbour has changed meanwhile the place is tried again.
    let is_in = unsafe { atomic::exchange(pair, before, before | u64::from(place.entry) << shift) };
    if is_in {
        place.entry = EMPTY;
    }
    i64::from(is_in)
}
