//! Basic NAT (RFC 3022 section 2.1): external addresses that are one inside host's own for as long
//! as it has mappings.

use crate::hash::HashMap;

/// Whose an address is, and how many mappings of that host hold it.
struct Lease {
    inside: u32,
    pool: u32,
    mappings: u32,
}

/// The addresses that are taken.
#[derive(Default)]
pub struct Leases {
    by_address: HashMap<u32, Lease>,
    by_host: HashMap<(u32, u32), u32>,
    /// How many of a pool are taken.
    taken: HashMap<u32, usize>,
}

impl Leases {
    /// The address that a host has of a pool.
    pub fn of(&self, inside: u32, pool: u32) -> Option<u32> {
        self.by_host.get(&(inside, pool)).copied()
    }

    /// The first address of a pool that is nobody's.
    pub fn free(&self, pool: u32, addresses: &[u32]) -> Option<u32> {
        // A full pool is not gone through for each packet that it refuses.
        if self.taken.get(&pool).is_some_and(|&taken| taken >= addresses.len()) {
            return None;
        }
        addresses.iter().copied().find(|address| !self.by_address.contains_key(address))
    }

    /// One more mapping of a host on its address. Whether it is the first.
    pub fn add(&mut self, inside: u32, pool: u32, address: u32) -> bool {
        let lease = self.by_address.entry(address).or_insert_with(|| {
            self.by_host.insert((inside, pool), address);
            *self.taken.entry(pool).or_default() += 1;
            Lease { inside, pool, mappings: 0 }
        });
        lease.mappings += 1;
        lease.mappings == 1
    }

    /// How many addresses of a pool are taken.
    pub fn taken(&self, pool: u32) -> usize {
        self.taken.get(&pool).copied().unwrap_or(0)
    }

    /// One mapping less. Whether it was the last.
    pub fn remove(&mut self, inside: u32, address: u32) -> bool {
        let Some(lease) = self.by_address.get_mut(&address).filter(|lease| lease.inside == inside) else {
            return false;
        };
        lease.mappings -= 1;
        let is_over = lease.mappings == 0;
        if is_over {
            self.forget(address);
        }
        is_over
    }

    /// An address is nobody's any more.
    pub fn forget(&mut self, address: u32) {
        let Some(Lease { inside, pool, .. }) = self.by_address.remove(&address) else { return };
        if self.by_host.get(&(inside, pool)) == Some(&address) {
            self.by_host.remove(&(inside, pool));
        }
        if let Some(taken) = self.taken.get_mut(&pool) {
            *taken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour ONE-08.
    #[test]
    fn one_08_first_come_first_served_and_free_after_the_last_mapping() {
        let (mut leases, pool, addresses) = (Leases::default(), 7, [2, 3]);
        for host in [10, 11] {
            let free = leases.free(pool, &addresses).unwrap();
            leases.add(host, pool, free);
            leases.add(host, pool, free);
        }
        assert_eq!((leases.of(10, pool), leases.of(11, pool)), (Some(2), Some(3)));
        assert_eq!(leases.free(pool, &addresses), None);
        assert!(!leases.remove(10, 2) && !leases.remove(99, 2) && leases.remove(10, 2));
        assert_eq!((leases.of(10, pool), leases.free(pool, &addresses)), (None, Some(2)));
    }
}
