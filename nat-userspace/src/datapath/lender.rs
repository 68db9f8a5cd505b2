//! Slots of the session table that the program may open sessions in: lent to each CPU before it asks, and what it tells
//! of those that it has used.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nat_common::delegate::{CPUS, LENT, LentSlots, Loan, Ring};
use nat_common::report::{Report, Reports, read_reports};

use super::Mapped;

/// Slots that all CPUs together are lent at first, and the least and the most that one of them is. Each time it has used
/// three quarters of them before more were there, it is lent twice as many.
const FIRST: u32 = 4096;
/// See [`FIRST`].
const FIRST_OF_ONE: std::ops::RangeInclusive<u32> = 128..=1024;

/// The slots lent.
pub struct Lender {
    rings: Mapped<LentSlots>,
    sleep: Mapped<u64>,
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
    pub(super) fn new(rings: Mapped<LentSlots>, sleep: Mapped<u64>, cpus: u32, most: u32) -> Self {
        let most = most.min(LENT);
        let first = (FIRST / cpus.max(1)).clamp(*FIRST_OF_ONE.start(), *FIRST_OF_ONE.end()).min(most);
        let cpu = || Cpu { loan: Loan::default(), wanted: first };
        let cpus = (0..cpus.min(CPUS)).map(|_| cpu()).collect();
        let mut lender = Self { rings, sleep, cpus, spare: Vec::new(), most };
        lender.revoke();
        lender
    }

    /// Lends slots, which `slot` gives until there are no more.
    pub fn lend(&mut self, slot: &mut dyn FnMut() -> Option<u32>) {
        for (number, cpu) in (0..).zip(&mut self.cpus) {
            let Some(ring) = self.rings.at(number).map(Lent) else { return };
            let is_new = cpu.loan.is_new();
            let left = cpu.loan.left(&ring);
            if left * 4 < u64::from(cpu.wanted) && !is_new {
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

    /// What the programs have opened since the last time.
    pub fn reports(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        for ring in self.rings() {
            read_reports(&ring, |report| reports.push(Report::unpacked(report)));
        }
        reports
    }

    /// Asks to be woken by the first report that comes. Whether one has come already.
    pub fn fall_asleep(&self) -> bool {
        self.sleep.store(0, 1);
        // Either this thread sees a report, or the program sees that it has to wake it.
        fence(Ordering::SeqCst);
        self.rings().any(|ring| ring.reported() != ring.read())
    }

    /// Nobody sleeps any more.
    pub fn wake_up(&self) {
        self.sleep.store(0, 0);
    }

    fn rings(&self) -> impl Iterator<Item = Lent> {
        (0..self.cpus.len()).map_while(|cpu| self.rings.at(u32::try_from(cpu).ok()?).map(Lent))
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

impl Lent {
    /// A word of it, by its distance from the beginning.
    fn word(&self, offset: usize) -> &AtomicU64 {
        let at = offset % size_of::<LentSlots>();
        // SAFETY: an aligned word within a live value, which everybody writes as a whole.
        unsafe { AtomicU64::from_ptr(self.0.cast::<u8>().add(at).cast().as_ptr()) }
    }

    /// A place of the ring of slots.
    fn slot(&self, place: u32) -> &AtomicU64 {
        let number = place as usize % LENT as usize;
        self.word(offset_of!(LentSlots, slots) + number * size_of::<u64>())
    }

    /// One word of a report.
    fn half(&self, place: u32, half: usize) -> &AtomicU64 {
        let number = place as usize % LENT as usize * 2 + half;
        self.word(offset_of!(LentSlots, reports) + number * size_of::<u64>())
    }
}

impl Ring for Lent {
    const PLACES: u32 = LENT;

    fn swap(&self, place: u32, value: u64) -> u64 {
        self.slot(place).swap(value, Ordering::AcqRel)
    }

    fn taken(&self) -> u64 {
        self.word(offset_of!(LentSlots, taken)).load(Ordering::Acquire)
    }

    fn set_taken(&self, taken: u64) {
        self.word(offset_of!(LentSlots, taken)).store(taken, Ordering::Release);
    }
}

impl Reports for Lent {
    const PLACES: u32 = LENT;

    fn reported(&self) -> u64 {
        self.word(offset_of!(LentSlots, reported)).load(Ordering::Acquire)
    }

    fn set_reported(&self, reported: u64) {
        self.word(offset_of!(LentSlots, reported)).store(reported, Ordering::Release);
    }

    fn read(&self) -> u64 {
        self.word(offset_of!(LentSlots, read)).load(Ordering::Acquire)
    }

    fn set_read(&self, read: u64) {
        self.word(offset_of!(LentSlots, read)).store(read, Ordering::Release);
    }

    fn report(&self, place: u32) -> [u64; 2] {
        [0, 1].map(|half| self.half(place, half).load(Ordering::Relaxed))
    }

    fn set_report(&self, place: u32, report: [u64; 2]) {
        for (half, word) in (0..).zip(report) {
            self.half(place, half).store(word, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use nat_common::delegate::take_slot;
    use nat_common::report::{Entered, has_room, report};

    use super::super::mapped::memory;
    use super::*;

    /// The program's taking of a slot.
    fn take(lender: &Lender, cpu: usize) -> Option<u64> {
        take_slot(&Lent(lender.rings.at(u32::try_from(cpu).ok()?)?)).map(u64::from)
    }

    #[test]
    fn every_slot_is_lent_once_and_what_is_left_comes_back() {
        let mut lender = Lender::new(memory(CPUS), memory(1), 2, 1000);
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

    #[test]
    fn reports_are_read_once_and_wake_who_sleeps() {
        let lender = Lender::new(memory(CPUS), memory(1), 2, 1000);
        let ring = |cpu| Lent(lender.rings.at(cpu).expect("a CPU"));
        let entered = [Entered::AtHome, Entered::Behind];
        let of = |session| Report { session, epoch: 7, entered, in_force: 1 << 50 | 1 << 14 };
        for round in 0..3 {
            assert!(!lender.fall_asleep());
            let mut told = Vec::new();
            while has_room(&ring(1)) {
                told.push(of(round * LENT + u32::try_from(told.len()).expect("few")));
                report(&ring(1), told.last().expect("one").packed());
            }
            assert_eq!(told.len(), LENT as usize);
            assert!(lender.fall_asleep(), "what has come is not slept over");
            assert_eq!(lender.reports(), told);
        }
        assert!(lender.reports().is_empty());
    }
}
