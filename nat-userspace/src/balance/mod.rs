//! Choosing one of several servers for a new connection. Pure: no clock, no addresses looked up, no chance.
//!
//! A [`Balancer`] is asked with the servers that may be chosen now, each under an identity that stays its
//! own while others come and go: what a hash gives a client changes as little as the servers do.

#![deny(unsafe_code)]

mod maglev;

use crate::hash::HashMap;
use std::net::Ipv4Addr;

use self::maglev::Maglev;
use crate::config::Scheduler;

/// A server that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its own, whoever else there is: made of its endpoint.
    pub id: u64,
    /// Its share, at least 1.
    pub weight: u32,
    /// Connections it has now.
    pub active: u32,
}

/// Chooses, and remembers what its scheduler has to.
#[derive(Debug)]
pub struct Balancer {
    scheduler: Scheduler,
    /// When each was chosen last, counted in choices; never is 0.
    chosen: HashMap<u64, u64>,
    choices: u64,
    /// Credit of each under smooth weighted round-robin.
    credit: HashMap<u64, i64>,
    maglev: Option<Maglev>,
}

impl Balancer {
    /// One that has not chosen yet.
    pub fn new(scheduler: Scheduler) -> Self {
        Self { scheduler, chosen: HashMap::default(), choices: 0, credit: HashMap::default(), maglev: None }
    }

    /// How it chooses.
    pub fn scheduler(&self) -> Scheduler {
        self.scheduler
    }

    /// The place among `candidates` of the one for a connection of `client`. `None` if there is none.
    pub fn choose(&mut self, candidates: &[Candidate], client: (Ipv4Addr, u16)) -> Option<usize> {
        let place = match self.scheduler {
            Scheduler::RoundRobin => self.least(candidates, |_| (0, 1)),
            Scheduler::WeightedRoundRobin => self.smooth(candidates),
            Scheduler::LeastConnections => self.least(candidates, |one| (one.active, 1)),
            Scheduler::WeightedLeastConnections => self.least(candidates, |one| (one.active, one.weight)),
            Scheduler::SourceHash => rendezvous(candidates, client.0),
            Scheduler::Maglev => self.by_table(candidates, client),
        }?;
        self.choices += 1;
        self.chosen.insert(candidates.get(place)?.id, self.choices);
        Some(place)
    }

    /// Forgets what it remembers of servers that are no more.
    pub fn forget_all_but(&mut self, is_there: impl Fn(u64) -> bool) {
        self.chosen.retain(|&id, _| is_there(id));
        self.credit.retain(|&id, _| is_there(id));
    }

    /// The one with the smallest load, a quotient; of equals the one whose last turn is longest ago.
    fn least(&self, candidates: &[Candidate], load: impl Fn(&Candidate) -> (u32, u32)) -> Option<usize> {
        let last = |one: &Candidate| self.chosen.get(&one.id).copied().unwrap_or(0);
        let smaller = |(_, a): &(usize, &Candidate), (_, b): &(usize, &Candidate)| {
            let ((load_a, share_a), (load_b, share_b)) = (load(a), load(b));
            let left = u64::from(load_a) * u64::from(share_b);
            let right = u64::from(load_b) * u64::from(share_a);
            // An idle server with the larger share goes first.
            left.cmp(&right).then(share_b.cmp(&share_a)).then(last(a).cmp(&last(b)))
        };
        candidates.iter().enumerate().min_by(smaller).map(|(place, _)| place)
    }

    /// Smooth weighted round-robin: each gains its weight in credit, the richest is chosen and pays all of it.
    /// Turns of a heavy server lie between those of light ones, not in a row.
    fn smooth(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let total: i64 = candidates.iter().map(|one| i64::from(one.weight)).sum();
        for one in candidates {
            *self.credit.entry(one.id).or_default() += i64::from(one.weight);
        }
        let credit = |one: &Candidate| self.credit.get(&one.id).copied().unwrap_or(0);
        // Of equals the first, as `max_by_key` would give the last.
        let (place, one) = candidates.iter().enumerate().rev().max_by_key(|(_, one)| credit(one))?;
        *self.credit.entry(one.id).or_default() -= total;
        Some(place)
    }

    fn by_table(&mut self, candidates: &[Candidate], client: (Ipv4Addr, u16)) -> Option<usize> {
        let is_current = self.maglev.as_ref().is_some_and(|table| table.is_of(candidates));
        if !is_current {
            self.maglev = Some(Maglev::new(candidates));
        }
        let key = u64::from(client.0.to_bits()) << 16 | u64::from(client.1);
        self.maglev.as_ref()?.find(mix(key))
    }
}

/// Rendezvous hashing: every server draws a number for the client, the highest wins. A server that leaves
/// takes only its own clients along. Weighted as -weight / ln(draw), which gives each its share exactly.
fn rendezvous(candidates: &[Candidate], client: Ipv4Addr) -> Option<usize> {
    let score = |one: &Candidate| {
        let draw = mix(mix(u64::from(client.to_bits())) ^ one.id);
        // From 53 bits, which a double holds, to strictly between 0 and 1.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let draw = ((draw >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -f64::from(one.weight) / draw.ln()
    };
    let scores = candidates.iter().map(score).enumerate();
    scores.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(place, _)| place)
}

/// The finalizer of `SplitMix64`: every bit of the result depends on every bit of the number.
pub(crate) const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(weights: &[u32]) -> Vec<Candidate> {
        (1..).zip(weights).map(|(id, &weight)| Candidate { id: mix(id), weight, active: 0 }).collect()
    }

    fn client(number: u32) -> (Ipv4Addr, u16) {
        let port = u16::try_from(1024 + number % 60_000).unwrap();
        (Ipv4Addr::from(0xc633_0000 + number / 7), port)
    }

    /// How many of `connections` each gets.
    fn spread(scheduler: Scheduler, candidates: &mut [Candidate], connections: u32) -> Vec<u32> {
        let mut balancer = Balancer::new(scheduler);
        let mut counts = vec![0; candidates.len()];
        for number in 0..connections {
            let place = balancer.choose(candidates, client(number)).unwrap();
            candidates[place].active += 1;
            counts[place] += 1;
        }
        counts
    }

    #[test]
    fn nobody_to_choose_from() {
        for (_, scheduler) in Scheduler::WORDS {
            assert_eq!(Balancer::new(scheduler).choose(&[], client(1)), None);
        }
    }

    #[test]
    fn round_robin_is_fair_to_one_connection() {
        for connections in [1, 2, 100, 10_000] {
            let counts = spread(Scheduler::RoundRobin, &mut servers(&[1, 5, 1]), connections);
            assert!(counts.iter().all(|count| count.abs_diff(connections / 3) <= 1), "{counts:?}");
        }
    }

    /// One leaves in the middle, one comes: the turn goes on among those that are there.
    #[test]
    fn round_robin_goes_on_when_servers_change() {
        let all = servers(&[1; 4]);
        let mut balancer = Balancer::new(Scheduler::RoundRobin);
        let mut turn = |some: &[Candidate]| some[balancer.choose(some, client(0)).unwrap()].id;
        assert_eq!([turn(&all[..3]), turn(&all[..3])], [all[0].id, all[1].id]);
        assert_eq!([turn(&all[..2]), turn(&all[..2])], [all[0].id, all[1].id]);
        assert_eq!(turn(&all), all[2].id);
        assert_eq!(turn(&all), all[3].id);
    }

    #[test]
    fn weights_are_kept_and_mixed() {
        let counts = spread(Scheduler::WeightedRoundRobin, &mut servers(&[70, 30]), 10_000);
        assert_eq!(counts, [7000, 3000]);
        let mut balancer = Balancer::new(Scheduler::WeightedRoundRobin);
        let three = servers(&[5, 1, 1]);
        let turns: Vec<usize> = (0..7).map(|_| balancer.choose(&three, client(0)).unwrap()).collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0], "as published for 5, 1, 1");
    }

    #[test]
    fn hashes_keep_weights_within_two_percent() {
        for scheduler in [Scheduler::SourceHash, Scheduler::Maglev] {
            let counts = spread(scheduler, &mut servers(&[70, 30]), 100_000);
            assert!(counts[0].abs_diff(70_000) <= 2000, "{scheduler:?}: {counts:?}");
        }
    }

    #[test]
    fn least_connections_fills_up() {
        let mut three = servers(&[1, 1, 1]);
        three[0].active = 10;
        assert_eq!(spread(Scheduler::LeastConnections, &mut three, 20), [0, 10, 10]);
        let counts = spread(Scheduler::WeightedLeastConnections, &mut servers(&[3, 1]), 400);
        assert_eq!(counts, [300, 100]);
    }

    #[test]
    fn a_client_keeps_its_server() {
        let ten = servers(&[1; 10]);
        for scheduler in [Scheduler::SourceHash, Scheduler::Maglev] {
            let (mut one, mut other) = (Balancer::new(scheduler), Balancer::new(scheduler));
            for number in 0..1000 {
                let place = one.choose(&ten, client(number));
                assert_eq!(place, other.choose(&ten, client(number)), "also after a restart");
            }
        }
        let mut balancer = Balancer::new(Scheduler::SourceHash);
        let (address, port) = client(9);
        let place = balancer.choose(&ten, (address, port));
        assert_eq!(place, balancer.choose(&ten, (address, port + 1)));
    }

    /// Behaviour LBS-12: removing one of ten servers moves at most 15 % of the flows, and adding it again
    /// brings back what there was.
    #[test]
    fn removing_one_of_ten_moves_little() {
        for scheduler in [Scheduler::SourceHash, Scheduler::Maglev] {
            let ten = servers(&[1; 10]);
            let nine: Vec<Candidate> = [&ten[..4], &ten[5..]].concat();
            let mut balancer = Balancer::new(scheduler);
            let mut chosen = |some: &[Candidate]| -> Vec<u64> {
                (0..50_000).map(|number| some[balancer.choose(some, client(number)).unwrap()].id).collect()
            };
            let (before, without, again) = (chosen(&ten), chosen(&nine), chosen(&ten));
            let moved = before.iter().zip(&without).filter(|(a, b)| a != b).count();
            assert!((4000..=7500).contains(&moved), "{scheduler:?}: {moved} of 50000 moved");
            assert_eq!(before, again);
            let least = ten.iter().map(|one| before.iter().filter(|id| **id == one.id).count()).min();
            assert!(least.unwrap() > 4000, "{scheduler:?}: the smallest share is {least:?}");
        }
    }
}
