//! Mappings (RFC 4787 section 4): an inside endpoint's external endpoint. A mapping owns the
//! external port; sessions hold the mapping.

use crate::hash::HashMap;
use std::rc::Rc;

use nat_common::wire;

use crate::config::Mapping as Behaviour;
use crate::datapath::{Claims, Endpoint};

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

/// External side of a mapping that owns its port.
type External = (u8, u32, u16);

/// All mappings.
#[derive(Default)]
pub struct MappingTable {
    slots: Vec<Option<Mapping>>,
    free: Vec<u32>,
    by_inside: HashMap<MappingKey, u32>,
    by_external: HashMap<External, u32>,
    /// How many sessions a mapping has with a remote address: what address-dependent filtering asks.
    contacts: HashMap<(u32, u32), u32>,
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
}

impl MappingTable {
    /// Lets the program see which endpoints have a mapping.
    pub fn share(&mut self, claims: Rc<Claims>) {
        self.claims = Some(claims);
    }

    /// What the program has made of an endpoint is known.
    pub fn settle(&self, endpoint: Endpoint) {
        if let Some(claims) = &self.claims {
            claims.settle(endpoint);
        }
    }

    /// The mapping an inside endpoint has.
    pub fn find(&self, key: &MappingKey) -> Option<u32> {
        self.by_inside.get(key).copied()
    }

    /// The mapping that owns an external endpoint.
    pub fn find_external(&self, protocol: u8, address: u32, port: u16) -> Option<u32> {
        self.by_external.get(&(protocol, address, port)).copied()
    }

    /// The mapping in a slot.
    pub fn get(&self, slot: u32) -> Option<&Mapping> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// Mappings there are.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a mapping in.
    pub fn insert(&mut self, mapping: Mapping) -> u32 {
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(mapping);
            slot
        } else {
            self.slots.push(Some(mapping));
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        };
        self.by_inside.insert(mapping.key, slot);
        if let Some(claims) = self.claims.as_ref().filter(|_| is_claimed(&mapping)) {
            claims.count(mapping.endpoint());
        }
        if !mapping.shared {
            self.by_external.insert((mapping.key.protocol, mapping.external, mapping.external_port), slot);
        }
        slot
    }

    /// A mapping is a rule's from now on.
    pub fn set_rule(&mut self, slot: u32, rule: u16) {
        if let Some(mapping) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
            mapping.rule = rule;
        }
    }

    /// A session to `remote` holds the mapping.
    pub fn hold(&mut self, slot: u32, remote: u32) {
        if let Some(mapping) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) {
            mapping.sessions += 1;
            *self.contacts.entry((slot, remote)).or_default() += 1;
        }
    }

    /// A session to `remote` lets go. Returns the mapping if it is over: its port is the
    /// caller's to give back.
    pub fn release(&mut self, slot: u32, remote: u32) -> Option<Mapping> {
        if let std::collections::hash_map::Entry::Occupied(mut count) = self.contacts.entry((slot, remote)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        let mapping = self.slots.get_mut(slot as usize)?.as_mut()?;
        mapping.sessions = mapping.sessions.saturating_sub(1);
        if mapping.sessions > 0 || mapping.permanent {
            return None;
        }
        self.remove(slot)
    }

    /// Takes a mapping out, whoever holds it.
    pub fn remove(&mut self, slot: u32) -> Option<Mapping> {
        let mapping = self.slots.get_mut(slot as usize)?.take()?;
        if self.by_inside.get(&mapping.key) == Some(&slot) {
            self.by_inside.remove(&mapping.key);
        }
        let external = (mapping.key.protocol, mapping.external, mapping.external_port);
        if !mapping.shared && self.by_external.get(&external) == Some(&slot) {
            self.by_external.remove(&external);
        }
        self.free.push(slot);
        if let Some(claims) = self.claims.as_ref().filter(|_| is_claimed(&mapping)) {
            claims.uncount(mapping.endpoint());
        }
        Some(mapping)
    }

    /// Whether the mapping has a session with a remote address.
    pub fn has_contact(&self, slot: u32, remote: u32) -> bool {
        self.contacts.contains_key(&(slot, remote))
    }

    /// Every mapping with its slot.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Mapping)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(slot, mapping)| Some((u32::try_from(slot).ok()?, mapping.as_ref()?)))
    }
}

/// Whether the program must know of a mapping: it makes none of what others share, or of protocols without ports.
fn is_claimed(mapping: &Mapping) -> bool {
    !mapping.shared && matches!(mapping.key.protocol, wire::TCP | wire::UDP)
}
