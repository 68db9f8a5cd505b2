//! The interfaces of the configuration on the host as it is: found, attached, watched, told to the
//! fast path and the core.

use crate::hash::HashSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use ipnet::Ipv4Net;
use nat_common::abi::{self, INTERFACE_SLOTS, LocalAddress, QUEUES, VlanKey};
use nat_common::vlan::Tags;

use super::kernel::Kernel;
use super::vlans::Place;
use crate::config::{Config, ForwardAddress, InterfaceConfig, PortRange, Side, SnatTarget};
use crate::datapath::{AttachError, Attached, publish_forwards};
use crate::gateway::{Gateway, Interface, network};
use crate::host::{Link, merge_before_routing};
use xdp::nic::NicIndex;

use crate::slowpath::{Frames, Port, lent_frames};

/// Kinds of link, and drivers, that hand up frames whose checksum was left to an offload.
const VIRTUAL: [&str; 9] =
    ["veth", "tun", "tap", "bridge", "macvlan", "macvtap", "vlan", "virtio_net", "xen_netfront"];

/// An interface of the configuration.
pub struct Served {
    /// What the configuration says.
    pub config: InterfaceConfig,
    /// Its slot in the device map: its place in the configuration, or what it was to an earlier daemon.
    pub port: u16,
    /// Its kernel index, while it is there.
    pub ifindex: Option<u32>,
    /// Where its frames pass, while they can.
    pub place: Option<Place>,
    /// How it is attached, while it is.
    pub attached: Option<Attached>,
    /// Its device, if that merges received segments because natgw has asked for it.
    merges: Option<String>,
    /// First slot of its device's queues in the socket map.
    pub first_socket: u32,
    /// Queues with a socket.
    pub queues: u32,
}

impl Served {
    /// The interfaces of a configuration, none found yet.
    pub fn of(config: &Config) -> Vec<Self> {
        (0..)
            .zip(&config.interfaces)
            .map(|(port, config)| Self {
                config: config.clone(),
                port,
                ifindex: None,
                place: None,
                first_socket: u32::from(port) * QUEUES,
                attached: None,
                merges: None,
                queues: 0,
            })
            .collect()
    }

    /// Whether its frames pass this device.
    pub fn is_on(&self, device: u32) -> bool {
        self.place.as_ref().is_some_and(|place| place.device.index == device)
    }

    /// Opens sockets on the queues of its device and names them to the program.
    pub fn open_sockets(
        &mut self,
        kernel: &mut Kernel,
        frames: &mut Frames,
        ports: &mut Vec<Port>,
        place: Place,
    ) -> anyhow::Result<()> {
        self.queues = 0;
        self.first_socket = u32::from(self.port) * QUEUES;
        let device = place.device.index;
        let queues = queues_of(&place.device);
        self.place = Some(place);
        for queue in 0..queues {
            match Port::open(frames, device, queue, lent_frames(queues)) {
                Ok(port) => {
                    let slot = self.first_socket + queue;
                    kernel
                        .datapath
                        .sockets
                        .set(slot, port.fd(), 0)
                        .map_err(|error| anyhow::anyhow!("name socket {slot} to the program: {error}"))?;
                    ports.push(port);
                    self.queues += 1;
                }
                // More queues than are in use: the rest do not exist.
                Err(_) if queue > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Shares the sockets of another interface on the same device.
    pub fn share_sockets(&mut self, place: Place, first_socket: u32, queues: u32) {
        (self.place, self.first_socket, self.queues) = (Some(place), first_socket, queues);
    }

    /// Tells the program and the core what the interface is like now. Of a device that is no interface of natgw's
    /// itself (`trunk`), the program learns that only tagged frames are.
    pub fn publish(
        &self,
        kernel: &mut Kernel,
        gateway: &mut Gateway,
        now: Instant,
        link: &Link,
        trunk: bool,
    ) -> anyhow::Result<()> {
        let Some(Place { device, tags }) = &self.place else { return Ok(()) };
        // As it is now: what is remembered is from when the interface was taken into service.
        let device = kernel.host.link(device.index).unwrap_or(device).clone();
        let features = kernel.host.xdp_features(device.index).ok().flatten();
        let is_virtual = is_virtual(&device);
        // Where the kernel cannot tell (before 6.3), only virtual links are doubtful.
        let redirects = features.map_or(!is_virtual, |features| features.ndo_xmit);
        let mut addresses: Vec<_> = kernel.host.addresses(link.index).iter().collect();
        addresses.sort_by_key(|address| address.secondary || address.prefix == 32);
        let interface = Interface {
            ifindex: link.index,
            name: link.name.clone(),
            side: self.config.side,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up && device.up,
            port: self.port,
            redirects,
            is_virtual,
            tags: *tags,
            mss_clamp: self.config.mss_clamp,
            addresses: addresses.iter().map(|address| address.addr).collect(),
            networks: addresses
                .iter()
                .filter_map(|address| Ipv4Net::new(address.addr, address.prefix).ok())
                .filter(|net| net.prefix_len() < 32)
                .map(|net| net.trunc())
                .collect(),
        };
        // What an earlier daemon's program runs on is known before this one's is attached.
        let attached = self.attached.or_else(|| kernel.datapath.attached(device.index));
        let flag = |set, flag| if set { flag } else { 0 };
        let entry = abi::Interface {
            ifindex: link.index,
            first_socket: self.first_socket,
            queues: self.queues,
            flags: flag(self.config.side == Side::Outside, abi::Interface::OUTSIDE)
                | flag(is_virtual, abi::Interface::VIRTUAL)
                | flag(!redirects, abi::Interface::STACK)
                | flag(attached == Some(Attached::Generic), abi::Interface::GENERIC)
                | flag(interface.addresses.is_empty(), abi::Interface::UNNUMBERED)
                | flag(self.config.mss_clamp.is_some(), abi::Interface::CLAMP)
                | flag(!tags.is_empty(), abi::Interface::VLAN),
            mac: link.mac,
            port: self.port,
            mtu: link.mtu,
            device: device.index,
            tags: *tags,
        };
        if trunk && !tags.is_empty() {
            // No frame without a tag is for this MAC.
            let flags = entry.flags & abi::Interface::GENERIC;
            let ifindex = device.index;
            let bare = abi::Interface { ifindex, flags, mac: [0; 6], tags: Tags::NONE, ..entry };
            set_interface(kernel, gateway, &bare)?;
        }
        set_interface(kernel, gateway, &entry)?;
        if !tags.is_empty() {
            let key = VlanKey { tags: tags.vlan(), device: device.index, pad: 0 };
            kernel.datapath.vlans.insert(&key, &link.index, 0)?;
        }
        kernel.datapath.devices.set(
            u32::from(self.port),
            device.index,
            None::<&aya::programs::ProgramFd>,
            0,
        )?;
        gateway.set_interface(kernel, now, interface);
        Ok(())
    }

    /// Attaches the programs to its device, unless another interface has that done `already`.
    pub fn attach(
        &mut self,
        kernel: &mut Kernel,
        link: &Link,
        already: Option<Attached>,
    ) -> Result<(), AttachError> {
        let Some(place) = &self.place else { return Ok(()) };
        let (device, datapath) = (&place.device, &mut kernel.datapath);
        if device.index != link.index {
            datapath.attach_own(&link.name, link.index)?;
        }
        self.attached = Some(match already {
            Some(attached) => attached,
            None => datapath.attach(&device.name, device.index, self.config.mode)?,
        });
        if self.attached == Some(Attached::Native) && device.kind.as_deref() == Some("veth") {
            self.merges = merge(device);
        }
        self.ifindex = Some(link.index);
        Ok(())
    }

    /// The interface is gone from the host. Its device is let go of unless it is `shared`.
    pub fn lost(&mut self, kernel: &mut Kernel, ports: &mut Vec<Port>, shared: bool) {
        let place = self.place.take();
        if let Some(ifindex) = self.ifindex.take() {
            let gone = abi::Interface::default();
            let datapath = &mut kernel.datapath;
            let _ = datapath.interfaces.set(ifindex % INTERFACE_SLOTS, &gone, 0);
            let device = place.as_ref().map_or(ifindex, |place| place.device.index);
            if let Some(place) = place.filter(|place| !place.tags.is_empty()) {
                let _ = datapath.vlans.remove(&VlanKey { tags: place.tags.vlan(), device, pad: 0 });
                datapath.detach(ifindex);
            }
            if !shared {
                ports.retain(|port| port.ifindex != device);
                datapath.detach(device);
                let _ = datapath.interfaces.set(device % INTERFACE_SLOTS, &gone, 0);
                if let Some(merging) = self.merges.take() {
                    // The device may be gone.
                    let _ = merge_before_routing(&merging, false);
                }
            }
        }
        self.attached = None;
        self.queues = 0;
    }
}

/// While native XDP is attached to a veth its other end cuts what sockets send into packets of the MTU. Those that go by
/// the tc program are put together again before it (GRO), which the kernel leaves off: TCP is twice as fast with it. The
/// device's name, if it had not been on.
fn merge(device: &Link) -> Option<String> {
    let name = &device.name;
    match merge_before_routing(name, true) {
        Ok(false) => None,
        Ok(true) => {
            tracing::info!(interface = name, "GRO is on while natgw serves this veth");
            Some(name.clone())
        }
        Err(error) => {
            tracing::debug!(%error, interface = name, "GRO could not be switched on");
            None
        }
    }
}

/// The flows of an earlier daemon name interfaces by their slots in the device map: who has one keeps it, wherever the
/// configuration has come to name it, and the others take those that no flow can name, as far as there are some.
pub fn keep_ports(served: &mut [Served], kernel: &Kernel) {
    let datapath = &kernel.datapath;
    let mut kept = HashSet::default();
    let earlier: Vec<Option<u16>> = served
        .iter()
        .map(|served| {
            let ifindex = kernel.host.link_by_name(&served.config.name)?.index;
            let entry = datapath.interfaces.get(&(ifindex % INTERFACE_SLOTS), 0).ok()?;
            (entry.ifindex == ifindex && kept.insert(entry.port)).then_some(entry.port)
        })
        .collect();
    let slots = (0..u16::MAX).take_while(|port| u32::from(*port) < abi::INTERFACES);
    let others: Vec<u16> = slots.filter(|port| !kept.contains(port)).collect();
    let (mut used, unused): (Vec<u16>, Vec<u16>) =
        others.into_iter().partition(|port| datapath.devices.get(u32::from(*port), 0).is_ok());
    used.reverse();
    used.extend(unused.into_iter().rev());
    for (served, earlier) in served.iter_mut().zip(earlier) {
        if let Some(port) = earlier.or_else(|| used.pop()) {
            served.port = port;
            served.first_socket = u32::from(port) * QUEUES;
        }
    }
}

/// Writes an interface to its slot, which has to be its own.
fn set_interface(kernel: &mut Kernel, gateway: &Gateway, entry: &abi::Interface) -> anyhow::Result<()> {
    let slot = entry.ifindex % INTERFACE_SLOTS;
    let taken = kernel.datapath.interfaces.get(&slot, 0)?;
    if taken.ifindex != 0 && taken.ifindex != entry.ifindex && gateway.interface(taken.ifindex).is_some() {
        anyhow::bail!(
            "interfaces {} and {} (of index) share slot {slot} of the interface table: create one of them anew",
            taken.ifindex,
            entry.ifindex
        );
    }
    Ok(kernel.datapath.interfaces.set(slot, entry, 0)?)
}

/// Queues of a link that sockets are tried on.
pub fn queues_of(link: &Link) -> u32 {
    // Drivers that pair their queues tell only the most there can be.
    let in_use = NicIndex(link.index).queue_counts().map_or(0, |counts| counts.rx_count());
    if in_use == 0 { link.rx_queues.clamp(1, QUEUES) } else { in_use.min(QUEUES) }
}

/// Whether a link is of a kind that hands up partial checksums.
fn is_virtual(link: &Link) -> bool {
    let driver = std::fs::read_link(format!("/sys/class/net/{}/device/driver", link.name)).ok();
    let driver = driver.as_deref().and_then(std::path::Path::file_name).and_then(std::ffi::OsStr::to_str);
    link.kind.as_deref().into_iter().chain(driver).any(|kind| VIRTUAL.contains(&kind))
}

/// The gateway's addresses, and what may live on each: handed to the fast path whole, entries of
/// addresses that are gone taken out.
pub fn publish_addresses(kernel: &mut Kernel, gateway: &Gateway, config: &Config) -> anyhow::Result<()> {
    let range = mappable(config);
    // Rules that hide remotes from the inside put mappings on inside addresses, too.
    let inward = !config.services.is_empty()
        || config.forwards.iter().any(|rule| rule.masquerade_source)
        || config.snat.iter().any(|rule| !rule.destination.positive.is_empty() || rule.out.is_some());
    let named: HashSet<Ipv4Addr> = pool_addresses(config).collect();
    let forwards =
        if config.forwards.is_empty() && config.services.is_empty() { 0 } else { LocalAddress::FORWARDS };
    let is_external = |own: Ipv4Addr| {
        named.contains(&own)
            || config.interfaces.iter().any(|interface| {
                (interface.side == Side::Outside || inward)
                    && gateway
                        .interface_named(&interface.name)
                        .is_some_and(|found| found.addresses.contains(&own))
            })
    };
    let mut wanted = std::collections::HashMap::new();
    for own in kernel.locals().iter().copied().chain(named.iter().copied()) {
        let external = is_external(own);
        let absent = if kernel.locals().contains(&own) { 0 } else { LocalAddress::ABSENT };
        let entry = LocalAddress {
            flags: if external { LocalAddress::EXTERNAL | forwards | absent } else { 0 },
            first_port: range.first,
            last_port: range.last,
        };
        wanted.insert(network(own), entry);
    }
    for broadcast in kernel.host.broadcasts() {
        wanted.entry(network(broadcast)).or_insert_with(LocalAddress::default);
    }
    let stale: Vec<u32> = kernel
        .datapath
        .locals
        .keys()
        .filter_map(Result::ok)
        .filter(|own| !wanted.contains_key(own))
        .collect();
    for own in stale {
        let _ = kernel.datapath.locals.remove(&own);
    }
    for (own, entry) in wanted {
        kernel.datapath.locals.insert(&own, &entry, 0)?;
    }
    publish_forwards(&mut kernel.datapath, gateway.forwarded_endpoints())?;
    Ok(())
}

/// Ports that any rule may map to.
fn mappable(config: &Config) -> PortRange {
    let default = PortRange::UNPRIVILEGED;
    config
        .snat
        .iter()
        // Well-known source ports stay well-known under the default range (RFC 4787 REQ-3a).
        .map(
            |rule| {
                if rule.ports == default { PortRange { first: 0, last: default.last } } else { rule.ports }
            },
        )
        .reduce(|all, range| PortRange { first: all.first.min(range.first), last: all.last.max(range.last) })
        // No rule, no mapping: an empty range.
        .unwrap_or(PortRange { first: u16::MAX, last: 0 })
}

/// External addresses that the configuration names.
pub fn pool_addresses(config: &Config) -> impl Iterator<Item = Ipv4Addr> {
    let pools = config.snat.iter().filter_map(|rule| match &rule.to {
        SnatTarget::Pool(pool) => Some(pool.iter()),
        _ => None,
    });
    let forwards = config.forwards.iter().map(|rule| &rule.external);
    let services = config.services.iter().map(|rule| &rule.external);
    let forwards = forwards.chain(services).filter_map(|external| match external {
        ForwardAddress::Address(external) => Some(*external),
        ForwardAddress::Interface(_) => None,
    });
    pools.flatten().chain(forwards)
}
