//! TCP sessions by what both directions have sent (RFC 5382 section 5, RFC 7857 section 2).

use crate::{
    activity::{Activity, DirectionActivity},
    table::FlowLine,
};

/// FIN.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

/// What one direction has sent, as bits.
pub struct Seen;

impl Seen {
    /// A SYN.
    pub const SYN: u8 = 1;
    /// A segment that is neither SYN, FIN nor RST: the handshake's last ACK or data.
    pub const DATA: u8 = 2;
    /// A FIN.
    pub const FIN: u8 = 4;
    /// An RST that the other end will believe, and nothing since.
    pub const RST: u8 = 8;
    /// Bits whose first appearance changes the session's timer.
    pub const NOTABLE: u8 = Self::FIN | Self::RST;
}

/// States that differ in how long a session may be idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Handshake not complete: transitory timer.
    Opening,
    /// Data may flow; a single FIN leaves it here (half-close may last, behaviour TCP-10).
    Established,
    /// FIN from both sides: transitory timer.
    Closing,
    /// Reset by a plausible RST: transitory timer, data brings it back (RFC 7857 figure 1).
    Reset,
}

impl State {
    /// Name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Reset => "reset",
        }
    }
}

/// The state that follows from what both directions have sent.
pub const fn state(original: u8, reply: u8) -> State {
    if (original | reply) & Seen::RST != 0 {
        State::Reset
    } else if original & reply & Seen::FIN != 0 {
        State::Closing
    } else if original & Seen::DATA != 0 && reply & (Seen::DATA | Seen::SYN) != 0 {
        // The opener's ACK after the other side's SYN-ACK completes the handshake. A session
        // picked up in the middle (behaviour TCP-21) is established once both sides spoke.
        State::Established
    } else {
        State::Opening
    }
}

/// The state that follows where only the opener is seen: its ACK or data say that it was answered, its FIN that it has
/// nothing to send. What it still acknowledges then keeps the session.
pub const fn state_of_opener(original: u8) -> State {
    if original & Seen::RST != 0 {
        State::Reset
    } else if original & Seen::FIN != 0 {
        State::Closing
    } else if original & Seen::DATA != 0 {
        State::Established
    } else {
        State::Opening
    }
}

/// The bits that a segment's flags set.
#[inline(always)]
pub const fn seen(flags: u8) -> u8 {
    if flags & RST != 0 {
        Seen::RST
    } else if flags & SYN != 0 {
        Seen::SYN
    } else if flags & FIN != 0 {
        Seen::FIN | Seen::DATA
    } else {
        Seen::DATA
    }
}

/// Whether flags may open a session: SYN alone, without FIN or RST (behaviour MAL-10).
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | FIN | RST) == SYN
}

/// Whether a segment with data may be picked up in the middle of a connection: never an RST, never
/// a SYN-ACK.
pub const fn may_be_picked_up(flags: u8) -> bool {
    flags & ACK != 0 && flags & (SYN | RST) == 0
}

/// Whether the receiver of an RST would believe it: its sequence number lies in the window after
/// what the receiver last acknowledged. Without window scaling known, a window of 64 KiB.
#[inline(always)]
pub const fn is_plausible_reset(sequence: u32, acknowledged: u32) -> bool {
    sequence.wrapping_sub(acknowledged) <= 0xffff
}

/// What [`note`] needs of a direction.
#[derive(Debug)]
pub struct Half<'a> {
    /// Bits of [`Seen`].
    pub seen: &'a mut u8,
    /// Last acknowledgement number sent, host byte order.
    pub acknowledged: &'a mut u32,
}

impl<'a> From<&'a mut DirectionActivity> for Half<'a> {
    fn from(direction: &'a mut DirectionActivity) -> Self {
        Self { seen: &mut direction.seen, acknowledged: &mut direction.acknowledged }
    }
}

impl<'a> From<&'a mut FlowLine> for Half<'a> {
    #[inline(always)]
    fn from(line: &'a mut FlowLine) -> Self {
        Self { seen: &mut line.seen, acknowledged: &mut line.acknowledged }
    }
}

/// Notes a segment of the direction `own` in the session. Returns the bits that are new and change its timer.
///
/// `sequence` and `acknowledgement` in host byte order.
#[inline(always)]
#[expect(clippy::needless_pass_by_value, reason = "two references, taken apart")]
pub fn note(own: Half<'_>, other: Half<'_>, flags: u8, sequence: u32, acknowledgement: u32) -> u8 {
    let mut bits = seen(flags);
    if bits & Seen::RST != 0 {
        // Off-path resets are sent on (RFC 7857 section 2.2) but change nothing (behaviour
        // TCP-14); once a FIN was seen, or nothing acknowledged yet, there is nothing to guard.
        let guarded = *other.acknowledged != 0 && (*own.seen | *other.seen) & Seen::FIN == 0;
        if guarded && !is_plausible_reset(sequence, *other.acknowledged) {
            return 0;
        }
    } else if flags & ACK != 0 {
        *own.acknowledged = acknowledgement;
    }
    if bits & Seen::SYN != 0 && (*own.seen | *other.seen) & (Seen::RST | Seen::FIN) != 0 {
        // The same tuple opens again (behaviour TCP-16): both sides start over. Whoever answers
        // will say so; a SYN alone leaves the session opening, so on the transitory timer.
        *own.seen = Seen::SYN;
        *other.seen = 0;
        *own.acknowledged = if flags & ACK != 0 { acknowledgement } else { 0 };
        *other.acknowledged = 0;
        return Seen::SYN;
    }
    if bits & Seen::RST == 0 && (*own.seen | *other.seen) & Seen::RST != 0 {
        *own.seen &= !Seen::RST;
        *other.seen &= !Seen::RST;
        *own.seen |= bits;
        return bits | Seen::NOTABLE;
    }
    bits &= !*own.seen;
    if bits != 0 {
        *own.seen |= bits;
    }
    bits & Seen::NOTABLE
}

/// [`note`] on what the daemon has read; `direction` is 0 or 1.
pub fn note_activity(
    activity: &mut Activity,
    direction: usize,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
) -> u8 {
    let [original, reply] = &mut activity.directions;
    let (own, other) = if direction == 0 { (original, reply) } else { (reply, original) };
    note(own.into(), other.into(), flags, sequence, acknowledgement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(segments: &[(usize, u8)]) -> State {
        let mut line = Activity::default();
        for &(direction, flags) in segments {
            note_activity(&mut line, direction, flags, 0, 0);
        }
        state(line.directions[0].seen, line.directions[1].seen)
    }

    /// behaviour TCP-09: only the ACK after the SYN-ACK establishes.
    #[test]
    fn tcp_09_handshake() {
        assert_eq!(play(&[(0, SYN)]), State::Opening);
        assert_eq!(play(&[(0, SYN), (1, SYN | ACK)]), State::Opening);
        assert_eq!(play(&[(0, SYN), (1, SYN | ACK), (0, ACK)]), State::Established);
    }

    /// behaviour LBS-15: answers go another way.
    #[test]
    fn the_opener_alone() {
        let state = |flags: &[u8]| {
            let mut line = Activity::default();
            for &flags in flags {
                note_activity(&mut line, 0, flags, 0, 0);
            }
            state_of_opener(line.directions[0].seen)
        };
        assert_eq!(state(&[SYN]), State::Opening);
        assert_eq!(state(&[SYN, ACK]), State::Established);
        assert_eq!(state(&[SYN, ACK, FIN | ACK]), State::Closing);
        assert_eq!(state(&[SYN, RST]), State::Reset);
        assert_eq!(state(&[SYN, ACK, FIN | ACK, SYN]), State::Opening);
    }

    /// behaviour TCP-03: simultaneous open.
    #[test]
    fn tcp_03_simultaneous_open() {
        assert_eq!(play(&[(0, SYN), (1, SYN), (0, SYN | ACK), (1, SYN | ACK)]), State::Opening);
        assert_eq!(
            play(&[(0, SYN), (1, SYN), (0, SYN | ACK), (1, SYN | ACK), (0, ACK), (1, ACK)]),
            State::Established
        );
    }

    /// behaviour TCP-10 and TCP-11: one FIN is half-close, two are the end.
    #[test]
    fn tcp_10_half_close_and_tcp_11_close() {
        let open = [(0, SYN), (1, SYN | ACK), (0, ACK)];
        let half: std::vec::Vec<_> = open.iter().copied().chain([(0, FIN | ACK), (1, ACK)]).collect();
        assert_eq!(play(&half), State::Established);
        let both: std::vec::Vec<_> = half.into_iter().chain([(1, FIN | ACK), (0, ACK)]).collect();
        assert_eq!(play(&both), State::Closing);
    }

    /// behaviour TCP-13, TCP-14, TCP-15.
    #[test]
    fn tcp_13_data_revives_tcp_14_implausible_reset_tcp_15_after_fin() {
        let mut line = Activity::default();
        note_activity(&mut line, 0, SYN, 100, 0);
        note_activity(&mut line, 1, SYN | ACK, 500, 101);
        note_activity(&mut line, 0, ACK, 101, 501);
        for sequence in [0, 1_000_501] {
            assert_eq!(note_activity(&mut line, 1, RST, sequence, 0), 0, "implausible {sequence}");
        }
        assert_eq!(state(line.directions[0].seen, line.directions[1].seen), State::Established);
        assert_eq!(note_activity(&mut line, 1, RST, 501, 0), Seen::RST);
        assert_eq!(state(line.directions[0].seen, line.directions[1].seen), State::Reset);
        assert_ne!(note_activity(&mut line, 0, ACK, 101, 501), 0);
        assert_eq!(state(line.directions[0].seen, line.directions[1].seen), State::Established);
        note_activity(&mut line, 0, FIN | ACK, 101, 501);
        assert_eq!(note_activity(&mut line, 1, RST, 7, 0), Seen::RST);
    }

    /// behaviour TCP-14: what a SYN-ACK has acknowledged guards as data does; a tuple that opens
    /// anew is not judged by what its predecessor had acknowledged.
    #[test]
    fn tcp_14_before_the_server_has_sent_data() {
        let mut line = Activity::default();
        note_activity(&mut line, 0, SYN, 100, 0);
        note_activity(&mut line, 1, SYN | ACK, 500, 101);
        note_activity(&mut line, 0, ACK, 101, 501);
        assert_eq!(note_activity(&mut line, 0, RST, 1_000_101, 0), 0);
        assert_eq!(note_activity(&mut line, 0, RST, 101, 0), Seen::RST);
        note_activity(&mut line, 0, SYN, 9_000_000, 0);
        // Nobody listens any more.
        assert_eq!(note_activity(&mut line, 1, RST | ACK, 0, 9_000_001), Seen::RST);
    }

    /// behaviour TCP-16 and TCP-17: a closed tuple reopens, half of it does not establish.
    #[test]
    fn tcp_16_reopen_and_tcp_17_half_reopen() {
        let closed = [(0, SYN), (1, SYN | ACK), (0, ACK), (0, FIN | ACK), (1, FIN | ACK), (0, ACK)];
        let half: std::vec::Vec<_> = closed.iter().copied().chain([(0, SYN)]).collect();
        assert_eq!(play(&half), State::Opening);
        let again: std::vec::Vec<_> = half.into_iter().chain([(1, SYN | ACK), (0, ACK)]).collect();
        assert_eq!(play(&again), State::Established);
    }

    extern crate std;
}
