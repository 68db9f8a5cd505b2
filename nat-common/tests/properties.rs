//! The laws of nat-common, for any packet: what is translated comes back, checksums are right if they were, nothing
//! panics, and nothing looks beyond the frame.

mod packet;

use std::collections::BTreeSet;

use nat_common::{
    Realm,
    activity::Activity,
    checksum::{Delta, Sum},
    classify::{RULES, RuleSet},
    flow::Rewrite,
    frame::SliceFrame,
    parse::{Frames, Kind, parse},
    tcp::{self, Seen, State},
    translate, wire,
};
use packet::{Sample, checksum, parsed, rewrite, right_checksum, set_checksum, towards};
use proptest::prelude::*;

/// So many cases; a failure is a new test, not a file of seeds.
fn cases(cases: u32) -> ProptestConfig {
    // Miri takes a thousand times as long.
    let cases = if cfg!(miri) { cases / 1000 } else { cases };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Protocols and, for ICMP, its queries.
fn protocol() -> impl Strategy<Value = (u8, u8)> {
    prop_oneof![
        Just((wire::TCP, 0)),
        Just((wire::UDP, 0)),
        Just((wire::UDPLITE, 0)),
        Just((wire::ICMP, wire::ICMP_ECHO_REQUEST)),
        Just((wire::ICMP, wire::ICMP_ECHO_REPLY)),
        Just((wire::ICMP, wire::ICMP_TIMESTAMP_REQUEST)),
        Just((wire::ICMP, wire::ICMP_TIMESTAMP_REPLY)),
        Just((47, 0)),
        Just((132, 0)),
    ]
}

prop_compose! {
    /// Any packet that the parser lets pass.
    fn sample()(
        (protocol, kind) in protocol(),
        addresses in any::<[[u8; 4]; 2]>(),
        ports in any::<[u16; 2]>(),
        ttl in 2u8..,
        option_words in prop_oneof![3 => Just(0), 1 => 0u8..=10],
        seed in any::<u32>(),
        length in 0usize..90,
    ) -> Sample {
        // Cheaper than a strategy a byte.
        let payload = (0u32..).take(length).map(|n| seed.rotate_left(n).wrapping_mul(n | 1).to_le_bytes()[2]);
        Sample { protocol, kind, addresses, ports, ttl, option_words, payload: payload.collect() }
    }
}

proptest! {
    #![proptest_config(cases(100_000))]

    /// behaviour CKS-05: what was updated by differences is what a sum over all of it gives.
    #[test]
    fn cks_05_incremental_is_recomputed(
        sample in sample(),
        addresses in any::<[[u8; 4]; 2]>(),
        ports in any::<[u16; 2]>(),
    ) {
        let mut frame = sample.frame();
        let before = parsed(&mut frame);
        let wanted = towards(&before.key, addresses, ports);
        rewrite(&mut frame, &wanted);
        let view = SliceFrame::new(&mut frame).unwrap();
        translate::decrement_ttl(&view, before.network).unwrap();
        prop_assert!(header_is_right(&frame));
        prop_assert_eq!(checksum(&frame), right_checksum(&frame));
        let after = parsed(&mut frame);
        prop_assert_eq!(after.ttl, before.ttl - 1);
        let Rewrite { source, destination, source_port, destination_port } = wanted;
        prop_assert_eq!((after.key.source, after.key.destination), (source, destination));
        prop_assert_eq!((after.key.source_port, after.key.destination_port), (source_port, destination_port));
    }
}

proptest! {
    #![proptest_config(cases(10_000))]

    /// A packet translated and translated back is the packet.
    #[test]
    fn there_and_back(sample in sample(), addresses in any::<[[u8; 4]; 2]>(), ports in any::<[u16; 2]>()) {
        let original = sample.frame();
        let mut frame = original.clone();
        let key = parsed(&mut frame).key;
        rewrite(&mut frame, &towards(&key, addresses, ports));
        rewrite(&mut frame, &towards(&key, sample.addresses, sample.ports));
        prop_assert_eq!(frame, original);
    }

    /// behaviour CKS-06: a checksum that was wrong is wrong by as much.
    #[test]
    fn cks_06_corrupt_stays_corrupt(
        sample in sample(),
        addresses in any::<[[u8; 4]; 2]>(),
        ports in any::<[u16; 2]>(),
        error in 1u16..0xffff,
    ) {
        let mut frame = sample.frame();
        let Some(right) = right_checksum(&frame) else { return Ok(()) };
        let corrupt = add(right, error);
        // To UDP a zero says that there is none.
        prop_assume!(corrupt != 0);
        set_checksum(&mut frame, corrupt);
        let key = parsed(&mut frame).key;
        rewrite(&mut frame, &towards(&key, addresses, ports));
        let (left, right) = (checksum(&frame).unwrap(), right_checksum(&frame).unwrap());
        prop_assert_eq!(left % 0xffff, add(right, error) % 0xffff);
    }

    /// behaviour CKS-01: without a checksum there is none to be had.
    #[test]
    fn cks_01_none_stays_none(sample in sample(), addresses in any::<[[u8; 4]; 2]>(), ports in any::<[u16; 2]>()) {
        let mut frame = Sample { protocol: wire::UDP, ..sample }.frame();
        set_checksum(&mut frame, 0);
        let key = parsed(&mut frame).key;
        rewrite(&mut frame, &towards(&key, addresses, ports));
        prop_assert_eq!(checksum(&frame), Some(0));
    }

    /// behaviour CKS-09: what is rewritten to itself keeps every bit, right or wrong.
    #[test]
    fn cks_09_the_same_changes_nothing(sample in sample(), any_checksum in any::<u16>()) {
        let mut frame = sample.frame();
        if right_checksum(&frame).is_some() {
            set_checksum(&mut frame, any_checksum);
        }
        let before = frame.clone();
        let key = parsed(&mut frame).key;
        rewrite(&mut frame, &towards(&key, sample.addresses, sample.ports));
        prop_assert_eq!(frame, before);
    }

    /// Deltas add up: two changes one after the other are one change.
    #[test]
    fn deltas_add_up(checksum in any::<u16>(), words in any::<[u16; 4]>()) {
        let [a, b, c, d] = words.map(|word| Sum::ZERO.add_u16(word));
        let one = Delta::of(a.add(b));
        let other = Delta::of(c.add(d));
        let both = Delta::of(a.add(b).add(c).add(d));
        prop_assert_eq!(other.apply(one.apply(checksum)) % 0xffff, both.apply(checksum) % 0xffff);
    }

    /// Any bytes: no panic, and what is said holds of the bytes that are there.
    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        judge(&bytes);
    }

    /// A packet cut anywhere is no packet; an Ethernet trailer is no part of it.
    #[test]
    fn cut_packets_are_refused(sample in sample(), cut in any::<prop::sample::Index>()) {
        let whole = sample.frame();
        let cut = cut.index(whole.len());
        judge(&whole[..cut]);
        let mut room = whole;
        let view = SliceFrame::new(&mut room[..cut]).unwrap();
        prop_assert!(!matches!(parse(&view, Realm::Inside), Frames::Ipv4(_)));
    }

    /// A packet with any of its bytes overwritten, header checksum mended or not.
    #[test]
    fn damaged_packets_are_judged(
        sample in sample(),
        damage in proptest::collection::vec((12usize..80, any::<u8>()), 1..4),
        mended: bool,
    ) {
        let mut frame = sample.frame();
        for (at, byte) in damage {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        let header = 14..14 + usize::from(frame[14] & 0x0f) * 4;
        if mended && header.end <= frame.len() && header.len() >= 20 {
            frame[24..26].fill(0);
            let complement = 0xffff - packet::sum(&frame[header]);
            frame[24..26].copy_from_slice(&u16::try_from(complement).unwrap().to_be_bytes());
        }
        judge(&frame);
    }

    /// Any segments in any order: no panic; only a reset resets, only two FINs close.
    #[test]
    fn tcp_any_segments(
        segments in proptest::collection::vec((0usize..2, any::<u8>(), any::<u32>(), any::<u32>()), 0..40),
    ) {
        let mut line = Activity::default();
        let mut seen_so_far = 0;
        for (direction, flags, sequence, acknowledgement) in segments {
            let new = tcp::note_activity(&mut line, direction, flags, sequence, acknowledgement);
            seen_so_far |= tcp::seen(flags);
            prop_assert_eq!(new & !(Seen::SYN | Seen::DATA | Seen::FIN | Seen::RST), 0);
            let [original, reply] = [line.directions[0].seen, line.directions[1].seen];
            prop_assert_eq!((original | reply) & !seen_so_far, 0, "nothing is noted that was not sent");
            match tcp::state(original, reply) {
                State::Reset => prop_assert_ne!(seen_so_far & Seen::RST, 0),
                State::Closing => prop_assert_ne!(original & reply & Seen::FIN, 0),
                State::Established => prop_assert_ne!(original & Seen::DATA, 0),
                State::Opening => {}
            }
        }
    }

    /// behaviour TCP-14: a reset that the receiver would not believe changes nothing, and its session stays.
    #[test]
    fn tcp_14_an_implausible_reset_changes_nothing(acknowledged in any::<u32>(), off in 0x1_0000u32..) {
        let mut line = Activity::default();
        tcp::note_activity(&mut line, 0, tcp::SYN, 1, 0);
        tcp::note_activity(&mut line, 1, tcp::SYN | tcp::ACK, 1, 2);
        tcp::note_activity(&mut line, 0, tcp::ACK, 2, acknowledged);
        let before = line;
        prop_assert_eq!(tcp::note_activity(&mut line, 1, tcp::RST, acknowledged.wrapping_add(off), 0), 0);
        prop_assert_eq!(line, before);
    }

    /// A rule set is a set of positions.
    #[test]
    fn rule_sets_are_sets(
        one in proptest::collection::btree_set(0..RULES, 0..20),
        other in proptest::collection::btree_set(0..RULES, 0..20),
        beyond in RULES..,
    ) {
        let set = |positions: &BTreeSet<usize>| {
            let mut set = RuleSet::EMPTY;
            for &position in positions {
                set.insert(position);
            }
            set
        };
        let (a, b) = (set(&one), set(&other));
        for position in 0..RULES {
            prop_assert_eq!(a.contains(position), one.contains(&position));
        }
        prop_assert_eq!(a.is_empty(), one.is_empty());
        prop_assert_eq!(a.first(), one.first().copied());
        prop_assert_eq!(a.and(&b), set(&one.intersection(&other).copied().collect()));
        prop_assert_eq!(a.first_is_in(&b), one.first().is_some_and(|first| other.contains(first)));
        let mut unchanged = a;
        unchanged.insert(beyond);
        prop_assert_eq!(unchanged, a);
        prop_assert!(!a.contains(beyond));
    }
}

/// Whether the IPv4 header's checksum is right.
fn header_is_right(frame: &[u8]) -> bool {
    packet::sum(&frame[14..14 + usize::from(frame[14] & 0x0f) * 4]) == 0xffff
}

/// One's-complement addition.
fn add(one: u16, other: u16) -> u16 {
    let (sum, carry) = one.overflowing_add(other);
    sum + u16::from(carry)
}

/// What must hold whatever the bytes: the answer does not depend on what follows the frame, and a packet that passes
/// has its headers within the frame, so that rewriting it touches nothing else.
fn judge(bytes: &[u8]) {
    let answers = [0x00, 0xff].map(|filler| {
        let mut room = bytes.to_vec();
        room.resize(bytes.len() + 64, filler);
        let view = SliceFrame::new(&mut room[..bytes.len()]).unwrap();
        format!("{:?}", parse(&view, Realm::Outside))
    });
    assert_eq!(answers[0], answers[1], "what follows the frame was read");
    let mut room = bytes.to_vec();
    room.resize(bytes.len() + 64, 0xee);
    let view = SliceFrame::new(&mut room[..bytes.len()]).unwrap();
    let Frames::Ipv4(parsed) = parse(&view, Realm::Outside) else { return };
    let end = parsed.network + usize::from(parsed.total_length);
    assert!(parsed.transport >= parsed.network + 20 && parsed.transport <= end && end <= bytes.len());
    if !matches!(parsed.kind, Kind::Ported | Kind::Portless) || parsed.network != 14 {
        return;
    }
    let wanted = towards(&parsed.key, [[203, 0, 113, 1], [198, 51, 100, 1]], [61000, 53]);
    rewrite(&mut room[..bytes.len()], &wanted);
    assert_eq!(room[end..bytes.len()], bytes[end..], "the trailer changed");
    assert!(room[bytes.len()..].iter().all(|byte| *byte == 0xee), "what follows the frame was written");
    assert_eq!(room[..parsed.network], bytes[..parsed.network], "the link header changed");
}
