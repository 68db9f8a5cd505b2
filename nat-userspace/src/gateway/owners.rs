//! Which mapping owns an external port: a table for each address and protocol, in pages. What grows is a page at a
//! time, so that nothing is moved, and neighbouring ports lie together.

use crate::hash::HashMap;

/// Ports of a page.
const PAGE: usize = 256;
/// No mapping has this number.
const NOBODY: u32 = u32::MAX;

/// An external endpoint: protocol, and address and port in network byte order.
pub type External = (u8, u32, u16);

/// The owners of external ports.
#[derive(Default)]
pub struct Owners(HashMap<(u8, u32), Vec<Option<Box<Page>>>>);

/// Those of some neighbouring ports.
struct Page {
    owners: [u32; PAGE],
    /// Ports that have one.
    owned: usize,
}

impl Owners {
    /// The mapping that owns an endpoint.
    pub fn get(&self, (protocol, address, port): External) -> Option<u32> {
        let (page, place) = place(port);
        let page = self.0.get(&(protocol, address))?.get(page)?.as_ref()?;
        Some(page.owners[place]).filter(|owner| *owner != NOBODY)
    }

    /// A mapping owns an endpoint from now on.
    pub fn set(&mut self, (protocol, address, port): External, owner: u32) {
        let (number, place) = place(port);
        let pages = self.0.entry((protocol, address)).or_default();
        if pages.len() <= number {
            pages.resize_with(number + 1, || None);
        }
        let page = pages[number].get_or_insert_with(|| Box::new(Page { owners: [NOBODY; PAGE], owned: 0 }));
        page.owned += usize::from(page.owners[place] == NOBODY);
        page.owners[place] = owner;
    }

    /// A mapping owns an endpoint no more, if it did.
    pub fn clear(&mut self, (protocol, address, port): External, owner: u32) {
        let (number, place) = place(port);
        let Some(pages) = self.0.get_mut(&(protocol, address)) else { return };
        let Some(Some(page)) = pages.get_mut(number) else { return };
        if page.owners[place] != owner {
            return;
        }
        page.owners[place] = NOBODY;
        page.owned -= 1;
        if page.owned == 0 {
            pages[number] = None;
            if pages.iter().all(Option::is_none) {
                self.0.remove(&(protocol, address));
            }
        }
    }
}

/// The page of a port, and its place there.
fn place(port: u16) -> (usize, usize) {
    let port = usize::from(u16::from_be(port));
    (port / PAGE, port % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_one_owner_and_nothing_stays_behind() {
        let mut owners = Owners::default();
        for port in 0..=u16::MAX {
            owners.set((17, 1, port.to_be()), u32::from(port));
        }
        owners.set((6, 1, 80_u16.to_be()), 7);
        assert_eq!(owners.get((17, 1, 80_u16.to_be())), Some(80));
        assert_eq!(owners.get((6, 1, 80_u16.to_be())), Some(7));
        assert_eq!(owners.get((6, 2, 80_u16.to_be())), None);
        // Its place was another's before: that one cannot clear it any more.
        owners.set((6, 1, 80_u16.to_be()), 8);
        owners.clear((6, 1, 80_u16.to_be()), 7);
        assert_eq!(owners.get((6, 1, 80_u16.to_be())), Some(8));
        owners.clear((6, 1, 80_u16.to_be()), 8);
        for port in 0..=u16::MAX {
            owners.clear((17, 1, port.to_be()), u32::from(port));
        }
        assert!(owners.0.is_empty());
    }
}
