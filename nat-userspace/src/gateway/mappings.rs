//! Mappings (RFC 4787 section 4): an inside endpoint's external endpoint. A mapping owns the
//! external port; sessions hold the mapping.

use std::rc::Rc;

use hashbrown::HashTable;
use nat_common::wire;

use super::owners::{External, Owners};
use super::slab::Slab;
use crate::config::Mapping as Behaviour;
use crate::datapath::{Claims, Endpoint};
use crate::hash::HashMap;

/// What shares a mapping. How much of the remote belongs to it is the rule's mapping behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingKey {
    /// IP protocol.
    pub protocol: u8,
    /// Inside address, network byte order.
    pub address: u32,
    /// Inside port or identifier, network byte order.
    pub port: u16,
    /// Remote address where the behaviour depends on it, else 0.
    pub remote: u32,
    /// Remote port where the behaviour depends on it, else 0.
    pub remote_port: u16,
    /// The pool: two rules with different external addresses do not share mappings.
    pub pool: u32,
}

/// A mapping.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// What shares it.
    pub key: MappingKey,
    /// External address, network byte order.
    pub external: u32,
    /// External port or identifier, network byte order.
    pub external_port: u16,
    /// Sessions that hold it.
    pub sessions: u32,
    /// Position of its rule.
    pub rule: u16,
    /// A forward's: stays without sessions.
    pub permanent: bool,
    /// Its port is shared with other mappings to other remotes (endpoint-dependent).
    pub shared: bool,
}

/// A mapping, and whom it has sessions with.
struct Held {
    mapping: Mapping,
    /// The remote address of its first session, and how many there are with that. Most mappings have no other.
    first: (u32, u32),
}

/// Numbers by what they stand for, which is kept elsewhere: four bytes of a hash and the number.
#[derive(Default)]
struct Numbers(HashTable<(u32, u32)>);

/// All mappings.
#[derive(Default)]
pub struct MappingTable {
    slots: Slab<Held>,
    by_inside: Numbers,
    by_external: Owners,
    /// How many sessions a mapping has with remote addresses beside its first one: what address-dependent filtering
    /// asks.
    contacts: HashMap<(u32, u32), u32>,
    hasher: ahash::RandomState,
    count: usize,
    /// Where the program sees which endpoints have one.
    claims: Option<Rc<Claims>>,
}

impl MappingKey {
    /// The key under a rule's behaviour.
    pub fn new(
        behaviour: Behaviour,
        protocol: u8,
        inside: (u32, u16),
        remote: (u32, u16),
        pool: u32,
    ) -> Self {
        let (remote, remote_port) = match behaviour {
            Behaviour::EndpointIndependent => (0, 0),
            Behaviour::AddressDependent => (remote.0, 0),
            Behaviour::EndpointDependent => remote,
        };
        Self { protocol, address: inside.0, port: inside.1, remote, remote_port, pool }
    }
}

impl Mapping {
    /// The inside endpoint.
    pub fn endpoint(&self) -> Endpoint {
        (self.key.protocol, self.key.address, self.key.port)
    }

    fn external(&self) -> External {
        (self.key.protocol, self.external, self.external_port)
    }
}

impl Numbers {
    /// A number with this hash for which `is_meant` holds.
    fn find(&self, hash: u32, is_meant: impl Fn(u32) -> bool) -> Option<u32> {
        let is_it = |&(other, number): &(u32, u32)| other == hash && is_meant(number);
        Some(self.0.find(spread(hash), is_it)?.1)
    }

    /// Puts a number in; in the place of one for which `is_meant` holds, if there is one.
    fn insert(&mut self, hash: u32, number: u32, is_meant: impl Fn(u32) -> bool) {
        let alike = |&(other, number): &(u32, u32)| other == hash && is_meant(number);
        match self.0.entry(spread(hash), alike, |entry| spread(entry.0)) {
            hashbrown::hash_table::Entry::Occupied(mut entry) => entry.get_mut().1 = number,
            hashbrown::hash_table::Entry::Vacant(entry) => drop(entry.insert((hash, number))),
        }
    }

    /// Takes a number out, if it is in.
    fn remove(&mut self, hash: u32, number: u32) {
        if let Ok(entry) = self.0.find_entry(spread(hash), |&entry| entry == (hash, number)) {
            entry.remove();
        }
    }
}

/// As many bits as a table asks for, from those that are kept.
const fn spread(hash: u32) -> u64 {
    (hash as u64) << 32 | hash as u64
}

impl MappingTable {
    /// Lets the program see which endpoints have a mapping.
    pub fn share(&mut self, claims: Rc<Claims>) {
        self.claims = Some(claims);
    }

    /// What the program has begun to make of an endpoint has come to nothing.
    pub fn settle(&self, endpoint: Endpoint) {
        if let Some(claims) = &self.claims {
            claims.settle(endpoint);
        }
    }

    /// The mapping an inside endpoint has.
    pub fn find(&self, key: &MappingKey) -> Option<u32> {
        self.by_inside.find(self.hash(key), |slot| self.get(slot).is_some_and(|mapping| mapping.key == *key))
    }

    /// The mapping that owns an external endpoint.
    pub fn find_external(&self, protocol: u8, address: u32, port: u16) -> Option<u32> {
        self.by_external.get((protocol, address, port))
    }

    /// The mapping in a slot.
    pub fn get(&self, slot: u32) -> Option<&Mapping> {
        self.slots.get(slot).map(|held| &held.mapping)
    }

    /// Mappings there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Puts a mapping in.
    pub fn insert(&mut self, mapping: Mapping) -> u32 {
        if let Some(claims) = self.claims.as_ref().filter(|_| is_claimed(&mapping)) {
            claims.count(mapping.endpoint());
        }
        self.put(mapping)
    }

    /// Puts in a mapping that the program has made.
    pub fn adopt(&mut self, mapping: Mapping) -> u32 {
        if let Some(claims) = &self.claims {
            claims.adopt(mapping.endpoint());
        }
        self.put(mapping)
    }

    /// Asks memory for what putting a mapping in will need.
    pub fn expect(&self, mapping: &Mapping) {
        if let Some(claims) = &self.claims {
            let _ = claims.is_pending(mapping.endpoint());
        }
        let _ = self.by_external.get(mapping.external());
    }

    fn put(&mut self, mapping: Mapping) -> u32 {
        let Some(slot) = self.slots.reserve(u32::MAX) else { return u32::MAX };
        let inside = self.hash(&mapping.key);
        let slots = &self.slots;
        let is_its = |slot| slots.get(slot).is_some_and(|held: &Held| held.mapping.key == mapping.key);
        self.by_inside.insert(inside, slot, is_its);
        if !mapping.shared {
            self.by_external.set(mapping.external(), slot);
        }
        self.slots.put(slot, Held { mapping, first: (0, 0) });
        self.count += 1;
        slot
    }

    /// A mapping is a rule's from now on.
    pub fn set_rule(&mut self, slot: u32, rule: u16) {
        if let Some(held) = self.slots.get_mut(slot) {
            held.mapping.rule = rule;
        }
    }

    /// A session to `remote` holds the mapping.
    pub fn hold(&mut self, slot: u32, remote: u32) {
        let Some(held) = self.slots.get_mut(slot) else { return };
        if held.mapping.sessions == 0 {
            held.first = (remote, 0);
        }
        held.mapping.sessions += 1;
        if held.first.0 == remote {
            held.first.1 += 1;
        } else {
            *self.contacts.entry((slot, remote)).or_default() += 1;
        }
    }

    /// A session to `remote` lets go. Returns the mapping if it is over: its port is the
    /// caller's to give back.
    pub fn release(&mut self, slot: u32, remote: u32) -> Option<Mapping> {
        let held = self.slots.get_mut(slot)?;
        if held.first.0 == remote {
            held.first.1 = held.first.1.saturating_sub(1);
        } else if let std::collections::hash_map::Entry::Occupied(mut count) =
            self.contacts.entry((slot, remote))
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        held.mapping.sessions = held.mapping.sessions.saturating_sub(1);
        if held.mapping.sessions > 0 || held.mapping.permanent {
            return None;
        }
        self.remove(slot)
    }

    /// Takes a mapping out, whoever holds it.
    pub fn remove(&mut self, slot: u32) -> Option<Mapping> {
        let mapping = self.slots.take(slot)?.mapping;
        self.by_inside.remove(self.hash(&mapping.key), slot);
        self.by_external.clear(mapping.external(), slot);
        self.slots.give_back([slot]);
        self.count -= 1;
        if let Some(claims) = self.claims.as_ref().filter(|_| is_claimed(&mapping)) {
            claims.uncount(mapping.endpoint());
        }
        Some(mapping)
    }

    /// Whether the mapping has a session with a remote address.
    pub fn has_contact(&self, slot: u32, remote: u32) -> bool {
        self.slots.get(slot).is_some_and(|held| held.first.0 == remote && held.first.1 > 0)
            || self.contacts.contains_key(&(slot, remote))
    }

    /// Every mapping with its slot.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Mapping)> {
        self.slots.iter().map(|(slot, held)| (slot, &held.mapping))
    }

    #[expect(clippy::cast_possible_truncation, reason = "half of a hash")]
    fn hash(&self, value: &impl std::hash::Hash) -> u32 {
        self.hasher.hash_one(value) as u32
    }
}

/// Whether the program must know of a mapping: it makes none of what others share, or of protocols without ports.
fn is_claimed(mapping: &Mapping) -> bool {
    !mapping.shared && matches!(mapping.key.protocol, wire::TCP | wire::UDP)
}
