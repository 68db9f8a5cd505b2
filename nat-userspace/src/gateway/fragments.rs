//! Fragments (RFC 4787 REQ-14): the first tells the session, the others follow it by address; those
//! that come before it wait.

use std::time::Instant;

use nat_common::checksum::{Delta, Sum};
use nat_common::flow::Query;
use nat_common::frame::{Frame as _, SliceFrame};
use nat_common::parse::Kind;
use nat_common::wire::{self, Ethernet, Icmp, Ipv4, Tcp, Udp};
use nat_common::{Direction, FlowKey, Parsed, Realm, Reason, next_hop::NextHop, translate, tunnel};

use super::datagrams::{Key, Verdict};
use super::known::header;
use super::notices::Condition;
use super::relay::Relay;
use super::world::World;
use super::{Gateway, Interface, Outcome, Released, address, cut};

impl Gateway {
    /// Judges a fragment.
    pub(super) fn fragment(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
    ) -> Outcome {
        let Some(ip) = header(frame, parsed) else { return Outcome::Drop(Reason::DropTruncated) };
        let key = (ip.source, ip.destination, ip.protocol, ip.id, ingress.realm());
        self.expire_fragments(now);
        // A one-to-one address needs no port: each fragment goes its way at once (behaviour FRG-25).
        if let Some(outcome) = self.one_to_one_fragment(world, now, ingress, frame, parsed) {
            return outcome;
        }
        if parsed.kind == Kind::FirstFragment {
            return self.first_fragment(world, now, ingress, frame, parsed, key);
        }
        if let Some(verdict) = self.datagrams.verdict(&key) {
            return self.follow(frame, parsed, verdict);
        }
        for _ in 0..self.datagrams.hold(key, now, ingress.ifindex, frame) {
            self.counts.add(Reason::DropHoldFull);
            self.short_of(now, Condition::Fragments);
        }
        Outcome::Held
    }

    /// A fragment to or from a one-to-one address. `None` if it is neither, or if the way is back inside: a hairpin
    /// changes both ends, and has a session.
    fn one_to_one_fragment(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
    ) -> Option<Outcome> {
        let (source, destination) = (address(parsed.key.source), address(parsed.key.destination));
        let inbound = self.rules.static_inbound(destination).is_some();
        let concerns = match ingress.realm() {
            Realm::Outside => inbound,
            Realm::Inside => !inbound && self.rules.static_outbound(source).is_some(),
        };
        if !concerns {
            return None;
        }
        self.refuse_at_sight(world, ingress, &parsed.key)
            .or_else(|| self.one_to_one(world, now, ingress, frame, parsed))
    }

    /// The first fragment: judged as the packet it begins, and remembered for the others.
    fn first_fragment(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
        key: Key,
    ) -> Outcome {
        let Some(ip) = header(frame, parsed) else { return Outcome::Drop(Reason::DropTruncated) };
        let digest = self.datagrams.digest(frame.get(parsed.transport..).unwrap_or_default());
        let sent_before = self.datagrams.sent_before(&key, digest);
        let emitted = self.emissions.len();
        let whole = whole(frame, parsed);
        let outcome = match whole {
            Ok(whole) => self.packet_or_own(world, now, ingress, frame, &whole),
            Err(_) if world.is_local(address(parsed.key.destination)) => Outcome::ToStack,
            Err(reason) => Outcome::Drop(reason),
        };
        let way = whole.ok().and_then(|whole| self.way_of(world, &whole.key));
        let relay = way.and_then(|(_, relay)| relay);
        let verdict = match outcome {
            // Waits for its neighbour, and will come here again.
            Outcome::Held => return outcome,
            Outcome::ToStack => Verdict::ToStack,
            Outcome::Drop(reason) => Verdict::Drop(reason),
            Outcome::Cut | Outcome::Send { .. } if relay.is_some() => {
                relay.map_or(Verdict::Drop(Reason::DropTable), Verdict::Relay)
            }
            Outcome::Cut | Outcome::Send { .. } => {
                let verdict = self
                    .number(frame, parsed, outcome, emitted, ip.source, sent_before)
                    .and_then(|ifindex| self.sent(frame, parsed, ifindex, way));
                match verdict {
                    Some(verdict) => verdict,
                    None => return Outcome::Drop(Reason::DropTruncated),
                }
            }
        };
        for (ingress, mut frame) in self.datagrams.decide(key, now, verdict, digest) {
            let Some(view) = SliceFrame::new(&mut frame) else { continue };
            let nat_common::parse::Frames::Ipv4(parsed) = nat_common::parse(&view, key.4) else { continue };
            let came = frame.clone();
            let outcome = self.follow(&mut frame, &parsed, verdict);
            if let Outcome::Drop(reason) = outcome {
                self.counts.add(reason);
            }
            self.released.push(Released { ingress, came, frame, outcome });
        }
        outcome
    }

    /// Judges the packet that a first fragment begins. What nobody inside wants may be for a socket of the gateway's:
    /// the fast path has asked them only about whole packets.
    fn packet_or_own(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        whole: &Parsed,
    ) -> Outcome {
        let key = &whole.key;
        let may_be =
            matches!(key.protocol, wire::TCP | wire::UDP) && world.is_local(address(key.destination));
        let outcome = self.packet(world, now, ingress, frame, whole);
        if !may_be || !matches!(outcome, Outcome::Drop(Reason::DropUnsolicited | Reason::DropFiltered)) {
            return outcome;
        }
        let is_current = world.read_bound(key.protocol);
        let is_bound = world.is_bound(key.protocol, key.destination, key.destination_port);
        // A socket made since they were read may be meant. The stack knows, but a flood is not its to judge.
        if is_bound || (!is_current && self.doubtful.take(now)) { Outcome::ToStack } else { outcome }
    }

    /// Gives a datagram whose first fragment was translated, and maybe cut, an identification of its own: datagrams of
    /// two hosts may have the same one, and behind one address would be taken for one (behaviour FRG-20). A first
    /// fragment that comes twice keeps what it got (behaviour FRG-07). Returns the interface that it leaves by.
    fn number(
        &mut self,
        frame: &mut [u8],
        parsed: &Parsed,
        outcome: Outcome,
        emitted: usize,
        source: u32,
        sent_before: Option<u16>,
    ) -> Option<u32> {
        let ifindex = match outcome {
            Outcome::Send { ifindex, .. } => ifindex,
            // `frame` is translated, and what it was cut into is with the emissions.
            _ => self.emissions.get(emitted..)?.last()?.ifindex,
        };
        let sent = header(frame, parsed)?;
        if sent.source != source {
            let id = match sent_before {
                Some(id) => id,
                None => self.next_identification(&sent),
            };
            cut::set_id(frame, parsed.network, id)?;
            for piece in self.emissions.get_mut(emitted..)? {
                cut::set_id(&mut piece.frame, parsed.network, id)?;
            }
        }
        Some(ifindex)
    }

    /// An identification for a datagram with this header that is, or may be, in pieces.
    pub(super) fn next_identification(&mut self, sent: &Ipv4) -> u16 {
        self.identifications.next(sent.source, sent.destination, sent.protocol, &mut self.random)
    }

    /// Forgets datagrams that are over.
    pub(super) fn expire_fragments(&mut self, now: Instant) {
        for _ in 0..self.datagrams.expire(now) {
            self.counts.add(Reason::DropFragment);
        }
    }
}

/// A first fragment as the whole packet it begins: with ports, if they and the checksum are all
/// in it (RFC 1858 section 3.2: else nothing that is forwarded could be right).
fn whole(frame: &mut [u8], parsed: &Parsed) -> Result<Parsed, Reason> {
    let end = parsed.network + usize::from(parsed.total_length);
    let mut whole = Parsed { kind: Kind::Ported, ..*parsed };
    let room = end - parsed.transport;
    let Some(view) = SliceFrame::new(frame) else { return Err(Reason::DropTruncated) };
    match parsed.key.protocol {
        wire::TCP if room >= size_of::<Tcp>() => {
            let Some(tcp) = view.at::<Tcp>(parsed.transport) else { return Err(Reason::DropFragment) };
            // SAFETY: `at` answered for the whole header, which is copied.
            let tcp = unsafe { *tcp };
            whole.key.source_port = tcp.source;
            whole.key.destination_port = tcp.destination;
            whole.tcp_flags = tcp.flags;
        }
        wire::UDP | wire::UDPLITE if room >= size_of::<Udp>() => {
            let Some(udp) = view.at::<Udp>(parsed.transport) else { return Err(Reason::DropFragment) };
            // SAFETY: as above.
            let udp = unsafe { *udp };
            whole.key.source_port = udp.source;
            whole.key.destination_port = udp.destination;
        }
        wire::ICMP if room >= size_of::<Icmp>() => {
            let Some(icmp) = view.at::<Icmp>(parsed.transport) else { return Err(Reason::DropFragment) };
            // SAFETY: as above.
            let icmp = unsafe { *icmp };
            match icmp.kind {
                wire::ICMP_ECHO_REQUEST | wire::ICMP_TIMESTAMP_REQUEST => {
                    whole.key.source_port = icmp.id;
                    whole.key.query = Query::Request as u8;
                }
                wire::ICMP_ECHO_REPLY | wire::ICMP_TIMESTAMP_REPLY => {
                    whole.key.destination_port = icmp.id;
                    whole.key.query = Query::Reply as u8;
                }
                _ => return Err(Reason::DropFragment),
            }
        }
        wire::TCP | wire::UDP | wire::UDPLITE | wire::ICMP => return Err(Reason::DropFragment),
        _ => whole.kind = Kind::Portless,
    }
    Ok(whole)
}

impl Gateway {
    /// What a first fragment that was sent has become, for the others to follow.
    fn sent(
        &self,
        frame: &mut [u8],
        parsed: &Parsed,
        ifindex: u32,
        way: Option<(NextHop, Option<Relay>)>,
    ) -> Option<Verdict> {
        let ip = header(frame, parsed)?;
        let view = SliceFrame::new(frame)?;
        // SAFETY: `at` answers for the whole header, which is copied.
        let ethernet = view.at::<Ethernet>(0).map(|ethernet| unsafe { *ethernet })?;
        let hop = NextHop {
            destination: ethernet.destination,
            source: ethernet.source,
            ifindex,
            mtu: way.map_or(self.interfaces.get(&ifindex)?.mtu, |(hop, _)| hop.mtu),
            ..NextHop::default()
        };
        Some(Verdict::Send { hop, source: ip.source, destination: ip.destination, id: ip.id })
    }

    /// Where the packets of a flow go, and what they are relayed by if they are.
    fn way_of(&self, world: &dyn World, key: &FlowKey) -> Option<(NextHop, Option<Relay>)> {
        let (slot, direction) = world.find(key)?;
        let session = self.sessions.get(slot)?;
        let hop = *self.next_hops.get(session.next_hops[direction as usize]);
        Some((hop, session.relay(hop).filter(|_| direction == Direction::Original)))
    }

    /// Sends a later fragment on as it is.
    fn relay_fragment(&mut self, frame: &mut [u8], parsed: &Parsed, relay: &Relay) -> Outcome {
        let overhead = if relay.tunnel.is_some() { tunnel::OVERHEAD } else { 0 };
        let fits = u32::from(parsed.total_length) + u32::from(overhead) <= relay.hop.mtu;
        if !fits && !cut::may_be_cut(frame, parsed.network) {
            return Outcome::Drop(Reason::DropTooBig);
        }
        self.relay(frame, parsed, relay, None)
    }

    /// Sends a later fragment after its first.
    fn follow(&mut self, frame: &mut [u8], parsed: &Parsed, verdict: Verdict) -> Outcome {
        let (hop, source, destination, id) = match verdict {
            Verdict::Send { hop, source, destination, id } => (hop, source, destination, id),
            Verdict::Relay(relay) => return self.relay_fragment(frame, parsed, &relay),
            Verdict::ToStack => return Outcome::ToStack,
            Verdict::Drop(reason) => return Outcome::Drop(reason),
        };
        if parsed.ttl <= 1 {
            return Outcome::Drop(Reason::DropTtl);
        }
        let Some(view) = SliceFrame::new(frame) else { return Outcome::Drop(Reason::DropTruncated) };
        let Some(ip) = view.at::<Ipv4>(parsed.network) else { return Outcome::Drop(Reason::DropTruncated) };
        // SAFETY: `at` answered for the whole header, which nothing else borrows.
        unsafe {
            let sum = Sum::ZERO
                .subtract_u32((*ip).source)
                .subtract_u32((*ip).destination)
                .subtract_u16((*ip).id)
                .add_u32(source)
                .add_u32(destination)
                .add_u16(id);
            (*ip).source = source;
            (*ip).destination = destination;
            (*ip).id = id;
            (*ip).checksum = Delta::of(sum).apply((*ip).checksum);
        }
        let done = translate::decrement_ttl(&view, parsed.network)
            .and_then(|()| translate::address_frame(&view, &hop));
        if done.is_none() {
            return Outcome::Drop(Reason::DropTruncated);
        }
        if u32::from(parsed.total_length) > hop.mtu && !cut::may_be_cut(frame, parsed.network) {
            return Outcome::Drop(Reason::DropTooBig);
        }
        self.cut_to_size(frame, parsed, &hop, Outcome::Send { ifindex: hop.ifindex, session: None })
    }
}
