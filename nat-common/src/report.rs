//! What the program tells the daemon of the sessions that it opens, in a ring of each CPU's own: without a system call,
//! a lock, or a wake-up while the daemon is awake.

/// A session that a CPU's program has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its slot.
    pub session: u32,
    /// The end of [`crate::abi::Settings::epoch`] that the program went by.
    pub epoch: u16,
    /// For each direction (by [`crate::Direction`]) what is known of its entry in the index.
    pub entered: [Entered; 2],
    /// The word that said which level of the index is in force, before anything was entered: see [`crate::table::in_force`].
    pub in_force: u64,
}

/// What the program knows of an entry that it has made.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Whether it has made one.
    Unsure = 0,
    /// It is behind others, none of which can be of the same key. Searches find it and nothing else, unless something
    /// was taken out meanwhile.
    Behind = 1,
    /// It is where searches for it begin, and nothing was there before. They find it, and nothing else, as long as the
    /// level is in force.
    AtHome = 2,
}

impl Entered {
    const fn of(bits: u64) -> Self {
        match bits & 3 {
            2 => Self::AtHome,
            1 => Self::Behind,
            _ => Self::Unsure,
        }
    }
}

impl Report {
    /// As it lies in memory: in the first word bits 0 to 31 the slot, 32 to 47 the epoch, then two for each direction.
    #[inline(always)]
    #[must_use]
    pub const fn packed(self) -> [u64; 2] {
        let entered = self.entered[0] as u64 | (self.entered[1] as u64) << 2;
        [self.session as u64 | (self.epoch as u64) << 32 | entered << 48, self.in_force]
    }

    /// The same read.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
    pub const fn unpacked([word, in_force]: [u64; 2]) -> Self {
        Self {
            session: word as u32,
            epoch: (word >> 32) as u16,
            entered: [Entered::of(word >> 48), Entered::of(word >> 50)],
            in_force,
        }
    }
}

/// The ring of what a CPU's program has reported, as it and the daemon see it.
pub trait Reports {
    /// Its places, a power of two.
    const PLACES: u32;
    /// Reports so far; and all that was written before the last of them.
    fn reported(&self) -> u64;
    /// The program's: says so, after all that was written before.
    fn set_reported(&self, reported: u64);
    /// Reports that were read so far; their places may be written.
    fn read(&self) -> u64;
    /// The daemon's: says so, after they were read.
    fn set_read(&self, read: u64);
    /// What is at a place.
    fn report(&self, place: u32) -> [u64; 2];
    /// The program's: writes it.
    fn set_report(&self, place: u32, report: [u64; 2]);
}

/// The program's: whether one more report finds a place.
#[inline(always)]
pub fn has_room<R: Reports>(ring: &R) -> bool {
    ring.reported().wrapping_sub(ring.read()) < u64::from(R::PLACES)
}

/// The program's: reports, where there is [room](has_room).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a place")]
pub fn report<R: Reports>(ring: &R, report: [u64; 2]) {
    let reported = ring.reported();
    ring.set_report(reported as u32 & (R::PLACES - 1), report);
    ring.set_reported(reported.wrapping_add(1));
}

/// The daemon's: reads what was reported since the last time.
#[expect(clippy::cast_possible_truncation, reason = "a place")]
pub fn read_reports<R: Reports>(ring: &R, mut each: impl FnMut([u64; 2])) {
    let (reported, read) = (ring.reported(), ring.read());
    for number in read..reported {
        each(ring.report(number as u32 & (R::PLACES - 1)));
    }
    if reported != read {
        ring.set_read(reported);
    }
}
