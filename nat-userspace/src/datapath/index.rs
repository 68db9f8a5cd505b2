//! The index of the flow table: which line a key has. The program searches it meanwhile, and enters lines of its own
//! where nothing ever was; each of them is then adopted here.
//!
//! When a level is two fifths full the next one, twice as large or more, is filled beside it, a few places with each
//! entry that comes, and then put in force with one write. Searches that began in the old level end there.

use nat_common::FlowKey;
use nat_common::table::{self, EMPTY, LAST_LEVEL, LINE_MASK, PLACES, REMOVED, SEARCHED, Secret};

use super::Mapped;

/// Places carried over to the next level with each entry that is made: twice this is free by then.
const CARRIED: u32 = 16;

/// Fifths of a level's places that are taken when the next one is filled.
const CROWDED: u64 = 2;

/// Below this the segments of the next level are asked for when half as many are taken: a flood would fill what is left of
/// a small level while the kernel makes them. Above it what is left is enough, and they are large.
const AMPLE: u32 = 1 << 20;

/// Below this a level grows to four times its size at once, which carries a third of the entries. Not above it: the first
/// segment has room for so much and once again, and a level that has to wait for another segment must not be full by then.
const LARGE: u32 = 1 << 16;

/// Memory that the program reads meanwhile: a map's, or a model's.
pub(super) trait Memory<T> {
    /// A word, and all that was written before it was stored.
    fn load(&self, at: u32) -> T;
    /// Stores a word after all that was written before.
    fn store(&self, at: u32, value: T);
}

/// Memory into which the program enters lines meanwhile.
pub(super) trait Places: Memory<u32> {
    /// Stores a word if it is the expected one; else tells what it is.
    fn exchange(&self, at: u32, expected: u32, value: u32) -> Result<(), u32>;
}

impl Memory<u32> for Mapped<u32> {
    fn load(&self, at: u32) -> u32 {
        Self::load(self, at)
    }

    fn store(&self, at: u32, value: u32) {
        Self::store(self, at, value);
    }
}

impl Places for Mapped<u32> {
    fn exchange(&self, at: u32, expected: u32, value: u32) -> Result<(), u32> {
        Self::exchange(self, at, expected, value)
    }
}

impl Memory<u64> for Mapped<u64> {
    fn load(&self, at: u32) -> u64 {
        Self::load(self, at)
    }

    fn store(&self, at: u32, value: u64) {
        Self::store(self, at, value);
    }
}

/// The index.
pub(super) struct Index<S = Mapped<u32>, W = Mapped<u64>> {
    segments: Vec<S>,
    /// The level in force, and how many entries were moved, where the program reads them: see [`table::in_force`].
    in_force: W,
    level: u32,
    /// Places of the present level that are carried over to the next; `None` while it does not grow.
    carried: Option<u32>,
    /// Entries of the level in force.
    taken: u32,
    secret: Secret,
}

impl<S: Places, W: Memory<u64>> Index<S, W> {
    /// The index in these segments.
    pub(super) fn new(segments: Vec<S>, in_force: W, secret: Secret) -> Self {
        let level = table::level_of(in_force.load(0));
        let mut index = Self { segments, in_force, level: 0, carried: None, taken: 0, secret };
        index.put_in_force(if level == 0 { table::FIRST_LEVEL } else { level });
        index.taken = u32::try_from(index.lines().count()).unwrap_or(u32::MAX);
        index
    }

    /// Segments that it will need next.
    pub(super) fn wants(&self) -> u32 {
        let fifths = if self.level < AMPLE { 1 } else { CROWDED };
        if self.has_taken(fifths) { (self.next() * 2).div_ceil(PLACES) } else { 0 }
    }

    /// Takes the next segment.
    pub(super) fn add(&mut self, segment: S) {
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
            self.enter(hash, line, self.next());
        }
        self.grow(key_of);
        true
    }

    /// Takes note of lines that the program has entered: counts them, and enters those that are missing. The program
    /// may have found no place, or one that became unreachable while it looked, because a run was closed up before it
    /// or another level put in force. `false` for each for which there is no place near, or whose key has another line.
    pub(super) fn adopt(
        &mut self,
        entered: impl Iterator<Item = (FlowKey, u32)>,
        key_of: impl Fn(u32) -> FlowKey + Copy,
    ) -> Vec<bool> {
        // All places are looked at before the first is needed: memory answers many questions in the time of one.
        let looked_at: Vec<_> = entered
            .map(|(key, line)| {
                let hash = table::hash(key.words(), &self.secret);
                (key, line, hash, self.load(table::place(hash, self.level, 0)))
            })
            .collect();
        looked_at
            .into_iter()
            .map(|(key, line, hash, first)| {
                let is_at_home = first == table::entry(hash, line)
                    && self.load(table::place(hash, self.level, 0)) == first;
                self.adopt_one(&key, line, hash, is_at_home, key_of)
            })
            .collect()
    }

    fn adopt_one(
        &mut self,
        key: &FlowKey,
        line: u32,
        hash: u64,
        is_at_home: bool,
        key_of: impl Fn(u32) -> FlowKey + Copy,
    ) -> bool {
        let found = if is_at_home {
            Some((table::place(hash, self.level, 0), line))
        } else {
            self.first(hash, key, key_of)
        };
        let Some((place, found)) = found else {
            self.sweep(hash, line, key_of);
            return self.insert(key, line, key_of);
        };
        if found != line {
            // It can be taken out as if it were in.
            self.taken += u32::from(self.find(hash, line, self.level).is_some());
            return false;
        }
        self.taken += 1;
        if self.is_carried(place) && self.find(hash, line, self.next()).is_none() {
            self.enter(hash, line, self.next());
        }
        self.grow(key_of);
        true
    }

    /// Asks memory for the place where the search for a key begins.
    pub(super) fn expect(&self, key: &FlowKey) {
        let _ = self.load(table::place(table::hash(key.words(), &self.secret), self.level, 0));
    }

    /// The line of a key.
    pub(super) fn search(&self, key: &FlowKey, key_of: impl Fn(u32) -> FlowKey) -> Option<u32> {
        self.first(table::hash(key.words(), &self.secret), key, key_of).map(|(_, line)| line)
    }

    /// The first line of a key, and its place.
    fn first(&self, hash: u64, key: &FlowKey, key_of: impl Fn(u32) -> FlowKey) -> Option<(u32, u32)> {
        let mut places = places(hash, self.level)
            .map(|place| (place, self.load(place)))
            .take_while(|(_, entry)| *entry != EMPTY)
            .filter(|(_, entry)| *entry > REMOVED && entry & !LINE_MASK == table::tag(hash))
            .map(|(place, entry)| (place, entry & LINE_MASK));
        places.find(|&(_, line)| key_of(line) == *key)
    }

    /// Takes a line out of where no search for it comes.
    fn sweep(&self, hash: u64, line: u32, key_of: impl Fn(u32) -> FlowKey) {
        let entry = table::entry(hash, line);
        if let Some(place) = places(hash, self.level).find(|&place| self.load(place) == entry) {
            self.store(place, REMOVED);
            if self.carried.is_none() {
                self.close_up(place, self.level, key_of);
            }
        }
    }

    /// Takes a key's line out.
    pub(super) fn remove(&mut self, key: &FlowKey, line: u32, key_of: impl Fn(u32) -> FlowKey) {
        let hash = table::hash(key.words(), &self.secret);
        let Some(place) = self.find(hash, line, self.level) else { return };
        self.taken -= 1;
        self.store(place, REMOVED);
        if self.carried.is_none() {
            self.close_up(place, self.level, key_of);
        } else if self.is_carried(place)
            && let Some(place) = self.find(hash, line, self.next())
        {
            self.store(place, REMOVED);
            self.close_up(place, self.next(), key_of);
        }
    }

    /// Whether a search for the key finds this line.
    pub(super) fn has(&self, key: &FlowKey, line: u32) -> bool {
        self.find(table::hash(key.words(), &self.secret), line, self.level).is_some()
    }

    /// Every line that is in.
    pub(super) fn lines(&self) -> impl Iterator<Item = u32> {
        let entries = (self.level..self.level * 2).map(|place| self.load(place));
        entries.filter(|entry| *entry > REMOVED).map(|entry| entry & LINE_MASK)
    }

    /// Takes everything out but these lines, also what an earlier daemon had left half removed.
    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool, key_of: impl Fn(u32) -> FlowKey) {
        for place in self.level..self.level * 2 {
            // What closes up comes to this place, and is judged as well.
            loop {
                let entry = self.load(place);
                let line = entry & LINE_MASK;
                // An entry that a search does not find, or finds elsewhere, was left where it is half moved.
                let is_found = || {
                    self.find(table::hash(key_of(line).words(), &self.secret), line, self.level)
                        == Some(place)
                };
                if entry == EMPTY || (entry > REMOVED && keep(line) && is_found()) {
                    break;
                }
                self.taken -= u32::from(entry > REMOVED);
                self.store(place, REMOVED);
                self.close_up(place, self.level, &key_of);
            }
        }
    }

    /// Whether the next level is to be filled.
    fn is_crowded(&self) -> bool {
        self.has_taken(CROWDED)
    }

    /// Whether more than so many fifths of the places are taken, and there can be another level.
    fn has_taken(&self, fifths: u64) -> bool {
        self.level < LAST_LEVEL && u64::from(self.taken) * 5 > u64::from(self.level) * fifths
    }

    /// The level that comes after the one in force.
    fn next(&self) -> u32 {
        if self.level < LARGE { self.level * 4 } else { self.level * 2 }
    }

    fn is_carried(&self, place: u32) -> bool {
        self.carried.is_some_and(|carried| place < self.level + carried)
    }

    /// Begins to grow, or carries some places on.
    fn grow(&mut self, key_of: impl Fn(u32) -> FlowKey) {
        let Some(carried) = self.carried else {
            if self.is_crowded()
                && (self.segments.len() as u64) * u64::from(PLACES) >= u64::from(self.next()) * 2
            {
                // What an earlier daemon had begun to fill.
                (self.next()..self.next() * 2).for_each(|place| self.store(place, EMPTY));
                self.carried = Some(0);
            }
            return;
        };
        let end = (carried + CARRIED).min(self.level);
        // All keys are read before the first is used: memory answers many questions in the time of one.
        let entries: [u32; CARRIED as usize] = std::array::from_fn(|step| {
            let place = self.level + carried + u32::try_from(step).unwrap_or(0);
            if place < self.level + end { self.load(place) } else { EMPTY }
        });
        let hash_of = |entry: u32| match entry {
            EMPTY | REMOVED => 0,
            entry => table::hash(key_of(entry & LINE_MASK).words(), &self.secret),
        };
        let hashes = entries.map(hash_of);
        // So are the places that they go to.
        for hash in hashes {
            let _ = self.load(table::place(hash, self.next(), 0));
        }
        for (entry, hash) in entries.into_iter().zip(hashes).filter(|(entry, _)| *entry > REMOVED) {
            self.enter(hash, entry & LINE_MASK, self.next());
        }
        self.carried = Some(end);
        if end == self.level {
            self.put_in_force(self.next());
        }
    }

    fn put_in_force(&mut self, level: u32) {
        self.level = level;
        self.carried = None;
        self.in_force.store(0, table::in_force(level, self.moves()));
    }

    /// Entries moved so far.
    fn moves(&self) -> u32 {
        table::moves_of(self.in_force.load(0))
    }

    fn enter(&self, hash: u64, line: u32, level: u32) -> Option<u32> {
        let entry = table::entry(hash, line);
        // Meanwhile the program may take a place that is empty, never one that was removed.
        places(hash, level).find(|&place| {
            let there = self.load(place);
            there <= REMOVED && self.exchange(place, there, entry)
        })
    }

    fn find(&self, hash: u64, line: u32, level: u32) -> Option<u32> {
        let entry = table::entry(hash, line);
        let mut places = places(hash, level).take_while(|&place| self.load(place) != EMPTY);
        places.find(|&place| self.load(place) == entry)
    }

    /// Moves what comes after a place that was removed up to it, where its search may find it, so that no search has
    /// to go past places where nothing is. A search of the program that is just there may miss what moves: before that
    /// is gone from where it was, it is counted, so that who finds nothing knows to look again.
    fn close_up(&self, removed: u32, level: u32, key_of: impl Fn(u32) -> FlowKey) {
        let after = |place: u32| level | (place.wrapping_add(1) & (level - 1));
        let steps = |from: u32, to: u32| to.wrapping_sub(from) & (level - 1);
        let (mut hole, mut place) = (removed, after(removed));
        while place != removed {
            let entry = self.load(place);
            if entry == EMPTY {
                break;
            }
            if entry > REMOVED {
                let home =
                    table::place(table::hash(key_of(entry & LINE_MASK).words(), &self.secret), level, 0);
                if steps(home, place) >= steps(hole, place) {
                    self.store(hole, entry);
                    self.in_force.store(0, table::in_force(self.level, self.moves().wrapping_add(1)));
                    self.store(place, REMOVED);
                    hole = place;
                }
            }
            place = after(place);
        }
        self.store(hole, EMPTY);
    }

    fn load(&self, place: u32) -> u32 {
        let (segment, at) = table::segment_of_place(place);
        self.segments.get(segment as usize).map_or(EMPTY, |segment| segment.load(at))
    }

    fn exchange(&self, place: u32, expected: u32, entry: u32) -> bool {
        let (segment, at) = table::segment_of_place(place);
        self.segments
            .get(segment as usize)
            .is_some_and(|segment| segment.exchange(at, expected, entry).is_ok())
    }

    fn store(&self, place: u32, entry: u32) {
        let (segment, at) = table::segment_of_place(place);
        if let Some(segment) = self.segments.get(segment as usize) {
            segment.store(at, entry);
        }
    }
}

/// Where a search for a hash looks, in its order.
fn places(hash: u64, level: u32) -> impl Iterator<Item = u32> {
    (0..SEARCHED).map(move |step| table::place(hash, level, step))
}

#[cfg(test)]
#[path = "index_orders.rs"]
mod orders;

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
