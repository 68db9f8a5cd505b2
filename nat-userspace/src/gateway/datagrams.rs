//! Fragmented datagrams under way, and the fragments that wait for their first: bounded in all and for
//! each source, and who floods loses what is oldest of its own.

use crate::hash::HashMap;
use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use nat_common::{Realm, Reason, next_hop::NextHop};

use super::relay::Relay;

/// What the fragments of one datagram share (RFC 791), and the side they come from.
pub(super) type Key = (u32, u32, u8, u16, Realm);

/// Datagrams whose first fragment was seen and is remembered.
const DECIDED: usize = 16_384;
/// Fragments that wait in all.
pub(super) const MOST_WAITING: u32 = 8192;
const WAITING: usize = MOST_WAITING as usize;
/// Fragments that wait for one source: one flooding host leaves room for others.
const WAITING_PER_SOURCE: usize = 1024;

/// What became of a datagram's first fragment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// It went this way, with these ends and this identification.
    Send { hop: NextHop, source: u32, destination: u32, id: u16 },
    /// It went to a server as it was.
    Relay(Relay),
    /// It was the gateway's own.
    ToStack,
    /// It was dropped.
    Drop(Reason),
}

/// A fragment that waits, and the interface it came in by.
pub(super) type Waiting = (u32, Vec<u8>);

struct Datagram {
    /// What became of its first fragment, and that fragment's digest.
    decided: Option<(Verdict, u64)>,
    waiting: Vec<Waiting>,
    until: Instant,
}

/// What waits of one source.
#[derive(Default)]
struct Source {
    fragments: usize,
    /// Its datagrams in the order they were first seen; some wait no more.
    order: VecDeque<Key>,
}

/// Datagrams under way.
pub struct Datagrams {
    /// How long a datagram is remembered, and its fragments wait.
    pub(super) timeout: Duration,
    under_way: HashMap<Key, Datagram>,
    /// In the order they were decided, which is the order they are over. An identification that was used again has a
    /// later entry.
    decided: VecDeque<(Instant, Key)>,
    /// In the order they were first seen; some wait no more.
    undecided: VecDeque<(Instant, Key)>,
    waiting: usize,
    sources: HashMap<u32, Source>,
    hasher: RandomState,
}

impl Datagrams {
    /// No datagram.
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            under_way: HashMap::default(),
            decided: VecDeque::new(),
            undecided: VecDeque::new(),
            waiting: 0,
            sources: HashMap::default(),
            hasher: RandomState::new(),
        }
    }

    /// When the oldest datagram is over.
    pub fn next(&self) -> Option<Instant> {
        let fronts = [self.decided.front(), self.undecided.front()];
        fronts.into_iter().flatten().map(|&(until, _)| until).min()
    }

    /// Fragments that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// What tells a first fragment from another of the same key.
    pub(super) fn digest(&self, payload: &[u8]) -> u64 {
        self.hasher.hash_one(payload)
    }

    /// What became of a datagram's first fragment.
    pub(super) fn verdict(&self, key: &Key) -> Option<Verdict> {
        self.under_way.get(key)?.decided.map(|(verdict, _)| verdict)
    }

    /// The identification under which this very first fragment was sent before.
    pub(super) fn sent_before(&self, key: &Key, digest: u64) -> Option<u16> {
        match self.under_way.get(key)?.decided {
            Some((Verdict::Send { id, .. }, known)) if known == digest => Some(id),
            _ => None,
        }
    }

    /// Forgets datagrams that are over, and the oldest beyond the bound. Returns how many
    /// fragments had waited in vain.
    pub fn expire(&mut self, now: Instant) -> usize {
        while let Some(&(until, key)) = self.decided.front() {
            if until > now && self.decided.len() <= DECIDED {
                break;
            }
            self.decided.pop_front();
            if self.under_way.get(&key).is_some_and(|datagram| datagram.until <= until) {
                self.under_way.remove(&key);
            }
        }
        let mut lost = 0;
        while let Some(&(until, key)) = self.undecided.front() {
            if until > now {
                break;
            }
            self.undecided.pop_front();
            lost += self.give_up(&key, until);
        }
        lost
    }

    /// Keeps a fragment until its first comes. Returns how many others had to make room.
    pub(super) fn hold(&mut self, key: Key, now: Instant, ingress: u32, frame: &[u8]) -> usize {
        let mut evicted = 0;
        while self.sources.get(&key.0).is_some_and(|source| source.fragments >= WAITING_PER_SOURCE) {
            let Some(oldest) = self.sources.get_mut(&key.0).and_then(|source| source.order.pop_front())
            else {
                break;
            };
            evicted += self.give_up(&oldest, now + self.timeout);
        }
        while self.waiting >= WAITING {
            let Some((until, oldest)) = self.undecided.pop_front() else { break };
            evicted += self.give_up(&oldest, until);
        }
        let until = now + self.timeout;
        let datagram = self.under_way.entry(key).or_insert_with(|| Datagram {
            decided: None,
            waiting: Vec::new(),
            until,
        });
        let source = self.sources.entry(key.0).or_default();
        if datagram.waiting.is_empty() {
            self.undecided.push_back((until, key));
            source.order.push_back(key);
        }
        datagram.waiting.push((ingress, frame.to_vec()));
        source.fragments += 1;
        self.waiting += 1;
        self.compact(key.0);
        evicted
    }

    /// Remembers what became of a datagram's first fragment, and lets go of those that waited for it. An identification
    /// used again for another datagram follows the new first (behaviour FRG-22).
    pub(super) fn decide(&mut self, key: Key, now: Instant, verdict: Verdict, digest: u64) -> Vec<Waiting> {
        let until = now + self.timeout;
        let waiting = self.take(&key);
        self.decided.push_back((until, key));
        self.under_way.insert(key, Datagram { decided: Some((verdict, digest)), waiting: Vec::new(), until });
        waiting
    }

    /// Gives up a datagram that still waits and began to before `until` less the timeout; how many fragments that were.
    fn give_up(&mut self, key: &Key, until: Instant) -> usize {
        let is_meant = |datagram: &Datagram| datagram.decided.is_none() && datagram.until <= until;
        if !self.under_way.get(key).is_some_and(is_meant) {
            return 0;
        }
        let lost = self.take(key).len();
        self.under_way.remove(key);
        lost
    }

    /// Takes out what waits of a datagram.
    fn take(&mut self, key: &Key) -> Vec<Waiting> {
        let Some(datagram) = self.under_way.get_mut(key) else { return Vec::new() };
        let waiting = std::mem::take(&mut datagram.waiting);
        self.waiting -= waiting.len();
        if let Some(source) = self.sources.get_mut(&key.0) {
            source.fragments -= waiting.len().min(source.fragments);
            if source.fragments == 0 {
                self.sources.remove(&key.0);
            }
        }
        waiting
    }

    /// Forgets the places of datagrams that wait no more, once they are the most.
    fn compact(&mut self, source: u32) {
        let datagrams = &self.under_way;
        let waits = |key: &Key| datagrams.get(key).is_some_and(|datagram| !datagram.waiting.is_empty());
        if self.undecided.len() > 2 * WAITING {
            self.undecided.retain(|(_, key)| waits(key));
        }
        if let Some(source) = self.sources.get_mut(&source)
            && source.order.len() > 2 * WAITING_PER_SOURCE
        {
            source.order.retain(waits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: u32, id: u16) -> Key {
        (source, 9, 17, id, Realm::Inside)
    }

    /// behaviour FRG-12: the bound holds, and the newest are kept.
    #[test]
    fn a_flood_from_everywhere_evicts_the_oldest() {
        let now = Instant::now();
        let mut datagrams = Datagrams::new(Duration::from_secs(30));
        let evicted: usize =
            (0..100_000).map(|source| datagrams.hold(key(source, 1), now, 1, &[0; 60])).sum();
        assert_eq!((datagrams.waiting(), evicted), (WAITING, 100_000 - WAITING));
        assert_eq!(datagrams.decide(key(99_999, 1), now, Verdict::ToStack, 0).len(), 1);
        assert_eq!(datagrams.decide(key(0, 1), now, Verdict::ToStack, 0).len(), 0);
        assert_eq!(datagrams.expire(now + Duration::from_secs(30)), WAITING - 1);
        assert_eq!((datagrams.waiting(), datagrams.sources.len(), datagrams.under_way.len()), (0, 0, 0));
        assert_eq!(datagrams.next(), None);
    }

    /// behaviour FRG-13: one source takes nothing from another.
    #[test]
    fn a_flood_from_one_source_evicts_its_own() {
        let now = Instant::now();
        let mut datagrams = Datagrams::new(Duration::from_secs(30));
        datagrams.hold(key(7, 1), now, 1, &[1]);
        for number in 0..60_000_u16 {
            datagrams.hold(key(8, number), now, 1, &[2]);
        }
        assert_eq!(datagrams.waiting(), 1 + WAITING_PER_SOURCE);
        assert_eq!(datagrams.decide(key(7, 1), now, Verdict::ToStack, 0).len(), 1);
        assert_eq!(datagrams.decide(key(8, 59_999), now, Verdict::ToStack, 0).len(), 1);
        assert_eq!(datagrams.decide(key(8, 0), now, Verdict::ToStack, 0).len(), 0);
    }

    #[test]
    fn fragments_that_find_their_first_leave_nothing_behind() {
        let now = Instant::now();
        let mut datagrams = Datagrams::new(Duration::from_secs(2));
        for number in 0..50_000_u16 {
            datagrams.hold(key(7, number), now, 1, &[1]);
            assert_eq!(datagrams.decide(key(7, number), now, Verdict::ToStack, 0).len(), 1);
            assert!(datagrams.undecided.len() <= 2 * WAITING + 1);
            datagrams.expire(now);
        }
        assert!(datagrams.under_way.len() <= DECIDED);
        datagrams.expire(now + Duration::from_secs(2));
        assert_eq!((datagrams.under_way.len(), datagrams.sources.len(), datagrams.waiting()), (0, 0, 0));
    }
}
