//! Packets of virtual servers that go to their server as they are: by the frame's destination alone, or inside
//! another packet (RFC 2003). Answers go past the gateway; those that come by all the same are plainly sent on.

use std::time::Instant;

use nat_common::frame::{Frame as _, SliceFrame};
use nat_common::wire::Ipv4;
use nat_common::{Direction, Parsed, Reason, next_hop::NextHop, translate, tunnel};

use super::cut::cut;
use super::known::{header, note};
use super::sessions::{Carriage, Session};
use super::world::World;
use super::{Emission, Gateway, Interface, Outcome, next_hops};

/// Where relayed packets go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relay {
    /// The server, or the way to it.
    pub(super) hop: NextHop,
    /// The ends of the tunnel, if it is one.
    pub(super) tunnel: Option<(u32, u32)>,
}

impl Session {
    /// The way of its original direction, if its packets are relayed.
    pub(super) fn relay(&self, hop: NextHop) -> Option<Relay> {
        let ends = (self.rewrite.source, self.rewrite.destination);
        match self.carriage {
            Carriage::Translated => None,
            Carriage::Direct => Some(Relay { hop, tunnel: None }),
            Carriage::Tunnelled => Some(Relay { hop, tunnel: Some(ends) }),
        }
    }
}

impl Gateway {
    /// Relays a packet of a session to its server.
    #[expect(clippy::too_many_arguments, reason = "a frame and everything known of it")]
    pub(super) fn relay_known(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
        slot: u32,
        session: &Session,
    ) -> Outcome {
        let mut next_hop = session.next_hops[Direction::Original as usize];
        if next_hop == next_hops::UNKNOWN {
            next_hop = self.find_way(world, slot, Direction::Original);
        }
        let overhead = session.carriage.overhead();
        let hop = match self.passable_with(world, now, ingress, frame, parsed, next_hop, overhead) {
            Ok(hop) => hop,
            Err(outcome) => return outcome,
        };
        let Some(relay) = session.relay(hop) else { return Outcome::Drop(Reason::DropTable) };
        if is_sent_back(ingress, frame, &relay) {
            return Outcome::Drop(Reason::DropLoop);
        }
        note(world, frame, parsed, slot, Direction::Original);
        self.clamp_mss(ingress, &hop, frame, parsed);
        self.relay(frame, parsed, &relay, Some(slot))
    }

    /// Sends a packet on as it is.
    pub(super) fn relay(
        &mut self,
        frame: &mut [u8],
        parsed: &Parsed,
        relay: &Relay,
        session: Option<u32>,
    ) -> Outcome {
        let hop = &relay.hop;
        let truncated = Outcome::Drop(Reason::DropTruncated);
        let Some(view) = SliceFrame::new(frame) else { return truncated };
        if translate::address_frame(&view, hop).is_none() {
            return truncated;
        }
        let Some((source, destination)) = relay.tunnel else {
            let outcome = Outcome::Send { ifindex: hop.ifindex, session };
            return self.cut_to_size(frame, parsed, hop, outcome);
        };
        let Some(inner) = header(frame, parsed) else { return truncated };
        let id = self.next_identification(&Ipv4 { source, destination, protocol: 4, ..inner });
        let outer = tunnel::outer(&inner, source, destination, id);
        let end = parsed.network + usize::from(parsed.total_length);
        let (Some(link), Some(packet)) = (frame.get(..parsed.network), frame.get(parsed.network..end)) else {
            return truncated;
        };
        let mut packet = [link, &[0; tunnel::OVERHEAD as usize], packet].concat();
        let Some(place) = SliceFrame::new(&mut packet).and_then(|view| view.at::<Ipv4>(parsed.network))
        else {
            return truncated;
        };
        // SAFETY: `at` answered for the whole header, which nothing else borrows.
        unsafe { *place = outer };
        let ifindex = hop.ifindex;
        let mtu = usize::try_from(hop.mtu).unwrap_or(0);
        if packet.len() - parsed.network <= mtu {
            self.emissions.push(Emission { ifindex, frame: packet });
            return Outcome::Cut;
        }
        // The outside of what may be cut is (RFC 2003 section 3.1): the server puts it together.
        match cut(&packet, parsed.network, mtu) {
            Some(pieces) => {
                self.emissions.extend(pieces.into_iter().map(|frame| Emission { ifindex, frame }));
                Outcome::Cut
            }
            None => Outcome::Drop(Reason::DropTooBig),
        }
    }
}

/// Whether a frame comes from the neighbour that it would be sent to: a server that does not have the address sends
/// it back to where its route leads, and nothing would end that, since its TTL stays as it is. A tunnel may well lead
/// by the router that the packet came from.
pub(super) fn is_sent_back(ingress: &Interface, frame: &[u8], relay: &Relay) -> bool {
    relay.tunnel.is_none()
        && relay.hop.ifindex == ingress.ifindex
        && frame.get(6..12) == Some(&relay.hop.destination[..])
}
