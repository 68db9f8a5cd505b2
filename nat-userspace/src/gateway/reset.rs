//! Telling both ends of a TCP session that it is given up (RFC 5382 section 5 leaves it open):
//! each gets an RST from the other, with the sequence number that it waits for, the only one that
//! RFC 5961 section 3.2 has it believe at once.

use nat_common::activity::Activity;
use nat_common::checksum::{Sum, pseudo_header};
use nat_common::flow::Rewrite;
use nat_common::next_hop::NextHop;
use nat_common::tcp::{self, State};
use nat_common::{Direction, wire};

use super::sessions::Origin;
use super::world::World;
use super::{Emission, Gateway};

/// IPv4 header, without options.
const IPV4: usize = 20;
/// TCP header, without options.
const TCP: usize = 20;

impl Gateway {
    /// Sends an RST to both ends of a TCP session that is established: an end that opens, closes
    /// or has been reset learns nothing from another.
    pub(super) fn reset_both_ends(&mut self, world: &mut dyn World, slot: u32) {
        let Some(session) = self.sessions.get(slot) else { return };
        if session.original.protocol != wire::TCP || session.origin == Origin::Bypass {
            return;
        }
        let line = world.activity(slot);
        if session.tcp_state(&line) != State::Established {
            return;
        }
        // What a server has acknowledged past the gateway is not known, so nothing would be believed by it.
        let is_relay = session.carriage.is_relay();
        for direction in Direction::BOTH.into_iter().skip(usize::from(is_relay)) {
            let hop = self.next_hops.get(session.next_hops[direction as usize]);
            if hop.flags & NextHop::VALID != 0 {
                let frame = reset(&session.rewritten(direction), &line, direction, hop);
                self.emissions.push(Emission { ifindex: hop.ifindex, frame });
            }
        }
    }
}

/// The RST that goes in a direction.
fn reset(ends: &Rewrite, line: &Activity, direction: Direction, hop: &NextHop) -> Vec<u8> {
    let own = &line.directions[direction as usize];
    let other = &line.directions[1 - direction as usize];
    let mut ip = [0u8; IPV4];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&40u16.to_be_bytes());
    // Nothing to cut: an identification means nothing (RFC 6864 section 4.1).
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = wire::TCP;
    ip[12..16].copy_from_slice(&ends.source.to_ne_bytes());
    ip[16..20].copy_from_slice(&ends.destination.to_ne_bytes());
    let checksum = Sum::ZERO.add_bytes(&ip).checksum();
    ip[10..12].copy_from_slice(&checksum.to_ne_bytes());
    let mut segment = [0u8; TCP];
    segment[0..2].copy_from_slice(&ends.source_port.to_ne_bytes());
    segment[2..4].copy_from_slice(&ends.destination_port.to_ne_bytes());
    segment[4..8].copy_from_slice(&other.acknowledged.to_be_bytes());
    segment[8..12].copy_from_slice(&own.acknowledged.to_be_bytes());
    segment[12] = 0x50;
    segment[13] = tcp::RST | tcp::ACK;
    let checksum = pseudo_header(ends.source, ends.destination, wire::TCP, 20).add_bytes(&segment).checksum();
    segment[16..18].copy_from_slice(&checksum.to_ne_bytes());
    let ethernet = [&hop.destination[..], &hop.source[..], &[8, 0]].concat();
    [&ethernet[..], &ip[..], &segment[..]].concat()
}
