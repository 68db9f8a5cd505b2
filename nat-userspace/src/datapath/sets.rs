//! Handing the rules to the fast path: tries filled beside those in force, then one write switches.

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, Map, MapData, MapError};
use ipnet::Ipv4Net;
use nat_common::abi::{SelectorKey, Settings, StaticKey, StaticValue};
use nat_common::classify::RuleSet;

use super::object::{Datapath, LoadError};
use crate::gateway::{Rules, network};

/// Bits of the generation before the address in a [`SelectorKey`] or [`StaticKey`].
const GENERATION: u32 = 32;

/// Publishes rules: the fast path judges by them from the next packet on, never by a mixture.
///
/// `inside` are the inside networks: from outside, no packet may come from there.
pub fn publish_rules(datapath: &mut Datapath, rules: &Rules, inside: &[Ipv4Net]) -> Result<(), LoadError> {
    let Settings { generation: before, secret, epoch, by_destination, .. } =
        datapath.settings.get(&0, 0).unwrap_or_default();
    let generation = before.wrapping_add(1);
    let forwarded: Vec<Ipv4Net> = rules.forwarded_to().map(Ipv4Net::from).collect();
    for (name, sets) in [
        ("SOURCES", rules.selector_sets(|rule| &rule.source, inside)),
        // The last bit there says something else: see `FORWARDED`.
        ("DESTINATIONS", rules.selector_sets(|rule| &rule.destination, &forwarded)),
    ] {
        let mut trie: LpmTrie<&mut MapData, SelectorKey, RuleSet> = trie(datapath, name)?;
        for (prefix, set) in sets {
            let key = SelectorKey { generation, address: network(prefix.network()) };
            let key = Key::new(GENERATION + u32::from(prefix.prefix_len()), key);
            trie.insert(&key, &set, 0).map_err(|source| LoadError::Map { name, source })?;
        }
    }
    let name = "ONE_TO_ONE";
    let mut one_to_one: LpmTrie<&mut MapData, StaticKey, StaticValue> = trie(datapath, name)?;
    for rule in &rules.statics {
        for (inbound, from, to) in [(1, rule.external, rule.internal), (0, rule.internal, rule.external)] {
            let key = StaticKey {
                // Sixteen bits suffice to tell two generations apart.
                generation: u16::try_from(generation & 0xffff).unwrap_or(0),
                inbound,
                address: network(from.network()),
            };
            let key = Key::new(GENERATION + u32::from(from.prefix_len()), key);
            let value = StaticValue { network: network(to.network()), host_mask: network(to.hostmask()) };
            one_to_one.insert(&key, &value, 0).map_err(|source| LoadError::Map { name, source })?;
        }
    }
    let flag = |set, flag| if set { flag } else { 0 };
    let settings = Settings {
        generation,
        epoch,
        by_destination,
        secret,
        flags: flag(rules.drop_unmatched, Settings::DROP_UNMATCHED_OUTSIDE)
            | flag(rules.pass_forged, Settings::PASS_FORGED)
            | flag(rules.tracks(), Settings::TRACKS)
            | flag(!rules.statics.is_empty(), Settings::ONE_TO_ONE),
        exempt: rules.exempt_set(),
        protocols: rules.protocol_sets(),
        inward: rules.inward_set(),
    };
    datapath.settings.set(0, &settings, 0).map_err(|source| LoadError::Map { name: "SETTINGS", source })?;
    clear(datapath, before);
    Ok(())
}

/// Takes the rules of an earlier generation out.
fn clear(datapath: &mut Datapath, generation: u32) {
    for name in ["SOURCES", "DESTINATIONS"] {
        let Ok(mut trie) = trie::<SelectorKey, RuleSet>(datapath, name) else { continue };
        let old: Vec<_> = trie
            .keys()
            .filter_map(Result::ok)
            .filter(|key| {
                let data = key.data();
                data.generation == generation
            })
            .collect();
        for key in old {
            let _ = trie.remove(&key);
        }
    }
    let Ok(mut one_to_one) = trie::<StaticKey, StaticValue>(datapath, "ONE_TO_ONE") else { return };
    let old: Vec<_> = one_to_one
        .keys()
        .filter_map(Result::ok)
        .filter(|key| u32::from(key.data().generation) == generation & 0xffff)
        .collect();
    for key in old {
        let _ = one_to_one.remove(&key);
    }
}

pub(super) fn trie<'a, K: aya::Pod, V: aya::Pod>(
    datapath: &'a mut Datapath,
    name: &'static str,
) -> Result<LpmTrie<&'a mut MapData, K, V>, LoadError> {
    let map: &mut Map = datapath.ebpf.map_mut(name).ok_or(LoadError::MissingMap(name))?;
    map.try_into().map_err(|source: MapError| LoadError::Map { name, source })
}
