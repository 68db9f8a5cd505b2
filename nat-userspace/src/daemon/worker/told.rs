//! What is logged of the host's changes: interfaces that go down and come up, addresses, routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::Worker;

/// Routes of a router may change many times a second: a line for all of such a time.
const ROUTES_EVERY: Duration = Duration::from_secs(10);

/// What an interface was like when it was last spoken of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    up: bool,
    addresses: BTreeSet<Ipv4Addr>,
}

/// What the log says so far.
#[derive(Default)]
pub(super) struct Told {
    interfaces: BTreeMap<String, State>,
    /// When routes were last spoken of, and their changes since.
    routes: Option<Instant>,
    changes: u32,
}

impl Worker {
    /// Says what is different of the interfaces that are served. The first time all of it is known.
    pub(super) fn tell_interfaces(&mut self) {
        for served in &self.served {
            let name = &served.config.name;
            let Some(link) = self.kernel.host.link_by_name(name) else {
                // That it is gone has been said.
                self.told.interfaces.remove(name);
                continue;
            };
            // Those that natgw has added are its own affair.
            let addresses = self.kernel.host.addresses(link.index).iter();
            let addresses =
                addresses.filter(|address| !address.claimed).map(|address| address.addr).collect();
            let now = State { up: link.up, addresses };
            let Some(before) = self.told.interfaces.insert(name.clone(), now.clone()) else { continue };
            if before.up && !now.up {
                tracing::warn!(
                    interface = name,
                    "has no link: what would leave by it waits, or finds another route"
                );
            } else if now.up && !before.up {
                tracing::info!(interface = name, "has its link again");
            }
            for address in now.addresses.difference(&before.addresses) {
                tracing::info!(interface = name, %address, "has a new address");
            }
            for address in before.addresses.difference(&now.addresses) {
                tracing::info!(interface = name, %address, "has lost an address: sessions behind it end");
            }
        }
    }

    /// Says that routes have changed, not too often.
    pub(super) fn tell_routes(&mut self, now: Instant) {
        self.told.changes += 1;
        if self.told.routes.is_none_or(|told| now.duration_since(told) >= ROUTES_EVERY) {
            tracing::info!(changes = self.told.changes, "routes have changed: live sessions follow them");
            self.told.routes = Some(now);
            self.told.changes = 0;
        }
    }
}
