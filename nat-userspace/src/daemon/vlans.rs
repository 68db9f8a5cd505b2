//! Which device an interface's frames pass, and with which tags: a VLAN's pass its parent.

use nat_common::vlan::Tags;
use nat_common::wire::{ETHERTYPE_QINQ, ETHERTYPE_VLAN};

use crate::config::{InterfaceConfig, VlanConfig};
use crate::host::{Host, Link, hides_tags};

/// Where an interface's frames pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The device that the programs and sockets are on.
    pub device: Link,
    /// What its frames are tagged with there.
    pub tags: Tags,
}

/// The place of an interface; none while its parent is not there.
pub fn place(host: &Host, config: &InterfaceConfig, link: &Link) -> Option<Place> {
    if let Some(vlan) = &config.vlan {
        let device = host.link_by_name(&vlan.parent)?.clone();
        return Some(Place { device, tags: tags(vlan) });
    }
    let itself = Place { device: link.clone(), tags: Tags::NONE };
    let Some(place) = of_kernel_vlan(host, link) else { return Some(itself) };
    // Served as a device like any other: behind the kernel's own VLAN code, on skbs.
    Some(if hides_tags(&place.device.name) { itself } else { place })
}

/// What should be different, if a VLAN is not served as it could be.
pub fn warning(host: &Host, config: &InterfaceConfig) -> Option<String> {
    let link = host.link_by_name(&config.name)?;
    let device = match &config.vlan {
        Some(vlan) => host.link_by_name(&vlan.parent)?.clone(),
        None => of_kernel_vlan(host, link)?.device,
    };
    hides_tags(&device.name).then(|| {
        let name = &device.name;
        let effect = match &config.vlan {
            Some(_) => format!("what comes with a tag that way is not seen to be {}'s", config.name),
            None => format!("{} is served on skbs, at about a fourth of the speed", config.name),
        };
        format!("{name} takes VLAN tags off before natgw sees them: {effect}; ethtool -K {name} rxvlan off, and a restart, changes that")
    })
}

/// What the configuration says.
fn tags(vlan: &VlanConfig) -> Tags {
    match vlan.outer {
        None => Tags::of_vlans((ETHERTYPE_VLAN, vlan.number), None),
        Some(outer) => Tags::of_vlans((ETHERTYPE_QINQ, outer), Some((ETHERTYPE_VLAN, vlan.number))),
    }
}

/// What the kernel says: a VLAN of a device, or of a VLAN of a device.
fn of_kernel_vlan(host: &Host, link: &Link) -> Option<Place> {
    let (own, parent) = (link.vlan?, host.link(link.parent?)?);
    let (tags, device) = match (parent.vlan, parent.parent) {
        (None, _) => (Tags::of_vlans(own, None), parent),
        (Some(outer), Some(grandparent)) => {
            let device = host.link(grandparent).filter(|device| device.vlan.is_none())?;
            (Tags::of_vlans(outer, Some(own)), device)
        }
        (Some(_), None) => return None,
    };
    // Bridges and the like handle tags themselves, beside the frame.
    let takes_frames_as_they_are = device.kind.as_deref().is_none_or(|kind| kind == "veth");
    (device.ethernet && takes_frames_as_they_are).then(|| Place { device: device.clone(), tags })
}
