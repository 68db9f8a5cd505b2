//! What a rule holds for: addresses and protocols.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::address::{parse_prefix, show_prefix};
use super::error::Fault;

/// A set of addresses: what any positive prefix contains, or everything if there is none,
/// without what a negative prefix contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Prefixes that are in; none means all addresses.
    pub positive: Vec<Ipv4Net>,
    /// Prefixes that are out, whatever is in.
    pub negative: Vec<Ipv4Net>,
}

impl Selector {
    /// Whether the address is in the set.
    pub fn matches(&self, address: Ipv4Addr) -> bool {
        (self.positive.is_empty() || self.positive.iter().any(|net| net.contains(&address)))
            && !self.negative.iter().any(|net| net.contains(&address))
    }

    /// Whether every address is in the set.
    pub fn is_any(&self) -> bool {
        self.negative.is_empty()
            && (self.positive.is_empty() || self.positive.iter().any(|net| net.prefix_len() == 0))
    }

    /// Adds a prefix as the file writes it, negated by a leading `!`.
    pub(super) fn add(&mut self, word: &str) -> Result<(), Fault> {
        match word.strip_prefix('!') {
            Some(rest) => self.negative.push(parse_prefix(rest)?),
            None => self.positive.push(parse_prefix(word)?),
        }
        Ok(())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let positive = self.positive.iter().copied().map(show_prefix);
        let negative = self.negative.iter().copied().map(|net| format!("!{}", show_prefix(net)));
        let words: Vec<String> = positive.chain(negative).collect();
        f.write_str(if words.is_empty() { "any" } else { "" })?;
        f.write_str(&words.join(","))
    }
}

/// A set of IP protocols, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolSet {
    bits: [u64; 4],
}

impl ProtocolSet {
    /// Every protocol.
    pub const ANY: Self = Self { bits: [u64::MAX; 4] };

    /// No protocol.
    pub const NONE: Self = Self { bits: [0; 4] };

    /// The set of these protocols.
    pub fn of(protocols: &[u8]) -> Self {
        protocols.iter().fold(Self::NONE, |set, &protocol| set.with(protocol))
    }

    /// The set with one more protocol.
    #[must_use]
    pub fn with(mut self, protocol: u8) -> Self {
        self.bits[usize::from(protocol / 64)] |= 1 << (protocol % 64);
        self
    }

    /// Whether the protocol is in the set.
    pub fn contains(self, protocol: u8) -> bool {
        self.bits[usize::from(protocol / 64)] & (1 << (protocol % 64)) != 0
    }

    /// Whether some protocol is in both sets.
    pub fn intersects(self, other: Self) -> bool {
        self.bits.iter().zip(other.bits).any(|(a, b)| a & b != 0)
    }

    /// The protocols in the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(move |&protocol| self.contains(protocol))
    }
}

impl fmt::Display for ProtocolSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ANY {
            return f.write_str("any");
        }
        let names: Vec<String> = self.iter().map(protocol_name).collect();
        f.write_str(&names.join(","))
    }
}

/// `tcp`, `udp`, `icmp`, or the number of another protocol.
pub fn protocol_name(protocol: u8) -> String {
    NAMES
        .iter()
        .find(|(_, number)| *number == protocol)
        .map_or_else(|| protocol.to_string(), |(name, _)| (*name).to_owned())
}

/// The number of a protocol given as `tcp`, `udp`, `icmp` or a number.
pub fn protocol_number(word: &str) -> Option<u8> {
    NAMES.iter().find(|(name, _)| *name == word).map(|(_, number)| *number).or_else(|| word.parse().ok())
}

/// As [`protocol_number`], with the fault of what is none.
pub(super) fn parse_protocol(word: &str) -> Result<u8, Fault> {
    protocol_number(word).ok_or_else(|| {
        Fault::new(
            format!("`{word}` is not a protocol"),
            "tcp, udp, icmp, or the number of another IP protocol (0 to 255)",
        )
    })
}

const NAMES: [(&str, u8); 3] = [("icmp", 1), ("tcp", 6), ("udp", 17)];
