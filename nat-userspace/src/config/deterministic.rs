//! Ports by arithmetic (RFC 7422): which external address and which block of its ports a subscriber
//! has follows from the configuration, and so does who had a port, without any log.

use std::net::Ipv4Addr;

use serde_spanned::Spanned;

use super::address::{self, AddressPool, AddressRange, PortRange};
use super::error::{Fault, Problems};
use super::file;

/// Who has blocks, and what is kept free of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deterministic {
    /// Inside addresses, each with a block.
    pub subscribers: AddressRange,
    /// Shares of an address's ports, each as large as a block, that are nobody's block.
    pub dynamic: u32,
    /// Ports of a block that a subscriber gets of those shares, once his own are used up; 0: he gets none.
    pub block: u16,
    /// The most ports that a subscriber may have, his own included; 0: any number.
    pub most: u32,
}

/// Blocks beyond a subscriber's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// Among these ports.
    pub within: PortRange,
    /// So many each.
    pub size: u16,
    /// The most ports that a subscriber may have, his own included; 0: any number.
    pub most: u32,
}

impl Deterministic {
    /// Subscribers that share one address of a pool (the compression ratio C of RFC 7422).
    fn ratio(self, pool: &AddressPool) -> u64 {
        self.subscribers.len().div_ceil(u64::try_from(pool.len()).unwrap_or(u64::MAX).max(1))
    }

    /// Ports of a block.
    pub fn block_size(self, pool: &AddressPool, ports: PortRange) -> u64 {
        u64::from(ports.len()) / (self.ratio(pool) + u64::from(self.dynamic))
    }

    /// The external address and the ports of a subscriber. None if it is none.
    pub fn block(
        self,
        inside: Ipv4Addr,
        pool: &AddressPool,
        ports: PortRange,
    ) -> Option<(Ipv4Addr, PortRange)> {
        if !self.subscribers.contains(inside) {
            return None;
        }
        let number = u64::from(inside.to_bits() - self.subscribers.first.to_bits());
        let (ratio, size) = (self.ratio(pool), self.block_size(pool, ports));
        let external = pool.iter().nth(usize::try_from(number / ratio).ok()?)?;
        let first = u64::from(ports.first) + number % ratio * size;
        let last = (first + size).checked_sub(1)?;
        Some((external, PortRange { first: u16::try_from(first).ok()?, last: u16::try_from(last).ok()? }))
    }

    /// Where blocks beyond a subscriber's own are, if there are any.
    pub fn beyond(self, pool: &AddressPool, ports: PortRange) -> Option<Beyond> {
        let first = u64::from(ports.first) + self.ratio(pool) * self.block_size(pool, ports);
        let within = PortRange { first: u16::try_from(first).ok()?, last: ports.last };
        let fits = self.block > 0 && within.first <= within.last;
        fits.then_some(Beyond { within, size: self.block, most: self.most })
    }

    /// The subscriber who has a port of an external address.
    pub fn owner(
        self,
        external: Ipv4Addr,
        port: u16,
        pool: &AddressPool,
        ports: PortRange,
    ) -> Option<Ipv4Addr> {
        let place = u64::try_from(pool.iter().position(|address| address == external)?).ok()?;
        let (ratio, size) = (self.ratio(pool), self.block_size(pool, ports));
        let block = u64::from(port.checked_sub(ports.first)?).checked_div(size)?;
        if block >= ratio {
            return None;
        }
        let number = u32::try_from(place * ratio + block).ok()?;
        let inside = Ipv4Addr::from_bits(self.subscribers.first.to_bits().checked_add(number)?);
        self.subscribers.contains(inside).then_some(inside)
    }
}

/// Judges `deterministic` of a rule with this pool and these ports.
pub(super) fn deterministic(
    raw: &Spanned<file::Deterministic>,
    pool: Option<&AddressPool>,
    ports: PortRange,
    problems: &mut Problems<'_>,
) -> Option<Deterministic> {
    problems.check(&raw.span(), judge(raw.get_ref(), pool, ports))
}

fn judge(
    raw: &file::Deterministic,
    pool: Option<&AddressPool>,
    ports: PortRange,
) -> Result<Deterministic, Fault> {
    let subscribers = address::parse_range(&raw.subscribers)?;
    let Some(pool) = pool else {
        return Err(Fault::new(
            "blocks of ports are of a pool's addresses, and there is no pool",
            "to = [\"203.0.113.2-203.0.113.4\"]",
        ));
    };
    let deterministic = Deterministic { subscribers, dynamic: raw.dynamic, block: raw.block, most: raw.most };
    let own = deterministic.block_size(pool, ports);
    if own == 0 {
        return Err(Fault::new(
            format!(
                "{} subscribers are more than {} addresses have ports for",
                subscribers.len(),
                pool.len()
            ),
            "name more addresses in `to`, or fewer subscribers",
        ));
    }
    let room = deterministic.beyond(pool, ports).map_or(0, |beyond| whole_blocks(&beyond));
    if raw.block > 0 && room == 0 {
        return Err(Fault::new(
            format!("the dynamic shares have no room for a block of {} ports", raw.block),
            format!("a smaller `block`, or more shares: each has {own} ports"),
        ));
    }
    if raw.most > 0 && u64::from(raw.most) < own {
        return Err(Fault::new(
            format!("`most` is {}, and each subscriber has {own} ports of his own", raw.most),
            "at least as many as that, or 0 for any number",
        ));
    }
    Ok(deterministic)
}

/// How many blocks there are: their first ports are multiples of their size.
fn whole_blocks(beyond: &Beyond) -> u32 {
    let size = u32::from(beyond.size.max(1));
    ((u32::from(beyond.within.last) + 1) / size).saturating_sub(u32::from(beyond.within.first).div_ceil(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: PortRange = PortRange { first: 1024, last: 65_535 };

    fn range(text: &str) -> AddressRange {
        address::parse_range(text).unwrap()
    }

    fn pool(text: &str) -> AddressPool {
        AddressPool::new(vec![range(text)])
    }

    /// behaviour DET-01 and DET-02: the example of RFC 7422 section 2.
    #[test]
    fn det_01_and_02_the_example_of_the_rfc() {
        let (rule, pool) = (
            Deterministic { subscribers: range("198.51.100.1-198.51.100.14"), dynamic: 2, block: 0, most: 0 },
            pool("192.0.2.1"),
        );
        assert_eq!(rule.block_size(&pool, PORTS), 4032);
        let block = |last: u8| {
            rule.block(Ipv4Addr::new(198, 51, 100, last), &pool, PORTS)
                .map(|(_, ports)| (ports.first, ports.last))
        };
        assert_eq!(
            (block(1), block(2), block(14)),
            (Some((1024, 5055)), Some((5056, 9087)), Some((53_440, 57_471)))
        );
        assert_eq!((block(0), block(15)), (None, None));
        let owner = |port| rule.owner(Ipv4Addr::new(192, 0, 2, 1), port, &pool, PORTS);
        assert_eq!(owner(2001), Some(Ipv4Addr::new(198, 51, 100, 1)));
        assert_eq!(
            (owner(57_471), owner(57_472), owner(1023)),
            (Some(Ipv4Addr::new(198, 51, 100, 14)), None, None)
        );
    }

    #[test]
    fn every_port_is_its_owners() {
        let (rule, pool) = (
            Deterministic { subscribers: range("10.0.0.0/24"), dynamic: 3, block: 0, most: 0 },
            pool("192.0.2.1-192.0.2.7"),
        );
        for inside in rule.subscribers.iter() {
            let (external, ports) = rule.block(inside, &pool, PORTS).unwrap();
            for port in [ports.first, ports.last] {
                assert_eq!(rule.owner(external, port, &pool, PORTS), Some(inside));
            }
        }
    }
}
