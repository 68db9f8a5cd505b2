//! External ports of one address and protocol: which are free, owned, shared or resting.
//!
//! Which are free is a bit each, so that all of a table lies in a few cache lines; the last free port is found by
//! looking at a thousand words. Ports and identifiers are in host byte order here.

use crate::hash::HashMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::random::Random;

use crate::config::PortRange;
use crate::datapath::SharedPorts;

/// A range of ports, or a set within one.
pub use crate::config::Ports;

/// Where a port stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In no rule's range.
    Unused,
    Free,
    /// One mapping's.
    Owned,
    /// Shared by sessions to different remotes.
    Shared,
    /// Given back, but not for others yet.
    Resting,
    /// A forward's.
    Reserved,
}

/// Who held a resting port: the same inside endpoint may have it back at once.
pub type Holder = (u32, u16);

/// The most ports that rest at once; beyond it the oldest is freed early (RFC 6888 REQ-8 asks
/// for a hold-down, but exhaustion would be worse).
const RESTING: usize = 16_384;

/// Parity and range class: RFC 4787 REQ-3a and REQ-4 keep both.
const CLASSES: usize = 4;

/// Ports below this are a class of their own (RFC 4787 REQ-3a).
const WELL_KNOWN: u16 = 1024;

/// The ports of one address and protocol.
pub struct PortTable {
    ranges: Vec<Ports>,
    states: Vec<State>,
    /// A bit for each port that is free, and how many there are by class.
    free: Box<[u64; WORDS]>,
    free_count: [u32; CLASSES],
    /// How many sessions share a port.
    shares: HashMap<u16, u32>,
    resting: VecDeque<(Instant, u16)>,
    holders: HashMap<u16, Holder>,
    quarantine: Duration,
    used: u32,
    /// The program has been told that no port is free.
    is_full: bool,
    /// The same for the program: every port that is not free here is taken there, and perhaps others.
    shared: Option<SharedPorts>,
}

/// Words of a bit for each port.
const WORDS: usize = 1024;

/// The even ports of a word, and the odd ones.
const OF_PARITY: [u64; 2] = [0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa];

/// The class of a port.
const fn class(port: u16) -> usize {
    (port & 1) as usize + if port < WELL_KNOWN { 0 } else { 2 }
}

impl PortTable {
    /// All of `ports` free. `quarantine` zero for protocols whose end is seen (TCP).
    pub fn new(ports: Ports, quarantine: Duration) -> Self {
        let mut table = Self {
            ranges: vec![ports],
            states: vec![State::Unused; 65_536],
            free: Box::new([0; WORDS]),
            free_count: [0; CLASSES],
            shares: HashMap::default(),
            resting: VecDeque::new(),
            holders: HashMap::default(),
            quarantine,
            used: 0,
            is_full: false,
            shared: None,
        };
        match ports.set {
            None => table.make_range_free(ports.range),
            Some(_) => ports.iter().for_each(|port| table.make_free(port)),
        }
        table
    }

    /// All ports of a range that none has used yet: a word at a time, because the first packet of the address waits.
    fn make_range_free(&mut self, PortRange { first, last }: PortRange) {
        self.states[usize::from(first)..=usize::from(last)].fill(State::Free);
        for word in usize::from(first) / 64..=usize::from(last) / 64 {
            let bits = (word * 64..word * 64 + 64).zip(0..64);
            let inside = bits.filter(|(port, _)| (usize::from(first)..=usize::from(last)).contains(port));
            let inside: u64 = inside.map(|(_, bit)| 1_u64 << bit).sum();
            self.free[word] |= inside;
            for (parity, ports) in OF_PARITY.iter().enumerate() {
                let class = class(u16::try_from(word * 64 + parity).unwrap_or(0));
                self.free_count[class] += (inside & ports).count_ones();
            }
        }
    }

    /// Widens the table by ports of another rule that uses the same address. Returns whether it
    /// had to be.
    pub fn include(&mut self, ports: Ports) -> bool {
        if self.ranges.contains(&ports) {
            return false;
        }
        self.ranges.push(ports);
        for port in ports.iter() {
            if self.states[usize::from(port)] == State::Unused {
                self.make_free(port);
            }
        }
        true
    }

    /// From now on the program may take ports, too.
    pub fn share_with_program(&mut self, shared: SharedPorts) {
        shared.begin(&self.free);
        for &port in self.holders.keys() {
            shared.rest(port, true);
        }
        self.shared = Some(shared);
    }

    /// The ports as the program knows them.
    pub fn shared(&self) -> Option<&SharedPorts> {
        self.shared.as_ref()
    }

    /// Claims a free port from the program. `false` if it has just taken it.
    fn claim(&self, port: u16) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.take(port))
    }

    /// Takes a port that the program has claimed for a mapping. `false` if it was not its to claim.
    pub fn adopt_claimed(&mut self, port: u16) -> bool {
        let is_free = self.is_free(port);
        if is_free {
            self.remove_free(port);
            self.own(port);
        }
        is_free
    }

    /// Takes a port out of what may be allocated, if it is free.
    pub fn reserve(&mut self, port: u16) -> bool {
        match self.states[usize::from(port)] {
            State::Free if self.claim(port) => {
                self.remove_free(port);
                self.states[usize::from(port)] = State::Reserved;
                true
            }
            State::Reserved => true,
            State::Unused => {
                self.states[usize::from(port)] = State::Reserved;
                true
            }
            _ => false,
        }
    }

    /// Takes a port for one mapping: the wanted one if it may be had, else a random one of the
    /// same parity and range class within `ports`, else any. `None` when none is left.
    pub fn take(
        &mut self,
        wanted: u16,
        holder: Holder,
        ports: Ports,
        now: Instant,
        random: &mut Random,
        usable: &mut dyn FnMut(u16) -> bool,
    ) -> Option<u16> {
        self.release_rested(now);
        if ports.contains(wanted) && usable(wanted) {
            match self.states[usize::from(wanted)] {
                State::Free if self.claim(wanted) => {
                    self.remove_free(wanted);
                    return Some(self.own(wanted));
                }
                State::Resting if self.holders.get(&wanted) == Some(&holder) => {
                    self.holders.remove(&wanted);
                    if let Some(shared) = &self.shared {
                        shared.rest(wanted, false);
                    }
                    return Some(self.own(wanted));
                }
                _ => {}
            }
        }
        let preferred = class(wanted);
        // Same class first; then the same range, other parity; the other range never (REQ-3a)
        // unless the configured range leaves nothing else.
        let order = [preferred, preferred ^ 1, preferred ^ 2, preferred ^ 3];
        for class in order {
            if let Some(port) = self.take_random(class, ports, random, usable) {
                return Some(self.own(port));
            }
        }
        // Those that are left in vain are the gateway's own.
        let is_full = self.free() == 0 || self.ranges == [ports];
        self.tell(is_full);
        None
    }

    /// A random free port of a class, one of `ports` and acceptable to `usable`.
    fn take_random(
        &mut self,
        class: usize,
        ports: Ports,
        random: &mut Random,
        usable: &mut dyn FnMut(u16) -> bool,
    ) -> Option<u16> {
        /// Random ports that are tried before the next free one from a random one on is taken.
        const TRIES: u32 = 16;
        if self.free_count[class] == 0 {
            return None;
        }
        let range = ports.range;
        let mut may_be_had = |port: u16| {
            self::class(port) == class
                && self.is_free(port)
                && ports.contains(port)
                && usable(port)
                && self.claim(port)
        };
        let mut draw = || range.first + u16::try_from(random.below(range.len() as usize)).unwrap_or(0);
        let parity = u16::try_from(class & 1).unwrap_or(0);
        let drawn = (0..TRIES).map(|_| draw() & !1 | parity).find(|&port| may_be_had(port));
        let found = drawn.or_else(|| {
            let (first, last) = (usize::from(range.first) / 64, usize::from(range.last) / 64);
            let start = usize::from(draw()) / 64;
            let mut words = (start..=last).chain(first..start);
            words.find_map(|word| {
                let mut bits = self.free[word] & OF_PARITY[usize::from(parity)];
                std::iter::from_fn(|| {
                    let bit = bits.checked_ilog2()?;
                    bits ^= 1 << bit;
                    u16::try_from(word * 64 + bit as usize).ok()
                })
                .find(|&port| may_be_had(port))
            })
        })?;
        self.remove_free(found);
        Some(found)
    }

    /// Whether sessions to different remotes may share this port.
    pub fn is_shareable(&self, port: u16) -> bool {
        matches!(self.states[usize::from(port)], State::Free | State::Shared)
    }

    /// One more session shares the port. `false` if it cannot be shared.
    pub fn share(&mut self, port: u16) -> bool {
        match self.states[usize::from(port)] {
            State::Shared => {}
            State::Free if self.claim(port) => {
                self.remove_free(port);
                self.states[usize::from(port)] = State::Shared;
                self.used += 1;
            }
            _ => return false,
        }
        *self.shares.entry(port).or_default() += 1;
        true
    }

    /// One session less shares the port.
    pub fn unshare(&mut self, port: u16) {
        let Some(count) = self.shares.get_mut(&port) else { return };
        *count -= 1;
        if *count == 0 {
            self.shares.remove(&port);
            self.used -= 1;
            self.make_free(port);
        }
    }

    /// Gives a mapping's port back. It rests for the quarantine before others get it, unless it is
    /// no other's to get.
    pub fn give_back(&mut self, port: u16, holder: Holder, rests: bool, now: Instant) {
        if self.states[usize::from(port)] != State::Owned {
            return;
        }
        self.used -= 1;
        if self.quarantine.is_zero() || !rests {
            self.make_free(port);
            return;
        }
        self.states[usize::from(port)] = State::Resting;
        if let Some(shared) = &self.shared {
            shared.rest(port, true);
        }
        self.holders.insert(port, holder);
        self.resting.push_back((now + self.quarantine, port));
        self.release_rested(now);
    }

    /// Takes a certain port for a mapping that exists already: what a restart finds.
    pub fn adopt(&mut self, port: u16) -> bool {
        match self.states[usize::from(port)] {
            State::Free if self.claim(port) => {
                self.remove_free(port);
                self.own(port);
                true
            }
            _ => false,
        }
    }

    /// Ports in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Ports that may be had.
    pub fn free(&self) -> u32 {
        self.free_count.iter().sum()
    }

    /// Ports at rest.
    pub fn quarantined(&self) -> u32 {
        u32::try_from(self.holders.len()).unwrap_or(u32::MAX)
    }

    /// Frees ports whose rest is over.
    pub fn release_rested(&mut self, now: Instant) {
        while let Some(&(until, port)) = self.resting.front() {
            if until > now && self.resting.len() <= RESTING {
                break;
            }
            self.resting.pop_front();
            // Taken back by its holder meanwhile, and perhaps rested again: then it is not in
            // `holders`, or a later entry frees it (a little early, never late).
            if self.states[usize::from(port)] == State::Resting && self.holders.remove(&port).is_some() {
                self.make_free(port);
            }
        }
    }

    fn own(&mut self, port: u16) -> u16 {
        self.states[usize::from(port)] = State::Owned;
        self.used += 1;
        self.tell(false);
        port
    }

    fn make_free(&mut self, port: u16) {
        let (word, bit) = place(port);
        self.free[word] |= bit;
        self.free_count[class(port)] += 1;
        self.states[usize::from(port)] = State::Free;
        if let Some(shared) = &self.shared {
            shared.give_back(port);
        }
        self.tell(false);
    }

    /// Tells the program whether to ask for ports here is in vain.
    fn tell(&mut self, is_full: bool) {
        if self.is_full != is_full
            && let Some(shared) = &self.shared
        {
            shared.set_full(is_full);
            self.is_full = is_full;
        }
    }

    /// Its state is the caller's to change.
    fn remove_free(&mut self, port: u16) {
        let (word, bit) = place(port);
        self.free[word] &= !bit;
        self.free_count[class(port)] -= 1;
    }

    fn is_free(&self, port: u16) -> bool {
        let (word, bit) = place(port);
        self.free[word] & bit != 0
    }
}

/// The word of a port, and its bit there.
const fn place(port: u16) -> (usize, u64) {
    (port as usize / 64, 1 << (port % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Ports = Ports { range: PortRange { first: 1024, last: 65_535 }, set: None };

    fn table(quarantine: u64) -> PortTable {
        PortTable::new(RANGE, Duration::from_secs(quarantine))
    }

    fn take(table: &mut PortTable, wanted: u16, now: Instant, random: &mut Random) -> Option<u16> {
        table.take(wanted, (1, wanted), RANGE, now, random, &mut |_| true)
    }

    /// behaviour PRT-01, PRT-03 and EXH-03: preserved, then same parity, each port once.
    #[test]
    fn prt_01_preserved_prt_03_parity_exh_03_all_distinct() {
        let (mut table, mut random, now) = (table(0), Random::seeded(1), Instant::now());
        assert_eq!(take(&mut table, 40_000, now, &mut random), Some(40_000));
        let mut seen = std::collections::HashSet::from([40_000]);
        for turn in 0..32_255 {
            let port = take(&mut table, 40_000, now, &mut random).unwrap();
            assert_eq!(port % 2, 0, "parity at turn {turn}");
            assert!(seen.insert(port), "port {port} twice");
        }
        let mut last = Vec::new();
        for turn in 0..32_256 {
            let begun = Instant::now();
            assert!(seen.insert(take(&mut table, 40_000, now, &mut random).unwrap()));
            if turn >= 32_256 - 645 {
                last.push(begun.elapsed());
            }
        }
        // The last percent is found as quickly as the first.
        last.sort_unstable();
        assert!(last[last.len() * 99 / 100] < Duration::from_millis(1), "{last:?}");
        assert_eq!(take(&mut table, 40_000, now, &mut random), None);
        assert_eq!(table.used(), 64_512);
    }

    /// behaviour PRT-06: a port rests before another host gets it; its holder may have it back.
    #[test]
    fn prt_06_quarantine() {
        let (mut table, mut random, now) = (table(120), Random::seeded(1), Instant::now());
        assert_eq!(take(&mut table, 5000, now, &mut random), Some(5000));
        table.give_back(5000, (1, 5000), true, now);
        assert_eq!(table.quarantined(), 1);
        let other = table.take(5000, (2, 5000), RANGE, now, &mut random, &mut |_| true);
        assert_ne!(other, Some(5000));
        assert_eq!(take(&mut table, 5000, now, &mut random), Some(5000));
        table.give_back(5000, (1, 5000), true, now);
        let later = now + Duration::from_secs(121);
        assert_eq!(table.take(5000, (2, 5000), RANGE, later, &mut random, &mut |_| true), Some(5000));
    }

    /// behaviour PRT-05: not sequential.
    #[test]
    fn prt_05_random() {
        let (mut table, mut random, now) = (table(0), Random::seeded(7), Instant::now());
        table.reserve(40_000);
        let ports: Vec<f64> =
            (0..1000).map(|_| f64::from(take(&mut table, 40_000, now, &mut random).unwrap())).collect();
        let mean = ports.iter().sum::<f64>() / 1000.0;
        let variance: f64 = ports.iter().map(|port| (port - mean).powi(2)).sum();
        let lag: f64 = ports.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
        assert!((lag / variance).abs() < 0.1, "lag-1 correlation {}", lag / variance);
    }
}
