//! Who answers ARP on the segments that natgw serves, asked while one waits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use super::InterfaceFacts;
use super::facts::text;
use crate::host::{Arp, Host};

/// Neighbours of an interface that are asked for.
const NEIGHBOURS: usize = 64;
/// How long their answers are waited for.
const PATIENCE: Duration = Duration::from_millis(400);

/// An address that was asked for on a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The interface that leads there.
    pub interface: String,
    /// Who was asked for.
    pub address: Ipv4Addr,
    /// Whether it is the gateway's own, which nobody else should answer for.
    pub own: bool,
    /// Ethernet addresses of those who answered, without the gateway's.
    pub stations: Vec<String>,
}

/// Asks for the gateway's own addresses, its neighbours, its routers, and the host that the question is about. Nothing
/// where who asks may not.
pub(super) fn gather(
    host: &Host,
    interfaces: &[InterfaceFacts],
    routers: &[Ipv4Addr],
    about: Option<Ipv4Addr>,
) -> Vec<Asked> {
    let gateway: BTreeSet<[u8; 6]> = host.links().map(|link| link.mac).collect();
    let segments: Vec<_> = interfaces
        .iter()
        .filter_map(|interface| {
            let link = host.link_by_name(&interface.name).filter(|link| link.up)?;
            let arp = Arp::open(link).ok()?;
            let own: BTreeSet<Ipv4Addr> =
                host.addresses(link.index).iter().map(|address| address.addr).collect();
            let neighbours = host.neighbours().filter(|(ifindex, ..)| *ifindex == link.index);
            let is_here = |one: &Ipv4Addr| interface.networks.iter().any(|net| net.contains(one));
            let first = about.into_iter().chain(routers.iter().copied()).filter(is_here);
            let others = first.chain(neighbours.map(|(_, address, _)| address));
            let others: Vec<Ipv4Addr> = others.filter(|one| !own.contains(one)).take(NEIGHBOURS).collect();
            let asker = host.addresses(link.index).first()?.addr;
            let asked = own.iter().map(|one| (*one, Ipv4Addr::UNSPECIFIED, true));
            let asked = asked.chain(others.into_iter().map(|one| (one, asker, false)));
            let asked: BTreeMap<Ipv4Addr, bool> = asked
                .filter(|(one, asker, _)| arp.ask(*asker, *one).is_ok())
                .map(|(one, _, own)| (one, own))
                .collect();
            Some((interface.name.clone(), arp, asked))
        })
        .collect();
    if !segments.is_empty() {
        thread::sleep(PATIENCE);
    }
    let mut all = Vec::new();
    for (interface, arp, asked) in segments {
        let answers = arp.answers();
        all.extend(asked.into_iter().map(|(address, own)| {
            let of_it =
                answers.iter().filter(|(answered, mac)| *answered == address && !gateway.contains(mac));
            let stations = of_it.map(|(_, mac)| text(*mac)).collect();
            Asked { interface: interface.clone(), address, own, stations }
        }));
    }
    all
}
