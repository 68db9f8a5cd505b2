//! What is fuzzed, and the laws that hold for any input.

mod config;
mod control;
mod fragments;
mod gateway;
mod quotes;
mod translate;

#[path = "../../../nat-common/tests/packet/mod.rs"]
#[expect(dead_code, reason = "shared with the property tests of nat-common")]
mod packet;
#[path = "../../../nat-userspace/tests/gateway/world.rs"]
#[expect(dead_code, reason = "shared with the property tests of the core")]
mod world;

use std::net::Ipv4Addr;

/// Something that takes any bytes.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Panics if a law is broken.
    pub(crate) run: fn(&[u8]),
}

pub(crate) static TARGETS: [Target; 6] = [
    Target { name: "translate", run: translate::run },
    Target { name: "quotes", run: quotes::run },
    Target { name: "fragments", run: fragments::run },
    Target { name: "gateway", run: gateway::run },
    Target { name: "config", run: config::run },
    Target { name: "control", run: control::run },
];

/// Bytes, taken from the front; zeros once there are none left.
#[derive(Debug)]
struct Bytes<'input>(&'input [u8]);

impl Bytes<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn quad(&mut self) -> [u8; 4] {
        [self.byte(), self.byte(), self.byte(), self.byte()]
    }
}

/// Whether an IPv4 header's checksum is right, the long way.
fn header_is_right(packet: &[u8]) -> bool {
    let length = usize::from(packet[0] & 0x0f) * 4;
    packet::sum(&packet[..length]) == 0xffff
}

/// Writes an IPv4 header's checksum.
fn mend_header(packet: &mut [u8]) {
    let length = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].fill(0);
    let sum = u16::try_from(packet::sum(&packet[..length])).expect("folded");
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
}

/// A frame with an IPv4 packet; `place` is flags and offset.
fn frame(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, id: u16, place: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(u16::try_from(20 + payload.len()).expect("short").to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(place.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    mend_header(&mut packet);
    [&[0; 12], &[8, 0][..], &packet, payload].concat()
}
