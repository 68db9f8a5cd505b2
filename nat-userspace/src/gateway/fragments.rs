//! Fragments (RFC 4787 REQ-14): the first tells the session, the others follow it by address; those
//! that come before it wait, bounded in all and for each source.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use nat_common::checksum::{Delta, Sum};
use nat_common::flow::Query;
use nat_common::frame::{Frame as _, SliceFrame};
use nat_common::parse::Kind;
use nat_common::wire::{self, Ethernet, Icmp, Ipv4, Tcp, Udp};
use nat_common::{Parsed, Realm, Reason, next_hop::NextHop, translate};

use super::known::header;
use super::world::World;
use super::{Gateway, Interface, Outcome, Released, address, cut};

/// What the fragments of one datagram share (RFC 791), and the side they come from.
type Key = (u32, u32, u8, u16, Realm);

/// Datagrams known at once.
const DATAGRAMS: usize = 16_384;
/// Fragments that wait in all.
const WAITING: usize = 8192;
/// Fragments that wait for one source: one flooding host leaves room for others.
const WAITING_PER_SOURCE: u32 = 1024;

/// What became of a datagram's first fragment.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Send { hop: NextHop, source: u32, destination: u32, id: u16 },
    ToStack,
    Drop(Reason),
}

struct Datagram {
    verdict: Option<Verdict>,
    waiting: Vec<(u32, Vec<u8>)>,
    until: Instant,
}

/// Datagrams under way.
pub struct Fragments {
    timeout: Duration,
    datagrams: HashMap<Key, Datagram>,
    /// In the order they were first seen, which is the order they are over.
    order: VecDeque<(Instant, Key)>,
    waiting: usize,
    by_source: HashMap<u32, u32>,
}

impl Fragments {
    /// No datagram.
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            datagrams: HashMap::new(),
            order: VecDeque::new(),
            waiting: 0,
            by_source: HashMap::new(),
        }
    }

    /// When the oldest datagram is over.
    pub fn next(&self) -> Option<Instant> {
        self.order.front().map(|&(until, _)| until)
    }

    /// Fragments that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Forgets datagrams that are over, and the oldest beyond the bound. Returns how many
    /// fragments had waited in vain.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut lost = 0;
        while let Some(&(until, key)) = self.order.front() {
            if until > now && self.order.len() <= DATAGRAMS {
                break;
            }
            self.order.pop_front();
            // An identification used again meanwhile has a later entry of its own.
            if self.datagrams.get(&key).is_some_and(|datagram| datagram.until <= until) {
                lost += self.take_waiting(&key).len();
                self.datagrams.remove(&key);
            }
        }
        lost
    }

    fn datagram(&mut self, key: Key, now: Instant) -> &mut Datagram {
        let until = now + self.timeout;
        let order = &mut self.order;
        self.datagrams.entry(key).or_insert_with(|| {
            order.push_back((until, key));
            Datagram { verdict: None, waiting: Vec::new(), until }
        })
    }

    fn hold(&mut self, key: Key, now: Instant, ingress: u32, frame: &[u8]) -> bool {
        let of_source = self.by_source.get(&key.0).copied().unwrap_or(0);
        if self.waiting >= WAITING || of_source >= WAITING_PER_SOURCE {
            return false;
        }
        self.waiting += 1;
        *self.by_source.entry(key.0).or_default() += 1;
        self.datagram(key, now).waiting.push((ingress, frame.to_vec()));
        true
    }

    fn take_waiting(&mut self, key: &Key) -> Vec<(u32, Vec<u8>)> {
        let Some(datagram) = self.datagrams.get_mut(key) else { return Vec::new() };
        let waiting = std::mem::take(&mut datagram.waiting);
        self.waiting -= waiting.len();
        if let Some(count) = self.by_source.get_mut(&key.0) {
            *count -= u32::try_from(waiting.len()).unwrap_or(*count).min(*count);
            if *count == 0 {
                self.by_source.remove(&key.0);
            }
        }
        waiting
    }
}

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
        if parsed.kind == Kind::FirstFragment {
            return self.first_fragment(world, now, ingress, frame, parsed, key);
        }
        match self.fragments.datagrams.get(&key).and_then(|datagram| datagram.verdict) {
            Some(verdict) => self.follow(frame, parsed, verdict),
            None if self.fragments.hold(key, now, ingress.ifindex, frame) => Outcome::Held,
            None => Outcome::Drop(Reason::DropHoldFull),
        }
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
        let outcome = match whole(frame, parsed) {
            Ok(whole) => self.packet(world, now, ingress, frame, &whole),
            Err(_) if world.is_local(address(parsed.key.destination)) => Outcome::ToStack,
            Err(reason) => Outcome::Drop(reason),
        };
        let verdict = match outcome {
            // Waits for its neighbour, and will come here again.
            Outcome::Held => return outcome,
            Outcome::ToStack => Verdict::ToStack,
            Outcome::Drop(reason) => Verdict::Drop(reason),
            // Cut: its pieces are on their way, with the identification it came with.
            Outcome::Cut => {
                match self.emissions.last().map(|emission| (emission.ifindex, emission.frame.clone())) {
                    Some((ifindex, mut piece)) => match self.sent(&mut piece, parsed, ifindex) {
                        Some(verdict) => verdict,
                        None => return Outcome::Drop(Reason::DropTruncated),
                    },
                    None => return outcome,
                }
            }
            Outcome::Send { ifindex, .. } => {
                if ip.source != header(frame, parsed).map_or(0, |sent| sent.source) {
                    // Datagrams of two hosts may have one identification; behind one address they
                    // would be taken for one (behaviour FRG-20).
                    let Some(sent) = header(frame, parsed) else {
                        return Outcome::Drop(Reason::DropTruncated);
                    };
                    let id = self.identifications.next(
                        sent.source,
                        sent.destination,
                        sent.protocol,
                        &mut self.random,
                    );
                    if cut::set_id(frame, parsed.network, id).is_none() {
                        return Outcome::Drop(Reason::DropTruncated);
                    }
                }
                match self.sent(frame, parsed, ifindex) {
                    Some(verdict) => verdict,
                    None => return Outcome::Drop(Reason::DropTruncated),
                }
            }
        };
        // An identification used again for another datagram follows the new first (FRG-22).
        self.fragments.datagram(key, now).verdict = Some(verdict);
        for (ingress, mut frame) in self.fragments.take_waiting(&key) {
            let Some(view) = SliceFrame::new(&mut frame) else { continue };
            let nat_common::parse::Frames::Ipv4(parsed) = nat_common::parse(&view, key.4) else { continue };
            let outcome = self.follow(&mut frame, &parsed, verdict);
            if let Outcome::Drop(reason) = outcome {
                self.counts.add(reason);
            }
            self.released.push(Released { ingress, frame, outcome });
        }
        outcome
    }

    /// Forgets datagrams that are over.
    pub(super) fn expire_fragments(&mut self, now: Instant) {
        for _ in 0..self.fragments.expire(now) {
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
    fn sent(&self, frame: &mut [u8], parsed: &Parsed, ifindex: u32) -> Option<Verdict> {
        let ip = header(frame, parsed)?;
        let view = SliceFrame::new(frame)?;
        // SAFETY: `at` answers for the whole header, which is copied.
        let ethernet = view.at::<Ethernet>(0).map(|ethernet| unsafe { *ethernet })?;
        let hop = NextHop {
            destination: ethernet.destination,
            source: ethernet.source,
            ifindex,
            mtu: self.interfaces.get(&ifindex)?.mtu,
            ..NextHop::default()
        };
        Some(Verdict::Send { hop, source: ip.source, destination: ip.destination, id: ip.id })
    }

    /// Sends a later fragment after its first.
    fn follow(&mut self, frame: &mut [u8], parsed: &Parsed, verdict: Verdict) -> Outcome {
        let (hop, source, destination, id) = match verdict {
            Verdict::Send { hop, source, destination, id } => (hop, source, destination, id),
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
