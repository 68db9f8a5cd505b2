//! What the program may open by itself: grants, slots lent to it, and what both claim. See [`nat_common::delegate`].

use std::rc::Rc;

use aya::maps::{HashMap, MapData};
use nat_common::delegate::{Grant, GrantKey};
use nat_common::shed;

use super::Mapped;
use super::claims::Claims;
use super::held::Listing;
use super::lender::Lender;

/// The daemon's side of it.
pub struct Delegation {
    /// Ports and endpoints taken.
    pub claims: Rc<Claims>,
    /// Slots lent.
    pub lender: Lender,
    /// Ports that sockets hold.
    pub listing: Listing,
    pub(super) shed: Mapped<u64>,
    pub(super) granted: HashMap<MapData, GrantKey, Grant>,
}

impl Delegation {
    /// First packets of a host (network byte order) are refused until the tick is over.
    pub fn shed(&self, host: u32, tick: u32) {
        self.shed.store(shed::place(host), shed::refused(host, tick.wrapping_add(1)));
    }

    /// Grants a host what its sessions may be opened with. Without room its first packets go on coming up.
    pub fn grant(&mut self, key: &GrantKey, grant: &Grant) {
        if self.granted.insert(key, grant, 0).is_err() {
            // Those of former epochs are in the way.
            self.forget(|old| old.epoch != grant.epoch);
            if let Err(error) = self.granted.insert(key, grant, 0) {
                tracing::debug!(%error, "no room for a grant");
            }
        }
    }

    /// Takes grants out.
    pub(super) fn forget(&mut self, which: impl Fn(&Grant) -> bool) {
        let old: Vec<GrantKey> = self
            .granted
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, grant)| which(grant))
            .map(|(key, _)| key)
            .collect();
        for key in old {
            let _ = self.granted.remove(&key);
        }
    }
}
