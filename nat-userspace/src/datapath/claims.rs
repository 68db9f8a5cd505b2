//! What program and daemon claim from each other: ports and inside endpoints, as memory, by atomic operations. See
//! [`nat_common::delegate`].

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use nat_common::delegate::{CELL_WORDS, Cell, PORT_TABLES, TakenPorts, take_port};
use nat_common::table::Secret;

use super::Mapped;
use crate::hash::HashMap;

/// Ports and endpoints that are taken.
pub struct Claims {
    cells: Mapped<u64>,
    /// How many mappings beside the first there are in a cell, where there are.
    crowded: RefCell<HashMap<Cell, u32>>,
    ports: Mapped<TakenPorts>,
    secret: Secret,
    tables: RefCell<Tables>,
}

/// Numbers of tables of ports.
struct Tables {
    free: Vec<u16>,
    /// Those that grants in force may still name.
    retired: Vec<u16>,
}

/// Where a map has no such word, all is taken.
static NOWHERE: AtomicU64 = AtomicU64::new(u64::MAX);

/// An inside endpoint: protocol, and address and port in network byte order.
pub type Endpoint = (u8, u32, u16);

impl Claims {
    /// Nothing is taken.
    pub(super) fn new(cells: Mapped<u64>, ports: Mapped<TakenPorts>, secret: Secret) -> Self {
        let most = u16::try_from(PORT_TABLES).unwrap_or(u16::MAX);
        for word in 0..CELL_WORDS {
            if cells.load(word) != 0 {
                cells.store(word, 0);
            }
        }
        let tables = Tables { free: (1..most).rev().collect(), retired: Vec::new() };
        Self { cells, crowded: RefCell::default(), ports, secret, tables: RefCell::new(tables) }
    }

    /// An endpoint has a mapping more.
    pub fn count(&self, endpoint: Endpoint) {
        let (cell, word) = self.cell(endpoint);
        let mut more = 0;
        cell.count(word, &mut more);
        self.crowd(cell, more);
    }

    fn crowd(&self, cell: Cell, more: u32) {
        if more > 0 {
            *self.crowded.borrow_mut().entry(cell).or_default() += more;
        }
    }

    /// An endpoint has a mapping less.
    pub fn uncount(&self, endpoint: Endpoint) {
        let (cell, word) = self.cell(endpoint);
        match self.crowded.borrow_mut().entry(cell) {
            Entry::Vacant(_) => cell.uncount(word, &mut 0),
            Entry::Occupied(mut more) => {
                cell.uncount(word, more.get_mut());
                if *more.get() == 0 {
                    more.remove();
                }
            }
        }
    }

    /// An endpoint has a mapping more, which the program has made.
    pub fn adopt(&self, endpoint: Endpoint) {
        let (cell, word) = self.cell(endpoint);
        let mut more = 0;
        cell.adopt(word, &mut more);
        self.crowd(cell, more);
    }

    /// Keeps the program from making a mapping of an endpoint, as long as the answer lives. It may have begun before:
    /// see [`Claims::is_pending`].
    pub fn hold(self: &Rc<Self>, endpoint: Endpoint) -> Held {
        self.count(endpoint);
        Held { claims: Rc::clone(self), endpoint }
    }

    /// What the program has begun to make of an endpoint has come to nothing.
    pub fn settle(&self, endpoint: Endpoint) {
        let (cell, word) = self.cell(endpoint);
        cell.settle(word);
    }

    /// Whether the program is making a mapping of an endpoint, and has not told.
    pub fn is_pending(&self, endpoint: Endpoint) -> bool {
        let (cell, word) = self.cell(endpoint);
        cell.is_pending(word)
    }

    fn cell(&self, (protocol, address, port): Endpoint) -> (Cell, &AtomicU64) {
        let cell = Cell::of(protocol, address, port, &self.secret);
        (cell, self.cells.atomic(cell.word).unwrap_or(&NOWHERE))
    }

    /// A table for the ports of an external address and protocol, all of them taken. None if all tables are.
    pub fn table(self: &Rc<Self>) -> Option<SharedPorts> {
        let number = self.tables.borrow_mut().free.pop()?;
        let shared = SharedPorts { claims: Rc::clone(self), number };
        (0..1024).for_each(|word| shared.word(word).store(u64::MAX, Ordering::Release));
        (1024..2048).for_each(|word| shared.word(word).store(0, Ordering::Release));
        shared.set_full(false);
        Some(shared)
    }

    /// No grant in force names a table that was given up.
    pub fn renew(&self) {
        let mut tables = self.tables.borrow_mut();
        let mut retired = std::mem::take(&mut tables.retired);
        tables.free.append(&mut retired);
    }
}

/// An endpoint that the program makes no mapping of.
pub struct Held {
    claims: Rc<Claims>,
    endpoint: Endpoint,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.claims.uncount(self.endpoint);
    }
}

/// A table of taken ports that the program knows, too.
pub struct SharedPorts {
    claims: Rc<Claims>,
    number: u16,
}

impl SharedPorts {
    /// Its number, for grants.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Tells which ports are free, a bit each, before any grant names the table.
    pub fn begin(&self, free: &[u64; 1024]) {
        for (word, free) in (0..).zip(free) {
            self.word(word).store(!free, Ordering::Release);
        }
    }

    /// Takes a port (host byte order). `false` if it is taken: by the program, where the daemon thinks it free.
    pub fn take(&self, port: u16) -> bool {
        take_port(self.word(port / 64), 1 << (port % 64))
    }

    /// Gives a port back.
    pub fn give_back(&self, port: u16) {
        self.rest(port, false);
        self.word(port / 64).fetch_and(!(1 << (port % 64)), Ordering::AcqRel);
    }

    /// Says of a port that is taken whether it rests.
    pub fn rest(&self, port: u16, rests: bool) {
        let (word, bit) = (self.word(1024 + port / 64), 1 << (port % 64));
        if rests {
            word.fetch_or(bit, Ordering::AcqRel);
        } else {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// Says whether all ports are taken: then the program refuses packets that would need one.
    pub fn set_full(&self, is_full: bool) {
        if let Some(table) = self.claims.ports.at(self.number.into()) {
            // SAFETY: a live, aligned word, which nobody else writes; volatile, because the program reads it.
            unsafe { (&raw mut (*table.as_ptr()).full).write_volatile(is_full.into()) };
        }
    }

    fn word(&self, word: u16) -> &AtomicU64 {
        let Some(table) = self.claims.ports.at(self.number.into()) else { return &NOWHERE };
        // SAFETY: one of the 2,048 aligned words of a live value, which everybody writes by atomic operations.
        unsafe { AtomicU64::from_ptr(table.as_ptr().cast::<u64>().add(usize::from(word % 2048))) }
    }
}

impl Drop for SharedPorts {
    fn drop(&mut self) {
        self.claims.tables.borrow_mut().retired.push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::mapped::memory;
    use super::*;

    const ENDPOINT: Endpoint = (17, 0x0a01_a8c0, 0x409c);

    fn claims() -> Rc<Claims> {
        Rc::new(Claims::new(memory(CELL_WORDS), memory(PORT_TABLES), Secret([1, 2, 3, 4])))
    }

    /// The program's claim: whether it may make a mapping.
    fn claim_as_program(claims: &Claims, endpoint: Endpoint) -> bool {
        let (cell, word) = claims.cell(endpoint);
        cell.claim(word)
    }

    #[test]
    fn only_one_makes_a_mapping() {
        let claims = claims();
        let held = claims.hold(ENDPOINT);
        assert!(!claim_as_program(&claims, ENDPOINT), "the daemon is at it");
        assert!(!claims.is_pending(ENDPOINT));
        drop(held);
        assert!(claim_as_program(&claims, ENDPOINT));
        assert!(!claim_as_program(&claims, ENDPOINT));
        let held = claims.hold(ENDPOINT);
        assert!(claims.is_pending(ENDPOINT), "the daemon sees that it has to wait");
        claims.adopt(ENDPOINT);
        assert!(!claims.is_pending(ENDPOINT));
        drop(held);
        assert!(!claim_as_program(&claims, ENDPOINT));
        claims.uncount(ENDPOINT);
        assert!(claim_as_program(&claims, ENDPOINT));
    }

    #[test]
    fn a_cell_is_taken_as_long_as_any_of_its_mappings_is_there() {
        let claims = claims();
        for mappings in [1, 2, 200] {
            for _ in 0..mappings {
                claims.count(ENDPOINT);
            }
            for _ in 0..mappings {
                assert!(!claim_as_program(&claims, ENDPOINT), "of {mappings} one is there");
                claims.uncount(ENDPOINT);
            }
            assert!(claim_as_program(&claims, ENDPOINT));
            claims.settle(ENDPOINT);
        }
        assert!(claims.crowded.borrow().is_empty());
    }

    #[test]
    fn a_table_given_up_is_given_again_once_no_grant_names_it() {
        let claims = claims();
        let tables: Vec<SharedPorts> = std::iter::from_fn(|| claims.table()).collect();
        assert_eq!(tables.len() + 1, PORT_TABLES as usize);
        assert!(!tables[0].take(80), "all are taken at first");
        tables[0].give_back(80);
        assert!(tables[0].take(80) && !tables[0].take(80));
        drop(tables);
        assert!(claims.table().is_none());
        claims.renew();
        assert!(claims.table().is_some());
    }
}
