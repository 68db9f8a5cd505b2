//! The flow table as it lies in memory: an index of 32-bit entries, open addressing, and behind it one cache line
//! for each direction of a session, which holds the key, the verdict and what packets did.
//!
//! An established packet touches two lines that depend on each other: the one of the index where its key's place
//! is, and its own. Only the daemon writes the index and the keys; it reads and writes all of it as memory.
//!
//! Both grow with the sessions there are, so that few sessions lie close together, in what a CPU's caches hold.
//! The index has levels: one of 2^k places lies at the places from 2^k on, and the level in force is one number.

use crate::activity::{Activity, DirectionActivity};
use crate::flow::{Direction, FlowKey, FlowValue};

/// One direction of a session.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowLine {
    /// Packets as they arrive.
    pub key: FlowKey,
    /// What to do with them.
    pub value: FlowValue,
    /// Half of what opened the session, for a daemon that takes the table over; the program ignores it.
    pub origin: u16,
    /// TCP: bits of [`crate::tcp::Seen`].
    pub seen: u8,
    /// Zero.
    pub pad: u8,
    /// Packets translated.
    pub packets: u64,
    /// Bytes of IPv4 packets translated.
    pub bytes: u64,
    /// When the last one came, in ticks (see [`crate::activity::TICK_SHIFT`]); written once a tick.
    pub last_seen: u32,
    /// TCP: last acknowledgement number sent in this direction, host byte order.
    pub acknowledged: u32,
}

/// A session: as its first packet went, then back; indexed by [`Direction`].
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLines {
    /// The two directions.
    pub directions: [FlowLine; 2],
}

const _: () = assert!(size_of::<FlowLine>() == 64);
// The program compares it as two words.
const _: () = assert!(core::mem::offset_of!(FlowLine, key) == 0);
const _: () = assert!(size_of::<SessionLines>() == 128);

/// Sessions in a segment: segments of lines are made as sessions come, 2 MiB each.
pub const SEGMENT: u32 = 1 << SEGMENT_BITS;
/// See [`SEGMENT`].
pub const SEGMENT_BITS: u32 = 14;
/// Segments there can be.
pub const SEGMENTS: u32 = 1024;
/// Sessions there can be: slot 0 is none, so that an entry of 0 or 1 in the index names no line.
pub const SESSIONS: u32 = SEGMENTS * SEGMENT - 1;

/// Entries in a bucket of the index: one cache line.
pub const BUCKET: u32 = 16;
/// A cache line of the index.
pub type Bucket = [u32; BUCKET as usize];

/// Places in a segment of the index: made as it grows, 1 MiB each.
pub const PLACES: u32 = 1 << PLACES_BITS;
/// See [`PLACES`].
pub const PLACES_BITS: u32 = 18;
/// Segments the index can have.
pub const INDEX_SEGMENTS: u32 = 512;
/// The level an index begins with.
pub const FIRST_LEVEL: u32 = 1 << 14;
/// The level an index can grow to: as many places as sessions have directions, twice over.
pub const LAST_LEVEL: u32 = INDEX_SEGMENTS * PLACES / 2;
const _: () = assert!(LAST_LEVEL >= SESSIONS * 4);

/// The word that says which level is in force. In its upper half it counts the entries that were moved from a place to
/// another: a search that has found nothing, and finds the word changed, may have missed what was moved past it.
#[inline(always)]
pub const fn in_force(level: u32, moves: u32) -> u64 {
    (moves as u64) << 32 | level as u64
}

/// The level in force.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half")]
pub const fn level_of(in_force: u64) -> u32 {
    in_force as u32
}

/// Entries moved so far; after so many as 32 bits hold it begins anew.
#[inline(always)]
pub const fn moves_of(in_force: u64) -> u32 {
    (in_force >> 32) as u32
}

/// The place of a hash at a level, after so many steps of the search.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the place is in the low bits")]
pub const fn place(hash: u64, level: u32, step: u32) -> u32 {
    level | (hash as u32).wrapping_add(step) & level.wrapping_sub(1)
}

/// Where a place is: its segment, and its place there.
#[inline(always)]
#[must_use]
pub const fn segment_of_place(place: u32) -> (u32, u32) {
    (place >> PLACES_BITS, place & (PLACES - 1))
}

/// An entry of the index where none was since the places before it were filled: a search ends here.
pub const EMPTY: u32 = 0;
/// An entry that was taken out: a search goes on.
pub const REMOVED: u32 = 1;
/// Places a search looks at: at half load, a run this long comes once in thousands of tables of a million sessions.
pub const SEARCHED: u32 = 96;

/// Bits of an entry that name a line; those above are of the hash, so that another key's line is seldom touched.
pub const LINE_BITS: u32 = 26;
/// See [`LINE_BITS`].
pub const LINE_MASK: u32 = (1 << LINE_BITS) - 1;

const _: () = assert!(SESSIONS < 1 << (LINE_BITS - 1));

/// The line of a session's direction.
#[inline(always)]
#[must_use]
pub const fn line_of(session: u32, direction: Direction) -> u32 {
    ((session + 1) << 1) | direction as u32
}

/// The session of a line; none has the first two.
#[inline(always)]
#[must_use]
pub const fn session_of(line: u32) -> Option<u32> {
    (line >> 1).checked_sub(1)
}

/// Where a line is: its segment, and its session's place there.
#[inline(always)]
#[must_use]
pub const fn segment_of(line: u32) -> (u32, u32) {
    ((line >> 1) >> SEGMENT_BITS, (line >> 1) & (SEGMENT - 1))
}

/// What the index holds for a line whose key has this hash.
#[inline(always)]
#[must_use]
pub const fn entry(hash: u64, line: u32) -> u32 {
    tag(hash) | line
}

/// Whether an entry can be that of a key with this hash, as far as can be seen without the line.
#[inline(always)]
#[must_use]
pub const fn may_be_alike(entry: u32, hash: u64) -> bool {
    entry & !LINE_MASK == tag(hash)
}

/// The part of an entry that is of the hash.
#[inline(always)]
#[must_use]
pub const fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 & !LINE_MASK
}

/// The secret of a table's hash: whoever does not know it cannot make keys that fall together (behaviour ATK-06).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Secret(pub [u32; 4]);

/// The hash of a key's words ([`FlowKey::words`]): NH of UMAC (RFC 4418 section 5.2), for which two keys fall
/// together with one secret in 2^32 whatever they are, and a mixer that spreads its bits. The place is in the low
/// bits, the tag in the high ones.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "halves of words")]
pub const fn hash(words: [u64; 2], secret: &Secret) -> u64 {
    let [first, second] = words;
    let Secret([a, b, c, d]) = *secret;
    let left = ((first as u32).wrapping_add(a)) as u64 * (((first >> 32) as u32).wrapping_add(b)) as u64;
    let right = ((second as u32).wrapping_add(c)) as u64 * (((second >> 32) as u32).wrapping_add(d)) as u64;
    let mixed = left.wrapping_add(right);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

impl FlowLine {
    /// What its packets did.
    #[must_use]
    pub const fn activity(&self) -> DirectionActivity {
        let Self { packets, bytes, last_seen, acknowledged, seen, .. } = *self;
        DirectionActivity { packets, bytes, last_seen, acknowledged, seen }
    }

    /// Overwrites that.
    pub const fn set_activity(&mut self, activity: &DirectionActivity) {
        let DirectionActivity { packets, bytes, last_seen, acknowledged, seen } = *activity;
        (self.packets, self.bytes) = (packets, bytes);
        (self.last_seen, self.acknowledged, self.seen) = (last_seen, acknowledged, seen);
    }
}

impl SessionLines {
    /// What the packets of both directions did.
    #[must_use]
    pub const fn activity(&self) -> Activity {
        Activity { directions: [self.directions[0].activity(), self.directions[1].activity()] }
    }

    /// What opened the session.
    #[must_use]
    pub const fn origin(&self) -> u32 {
        (self.directions[0].origin as u32) << 16 | self.directions[1].origin as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_sessions_name_each_other() {
        for session in [0, 1, SEGMENT - 1, SEGMENT, SESSIONS - 1] {
            for direction in [Direction::Original, Direction::Reply] {
                let line = line_of(session, direction);
                assert!(line > REMOVED && line <= LINE_MASK);
                assert_eq!(session_of(line), Some(session));
                let (segment, place) = segment_of(line);
                assert_eq!(segment * SEGMENT + place, session + 1);
                assert!(segment < SEGMENTS);
            }
        }
    }

    #[test]
    fn keys_spread_over_the_index() {
        let secret = Secret([0x1234_5678, 0x9abc_def0, 0x0fed_cba9, 0x8765_4321]);
        let mut taken = [0_u32; 1024];
        // Neighbouring addresses and ports, as they are in life.
        for address in 0..64_u64 {
            for port in 0..256_u64 {
                let words = [0x0001_a8c0 | address << 24, port << 8 | 0x0011_0000_0035_0000];
                taken[usize::try_from(hash(words, &secret) & 1023).unwrap_or(0)] += 1;
            }
        }
        let most = taken.iter().max().copied().unwrap_or(0);
        assert!(most < 48, "16 are expected in each of 1024 places, {most} are in one");
    }
}
