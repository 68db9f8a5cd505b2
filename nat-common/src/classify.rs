//! Which rule a packet meets: sets of rules as bits, first match by lowest bit.
//!
//! For each prefix that any rule names, the daemon computes the set of rules whose selector holds
//! for addresses there (negations included). A packet's rules are then the intersection of the
//! set of its source, of its destination and of its protocol: two trie lookups however many rules.

use crate::wire;

/// Words in a set.
const WORDS: usize = 4;
/// Rules that a set can hold: one less than it has bits, see [`INSIDE`].
pub const RULES: usize = WORDS * 64 - 1;
/// No rule: in the set of a source prefix, that the prefix is an inside network. What arrives from
/// outside with such a source is forged.
pub const INSIDE: usize = RULES;
/// Nor this: in the set of a destination prefix, that a forward leads to this host.
pub const FORWARDED: usize = RULES;

/// A set of rules by position in the file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleSet(pub [u64; WORDS]);

impl RuleSet {
    /// No rule.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Adds the rule at `position`; positions beyond [`RULES`] are not in any set.
    pub fn insert(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word |= 1 << (position % 64);
        }
    }

    /// Whether the rule at `position` is in the set.
    #[inline(always)]
    pub fn contains(&self, position: usize) -> bool {
        let word = match position / 64 {
            0 => self.0[0],
            1 => self.0[1],
            2 => self.0[2],
            3 => self.0[3],
            _ => return false,
        };
        word & (1 << (position % 64)) != 0
    }

    /// Rules in both sets.
    #[inline(always)]
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self([self.0[0] & other.0[0], self.0[1] & other.0[1], self.0[2] & other.0[2], self.0[3] & other.0[3]])
    }

    /// Whether no rule is in the set.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// Whether the first rule of this set, in file order, is also in `other`.
    ///
    /// Keeps only the lowest bit: cheaper in BPF, which cannot count zeros, than naming the rule.
    #[inline(always)]
    pub fn first_is_in(&self, other: &Self) -> bool {
        let mut index = 0;
        while index < WORDS {
            let word = self.0[index];
            if word != 0 {
                return word.isolate_lowest_one() & other.0[index] != 0;
            }
            index += 1;
        }
        false
    }

    /// The position of the first rule in file order; of an empty set, what is no rule's.
    #[inline(always)]
    pub fn lowest(&self) -> u32 {
        let (mut word, mut base) = (self.0[3], 192);
        for (earlier, position) in [(self.0[2], 128), (self.0[1], 64), (self.0[0], 0)] {
            if earlier != 0 {
                (word, base) = (earlier, position);
            }
        }
        base + word.trailing_zeros()
    }

    /// The first rule in file order.
    #[inline(always)]
    pub fn first(&self) -> Option<usize> {
        if self.0[0] != 0 {
            Some(self.0[0].trailing_zeros() as usize)
        } else if self.0[1] != 0 {
            Some(64 + self.0[1].trailing_zeros() as usize)
        } else if self.0[2] != 0 {
            Some(128 + self.0[2].trailing_zeros() as usize)
        } else if self.0[3] != 0 {
            Some(192 + self.0[3].trailing_zeros() as usize)
        } else {
            None
        }
    }
}

/// Which of the four protocol sets a packet belongs to.
#[inline(always)]
pub const fn protocol_class(protocol: u8) -> usize {
    match protocol {
        wire::TCP => 0,
        wire::UDP => 1,
        wire::ICMP => 2,
        _ => 3,
    }
}

/// Whether a source address may appear on a forwarded packet (RFC 1812 5.3.7).
/// `address` in network byte order.
#[inline(always)]
pub const fn is_martian_source(address: u32) -> bool {
    let host = u32::from_be(address);
    let first = host >> 24;
    first == 0 || first == 127 || first >= 224
}

/// Whether a destination may never be forwarded to: 0/8, 127/8, class E but the broadcast.
#[inline(always)]
pub const fn is_martian_destination(address: u32) -> bool {
    let host = u32::from_be(address);
    let first = host >> 24;
    first == 0 || first == 127 || (first >= 240 && host != u32::MAX)
}

/// Whether an address is multicast or the limited broadcast: never translated.
#[inline(always)]
pub const fn is_group(address: u32) -> bool {
    let host = u32::from_be(address);
    (host >> 28) == 0xe || host == u32::MAX
}
