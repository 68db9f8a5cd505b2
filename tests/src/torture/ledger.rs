//! What was sent and what of it arrived: every packet carries a number, so that a single one is missed.

use std::{
    collections::HashMap,
    net::SocketAddrV4,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What every numbered payload begins with.
const MAGIC: &[u8; 4] = b"tort";
/// The length of a numbered payload.
pub(super) const LENGTH: usize = 16;

/// One direction of one flow.
#[derive(Debug)]
pub(super) struct Ledger {
    /// What it is called in the report.
    pub(super) name: &'static str,
    /// What its packets carry, so that none is taken for another flow's.
    mark: u32,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    sent: u64,
    arrived: u64,
    under_way: HashMap<u64, Instant>,
    /// Where the receiver sees the sender.
    endpoint: Option<SocketAddrV4>,
    moved: u64,
}

/// A packet that did not arrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) number: u64,
    pub(super) sent: Instant,
}

impl Ledger {
    pub(super) fn new(name: &'static str, mark: u32) -> Self {
        Self { name, mark, book: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The payload of the next packet, which counts as sent from now on.
    pub(super) fn next(&self) -> [u8; LENGTH] {
        let mut book = self.book();
        let number = book.sent;
        book.sent += 1;
        book.under_way.insert(number, Instant::now());
        let mut payload = [0; LENGTH];
        payload[..4].copy_from_slice(MAGIC);
        payload[4..8].copy_from_slice(&self.mark.to_be_bytes());
        payload[8..].copy_from_slice(&number.to_be_bytes());
        payload
    }

    /// Takes note of an arrival; false if the payload is none of this flow's.
    pub(super) fn arrived(&self, payload: &[u8], from: Option<SocketAddrV4>) -> bool {
        let Some(number) = payload
            .get(..LENGTH)
            .filter(|payload| payload[..4] == MAGIC[..] && payload[4..8] == self.mark.to_be_bytes())
            .and_then(|payload| payload[8..].try_into().ok())
            .map(u64::from_be_bytes)
        else {
            return false;
        };
        let mut book = self.book();
        if book.under_way.remove(&number).is_some() {
            book.arrived += 1;
        }
        if from.is_some() && book.endpoint != from {
            // The first sight of it is no move.
            book.moved += u64::from(book.endpoint.is_some());
            book.endpoint = from;
        }
        true
    }

    /// Where the receiver sees the sender.
    pub(super) fn endpoint(&self) -> Option<SocketAddrV4> {
        self.book().endpoint
    }

    /// What has been under way for longer than `patience` is lost.
    pub(super) fn lost(&self, patience: Duration) -> Vec<Lost> {
        let mut book = self.book();
        let due: Vec<Lost> = book
            .under_way
            .iter()
            .filter(|(_, sent)| sent.elapsed() > patience)
            .map(|(&number, &sent)| Lost { number, sent })
            .collect();
        for lost in &due {
            book.under_way.remove(&lost.number);
        }
        due
    }

    /// Packets sent, packets arrived, and how often the sender's endpoint changed.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let book = self.book();
        (book.sent, book.arrived, book.moved)
    }
}
