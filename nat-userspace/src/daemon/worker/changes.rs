//! What changed: links, addresses, routes and neighbours of the host, and what the fast path reports of sessions.

use std::time::{Duration, Instant};

use nat_common::Reason;

use super::super::interfaces::publish_addresses;
use super::Worker;
use crate::datapath::publish_narrow;
use crate::gateway::World as _;
use crate::host::{HostEvent, Link, NeighbourState};

/// How often neighbours of live flows are confirmed: below the kernel's own 60 s until it forgets
/// (`gc_stale_time`).
const CONFIRM_EVERY: Duration = Duration::from_secs(20);
/// How often it is looked whether events were lost.
const EVENTS_EVERY: Duration = Duration::from_secs(1);

impl Worker {
    /// What changed on the host.
    pub(super) fn drain_events(&mut self, now: Instant) {
        let mut events = Vec::new();
        if let Err(error) = self.kernel.host.poll(&mut events) {
            tracing::warn!(%error, "changes of the host could not be read");
        }
        // Before anything is granted anew.
        if let Some(narrow) = self.kernel.host.narrow_routes()
            && let Err(error) = publish_narrow(&mut self.kernel.datapath, &narrow)
        {
            tracing::error!(%error, "the routes that set an MTU could not be handed to the fast path");
        }
        if events.is_empty() {
            return;
        }
        let (mut routes, mut moved) = (false, false);
        let mut addresses = false;
        for event in events {
            match event {
                HostEvent::NeighbourChanged { ifindex, addr, .. } => {
                    self.gateway.neighbour_changed(&mut self.kernel, now, ifindex, addr);
                }
                HostEvent::RoutesChanged => (routes, moved) = (true, true),
                HostEvent::LinkRemoved { index, name } => self.link_removed(now, index, &name),
                HostEvent::LinkChanged(index) | HostEvent::XdpFeaturesChanged(index) => {
                    self.link_changed(now, index);
                    routes = true;
                }
                HostEvent::AddressAdded { ifindex, .. } | HostEvent::AddressRemoved { ifindex, .. } => {
                    addresses = true;
                    routes = true;
                    self.kernel.read_addresses();
                    self.link_changed(now, ifindex);
                }
                HostEvent::Resynced => {
                    addresses = true;
                    routes = true;
                    self.kernel.read_addresses();
                    let indexes: Vec<u32> = self.kernel.host.links().map(|link| link.index).collect();
                    for index in indexes {
                        self.link_changed(now, index);
                    }
                }
            }
        }
        if addresses && let Err(error) = publish_addresses(&mut self.kernel, &self.gateway, &self.config) {
            tracing::error!(%error, "the gateway's addresses could not be handed to the fast path");
        }
        if self.published != self.gateway.inside_networks()
            && let Err(error) = self.publish_rules()
        {
            tracing::error!(%error, "the inside networks could not be handed to the fast path");
        }
        if routes {
            self.gateway.routes_changed(&mut self.kernel);
            self.tell_interfaces();
        }
        if moved {
            self.tell_routes(now);
        }
    }

    /// A device changed, or has appeared: an interface, or what one is a VLAN of.
    fn link_changed(&mut self, now: Instant, index: u32) {
        let Some(changed) = self.kernel.host.link(index).cloned() else { return };
        for position in 0..self.served.len() {
            let served = &self.served[position];
            let is_parent = served.config.vlan.as_ref().is_some_and(|vlan| vlan.parent == changed.name);
            if served.config.name == changed.name || served.is_on(index) || is_parent {
                let link = self.kernel.host.link_by_name(&served.config.name).cloned();
                if let Some(link) = link {
                    self.interface_changed(position, now, &link);
                }
            }
        }
    }

    /// An interface changed, or can be served now.
    fn interface_changed(&mut self, position: usize, now: Instant, link: &Link) {
        let known = self.served[position].ifindex;
        if known == Some(link.index) || (known.is_none() && self.served[position].queues > 0) {
            if let Err(error) = self.publish(position, now, link) {
                tracing::error!(%error, interface = link.name, "a change could not be handed to the fast path");
            }
            return;
        }
        tracing::info!(interface = link.name, "has appeared: taken into service");
        self.lose(position);
        let taken = self.take_in(position, now, link).and_then(|()| self.attach(position));
        if let Err(error) = taken {
            tracing::error!(%error, interface = link.name, "could not be taken into service");
        }
        if let Err(error) = publish_addresses(&mut self.kernel, &self.gateway, &self.config) {
            tracing::error!(%error, "the gateway's addresses could not be handed to the fast path");
        }
    }

    fn link_removed(&mut self, now: Instant, index: u32, name: &str) {
        self.gateway.remove_interface(&mut self.kernel, now, index);
        for position in 0..self.served.len() {
            let served = &self.served[position];
            let Some(own) = served.ifindex.filter(|&own| own == index || served.is_on(index)) else {
                continue;
            };
            tracing::warn!(
                interface = served.config.name,
                "{name} is gone: it is served again once that reappears"
            );
            self.gateway.remove_interface(&mut self.kernel, now, own);
            self.lose(position);
        }
    }

    /// Neighbours of live flows are asked for before the kernel forgets them: it does not see the
    /// traffic that would confirm them.
    pub(super) fn confirm_neighbours(&mut self, now: Instant) {
        if now.saturating_duration_since(self.confirmed) < CONFIRM_EVERY {
            return;
        }
        self.confirmed = now;
        for (ifindex, neighbour) in self.gateway.neighbours() {
            let stale = self
                .kernel
                .host
                .neighbour(ifindex, neighbour)
                .is_some_and(|known| matches!(known.state, NeighbourState::Stale));
            if stale {
                self.kernel.resolve(ifindex, neighbour);
            }
        }
    }

    /// Looks at every TCP session if the fast path could not tell which of them changed.
    pub(super) fn notice_lost_events(&mut self, now: Instant) {
        if now.saturating_duration_since(self.events_looked_at) < EVENTS_EVERY {
            return;
        }
        self.events_looked_at = now;
        let lost = self.count(Reason::EventLost);
        if lost != self.events_lost {
            self.events_lost = lost;
            self.gateway.session_events_lost(&mut self.kernel, now);
        }
    }

    /// What the fast path reported: sessions it has opened, TCP sessions that changed, merged packets too big.
    pub fn read_session_events(&mut self, now: Instant) {
        if self.gateway.read_reports(&mut self.kernel, now) {
            self.reports_read = now;
        }
        for too_big in std::mem::take(&mut self.kernel.too_big) {
            self.gateway.merged_too_big(now, &too_big);
        }
    }
}
