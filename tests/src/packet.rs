//! Packets written as they are read: `Packet::udp("192.168.1.10:40000", "198.51.100.1:53").ttl(3).payload(b"x")`.
//!
//! What is not said is right: lengths, checksums, a TTL of 64. What a test says is taken literally, wrong or not.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::checksum;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// Generic routing encapsulation.
    pub const GRE: u8 = 47;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;
}

/// TCP flags, combined with `|`.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Aborts it.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
}

/// An address and a port, from `"192.168.1.10:40000"`, `"192.168.1.10"` (port 0), an address or a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint(pub SocketAddrV4);

impl From<&str> for Endpoint {
    fn from(text: &str) -> Self {
        let endpoint = text.parse().or_else(|_| text.parse().map(|address| SocketAddrV4::new(address, 0)));
        Self(endpoint.unwrap_or_else(|_| panic!("{text:?} is neither an IPv4 address nor address:port")))
    }
}

impl From<SocketAddrV4> for Endpoint {
    fn from(endpoint: SocketAddrV4) -> Self {
        Self(endpoint)
    }
}

impl From<Ipv4Addr> for Endpoint {
    fn from(address: Ipv4Addr) -> Self {
        Self(SocketAddrV4::new(address, 0))
    }
}

impl From<(Ipv4Addr, u16)> for Endpoint {
    fn from((address, port): (Ipv4Addr, u16)) -> Self {
        Self(SocketAddrV4::new(address, port))
    }
}

impl From<(&str, u16)> for Endpoint {
    fn from((address, port): (&str, u16)) -> Self {
        let Self(endpoint) = address.into();
        Self(SocketAddrV4::new(*endpoint.ip(), port))
    }
}

/// An IPv4 packet in an Ethernet frame, before it becomes bytes.
#[derive(Clone, Debug)]
#[must_use]
pub struct Packet {
    from: Option<Mac>,
    to: Option<Mac>,
    vlans: Vec<u16>,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    ttl: u8,
    tos: u8,
    id: u16,
    fragment: u16,
    options: Vec<u8>,
    transport: Transport,
    payload: Vec<u8>,
    checksum: Checksum,
    ip_checksum: Checksum,
    total_length: Option<u16>,
    udp_length: Option<u16>,
    version_and_ihl: Option<u8>,
}

#[derive(Clone, Debug)]
enum Transport {
    Udp,
    UdpLite,
    Tcp { seq: u32, ack: u32, flags: u8, window: u16, urgent: u16, options: Vec<u8> },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Raw(u8),
}

/// What to put into a checksum field.
#[derive(Clone, Copy, Debug)]
enum Checksum {
    Right,
    /// The right one with a bit turned over.
    Wrong,
    Literal(u16),
}

const RESERVED: u16 = 0x8000;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

impl Packet {
    /// A UDP datagram.
    pub fn udp(source: impl Into<Endpoint>, destination: impl Into<Endpoint>) -> Self {
        Self::new(source.into(), destination.into(), Transport::Udp)
    }

    /// A UDP-Lite datagram whose checksum covers all of it (RFC 3828).
    pub fn udplite(source: impl Into<Endpoint>, destination: impl Into<Endpoint>) -> Self {
        Self::new(source.into(), destination.into(), Transport::UdpLite)
    }

    /// A TCP segment without flags; say them with [`Packet::flags`] or [`Packet::syn`].
    pub fn tcp(source: impl Into<Endpoint>, destination: impl Into<Endpoint>) -> Self {
        let transport =
            Transport::Tcp { seq: 1, ack: 0, flags: 0, window: 0xfff0, urgent: 0, options: Vec::new() };
        Self::new(source.into(), destination.into(), transport)
    }

    /// An ICMP echo request.
    pub fn echo_request(
        source: impl Into<Endpoint>,
        destination: impl Into<Endpoint>,
        id: u16,
        seq: u16,
    ) -> Self {
        Self::icmp(source, destination, 8, 0).rest(id, seq)
    }

    /// An ICMP echo reply.
    pub fn echo_reply(
        source: impl Into<Endpoint>,
        destination: impl Into<Endpoint>,
        id: u16,
        seq: u16,
    ) -> Self {
        Self::icmp(source, destination, 0, 0).rest(id, seq)
    }

    /// Any ICMP message; its second word is 0 until [`Packet::rest`].
    pub fn icmp(source: impl Into<Endpoint>, destination: impl Into<Endpoint>, kind: u8, code: u8) -> Self {
        Self::new(source.into(), destination.into(), Transport::Icmp { kind, code, rest: [0; 4] })
    }

    /// An ICMP error that quotes `quoted`: IP bytes, whole or cut short by the caller.
    pub fn icmp_error(
        source: impl Into<Endpoint>,
        destination: impl Into<Endpoint>,
        kind: u8,
        code: u8,
        quoted: &[u8],
    ) -> Self {
        Self::icmp(source, destination, kind, code).payload(quoted)
    }

    /// A packet of any IP protocol; the payload follows the IP header.
    pub fn raw(source: impl Into<Endpoint>, destination: impl Into<Endpoint>, protocol: u8) -> Self {
        Self::new(source.into(), destination.into(), Transport::Raw(protocol))
    }

    fn new(source: Endpoint, destination: Endpoint, transport: Transport) -> Self {
        Self {
            from: None,
            to: None,
            vlans: Vec::new(),
            source: source.0,
            destination: destination.0,
            ttl: 64,
            tos: 0,
            id: 0x1234,
            fragment: 0,
            options: Vec::new(),
            transport,
            payload: Vec::new(),
            checksum: Checksum::Right,
            ip_checksum: Checksum::Right,
            total_length: None,
            udp_length: None,
            version_and_ihl: None,
        }
    }

    /// The bytes after the transport header.
    pub fn payload(self, payload: impl AsRef<[u8]>) -> Self {
        Self { payload: payload.as_ref().to_vec(), ..self }
    }

    /// The time to live.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// DSCP and ECN.
    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// The IP identification.
    pub fn id(self, id: u16) -> Self {
        Self { id, ..self }
    }

    /// Sets the don't-fragment bit.
    pub fn df(self) -> Self {
        Self { fragment: self.fragment | DONT_FRAGMENT, ..self }
    }

    /// Sets the reserved bit beside them (RFC 3514 has a name for it).
    pub fn reserved(self) -> Self {
        Self { fragment: self.fragment | RESERVED, ..self }
    }

    /// Sets the more-fragments bit.
    pub fn more_fragments(self) -> Self {
        Self { fragment: self.fragment | MORE_FRAGMENTS, ..self }
    }

    /// The fragment offset in units of 8 bytes.
    pub fn fragment_offset(self, units: u16) -> Self {
        Self { fragment: self.fragment & 0xe000 | units & 0x1fff, ..self }
    }

    /// IP options, padded with zeros to a multiple of four bytes.
    pub fn ip_options(self, options: impl AsRef<[u8]>) -> Self {
        Self { options: padded(options.as_ref()), ..self }
    }

    /// The TCP flags.
    pub fn flags(mut self, flags: u8) -> Self {
        *self.tcp_fields().2 = flags;
        self
    }

    /// A SYN with `seq`.
    pub fn syn(self, seq: u32) -> Self {
        self.flags(tcp::SYN).seq(seq)
    }

    /// The TCP sequence number.
    pub fn seq(mut self, seq: u32) -> Self {
        *self.tcp_fields().0 = seq;
        self
    }

    /// The TCP acknowledgement number; sets ACK.
    pub fn ack(mut self, ack: u32) -> Self {
        let fields = self.tcp_fields();
        *fields.1 = ack;
        *fields.2 |= tcp::ACK;
        self
    }

    /// The TCP window.
    pub fn window(mut self, value: u16) -> Self {
        match &mut self.transport {
            Transport::Tcp { window, .. } => *window = value,
            other => panic!("a window in {other:?}"),
        }
        self
    }

    /// TCP options, padded with zeros to a multiple of four bytes.
    pub fn tcp_options(mut self, bytes: impl AsRef<[u8]>) -> Self {
        match &mut self.transport {
            Transport::Tcp { options, .. } => *options = padded(bytes.as_ref()),
            other => panic!("TCP options in {other:?}"),
        }
        self
    }

    /// The second word of an ICMP header: id and sequence, or 0 and a path MTU.
    pub fn rest(mut self, high: u16, low: u16) -> Self {
        match &mut self.transport {
            Transport::Icmp { rest, .. } => {
                rest[0..2].copy_from_slice(&high.to_be_bytes());
                rest[2..4].copy_from_slice(&low.to_be_bytes());
            }
            other => panic!("an ICMP word in {other:?}"),
        }
        self
    }

    /// Makes the transport checksum wrong.
    pub fn bad_checksum(self) -> Self {
        Self { checksum: Checksum::Wrong, ..self }
    }

    /// Writes this into the transport checksum field.
    pub fn checksum(self, checksum: u16) -> Self {
        Self { checksum: Checksum::Literal(checksum), ..self }
    }

    /// Makes the IP header checksum wrong.
    pub fn bad_ip_checksum(self) -> Self {
        Self { ip_checksum: Checksum::Wrong, ..self }
    }

    /// Writes this into the IP header's total length.
    pub fn total_length(self, length: u16) -> Self {
        Self { total_length: Some(length), ..self }
    }

    /// Writes this into the length field of a UDP header, or the coverage field of a UDP-Lite one.
    pub fn udp_length(self, length: u16) -> Self {
        Self { udp_length: Some(length), ..self }
    }

    /// Writes this into the first byte of the IP header.
    pub fn version_and_ihl(self, byte: u8) -> Self {
        Self { version_and_ihl: Some(byte), ..self }
    }

    /// Adds a VLAN tag (802.1Q), inside those that are there.
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlans.push(id);
        self
    }

    /// The Ethernet source; a tap fills in its own where none was said.
    pub fn from_mac(self, mac: Mac) -> Self {
        Self { from: Some(mac), ..self }
    }

    /// The Ethernet destination; a tap fills in its next hop where none was said.
    pub fn to_mac(self, mac: Mac) -> Self {
        Self { to: Some(mac), ..self }
    }

    /// The same packet with Ethernet addresses where it has none.
    pub fn between(self, from: Mac, to: Mac) -> Self {
        Self { from: self.from.or(Some(from)), to: self.to.or(Some(to)), ..self }
    }

    /// The whole Ethernet frame.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = self.ethernet();
        frame.extend(self.ip());
        frame
    }

    /// The frame cut into fragments that carry `size` payload bytes each, a multiple of 8 (RFC 791, 3.2).
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        assert!(size > 0 && size.is_multiple_of(8), "a fragment's size is counted in units of 8 bytes");
        let whole = self.ip();
        let header_length = usize::from(whole[0] & 0x0f) * 4;
        let (header, body) = whole.split_at(header_length);
        let last = body.len().div_ceil(size).saturating_sub(1);
        let pieces = body.chunks(size).enumerate().map(|(index, piece)| {
            let mut header = header.to_vec();
            let offset = u16::try_from(index * size / 8).expect("a datagram's offsets fit 13 bits");
            let more = if index < last { MORE_FRAGMENTS } else { self.fragment & MORE_FRAGMENTS };
            let field = (self.fragment & DONT_FRAGMENT) | more | ((self.fragment & 0x1fff) + offset);
            header[2..4].copy_from_slice(&length(header_length + piece.len()).to_be_bytes());
            header[6..8].copy_from_slice(&field.to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum::internet(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let mut frame = self.ethernet();
            frame.extend(header);
            frame.extend(piece);
            frame
        });
        pieces.collect()
    }

    /// The IP packet alone, as an ICMP error quotes it.
    pub fn ip(&self) -> Vec<u8> {
        let segment = self.segment();
        let header_length = 20 + self.options.len();
        let ihl = u8::try_from(header_length / 4).expect("at most 40 bytes of IP options");
        let mut packet = vec![self.version_and_ihl.unwrap_or(0x40 | ihl), self.tos];
        packet.extend(self.total_length.unwrap_or(length(header_length + segment.len())).to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, self.protocol(), 0, 0]);
        packet.extend(self.source.ip().octets());
        packet.extend(self.destination.ip().octets());
        packet.extend(&self.options);
        let sum = self.ip_checksum.over(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(segment);
        packet
    }

    fn ethernet(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(18);
        header.extend(self.to.unwrap_or([0xff; 6]));
        header.extend(self.from.unwrap_or([0x02, 0, 0, 0, 0, 1]));
        for id in &self.vlans {
            header.extend([0x81, 0x00]);
            header.extend(id.to_be_bytes());
        }
        header.extend([0x08, 0x00]);
        header
    }

    /// The transport header and the payload.
    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        match &self.transport {
            Transport::Udp | Transport::UdpLite => {
                let covers = match self.transport {
                    Transport::UdpLite => 0,
                    _ => length(8 + self.payload.len()),
                };
                segment.extend(self.source.port().to_be_bytes());
                segment.extend(self.destination.port().to_be_bytes());
                segment.extend(self.udp_length.unwrap_or(covers).to_be_bytes());
                segment.extend([0, 0]);
            }
            Transport::Tcp { seq, ack, flags, window, urgent, options } => {
                let words = u8::try_from(5 + options.len() / 4).expect("at most 40 bytes of TCP options");
                segment.extend(self.source.port().to_be_bytes());
                segment.extend(self.destination.port().to_be_bytes());
                segment.extend(seq.to_be_bytes());
                segment.extend(ack.to_be_bytes());
                segment.extend([words << 4, *flags]);
                segment.extend(window.to_be_bytes());
                segment.extend([0, 0]);
                segment.extend(urgent.to_be_bytes());
                segment.extend(options);
            }
            Transport::Icmp { kind, code, rest } => {
                segment.extend([*kind, *code, 0, 0]);
                segment.extend(rest);
            }
            Transport::Raw(_) => {}
        }
        segment.extend(&self.payload);
        self.fill_checksum(&mut segment);
        segment
    }

    fn fill_checksum(&self, segment: &mut [u8]) {
        let pseudo = checksum::pseudo_header(
            *self.source.ip(),
            *self.destination.ip(),
            self.protocol(),
            segment.len(),
        );
        let (at, sum) = match self.transport {
            Transport::Udp | Transport::UdpLite => (6, self.checksum.over(&[&pseudo, segment])),
            Transport::Tcp { .. } => (16, self.checksum.over(&[&pseudo, segment])),
            Transport::Icmp { .. } => (2, self.checksum.over(&[segment])),
            Transport::Raw(_) => return,
        };
        // A UDP sum of 0 is sent as 0xffff: 0 would say that there is none (RFC 768).
        let computed_zero_in_udp = sum == 0
            && matches!(
                (&self.transport, self.checksum),
                (Transport::Udp | Transport::UdpLite, Checksum::Right)
            );
        let sum = if computed_zero_in_udp { 0xffff } else { sum };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Udp => protocol::UDP,
            Transport::UdpLite => protocol::UDPLITE,
            Transport::Tcp { .. } => protocol::TCP,
            Transport::Icmp { .. } => protocol::ICMP,
            Transport::Raw(protocol) => protocol,
        }
    }

    /// Sequence number, acknowledgement number and flags.
    fn tcp_fields(&mut self) -> (&mut u32, &mut u32, &mut u8) {
        match &mut self.transport {
            Transport::Tcp { seq, ack, flags, .. } => (seq, ack, flags),
            other => panic!("a TCP field in {other:?}"),
        }
    }
}

impl Checksum {
    fn over(self, parts: &[&[u8]]) -> u16 {
        match self {
            Self::Right => checksum::internet(parts),
            Self::Wrong => checksum::internet(parts) ^ 0x0100,
            Self::Literal(value) => value,
        }
    }
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("an IPv4 packet holds at most 65535 bytes")
}

fn padded(options: &[u8]) -> Vec<u8> {
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    options
}
