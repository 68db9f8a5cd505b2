//! The program's search for the line of a key, while the daemon moves entries of the index, and puts other levels of it
//! in force.

use crate::table::{self, EMPTY, LINE_MASK, SEARCHED, Secret};

/// The index as it is read.
pub trait Index {
    /// The word that says which level is in force: see [`table::in_force`].
    fn in_force(&self) -> u64;
    /// What is at a place; [`EMPTY`] if the index does not have it.
    fn entry(&self, place: u32) -> u32;
    /// Whether the line with this number has this key.
    fn has_key(&self, line: u32, words: [u64; 2]) -> bool;
}

/// A search under way.
pub struct Search {
    words: [u64; 2],
    hash: u64,
    /// The word that says which level is in force, when it began.
    pub in_force: u64,
    level: u32,
    /// Places looked at.
    step: u32,
    /// The number of the line; [`EMPTY`] until it is found.
    pub number: u32,
    /// Not 0: no place is left to look at, but whether nothing was moved meanwhile has not been asked.
    pub ended: u32,
}

impl Search {
    /// Places looked at at the utmost: a search may have to begin anew.
    pub const AT_MOST: u32 = 4 * SEARCHED;

    /// A search for a key with these words: some places may be [looked at](Search::look) one by one. What is not found by
    /// then is found by [`Search::look_further`].
    #[inline(always)]
    pub fn new(words: [u64; 2], secret: &Secret, index: &impl Index) -> Self {
        let hash = table::hash(words, secret);
        let in_force = index.in_force();
        let level = table::level_of(in_force);
        Self { words, hash, in_force, level, step: 0, number: EMPTY, ended: 0 }
    }

    /// Looks at one place more. Whether that was the last, found or not.
    #[inline(always)]
    pub fn look_further(&mut self, index: &impl Index) -> bool {
        let ended = core::mem::take(&mut self.ended) != 0 || self.look(index) || self.step >= SEARCHED;
        ended && (self.number != EMPTY || self.is_over(index))
    }

    /// Whether a search that has found nothing has seen all. What was moved meanwhile, from a place ahead of it to one
    /// behind, it has not: then it begins anew.
    #[inline(always)]
    fn is_over(&mut self, index: &impl Index) -> bool {
        let now = index.in_force();
        if now == self.in_force {
            return true;
        }
        self.in_force = now;
        self.level = table::level_of(now);
        self.step = 0;
        false
    }

    /// Looks at one place, and steps to the next. Whether no place is left to look at.
    #[inline(always)]
    pub fn look(&mut self, index: &impl Index) -> bool {
        let entry = index.entry(table::place(self.hash, self.level, self.step));
        self.step += 1;
        if entry == EMPTY {
            return true;
        }
        let number = entry & LINE_MASK;
        if entry & !LINE_MASK != table::tag(self.hash) || !index.has_key(number, self.words) {
            return false;
        }
        self.number = number;
        true
    }
}
