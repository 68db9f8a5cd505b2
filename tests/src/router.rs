//! A second lab: a Debian router between two networks, one of its clients in both, and a NAT upstream of it.
//!
//! ```text
//!             10.1.1.0/24                            192.168.1.0/24
//!  client eth1 .12 ─┐                               ┌─ eth0 .12 client
//!   other eth0 .99 ─┴─ .1 eth1 [gateway] eth2 .10 ──┼─ eth0 .72 neighbour
//!                     vpn .6 ── tun0 .1             └─ .1 [upstream] 203.0.113.7 ── server 198.51.100.1
//!                      10.8.0.0/24
//! ```
//!
//! All hosts are real kernels that answer by themselves. Upstream is netfilter's masquerade; `tun0` is a veth that
//! plays the VPN's device, since natgw serves Ethernet. Sources are not looked at (`rp_filter` is 0) until a test
//! says so, and `client` has its `eth0` down.

use std::{
    net::Ipv4Addr,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Gateway,
    host::{Host, feed},
    leaks::{Inside, LeakWatch},
};

/// The gateway's rules: both ways hidden, each with a negated selector.
pub const RULES: &str = r#"
[[interface]]
name = "eth1"
side = "inside"

[[interface]]
name = "eth2"
side = "outside"

[[interface]]
name = "tun0"
side = "outside"

[[snat]]
name = "r1"
source = ["10.1.1.0/24"]
destination = ["!10.1.1.0/24"]
to = "masquerade"

[[snat]]
name = "r2"
source = ["!10.1.1.0/24"]
destination = ["10.1.1.0/24"]
out = "eth1"
to = "masquerade"
"#;

/// The namespaces of one test; all of them go when it is dropped.
#[derive(Debug)]
pub struct Router {
    /// 10.1.1.12 on `eth1`, and 192.168.1.12 on `eth0` once that is up.
    pub client: Host,
    /// 10.1.1.99
    pub other: Host,
    /// The machine under test: `eth1`, `eth2`, `tun0`.
    pub gateway: Host,
    /// 10.8.0.6, behind `tun0`.
    pub vpn: Host,
    /// 192.168.1.72
    pub neighbour: Host,
    /// 192.168.1.1, which translates to 203.0.113.7.
    pub upstream: Host,
    /// 198.51.100.1
    pub server: Host,
    switch: Host,
}

impl Router {
    /// Makes the namespaces and wires them.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("natgw-test-{}-r{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let host = |name: &str, interface: &str, address: [u8; 4], next_hop: u8| Host {
            namespace: format!("{prefix}-{name}"),
            interface: interface.to_owned(),
            address: Ipv4Addr::from(address),
            mac: [2, address[0], address[1], address[2], address[3], 1],
            next_hop: [2, address[0], address[1], address[2], next_hop, 1],
        };
        let router = Self {
            client: host("client", "eth1", [10, 1, 1, 12], 1),
            other: host("other", "eth0", [10, 1, 1, 99], 1),
            gateway: host("gateway", "eth2", [192, 168, 1, 10], 1),
            vpn: host("vpn", "eth0", [10, 8, 0, 6], 1),
            neighbour: host("neighbour", "eth0", [192, 168, 1, 72], 1),
            upstream: host("upstream", "home", [192, 168, 1, 1], 1),
            server: host("server", "eth0", [198, 51, 100, 1], 254),
            switch: host("switch", "", [0; 4], 0),
        };
        router.wire();
        router.configure();
        router
    }

    /// Starts natgw on the gateway. What leaves it by `eth2` and `tun0` is watched for inside addresses.
    pub fn start(&self, configuration: &str) -> Gateway {
        const INSIDE: Inside = (Ipv4Addr::new(10, 1, 1, 0), 24);
        let ends = [(&self.switch, "home-gw"), (&self.vpn, "eth0")];
        let watches = ends.map(|(host, interface)| LeakWatch::on(host, interface, INSIDE));
        Gateway::start_on(&self.gateway, configuration, watches.into())
    }

    fn hosts(&self) -> [&Host; 8] {
        let Self { client, other, gateway, vpn, neighbour, upstream, server, switch } = self;
        [client, other, gateway, vpn, neighbour, upstream, server, switch]
    }

    fn wire(&self) {
        let mut lines: Vec<String> =
            self.hosts().iter().map(|host| format!("netns add {}\n", host.namespace)).collect();
        let name = |host: &Host| host.namespace.clone();
        // Each wire: index, host, its interface and address, and the far end. Unlike indices, see the other lab.
        let wires: [(&Host, &str, [u8; 4], &Host, &str); 9] = [
            (&self.client, "eth0", [192, 168, 1, 12], &self.switch, "home-client"),
            (&self.client, "eth1", [10, 1, 1, 12], &self.switch, "lab-client"),
            (&self.other, "eth0", [10, 1, 1, 99], &self.switch, "lab-other"),
            (&self.gateway, "eth1", [10, 1, 1, 1], &self.switch, "lab-gw"),
            (&self.gateway, "eth2", [192, 168, 1, 10], &self.switch, "home-gw"),
            (&self.neighbour, "eth0", [192, 168, 1, 72], &self.switch, "home-nb"),
            (&self.upstream, "home", [192, 168, 1, 1], &self.switch, "home-up"),
            (&self.vpn, "eth0", [10, 8, 0, 6], &self.gateway, "tun0"),
            (&self.server, "eth0", [198, 51, 100, 1], &self.upstream, "inet"),
        ];
        for (index, (host, interface, address, far, far_interface)) in (201..).zip(wires) {
            let mac = address.map(|byte| format!("{byte:02x}")).join(":");
            lines.push(format!(
                "link add {interface} index {index} address 02:{mac}:01 netns {} type veth peer name {far_interface} index {} netns {}\n",
                name(host),
                index + 50,
                name(far)
            ));
        }
        feed(Command::new("ip").args(["-batch", "-"]), &lines.concat());
    }

    fn configure(&self) {
        for host in self.hosts() {
            host.sysctl("ipv6.conf.all.disable_ipv6", "1");
            for which in ["all", "default"] {
                host.sysctl(&format!("ipv4.conf.{which}.rp_filter"), "0");
            }
            let names = host.succeed("ls /sys/class/net");
            for interface in names.split_whitespace().filter(|name| *name != "lo") {
                host.sysctl(&format!("ipv4.conf.{interface}.rp_filter"), "0");
            }
            host.ip("link set lo up");
        }
        for bridge in ["home", "lab"] {
            self.switch.ip(&format!("link add {bridge} type bridge mcast_snooping 0"));
            self.switch.ip(&format!("link set {bridge} up"));
        }
        for port in ["home-client", "lab-client", "lab-other", "lab-gw", "home-gw", "home-nb", "home-up"] {
            let bridge = port.split('-').next().expect("a bridge's name");
            self.switch.ip(&format!("link set {port} master {bridge} up"));
        }
        let set = |host: &Host, lines: &[&str]| {
            for line in lines {
                host.ip(line);
            }
        };
        set(
            &self.client,
            &[
                "link set eth1 up",
                "addr add 10.1.1.12/24 dev eth1",
                "route add default via 10.1.1.1 metric 100",
            ],
        );
        set(
            &self.other,
            &["link set eth0 up", "addr add 10.1.1.99/24 dev eth0", "route add default via 10.1.1.1"],
        );
        set(
            &self.gateway,
            &[
                "link set eth1 up",
                "link set eth2 up",
                "link set tun0 address 02:0a:08:00:01:01 up",
                "addr add 10.1.1.1/24 dev eth1",
                "addr add 192.168.1.10/24 dev eth2",
                "addr add 10.8.0.1/24 dev tun0",
                "route add default via 192.168.1.1",
            ],
        );
        set(
            &self.vpn,
            &["link set eth0 up", "addr add 10.8.0.6/24 dev eth0", "route add default via 10.8.0.1"],
        );
        set(
            &self.neighbour,
            &[
                "link set eth0 up",
                "addr add 192.168.1.72/24 dev eth0",
                "route add default via 192.168.1.1",
                "route add 10.0.0.0/8 via 192.168.1.10",
            ],
        );
        set(
            &self.upstream,
            &[
                "link set home up",
                "link set inet up",
                "addr add 192.168.1.1/24 dev home",
                "addr add 203.0.113.7/24 dev inet",
                "addr add 198.51.100.254/24 dev inet",
                "route add 10.8.0.0/24 via 192.168.1.10",
            ],
        );
        set(
            &self.server,
            &[
                "link set eth0 up",
                "addr add 198.51.100.1/24 dev eth0",
                "addr add 198.51.100.2/24 dev eth0",
                "route add default via 198.51.100.254",
            ],
        );
        for router in [&self.gateway, &self.upstream] {
            router.sysctl("ipv4.ip_forward", "1");
        }
        self.upstream.nft(
            "table ip nat { chain postrouting { type nat hook postrouting priority 100; \
             oifname \"inet\" snat to 203.0.113.7; }; }",
        );
        let settled = Instant::now() + Duration::from_secs(5);
        while self.switch.succeed("bridge link show").contains("state disabled") && Instant::now() < settled {
            // The client's eth0 stays down: its port is the one that may.
            if self.switch.succeed("bridge link show").matches("state disabled").count() == 1 {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Plugs all of both networks into one switch.
    pub fn one_segment(&self) {
        for port in ["lab-client", "lab-other", "lab-gw"] {
            self.switch.ip(&format!("link set {port} master home"));
        }
    }

    /// Puts the client into both networks, as Debian does: its default route leads out of `eth0`.
    pub fn two_homed(&self) {
        for line in
            ["link set eth0 up", "addr add 192.168.1.12/24 dev eth0", "route add default via 192.168.1.1"]
        {
            self.client.ip(line);
        }
        thread::sleep(Duration::from_millis(300));
    }
}

impl Default for Router {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for host in self.hosts() {
            let mut command = Command::new("ip");
            let _ = command.args(["netns", "del", &host.namespace]).stderr(Stdio::null()).status();
        }
    }
}
