//! Telling the program of routes that set an MTU: it opens no sessions by them, and asks the daemon about what is larger.

use std::collections::HashMap;

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData, MapError};
use ipnet::Ipv4Net;
use nat_common::abi::NARROW_PREFIXES;

use super::object::{Datapath, LoadError};
use super::sets::trie;
use crate::gateway::network;

/// Publishes the prefixes that routes with an MTU lead to, and the smallest of those MTUs. What is new comes in before
/// what is over goes.
pub fn publish_narrow(datapath: &mut Datapath, routes: &[(Ipv4Net, u32)]) -> Result<(), LoadError> {
    let name = "NARROW";
    let failed = |source: MapError| LoadError::Map { name, source };
    let whole;
    let mut wanted = routes;
    if routes.len() > NARROW_PREFIXES as usize / 2 {
        tracing::warn!(routes = routes.len(), "too many routes set an MTU: the daemon opens all sessions");
        whole = [(Ipv4Net::default(), routes.iter().map(|(_, mtu)| *mtu).min().unwrap_or(0))];
        wanted = &whole;
    }
    let wanted: HashMap<(u32, u32), u32> = wanted
        .iter()
        .map(|(prefix, mtu)| ((u32::from(prefix.prefix_len()), network(prefix.network())), *mtu))
        .collect();
    let mut trie: LpmTrie<&mut MapData, u32, u32> = trie(datapath, name)?;
    for (&(length, address), mtu) in &wanted {
        trie.insert(&Key::new(length, address), mtu, 0).map_err(failed)?;
    }
    let there: Vec<Key<u32>> = trie.keys().collect::<Result<_, _>>().map_err(failed)?;
    for key in there.iter().filter(|key| !wanted.contains_key(&(key.prefix_len(), key.data()))) {
        trie.remove(key).map_err(failed)?;
    }
    Ok(())
}
