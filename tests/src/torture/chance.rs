//! Chance that a seed repeats (`SplitMix64`).

/// Where chance comes from.
#[derive(Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `bound`, which is at most 65536.
    pub(super) fn short(&mut self, bound: u32) -> u16 {
        u16::try_from(self.below(bound)).expect("a small bound")
    }

    /// A number less than `bound`.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        let high = (self.next() >> 32) * u64::from(bound);
        u32::try_from(high >> 32).expect("less than the bound")
    }

    /// Puts them into an order of its own.
    pub(super) fn shuffle<T>(&mut self, things: &mut [T]) {
        for at in (1..things.len()).rev() {
            let other = self.below(u32::try_from(at + 1).expect("few things"));
            things.swap(at, other as usize);
        }
    }
}
