//! The index of the flow table: which line a key has. Only this writes it; the program searches it meanwhile.
//!
//! When a level is two fifths full the next one, twice as large, is filled beside it, a few places with each entry
//! that comes, and then put in force with one write. Searches that began in the old level end there.

use nat_common::FlowKey;
use nat_common::table::{self, EMPTY, LAST_LEVEL, LINE_MASK, PLACES, REMOVED, SEARCHED, Secret};

use super::Mapped;

/// Places carried over to the next level with each entry that is made: twice this is free by then.
const CARRIED: u32 = 16;

/// The index.
pub(super) struct Index {
    segments: Vec<Mapped<u32>>,
    /// The level in force, where the program reads it.
    in_force: Mapped<u64>,
    level: u32,
    /// Places of the present level that are carried over to the next; `None` while it does not grow.
    carried: Option<u32>,
    /// Entries of the level in force.
    taken: u32,
    secret: Secret,
}

impl Index {
    /// The index in these segments.
    pub(super) fn new(segments: Vec<Mapped<u32>>, in_force: Mapped<u64>, secret: Secret) -> Self {
        let level = in_force.read(0).and_then(|level| u32::try_from(level).ok()).filter(|level| *level != 0);
        let mut index = Self { segments, in_force, level: 0, carried: None, taken: 0, secret };
        index.put_in_force(level.unwrap_or(table::FIRST_LEVEL));
        index.taken = u32::try_from(index.lines().count()).unwrap_or(u32::MAX);
        index
    }

    /// Segments that it will need next.
    pub(super) fn wants(&self) -> u32 {
        if self.is_crowded() { self.level.saturating_mul(4).min(LAST_LEVEL * 2).div_ceil(PLACES) } else { 0 }
    }

    /// Takes the next segment.
    pub(super) fn add(&mut self, segment: Mapped<u32>) {
        self.segments.push(segment);
    }

    /// Segments there are.
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Enters a key's line. `false` if there is no place near where a search begins. `key_of` tells the key of any
    /// line that is in.
    pub(super) fn insert(&mut self, key: &FlowKey, line: u32, key_of: impl Fn(u32) -> FlowKey) -> bool {
        let hash = table::hash(key.words(), &self.secret);
        let Some(place) = self.enter(hash, line, self.level) else { return false };
        self.taken += 1;
        if self.is_carried(place) {
            // Where the next level has no place, nor has the present one soon: it stays as it is.
            self.enter(hash, line, self.level * 2);
        }
        self.grow(key_of);
        true
    }

    /// Takes a key's line out.
    pub(super) fn remove(&mut self, key: &FlowKey, line: u32) {
        let hash = table::hash(key.words(), &self.secret);
        let Some(place) = self.take_out(hash, line, self.level) else { return };
        self.taken -= 1;
        if self.is_carried(place) {
            self.take_out(hash, line, self.level * 2);
        }
    }

    /// Whether a search for the key finds this line.
    pub(super) fn has(&self, key: &FlowKey, line: u32) -> bool {
        let hash = table::hash(key.words(), &self.secret);
        let entry = table::entry(hash, line);
        let mut entries = Self::places(hash, self.level).map(|place| self.load(place));
        entries.by_ref().take_while(|there| *there != EMPTY).any(|there| there == entry)
    }

    /// Every line that is in.
    pub(super) fn lines(&self) -> impl Iterator<Item = u32> {
        let entries = (self.level..self.level * 2).map(|place| self.load(place));
        entries.filter(|entry| *entry > REMOVED).map(|entry| entry & LINE_MASK)
    }

    /// Takes everything out but these lines.
    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        for place in self.level..self.level * 2 {
            let entry = self.load(place);
            if entry > REMOVED && !keep(entry & LINE_MASK) {
                self.store(place, REMOVED);
                self.tidy(place, self.level);
                self.taken -= 1;
            }
        }
    }

    /// Two fifths of the places are taken.
    fn is_crowded(&self) -> bool {
        self.level < LAST_LEVEL && u64::from(self.taken) * 5 > u64::from(self.level) * 2
    }

    fn is_carried(&self, place: u32) -> bool {
        self.carried.is_some_and(|carried| place < self.level + carried)
    }

    /// Begins to grow, or carries some places on.
    fn grow(&mut self, key_of: impl Fn(u32) -> FlowKey) {
        let Some(carried) = self.carried else {
            if self.is_crowded()
                && (self.segments.len() as u64) * u64::from(PLACES) >= u64::from(self.level) * 4
            {
                // What an earlier daemon had begun to fill.
                (self.level * 2..self.level * 4).for_each(|place| self.store(place, EMPTY));
                self.carried = Some(0);
            }
            return;
        };
        let end = (carried + CARRIED).min(self.level);
        for place in self.level + carried..self.level + end {
            let entry = self.load(place);
            if entry > REMOVED {
                let line = entry & LINE_MASK;
                self.enter(table::hash(key_of(line).words(), &self.secret), line, self.level * 2);
            }
        }
        self.carried = Some(end);
        if end == self.level {
            self.put_in_force(self.level * 2);
        }
    }

    fn put_in_force(&mut self, level: u32) {
        self.level = level;
        self.carried = None;
        self.in_force.store(0, u64::from(level));
    }

    fn enter(&self, hash: u64, line: u32, level: u32) -> Option<u32> {
        let place = Self::places(hash, level).find(|&place| self.load(place) <= REMOVED)?;
        self.store(place, table::entry(hash, line));
        Some(place)
    }

    fn take_out(&self, hash: u64, line: u32, level: u32) -> Option<u32> {
        let entry = table::entry(hash, line);
        let mut places = Self::places(hash, level).take_while(|&place| self.load(place) != EMPTY);
        let place = places.find(|&place| self.load(place) == entry)?;
        self.store(place, REMOVED);
        self.tidy(place, level);
        Some(place)
    }

    /// Where a search for a hash looks, in its order.
    fn places(hash: u64, level: u32) -> impl Iterator<Item = u32> {
        (0..SEARCHED).map(move |step| table::place(hash, level, step))
    }

    /// Makes what was removed empty where nothing comes after it: no search has to go on there.
    fn tidy(&self, last: u32, level: u32) {
        let neighbour = |place: u32, step: u32| level | (place.wrapping_add(step) & (level - 1));
        if self.load(neighbour(last, 1)) != EMPTY {
            return;
        }
        let mut place = last;
        while self.load(place) == REMOVED {
            self.store(place, EMPTY);
            place = neighbour(place, u32::MAX);
        }
    }

    fn load(&self, place: u32) -> u32 {
        let (segment, at) = table::segment_of_place(place);
        self.segments.get(segment as usize).map_or(EMPTY, |segment| segment.load(at))
    }

    fn store(&self, place: u32, entry: u32) {
        let (segment, at) = table::segment_of_place(place);
        if let Some(segment) = self.segments.get(segment as usize) {
            segment.store(at, entry);
        }
    }
}
