//! What the program is told of the ports that the gateway's own sockets hold. See [`nat_common::held`].

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering::Acquire};

use nat_common::held::{HOLDS_FOR, HeldPorts, HeldWords, TABLES, WORDS, table};

use super::Mapped;

/// Words of one protocol's table.
const TABLE: u32 = words(size_of::<HeldPorts>());
const UNTIL: u32 = words(offset_of!(HeldPorts, until));
const LISTED: u32 = words(offset_of!(HeldPorts, listed));
const SENT: u32 = words(offset_of!(HeldPorts, sent));

#[expect(clippy::cast_possible_truncation, reason = "a few thousand")]
const fn words(bytes: usize) -> u32 {
    (bytes / 8) as u32
}

/// The tables of both protocols.
pub struct Listing(Mapped<u64>);

impl Listing {
    /// Words of the map.
    pub(super) const WORDS: u32 = TABLE * TABLES;

    pub(super) const fn new(words: Mapped<u64>) -> Self {
        Self(words)
    }

    /// Sockets of a protocol are about to be listed: what is sent from now on may be missing there.
    pub fn begin(&self, protocol: u8) {
        self.each(protocol, |_, held| held.begin());
    }

    /// These were listed.
    pub fn renew(&self, protocol: u8, ports: impl Iterator<Item = u16>) {
        let mut listed = [0; WORDS as usize];
        for port in ports {
            listed[usize::from(port >> 6)] |= 1 << (port & 63);
        }
        self.each(protocol, |number, held| held.renew(listed[number as usize]));
    }

    /// The program may go by the list, which was begun at `jiffies` or later.
    pub fn publish(&self, protocol: u8, jiffies: u64) {
        self.0.store(table(protocol) * TABLE + UNTIL, jiffies + HOLDS_FOR);
    }

    /// Whether the gateway has sent from a port since the list was begun.
    pub fn was_sent_from(&self, protocol: u8, port: u16) -> bool {
        self.words(protocol, port >> 6).is_some_and(|held| held.sent.load(Acquire) & 1 << (port & 63) != 0)
    }

    fn each(&self, protocol: u8, mut what: impl FnMut(u16, HeldWords<&AtomicU64>)) {
        for number in 0..=u16::MAX >> 6 {
            if let Some(words) = self.words(protocol, number) {
                what(number, words);
            }
        }
    }

    /// The words of 64 ports.
    fn words(&self, protocol: u8, number: u16) -> Option<HeldWords<&AtomicU64>> {
        let word = |of| self.0.atomic(table(protocol) * TABLE + of + u32::from(number));
        Some(HeldWords { listed: word(LISTED)?, sent: word(SENT)? })
    }
}

#[cfg(test)]
mod tests {
    use nat_common::held::holds;
    use nat_common::wire::{TCP, UDP};

    use super::*;

    fn has(listing: &Listing, protocol: u8, port: u16) -> bool {
        listing.words(protocol, port >> 6).is_some_and(|held| held.has(1 << (port & 63)))
    }

    #[test]
    fn the_program_knows_what_was_listed_and_what_was_sent_from_since() {
        let listing = Listing::new(super::super::mapped::memory(Listing::WORDS));
        listing.begin(UDP);
        listing.renew(UDP, [53, 65_535].into_iter());
        assert!(has(&listing, UDP, 53) && has(&listing, UDP, 65_535) && !has(&listing, UDP, 54));
        assert!(!has(&listing, TCP, 53), "of another protocol");

        listing.begin(UDP);
        listing.words(UDP, 4000 / 64).expect("words of the map").mark(1 << (4000 % 64));
        listing.renew(UDP, [53].into_iter());
        assert!(has(&listing, UDP, 53) && has(&listing, UDP, 4000), "listed too early to be there");
        assert!(listing.was_sent_from(UDP, 4000) && !listing.was_sent_from(UDP, 53));
        assert!(!has(&listing, UDP, 65_535), "closed");

        listing.begin(UDP);
        assert!(has(&listing, UDP, 4000), "while it is listed anew");
        listing.renew(UDP, std::iter::empty());
        assert!(!has(&listing, UDP, 53) && !has(&listing, UDP, 4000), "closed");
    }

    #[test]
    fn a_list_holds_for_a_while() {
        let listing = Listing::new(super::super::mapped::memory(Listing::WORDS));
        let until = |protocol| listing.0.load(table(protocol) * TABLE + UNTIL);
        assert!(!holds(until(TCP), 1), "nothing was listed");
        listing.publish(TCP, 1000);
        assert!(holds(until(TCP), 1000 + HOLDS_FOR - 1) && !holds(until(TCP), 1000 + HOLDS_FOR));
        assert!(!holds(until(UDP), 1), "of another protocol");
    }
}
