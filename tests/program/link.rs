//! What is not the gateway's to look at: other frames, other receivers.

use nat_common::Reason;
use nat_tests::{Packet, packet::Mac};

use crate::{
    fixture::{check, frame, lan, wan},
    stage::{CLIENT_MAC, LAN_MAC, Link},
};

fn question() -> Packet {
    Packet::udp("192.168.1.10:40000", "198.51.100.1:53").payload(b"a question")
}

fn of_type(ethertype: u16) -> Vec<u8> {
    let mut bytes = question().between(CLIENT_MAC, LAN_MAC).build();
    bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
    bytes
}

/// behaviour L2X-02 and L2X-03.
#[test]
fn l2x_03_frames_of_others_are_left_alone() {
    let other: Mac = [0x02, 0, 0, 0, 9, 9];
    check(vec![
        lan("in a VLAN", question().vlan(7)).passed(),
        lan("in two VLANs", question().vlan(7).vlan(8)).passed(),
        lan("to another MAC", question().to_mac(other)).passed(),
        lan("to every MAC", question().to_mac([0xff; 6])).passed(),
        lan("to a group's MAC", question().to_mac([0x01, 0, 0x5e, 0, 0, 1])).passed(),
        wan("to the other interface's MAC", question().to_mac(LAN_MAC)).passed(),
        frame("ARP", Link::Lan, of_type(0x0806)).passed(),
        frame("IPv6", Link::Lan, of_type(0x86dd)).passed(),
        frame("a length, not a type", Link::Lan, of_type(0x0040)).passed(),
    ]);
}

#[test]
fn mal_01_a_frame_of_one_header_is_truncated() {
    let whole = question().between(CLIENT_MAC, LAN_MAC).build();
    check(vec![
        frame("only Ethernet", Link::Lan, whole[..14].to_vec()).dropped(Reason::DropTruncated),
        frame(
            "ends in a VLAN tag",
            Link::Lan,
            question().vlan(1).between(CLIENT_MAC, LAN_MAC).build()[..16].to_vec(),
        )
        .passed(),
    ]);
}
