//! What program and daemon claim from each other, in every order that the operations of both can come in (loom).

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
};
use loom::thread;
use nat_common::delegate::{Cell, Loan, PENDING, Ring, TAKEN, Word, take_port, take_slot};
use nat_common::held::HeldWords;
use nat_common::report::{Reports, has_room, read_reports, report};

/// A word whose every access loom orders.
struct Explored(AtomicU64);

impl Word for Explored {
    fn load(&self) -> u64 {
        self.0.load(Acquire)
    }

    fn set(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, AcqRel)
    }

    fn keep(&self, bits: u64) {
        self.0.fetch_and(bits, AcqRel);
    }

    fn exchange(&self, expected: u64, value: u64) -> bool {
        self.0.compare_exchange(expected, value, AcqRel, Acquire).is_ok()
    }
}

const CELL: Cell = Cell { word: 0, shift: 16 };
/// Another endpoint's, in the same word: it must come out as it went in.
const NEIGHBOUR: u64 = (TAKEN | PENDING) << 18 | TAKEN << 14;

fn word() -> Arc<Explored> {
    Arc::new(Explored(AtomicU64::new(NEIGHBOUR)))
}

/// Explores, and says how many orders there were.
fn in_every_order(what: &str, model: impl Fn() + Sync + Send + 'static) {
    // Not loom's: it lives through all of them.
    let orders = std::sync::Arc::new(AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&orders);
    // Three times may one be interrupted in the midst of what it does.
    let mut explorer = loom::model::Builder::new();
    explorer.preemption_bound = Some(3);
    explorer.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    println!("{what}: {} orders", orders.load(Relaxed));
    assert!(orders.load(Relaxed) > 1);
}

/// What a CPU's program does with a first packet of the endpoint: claims it, and tells what it made.
fn program(word: &Explored, made: &AtomicU64, told: &AtomicBool) {
    if CELL.claim(word) {
        made.fetch_add(1, AcqRel);
        // A swap, as the daemon's: loom does not put a plain store into one order with that.
        told.swap(true, AcqRel);
    }
}

/// What the daemon does with one: holds the endpoint, takes the report that is there into account, and makes a mapping
/// if nobody has, or may just be making one: then the packet waits. Whether it knows of one by then.
fn daemon(word: &Explored, made: &AtomicU64, told: &AtomicBool) -> bool {
    let mut more = 0;
    CELL.count(word, &mut more);
    let pending = CELL.is_pending(word);
    let is_told = told.swap(false, AcqRel);
    let makes = !is_told && !pending;
    if makes {
        made.fetch_add(1, AcqRel);
    }
    if makes {
        CELL.count(word, &mut more);
    }
    if is_told {
        CELL.adopt(word, &mut more);
    }
    CELL.uncount(word, &mut more);
    makes || is_told
}

#[test]
fn an_endpoint_gets_one_mapping_from_a_program_and_the_daemon() {
    in_every_order("a program and the daemon", || {
        let (word, made, told) = (word(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let other = {
            let (word, made, told) = (Arc::clone(&word), Arc::clone(&made), Arc::clone(&told));
            thread::spawn(move || program(&word, &made, &told))
        };
        let knows = daemon(&word, &made, &told);
        other.join().unwrap();
        // The packet that had to wait, if it had.
        assert!(knows || daemon(&word, &made, &told));
        assert_eq!(made.load(Acquire), 1, "mappings");
        assert_eq!(word.load(), NEIGHBOUR | TAKEN << CELL.shift, "one is counted, none is pending");
    });
}

#[test]
fn an_endpoint_gets_one_mapping_from_two_cpus_programs_and_the_daemon() {
    in_every_order("two programs and the daemon", || {
        let (word, made, told) = (word(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let others = [0, 1].map(|_| {
            let (word, made, told) = (Arc::clone(&word), Arc::clone(&made), Arc::clone(&told));
            thread::spawn(move || program(&word, &made, &told))
        });
        let knows = daemon(&word, &made, &told);
        for other in others {
            other.join().unwrap();
        }
        assert!(knows || daemon(&word, &made, &told));
        assert_eq!(made.load(Acquire), 1, "mappings");
        assert_eq!(word.load(), NEIGHBOUR | TAKEN << CELL.shift);
    });
}

/// Two CPUs' programs while the daemon lets the endpoint's only mapping go.
#[test]
fn a_mapping_that_ends_makes_room_for_one() {
    in_every_order("two programs and an end", || {
        let (word, made, told) = (word(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        CELL.count(&*word, &mut 0);
        let others = [0, 1].map(|_| {
            let (word, made, told) = (Arc::clone(&word), Arc::clone(&made), Arc::clone(&told));
            thread::spawn(move || program(&word, &made, &told))
        });
        CELL.uncount(&*word, &mut 0);
        for other in others {
            other.join().unwrap();
        }
        assert!(made.load(Acquire) <= 1, "mappings");
        daemon(&word, &made, &told);
        assert_eq!(made.load(Acquire), 1, "mappings");
        assert_eq!(word.load(), NEIGHBOUR | TAKEN << CELL.shift);
    });
}

#[test]
fn a_port_is_given_once() {
    in_every_order("three takers of a port", || {
        let word = Arc::new(Explored(AtomicU64::new(0b100)));
        let others = [0, 1].map(|_| {
            let word = Arc::clone(&word);
            thread::spawn(move || u32::from(take_port(&*word, 0b10)))
        });
        let mut taken = u32::from(take_port(&*word, 0b10));
        for other in others {
            taken += other.join().unwrap();
        }
        assert_eq!(taken, 1);
        assert_eq!(word.load(), 0b110);
    });
}

/// A ring of two places whose every access loom orders.
struct ExploredRing {
    places: [AtomicU64; 2],
    taken: AtomicU64,
}

impl Ring for ExploredRing {
    const PLACES: u32 = 2;

    fn swap(&self, place: u32, value: u64) -> u64 {
        self.places[place as usize].swap(value, AcqRel)
    }

    fn taken(&self) -> u64 {
        self.taken.load(Acquire)
    }

    fn set_taken(&self, taken: u64) {
        self.taken.store(taken, Release);
    }
}

/// The program takes slots while the daemon lends them, takes them back, and lends others.
#[test]
fn a_slot_is_lent_once_and_none_is_lost() {
    in_every_order("a program and the lender", || {
        let ring = Arc::new(ExploredRing {
            places: [AtomicU64::new(0), AtomicU64::new(0)],
            taken: AtomicU64::new(0),
        });
        let mut loan = Loan::default();
        // Whoever has a slot: the program, or the daemon again.
        let mut found = Vec::new();
        let mut next = 0;
        let mut lend = |loan: &mut Loan, found: &mut Vec<u32>| {
            while loan.left(&*ring) < 2 {
                found.extend(loan.lend(&*ring, next));
                next += 1;
            }
        };
        lend(&mut loan, &mut found);
        let program = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || [0; 3].map(|_| take_slot(&*ring)))
        };
        loan.revoke(&*ring, |slot| found.push(slot));
        lend(&mut loan, &mut found);
        let taken = program.join().unwrap();
        lend(&mut loan, &mut found);
        found.extend(taken.into_iter().flatten());
        // Now that nothing runs, what is lent can be taken.
        let left = loan.left(&*ring);
        let more: Vec<u32> = std::iter::from_fn(|| take_slot(&*ring)).collect();
        assert_eq!(more.len() as u64, left, "what is lent is there to be taken");
        found.extend(more);
        loan.revoke(&*ring, |slot| found.push(slot));
        found.sort_unstable();
        assert!(found.iter().copied().eq(0..next), "each once: {found:?} of {next}");
    });
}

/// Reports in a ring of two places, whose every access loom orders: of what is loaded and stored alone it would not try
/// every order.
struct ExploredReports {
    places: [[AtomicU64; 2]; 2],
    reported: AtomicU64,
    read: AtomicU64,
}

impl Reports for ExploredReports {
    const PLACES: u32 = 2;

    fn reported(&self) -> u64 {
        self.reported.fetch_or(0, AcqRel)
    }

    fn set_reported(&self, reported: u64) {
        self.reported.swap(reported, AcqRel);
    }

    fn read(&self) -> u64 {
        self.read.fetch_or(0, AcqRel)
    }

    fn set_read(&self, read: u64) {
        self.read.swap(read, AcqRel);
    }

    fn report(&self, place: u32) -> [u64; 2] {
        [0, 1].map(|half| self.places[place as usize][half].load(Relaxed))
    }

    fn set_report(&self, place: u32, report: [u64; 2]) {
        for (half, word) in self.places[place as usize].iter().zip(report) {
            half.store(word, Relaxed);
        }
    }
}

/// The program reports as long as there is room while the daemon reads.
#[test]
fn every_report_is_read_once_and_in_order() {
    in_every_order("a program and the reader of its reports", || {
        let ring = Arc::new(ExploredReports {
            places: [[0, 0], [0, 0]].map(|halves| halves.map(AtomicU64::new)),
            reported: AtomicU64::new(0),
            read: AtomicU64::new(0),
        });
        let program = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                let mut told = 0;
                for _ in 0..4 {
                    if has_room(&*ring) {
                        told += 1;
                        report(&*ring, [told, told]);
                    }
                }
                told
            })
        };
        let mut read = Vec::new();
        for _ in 0..2 {
            read_reports(&*ring, |report| read.push(report));
        }
        let told = program.join().unwrap();
        read_reports(&*ring, |report| read.push(report));
        assert!(
            told >= 2 && read.iter().copied().eq((1..=told).map(|number| [number; 2])),
            "{read:?} of {told}"
        );
    });
}

/// The gateway opens a socket and sends from it while the daemon lists sockets, twice: from then on the program knows. One
/// that was closed is forgotten.
#[test]
fn a_port_that_was_sent_from_is_held() {
    const PORT: u64 = 1 << 5;
    const CLOSED: u64 = 1 << 6;
    struct Gateway {
        held: HeldWords<Explored>,
        is_open: AtomicBool,
    }
    in_every_order("the gateway's packets and the daemon's lists", || {
        let words = || Explored(AtomicU64::new(CLOSED));
        let gateway = Arc::new(Gateway {
            held: HeldWords { listed: words(), sent: words() },
            is_open: AtomicBool::new(false),
        });
        let sender = {
            let gateway = Arc::clone(&gateway);
            thread::spawn(move || {
                // A swap, as in the kernel, whose tables have locks.
                gateway.is_open.swap(true, AcqRel);
                for _ in 0..2 {
                    gateway.held.mark(PORT);
                    assert!(gateway.held.has(PORT));
                }
            })
        };
        for _ in 0..2 {
            gateway.held.begin();
            let is_open = gateway.is_open.fetch_or(false, AcqRel);
            gateway.held.renew(if is_open { PORT } else { 0 });
        }
        sender.join().unwrap();
        assert!(gateway.held.has(PORT) && !gateway.held.has(CLOSED));
        gateway.held.begin();
        assert!(gateway.held.has(PORT), "while it is listed anew");
    });
}
