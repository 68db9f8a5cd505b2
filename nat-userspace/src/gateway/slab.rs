//! Values by number, in blocks that never move: a table that grows copies nothing, and a packet never waits for it.

use std::collections::VecDeque;

/// Values of a block: some megabytes, of which no more is memory than what was ever used.
const BLOCK: usize = 65_536;

/// Values by number.
pub struct Slab<T> {
    blocks: Vec<Vec<Option<T>>>,
    /// Numbers that were ever given out.
    length: u32,
    /// Those of them that are free; the last is the next.
    free: VecDeque<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { blocks: Vec::new(), length: 0, free: VecDeque::new() }
    }
}

impl<T> Slab<T> {
    /// Numbers that were ever given out: all values have smaller ones.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// A number to be [put](Slab::put) at, if there is a free one below `most`.
    pub fn reserve(&mut self, most: u32) -> Option<u32> {
        if let Some(number) = self.free.pop_back() {
            return Some(number);
        }
        (self.length < most).then(|| {
            self.extend(self.length + 1);
            self.length - 1
        })
    }

    /// Makes sure of the numbers below `length`; new ones are not free yet.
    pub fn extend(&mut self, length: u32) {
        while self.length < length {
            let place = self.length as usize % BLOCK;
            if place == 0 {
                self.blocks.push(Vec::with_capacity(BLOCK));
            }
            let more = (BLOCK - place).min((length - self.length) as usize);
            if let Some(last) = self.blocks.last_mut() {
                last.extend(std::iter::repeat_with(|| None).take(more));
            }
            self.length += u32::try_from(more).unwrap_or(0);
        }
    }

    /// Whether [`Slab::reserve`] would find a number.
    pub fn has_room(&self, most: u32) -> bool {
        !self.free.is_empty() || self.length < most
    }

    /// Puts a value where a number was reserved.
    pub fn put(&mut self, number: u32, value: T) {
        if let Some(place) = self.place(number) {
            *place = Some(value);
        }
    }

    /// Takes a value out. Its number is not free before it is [given back](Slab::give_back).
    pub fn take(&mut self, number: u32) -> Option<T> {
        self.place(number)?.take()
    }

    /// Numbers may be given out again, rather the small ones: what belongs to large numbers elsewhere may not be there, and
    /// whoever found that out would otherwise be given the same again and again.
    pub fn give_back(&mut self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            if self.free.back().is_some_and(|next| *next < number) {
                self.free.push_front(number);
            } else {
                self.free.push_back(number);
            }
        }
    }

    /// All numbers without a value are free, and no other.
    pub fn free_the_rest(&mut self) {
        self.free = (0..self.length).rev().filter(|&number| self.get(number).is_none()).collect();
    }

    /// A value.
    pub fn get(&self, number: u32) -> Option<&T> {
        self.blocks.get(number as usize / BLOCK)?.get(number as usize % BLOCK)?.as_ref()
    }

    /// A value, to be changed.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.place(number)?.as_mut()
    }

    /// Every value with its number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.length).filter_map(|number| Some((number, self.get(number)?)))
    }

    fn place(&mut self, number: u32) -> Option<&mut Option<T>> {
        self.blocks.get_mut(number as usize / BLOCK)?.get_mut(number as usize % BLOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel had no memory for what belongs to the large numbers, small ones were free, and the same large ones came
    /// back for ever.
    #[test]
    fn numbers_that_are_of_no_use_keep_nobody_from_the_others() {
        let mut slab: Slab<u32> = Slab::default();
        slab.extend(1000);
        slab.give_back(0..100);
        slab.give_back([990, 991, 992]);
        let mut found = Vec::new();
        for _ in 0..100 {
            let number = slab.reserve(1000).expect("one is free");
            if number < 900 { found.push(number) } else { slab.give_back([number]) }
        }
        assert!(found.len() > 90, "{} found", found.len());
    }

    #[test]
    fn numbers_are_given_out_once() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = std::iter::from_fn(|| slab.reserve(3000)).collect();
        assert!(numbers.iter().copied().eq(0..3000));
        assert!(!slab.has_room(3000));
        for &number in &numbers {
            slab.put(number, number);
        }
        assert_eq!(slab.take(1500), Some(1500));
        assert_eq!(slab.reserve(3000), None, "not given back yet");
        slab.give_back([1500]);
        assert_eq!(slab.reserve(3000), Some(1500));
        assert_eq!(slab.iter().count(), 2999);
        slab.free_the_rest();
        assert_eq!((slab.reserve(3000), slab.reserve(3000)), (Some(1500), None));
        assert_eq!(slab.get(5000), None);
        assert_eq!(slab.take(5000), None);
    }
}
