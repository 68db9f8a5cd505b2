//! Bytes back into meaning, and the oracle that judges every checksum by adding up all of it again.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

use crate::{
    checksum,
    packet::{Mac, protocol},
};

/// A frame taken apart as far as its bytes go. Never fails: what is not there is `None` or empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Ethernet source.
    pub from: Mac,
    /// Ethernet destination.
    pub to: Mac,
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
    /// What follows the Ethernet header.
    pub ethertype: u16,
    /// The IPv4 packet, if it is one.
    pub ip: Option<Ip>,
}

/// An IPv4 packet, whole or as an ICMP error quotes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub df: bool,
    /// More fragments.
    pub more_fragments: bool,
    /// Fragment offset in bytes.
    pub offset: usize,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number.
    pub protocol: u8,
    /// The header's total length.
    pub total_length: usize,
    /// The header, options included.
    pub header: Vec<u8>,
    /// What follows the header, at most up to the total length.
    pub body: Vec<u8>,
    /// The transport header; none in a later fragment.
    pub transport: Transport,
}

/// The transport header and what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp(Udp),
    /// TCP.
    Tcp(Tcp),
    /// ICMP.
    Icmp(Icmp),
    /// A later fragment, another protocol, or too short to tell.
    Opaque,
}

/// A UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// The length field.
    pub length: u16,
    /// The checksum field.
    pub checksum: u16,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// A TCP segment; a quote may end after the sequence number, where the rest reads as 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags, see [`crate::packet::tcp`].
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options, padding included.
    pub options: Vec<u8>,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// An ICMP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// First half of the second word: the id of a query.
    pub id: u16,
    /// Second half: the sequence number of a query, the MTU of a 3/4.
    pub seq: u16,
    /// What follows the first eight bytes.
    pub payload: Vec<u8>,
    /// The packet an error is about.
    pub quoted: Option<Box<Ip>>,
}

impl Decoded {
    /// Takes a frame apart.
    pub fn parse(frame: &[u8]) -> Self {
        let mut at = 12;
        let mut vlans = Vec::new();
        while matches!(be16(frame, at), 0x8100 | 0x88a8) {
            vlans.push(be16(frame, at + 2) & 0x0fff);
            at += 4;
        }
        let ethertype = be16(frame, at);
        let ip = (ethertype == 0x0800).then(|| Ip::parse(frame.get(at + 2..)?)).flatten();
        Self { from: array(frame, 6), to: array(frame, 0), vlans, ethertype, ip }
    }

    /// The source address and port (an ICMP id stands in the port's place).
    pub fn source(&self) -> Option<SocketAddrV4> {
        self.ip.as_ref().map(Ip::source)
    }

    /// The destination address and port (an ICMP id stands in the port's place).
    pub fn destination(&self) -> Option<SocketAddrV4> {
        self.ip.as_ref().map(Ip::destination)
    }

    /// The IPv4 packet; panics where there is none.
    pub fn ip(&self) -> &Ip {
        self.ip.as_ref().unwrap_or_else(|| panic!("not an IPv4 packet: {self}"))
    }

    /// The UDP datagram, if it is one.
    pub fn udp(&self) -> Option<&Udp> {
        self.ip.as_ref()?.udp()
    }

    /// The TCP segment, if it is one.
    pub fn tcp(&self) -> Option<&Tcp> {
        self.ip.as_ref()?.tcp()
    }

    /// The ICMP message, if it is one.
    pub fn icmp(&self) -> Option<&Icmp> {
        self.ip.as_ref()?.icmp()
    }

    /// What the transport carries.
    pub fn payload(&self) -> &[u8] {
        self.ip.as_ref().map_or(&[], Ip::payload)
    }

    /// Says which checksum is wrong: IP, TCP, UDP (0 is none), ICMP, and those of a quoted packet as far as
    /// its bytes are there.
    pub fn checksums_valid(&self) -> Result<(), String> {
        self.ip.as_ref().map_or(Ok(()), Ip::checksums_valid)
    }
}

impl Ip {
    /// Takes an IPv4 packet apart; `None` if not even its header is there.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let header_length = usize::from(packet.first()? & 0x0f) * 4;
        if packet[0] >> 4 != 4 || header_length < 20 || packet.len() < header_length {
            return None;
        }
        let total_length = usize::from(be16(packet, 2));
        // An Ethernet trailer pads short frames: the packet ends where its header says.
        let end = total_length.clamp(header_length, packet.len());
        let field = be16(packet, 6);
        let (header, body) = (&packet[..header_length], &packet[header_length..end]);
        let offset = usize::from(field & 0x1fff) * 8;
        let transport = if offset == 0 { Transport::parse(packet[9], body) } else { Transport::Opaque };
        Some(Self {
            source: array(packet, 12).into(),
            destination: array(packet, 16).into(),
            tos: packet[1],
            id: be16(packet, 4),
            df: field & 0x4000 != 0,
            more_fragments: field & 0x2000 != 0,
            offset,
            ttl: packet[8],
            protocol: packet[9],
            total_length,
            header: header.to_vec(),
            body: body.to_vec(),
            transport,
        })
    }

    /// IP options, padding included.
    pub fn options(&self) -> &[u8] {
        &self.header[20..]
    }

    /// Whether it is a piece of a datagram.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.offset > 0
    }

    /// The source address and port (an ICMP id stands in the port's place).
    pub fn source(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.source, self.ports().0)
    }

    /// The destination address and port (an ICMP id stands in the port's place).
    pub fn destination(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.destination, self.ports().1)
    }

    /// The UDP datagram, if it is one.
    pub fn udp(&self) -> Option<&Udp> {
        if let Transport::Udp(udp) = &self.transport { Some(udp) } else { None }
    }

    /// The TCP segment, if it is one.
    pub fn tcp(&self) -> Option<&Tcp> {
        if let Transport::Tcp(tcp) = &self.transport { Some(tcp) } else { None }
    }

    /// The ICMP message, if it is one.
    pub fn icmp(&self) -> Option<&Icmp> {
        if let Transport::Icmp(icmp) = &self.transport { Some(icmp) } else { None }
    }

    /// What the transport carries.
    pub fn payload(&self) -> &[u8] {
        match &self.transport {
            Transport::Udp(udp) => &udp.payload,
            Transport::Tcp(tcp) => &tcp.payload,
            Transport::Icmp(icmp) => &icmp.payload,
            Transport::Opaque => &self.body,
        }
    }

    /// See [`Decoded::checksums_valid`].
    pub fn checksums_valid(&self) -> Result<(), String> {
        if checksum::internet(&[&self.header]) != 0 {
            return Err(format!("wrong IP header checksum in {self}"));
        }
        let complete = self.header.len() + self.body.len() == self.total_length;
        if complete && !self.is_fragment() {
            self.transport_checksum_valid()?;
        }
        match self.icmp().and_then(|icmp| icmp.quoted.as_deref()) {
            Some(quoted) => quoted.checksums_valid().map_err(|wrong| format!("in the quote: {wrong}")),
            None => Ok(()),
        }
    }

    fn transport_checksum_valid(&self) -> Result<(), String> {
        let pseudo = checksum::pseudo_header(self.source, self.destination, self.protocol, self.body.len());
        let right = match (&self.transport, self.protocol) {
            (Transport::Udp(udp), _) => udp.checksum == 0 || checksum::internet(&[&pseudo, &self.body]) == 0,
            (Transport::Tcp(_), _) => checksum::internet(&[&pseudo, &self.body]) == 0,
            (Transport::Icmp(_), _) => checksum::internet(&[&self.body]) == 0,
            (Transport::Opaque, _) => true,
        };
        if right { Ok(()) } else { Err(format!("wrong transport checksum in {self}")) }
    }

    fn ports(&self) -> (u16, u16) {
        match &self.transport {
            Transport::Udp(udp) => (udp.source, udp.destination),
            Transport::Tcp(tcp) => (tcp.source, tcp.destination),
            Transport::Icmp(icmp) => (icmp.id, icmp.id),
            Transport::Opaque => (0, 0),
        }
    }
}

impl Transport {
    fn parse(protocol: u8, body: &[u8]) -> Self {
        if body.len() < 8 {
            return Self::Opaque;
        }
        match protocol {
            protocol::UDP => Self::Udp(Udp {
                source: be16(body, 0),
                destination: be16(body, 2),
                length: be16(body, 4),
                checksum: be16(body, 6),
                payload: body[8..].to_vec(),
            }),
            protocol::TCP => {
                let header_length = body.get(12).map_or(20, |byte| usize::from(byte >> 4) * 4).max(20);
                Self::Tcp(Tcp {
                    source: be16(body, 0),
                    destination: be16(body, 2),
                    seq: be32(body, 4),
                    ack: be32(body, 8),
                    flags: body.get(13).copied().unwrap_or(0),
                    window: be16(body, 14),
                    options: body.get(20..header_length).unwrap_or_default().to_vec(),
                    payload: body.get(header_length..).unwrap_or_default().to_vec(),
                })
            }
            protocol::ICMP => {
                let is_error = matches!(body[0], 3 | 4 | 5 | 11 | 12);
                let quoted = is_error.then(|| Ip::parse(&body[8..])).flatten().map(Box::new);
                let payload = body[8..].to_vec();
                Self::Icmp(Icmp {
                    kind: body[0],
                    code: body[1],
                    id: be16(body, 4),
                    seq: be16(body, 6),
                    payload,
                    quoted,
                })
            }
            _ => Self::Opaque,
        }
    }
}

/// Puts the fragments of one datagram together; `None` while a byte is missing or two disagree.
pub fn reassemble<'a>(fragments: impl IntoIterator<Item = &'a Decoded>) -> Option<Ip> {
    let mut pieces: Vec<&Ip> = fragments.into_iter().filter_map(|frame| frame.ip.as_ref()).collect();
    pieces.sort_by_key(|piece| piece.offset);
    let first = *pieces.first()?;
    let key = |piece: &Ip| (piece.source, piece.destination, piece.protocol, piece.id);
    let complete = first.offset == 0 && !pieces.last()?.more_fragments;
    if !complete || pieces.iter().any(|piece| key(piece) != key(first)) {
        return None;
    }
    let mut body = Vec::new();
    for piece in &pieces {
        let known = body.len().checked_sub(piece.offset)?.min(piece.body.len());
        if body[piece.offset..piece.offset + known] != piece.body[..known] {
            return None;
        }
        body.extend(&piece.body[known..]);
    }
    let mut header = first.header.clone();
    let total_length = u16::try_from(header.len() + body.len()).ok()?;
    header[2..4].copy_from_slice(&total_length.to_be_bytes());
    header[6] &= 0x40;
    header[10..12].fill(0);
    let sum = checksum::internet(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Ip::parse(&[header, body].concat())
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ip {
            Some(ip) => write!(f, "{ip}"),
            None => write!(f, "ethertype {:04x}", self.ethertype),
        }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (self.source(), self.destination());
        match &self.transport {
            Transport::Udp(_) => write!(f, "udp {source} > {destination}")?,
            Transport::Tcp(tcp) => {
                write!(f, "tcp {source} > {destination} flags {:02x} seq {}", tcp.flags, tcp.seq)?;
            }
            Transport::Icmp(icmp) => {
                let Icmp { kind, code, id, seq, .. } = icmp;
                write!(f, "icmp {} > {} {kind}/{code} id {id} seq {seq}", self.source, self.destination)?;
            }
            Transport::Opaque => {
                write!(f, "protocol {} {} > {}", self.protocol, self.source, self.destination)?;
            }
        }
        write!(f, " ttl {} length {}", self.ttl, self.total_length)?;
        if self.is_fragment() {
            write!(f, " fragment {:04x}@{}", self.id, self.offset)?;
        }
        match self.icmp().and_then(|icmp| icmp.quoted.as_deref()) {
            Some(quoted) => write!(f, " about [{quoted}]"),
            None => Ok(()),
        }
    }
}

/// Two bytes, 0 where the frame ends before.
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).unwrap_or([0; N])
}
