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
mod tests {
    use super::super::mapped::memory;
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashSet, VecDeque};

    fn index() -> Index {
        Index::new(vec![memory(PLACES)], memory(1), Secret([1, 2, 3, 4]))
    }

    /// The key of a line: the model's, and what the index asks for while it grows.
    fn key(line: u32) -> FlowKey {
        FlowKey { source: line.wrapping_mul(2_654_435_761), source_port: 7, ..FlowKey::default() }
    }

    /// What is in, is found; what was taken out, is not; and nothing else is there.
    fn check(index: &Index, there: &HashSet<u32>, gone: &[u32]) {
        assert!(there.iter().all(|line| index.has(&key(*line), *line)));
        assert!(gone.iter().all(|line| there.contains(line) || !index.has(&key(*line), *line)));
        let mut lines: Vec<u32> = index.lines().collect();
        lines.sort_unstable();
        let mut wanted: Vec<u32> = there.iter().copied().collect();
        wanted.sort_unstable();
        assert_eq!(lines, wanted);
    }

    #[test]
    fn it_grows_while_entries_come_and_go() {
        let mut index = index();
        let mut there = HashSet::new();
        let mut gone = Vec::new();
        // Half again as many come as go, through two levels and into a third.
        for line in 2..60_002 {
            assert!(index.insert(&key(line), line, key));
            there.insert(line);
            if line % 3 == 0 {
                let old = line / 3 + 1;
                index.remove(&key(old), old, key);
                there.remove(&old);
                gone.push(old);
            }
            while u64::from(index.wants()) > index.segments() as u64 {
                index.add(memory(PLACES));
            }
        }
        assert!(index.level > table::FIRST_LEVEL * 2, "it has grown: {}", index.level);
        check(&index, &there, &gone);
        // What is carried over in part when another daemon comes is swept.
        let level = index.level;
        let (lost, twice) = (index.level + 5, index.level * 2 - 7);
        index.store(lost, table::entry(0, 4));
        index.store(twice, REMOVED);
        index.taken = u32::try_from(index.lines().count()).expect("few");
        there = index.lines().filter(|line| index.has(&key(*line), *line)).collect();
        index.retain(|line| line % 2 == 0, key);
        assert_eq!(index.level, level);
        there.retain(|line| line % 2 == 0);
        check(&index, &there, &[]);
    }

    /// A segment takes the kernel a while, in which a flood goes on: tens of thousands of sessions are opened in the tens of
    /// milliseconds that a grace period can take. (A level of 65,536 places once had to wait for a segment.)
    #[test]
    fn a_level_that_waits_for_a_segment_is_not_full_before_it_comes() {
        const MEANWHILE: u32 = 36_000;
        let mut index = index();
        let mut asked = None;
        for line in 2..600_002 {
            assert!(index.insert(&key(line), line, key), "no place for line {line} at level {}", index.level);
            if index.wants() as usize > index.segments() {
                let since = *asked.get_or_insert(line);
                if line - since == MEANWHILE {
                    while index.wants() as usize > index.segments() {
                        index.add(memory(PLACES));
                    }
                    asked = None;
                }
            }
        }
        assert!(index.level > PLACES, "it has waited more than once: {}", index.level);
    }

    /// Places that were removed must not pile up: each lengthens searches for what is not there.
    #[test]
    fn churn_leaves_searches_short() {
        let mut index = index();
        let live = table::FIRST_LEVEL / 5 * 2 - 64;
        for line in 2..live {
            assert!(index.insert(&key(line), line, key));
        }
        for line in live..live + 200_000 {
            let old = line - live + 2;
            index.remove(&key(old), old, key);
            assert!(index.insert(&key(line), line, key));
        }
        assert_eq!(index.level, table::FIRST_LEVEL);
        let steps = |line: u32| {
            let hash = table::hash(key(line).words(), &index.secret);
            places(hash, index.level).take_while(|place| index.load(*place) != EMPTY).count()
        };
        let absent = 10_000_000..10_010_000;
        let mean = absent.clone().map(steps).sum::<usize>() / absent.len();
        assert!(mean < 4, "a search for what is not there takes {mean} steps");
    }

    /// What the program does with a line: the first place where nothing ever was, by the level it has read.
    fn enter_as_program(index: &Index, key: &FlowKey, line: u32, level: u32) {
        let hash = table::hash(key.words(), &index.secret);
        let free = places(hash, level).find(|&place| index.load(place) == EMPTY);
        let place = free.expect("a place near");
        assert!(index.exchange(place, EMPTY, table::entry(hash, line)));
    }

    /// A run is closed up between the program's look at its beginning and its entry at the end: no search would come
    /// there.
    #[test]
    fn what_the_program_enters_behind_a_gap_is_found_once_adopted() {
        let mut index = index();
        let home = |line: u32| table::place(table::hash(key(line).words(), &index.secret), index.level, 0);
        let alike: Vec<FlowKey> = (2..).filter(|line| home(*line) == home(2)).map(key).take(3).collect();
        let alike = |line: u32| alike[line as usize / 2 - 1];
        for line in [2, 4] {
            assert!(index.insert(&alike(line), line, alike));
        }
        // The program sees both places taken, and goes on to the third.
        enter_as_program(&index, &alike(6), 6, index.level);
        let third = index.find(table::hash(alike(6).words(), &index.secret), 6, index.level).expect("there");
        index.store(third, EMPTY);
        index.remove(&alike(2), 2, alike);
        index.store(third, table::entry(table::hash(alike(6).words(), &index.secret), 6));
        assert!(!index.has(&alike(6), 6), "behind a place where nothing is");
        assert_eq!(index.adopt([(alike(6), 6)].into_iter(), alike), [true]);
        assert!(index.has(&alike(6), 6) && index.has(&alike(4), 4));
        let mut lines: Vec<u32> = index.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, [4, 6], "once each");
        assert_eq!(index.taken, 2);
    }

    /// One key has one line: what the program has entered for a key that has one is taken out again without a trace.
    #[test]
    fn a_line_whose_key_has_another_is_not_adopted() {
        let mut index = index();
        let twins = |line: u32| key(line & !1);
        assert!(index.insert(&twins(2), 2, twins));
        enter_as_program(&index, &twins(3), 3, index.level);
        assert_eq!(index.adopt([(twins(3), 3)].into_iter(), twins), [false]);
        index.remove(&twins(3), 3, twins);
        assert_eq!((index.search(&twins(3), twins), index.taken), (Some(2), 1));
        assert!(index.lines().eq([2]));
    }

    /// The program goes by a level that is not in force any more, or by one that is carried over meanwhile.
    #[test]
    fn what_the_program_enters_while_the_index_grows_is_found_once_adopted() {
        let mut index = index();
        let (mut line, mut reported) = (2, VecDeque::new());
        let mut there = HashSet::new();
        while index.level < table::FIRST_LEVEL * 4 {
            let level = index.level;
            if line % 3 == 0 {
                // Its report is read only a while later.
                enter_as_program(&index, &key(line), line, level);
                reported.push_back(line);
            } else {
                assert!(index.insert(&key(line), line, key));
            }
            there.insert(line);
            line += 1;
            if reported.len() > 500 {
                let adopted = index.adopt(reported.drain(..).map(|line| (key(line), line)), key);
                assert!(adopted.into_iter().all(|is_adopted| is_adopted));
            }
            while u64::from(index.wants()) > index.segments() as u64 {
                index.add(memory(PLACES));
            }
        }
        let adopted = index.adopt(reported.into_iter().map(|line| (key(line), line)), key);
        assert!(adopted.into_iter().all(|is_adopted| is_adopted));
        check(&index, &there, &[]);
        assert_eq!(index.taken as usize, there.len());
    }

    /// Entries are moved while the program searches: it finds them all the same, as it looks again where it has found
    /// nothing and something was moved meanwhile.
    #[test]
    fn no_search_misses_what_is_moved() {
        let (places, theirs) = shared(PLACES);
        let (word, their_word) = shared(1);
        let secret = || Secret([1, 2, 3, 4]);
        let mut index = Index::new(vec![places], word, secret());
        let theirs = Index::new(vec![theirs], their_word, secret());
        // All keys fall near three places. The last lines stay, others come and go before them.
        let alike = |line: u32| FlowKey { source: line % 3, source_port: 1, ..FlowKey::default() };
        for line in 2..66 {
            assert!(index.insert(&alike(line), line, alike));
        }
        let done = std::sync::atomic::AtomicBool::new(false);
        let done = &done;
        std::thread::scope(|scope| {
            let program = scope.spawn(move || {
                let index = theirs;
                let (mut searches, mut again) = (0_u64, 0_u64);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for line in 60..66 {
                        let hash = table::hash(alike(line).words(), &index.secret);
                        let mut before = index.in_force.load(0);
                        while index.find(hash, line, table::level_of(before)).is_none() {
                            let now = index.in_force.load(0);
                            assert_ne!(now, before, "line {line} is missed, after {searches} searches");
                            (before, again) = (now, again + 1);
                        }
                        searches += 1;
                    }
                }
                (searches, again)
            });
            for round in 0..100_000 {
                let line = 2 + round % 50;
                index.remove(&alike(line), line, alike);
                assert!(index.insert(&alike(line), line, alike));
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            println!("searches, and how many looked again: {:?}", program.join().expect("no search missed"));
        });
    }

    /// The same memory twice.
    fn shared<T: Copy>(entries: u32) -> (Mapped<T>, Mapped<T>) {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        let file = memfd_create("map", MemfdFlags::CLOEXEC).expect("a file in memory");
        ftruncate(&file, u64::from(entries) * size_of::<T>() as u64).expect("make it as long");
        let map = || Mapped::new(&file, entries).expect("map it");
        (map(), map())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Few keys, so that they meet: removed places are reused and emptied again.
        #[test]
        fn any_order_of_changes(changes in prop::collection::vec((2u32..64, any::<bool>()), 1..400)) {
            let mut index = index();
            // All keys fall near one place: the longest runs.
            let crowd = |line: u32| FlowKey { source: line % 5, ..FlowKey::default() };
            let mut there = HashSet::new();
            for (line, comes) in changes {
                if comes && there.insert(line) {
                    prop_assert!(index.insert(&crowd(line), line, crowd));
                } else if !comes && there.remove(&line) {
                    index.remove(&crowd(line), line, crowd);
                }
                for line in 2..64 {
                    prop_assert_eq!(index.has(&crowd(line), line), there.contains(&line));
                }
            }
        }
    }
}
