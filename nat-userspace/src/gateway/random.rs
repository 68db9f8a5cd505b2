//! Random choice for ports: seeded from the system, so that no two runs choose alike (behaviour
//! ATK-11), and from a number in tests, so that a failure can be repeated.

use std::hash::{BuildHasher as _, Hasher as _};

/// A small generator (xorshift64*), reseeded from the system's now and then.
pub struct Random {
    state: u64,
    drawn: u32,
    reseeds: bool,
}

/// Draws after which what has been seen says nothing of what comes.
const RESEED: u32 = 16;

impl Random {
    /// Seeded by the system.
    pub fn new() -> Self {
        Self { state: system(), drawn: 0, reseeds: true }
    }

    /// Seeded by a number, for tests.
    pub fn seeded(seed: u64) -> Self {
        Self { state: seed | 1, drawn: 0, reseeds: false }
    }

    /// Another generator, seeded by this one.
    #[must_use]
    pub fn split(&mut self) -> Self {
        let seed = u64::try_from(self.below(usize::MAX >> 32)).unwrap_or(1);
        Self { state: self.state.rotate_left(32) ^ seed | 1, drawn: 0, reseeds: self.reseeds }
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: usize) -> usize {
        self.drawn += 1;
        if self.reseeds && self.drawn.is_multiple_of(RESEED) {
            self.state ^= system();
        }
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let drawn = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from((drawn * u64::try_from(bound).unwrap_or(u64::MAX)) >> 32).unwrap_or(0)
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

/// 64 bits nobody outside can know: std's hash keys come from the system's generator once a
/// thread and step by one a call, `SipHash` hides that.
fn system() -> u64 {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(0);
    hasher.finish() | 1
}
