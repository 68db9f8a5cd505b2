//! Slots of the session table that the program may open sessions in: lent to each CPU before it asks.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nat_common::delegate::{CPUS, LENT, LentSlots, Loan, Ring};

use super::Mapped;

/// Slots that a CPU is lent at first. Each time it has used them all before more were there, it is lent twice as many.
const FIRST: u32 = 128;

/// The slots lent.
pub struct Lender {
    rings: Mapped<LentSlots>,
    cpus: Vec<Cpu>,
    /// Slots that came back, to be lent again.
    spare: Vec<u32>,
    /// The most that a CPU is lent.
    most: u32,
}

/// What a CPU was lent.
struct Cpu {
    loan: Loan,
    wanted: u32,
}

impl Lender {
    /// Lends at most so many slots to each of the machine's CPUs.
    pub(super) fn new(rings: Mapped<LentSlots>, cpus: u32, most: u32) -> Self {
        let most = most.min(LENT);
        let cpu = || Cpu { loan: Loan::default(), wanted: FIRST.min(most) };
        let cpus = (0..cpus.min(CPUS)).map(|_| cpu()).collect();
        let mut lender = Self { rings, cpus, spare: Vec::new(), most };
        lender.revoke();
        lender
    }

    /// Lends slots, which `slot` gives until there are no more.
    pub fn lend(&mut self, slot: &mut dyn FnMut() -> Option<u32>) {
        for (number, cpu) in (0..).zip(&mut self.cpus) {
            let Some(ring) = self.rings.at(number).map(Lent) else { return };
            let is_new = cpu.loan.is_new();
            let left = cpu.loan.left(&ring);
            if left == 0 && !is_new {
                cpu.wanted = (cpu.wanted * 2).min(self.most);
            }
            if left * 2 > u64::from(cpu.wanted) {
                continue;
            }
            for _ in left..u64::from(cpu.wanted) {
                let Some(slot) = self.spare.pop().or_else(&mut *slot) else { return };
                self.spare.extend(cpu.loan.lend(&ring, slot));
            }
        }
    }

    /// Takes back what no program has taken.
    pub fn revoke(&mut self) -> Vec<u32> {
        let mut slots = std::mem::take(&mut self.spare);
        for (number, cpu) in (0..).zip(&mut self.cpus) {
            if let Some(ring) = self.rings.at(number).map(Lent) {
                cpu.loan.revoke(&ring, |slot| slots.push(slot));
            }
        }
        slots
    }
}

/// A CPU's ring, in a map's memory.
struct Lent(NonNull<LentSlots>);

impl Ring for Lent {
    const PLACES: u32 = LENT;

    fn swap(&self, place: u32, value: u64) -> u64 {
        let slots = self.0.cast::<u8>();
        let offset =
            std::mem::offset_of!(LentSlots, slots) + place as usize % LENT as usize * size_of::<u64>();
        // SAFETY: an aligned word within a live value, which everybody writes by atomic operations.
        unsafe { AtomicU64::from_ptr(slots.add(offset).cast().as_ptr()) }.swap(value, Ordering::AcqRel)
    }

    fn taken(&self) -> u64 {
        // SAFETY: a live, aligned word; volatile, because the program writes it.
        unsafe { (&raw const (*self.0.as_ptr()).taken).read_volatile() }
    }

    fn set_taken(&self, taken: u64) {
        // SAFETY: as above. The program's alone.
        unsafe { (&raw mut (*self.0.as_ptr()).taken).write_volatile(taken) }
    }
}

#[cfg(test)]
mod tests {
    use nat_common::delegate::take_slot;

    use super::super::mapped::memory;
    use super::*;

    /// The program's taking of a slot.
    fn take(lender: &Lender, cpu: usize) -> Option<u64> {
        take_slot(&Lent(lender.rings.at(u32::try_from(cpu).ok()?)?)).map(u64::from)
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
