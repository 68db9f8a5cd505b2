//! Handing the external endpoints of forwards to the fast path: each range of ports as the few
//! prefixes that make it up.

use std::collections::HashSet;

use aya::maps::lpm_trie::Key;
use nat_common::abi::ForwardKey;

use super::object::{Datapath, LoadError};
use super::sets::trie;
use crate::config::PortRange;

/// Bits of a [`ForwardKey`] before the port.
const BEFORE_PORT: u32 = 48;
const NAME: &str = "FORWARDS";

/// Publishes what forwards listen on: address in network byte order, protocol, ports. New ones go
/// in before old ones come out.
pub fn publish_forwards(
    datapath: &mut Datapath,
    endpoints: impl Iterator<Item = (u32, u8, PortRange)>,
) -> Result<(), LoadError> {
    let failed = |source| LoadError::Map { name: NAME, source };
    let mut forwards = trie::<ForwardKey, u32>(datapath, NAME)?;
    let mut wanted = HashSet::new();
    for (address, protocol, ports) in endpoints {
        for (port, bits) in prefixes(ports) {
            let key = ForwardKey { address, protocol: u16::from(protocol).to_be(), port: port.to_be() };
            forwards.insert(&Key::new(BEFORE_PORT + bits, key), &0, 0).map_err(failed)?;
            wanted.insert((BEFORE_PORT + bits, key.address, key.protocol, key.port));
        }
    }
    let stale: Vec<_> = forwards
        .keys()
        .filter_map(Result::ok)
        .filter(|key| {
            let ForwardKey { address, protocol, port } = key.data();
            !wanted.contains(&(key.prefix_len(), address, protocol, port))
        })
        .collect();
    for key in stale {
        let _ = forwards.remove(&key);
    }
    Ok(())
}

/// The prefixes of 16-bit numbers that make up a range: first number and length.
fn prefixes(range: PortRange) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let (mut first, last) = (u32::from(range.first), u32::from(range.last));
    while first <= last {
        // As large a block as the first number is a multiple of, and as fits.
        let aligned = first.trailing_zeros().min(16);
        let fits = (last - first + 1).ilog2();
        let size = aligned.min(fits);
        prefixes.push((u16::try_from(first).unwrap_or(u16::MAX), 16 - size));
        first += 1 << size;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_the_range_and_nothing_else() {
        for (first, last) in
            [(80, 80), (6000, 6009), (0, 65_535), (1, 65_534), (1024, 65_535), (65_535, 65_535)]
        {
            let mut covered: Vec<u32> = prefixes(PortRange { first, last })
                .into_iter()
                .flat_map(|(port, bits)| (0..1_u32 << (16 - bits)).map(move |n| u32::from(port) + n))
                .collect();
            covered.sort_unstable();
            assert_eq!(covered, (u32::from(first)..=u32::from(last)).collect::<Vec<_>>());
        }
        assert_eq!(prefixes(PortRange { first: 0, last: 65_535 }), [(0, 0)]);
    }
}
