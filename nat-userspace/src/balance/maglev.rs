//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): a table of a prime number of places, filled by
//! the servers in turn, each in an order of its own.

use super::{Candidate, mix};

/// Places: a prime, and a hundred for each of the most servers there may be.
const PLACES: usize = 65_537;

/// A filled table.
#[derive(Debug)]
pub(super) struct Maglev {
    /// Identity and weight of those it was filled for.
    of: Vec<(u64, u32)>,
    /// Who has each place: an index into `of`.
    places: Vec<u16>,
}

impl Maglev {
    /// The table of these servers.
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        let of: Vec<(u64, u32)> = candidates.iter().map(|one| (one.id, one.weight)).collect();
        Self { places: fill(&of), of }
    }

    /// Whether it is these servers'.
    pub(super) fn is_of(&self, candidates: &[Candidate]) -> bool {
        self.of.len() == candidates.len()
            && self.of.iter().zip(candidates).all(|(own, one)| *own == (one.id, one.weight))
    }

    /// Who has the place of a hash.
    #[expect(clippy::cast_possible_truncation, reason = "a remainder of a small number")]
    pub(super) fn find(&self, hash: u64) -> Option<usize> {
        self.places.get((hash % PLACES as u64) as usize).map(|&server| usize::from(server))
    }
}

/// A server's order of preference: a start and a step, which reach every place because their number is prime.
struct Preference {
    at: usize,
    step: usize,
}

#[expect(clippy::cast_possible_truncation, reason = "remainders of small numbers")]
fn fill(of: &[(u64, u32)]) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    let Some(heaviest) = of.iter().map(|(_, weight)| *weight).max() else { return Vec::new() };
    let mut preferences: Vec<Preference> = of
        .iter()
        .map(|(id, _)| Preference {
            at: (mix(*id) % PLACES as u64) as usize,
            step: (mix(!*id) % (PLACES as u64 - 1)) as usize + 1,
        })
        .collect();
    // A turn of the heaviest is whole; the others save up theirs.
    let mut saved = vec![0u64; of.len()];
    let mut places = vec![FREE; PLACES];
    let mut filled = 0;
    loop {
        for (server, (preference, (_, weight))) in preferences.iter_mut().zip(of).enumerate() {
            saved[server] += u64::from(*weight);
            if saved[server] < u64::from(heaviest) {
                continue;
            }
            saved[server] -= u64::from(heaviest);
            while places[preference.at] != FREE {
                preference.at = (preference.at + preference.step) % PLACES;
            }
            places[preference.at] = u16::try_from(server).unwrap_or(0);
            filled += 1;
            if filled == PLACES {
                return places;
            }
        }
    }
}
