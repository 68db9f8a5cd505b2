//! Slots of the session table that the program may open sessions in: lent to each CPU before it asks.

use std::sync::atomic::{AtomicU64, Ordering};

use nat_common::delegate::{CPUS, LENT, LentSlots};

use super::Mapped;

/// Slots that a CPU is lent at first. Each time it has used them all before more were there, it is lent twice as many.
const FIRST: u32 = 128;

/// The slots lent.
pub struct Lender {
    rings: Mapped<LentSlots>,
    cpus: Vec<Cpu>,
    /// The most that a CPU is lent.
    most: u32,
}

/// What a CPU was lent.
struct Cpu {
    /// Slots given so far.
    given: u64,
    wanted: u32,
}

impl Lender {
    /// Lends at most so many slots to each of the machine's CPUs.
    pub(super) fn new(rings: Mapped<LentSlots>, cpus: usize, most: u32) -> Self {
        let most = most.min(LENT);
        let cpus = (0..cpus.min(CPUS as usize)).map(|_| Cpu { given: 0, wanted: FIRST.min(most) }).collect();
        let mut lender = Self { rings, cpus, most };
        lender.revoke();
        lender
    }

    /// Lends slots, which `slot` gives until there are no more.
    pub fn lend(&mut self, slot: &mut dyn FnMut() -> Option<u32>) {
        for number in 0..self.cpus.len() {
            let left = self.left(number);
            let cpu = &mut self.cpus[number];
            if left == 0 && cpu.given != 0 {
                cpu.wanted = (cpu.wanted * 2).min(self.most);
            }
            if left * 2 > u64::from(cpu.wanted) {
                continue;
            }
            for _ in left..u64::from(cpu.wanted) {
                let Some(slot) = slot() else { return };
                if let Some(word) = word(&self.rings, number, cpu.given) {
                    word.store(u64::from(slot) + 1, Ordering::Release);
                }
                cpu.given += 1;
            }
        }
    }

    /// Takes back what no program has taken.
    pub fn revoke(&mut self) -> Vec<u32> {
        let mut slots = Vec::new();
        for number in 0..self.cpus.len() {
            let words = (0..u64::from(LENT)).filter_map(|place| word(&self.rings, number, place));
            let lent = words.filter_map(|word| word.swap(0, Ordering::AcqRel).checked_sub(1));
            slots.extend(lent.filter_map(|slot| u32::try_from(slot).ok()));
            self.cpus[number].given = self.taken(number);
        }
        slots
    }

    /// Slots that a CPU has left.
    fn left(&self, cpu: usize) -> u64 {
        self.cpus[cpu].given.saturating_sub(self.taken(cpu))
    }

    fn taken(&self, cpu: usize) -> u64 {
        let ring = u32::try_from(cpu).ok().and_then(|cpu| self.rings.at(cpu));
        // SAFETY: a live, aligned word; volatile, because the program writes it.
        ring.map_or(0, |ring| unsafe { (&raw const (*ring.as_ptr()).taken).read_volatile() })
    }
}

/// The word of a slot that a CPU is lent as its `number`th.
fn word(rings: &Mapped<LentSlots>, cpu: usize, number: u64) -> Option<&AtomicU64> {
    let ring = rings.at(u32::try_from(cpu).ok()?)?;
    let place = usize::try_from(number % u64::from(LENT)).ok()?;
    // SAFETY: an aligned word within a live value, which everybody writes by atomic operations.
    Some(unsafe { AtomicU64::from_ptr((&raw mut (*ring.as_ptr()).slots).cast::<u64>().add(place)) })
}

#[cfg(test)]
mod tests {
    use super::super::mapped::memory;
    use super::*;

    /// The program's taking of a slot.
    fn take(lender: &Lender, cpu: usize) -> Option<u64> {
        let ring = lender.rings.at(u32::try_from(cpu).ok()?)?;
        let slot = word(&lender.rings, cpu, lender.taken(cpu))?.swap(0, Ordering::AcqRel).checked_sub(1)?;
        // SAFETY: a live value, and nobody else takes.
        unsafe { (&raw mut (*ring.as_ptr()).taken).write_volatile(lender.taken(cpu) + 1) };
        Some(slot)
    }

    #[test]
    fn every_slot_is_lent_once_and_what_is_left_comes_back() {
        let mut lender = Lender::new(memory(CPUS), 2, 1000);
        let mut next = 0..;
        let mut taken = Vec::new();
        for round in 0..50 {
            lender.lend(&mut || next.next());
            for _ in 0..1 << (round % 12) {
                taken.extend(take(&lender, round % 2));
            }
        }
        let left = lender.revoke();
        assert!(take(&lender, 0).is_none() && take(&lender, 1).is_none());
        assert!(left.len() <= 2000, "{} are lent to two CPUs", left.len());
        taken.extend(left.into_iter().map(u64::from));
        taken.sort_unstable();
        assert!(taken.iter().copied().eq(0..taken.len() as u64), "each once, and none lost");
        // And again after that.
        lender.lend(&mut || next.next());
        assert_eq!(take(&lender, 0), Some(taken.len() as u64));
    }
}
