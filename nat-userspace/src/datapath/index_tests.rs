//! The index as the program would search it: what was put in is found, however it has grown and been used.

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
    there = index.lines().filter(|line| index.has(&key(*line), *line)).collect();
    index.retain(|line| line % 2 == 0, key);
    assert_eq!(index.level, level);
    there.retain(|line| line % 2 == 0);
    check(&index, &there, &[]);
    assert_eq!(index.there.count as usize, there.len());
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

/// Levels that were left are not kept: their segments go, each once, and nothing is missed.
#[test]
fn segments_of_levels_that_were_left_are_let_go() {
    let mut index = index();
    let mut gone = Vec::new();
    for line in 2..500_002 {
        assert!(index.insert(&key(line), line, key));
        while index.wants() as usize > index.segments() {
            index.add(memory(PLACES));
        }
        while let Some(segment) = index.outgrown() {
            assert!((segment + 1) * PLACES <= index.level, "segment {segment} at level {}", index.level);
            gone.push(segment);
            // What whoever reads there meanwhile finds is other lines.
            index.let_go(Some(memory(PLACES)));
        }
    }
    let left = index.level / PLACES;
    assert!(left > 2 && gone.iter().copied().eq(1..left), "{gone:?} of {left}");
    check(&index, &(2..500_002).collect(), &[]);
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

/// What the daemon does with lines that the program has entered anywhere.
fn adopt(
    index: &mut Index,
    lines: impl IntoIterator<Item = u32>,
    key_of: impl Fn(u32) -> FlowKey + Copy,
) -> Vec<bool> {
    let unsure = (Entered::Unsure, index.in_force.load(0));
    lines.into_iter().map(|line| index.adopt(&key_of(line), line, unsure, key_of)).collect()
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
    assert_eq!(adopt(&mut index, [6], alike), [true]);
    assert!(index.has(&alike(6), 6) && index.has(&alike(4), 4));
    let mut lines: Vec<u32> = index.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [4, 6], "once each");
    assert_eq!(index.there.count, 2);
}

/// One key has one line: what the program has entered for a key that has one is taken out again without a trace.
#[test]
fn a_line_whose_key_has_another_is_not_adopted() {
    let mut index = index();
    let twins = |line: u32| key(line & !1);
    assert!(index.insert(&twins(2), 2, twins));
    enter_as_program(&index, &twins(3), 3, index.level);
    assert_eq!(adopt(&mut index, [3], twins), [false]);
    index.remove(&twins(3), 3, twins);
    assert_eq!((index.search(&twins(3), twins), index.there.count), (Some(2), 1));
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
            let adopted = adopt(&mut index, reported.drain(..), key);
            assert!(adopted.into_iter().all(|is_adopted| is_adopted));
        }
        while u64::from(index.wants()) > index.segments() as u64 {
            index.add(memory(PLACES));
        }
    }
    let adopted = adopt(&mut index, reported, key);
    assert!(adopted.into_iter().all(|is_adopted| is_adopted));
    check(&index, &there, &[]);
    assert_eq!(index.there.count as usize, there.len());
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
