//! What the program's search finds, and what becomes of what it enters, in every order that its steps and the daemon's
//! can come in (loom).

use std::sync::atomic::{AtomicU32 as Count, Ordering::Relaxed};

use loom::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
};
use loom::thread;
use nat_common::FlowKey;
use nat_common::search::{self, Search};
use nat_common::table::{self, EMPTY, Secret};

use super::{Entered, Index, Memory, Places};

const SECRET: Secret = Secret([1, 2, 3, 4]);
/// As small a level as there can be with room for those who meet, and for an end of their run.
const LEVEL: u32 = 8;
/// Places of that level and of the next.
const ROOM: usize = 64;

/// Memory whose every access loom orders.
struct Explored {
    places: Vec<AtomicU32>,
    in_force: AtomicU64,
}

/// The same for the daemon.
///
/// What it loads it writes back: loom looks for orders between a store and the access before it, of whichever thread,
/// and would not see the program's behind the daemon's own.
#[derive(Clone)]
struct Shared(Arc<Explored>);

impl Memory<u32> for Shared {
    fn load(&self, at: u32) -> u32 {
        self.0.places[at as usize].fetch_or(0, Acquire)
    }

    fn store(&self, at: u32, value: u32) {
        self.0.places[at as usize].store(value, Release);
    }
}

impl Places for Shared {
    fn exchange(&self, at: u32, expected: u32, value: u32) -> Result<(), u32> {
        self.0.places[at as usize].compare_exchange(expected, value, AcqRel, Acquire).map(drop)
    }
}

impl Memory<u64> for Shared {
    fn load(&self, _: u32) -> u64 {
        self.0.in_force.fetch_or(0, Acquire)
    }

    fn store(&self, _: u32, value: u64) {
        self.0.in_force.store(value, Release);
    }
}

/// Lines' keys: nothing is written to them while the program reads.
#[derive(Clone)]
struct Keys(std::sync::Arc<Vec<FlowKey>>);

impl Keys {
    /// Of lines 2, 3, …: each searched for from one of these places of the level on.
    fn at(homes: &[u32]) -> Self {
        let mut keys = vec![FlowKey::default(); 2];
        let mut all = (1..).map(|port| FlowKey { source_port: port, ..FlowKey::default() });
        let home = |key: &FlowKey| table::place(table::hash(key.words(), &SECRET), LEVEL, 0);
        keys.extend(
            homes.iter().map(|wanted| all.find(|key| home(key) == LEVEL + wanted).expect("many keys")),
        );
        Self(std::sync::Arc::new(keys))
    }

    fn of(&self, line: u32) -> FlowKey {
        self.0[line as usize]
    }
}

/// What the program sees.
struct Program {
    memory: Shared,
    keys: Keys,
}

impl search::Index for Program {
    fn in_force(&self) -> u64 {
        self.memory.0.in_force.load(Acquire)
    }

    fn entry(&self, place: u32) -> u32 {
        self.memory.0.places[place as usize].load(Acquire)
    }

    fn has_key(&self, line: u32, words: [u64; 2]) -> bool {
        self.keys.0.get(line as usize).is_some_and(|key| key.words() == words)
    }
}

impl Program {
    /// The line that a packet of this line's flow finds.
    fn finds(&self, line: u32) -> u32 {
        let mut search = Search::new(self.keys.of(line).words(), &SECRET, self);
        let _ = (0..Search::AT_MOST).any(|_| search.look_further(self));
        search.number
    }

    /// Enters a line at the first place where none ever was, as the program does, and says what it reports.
    fn enters(&self, line: u32) -> (Entered, u64) {
        let hash = table::hash(self.keys.of(line).words(), &SECRET);
        let in_force = search::Index::in_force(self);
        let level = table::level_of(in_force);
        let mut entered = Entered::AtHome;
        for step in 0..LEVEL {
            let place = table::place(hash, level, step);
            match self.memory.exchange(place, EMPTY, table::entry(hash, line)) {
                Ok(()) => return (entered, in_force),
                Err(other) if table::may_be_alike(other, hash) => entered = Entered::Unsure,
                Err(_) if entered == Entered::AtHome => entered = Entered::Behind,
                Err(_) => {}
            }
        }
        (Entered::Unsure, in_force)
    }
}

/// An index with these lines, and what the program sees of it.
fn index(keys: &Keys, lines: &[u32]) -> (Index<Shared, Shared>, Program) {
    let places = (0..ROOM).map(|_| AtomicU32::new(EMPTY)).collect();
    let in_force = AtomicU64::new(table::in_force(LEVEL, 0));
    let memory = Shared(Arc::new(Explored { places, in_force }));
    let mut index = Index::new(vec![memory.clone()], memory.clone(), SECRET);
    for line in lines {
        assert!(index.insert(&keys.of(*line), *line, |line| keys.of(line)));
    }
    (index, Program { memory, keys: keys.clone() })
}

/// Explores, and says how many orders there were.
fn in_every_order(what: &str, model: impl Fn() + Sync + Send + 'static) {
    // Not loom's: it lives through all of them.
    let orders = std::sync::Arc::new(Count::new(0));
    let counted = std::sync::Arc::clone(&orders);
    let mut explorer = loom::model::Builder::new();
    explorer.preemption_bound = Some(3);
    explorer.max_branches = 100_000;
    explorer.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    println!("{what}: {} orders", orders.load(Relaxed));
    assert!(orders.load(Relaxed) > 1);
}

/// What is behind a line that goes moves up, past a search that is just there.
#[test]
fn a_search_finds_what_is_moved_meanwhile() {
    in_every_order("a search while a run is closed up", || {
        // More would have it grow.
        let keys = Keys::at(&[0, 0, 1]);
        let (mut index, program) = index(&keys, &[2, 3, 4]);
        let found = thread::spawn(move || program.finds(4));
        index.remove(&keys.of(2), 2, |line| keys.of(line));
        assert_eq!(found.join().unwrap(), 4);
    });
}

/// One goes and another takes its place.
#[test]
fn a_search_finds_what_stays_while_others_change_places() {
    in_every_order("a search while lines come and go", || {
        let keys = Keys::at(&[0, 0, 0, 7]);
        let (mut index, program) = index(&keys, &[2, 3]);
        let found = thread::spawn(move || program.finds(3));
        index.remove(&keys.of(2), 2, |line| keys.of(line));
        assert!(index.insert(&keys.of(5), 5, |line| keys.of(line)));
        assert!(index.insert(&keys.of(4), 4, |line| keys.of(line)));
        assert_eq!(found.join().unwrap(), 3);
    });
}

/// The next level is filled and put in force, and what was carried there changes.
#[test]
fn a_search_finds_what_is_carried_to_the_next_level() {
    in_every_order("a search while the next level is put in force", || {
        let keys = Keys::at(&[0, 0, 3, 3, 5, 0]);
        let (mut index, program) = index(&keys, &[2, 3, 4]);
        let found = thread::spawn(move || (program.finds(3), program.finds(4)));
        // Crowded with the first of these, carried with the second.
        assert!(index.insert(&keys.of(5), 5, |line| keys.of(line)));
        assert!(index.insert(&keys.of(6), 6, |line| keys.of(line)));
        assert_eq!(index.level, LEVEL * 4);
        index.remove(&keys.of(2), 2, |line| keys.of(line));
        assert_eq!(found.join().unwrap(), (3, 4));
    });
}

/// What the program enters while the daemon closes up is found once it is adopted.
#[test]
fn what_is_entered_while_a_run_is_closed_up_is_found_once_it_is_adopted() {
    entered_meanwhile(&[0, 0, 0], &[2, 3], |index, keys| {
        index.remove(&keys.of(2), 2, |line| keys.of(line));
    });
}

/// The same while the next level is filled and put in force.
#[test]
fn what_is_entered_while_the_index_grows_is_found_once_it_is_adopted() {
    entered_meanwhile(&[0, 0, 0, 3, 5, 6], &[2, 3, 5], |index, keys| {
        for line in [6, 7] {
            assert!(index.insert(&keys.of(line), line, |line| keys.of(line)));
        }
        assert_eq!(index.level, LEVEL * 4);
    });
}

/// What it enters where the search begins is known to be found.
#[test]
fn what_is_entered_at_home_is_found_whatever_is_closed_up() {
    entered_meanwhile(&[0, 0, 2], &[2, 3], |index, keys| {
        index.remove(&keys.of(2), 2, |line| keys.of(line));
    });
}

/// The same while the next level is filled and put in force.
#[test]
fn what_is_entered_at_home_is_found_though_the_index_grows() {
    entered_meanwhile(&[0, 0, 7, 3, 5, 6], &[2, 3, 5], |index, keys| {
        for line in [6, 7] {
            assert!(index.insert(&keys.of(line), line, |line| keys.of(line)));
        }
        assert_eq!(index.level, LEVEL * 4);
    });
}

/// The program enters line 4 while the daemon does something to an index with other lines.
fn entered_meanwhile(
    homes: &'static [u32],
    lines: &'static [u32],
    change: impl Fn(&mut Index<Shared, Shared>, &Keys) + Send + Sync + 'static,
) {
    in_every_order("an entry meanwhile", move || {
        let keys = Keys::at(homes);
        let (mut index, program) = index(&keys, lines);
        let own = Program { memory: program.memory.clone(), keys: keys.clone() };
        let entered = thread::spawn(move || own.enters(4));
        change(&mut index, &keys);
        let reported = entered.join().unwrap();
        assert!(index.adopt(&keys.of(4), 4, reported, |line| keys.of(line)));
        assert_eq!((program.finds(3), program.finds(4)), (3, 4));
        index.remove(&keys.of(4), 4, |line| keys.of(line));
        assert_eq!((program.finds(3), program.finds(4)), (3, EMPTY));
    });
}
