//! Floods of packets that ask for new flows or belong to none, as fast as one sender makes them.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use super::chance::Chance;
use crate::{
    lab::{Lab, P1},
    packet::{Packet, protocol},
    wire::Tap,
};

/// What a flood is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flood {
    /// Datagrams of one inside host, each a new flow.
    Udp,
    /// SYNs of one inside host.
    Syn,
    /// Echo requests of one inside host, each with another identifier.
    Ping,
    /// Datagrams of a hundred inside addresses.
    Spoofed,
    /// Datagrams and SYNs of addresses that are not inside at all.
    Forged,
    /// Later fragments whose first never comes, from inside and outside.
    Fragments,
    /// ICMP errors from outside about packets that were never sent.
    Errors,
    /// SYNs and datagrams from outside to ports of the gateway's.
    Inbound,
    /// More flows than the table holds, of many inside addresses.
    Full,
}

/// Different frames that a flood repeats.
const FRAMES: u32 = 12_000;
/// Those of a flood that fills the table.
const FRAMES_FULL: u32 = 90_000;

impl Flood {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Udp => "flood of UDP flows",
            Self::Syn => "flood of SYNs",
            Self::Ping => "flood of pings",
            Self::Spoofed => "flood of spoofed inside sources",
            Self::Forged => "flood of forged sources",
            Self::Fragments => "flood of early fragments",
            Self::Errors => "flood of ICMP errors",
            Self::Inbound => "flood from outside",
            Self::Full => "flood that fills the table",
        }
    }

    /// The frames, and the taps they are sent from in turn.
    pub(super) fn prepare(self, lab: &Lab, chance: &mut Chance) -> Prepared {
        let from_inside = !matches!(self, Self::Errors | Self::Inbound);
        let host = if from_inside { &lab.c } else { &lab.attacker };
        let tap = host.tap();
        let count = if self == Self::Full { FRAMES_FULL } else { FRAMES };
        let frames = (0..count)
            .map(|number| self.packet(lab, number, chance).between(host.mac, host.next_hop).build());
        Prepared { frames: frames.collect(), tap }
    }

    fn packet(self, lab: &Lab, number: u32, chance: &mut Chance) -> Packet {
        let low = |bits: u32| u16::try_from(number & ((1 << bits) - 1)).expect("few bits");
        let c = lab.c.address;
        let sink = SocketAddrV4::new(lab.attacker.address, 9 + low(4));
        let endpoint = |address: Ipv4Addr, port: u16| SocketAddrV4::new(address, port);
        // The LAN's addresses from .100 on.
        let inside = |number: u16| Ipv4Addr::new(192, 168, 1, 100 + number.to_be_bytes()[1]);
        let stranger = |chance: &mut Chance| Ipv4Addr::from(0x0a00_0000 | chance.below(1 << 24));
        match self {
            Self::Udp => Packet::udp(endpoint(c, 20_000 + low(14)), sink),
            Self::Syn => Packet::tcp(endpoint(c, 20_000 + low(14)), sink).syn(number),
            Self::Ping => Packet::echo_request(c, *sink.ip(), low(14), 1),
            Self::Spoofed => {
                Packet::udp(endpoint(inside(chance.short(100)), 30_000 + chance.short(100)), sink)
            }
            Self::Forged if number.is_multiple_of(2) => Packet::udp(endpoint(stranger(chance), 9), sink),
            Self::Forged => Packet::tcp(endpoint(stranger(chance), 9), sink).syn(number),
            Self::Fragments => Packet::raw(c, *sink.ip(), protocol::UDP)
                .payload([7; 64])
                .id(low(14))
                .fragment_offset(8 + low(6)),
            Self::Errors => {
                let quoted = Packet::udp(endpoint(P1, 1024 + low(14)), endpoint(lab.attacker.address, 53));
                Packet::icmp_error(
                    lab.attacker.address,
                    P1,
                    3,
                    low(2).to_be_bytes()[1],
                    &quoted.payload([7; 8]).ip(),
                )
            }
            Self::Inbound if number.is_multiple_of(2) => {
                Packet::udp(endpoint(lab.attacker.address, low(14)), endpoint(P1, 1024 + low(14)))
            }
            Self::Inbound => {
                Packet::tcp(endpoint(lab.attacker.address, low(14)), endpoint(P1, 1024 + low(14))).syn(number)
            }
            Self::Full => {
                let host = u16::try_from(number % 150).expect("a small number");
                let port = u16::try_from(number / 150).expect("a small number");
                Packet::udp(endpoint(inside(host), 20_000 + port), sink)
            }
        }
    }
}

/// A flood that is ready to be let loose.
pub(super) struct Prepared {
    frames: Vec<Vec<u8>>,
    tap: Tap,
}

impl Prepared {
    /// Sends for so long; how many.
    pub(super) fn send_for(self, time: Duration) -> u64 {
        let start = Instant::now();
        let mut sent = 0;
        for some in self.frames.chunks(64).cycle() {
            for frame in some {
                self.tap.send_frame(frame);
            }
            sent += some.len() as u64;
            if start.elapsed() > time {
                break;
            }
        }
        sent
    }
}
