//! A packet of a session that came up all the same: its first, or one the fast path could not
//! finish (no neighbour, TTL, size).

use std::time::Instant;

use nat_common::frame::{Frame as _, SliceFrame};
use nat_common::parse::Kind;
use nat_common::wire::{self, Ipv4, Tcp};
use nat_common::{Direction, FlowValue, Parsed, Reason, next_hop::NextHop, tcp, translate};

use super::cut::{self, cut, may_be_cut};
use super::icmp::Error;
use super::sessions::Origin;
use super::world::World;
use super::{Emission, Gateway, Interface, Outcome, next_hops};

impl Gateway {
    /// Sends a packet of a session on.
    #[expect(clippy::too_many_arguments, reason = "a frame and everything known of it")]
    pub(super) fn known(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
        slot: u32,
        direction: Direction,
    ) -> Outcome {
        let Some(session) = self.sessions.get(slot) else { return Outcome::Drop(Reason::DropTable) };
        if session.origin == Origin::Bypass {
            note(world, frame, parsed, slot, direction);
            return Outcome::ToStack;
        }
        if session.carriage.is_relay() && direction == Direction::Original {
            let session = session.clone();
            return self.relay_known(world, now, ingress, frame, parsed, slot, &session);
        }
        let value = session.value(direction);
        match self.prepare(world, now, ingress, frame, parsed, value.next_hop, slot, direction) {
            Ok(hop) => {
                note(world, frame, parsed, slot, direction);
                self.clamp_mss(ingress, &hop, frame, parsed);
                let outcome = finish(frame, parsed, &value, &hop, Some(slot));
                if u32::from(parsed.total_length) > hop.mtu && value.source != parsed.key.source {
                    self.renumber_whole(frame, parsed);
                }
                self.cut_to_size(frame, parsed, &hop, outcome)
            }
            Err(outcome) => outcome,
        }
    }

    /// What stands between a packet and its next hop: TTL, neighbour, size.
    #[expect(clippy::too_many_arguments, reason = "a frame and everything known of it")]
    fn prepare(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
        next_hop: u16,
        slot: u32,
        direction: Direction,
    ) -> Result<NextHop, Outcome> {
        if parsed.ttl <= 1 {
            return Err(self.answer(now, ingress, frame, parsed, Error::TtlExceeded, Reason::DropTtl));
        }
        let mut next_hop = next_hop;
        if next_hop == next_hops::UNKNOWN {
            next_hop = self.find_way(world, slot, direction);
        }
        self.passable(world, now, ingress, frame, parsed, next_hop)
    }

    /// The next hop in a slot if a packet may be sent there now; else what becomes of it: held
    /// for its neighbour, or answered.
    pub(super) fn passable(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &[u8],
        parsed: &Parsed,
        next_hop: u16,
    ) -> Result<NextHop, Outcome> {
        self.passable_with(world, now, ingress, frame, parsed, next_hop, 0)
    }

    /// The same for a packet that becomes `overhead` bytes longer.
    #[expect(clippy::too_many_arguments, reason = "a frame and everything known of it")]
    pub(super) fn passable_with(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &[u8],
        parsed: &Parsed,
        next_hop: u16,
        overhead: u32,
    ) -> Result<NextHop, Outcome> {
        let mut hop = *self.next_hops.get(next_hop);
        if hop.flags & NextHop::VALID == 0 {
            let Some(neighbour) = self.next_hops.neighbour(next_hop) else {
                let error = Error::NetworkUnreachable;
                return Err(self.answer(now, ingress, frame, parsed, error, Reason::DropNoRoute));
            };
            let usable = match self.interfaces.get(&neighbour.0).cloned() {
                Some(egress) => self.next_hops.refresh(world, &egress, neighbour.1),
                None => false,
            };
            if !usable {
                return Err(if self.holds.hold(now, neighbour, ingress.ifindex, frame) {
                    Outcome::Held
                } else {
                    Outcome::Drop(Reason::DropHoldFull)
                });
            }
            hop = *self.next_hops.get(next_hop);
        }
        let room = hop.mtu.saturating_sub(overhead);
        if u32::from(parsed.total_length) > room && !may_be_cut(frame, parsed.network) {
            return Err(self.too_big(now, ingress, frame, parsed, room));
        }
        Ok(hop)
    }

    /// Cuts a frame that is ready to be sent if it is too big, which [`Gateway::passable`] lets
    /// through only where it may be cut.
    pub(super) fn cut_to_size(
        &mut self,
        frame: &[u8],
        parsed: &Parsed,
        hop: &NextHop,
        outcome: Outcome,
    ) -> Outcome {
        let Outcome::Send { ifindex, .. } = outcome else { return outcome };
        if u32::from(parsed.total_length) <= hop.mtu {
            return outcome;
        }
        match cut(frame, parsed.network, usize::try_from(hop.mtu).unwrap_or(0)) {
            Some(pieces) => {
                self.emissions.extend(pieces.into_iter().map(|frame| Emission { ifindex, frame }));
                Outcome::Cut
            }
            None => Outcome::Drop(Reason::DropTooBig),
        }
    }

    /// A packet that was whole and is to be cut behind an address that it shares: its identification may be that of
    /// another host's datagram (behaviour FRG-20). A fragment's is its datagram's.
    fn renumber_whole(&mut self, frame: &mut [u8], parsed: &Parsed) {
        const IN_PIECES: u16 = wire::MORE_FRAGMENTS | wire::FRAGMENT_OFFSET;
        if let Some(sent) = header(frame, parsed)
            && u16::from_be(sent.fragment) & IN_PIECES == 0
        {
            let id = self.next_identification(&sent);
            cut::set_id(frame, parsed.network, id);
        }
    }

    /// A packet that does not fit and may not be cut: its sender is told (RFC 1191).
    fn too_big(
        &mut self,
        now: Instant,
        ingress: &Interface,
        frame: &[u8],
        parsed: &Parsed,
        mtu: u32,
    ) -> Outcome {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        self.answer(now, ingress, frame, parsed, Error::TooBig { mtu }, Reason::DropTooBig)
    }

    /// Looks for the way of a direction whose next hop is not known (a reply whose inside host
    /// had no route when the session was opened), and writes it into the flow.
    pub(super) fn find_way(&mut self, world: &mut dyn World, slot: u32, direction: Direction) -> u16 {
        self.renew_way(world, slot, direction);
        self.sessions.get(slot).map_or(next_hops::UNKNOWN, |session| session.next_hops[direction as usize])
    }
}

/// Rewrites, takes one off the TTL, addresses the frame.
pub(super) fn finish(
    frame: &mut [u8],
    parsed: &Parsed,
    value: &FlowValue,
    hop: &NextHop,
    session: Option<u32>,
) -> Outcome {
    let Some(view) = SliceFrame::new(frame) else { return Outcome::Drop(Reason::DropTruncated) };
    let transport = view.skip(parsed.transport);
    let rewritten = match parsed.kind {
        Kind::FirstFragment => translate::rewrite_addresses(&view, parsed.network, value)
            .and_then(|()| translate::adjust_transport(&transport, parsed.key.protocol, value)),
        Kind::LaterFragment => translate::rewrite_addresses(&view, parsed.network, value),
        _ => translate::rewrite(&view, &transport, parsed, value),
    };
    let done = rewritten
        .and_then(|()| translate::decrement_ttl(&view, parsed.network))
        .and_then(|()| translate::address_frame(&view, hop));
    match done {
        Some(()) => Outcome::Send { ifindex: hop.ifindex, session },
        // Its checksum is in the next one (behaviour FRG-17).
        None if parsed.kind == Kind::FirstFragment => Outcome::Drop(Reason::DropFragment),
        None => Outcome::Drop(Reason::DropTruncated),
    }
}

/// Notes a packet in its session's line, as the fast path does.
pub(super) fn note(
    world: &mut dyn World,
    frame: &mut [u8],
    parsed: &Parsed,
    slot: u32,
    direction: Direction,
) {
    let mut line = world.activity(slot);
    let half = &mut line.directions[direction as usize];
    half.packets += 1;
    half.bytes += u64::from(parsed.total_length);
    half.last_seen = world.tick();
    if parsed.key.protocol == wire::TCP
        && let Some(view) = SliceFrame::new(frame)
        && let Some(header) = view.at::<Tcp>(parsed.transport)
    {
        // SAFETY: `at` answered for the whole header.
        let header = unsafe { *header };
        let (sequence, acknowledgement) =
            (u32::from_be(header.sequence), u32::from_be(header.acknowledgement));
        tcp::note_activity(&mut line, direction as usize, parsed.tcp_flags, sequence, acknowledgement);
    }
    world.set_activity(slot, &line);
}

/// The IPv4 header of a parsed frame.
pub(super) fn header(frame: &mut [u8], parsed: &Parsed) -> Option<Ipv4> {
    let view = SliceFrame::new(frame)?;
    // SAFETY: `at` answers for the whole header, which is copied.
    view.at::<Ipv4>(parsed.network).map(|header| unsafe { *header })
}
