//! Inputs from inputs.

/// Chance (`SplitMix64`).
#[derive(Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `bound`, 0 if there is none.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// Bytes that sit at the ends of ranges.
const ENDS: [u8; 9] = [0, 1, 4, 5, 6, 17, 0x7f, 0x80, 0xff];
/// No input grows beyond this.
const LONGEST: usize = 4096;

/// A changed copy of one input, now and then with a piece of another.
pub(crate) fn mutate(chance: &mut Chance, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[chance.below(corpus.len())].clone();
    for _ in 0..=chance.below(6) {
        let at = chance.below(input.len());
        match chance.below(8) {
            0 | 1 if !input.is_empty() => input[at] ^= 1 << chance.below(8),
            2 if !input.is_empty() => input[at] = ENDS[chance.below(ENDS.len())],
            3 if !input.is_empty() => input[at] = chance.byte(),
            4 => input.insert(at, chance.byte()),
            5 if !input.is_empty() => {
                let length = 1 + chance.below((input.len() - at).min(16));
                input.drain(at..at + length);
            }
            6 if !input.is_empty() => {
                let length = 1 + chance.below((input.len() - at).min(32));
                let piece = input[at..at + length].to_vec();
                let to = chance.below(input.len());
                input.splice(to..to, piece);
            }
            _ => {
                let other = &corpus[chance.below(corpus.len())];
                let from = chance.below(other.len());
                let length = chance.below((other.len() - from).min(64));
                input.splice(at..at, other[from..from + length].iter().copied());
            }
        }
    }
    input.truncate(LONGEST);
    input
}
