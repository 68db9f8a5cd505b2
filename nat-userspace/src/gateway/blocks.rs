//! Blocks of ports beyond a subscriber's own, taken when those are used up and given back when
//! nothing uses them (RFC 7422 section 2.3): one record a block instead of one a session.

use std::collections::BTreeMap;

use super::random::Random;
use crate::config::PortRange;
use crate::hash::HashMap;

/// A block in use.
struct Taken {
    inside: u32,
    last: u16,
    /// Mappings that have a port of it.
    mappings: u32,
}

/// The blocks of all external addresses, by first port. Addresses are in network byte order, ports in the host's.
#[derive(Default)]
pub struct Blocks {
    taken: HashMap<u32, BTreeMap<u16, Taken>>,
    /// First ports by inside and external address.
    held: HashMap<(u32, u32), Vec<u16>>,
}

impl Blocks {
    /// The blocks that a host has of an external address.
    pub fn of(&self, inside: u32, external: u32) -> Vec<PortRange> {
        let Some(blocks) = self.taken.get(&external) else { return Vec::new() };
        let firsts = self.held.get(&(inside, external)).into_iter().flatten();
        firsts.filter_map(|first| Some(PortRange { first: *first, last: blocks.get(first)?.last })).collect()
    }

    /// Takes a block that nobody has, one of those of `size` ports that lie within a range.
    pub fn take(
        &mut self,
        inside: u32,
        external: u32,
        within: PortRange,
        size: u16,
        random: &mut Random,
    ) -> Option<PortRange> {
        let size = u32::from(size.max(1));
        let first = u32::from(within.first).div_ceil(size);
        let count = ((u32::from(within.last) + 1) / size).checked_sub(first).filter(|count| *count > 0)?;
        let start = u32::try_from(random.below(count as usize)).unwrap_or(0);
        let found = (0..count).find_map(|n| {
            let from = (first + (start + n) % count) * size;
            let block =
                PortRange { first: u16::try_from(from).ok()?, last: u16::try_from(from + size - 1).ok()? };
            self.is_free(external, block).then_some(block)
        })?;
        self.put(inside, external, found);
        Some(found)
    }

    /// The block around a port is a host's, as a restart finds it. `None` if another has it.
    pub fn adopt(
        &mut self,
        inside: u32,
        external: u32,
        within: PortRange,
        size: u16,
        port: u16,
    ) -> Option<PortRange> {
        let held = self.of(inside, external).into_iter().find(|block| block.contains(port));
        held.or_else(|| {
            let first = port - port % size.max(1);
            let block = PortRange { first, last: first.checked_add(size.checked_sub(1)?)? };
            let fits = within.contains(block.first) && within.contains(block.last);
            (fits && self.is_free(external, block)).then(|| {
                self.put(inside, external, block);
                block
            })
        })
    }

    /// One more mapping has a port, perhaps of a block.
    pub fn hold(&mut self, external: u32, port: u16) {
        if let Some((_, block)) = self.around(external, port) {
            block.mappings += 1;
        }
    }

    /// Whether a port is of a block.
    pub fn contains(&mut self, external: u32, port: u16) -> bool {
        self.around(external, port).is_some()
    }

    /// A mapping less has a port. The block and whose it was, if it was the last in it.
    pub fn release(&mut self, external: u32, port: u16) -> Option<(u32, PortRange)> {
        let (_, block) = self.around(external, port)?;
        block.mappings = block.mappings.saturating_sub(1);
        if block.mappings > 0 { None } else { self.give_back(external, port) }
    }

    /// The block around a port is nobody's any more. Whose it was.
    pub fn give_back(&mut self, external: u32, port: u16) -> Option<(u32, PortRange)> {
        let (first, _) = self.around(external, port)?;
        let blocks = self.taken.get_mut(&external)?;
        let Taken { inside, last, .. } = blocks.remove(&first)?;
        if blocks.is_empty() {
            self.taken.remove(&external);
        }
        if let Some(held) = self.held.get_mut(&(inside, external)) {
            held.retain(|other| *other != first);
            if held.is_empty() {
                self.held.remove(&(inside, external));
            }
        }
        Some((inside, PortRange { first, last }))
    }

    fn put(&mut self, inside: u32, external: u32, block: PortRange) {
        let taken = Taken { inside, last: block.last, mappings: 0 };
        self.taken.entry(external).or_default().insert(block.first, taken);
        self.held.entry((inside, external)).or_default().push(block.first);
    }

    fn is_free(&self, external: u32, block: PortRange) -> bool {
        let Some(blocks) = self.taken.get(&external) else { return true };
        // Blocks do not overlap: of those that begin before this ends, the last ends last.
        blocks.range(..=block.last).next_back().is_none_or(|(_, before)| before.last < block.first)
    }

    fn around(&mut self, external: u32, port: u16) -> Option<(u16, &mut Taken)> {
        let blocks = self.taken.get_mut(&external)?;
        let (first, block) = blocks.range_mut(..=port).next_back()?;
        (port <= block.last).then_some((*first, block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: PortRange = PortRange { first: 57_472, last: 65_535 };

    #[test]
    fn every_block_once_and_back_with_its_last_mapping() {
        let (mut blocks, mut random) = (Blocks::default(), Random::seeded(1));
        let mut taken = Vec::new();
        while let Some(block) = blocks.take(7, 1, WITHIN, 100, &mut random) {
            assert_eq!((block.first % 100, block.len()), (0, 100));
            taken.push(block);
        }
        taken.sort_by_key(|block| block.first);
        assert_eq!((taken.len(), taken[0].first, taken[79].last), (80, 57_500, 65_499));
        assert!(taken.windows(2).all(|pair| pair[0].last < pair[1].first));
        assert_eq!(blocks.of(7, 1).len(), 80);
        assert!(blocks.take(8, 2, WITHIN, 100, &mut random).is_some(), "another address has its own");
        blocks.hold(1, 58_000);
        blocks.hold(1, 58_099);
        blocks.hold(1, 2000);
        assert_eq!(blocks.release(1, 58_050), None);
        assert_eq!(blocks.release(1, 58_000), Some((7, PortRange { first: 58_000, last: 58_099 })));
        assert!(!blocks.contains(1, 58_000) && blocks.contains(1, 58_100));
        // The configuration may have changed: blocks of another size keep clear of those there are.
        assert_eq!(blocks.take(9, 1, WITHIN, 50, &mut random).map(|block| block.first / 100), Some(580),);
        assert_eq!(blocks.adopt(8, 1, WITHIN, 100, 58_060), None);
        assert_eq!(blocks.adopt(7, 1, WITHIN, 100, 59_001).map(|block| block.first), Some(59_000));
    }
}
