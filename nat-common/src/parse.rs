//! From a frame to what the gateway needs to know of it: where its headers lie and which flow it
//! belongs to.

use crate::checksum::Sum;
use crate::flow::{FlowKey, Query, Realm};
use crate::frame::Frame;
use crate::reason::Reason;
use crate::vlan::{Tags, is_tag};
use crate::wire::{self, Ethernet, Icmp, Ipv4, Tcp, Udp, Vlan};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = size_of::<Ethernet>();
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = size_of::<Ipv4>();

/// A frame that is IPv4 and does not contradict itself.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Offset of the IPv4 header.
    pub network: usize,
    /// Offset of what follows it.
    pub transport: usize,
    /// VLAN tags in front of it.
    pub tags: Tags,
    /// IPv4 total length in bytes.
    pub total_length: u16,
    /// Time to live on arrival.
    pub ttl: u8,
    /// What the transport header says.
    pub kind: Kind,
    /// TCP flags, 0 for others.
    pub tcp_flags: u8,
    /// Source, destination, ports and protocol; the realm is the caller's to set.
    pub key: FlowKey,
}

/// What lies behind the IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole TCP segment, UDP datagram or ICMP query, its ports or identifier in the key.
    Ported,
    /// A whole packet of a protocol without ports.
    Portless,
    /// An ICMP error or other message that is no query.
    IcmpOther,
    /// The first fragment of a datagram.
    FirstFragment,
    /// A later fragment: no transport header.
    LaterFragment,
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug)]
pub enum Frames {
    /// An IPv4 packet.
    Ipv4(Parsed),
    /// Not IPv4: the stack's.
    Other,
    /// Contradicts itself: dropped, counted.
    Bad(Reason),
}

/// Where the network header of a frame begins, and what came before it.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Offset of the network header.
    pub network: usize,
    /// VLAN tags.
    pub tags: Tags,
    /// Whether it is IPv4.
    pub is_ipv4: bool,
}

/// Reads a frame's headers: [`parse_link`], then [`parse_ipv4`].
pub fn parse<F: Frame>(frame: &F, realm: Realm) -> Frames {
    match parse_link(frame) {
        Some(link) if link.is_ipv4 => match parse_ipv4(frame, link.network, realm as u16) {
            Ok(parsed) => Frames::Ipv4(Parsed { tags: link.tags, ..parsed }),
            Err(reason) => Frames::Bad(reason),
        },
        _ => Frames::Other,
    }
}

/// Reads the Ethernet header and up to two VLAN tags. `None` if the frame ends before they do.
#[inline(always)]
pub fn parse_link<F: Frame>(frame: &F) -> Option<Link> {
    let ethernet = frame.at::<Ethernet>(0)?;
    // SAFETY: `at` answered for the whole header.
    let mut kind = unsafe { (*ethernet).kind };
    let mut network = ETHERNET;
    let mut words = [0u16; 4];
    for tag in words.as_chunks_mut::<2>().0 {
        if !is_tag(kind) {
            break;
        }
        let header = frame.at::<Vlan>(network)?;
        // SAFETY: as above.
        let Vlan { tag: number, kind: next } = unsafe { *header };
        *tag = [kind, number];
        kind = next;
        network += size_of::<Vlan>();
    }
    Some(Link { network, tags: Tags::of_wire(words), is_ipv4: kind == wire::ETHERTYPE_IPV4.to_be() })
}

/// Reads an IPv4 packet whose header begins at `network`. `realm` is a [`Realm`] as a number.
///
/// The checks are those of RFC 1812 section 5.2.2 and the minimum lengths of TCP, UDP and ICMP:
/// nothing that passes makes a later read leave the packet.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a header is shorter than 64 KiB")]
pub fn parse_ipv4<F: Frame>(frame: &F, network: usize, realm: u16) -> Result<Parsed, Reason> {
    let Some(header) = frame.at::<Ipv4>(network) else { return Err(Reason::DropTruncated) };
    let mut sum = header_sum(header);
    // SAFETY: `at` answered for the whole header, which nothing writes before the last use of this.
    let header = unsafe { &*header };
    let header_length = header.header_length();
    let total_length = u16::from_be(header.total_length);
    if header.version_and_length >> 4 != 4
        || header_length < IPV4
        || (total_length as usize) < header_length
        || network + total_length as usize > frame.length()
    {
        return Err(Reason::DropBadHeader);
    }
    if header_length > IPV4 {
        sum = sum.add(check_options(frame, network)?);
    }
    if sum.fold() != 0xffff {
        return Err(Reason::DropBadChecksum);
    }
    let transport = network + header_length;
    let behind = frame.skip(transport);
    let payload = total_length - header_length as u16;
    let fragment = u16::from_be(header.fragment);
    let mut parsed = Parsed {
        network,
        transport,
        tags: Tags::NONE,
        total_length,
        ttl: header.ttl,
        kind: Kind::Portless,
        tcp_flags: 0,
        key: FlowKey {
            source: header.source,
            destination: header.destination,
            source_port: 0,
            destination_port: 0,
            protocol: header.protocol,
            query: 0,
            realm,
        },
    };
    if fragment & (wire::MORE_FRAGMENTS | wire::FRAGMENT_OFFSET) != 0 {
        return check_fragment(fragment, payload, header.protocol).map(|kind| Parsed { kind, ..parsed });
    }
    match header.protocol {
        wire::TCP => {
            let Some(tcp) = behind.at::<Tcp>(0) else { return Err(Reason::DropBadTransport) };
            // SAFETY: `at` answered for the whole header.
            let tcp = unsafe { *tcp };
            let tcp_length = u16::from(tcp.data_offset >> 4) * 4;
            if tcp_length < size_of::<Tcp>() as u16 || tcp_length > payload {
                return Err(Reason::DropBadTransport);
            }
            parsed.kind = Kind::Ported;
            parsed.tcp_flags = tcp.flags;
            parsed.key.source_port = tcp.source;
            parsed.key.destination_port = tcp.destination;
        }
        wire::UDP | wire::UDPLITE => {
            let Some(udp) = behind.at::<Udp>(0) else { return Err(Reason::DropBadTransport) };
            // SAFETY: `at` answered for the whole header.
            let udp = unsafe { *udp };
            let length = u16::from_be(udp.length);
            // In UDP-Lite the field is the checksum's coverage, 0 for all (RFC 3828).
            let covers_all = header.protocol == wire::UDPLITE && length == 0;
            if payload < size_of::<Udp>() as u16
                || length > payload
                || (length < size_of::<Udp>() as u16 && !covers_all)
            {
                return Err(Reason::DropBadTransport);
            }
            parsed.kind = Kind::Ported;
            parsed.key.source_port = udp.source;
            parsed.key.destination_port = udp.destination;
        }
        wire::ICMP => {
            let Some(icmp) = behind.at::<Icmp>(0) else { return Err(Reason::DropBadTransport) };
            // SAFETY: `at` answered for the whole header.
            let icmp = unsafe { *icmp };
            if payload < size_of::<Icmp>() as u16 {
                return Err(Reason::DropBadTransport);
            }
            match icmp.kind {
                wire::ICMP_ECHO_REQUEST | wire::ICMP_TIMESTAMP_REQUEST => {
                    parsed.kind = Kind::Ported;
                    parsed.key.source_port = icmp.id;
                    parsed.key.query = Query::Request as u8;
                }
                wire::ICMP_ECHO_REPLY | wire::ICMP_TIMESTAMP_REPLY => {
                    parsed.kind = Kind::Ported;
                    parsed.key.destination_port = icmp.id;
                    parsed.key.query = Query::Reply as u8;
                }
                _ => parsed.kind = Kind::IcmpOther,
            }
        }
        _ => {}
    }
    Ok(parsed)
}

/// Sum of the 20 fixed bytes of the header; 0xffff folded means the checksum is right.
///
/// By words, not by fields: the program would keep every field for later, and has no registers
/// for so many.
#[inline(always)]
fn header_sum(header: *const Ipv4) -> Sum {
    // SAFETY: as many bytes of the same alignment, any of them valid; the caller's frame answered
    // for the whole header.
    let words = unsafe { &*header.cast::<[u16; IPV4 / 2]>() };
    let mut sum = Sum::ZERO;
    for word in words {
        sum = sum.add_u16(*word);
    }
    sum
}

/// Judges a fragment by its header alone: what no later one could make right is dropped.
#[inline(always)]
#[expect(clippy::needless_bitwise_bool, reason = "a branch that the verifier walks costs more")]
fn check_fragment(fragment: u16, payload: u16, protocol: u8) -> Result<Kind, Reason> {
    let offset = u32::from(fragment & wire::FRAGMENT_OFFSET) * 8;
    let more = fragment & wire::MORE_FRAGMENTS != 0;
    // behaviour FRG-15 (ping of death) and FRG-16. What lies at 8 is a TCP header's second half: nobody
    // cuts so but to hide flags from a filter, or to write over those that it saw (RFC 1858 section 3,
    // RFC 3128). All at once: each branch is walked with all that is behind it.
    let is_wrong = (payload == 0)
        | (offset + u32::from(payload) > 65_535)
        | (more & !payload.is_multiple_of(8))
        | ((offset == 8) & (protocol == wire::TCP));
    if is_wrong {
        return Err(Reason::DropFragment);
    }
    Ok(if offset == 0 { Kind::FirstFragment } else { Kind::LaterFragment })
}

/// Largest option list in 16-bit words: header length 15 words of 32.
const OPTION_WORDS: usize = 20;

/// Walks the options: refuses source routes and lists that do not end well, and sums them.
///
/// Out of line in the program: packets with options are rare, the loop is not small. Whatever the
/// verifier learned here of the packet's size or of the header's, it would walk the rest of the
/// program once for each length that options can have: so the length is read again, and where
/// the walk is is [`Forgotten`].
#[inline(never)]
fn check_options<F: Frame>(frame: &F, network: usize) -> Result<Sum, Reason> {
    let Some(header) = frame.at_in_loop::<Ipv4>(network) else { return Err(Reason::DropTruncated) };
    // SAFETY: `at` answered for the whole header.
    let length = unsafe { (*header).header_length() }.wrapping_sub(IPV4);
    let mut sum = Sum::ZERO;
    let mut walk = OptionWalk(Forgotten(OptionWalk::KIND));
    let mut position = Forgotten(0);
    for _ in 0..OPTION_WORDS {
        let here = position.get();
        if usize::from(here) >= length {
            break;
        }
        let Some(word) = frame.at_in_loop::<u16>(network + IPV4 + usize::from(here)) else {
            return Err(Reason::DropTruncated);
        };
        // SAFETY: `at` answered for two bytes.
        let word = unsafe { *word };
        sum = sum.add_u16(word);
        let [first, second] = word.to_ne_bytes();
        walk.step(first)?;
        walk.step(second)?;
        position.set(here + 2);
    }
    match walk.0.get() {
        OptionWalk::KIND | OptionWalk::ENDED => Ok(sum),
        _ => Err(Reason::DropBadOption),
    }
}

/// A byte that is read and written through memory: the verifier knows nothing of such a byte on
/// the stack, and so walks a loop once and not once for each value the byte may have.
struct Forgotten(u8);

impl Forgotten {
    #[inline(always)]
    fn get(&self) -> u8 {
        // SAFETY: a reference is valid for reads.
        unsafe { core::ptr::from_ref(&self.0).read_volatile() }
    }

    #[inline(always)]
    fn set(&mut self, value: u8) {
        // SAFETY: a unique reference is valid for writes.
        unsafe { core::ptr::from_mut(&mut self.0).write_volatile(value) }
    }
}

/// What the next byte of an option list is; never zero.
struct OptionWalk(Forgotten);

impl OptionWalk {
    /// An option's type.
    const KIND: u8 = 1;
    /// An option's length.
    const LENGTH: u8 = 2;
    /// Padding behind the end of the list.
    const ENDED: u8 = 3;
    /// This plus `n`: one of `n` more bytes of an option.
    const INSIDE: u8 = 3;

    /// Takes the next byte.
    #[inline(always)]
    fn step(&mut self, byte: u8) -> Result<(), Reason> {
        let next = match self.0.get() {
            Self::ENDED => return Ok(()),
            Self::LENGTH => match byte {
                2 => Self::KIND,
                3..=40 => Self::INSIDE + byte - 2,
                _ => return Err(Reason::DropBadOption),
            },
            Self::KIND => match byte {
                0 => Self::ENDED,
                1 => Self::KIND,
                // LSRR and SSRR.
                131 | 137 => return Err(Reason::DropSourceRoute),
                _ => Self::LENGTH,
            },
            inside if inside == Self::INSIDE + 1 => Self::KIND,
            inside => inside - 1,
        };
        self.0.set(next);
        Ok(())
    }
}
