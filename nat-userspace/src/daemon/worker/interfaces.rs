//! Interfaces taken into service and let go of: sockets and tables first, programs last.

use std::time::Instant;

use nat_common::abi::VlanKey;

use super::super::vlans::place;
use super::Worker;
use crate::hash::HashSet;
use crate::host::Link;

impl Worker {
    /// Attaches an interface that has its sockets.
    pub(super) fn attach(&mut self, index: usize) -> anyhow::Result<()> {
        let name = self.served[index].config.name.clone();
        let Some(link) = self.kernel.host.link_by_name(&name).cloned() else { return Ok(()) };
        let Some(device) = self.served[index].place.as_ref().map(|place| place.device.index) else {
            return Ok(());
        };
        let already =
            self.served.iter().filter(|served| served.is_on(device)).find_map(|served| served.attached);
        self.served[index].attach(&mut self.kernel, &link, already)?;
        self.attach_traced();
        // Again: only now is it known whether XDP runs on skbs here.
        self.publish(index, Instant::now(), &link)
    }

    /// Opens an interface's sockets, or finds those of another on the same device, and makes it known.
    pub(super) fn take_in(&mut self, index: usize, now: Instant, link: &Link) -> anyhow::Result<()> {
        let config = &self.served[index].config;
        let Some(place) = place(&self.kernel.host, config, link) else {
            tracing::warn!(
                interface = link.name,
                "its parent is not there yet: it is served once that appears"
            );
            return Ok(());
        };
        let device = place.device.index;
        let shared = self.served.iter().find(|served| served.is_on(device) && served.queues > 0);
        let shared = shared.map(|served| (served.first_socket, served.queues));
        let served = &mut self.served[index];
        match shared {
            Some((first, queues)) => served.share_sockets(place, first, queues),
            None => served.open_sockets(&mut self.kernel, &mut self.frames, &mut self.ports, place)?,
        }
        self.publish(index, now, link)
    }

    pub(super) fn publish(&mut self, index: usize, now: Instant, link: &Link) -> anyhow::Result<()> {
        let device = self.served[index].place.as_ref().map(|place| place.device.name.clone());
        let trunk = self.served.iter().all(|served| Some(&served.config.name) != device.as_ref());
        self.served[index].publish(&mut self.kernel, &mut self.gateway, now, link, trunk)
    }

    /// Lets go of an interface, and of its device if no other is on it.
    pub(super) fn lose(&mut self, index: usize) {
        let device = self.served[index].place.as_ref().map(|place| place.device.index);
        let others = self.served.iter().enumerate().filter(|(other, _)| *other != index);
        let shared = device.is_some_and(|device| others.clone().any(|(_, served)| served.is_on(device)));
        self.served[index].lost(&mut self.kernel, &mut self.ports, shared);
    }

    /// Takes off what an earlier daemon had attached to interfaces that are this one's no more.
    pub(super) fn let_go_of_others(&mut self) {
        let served = self.served.iter();
        let own = served.flat_map(|served| {
            [served.ifindex, served.place.as_ref().map(|place| place.device.index)].into_iter().flatten()
        });
        self.kernel.datapath.detach_all_but(&own.collect());
        let served = self.served.iter().filter(|served| served.ifindex.is_some());
        let vlans = served.filter_map(|served| {
            let place = served.place.as_ref().filter(|place| !place.tags.is_empty())?;
            Some(VlanKey { tags: place.tags.vlan(), device: place.device.index, pad: 0 })
        });
        let vlans: HashSet<VlanKey> = vlans.collect();
        let known = &mut self.kernel.datapath.vlans;
        let others: Vec<VlanKey> =
            known.keys().filter_map(Result::ok).filter(|key| !vlans.contains(key)).collect();
        for key in others {
            let _ = known.remove(&key);
        }
    }
}
