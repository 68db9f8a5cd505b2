//! The loaded object between two links, in namespaces that end with the thread that made them.

use std::{
    any::Any,
    collections::HashMap,
    fs,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    panic::{self, AssertUnwindSafe},
    process::Command,
    sync::{LazyLock, Mutex, mpsc},
    thread,
};

use nat_common::{
    FlowKey, FlowValue, Realm, Reason,
    abi::{INTERFACE_SLOTS, Interface, LocalAddress, QUEUES, VlanKey},
    flow::{Action, Query, Rewrite},
    next_hop::NextHop,
    vlan::Tags,
};
use nat_tests::packet::{Mac, protocol};
use natgw::{
    config::{Config, PortRange},
    datapath::{Datapath, publish_forwards, publish_rules},
    gateway::{Rules, network},
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

/// The gateway's inside interface, and a host behind it.
pub const LAN_MAC: Mac = [0x02, 0, 0, 0, 1, 1];
/// See [`LAN_MAC`].
pub const CLIENT_MAC: Mac = [0x02, 0, 0, 0, 1, 10];
/// The inside host that has an address of its own outside.
pub const PUBLISHED_MAC: Mac = [0x02, 0, 0, 0, 1, 17];
/// The gateway's outside interface, and the router behind it.
pub const WAN_MAC: Mac = [0x02, 0, 0, 0, 2, 1];
/// See [`WAN_MAC`].
pub const ROUTER_MAC: Mac = [0x02, 0, 0, 0, 2, 254];

/// Index of the first VLAN's interface.
const VLANS: u32 = 4000;

/// Largest packet behind [`Hop::Small`].
pub const SMALL: u16 = 576;

const RULES: &str = r#"
[[interface]]
name = "lan"
side = "inside"

[[interface]]
name = "tap"
side = "inside"

[[interface]]
name = "wan"
side = "outside"

[[static]]
external = "203.0.113.16/28"
internal = "192.168.1.16/28"

[[snat]]
source = ["192.168.1.0/24"]
destination = ["198.51.101.0/24"]
to = "none"

[[snat]]
source = ["192.168.1.0/24"]
to = "masquerade"
"#;

/// An interface of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Inside, a physical NIC to the program.
    Lan,
    /// Inside, a virtual NIC that hands up partial checksums, and has no socket.
    Tap,
    /// Outside.
    Wan,
}

impl Link {
    /// Every one.
    const ALL: [Self; 3] = [Self::Lan, Self::Tap, Self::Wan];

    /// Its name in the namespace.
    fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Tap => "tap",
            Self::Wan => "wan",
        }
    }

    /// The side it faces.
    pub fn realm(self) -> Realm {
        if self == Self::Wan { Realm::Outside } else { Realm::Inside }
    }

    /// Its MAC.
    pub fn mac(self) -> Mac {
        if self == Self::Wan { WAN_MAC } else { LAN_MAC }
    }

    /// Index into every table that has a slot for each interface.
    fn index(self) -> u16 {
        match self {
            Self::Lan => 0,
            Self::Tap => 1,
            Self::Wan => 2,
        }
    }
}

/// Next hops, by their slots.
#[derive(Clone, Copy)]
pub enum Hop {
    Router = 1,
    Client,
    Small,
    Unresolved,
    Stack,
    NoDevice,
}

/// The loaded object and what was written into its maps.
pub struct Stage {
    /// The loaded object.
    pub datapath: Datapath,
    ifindexes: [u32; 3],
    flows: HashMap<FlowKey, FlowValue>,
    hops: HashMap<u32, NextHop>,
    /// What ends when it is closed: the sockets of the daemon, and the gateway's own.
    kept_open: Vec<Box<dyn Any>>,
}

type Work = Box<dyn FnOnce(&mut Stage) + Send>;

/// The thread that has the stage. It ends with the process, and its namespaces and pins with it.
static STAGE: LazyLock<Mutex<mpsc::Sender<Work>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Work>();
    thread::spawn(move || {
        let mut stage = Stage::new();
        for work in receiver {
            work(&mut stage);
        }
    });
    Mutex::new(sender)
});

/// Calls `work` on the stage's thread: frames come in on devices of its namespace.
pub fn on_stage<T: Send + 'static>(work: impl FnOnce(&mut Stage) -> T + Send + 'static) -> T {
    let (answer, answered) = mpsc::channel();
    let work: Work = Box::new(move |stage| {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| work(stage)));
        answer.send(outcome).expect("the test waits for the answer");
    });
    STAGE.lock().expect("nobody panics while sending").send(work).expect("the stage is set");
    let outcome = answered.recv().expect("the stage is set (its thread says above why not)");
    outcome.unwrap_or_else(|payload| panic::resume_unwind(payload))
}

impl Stage {
    fn new() -> Self {
        let bpffs = enter_namespaces();
        set_up_links();
        let datapath = Datapath::load(&bpffs, 1024, 0, || {}).expect("load the object");
        let ifindexes = Link::ALL.map(|link| {
            let path = format!("/sys/class/net/{}/ifindex", link.name());
            fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("read {path}: {error}"))
                .trim()
                .parse()
                .unwrap()
        });
        let mut stage =
            Self { datapath, ifindexes, flows: HashMap::new(), hops: HashMap::new(), kept_open: Vec::new() };
        stage.write_interfaces();
        stage.write_addresses();
        stage.write_hops();
        stage.write_flows();
        stage.publish(RULES);
        stage.kept_open.push(Box::new(UdpSocket::bind("203.0.113.1:5000").expect("bind to UDP port 5000")));
        stage.kept_open.push(Box::new(UdpSocket::bind("0.0.0.0:5053").expect("bind to UDP port 5053")));
        stage
            .kept_open
            .push(Box::new(TcpListener::bind("203.0.113.1:5000").expect("listen on TCP port 5000")));
        stage
    }

    /// Puts other rules in force.
    fn publish(&mut self, rules: &str) {
        let config = Config::parse(rules, "the stage's rules").expect("the rules are right");
        publish_rules(&mut self.datapath, &Rules::new(&config), &[]).expect("publish the rules");
    }

    /// Calls `work` while what matches nothing is dropped.
    pub fn dropping_unmatched<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.publish(&format!("{RULES}\n[unmatched]\noutside = \"drop\"\n"));
        let done = work(self);
        self.publish(RULES);
        done
    }

    /// Opens a session whose original direction is relayed to a next hop.
    pub fn relay(&mut self, session: u32, key: FlowKey, action: Action, ends: &Rewrite, hop: Hop) {
        let value = FlowValue::relay(action, ends, hop as u16);
        let entries = [(key, value), (key.reversed(Realm::Inside), FlowValue::bypass())];
        self.datapath.flows.open(session, &entries, 0);
        assert_eq!(self.datapath.flows.flush(), [0_u32; 0], "the flow has a place");
    }

    /// Calls `work` while SYNs to a next hop are the daemon's.
    pub fn with_syns_asked_for<T>(&mut self, hop: Hop, work: impl FnOnce(&mut Self) -> T) -> T {
        let slot = hop as u32;
        let before = self.hops[&slot];
        let asking = NextHop { flags: before.flags | NextHop::CLAMP, ..before };
        self.datapath.hops.set(slot, &asking, 0).expect("write a next hop");
        let done = work(self);
        self.datapath.hops.set(slot, &before, 0).expect("write a next hop");
        done
    }

    /// Calls `work` while VLAN 5 of `lan`, and 7 within 100, are interfaces, and the router is in the VLAN of `uplink`.
    pub fn with_vlans<T>(&mut self, uplink: Tags, work: impl FnOnce(&mut Self) -> T) -> T {
        let device = self.ifindexes[usize::from(Link::Lan.index())];
        let router = Hop::Router as u32;
        for (ifindex, tags) in [
            (VLANS, Tags::of_vlans((0x8100, 5), None)),
            (VLANS + 1, Tags::of_vlans((0x88a8, 100), Some((0x8100, 7)))),
        ] {
            let interface = Interface {
                ifindex,
                first_socket: 0,
                queues: 1,
                flags: Interface::VLAN,
                mac: LAN_MAC,
                port: Link::Lan.index(),
                mtu: 1500,
                device,
                tags,
            };
            let key = VlanKey { tags, device, pad: 0 };
            self.datapath.interfaces.set(ifindex, &interface, 0).expect("write an interface");
            self.datapath.vlans.insert(&key, &ifindex, 0).expect("write a VLAN");
        }
        let untagged = self.hops[&router];
        let tagged = NextHop { tags: uplink, ..untagged };
        self.datapath.hops.set(router, &tagged, 0).expect("write a next hop");
        let done = work(self);
        self.datapath.hops.set(router, &untagged, 0).expect("write a next hop");
        let keys: Vec<VlanKey> = self.datapath.vlans.keys().filter_map(Result::ok).collect();
        for key in keys {
            self.datapath.vlans.remove(&key).expect("remove a VLAN");
        }
        done
    }

    /// Runs the program on a frame that comes in by `link`. Returns the action, the frame that the program left,
    /// and the counters that moved.
    pub fn run(&self, link: Link, frame: &[u8]) -> (u32, Vec<u8>, Vec<(Reason, u64)>) {
        let before = self.counters();
        let ifindex = self.ifindexes[usize::from(link.index())];
        let (action, left) = self.datapath.test_run(ifindex, frame).expect("run the program");
        let after = self.counters();
        let moved = Reason::ALL.iter().zip(before.iter().zip(after));
        let moved = moved.filter(|(_, (before, after))| *before != after);
        (action, left, moved.map(|(reason, (before, after))| (*reason, after - before)).collect())
    }

    /// The flow of a packet and its next hop.
    pub fn flow(&self, key: &FlowKey) -> Option<(&FlowValue, &NextHop)> {
        let value = self.flows.get(key)?;
        Some((value, self.hops.get(&u32::from(value.next_hop))?))
    }

    fn counters(&self) -> Vec<u64> {
        let count = |reason: &Reason| {
            let values = self.datapath.counters.get(&reason.index(), 0).expect("read a counter");
            values.iter().sum()
        };
        Reason::ALL.iter().map(count).collect()
    }

    fn write_interfaces(&mut self) {
        for link in Link::ALL {
            let ifindex = self.ifindexes[usize::from(link.index())];
            let first_socket = u32::from(link.index()) * QUEUES;
            let flags = match link {
                Link::Lan => 0,
                Link::Tap => Interface::VIRTUAL,
                Link::Wan => Interface::OUTSIDE,
            };
            let interface = Interface {
                ifindex,
                first_socket,
                queues: 1,
                flags,
                mac: link.mac(),
                port: link.index(),
                mtu: 1500,
                device: ifindex,
                tags: Tags::NONE,
            };
            self.datapath
                .interfaces
                .set(ifindex % INTERFACE_SLOTS, &interface, 0)
                .expect("write an interface");
            self.datapath.devices.set(link.index().into(), ifindex, None, 0).expect("write a device");
            if link != Link::Tap {
                let socket = packet_socket();
                self.datapath.sockets.set(first_socket, socket.as_raw_fd(), 0).expect("write a socket");
                self.kept_open.push(Box::new(socket));
            }
        }
    }

    fn write_addresses(&mut self) {
        let external = LocalAddress { flags: LocalAddress::EXTERNAL, first_port: 1024, last_port: u16::MAX };
        let forwarding = LocalAddress { flags: LocalAddress::EXTERNAL | LocalAddress::FORWARDS, ..external };
        let locals = [
            ([192, 168, 1, 1], LocalAddress::default()),
            ([203, 0, 113, 1], external),
            ([203, 0, 113, 2], forwarding),
            ([203, 0, 113, 3], LocalAddress { flags: forwarding.flags | LocalAddress::ABSENT, ..forwarding }),
        ];
        for (address, local) in locals {
            self.datapath.locals.insert(&network(address.into()), &local, 0).expect("write an address");
        }
        let forwards = [53, 5053].map(|port| {
            let external = network([203, 0, 113, 2].into());
            (external, protocol::UDP, PortRange { first: port, last: port })
        });
        publish_forwards(&mut self.datapath, forwards.into_iter()).expect("write the forwards");
    }

    fn write_hops(&mut self) {
        let router = NextHop {
            destination: ROUTER_MAC,
            source: WAN_MAC,
            ifindex: self.ifindexes[usize::from(Link::Wan.index())],
            port: Link::Wan.index(),
            mtu: 1500,
            flags: NextHop::VALID,
            tags: Tags::NONE,
        };
        let client = NextHop {
            destination: CLIENT_MAC,
            source: LAN_MAC,
            ifindex: self.ifindexes[usize::from(Link::Lan.index())],
            port: Link::Lan.index(),
            ..router
        };
        for (slot, hop) in [
            (Hop::Router, router),
            (Hop::Client, client),
            (Hop::Small, NextHop { mtu: SMALL.into(), ..router }),
            (Hop::Unresolved, NextHop { flags: 0, ..router }),
            (Hop::Stack, NextHop { flags: NextHop::VALID | NextHop::STACK, ..router }),
            (Hop::NoDevice, NextHop { port: 63, ..router }),
        ] {
            self.datapath.hops.set(slot as u32, &hop, 0).expect("write a next hop");
            self.hops.insert(slot as u32, hop);
        }
    }

    /// Sessions of 192.168.1.10 behind 203.0.113.1: port n outside is 21,000 higher, but where a test needs it
    /// preserved.
    fn write_flows(&mut self) {
        let sessions = [
            (protocol::UDP, 40000, 61000, 53, Hop::Router),
            (protocol::UDPLITE, 40000, 61000, 53, Hop::Router),
            (protocol::TCP, 40000, 61000, 80, Hop::Router),
            (protocol::ICMP, 40000, 61000, 0, Hop::Router),
            (protocol::GRE, 0, 0, 0, Hop::Router),
            // behaviour CKS-02.
            (protocol::UDP, 40000, 40000, 5000, Hop::Router),
            (protocol::UDP, 40001, 61001, 53, Hop::Small),
            (protocol::UDP, 40002, 61002, 53, Hop::Unresolved),
            (protocol::UDP, 40003, 61003, 53, Hop::Stack),
            (protocol::UDP, 40004, 61004, 53, Hop::NoDevice),
        ];
        for (session, (protocol, inside, outside, remote, hop)) in (1..).zip(sessions) {
            let query = if protocol == protocol::ICMP { Query::Request as u8 } else { 0 };
            let [client, server, public] = [[192, 168, 1, 10], [198, 51, 100, 1], [203, 0, 113, 1]]
                .map(|own| network(Ipv4Addr::from(own)));
            let key = FlowKey {
                source: client,
                destination: server,
                source_port: u16::to_be(inside),
                destination_port: u16::to_be(remote),
                protocol,
                query,
                realm: Realm::Inside as u16,
            };
            let rewrite = Rewrite {
                source: public,
                destination: server,
                source_port: u16::to_be(outside),
                destination_port: key.destination_port,
            };
            let sent = FlowKey { source: public, source_port: rewrite.source_port, ..key };
            let reply = sent.reversed(Realm::Outside);
            let back = Rewrite {
                source: server,
                destination: client,
                source_port: key.destination_port,
                destination_port: key.source_port,
            };
            let entries = [
                (key, FlowValue::translate(&key, &rewrite, hop as u16)),
                (reply, FlowValue::translate(&reply, &back, Hop::Client as u16)),
            ];
            self.datapath.flows.open(session, &entries, 0);
            self.flows.extend(entries);
        }
        // A flow that was judged to be plain routing.
        let [from, to] = [[192, 168, 1, 10], [198, 51, 101, 9]].map(|own| network(Ipv4Addr::from(own)));
        let ports = (u16::to_be(40005), u16::to_be(53));
        let key = FlowKey {
            source: from,
            destination: to,
            source_port: ports.0,
            destination_port: ports.1,
            protocol: protocol::UDP,
            query: 0,
            realm: Realm::Inside as u16,
        };
        let bypass = FlowValue::bypass();
        self.datapath.flows.open(100, &[(key, bypass), (key.reversed(Realm::Outside), bypass)], 0);
        assert_eq!(self.datapath.flows.flush(), [0_u32; 0], "every flow has a place");
    }
}

/// Moves the thread into network and mount namespaces of its own, with a place for a bpffs that nobody else sees.
fn enter_namespaces() -> std::path::PathBuf {
    // SAFETY: no file descriptor table is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
        .expect("make namespaces (are you root?)");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .expect("keep mounts to ourselves");
    let folder = std::env::temp_dir();
    mount("tmpfs", &folder, "tmpfs", MountFlags::empty(), None).expect("mount a tmpfs");
    // /sys shows the devices of the namespace it was mounted in.
    mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).expect("mount a sysfs");
    folder.join("bpf")
}

fn set_up_links() {
    for (link, address) in [("lan", "192.168.1.1/24"), ("tap", "192.168.2.1/24"), ("wan", "203.0.113.1/24")] {
        ip(&format!("link add {link} type veth peer name {link}-peer"));
        ip(&format!("link set {link} up"));
        ip(&format!("link set {link}-peer up"));
        ip(&format!("addr add {address} dev {link}"));
    }
    for (link, mac) in [("lan", LAN_MAC), ("wan", WAN_MAC)] {
        ip(&format!("link set {link} address {}", text(mac)));
    }
    ip(&format!("neigh add 192.168.1.17 lladdr {} dev lan nud permanent", text(PUBLISHED_MAC)));
    ip(&format!("neigh add 192.168.1.10 lladdr {} dev lan nud permanent", text(CLIENT_MAC)));
    ip(&format!("neigh add 203.0.113.254 lladdr {} dev wan nud permanent", text(ROUTER_MAC)));
    ip("route add default via 203.0.113.254");
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("switch forwarding on");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("start ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A socket that the program may redirect to: it needs no more than a receive ring for that.
fn packet_socket() -> OwnedFd {
    /// From `<linux/if_xdp.h>`.
    const SOL_XDP: libc::c_int = 283;
    const XDP_RX_RING: libc::c_int = 2;
    let entries: u32 = 64;
    // SAFETY: a system call without pointers, and one with a pointer to a value that lives on.
    unsafe {
        let socket = libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0, "make an AF_XDP socket: {}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(socket);
        let length = libc::socklen_t::try_from(size_of::<u32>()).expect("four");
        let set =
            libc::setsockopt(socket.as_raw_fd(), SOL_XDP, XDP_RX_RING, (&raw const entries).cast(), length);
        assert!(set == 0, "make its ring: {}", std::io::Error::last_os_error());
        socket
    }
}
