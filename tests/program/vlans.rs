//! Tags: off before a frame is judged, those of the way out on when it leaves, its own again when it does not.

use nat_common::{Reason, vlan::Tags};
use nat_tests::Packet;

use crate::stage::{CLIENT_MAC, LAN_MAC, Link, ROUTER_MAC, WAN_MAC, on_stage};

/// From `<linux/bpf.h>`.
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// VLAN 5 with priority 3, and 7 with priority 2 within 100 with priority 5.
const SINGLE: [u8; 4] = [0x81, 0, 0x60, 5];
const DOUBLE: [u8; 8] = [0x88, 0xa8, 0xa0, 100, 0x81, 0, 0x40, 7];

fn tagged(packet: Packet, tags: &[u8]) -> Vec<u8> {
    let frame = packet.between(CLIENT_MAC, LAN_MAC).build();
    [&frame[..12], tags, &frame[12..]].concat()
}

fn question(port: u16) -> Packet {
    Packet::udp(format!("192.168.1.10:{port}").as_str(), "198.51.100.1:53").payload(b"a question")
}

#[test]
fn a_frame_leaves_with_the_tags_of_its_way_out() {
    let single = Tags::of_vlans((0x8100, 9), None);
    let double = Tags::of_vlans((0x88a8, 200), Some((0x8100, 9)));
    // How it came, the VLAN of the router, and what is between MACs and EtherType when it leaves.
    let cases: [(&[u8], Tags, &[u8]); 9] = [
        (&[], Tags::NONE, &[]),
        (&[], single, &[0x81, 0, 0, 9]),
        (&[], double, &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 9]),
        (&SINGLE, Tags::NONE, &[]),
        (&SINGLE, single, &[0x81, 0, 0x60, 9]),
        (&SINGLE, double, &[0x88, 0xa8, 0x60, 200, 0x81, 0, 0x60, 9]),
        (&DOUBLE, Tags::NONE, &[]),
        (&DOUBLE, single, &[0x81, 0, 0xa0, 9]),
        (&DOUBLE, double, &[0x88, 0xa8, 0xa0, 200, 0x81, 0, 0x40, 9]),
    ];
    let sent = Packet::udp("203.0.113.1:61000", "198.51.100.1:53").payload(b"a question").ttl(63);
    let sent = sent.between(WAN_MAC, ROUTER_MAC).build();
    for (came, uplink, leaves) in cases {
        let frame = tagged(question(40000), came);
        let expected = [&sent[..12], leaves, &sent[12..]].concat();
        let (action, left, counted) =
            on_stage(move |stage| stage.with_vlans(uplink, |stage| stage.run(Link::Lan, &frame)));
        assert_eq!(
            (action, counted),
            (XDP_REDIRECT, vec![(Reason::Translated, 1)]),
            "{came:02x?} to {leaves:02x?}"
        );
        assert_eq!(left, expected, "{came:02x?} to {leaves:02x?}");
    }
}

#[test]
fn what_is_not_sent_has_its_own_tags_again() {
    let other = |tags: &[u8]| tagged(question(40000).to_mac([0x02, 0, 0, 0, 9, 9]), tags);
    for tags in [&SINGLE[..], &DOUBLE[..]] {
        let cases = [
            (
                "the gateway's own",
                tagged(Packet::udp("192.168.1.10:40000", "192.168.1.1:53"), tags),
                XDP_PASS,
                Some(Reason::Passed),
            ),
            ("another station's", other(tags), XDP_PASS, Some(Reason::Passed)),
            (
                "ARP",
                [&tagged(question(40000), tags)[..12 + tags.len()], &[8, 6], &[0; 46]].concat(),
                XDP_PASS,
                Some(Reason::Passed),
            ),
            ("of no flow", tagged(question(40099), tags), XDP_REDIRECT, Some(Reason::Punted)),
            ("the tc hook's", tagged(question(40003), tags), XDP_PASS, None),
            // The number of the VLAN is right, the kind of tag is not; and nobody's MAC is no interface's.
            ("of another kind", tagged(question(40000), &[0x88, 0xa8, 0, 5]), XDP_PASS, Some(Reason::Passed)),
            ("of no interface", tagged(question(40000), &[0x81, 0, 0, 6]), XDP_PASS, Some(Reason::Passed)),
            (
                "to no MAC",
                tagged(question(40000).to_mac([0; 6]), &[0x81, 0, 0, 6]),
                XDP_PASS,
                Some(Reason::Passed),
            ),
        ];
        for (what, frame, action, reason) in cases {
            let came = frame.clone();
            let (done, left, counted) =
                on_stage(move |stage| stage.with_vlans(Tags::NONE, |stage| stage.run(Link::Lan, &frame)));
            let wanted: Vec<_> = reason.map(|reason| (reason, 1)).into_iter().collect();
            assert_eq!((done, counted), (action, wanted), "{what}, {tags:02x?}");
            assert_eq!(left, came, "{what}, {tags:02x?}");
        }
    }
}
