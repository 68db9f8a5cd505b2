//! What the daemon lets the program decide by itself: to open a plain session from inside to outside.
//!
//! The daemon stays the one who owns ports, mappings and slots: it grants a host a rule's external address once it
//! has judged a packet of that host, lends slots of the session table, and shares who has which port. The program
//! claims each of them with one atomic operation, and reports what it opened; what it cannot claim goes up as before.
//!
//! All words claimed have 64 bits: the program's processor has no atomic operations on shorter ones before v3.

#[cfg(target_has_atomic = "64")]
use core::sync::atomic::Ordering::{AcqRel, Acquire};

use crate::table::{self, Secret};

/// Key of the table of grants.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GrantKey {
    /// Inside host, network byte order.
    pub address: u32,
    /// Position of the snat rule.
    pub rule: u32,
}

/// What an inside host's packets become under a rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Holds while this is [`crate::abi::Settings::epoch`].
    pub epoch: u32,
    /// The interface the host is behind.
    pub ingress: u32,
    /// The interface that it holds for.
    pub egress: u32,
    /// The neighbour that it holds for, network byte order.
    pub gateway: u32,
    /// The external address, network byte order.
    pub external: u32,
    /// The external ports, host byte order.
    pub first_port: u16,
    /// The last of them.
    pub last_port: u16,
    /// Which table tells the ports taken: of TCP, of UDP. 0: none is shared.
    pub tables: [u16; 2],
    /// Next hops of both directions.
    pub next_hops: [u16; 2],
    /// [`Grant::ABSENT`], or 0.
    pub flags: u32,
}

impl Grant {
    /// No interface has the external address: no socket can be bound to it.
    pub const ABSENT: u32 = 1;
}

const _: () = assert!(size_of::<GrantKey>() == 8);
const _: () = assert!(size_of::<Grant>() == 36);

/// Hosts that can have grants.
pub const GRANTS: u32 = 65_536;

/// Ports of one external address and protocol, a bit each.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TakenPorts {
    /// In use, resting, reserved, or in no rule's range.
    pub taken: [u64; 1024],
    /// Resting: its last holder may have it back, which the daemon knows.
    pub resting: [u64; 1024],
    /// Not 0: all are taken, the daemon says. Cleared by it with the first that is free again.
    pub full: u64,
}

/// Tables of taken ports; number 0 is none.
pub const PORT_TABLES: u32 = 256;

/// Slots that a CPU has been lent at most; a power of two.
pub const LENT: u32 = 4096;

/// A destination's way, as the routing table told a CPU's program last. What it would tell now is the same as long as
/// the epoch is, if the destination is all that counts ([`crate::abi::Settings::by_destination`]).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KnownWay {
    /// Destination, network byte order.
    pub destination: u32,
    /// [`crate::abi::Settings::epoch`] at that time.
    pub epoch: u32,
    /// The interface that the packet had come in by.
    pub ingress: u32,
    /// The interface that it left by.
    pub egress: u32,
    /// The neighbour that it was sent to, network byte order.
    pub gateway: u32,
    /// When that was, in ticks (see [`crate::activity::TICK_SHIFT`]).
    pub tick: u32,
}

impl KnownWay {
    /// The place of a destination among a CPU's ways.
    #[inline(always)]
    #[must_use]
    pub const fn place(destination: u32) -> u32 {
        destination.wrapping_mul(0x9e37_79b1) >> (32 - KNOWN_BITS)
    }
}

/// Ticks that a way is believed for, should a change of it ever be missed.
pub const KNOWN_FOR: u32 = 4;
/// Destinations whose ways a CPU's program remembers, as a power of two.
pub const KNOWN_BITS: u32 = 8;
/// See [`KNOWN_BITS`].
pub const KNOWN: u32 = 1 << KNOWN_BITS;

/// The first rule for what comes from inside with these addresses, and its grant, as a CPU's program found them last. It
/// would find the same as long as generation and epoch are: what changes before the epoch does is believed for
/// [`KnownRule::HOLDS_FOR`] at most.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct KnownRule {
    /// Source, network byte order.
    pub source: u32,
    /// Destination, network byte order.
    pub destination: u32,
    /// [`crate::abi::Settings::generation`] at that time.
    pub generation: u32,
    /// When that was, in ticks (see [`crate::activity::TICK_SHIFT`]).
    pub tick: u32,
    /// Position of the rule.
    pub rule: u16,
    /// IP protocol.
    pub protocol: u16,
    /// What the host was granted under it. It holds as long as its epoch is the one in force.
    pub grant: Grant,
    /// Fills the line.
    pub pad: [u32; 2],
}

const _: () = assert!(size_of::<KnownRule>() == 64);

impl KnownRule {
    /// Ticks that it is believed for.
    pub const HOLDS_FOR: u32 = KNOWN_FOR;

    /// The place of a pair of addresses among a CPU's rules.
    #[inline(always)]
    #[must_use]
    pub const fn place(source: u32, destination: u32) -> u32 {
        (source ^ destination.rotate_left(16)).wrapping_mul(0x9e37_79b1) >> (32 - RULES_BITS)
    }
}

/// Pairs of addresses whose rule a CPU's program remembers, as a power of two.
pub const RULES_BITS: u32 = 9;
/// See [`RULES_BITS`].
pub const RULES: u32 = 1 << RULES_BITS;

/// What a CPU's program works with. Slots lent to it: a ring, which it empties and the daemon fills. What it opened: a
/// ring, which it fills and the daemon empties.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct LentSlots {
    /// Slots that the program has taken so far.
    pub taken: u64,
    /// Sessions that it has reported so far.
    pub reported: u64,
    /// In which tick the CPU's program has refused packets for want of a port last, and how many of them.
    pub refused_in: u64,
    /// See [`LentSlots::refused_in`].
    pub refused: u64,
    /// Fills the line.
    pub pad: [u64; 4],
    /// Reports that the daemon has read so far.
    pub read: u64,
    /// Fills the line, which is the daemon's to write.
    pub pad_of_daemon: [u64; 7],
    /// Slots plus one, at the place of their number of order modulo [`LENT`]; 0 where there is none.
    pub slots: [u64; LENT as usize],
    /// [`crate::report::Report`]s, at the place of their number of order modulo [`LENT`].
    pub reports: [[u64; 2]; LENT as usize],
    /// Ways, each at its destination's place.
    pub ways: [KnownWay; KNOWN as usize],
    /// Rules, each at its addresses' place.
    pub rules: [KnownRule; RULES as usize],
}

/// Packets that a CPU's program leaves to the daemon in a tick though there is no port for them: it tells their senders,
/// as many as it may (RFC 5508 REQ-10f), and looks whether ports have rested long enough.
pub const REFUSALS_TOLD: u64 = 16;

/// CPUs that can be lent slots.
pub const CPUS: u32 = 256;

/// Words in which inside endpoints are claimed, 32 cells each.
pub const CELL_WORDS: u32 = 1 << 19;

/// The cell of an inside endpoint: two bits, [`TAKEN`] and [`PENDING`]. An endpoint whose cell is 0 has no mapping, so
/// that the program may make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Its word.
    pub word: u32,
    /// How far its bits are shifted there.
    pub shift: u32,
}

/// Bit of a cell: the program is making a mapping, and has not told the daemon.
pub const PENDING: u64 = 1;
/// Bit of a cell: there are mappings of endpoints that fall here. How many the daemon knows.
pub const TAKEN: u64 = 2;

/// A word that program and daemon share, and write by atomic operations alone: each has its own kind.
pub trait Word {
    /// What it holds.
    fn load(&self) -> u64;
    /// Sets bits; what it held.
    fn set(&self, bits: u64) -> u64;
    /// Keeps these bits only.
    fn keep(&self, bits: u64);
    /// Stores another value if it holds the expected one. Whether it did.
    fn exchange(&self, expected: u64, value: u64) -> bool;
}

impl<W: Word> Word for &W {
    #[inline(always)]
    fn load(&self) -> u64 {
        (*self).load()
    }

    #[inline(always)]
    fn set(&self, bits: u64) -> u64 {
        (*self).set(bits)
    }

    #[inline(always)]
    fn keep(&self, bits: u64) {
        (*self).keep(bits);
    }

    #[inline(always)]
    fn exchange(&self, expected: u64, value: u64) -> bool {
        (*self).exchange(expected, value)
    }
}

#[cfg(target_has_atomic = "64")]
impl Word for core::sync::atomic::AtomicU64 {
    fn load(&self) -> u64 {
        self.load(Acquire)
    }

    fn set(&self, bits: u64) -> u64 {
        self.fetch_or(bits, AcqRel)
    }

    fn keep(&self, bits: u64) {
        self.fetch_and(bits, AcqRel);
    }

    fn exchange(&self, expected: u64, value: u64) -> bool {
        self.compare_exchange(expected, value, AcqRel, Acquire).is_ok()
    }
}

/// The ring of what a CPU has been lent, as its program and the daemon see it.
pub trait Ring {
    /// Its places, a power of two.
    const PLACES: u32;
    /// Puts a value into a place; what was there. One atomic operation.
    fn swap(&self, place: u32, value: u64) -> u64;
    /// Slots that the program has taken so far.
    fn taken(&self) -> u64;
    /// The program's: says so.
    fn set_taken(&self, taken: u64);
}

/// The program's: takes the next slot that this CPU has been lent.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a place, and a slot plus one")]
pub fn take_slot<R: Ring>(ring: &R) -> Option<u32> {
    let taken = ring.taken();
    let slot = ring.swap(taken as u32 & (R::PLACES - 1), 0);
    if slot == 0 {
        return None;
    }
    ring.set_taken(taken.wrapping_add(1));
    Some(slot as u32 - 1)
}

/// What the daemon knows of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loan {
    /// Slots given so far.
    given: u64,
}

impl Loan {
    /// Slots that the program has left.
    pub fn left(&mut self, ring: &impl Ring) -> u64 {
        let taken = ring.taken();
        // Who was just taking one while the others were taken back is ahead.
        self.given = self.given.max(taken);
        self.given - taken
    }

    /// Whether any was ever lent.
    #[must_use]
    pub const fn is_new(self) -> bool {
        self.given == 0
    }

    /// Lends one more slot than are [left](Loan::left), which must be fewer than there are places. A slot that comes
    /// back had been left in that place by who went ahead, and is lent to nobody any more.
    #[expect(clippy::cast_possible_truncation, reason = "a place, and a slot plus one")]
    pub fn lend<R: Ring>(&mut self, ring: &R, slot: u32) -> Option<u32> {
        let before = ring.swap(self.given as u32 & (R::PLACES - 1), u64::from(slot) + 1);
        self.given += 1;
        (before as u32).checked_sub(1)
    }

    /// Takes back what the program has not taken.
    #[expect(clippy::cast_possible_truncation, reason = "a slot plus one")]
    pub fn revoke<R: Ring>(&mut self, ring: &R, mut each: impl FnMut(u32)) {
        for place in 0..R::PLACES {
            if let Some(slot) = (ring.swap(place, 0) as u32).checked_sub(1) {
                each(slot);
            }
        }
        self.given = ring.taken();
    }
}

/// Takes a port of a word, the program or the daemon: `false` if somebody has it.
#[inline(always)]
pub fn take_port(word: &impl Word, bit: u64) -> bool {
    // Most that are taken are not even tried.
    word.load() & bit == 0 && word.set(bit) & bit == 0
}

impl Cell {
    /// The program's: whether it may make a mapping of an endpoint of this cell. Then the cell is pending until the
    /// daemon has [settled](Cell::settle) it, or the program [gives it up](Cell::give_up).
    #[inline(always)]
    pub fn claim(self, word: &impl Word) -> bool {
        let before = self.bits(word.set(PENDING << self.shift));
        if before == TAKEN {
            // It has a mapping, or seems to: the daemon knows. Whoever else has set the bit clears it.
            self.give_up(word);
        }
        before == 0
    }

    /// The program's: whether no endpoint of this cell has a mapping, or is about to.
    #[inline(always)]
    pub fn is_free(self, word: &impl Word) -> bool {
        self.bits(word.load()) == 0
    }

    /// The program's: it makes none after all.
    #[inline(always)]
    pub fn give_up(self, word: &impl Word) {
        word.keep(!(PENDING << self.shift));
    }

    /// The daemon's: an endpoint has a mapping more, or is about to. `more` are those beside the cell's first.
    pub fn count(self, word: &impl Word, more: &mut u32) {
        if self.bits(word.set(TAKEN << self.shift)) & TAKEN != 0 {
            *more += 1;
        }
    }

    /// The daemon's: an endpoint has a mapping less.
    pub fn uncount(self, word: &impl Word, more: &mut u32) {
        match more.checked_sub(1) {
            Some(less) => *more = less,
            None => word.keep(!(TAKEN << self.shift)),
        }
    }

    /// The daemon's: the mapping that the program has made has come to nothing.
    pub fn settle(self, word: &impl Word) {
        self.give_up(word);
    }

    /// The daemon's: the mapping that the program has made is known, and counted: [`Cell::count`] and [`Cell::settle`].
    pub fn adopt(self, word: &impl Word, more: &mut u32) {
        let before = word.load();
        let after = before ^ (PENDING | TAKEN) << self.shift;
        if self.bits(before) == PENDING && word.exchange(before, after) {
            return;
        }
        self.count(word, more);
        self.settle(word);
    }

    /// The daemon's: whether the program is making a mapping, and has not told.
    pub fn is_pending(self, word: &impl Word) -> bool {
        self.bits(word.load()) & PENDING != 0
    }

    /// The cell of an endpoint; address and port in network byte order. Neighbouring ports of a host share a word,
    /// since a host often takes one port after the other.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits")]
    pub const fn of(protocol: u8, address: u32, port: u16, secret: &Secret) -> Self {
        let port = u16::from_be(port) as u32;
        let of_word = (port >> 5 << 8) as u64 | protocol as u64;
        let word = table::hash([address as u64, of_word], secret) as u32;
        Self { word: word & (CELL_WORDS - 1), shift: (port & 31) * 2 }
    }

    /// Its bits in its word.
    #[inline(always)]
    #[must_use]
    const fn bits(self, word: u64) -> u64 {
        (word >> self.shift) & (PENDING | TAKEN)
    }
}
