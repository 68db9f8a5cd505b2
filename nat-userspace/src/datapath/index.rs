//! The index of the flow table: which line a key has. The program searches it meanwhile, and enters lines of its own
//! where nothing ever was; each of them is then adopted here.
//!
//! When a level is two fifths full the next one, twice as large or more, is filled beside it, a few lines with each
//! entry that comes, and then put in force with one write. Searches that began in the old level end there.
//!
//! Lines are carried over in the order of their numbers, which is that of their memory: a line's key has to be read for
//! its place in the next level, and read in the order of places each would be waited for.

use nat_common::FlowKey;
use nat_common::report::Entered;
use nat_common::table::{self, EMPTY, LAST_LEVEL, LINE_MASK, PLACES, REMOVED, SEARCHED, Secret};

use super::Mapped;

/// Lines carried over to the next level with each entry that is made: with a level two fifths full the next one is in
/// force when it is less than half full, also where all but a few lines of a stretch are free.
const CARRIED: usize = 16;

/// Fifths of a level's places that are taken when the next one is filled.
const CROWDED: u64 = 2;

/// Below this the segments of the next level are asked for when half as many are taken: a flood would fill what is left of
/// a small level while the kernel makes them. Above it what is left is enough, and they are large.
const AMPLE: u32 = 1 << 20;

/// Below this a level grows to four times its size at once, which carries a third of the entries. Not above it, where
/// places are what a CPU's caches have to hold and what a session's memory is.
const LARGE: u32 = 1 << 18;

/// Below this the first segment has room for the next level.
const SMALL: u32 = PLACES / 8;

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
    /// Lines below this are in the next level as well, if they are in at all; `None` while it does not grow.
    carried: Option<u32>,
    /// Lines that are in the level in force.
    there: Lines,
    /// Segments below this are of levels that were left, and were let go, but for the first.
    kept: u32,
    /// An earlier daemon may have begun to fill levels beyond the one in force.
    is_inherited: bool,
    secret: Secret,
}

impl<S: Places, W: Memory<u64>> Index<S, W> {
    /// The index in these segments.
    pub(super) fn new(segments: Vec<S>, in_force: W, secret: Secret) -> Self {
        let level = table::level_of(in_force.load(0));
        let there = Lines::default();
        let is_inherited = level != 0;
        let mut index =
            Self { segments, in_force, level: 0, carried: None, there, kept: 1, is_inherited, secret };
        index.put_in_force(if is_inherited { level } else { table::FIRST_LEVEL });
        index.there = index.lines().collect();
        index
    }

    /// Segments that it will need next.
    pub(super) fn wants(&self) -> u32 {
        let fifths = if self.level < AMPLE { 1 } else { CROWDED };
        // While it is small the segments of the level after the next: a flood fills that, too, before they could come.
        let last = if self.level < SMALL { after(self.next()) } else { self.next() };
        if self.has_taken(fifths) { (last * 2).div_ceil(PLACES) } else { 0 }
    }

    /// Takes the next segment.
    pub(super) fn add(&mut self, segment: S) {
        self.segments.push(segment);
    }

    /// A segment that is of no level any more, if there is one. The first never is: it is small levels' and stands in for
    /// the others, so that those who take the table over find no gap.
    pub(super) fn outgrown(&self) -> Option<u32> {
        (self.kept < self.level / PLACES).then_some(self.kept)
    }

    /// The segment that was outgrown is let go; the first one's memory is in its place, if it could be had.
    pub(super) fn let_go(&mut self, first: Option<S>) {
        let place = self.segments.get_mut(self.kept as usize);
        if let (Some(place), Some(first)) = (place, first) {
            *place = first;
        }
        self.kept += 1;
    }

    /// Segments there are.
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Enters a key's line. `false` if there is no place near where a search begins. `key_of` tells the key of any
    /// line that is in.
    pub(super) fn insert(&mut self, key: &FlowKey, line: u32, key_of: impl Fn(u32) -> FlowKey) -> bool {
        let hash = table::hash(key.words(), &self.secret);
        if self.enter(hash, line).is_none() {
            return false;
        }
        self.count(key, line, key_of);
        true
    }

    /// Takes note of a line that has just come into the level in force.
    fn count(&mut self, key: &FlowKey, line: u32, key_of: impl Fn(u32) -> FlowKey) {
        self.there.add(line);
        if self.is_carried(line) {
            let hash = table::hash(key.words(), &self.secret);
            if self.find(hash, line, self.next()).is_none() {
                self.carry(hash, line);
            }
        }
        self.grow(key_of);
    }

    /// Takes note of a line that the program has entered: counts it, and enters it if it is missing. The program may have
    /// found no place, or one that became unreachable while it looked, because a run was closed up before it or another
    /// level put in force. What it says of the entry, and of what was in force before, tells whether that can be.
    /// `false` if there is no place near, or the key has another line.
    pub(super) fn adopt(
        &mut self,
        key: &FlowKey,
        line: u32,
        (entered, in_force): (Entered, u64),
        key_of: impl Fn(u32) -> FlowKey + Copy,
    ) -> bool {
        let is_found = match entered {
            Entered::AtHome => table::level_of(in_force) == self.level,
            // Nothing was taken out since.
            Entered::Behind => in_force == self.in_force.load(0),
            Entered::Unsure => false,
        };
        if is_found {
            self.count(key, line, key_of);
            return true;
        }
        let hash = table::hash(key.words(), &self.secret);
        match self.first(hash, key, key_of) {
            Some(found) if found == line => {
                self.count(key, line, key_of);
                true
            }
            Some(_) => {
                // It can be taken out as if it were in.
                if self.find(hash, line, self.level).is_some() {
                    self.there.add(line);
                }
                false
            }
            None => {
                // Of another level that was carried on before nothing is here.
                if table::level_of(in_force) == self.level {
                    self.sweep(hash, line, key_of);
                }
                self.insert(key, line, key_of)
            }
        }
    }

    /// Asks memory for the place where the search for a key begins.
    pub(super) fn expect(&self, key: &FlowKey) {
        let _ = self.load(table::place(table::hash(key.words(), &self.secret), self.level, 0));
    }

    /// The line of a key.
    pub(super) fn search(&self, key: &FlowKey, key_of: impl Fn(u32) -> FlowKey) -> Option<u32> {
        self.first(table::hash(key.words(), &self.secret), key, key_of)
    }

    /// The first line of a key.
    fn first(&self, hash: u64, key: &FlowKey, key_of: impl Fn(u32) -> FlowKey) -> Option<u32> {
        let mut lines = places(hash, self.level)
            .map(|place| self.load(place))
            .take_while(|entry| *entry != EMPTY)
            .filter(|entry| *entry > REMOVED && entry & !LINE_MASK == table::tag(hash))
            .map(|entry| entry & LINE_MASK);
        lines.find(|&line| key_of(line) == *key)
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
        self.there.remove(line);
        self.store(place, REMOVED);
        if self.carried.is_none() {
            self.close_up(place, self.level, key_of);
        } else if self.is_carried(line)
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
                self.store(place, REMOVED);
                self.close_up(place, self.level, &key_of);
            }
        }
        self.there = self.lines().collect();
    }

    /// Whether the next level is to be filled.
    fn is_crowded(&self) -> bool {
        self.has_taken(CROWDED)
    }

    /// Whether more than so many fifths of the places are taken, and there can be another level.
    fn has_taken(&self, fifths: u64) -> bool {
        self.level < LAST_LEVEL && u64::from(self.there.count) * 5 > u64::from(self.level) * fifths
    }

    /// The level that comes after the one in force.
    fn next(&self) -> u32 {
        after(self.level)
    }

    fn is_carried(&self, line: u32) -> bool {
        self.carried.is_some_and(|carried| line < carried)
    }

    /// Begins to grow, or carries some lines on.
    fn grow(&mut self, key_of: impl Fn(u32) -> FlowKey) {
        let Some(carried) = self.carried else {
            if self.is_crowded()
                && (self.segments.len() as u64) * u64::from(PLACES) >= u64::from(self.next()) * 2
            {
                if self.is_inherited {
                    (self.next()..self.next() * 2).for_each(|place| self.store(place, EMPTY));
                }
                self.carried = Some(0);
            }
            return;
        };
        let mut hashes = [(0, 0); CARRIED];
        let (few, end) = self.there.next(carried, |number, line| {
            hashes[number] = (table::hash(key_of(line).words(), &self.secret), line);
        });
        // All places are asked for before the first is needed, and with little between: memory answers many questions in
        // the time of one.
        for (hash, _) in &hashes[..few] {
            let _ = self.load(table::place(*hash, self.next(), 0));
        }
        for (hash, line) in &hashes[..few] {
            // Where the next level has no place, nor has the present one soon: that line stays behind.
            self.carry(*hash, *line);
        }
        self.carried = Some(end);
        if end >= self.there.end() {
            self.put_in_force(self.next());
        }
    }

    /// Enters a line into the next level, which nobody else looks at yet.
    fn carry(&self, hash: u64, line: u32) {
        if let Some(place) = places(hash, self.next()).find(|&place| self.load(place) <= REMOVED) {
            self.store(place, table::entry(hash, line));
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

    fn enter(&self, hash: u64, line: u32) -> Option<u32> {
        let entry = table::entry(hash, line);
        // Meanwhile the program may take a place that is empty, never one that was removed.
        places(hash, self.level).find(|&place| {
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
    /// is gone from where it was, it is counted, so that who finds nothing knows to look again. The end is counted as
    /// well: who has entered something behind what was removed, and cannot know whether that was seen here, finds that
    /// the count has changed.
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
                    self.count_move();
                    self.store(place, REMOVED);
                    hole = place;
                }
            }
            place = after(place);
        }
        self.store(hole, EMPTY);
        self.count_move();
    }

    /// Counts that something moves, or that a place becomes one where nothing is.
    fn count_move(&self) {
        self.in_force.store(0, table::in_force(self.level, self.moves().wrapping_add(1)));
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

/// The level that comes after another.
fn after(level: u32) -> u32 {
    if level < LARGE { level * 4 } else { level * 2 }
}

/// A set of lines, a bit each, and how many they are.
#[derive(Default)]
struct Lines {
    words: Vec<u64>,
    count: u32,
}

impl Lines {
    /// No line has this number or a higher one.
    fn end(&self) -> u32 {
        u32::try_from(self.words.len() * 64).unwrap_or(u32::MAX)
    }

    fn add(&mut self, line: u32) {
        let word = line as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.count += u32::from(self.words[word] >> (line % 64) & 1 == 0);
        self.words[word] |= 1 << (line % 64);
    }

    fn remove(&mut self, line: u32) {
        if let Some(word) = self.words.get_mut(line as usize / 64) {
            self.count -= u32::try_from(*word >> (line % 64) & 1).unwrap_or(0);
            *word &= !(1 << (line % 64));
        }
    }

    /// Tells the next lines of the set from `line` on, [`CARRIED`] at most and not looking far where there are few. How
    /// many they were, and where to go on.
    fn next(&self, line: u32, mut tell: impl FnMut(usize, u32)) -> (usize, u32) {
        /// Words looked at: a table that was full once may have few lines left, and those far apart.
        const WORDS: usize = 16;
        let mut told = 0;
        let (first, mut shift) = (line as usize / 64, line % 64);
        let last = (first + WORDS).min(self.words.len());
        for word in first..last {
            let mut bits = self.words[word] >> shift << shift;
            while bits != 0 {
                let next = u32::try_from(word * 64).unwrap_or(0) + bits.trailing_zeros();
                if told == CARRIED {
                    return (told, next);
                }
                tell(told, next);
                told += 1;
                bits &= bits - 1;
            }
            shift = 0;
        }
        (told, u32::try_from(last * 64).unwrap_or(u32::MAX))
    }
}

impl FromIterator<u32> for Lines {
    fn from_iter<I: IntoIterator<Item = u32>>(lines: I) -> Self {
        let mut all = Self::default();
        lines.into_iter().for_each(|line| all.add(line));
        all
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
