//! Addresses, prefixes, pools and ports as the file writes them.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::error::Fault;

/// Ports (or ICMP identifiers) from `first` to `last`, both included, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// What a `[[snat]]` uses unless told otherwise: all but the well-known ports.
    pub const UNPRIVILEGED: Self = Self { first: 1024, last: 65535 };

    /// How many ports there are, 1 to 65 536.
    #[expect(clippy::len_without_is_empty, reason = "a range has at least one port")]
    pub fn len(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// Whether the port is in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether some port is in both ranges.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Addresses from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The lowest.
    pub first: Ipv4Addr,
    /// The highest, not below `first`.
    pub last: Ipv4Addr,
}

impl AddressRange {
    /// How many addresses there are.
    #[expect(clippy::len_without_is_empty, reason = "a range has at least one address")]
    pub fn len(self) -> u64 {
        u64::from(self.last.to_bits()) - u64::from(self.first.to_bits()) + 1
    }

    /// Whether the address is in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// Whether some address is in both ranges.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The addresses, ascending.
    pub fn iter(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.first.to_bits()..=self.last.to_bits()).map(Ipv4Addr::from_bits)
    }
}

impl From<Ipv4Net> for AddressRange {
    fn from(net: Ipv4Net) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// The external addresses of a `[[snat]]`: 1 to [`AddressPool::MOST`], none of them twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool {
    ranges: Vec<AddressRange>,
}

impl AddressPool {
    /// The largest pool, in addresses.
    pub const MOST: u64 = 65_536;

    /// A pool of these ranges, which are known to be disjoint, not too many and not none.
    pub(super) fn new(ranges: Vec<AddressRange>) -> Self {
        Self { ranges }
    }

    /// The ranges in file order.
    pub fn ranges(&self) -> &[AddressRange] {
        &self.ranges
    }

    /// How many addresses there are.
    #[expect(clippy::len_without_is_empty, reason = "a pool has at least one address")]
    #[expect(clippy::cast_possible_truncation, reason = "a pool has at most 65 536 addresses")]
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|range| range.len()).sum::<u64>() as usize
    }

    /// Whether the address is in the pool.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// The addresses in file order.
    pub fn iter(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.ranges.iter().flat_map(|range| range.iter())
    }
}

impl fmt::Display for AddressPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(","))
    }
}

/// A prefix as people write it: without `/32`.
pub fn show_prefix(net: Ipv4Net) -> String {
    if net.prefix_len() == 32 { net.addr().to_string() } else { net.to_string() }
}

/// `10.1.1.7` or `10.1.1.0/24`; the bits behind the prefix have to be zero.
pub(super) fn parse_prefix(word: &str) -> Result<Ipv4Net, Fault> {
    if let Ok(address) = word.parse::<Ipv4Addr>() {
        return Ok(Ipv4Net::from(address));
    }
    let net: Ipv4Net = word.parse().map_err(|_| {
        Fault::new(format!("`{word}` is not an IPv4 address or prefix"), "such as 10.1.1.7 or 10.1.1.0/24")
    })?;
    if net.addr() != net.network() {
        return Err(Fault::new(
            format!("`{word}` has bits set behind its prefix"),
            format!("the network is {}, the host alone {}", net.trunc(), net.addr()),
        ));
    }
    Ok(net)
}

/// An address that a packet can come from and go to.
pub(super) fn parse_host(word: &str) -> Result<Ipv4Addr, Fault> {
    let address = word.parse::<Ipv4Addr>().map_err(|_| {
        Fault::new(format!("`{word}` is not an IPv4 address"), "four numbers from 0 to 255, such as 10.1.1.7")
    })?;
    usable(AddressRange { first: address, last: address })?;
    Ok(address)
}

/// `203.0.113.10`, `203.0.113.0/29` or `203.0.113.10-203.0.113.12`.
pub(super) fn parse_range(word: &str) -> Result<AddressRange, Fault> {
    let range = match word.split_once('-') {
        None => AddressRange::from(parse_prefix(word)?),
        Some((first, last)) => {
            AddressRange { first: parse_host(first.trim())?, last: parse_host(last.trim())? }
        }
    };
    if range.first > range.last {
        return Err(Fault::new(
            format!("`{word}` ends before it begins"),
            format!("write {}-{}", range.last, range.first),
        ));
    }
    usable(range)?;
    Ok(range)
}

/// Refuses ranges with addresses that no host can have.
fn usable(range: AddressRange) -> Result<(), Fault> {
    let reserved = [
        (Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8), "`this network`"),
        (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback"),
        (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast"),
        (Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32), "broadcast"),
    ];
    match reserved.into_iter().find(|(net, _)| range.overlaps(AddressRange::from(*net))) {
        None => Ok(()),
        Some((net, what)) => Err(Fault::new(
            format!("`{range}` is no host's address: {net} is {what}"),
            "name addresses that are routed to this gateway",
        )),
    }
}

/// `8080` or `6000-6009`; port 0 is no port.
pub(super) fn parse_ports(word: &str) -> Result<PortRange, Fault> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|&port| port != 0);
    let (Some(first), Some(last)) = (port(first), port(last)) else {
        return Err(Fault::new(
            format!("`{word}` is not a port or a range of ports"),
            "such as 8080 or 6000-6009, each from 1 to 65535",
        ));
    };
    if first > last {
        return Err(Fault::new(format!("`{word}` ends before it begins"), format!("write {last}-{first}")));
    }
    Ok(PortRange { first, last })
}
