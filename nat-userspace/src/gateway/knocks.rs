//! Hairpinned packets that the other side's filter rejects: they carry nothing across, but their
//! sender has now sent to that external address, so its own filter lets an answer in (RFC 4787
//! REQ-8 and REQ-9). Without this, two hosts under address-dependent filtering could never meet.

use crate::hash::HashMap;
use std::collections::VecDeque;
use std::time::Instant;

use nat_common::FlowKey;

use super::mappings::MappingKey;
use super::open::Refusal;
use super::world::World;
use super::{Gateway, Interface};

/// A mapping slot and the external address its host has knocked at.
type Door = (u32, u32);

/// Knocks that still count.
#[derive(Default)]
pub struct Knocks {
    until: HashMap<Door, (Instant, MappingKey)>,
    /// When each is to be looked at. Every protocol has its own timer, so this is only nearly in
    /// order: a knock may be forgotten a little late.
    due: VecDeque<(Instant, Door)>,
}

impl Knocks {
    /// When the first one is to be looked at.
    pub fn next(&self) -> Option<Instant> {
        self.due.front().map(|(due, _)| *due)
    }
}

impl Gateway {
    /// Notes that the sender of a rejected packet has sent to an external address.
    pub(super) fn knock(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        outside: &Interface,
        key: &FlowKey,
    ) -> Result<(), Refusal> {
        let Some((position, rule)) = self.rules.hairpin(key) else { return Ok(()) };
        let rule = rule.clone();
        self.may_open(world, key.source, now)?;
        let mapping = self
            .mapping_for(world, now, key, position, &rule, outside, Some(key.destination))
            .inspect_err(|_| {
                self.sources.close(key.source);
            });
        let (slot, ..) = mapping?;
        let Some(mapping_key) = self.mappings.get(slot).map(|mapping| mapping.key) else { return Ok(()) };
        let until = now + self.first_timeout(key);
        let door = (slot, key.destination);
        let before = self.knocks.until.insert(door, (until, mapping_key));
        if before.is_some_and(|(_, known)| known == mapping_key) {
            // Counted already; the entry that is due finds it prolonged.
            self.sources.close(key.source);
        } else {
            self.mappings.hold(slot, key.destination);
            self.knocks.due.push_back((until, door));
        }
        Ok(())
    }

    /// Forgets knocks through mappings that are about to go with their address, their forward or
    /// their rule.
    pub(super) fn forget_knocks(&mut self, now: Instant, is_doomed: impl Fn(u32) -> bool) {
        let doors: Vec<Door> =
            self.knocks.until.keys().copied().filter(|&(slot, _)| is_doomed(slot)).collect();
        for door in doors {
            self.forget_knock(now, door);
        }
    }

    fn forget_knock(&mut self, now: Instant, door: Door) {
        let Some((_, key)) = self.knocks.until.remove(&door) else { return };
        self.sources.close(key.address);
        if let Some(mapping) = self.mappings.release(door.0, door.1) {
            self.give_port_back(now, &mapping);
        }
    }

    /// Hosts that have knocked and whose knock still counts.
    pub fn knock_count(&self) -> usize {
        self.knocks.until.len()
    }

    /// Forgets knocks whose time is over.
    pub(super) fn expire_knocks(&mut self, now: Instant) {
        while let Some(&(due, door)) = self.knocks.due.front()
            && due <= now
        {
            self.knocks.due.pop_front();
            let Some(&(until, _)) = self.knocks.until.get(&door) else { continue };
            if until > now {
                self.knocks.due.push_back((until, door));
            } else {
                self.forget_knock(now, door);
            }
        }
    }
}
