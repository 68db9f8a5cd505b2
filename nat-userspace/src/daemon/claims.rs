//! External addresses that no interface has: those within an outside interface's subnet are added
//! to it, so that the kernel answers ARP for them also while the daemon is not running, and
//! announced. What was added is removed when the configuration names it no more, and at the end;
//! also what a daemon that was killed has left.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::interfaces::pool_addresses;
use super::kernel::Kernel;
use crate::config::Config;
use crate::gateway::{Emission, Gateway, network};

/// The most addresses added: a larger block is routed to the gateway, not resolved.
const MOST: usize = 4096;

/// Addresses added to interfaces.
#[derive(Default)]
pub struct Claims(Vec<(u32, Ipv4Addr)>);

impl Claims {
    /// Adds what the configuration needs and no interface has, and takes back what it no longer
    /// needs.
    pub fn make(&mut self, kernel: &mut Kernel, gateway: &Gateway, config: &Config) -> Vec<Emission> {
        let mut announcements = Vec::new();
        let statics = config.statics.iter().flat_map(|rule| {
            let net = rule.external;
            u32::from(net.network())..=u32::from(net.broadcast())
        });
        let wanted = pool_addresses(config).chain(statics.map(Ipv4Addr::from));
        let wanted: BTreeSet<Ipv4Addr> = wanted.take(MOST).collect();
        self.adopt(kernel, config);
        self.release_but(kernel, &wanted);
        for own in wanted {
            if kernel.locals().contains(&own) {
                continue;
            }
            let Some(ifindex) = Self::segment(kernel, config, own) else { continue };
            match kernel.host.add_address(ifindex, own) {
                Ok(()) => {
                    self.0.push((ifindex, own));
                    if let Some(interface) = gateway.interface(ifindex) {
                        tracing::info!(address = %own, interface = interface.name, "external address added");
                        announcements.push(Emission { ifindex, frame: announcement(interface.mac, own) });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, address = %own, "an external address could not be added");
                }
            }
        }
        announcements
    }

    /// Takes over what an earlier daemon has added to the interfaces.
    fn adopt(&mut self, kernel: &Kernel, config: &Config) {
        for interface in &config.interfaces {
            let Some(link) = kernel.host.link_by_name(&interface.name) else { continue };
            for address in kernel.host.addresses(link.index).iter().filter(|address| address.claimed) {
                let claim = (link.index, address.addr);
                if !self.0.contains(&claim) {
                    self.0.push(claim);
                }
            }
        }
    }

    /// The outside interface whose subnet an address is in.
    fn segment(kernel: &Kernel, config: &Config, own: Ipv4Addr) -> Option<u32> {
        config.interfaces.iter().find_map(|interface| {
            let link = kernel.host.link_by_name(&interface.name)?;
            let on_link = kernel.host.addresses(link.index).iter().any(|address| {
                address.prefix < 32
                    && ipnet::Ipv4Net::new(address.addr, address.prefix).is_ok_and(|net| net.contains(&own))
            });
            (interface.side == crate::config::Side::Outside && on_link).then_some(link.index)
        })
    }

    /// Takes back what was added.
    pub fn release(&mut self, kernel: &mut Kernel) {
        self.release_but(kernel, &BTreeSet::new());
    }

    fn release_but(&mut self, kernel: &mut Kernel, wanted: &BTreeSet<Ipv4Addr>) {
        for (ifindex, own) in self.0.extract_if(.., |(_, own)| !wanted.contains(own)) {
            tracing::info!(address = %own, "external address removed");
            if let Err(error) = kernel.host.remove_address(ifindex, own) {
                tracing::warn!(%error, address = %own, "an external address could not be removed");
            }
        }
    }
}

/// A gratuitous ARP request (RFC 5227 section 3): switches and neighbours learn where an address
/// lives now.
fn announcement(mac: [u8; 6], own: Ipv4Addr) -> Vec<u8> {
    let address = network(own).to_ne_bytes();
    let mut frame = Vec::with_capacity(42);
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&[0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&address);
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&address);
    frame
}
