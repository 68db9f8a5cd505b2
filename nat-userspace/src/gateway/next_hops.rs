//! Next hops: one slot for each neighbour behind an interface and MTU of the routes that lead there, shared by all flows
//! that go that way.

use crate::hash::{HashMap, HashSet};
use std::net::Ipv4Addr;

use nat_common::abi::NEXT_HOPS;
use nat_common::next_hop::NextHop;

use super::Interface;
use super::world::World;

/// A slot is named by 16 bits of a flow entry.
const _: () = assert!(NEXT_HOPS as usize == u16::MAX as usize + 1);

/// The slot that is never valid: for directions whose way is not known yet.
pub const UNKNOWN: u16 = 0;

/// The neighbours flows go to.
pub struct NextHops {
    /// The first slot of each neighbour.
    slots: HashMap<(u32, Ipv4Addr), u16>,
    hops: Vec<Slot>,
    /// Those whose SYNs come to the daemon.
    scheduled: HashSet<u16>,
    /// Slots that flows of an earlier daemon name: they are not this one's to write.
    foreign: HashSet<u16>,
    /// Slots that nothing names any more.
    free: Vec<u16>,
}

/// A way to a neighbour.
#[derive(Clone, Copy)]
struct Slot {
    ifindex: u32,
    address: Ipv4Addr,
    /// What the routes that lead there say, if they do: none is wider than its interface.
    mtu: Option<u32>,
    hop: NextHop,
    /// Another way to the same neighbour, by routes with another MTU; [`UNKNOWN`] if this is the last.
    next: u16,
}

impl Slot {
    /// What is in a slot that is nobody's.
    const UNUSED: Self =
        Self { ifindex: 0, address: Ipv4Addr::UNSPECIFIED, mtu: None, hop: NextHop::NONE, next: UNKNOWN };
}

impl NextHops {
    /// Only the invalid one.
    pub fn new() -> Self {
        Self {
            slots: HashMap::default(),
            hops: vec![Slot::UNUSED],
            scheduled: HashSet::default(),
            foreign: HashSet::default(),
            free: Vec::new(),
        }
    }

    /// Leaves slots to the flows of an earlier daemon that name them, which go on by them until they are told others.
    pub fn leave(&mut self, named: HashSet<u16>) {
        self.foreign = named;
    }

    /// No flow names what was left any more, and no program that runs has read one that did.
    pub fn take_back(&mut self) {
        let passed_over = 1..self.hops.len();
        self.free = self.foreign.drain().filter(|slot| passed_over.contains(&usize::from(*slot))).collect();
    }

    /// A slot that nothing names.
    fn unused(&mut self) -> Option<u16> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        loop {
            let slot = u16::try_from(self.hops.len()).ok()?;
            self.hops.push(Slot::UNUSED);
            if !self.foreign.contains(&slot) {
                return Some(slot);
            }
        }
    }

    /// The slot of a way to a neighbour, by routes of this MTU; made, and its resolution asked for, if it is new.
    ///
    /// Slots are kept for the daemon's life: a gateway has few neighbours, and a full table
    /// answers with [`UNKNOWN`], which the daemon serves itself. The next daemon gives out anew what no flow names.
    pub fn slot(
        &mut self,
        world: &mut dyn World,
        interface: &Interface,
        address: Ipv4Addr,
        mtu: Option<u32>,
    ) -> u16 {
        let ifindex = interface.ifindex;
        let first = self.first(ifindex, address);
        let found = self.chain(first).find(|slot| self.hops[usize::from(*slot)].mtu == mtu);
        if let Some(slot) = found {
            if self.hops[usize::from(slot)].hop.flags & NextHop::VALID == 0 {
                self.refresh(world, interface, address);
            }
            return slot;
        }
        let Some(slot) = self.unused() else { return UNKNOWN };
        self.slots.insert((ifindex, address), slot);
        self.hops[usize::from(slot)] = Slot { ifindex, address, mtu, hop: NextHop::NONE, next: first };
        self.refresh(world, interface, address);
        slot
    }

    /// The first slot of a neighbour, [`UNKNOWN`] if it has none.
    fn first(&self, ifindex: u32, address: Ipv4Addr) -> u16 {
        self.slots.get(&(ifindex, address)).copied().unwrap_or(UNKNOWN)
    }

    /// A slot and those behind it.
    fn chain(&self, first: u16) -> impl Iterator<Item = u16> {
        let some = |slot: u16| (slot != UNKNOWN).then_some(slot);
        std::iter::successors(some(first), move |&slot| some(self.hops[usize::from(slot)].next))
    }

    /// Brings a neighbour's slots up to date. Returns whether they are usable now.
    pub fn refresh(&mut self, world: &mut dyn World, interface: &Interface, address: Ipv4Addr) -> bool {
        let mut slot = self.first(interface.ifindex, address);
        if slot == UNKNOWN {
            return false;
        }
        let mac = if interface.up { world.neighbour(interface.ifindex, address) } else { None };
        let stack = if interface.redirects { 0 } else { NextHop::STACK };
        while slot != UNKNOWN {
            let asks = interface.mss_clamp.is_some() || self.scheduled.contains(&slot);
            let syns = if asks { NextHop::CLAMP } else { 0 };
            let known = &mut self.hops[usize::from(slot)];
            let hop = NextHop {
                destination: mac.unwrap_or_default(),
                source: interface.mac,
                ifindex: interface.ifindex,
                port: interface.port,
                mtu: known.mtu.map_or(interface.mtu, |mtu| mtu.min(interface.mtu)),
                flags: stack | syns | if mac.is_some() { NextHop::VALID } else { 0 },
                tags: interface.tags,
            };
            if known.hop != hop {
                known.hop = hop;
                world.set_next_hop(u32::from(slot), &hop);
            }
            slot = known.next;
        }
        if mac.is_none() && interface.up {
            world.resolve(interface.ifindex, address);
        }
        mac.is_some()
    }

    /// Flows of a virtual server go there: a SYN on one of them may begin another connection, which is the daemon's to
    /// schedule.
    pub fn schedule(&mut self, world: &mut dyn World, slot: u16) {
        if slot == UNKNOWN || !self.scheduled.insert(slot) {
            return;
        }
        if let Some(Slot { hop, .. }) = self.hops.get_mut(usize::from(slot)) {
            hop.flags |= NextHop::CLAMP;
            world.set_next_hop(u32::from(slot), hop);
        }
    }

    /// The next hop in a slot.
    pub fn get(&self, slot: u16) -> &NextHop {
        &self.hops.get(usize::from(slot)).unwrap_or(&self.hops[0]).hop
    }

    /// Interface and neighbour of a slot.
    pub fn neighbour(&self, slot: u16) -> Option<(u32, Ipv4Addr)> {
        self.hops
            .get(usize::from(slot))
            .filter(|_| slot != UNKNOWN)
            .map(|&Slot { ifindex, address, .. }| (ifindex, address))
    }

    /// Neighbours behind an interface.
    pub fn behind(&self, ifindex: u32) -> Vec<Ipv4Addr> {
        self.slots.keys().filter(|(index, _)| *index == ifindex).map(|&(_, address)| address).collect()
    }

    /// Every neighbour there is a slot for.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Ipv4Addr)> {
        self.slots.keys().copied()
    }
}
