//! ICMP errors that pass through (RFC 5508 section 4): the quoted packet tells the session, and
//! both the error and its quote are turned as if the session had never been translated.

use std::time::Instant;

use nat_common::checksum::{Delta, Sum};
use nat_common::classify::is_group;
use nat_common::flow::{FlowKey, FlowValue, Query};
use nat_common::frame::{Frame as _, SliceFrame};
use nat_common::parse::IPV4;
use nat_common::wire::{self, Ipv4};
use nat_common::{Direction, Parsed, Realm, Reason, translate};

use super::known::header;
use super::relay::is_sent_back;
use super::world::World;
use super::{Gateway, Interface, Outcome, address};

/// Bytes of an ICMP header before the quote.
const ICMP_HEADER: usize = 8;
/// Bytes of the quoted transport header every error has (RFC 792).
const QUOTED: usize = 8;

/// The packet an error quotes.
struct Quote {
    /// Offset of its IPv4 header in the frame.
    network: usize,
    /// Offset of its transport header.
    transport: usize,
    /// Where it ends, or the quote of it.
    end: usize,
    /// Its flow, as the quote has it.
    key: FlowKey,
}

impl Gateway {
    /// Sends an ICMP error on to who it concerns, if it is about a session.
    pub(super) fn icmp_error(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
    ) -> Outcome {
        let is_own = world.is_local(address(parsed.key.destination));
        // Messages that are no errors, to the gateway, are the stack's; errors only if they are
        // about a socket of the gateway's (behaviour ICE-10, LOC-09).
        let nobodys = Outcome::Drop(Reason::DropIcmpError);
        let end = parsed.network + usize::from(parsed.total_length);
        let Some(message) = frame.get(parsed.transport..end) else { return nobodys };
        let is_error = matches!(
            message.first(),
            Some(&(wire::ICMP_UNREACHABLE | wire::ICMP_TIME_EXCEEDED | wire::ICMP_PARAMETER_PROBLEM))
        );
        if message.first() == Some(&wire::ICMP_REDIRECT) && ingress.realm() == Realm::Outside {
            // Whoever routes for others believes no redirect (RFC 1812 section 5.2.7.2).
            return nobodys;
        }
        if !is_error {
            return if is_own { Outcome::ToStack } else { nobodys };
        }
        if Sum::ZERO.add_bytes(message).fold() != 0xffff {
            return Outcome::Drop(Reason::DropIcmpError);
        }
        let Some(quote) = read_quote(frame, parsed, end, ingress.realm()) else { return nobodys };
        // Packets the other way arrive on this side with the quote's endpoints exchanged.
        let opposite = quote.key.reversed(ingress.realm());
        let Some((slot, direction)) = self.find(world, now, &opposite) else {
            // A one-to-one address is the gateway's only in that it answers ARP for it.
            if let Some(outcome) = self.stateless_error(world, now, ingress, frame, parsed) {
                return outcome;
            }
            let is_current = world.read_bound(quote.key.protocol);
            // A socket made since then may be meant. The stack knows, but a flood is not its to judge.
            let may_be_new = !is_current && world.is_local(address(quote.key.source));
            if is_own && (is_about_own(world, &quote.key) || (may_be_new && self.doubtful.take(now))) {
                return Outcome::ToStack;
            }
            return nobodys;
        };
        let Some(session) = self.sessions.get(slot) else { return nobodys };
        if session.origin == super::Origin::Bypass {
            return Outcome::ToStack;
        }
        // An error about what a server has sent past the gateway: it is the server's, as it is.
        if session.carriage.is_relay() && direction == Direction::Original {
            let session = session.clone();
            let hop_index = session.next_hops[direction as usize];
            let overhead = session.carriage.overhead();
            if parsed.key.destination != opposite.destination {
                return nobodys;
            }
            return match self.passable_with(world, now, ingress, frame, parsed, hop_index, overhead) {
                Ok(hop) => match session.relay(hop) {
                    Some(relay) if !is_sent_back(ingress, frame, &relay) => {
                        self.relay(frame, parsed, &relay, None)
                    }
                    _ => Outcome::Drop(Reason::DropLoop),
                },
                Err(outcome) => outcome,
            };
        }
        if parsed.ttl <= 1 {
            return Outcome::Drop(Reason::DropTtl);
        }
        let caused_by = if direction == Direction::Original { Direction::Reply } else { Direction::Original };
        let before = session.key(caused_by);
        let rewritten = session.rewritten(direction);
        // Errors about an outside remote must come from the side they claim to be about; errors
        // from inside are hidden behind the session's external address (RFC 5508 REQ-5).
        let outer_source = if ingress.realm() == Realm::Inside {
            self.public_source(parsed.key.source, rewritten.source)
        } else if parsed.key.source == opposite.source {
            rewritten.source
        } else {
            parsed.key.source
        };
        let hop_index = session.next_hops[direction as usize];
        if ingress.realm() == Realm::Inside && !self.is_from(frame, session.next_hops[caused_by as usize]) {
            return Outcome::Drop(Reason::DropIcmpError);
        }
        if parsed.key.destination != opposite.destination {
            return Outcome::Drop(Reason::DropIcmpError);
        }
        let hop = match self.passable(world, now, ingress, frame, parsed, hop_index) {
            Ok(hop) => hop,
            Err(outcome) => return outcome,
        };
        match rewrite(frame, parsed, end, &quote, &before, outer_source, rewritten.destination) {
            Some(()) => {
                let Some(view) = SliceFrame::new(frame) else { return Outcome::Drop(Reason::DropTruncated) };
                let done = translate::decrement_ttl(&view, parsed.network)
                    .and_then(|()| translate::address_frame(&view, &hop));
                match done {
                    Some(()) => {
                        let outcome = Outcome::Send { ifindex: hop.ifindex, session: None };
                        self.cut_to_size(frame, parsed, &hop, outcome)
                    }
                    None => Outcome::Drop(Reason::DropTruncated),
                }
            }
            None => Outcome::Drop(Reason::DropIcmpError),
        }
    }
}

impl Gateway {
    /// The source that an error from the inside has outside: that of the session it is about, unless
    /// the router that reports has an address of its own there (RFC 5508 REQ-5c).
    fn public_source(&self, reporter: u32, session: u32) -> u32 {
        self.rules.static_outbound(address(reporter)).map_or(session, |(_, own)| super::network(own))
    }

    /// Whether a frame comes from a next hop: errors about an inside host come from it, or from the
    /// router it is behind, not from its neighbours (behaviour ATK-10).
    fn is_from(&self, frame: &[u8], next_hop: u16) -> bool {
        let hop = self.next_hops.get(next_hop);
        hop.flags & nat_common::next_hop::NextHop::VALID == 0
            || frame.get(6..12) == Some(&hop.destination[..])
    }
}

/// Whether a quoted packet may be the gateway's own: a socket has its source, or it is a query,
/// whose sockets cannot be looked up.
fn is_about_own(world: &dyn World, quoted: &FlowKey) -> bool {
    world.is_local(address(quoted.source))
        && match quoted.protocol {
            wire::TCP | wire::UDP => world.is_bound(quoted.protocol, quoted.source, quoted.source_port),
            _ => true,
        }
}

/// Reads the packet an error quotes. `None` if it is too short, contradicts itself, is a later
/// fragment or an error itself, is one that natgw does not forward (to many, with a source route:
/// RFC 5508 section 7.3).
fn read_quote(frame: &mut [u8], parsed: &Parsed, end: usize, realm: Realm) -> Option<Quote> {
    let network = parsed.transport + ICMP_HEADER;
    let bytes = frame.get(network..end)?;
    let first = *bytes.first()?;
    let header_length = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_length < IPV4 || bytes.len() < header_length + QUOTED {
        return None;
    }
    // RFC 5508 REQ-3a: a quote whose header checksum is wrong is not believed.
    if Sum::ZERO.add_bytes(&bytes[..header_length]).fold() != 0xffff
        || has_source_route(&bytes[IPV4..header_length])
    {
        return None;
    }
    let inner = header(frame, &Parsed { network, ..*parsed })?;
    // Behind a short packet come padding and extensions (RFC 4884 section 4), which are not its.
    let end = end.min(network + usize::from(u16::from_be(inner.total_length)));
    if u16::from_be(inner.fragment) & wire::FRAGMENT_OFFSET != 0 || is_group(inner.destination) {
        return None;
    }
    let transport = network + header_length;
    let word = |at: usize| Some(u16::from_ne_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut key = FlowKey {
        source: inner.source,
        destination: inner.destination,
        source_port: 0,
        destination_port: 0,
        protocol: inner.protocol,
        query: 0,
        realm: realm as u16,
    };
    match inner.protocol {
        wire::TCP | wire::UDP | wire::UDPLITE => {
            key.source_port = word(transport)?;
            key.destination_port = word(transport + 2)?;
        }
        wire::ICMP => match *frame.get(transport)? {
            wire::ICMP_ECHO_REQUEST | wire::ICMP_TIMESTAMP_REQUEST => {
                key.source_port = word(transport + 4)?;
                key.query = Query::Request as u8;
            }
            wire::ICMP_ECHO_REPLY | wire::ICMP_TIMESTAMP_REPLY => {
                key.destination_port = word(transport + 4)?;
                key.query = Query::Reply as u8;
            }
            // An error about an error, or about what is no query (RFC 1812 section 4.3.2.7).
            _ => return None,
        },
        _ => {}
    }
    Some(Quote { network, transport, end, key })
}

/// Whether a list of options has a loose or strict source route.
fn has_source_route(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        options = match kind {
            0 => return false,
            1 => rest,
            131 | 137 => return true,
            _ => match rest.first().and_then(|length| options.get(usize::from(*length).max(2)..)) {
                Some(next) => next,
                None => return false,
            },
        };
    }
    false
}

/// Writes the quote as its sender had sent it (`before`), and the error between its new ends. The
/// ICMP checksum covers the quote: it is brought after by what changed there.
fn rewrite(
    frame: &mut [u8],
    parsed: &Parsed,
    end: usize,
    quote: &Quote,
    before: &FlowKey,
    outer_source: u32,
    outer_destination: u32,
) -> Option<()> {
    let inner_rewrite = nat_common::flow::Rewrite {
        source: before.source,
        destination: before.destination,
        source_port: before.source_port,
        destination_port: before.destination_port,
    };
    let value = FlowValue::translate(&quote.key, &inner_rewrite, 0);
    write_quote(frame, quote, &value)?;
    // The whole message is at hand and was right: summing it anew is simplest, and cannot drift.
    let message = frame.get_mut(parsed.transport..end)?;
    message[2..4].fill(0);
    let checksum = Sum::ZERO.add_bytes(message).checksum();
    message[2..4].copy_from_slice(&checksum.to_ne_bytes());
    let view = SliceFrame::new(frame)?;
    let outer = view.at::<Ipv4>(parsed.network)?;
    // SAFETY: `at` answered for the whole header, which nothing else borrows.
    unsafe {
        let sum = Sum::ZERO
            .subtract_u32((*outer).source)
            .subtract_u32((*outer).destination)
            .add_u32(outer_source)
            .add_u32(outer_destination);
        (*outer).source = outer_source;
        (*outer).destination = outer_destination;
        (*outer).checksum = Delta::of(sum).apply((*outer).checksum);
    }
    Some(())
}

/// Writes addresses, ports and checksums of the quoted packet, as far as it is quoted. A wrong
/// transport checksum stays wrong (RFC 5508 REQ-3c).
fn write_quote(frame: &mut [u8], quote: &Quote, value: &FlowValue) -> Option<()> {
    let view = SliceFrame::new(frame)?;
    translate::rewrite_addresses(&view, quote.network, value)?;
    let delta = Delta(value.transport_delta);
    let field = match quote.key.protocol {
        wire::TCP => 16,
        wire::UDP | wire::UDPLITE => 6,
        wire::ICMP => 2,
        _ => return Some(()),
    };
    let mut write = |at: usize, word: u16| {
        frame.get_mut(at..at + 2).map(|bytes| bytes.copy_from_slice(&word.to_ne_bytes()))
    };
    if quote.key.protocol == wire::ICMP {
        let is_reply = quote.key.query == Query::Reply as u8;
        write(quote.transport + 4, if is_reply { value.destination_port } else { value.source_port })?;
    } else {
        write(quote.transport, value.source_port)?;
        write(quote.transport + 2, value.destination_port)?;
    }
    let at = quote.transport + field;
    if at + 2 <= quote.end {
        let bytes = frame.get_mut(at..at + 2)?;
        let checksum = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let mended = if quote.key.protocol == wire::UDP || quote.key.protocol == wire::UDPLITE {
            delta.apply_udp(checksum)
        } else {
            delta.apply(checksum)
        };
        bytes.copy_from_slice(&mended.to_ne_bytes());
    }
    Some(())
}

impl Gateway {
    /// Turns a one-to-one error: the host inside the quote and the error's own end. `None` if no
    /// one-to-one rule concerns it.
    pub(super) fn stateless_error(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        frame: &mut [u8],
        parsed: &Parsed,
    ) -> Option<Outcome> {
        let end = parsed.network + usize::from(parsed.total_length);
        let quote = read_quote(frame, parsed, end, ingress.realm())?;
        let inbound = ingress.realm() == Realm::Outside;
        let mut before = quote.key;
        let (mut source, mut destination) = (parsed.key.source, parsed.key.destination);
        if inbound {
            let (_, inside) = self.rules.static_inbound(address(destination))?;
            if quote.key.source != destination {
                return Some(Outcome::Drop(Reason::DropIcmpError));
            }
            destination = super::network(inside);
            before.source = destination;
        } else {
            let (_, external) = self.rules.static_outbound(address(quote.key.destination))?;
            before.destination = super::network(external);
            source = self.public_source(source, before.destination);
        }
        let hop = match self.stateless_way(world, now, ingress, frame, parsed, destination) {
            Ok((hop, _)) => hop,
            Err(outcome) => return Some(outcome),
        };
        let done = rewrite(frame, parsed, end, &quote, &before, source, destination).and_then(|()| {
            let view = SliceFrame::new(frame)?;
            translate::decrement_ttl(&view, parsed.network)?;
            translate::address_frame(&view, &hop)
        });
        Some(match done {
            Some(()) => {
                let outcome = Outcome::Send { ifindex: hop.ifindex, session: None };
                self.cut_to_size(frame, parsed, &hop, outcome)
            }
            None => Outcome::Drop(Reason::DropIcmpError),
        })
    }
}
