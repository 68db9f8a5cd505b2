//! Times by slots, so that a program can count them.

/// Slots of the histogram of times: [`slot_of`] a time.
pub const SLOTS: u32 = 64 << SLOT_BITS;
/// Slots an octave, as bits: times are kept to 1.6 %.
const SLOT_BITS: u32 = 6;

/// The slot of a time in nanoseconds.
#[inline(always)]
#[must_use]
pub fn slot_of(nanoseconds: u64) -> u32 {
    let mut octave = 0;
    let mut rest = nanoseconds;
    // A program has no instruction for it: by halves.
    for bits in [32, 16, 8, 4, 2, 1] {
        if rest >> bits != 0 {
            rest >>= bits;
            octave += bits;
        }
    }
    if octave <= SLOT_BITS {
        return nanoseconds as u32;
    }
    let mantissa = (nanoseconds >> (octave - SLOT_BITS)) as u32 & ((1 << SLOT_BITS) - 1);
    ((octave - SLOT_BITS) << SLOT_BITS) + (1 << SLOT_BITS) + mantissa
}

/// The shortest time of a slot, in nanoseconds.
#[must_use]
pub fn time_of(slot: u32) -> u64 {
    let octave = slot >> SLOT_BITS;
    if octave <= 1 {
        return slot.into();
    }
    u64::from((1 << SLOT_BITS) + (slot & ((1 << SLOT_BITS) - 1))) << (octave - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_to_two_per_cent() {
        for time in [0, 1, 63, 64, 127, 128, 129, 999, 123_456_789, u64::MAX >> 1] {
            let slot = slot_of(time);
            assert!(slot < SLOTS, "{time}: {slot}");
            let (from, to) = (time_of(slot), time_of(slot + 1));
            assert!(from <= time && time < to, "{time}: {slot}: {from} to {to}");
            assert!(to - from <= (from / 64).max(1), "{time}: {from} to {to}");
        }
    }
}
