//! The wires: one client, one server, and between them a lane for each gateway under test.
//!
//! ```text
//!          ┌─ floor ─── lan [floor gateway] wan ─── floor ─┐
//!  client ─┼─ bare ──── lan [bare gateway]  wan ──── bare ─┼─ server
//!          └─ nft ───── lan [nft gateway]   wan ───── nft ─┘
//! ```
//!
//! All lanes have the same addresses, so that the same frames suit every gateway; client and server have no IP
//! stack to be confused by that: their ends are a generator and a sink.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use nat_bench_ebpf::FIRST_CLIENT;

use crate::namespace::{Namespace, feed};

/// The client's end of each lane.
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc1];
/// The gateway's inside.
pub(crate) const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The gateway's outside.
pub(crate) const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The server's end of each lane.
pub(crate) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x5e];
/// The numbers of the gateway's interfaces. No two ends of a veth share one: the kernel would take its time to tell
/// that their carrier is there.
pub(crate) const LAN_INDEX: u32 = 101;
pub(crate) const WAN_INDEX: u32 = 102;
/// The gateway's address outside.
pub(crate) const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// An interface of the client's that carries nothing.
pub(crate) const SPARE: &str = "spare";
/// The network inside.
pub(crate) const INSIDE: &str = "10.1.0.0/16";

const LAN: &str = "10.1.0.1/16";
const WAN: &str = "203.0.113.1/24";
const ROUTER: &str = "203.0.113.254";

/// Client, server and lanes.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) client: Namespace,
    pub(crate) server: Namespace,
    pub(crate) lanes: Vec<Lane>,
}

/// A gateway between client and server; both have an interface of the lane's name.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    /// The number of the client's interface.
    pub(crate) client_index: u32,
    /// Has the interfaces `lan` and `wan`.
    pub(crate) gateway: Namespace,
}

impl Topology {
    /// Makes a lane for each name; its interfaces have so many queues, and a CPU's frames keep to one.
    pub(crate) fn new(names: &[&'static str], queues: usize) -> anyhow::Result<Self> {
        let mut topology = Self {
            client: Namespace::create("client")?,
            server: Namespace::create("server")?,
            lanes: Vec::new(),
        };
        for (client_index, name) in (201..).zip(names) {
            let lane = Lane { name, client_index, gateway: Namespace::create(name)? };
            topology.wire(&lane, queues)?;
            topology.lanes.push(lane);
        }
        topology.client.ip(&format!("link add {SPARE} type veth peer name {SPARE}-end"))?;
        for lane in &topology.lanes {
            topology.wait_for_carriers(lane)?;
        }
        Ok(topology)
    }

    fn wire(&self, lane: &Lane, queues: usize) -> anyhow::Result<()> {
        let Lane { name, gateway, client_index } = lane;
        let mut links = String::new();
        for (own, own_mac, index, host, host_mac) in [
            ("lan", LAN_MAC, LAN_INDEX, &self.client, CLIENT_MAC),
            ("wan", WAN_MAC, WAN_INDEX, &self.server, SERVER_MAC),
        ] {
            writeln!(
                links,
                "link add {own} index {index} address {} numrxqueues {queues} numtxqueues {queues} netns {} \
                 type veth peer name {name} index {client_index} address {} numrxqueues {queues} \
                 numtxqueues {queues} netns {}",
                text(own_mac),
                gateway.name(),
                text(host_mac),
                host.name()
            )?;
        }
        feed(Command::new("ip").args(["-batch", "-"]), &links)?;

        self.client.ip(&format!("link set {name} up"))?;
        self.server.ip(&format!("link set {name} up"))?;
        let mut batch = format!(
            "link set lo up\nlink set lan up\nlink set wan up\naddr add {LAN} dev lan\naddr add {WAN} dev wan\n\
             route add default via {ROUTER}\n\
             neigh add {ROUTER} lladdr {} nud permanent dev wan\n",
            text(SERVER_MAC)
        );
        for number in 0..=0xff {
            let client = Ipv4Addr::from_bits(FIRST_CLIENT + number);
            writeln!(batch, "neigh add {client} lladdr {} nud permanent dev lan", text(CLIENT_MAC))?;
        }
        gateway.ip(&batch)?;

        // A frame redirected into a veth arrives only if the other end has NAPI, which GRO switches on.
        for (namespace, interface) in [(gateway, "lan"), (gateway, "wan"), (&self.client, *name)] {
            namespace.run(Command::new("ethtool").args(["-K", interface, "gro", "on"]))?;
        }
        Ok(())
    }

    fn wait_for_carriers(&self, lane: &Lane) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        for (namespace, interface) in
            [(&lane.gateway, "lan"), (&lane.gateway, "wan"), (&self.server, lane.name)]
        {
            loop {
                let link = namespace.run(Command::new("ip").args(["-br", "link", "show", interface]))?;
                if link.split_whitespace().nth(1) == Some("UP") {
                    break;
                }
                ensure!(Instant::now() < deadline, "{interface} of {} stays down", namespace.name());
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
