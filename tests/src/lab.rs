//! The lab: network namespaces wired as home, gateway, provider and Internet.
//!
//! ```text
//!  a .10 ─┐                                                         ┌─ s1 198.51.100.1
//!  b .11 ─┼─ switch ── lan [gateway] wan ──────── gw [isp] inet ────┼─ s2 198.51.100.2
//!  c .12 ─┘  192.168.1.1        203.0.113.1   203.0.113.254  bridge ├─ attacker 198.51.100.66
//!                                                                   └─ s3 198.51.101.1
//! ```
//!
//! Two more wires on request: `lan2` to d 192.168.2.10 ([`Builder::second_lan`]), and `wan2`, 192.0.2.1, to the
//! provider's `gw2` ([`Builder::second_uplink`]). Or d is behind a router of its own on the LAN: q, 192.168.1.2
//! ([`Builder::inner_router`]), or behind s3, a second gateway with 192.168.2.1 on its `home`
//! ([`Builder::second_gateway`]).
//!
//! Everything is a veth pair as `ip link add` makes it: checksum and segmentation offload on, GRO off. The
//! provider knows the way to 192.168.1.0/24, so that an untranslated packet is answered and seen, not lost.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    process::{self, Command},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    host::{Host, feed, finish},
    leaks::{self, LeakWatch},
    packet::Mac,
    wire::Tap,
};

/// The gateway's address on the LAN.
pub const GATEWAY_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The gateway's public address: P1.
pub const P1: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Further public addresses that the provider routes to the gateway: P2 to P4.
pub const SPARE: [Ipv4Addr; 3] =
    [Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(203, 0, 113, 3), Ipv4Addr::new(203, 0, 113, 4)];
/// The gateway's address on its second uplink: Q1.
pub const Q1: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The provider's router at the end of the second uplink.
pub const ISP2: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
/// The provider's router.
pub const ISP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);

const LAN_MAC: Mac = [0x02, 0, 0, 0, 1, 1];
/// The switch's port that the gateway is on.
const PORT_MAC: Mac = [0x02, 0, 0, 0, 1, 250];
const WAN_MAC: Mac = [0x02, 0, 0, 0, 2, 1];
const LAN2_MAC: Mac = [0x02, 0, 0, 0, 4, 1];
/// The inner router's interface toward d.
const INNER_MAC: Mac = [0x02, 0, 0, 0, 4, 2];
const WAN2_MAC: Mac = [0x02, 0, 0, 0, 5, 1];
const ISP2_MAC: Mac = [0x02, 0, 0, 0, 5, 254];
const ISP_MAC: Mac = [0x02, 0, 0, 0, 2, 254];
const INET_MAC: Mac = [0x02, 0, 0, 0, 3, 254];

/// The namespaces of one test; all of them go when it is dropped, also when the test fails.
#[derive(Debug)]
pub struct Lab {
    /// 192.168.1.10
    pub a: Host,
    /// 192.168.1.11
    pub b: Host,
    /// 192.168.1.12
    pub c: Host,
    /// The machine under test, with `lan` and `wan`; as a [`Host`] it speaks of its `wan` side.
    pub gateway: Host,
    /// The provider's router; its interface toward the gateway is `gw`.
    pub isp: Host,
    /// 198.51.100.1
    pub s1: Host,
    /// 198.51.100.2
    pub s2: Host,
    /// 198.51.101.1
    pub s3: Host,
    /// 198.51.100.66
    pub attacker: Host,
    /// 192.168.2.10, straight behind the gateway's `lan2`, behind the router q or behind s3.
    d: Option<Host>,
    /// 192.168.1.2: the router on the LAN that d is behind.
    q: Option<Host>,
    has_second_uplink: bool,
    switch: String,
}

/// What a lab can be built with.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Builder {
    lan_mtu: u16,
    wan_mtu: u16,
    forwarding: bool,
    second_uplink: bool,
    d: Behind,
}

/// What the host d is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// There is no d.
    Nothing,
    /// The gateway's `lan2`.
    Gateway,
    /// The router q.
    Router,
    /// The server s3.
    Server,
}

impl Builder {
    /// The MTU of the gateway's `lan` and its other end.
    pub fn lan_mtu(self, lan_mtu: u16) -> Self {
        Self { lan_mtu, ..self }
    }

    /// The MTU of the gateway's `wan` and its other end.
    pub fn wan_mtu(self, wan_mtu: u16) -> Self {
        Self { wan_mtu, ..self }
    }

    /// Makes the gateway's kernel forward: a plain router until something translates.
    pub fn forwarding(self) -> Self {
        Self { forwarding: true, ..self }
    }

    /// A second inside network: `lan2`, 192.168.2.1/24, with the host d.
    pub fn second_lan(self) -> Self {
        Self { d: Behind::Gateway, ..self }
    }

    /// A router on the LAN, q, with the host d behind it.
    pub fn inner_router(self) -> Self {
        Self { d: Behind::Router, ..self }
    }

    /// A gateway of another network on the Internet: s3, with the host d behind its `home`.
    pub fn second_gateway(self) -> Self {
        Self { d: Behind::Server, ..self }
    }

    /// A second uplink: `wan2`, 192.0.2.1/24, to the same provider's `gw2`. The default route stays with `wan`.
    pub fn second_uplink(self) -> Self {
        Self { second_uplink: true, ..self }
    }

    /// Makes the namespaces and wires them.
    pub fn build(self) -> Lab {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("natgw-test-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let client = |name, last| inside(&prefix, name, last);
        let lab = Lab {
            a: client("a", 10),
            b: client("b", 11),
            c: client("c", 12),
            gateway: Host {
                namespace: format!("{prefix}-gateway"),
                interface: "wan".to_owned(),
                address: P1,
                mac: WAN_MAC,
                next_hop: ISP_MAC,
            },
            isp: Host {
                namespace: format!("{prefix}-isp"),
                interface: "gw".to_owned(),
                address: ISP,
                mac: ISP_MAC,
                next_hop: WAN_MAC,
            },
            s1: outside(&prefix, "s1", Ipv4Addr::new(198, 51, 100, 1)),
            s2: outside(&prefix, "s2", Ipv4Addr::new(198, 51, 100, 2)),
            s3: outside(&prefix, "s3", Ipv4Addr::new(198, 51, 101, 1)),
            attacker: outside(&prefix, "attacker", Ipv4Addr::new(198, 51, 100, 66)),
            d: (self.d != Behind::Nothing).then(|| Host {
                address: Ipv4Addr::new(192, 168, 2, 10),
                mac: [0x02, 0, 0, 0, 4, 10],
                next_hop: if self.d == Behind::Router { INNER_MAC } else { LAN2_MAC },
                ..inside(&prefix, "d", 10)
            }),
            q: (self.d == Behind::Router).then(|| inside(&prefix, "q", 2)),
            has_second_uplink: self.second_uplink,
            switch: format!("{prefix}-switch"),
        };
        // From here on the lab's drop cleans up, however far this comes.
        lab.make_namespaces(self.d);
        lab.configure(self);
        lab
    }
}

impl Lab {
    /// The lab of the drawing, with an MTU of 1500 everywhere; the gateway's kernel does not forward.
    pub fn standard() -> Self {
        Self::builder().build()
    }

    /// A lab with changes.
    pub fn builder() -> Builder {
        let forwarding = std::env::var_os("NATGW_LAB_FORWARDING").is_some();
        Builder { lan_mtu: 1500, wan_mtu: 1500, forwarding, second_uplink: false, d: Behind::Nothing }
    }

    /// The clients a, b and c.
    pub fn clients(&self) -> [&Host; 3] {
        [&self.a, &self.b, &self.c]
    }

    /// The servers s1, s2 and s3 and the attacker.
    pub fn servers(&self) -> [&Host; 4] {
        [&self.s1, &self.s2, &self.s3, &self.attacker]
    }

    /// Whether there is a host d.
    pub fn has_d(&self) -> bool {
        self.d.is_some()
    }

    /// The host behind `lan2`, behind q or behind s3.
    pub fn d(&self) -> &Host {
        self.d.as_ref().expect("a lab with a d")
    }

    /// The router that d is behind.
    pub fn q(&self) -> &Host {
        self.q.as_ref().expect("a lab with Builder::inner_router")
    }

    /// A tap at the provider's end of `wan2`.
    pub fn wan2(&self) -> Tap {
        assert!(self.has_second_uplink, "a lab with Builder::second_uplink");
        let end = Host {
            interface: "gw2".to_owned(),
            address: ISP2,
            mac: ISP2_MAC,
            next_hop: WAN2_MAC,
            ..self.isp.clone()
        };
        end.tap()
    }

    /// A tap at the provider's end of the gateway's WAN link: what comes in there left the gateway.
    pub fn wan(&self) -> Tap {
        self.isp.tap()
    }

    /// Watches all uplinks for packets with an inside address.
    pub fn watch_for_leaks(&self) -> Vec<LeakWatch> {
        let uplinks = if self.has_second_uplink { &["gw", "gw2"][..] } else { &["gw"] };
        uplinks.iter().map(|uplink| LeakWatch::on(&self.isp, uplink, leaks::LAB)).collect()
    }

    /// The same at the uplink of the second gateway.
    pub fn watch_second_gateway(&self) -> Vec<LeakWatch> {
        vec![LeakWatch::on(&self.isp, &port_of(&self.s3), leaks::LAB)]
    }

    /// The switch's end of the gateway's LAN link, as a station of the LAN.
    pub fn lan(&self) -> Host {
        Host {
            interface: "gw".to_owned(),
            address: Ipv4Addr::new(192, 168, 1, 250),
            mac: PORT_MAC,
            next_hop: LAN_MAC,
            ..enter(&self.switch)
        }
    }

    /// Configures the ports of the switch that the clients and the gateway share.
    pub fn each_switch_port(&self, change: impl Fn(&str) -> String) {
        let switch = enter(&self.switch);
        for port in self.clients().map(port_of).iter().map(String::as_str).chain(["gw", "lan"]) {
            switch.ip(&change(port));
        }
    }

    /// Turns GRO on at the far ends of the gateway's `lan` and `wan`: frames may then be redirected to them.
    pub fn gro_on(&self) {
        self.isp.gro_on();
        Host { interface: "gw".to_owned(), ..enter(&self.switch) }.gro_on();
    }

    /// Keeps every client's and server's kernel from answering, for tests that craft both ends' packets.
    pub fn mute_all(&self) {
        for host in self.clients().into_iter().chain(self.servers()).chain(&self.d) {
            host.mute();
        }
    }

    /// Puts P2 to P4 on the gateway's `wan`.
    pub fn add_spare_addresses(&self) {
        for address in SPARE {
            self.gateway.ip(&format!("addr add {address}/24 dev wan"));
        }
    }

    /// The reference: Linux's own NAT in natgw's place.
    pub fn masquerade_with_nft(&self) {
        self.gateway.sysctl("ipv4.ip_forward", "1");
        self.gateway.nft(
            "table ip nat { chain postrouting { type nat hook postrouting priority 100; \
             ip saddr 192.168.1.0/24 oifname \"wan\" masquerade; }; }",
        );
    }

    /// The names of all namespaces.
    fn namespaces(&self) -> impl Iterator<Item = &str> {
        let hosts = self.clients().into_iter().chain(self.servers()).chain([&self.gateway, &self.isp]);
        let hosts = hosts.chain(&self.d).chain(&self.q);
        hosts.map(|host| host.namespace.as_str()).chain([self.switch.as_str()])
    }

    /// One `ip` process makes all namespaces and the wires between them, each end born where it belongs.
    ///
    /// The two ends get different interface indices: where they are equal by chance, the kernel takes a veth for a
    /// plain device and may let up to a second pass before it tells the bridge that the carrier is there.
    fn make_namespaces(&self, behind: Behind) {
        let mut batch = String::new();
        for name in self.namespaces() {
            line(&mut batch, format_args!("netns add {name}"));
        }
        let (gateway, isp, switch) = (&self.gateway.namespace, &self.isp.namespace, &self.switch);
        let lan_mac = text(LAN_MAC);
        line(
            &mut batch,
            format_args!(
                "link add lan index 101 address {lan_mac} netns {gateway} type veth peer name gw address {} netns {switch}",
                text(PORT_MAC)
            ),
        );
        let (wan_mac, isp_mac) = (text(WAN_MAC), text(ISP_MAC));
        line(
            &mut batch,
            format_args!(
                "link add wan index 102 address {wan_mac} netns {gateway} type veth peer name gw address {isp_mac} netns {isp}"
            ),
        );
        if let Some(Host { namespace, mac, .. }) = &self.d {
            let (near, own, router) = match (&self.q, behind) {
                (Some(q), _) => ("far", text(INNER_MAC), &q.namespace),
                (None, Behind::Server) => ("home", text(LAN2_MAC), &self.s3.namespace),
                (None, _) => ("lan2", text(LAN2_MAC), gateway),
            };
            let other = text(*mac);
            line(
                &mut batch,
                format_args!(
                    "link add {near} index 104 address {own} netns {router} type veth peer name eth0 index 103 address {other} netns {namespace}"
                ),
            );
        }
        if self.has_second_uplink {
            let (own, other) = (text(WAN2_MAC), text(ISP2_MAC));
            line(
                &mut batch,
                format_args!(
                    "link add wan2 index 105 address {own} netns {gateway} type veth peer name gw2 address {other} netns {isp}"
                ),
            );
        }
        let stations = self.clients().into_iter().chain(&self.q).map(|host| (host, switch));
        for (host, other) in stations.chain(self.servers().map(|host| (host, isp))) {
            let Host { namespace, interface, mac, .. } = host;
            let port = port_of(host);
            line(
                &mut batch,
                format_args!(
                    "link add {interface} index 103 address {} netns {namespace} type veth peer name {port} netns {other}",
                    text(*mac)
                ),
            );
        }
        feed(Command::new("ip").args(["-batch", "-"]), &batch);
    }

    fn configure(&self, builder: Builder) {
        let mut batches = Vec::new();
        for host in self.clients() {
            let batch = format!(
                "link set eth0 up\naddr add {}/24 dev eth0\nroute add default via {GATEWAY_LAN}\n",
                host.address
            );
            batches.push((host.namespace.as_str(), batch));
        }
        if let Some(d) = &self.d {
            let batch =
                "link set eth0 up\naddr add 192.168.2.10/24 dev eth0\nroute add default via 192.168.2.1\n";
            batches.push((d.namespace.as_str(), batch.to_owned()));
        }
        if let Some(q) = &self.q {
            let batch = format!(
                "link set eth0 up\naddr add {}/24 dev eth0\nroute add default via {GATEWAY_LAN}\n\
                 link set far up\naddr add 192.168.2.1/24 dev far\n",
                q.address
            );
            batches.push((q.namespace.as_str(), batch));
        }
        for host in self.servers() {
            let router = inet_address(host.address);
            let batch = format!(
                "link set eth0 up\naddr add {}/24 dev eth0\nroute add default via {router}\n",
                host.address
            );
            let home = "link set home up\naddr add 192.168.2.1/24 dev home\n";
            let is_gateway = builder.d == Behind::Server && host.namespace == self.s3.namespace;
            let batch = if is_gateway { batch + home } else { batch };
            batches.push((host.namespace.as_str(), batch));
        }
        batches.push((&self.gateway.namespace, gateway_batch(builder)));
        batches.push((&self.isp.namespace, self.isp_batch(builder)));
        batches.push((&self.switch, self.switch_batch(builder)));
        thread::scope(|scope| {
            for (name, batch) in &batches {
                scope.spawn(|| {
                    // Before an interface comes up: no IPv6 chatter on the taps.
                    enter(name).sysctl("ipv6.conf.all.disable_ipv6", "1");
                    enter(name).sysctl("ipv6.conf.default.disable_ipv6", "1");
                    feed(Command::new("ip").args(["-n", name, "-batch", "-"]), batch);
                });
            }
        });
        self.wait_for_carriers();
        // A switch does not judge what it carries; bridges would drop bad headers for netfilter.
        // Kernels without bridge netfilter have no such setting, and no such judgement.
        for namespace in [&self.switch, &self.isp.namespace] {
            let setting = "net.bridge.bridge-nf-call-iptables=0";
            let _ = Command::new("ip").args(["netns", "exec", namespace, "sysctl", "-qew", setting]).output();
        }
        self.isp.sysctl("ipv4.ip_forward", "1");
        self.isp.sysctl("ipv4.conf.all.send_redirects", "0");
        if let Some(q) = &self.q {
            q.sysctl("ipv4.ip_forward", "1");
        }
        if builder.forwarding {
            self.gateway.sysctl("ipv4.ip_forward", "1");
        }
    }

    /// The kernel reports a carrier some time after both ends are up; until then a bridge port drops.
    fn wait_for_carriers(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        for name in self.namespaces() {
            loop {
                let listed = finish(Command::new("ip").args(["-n", name, "-br", "link"]), "ip link").stdout;
                let listed = String::from_utf8_lossy(&listed).into_owned();
                if !listed
                    .lines()
                    .any(|link| link.split_whitespace().nth(1) != Some("UP") && !link.starts_with("lo "))
                {
                    break;
                }
                assert!(Instant::now() < deadline, "links of {name} stay down:\n{listed}");
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn isp_batch(&self, builder: Builder) -> String {
        let mut batch = format!(
            "link set lo up\nlink set gw mtu {} up\naddr add {ISP}/24 dev gw\n\
             link add inet address {} type bridge mcast_snooping 0\nlink set inet up\n\
             addr add 198.51.100.254/24 dev inet\naddr add 198.51.101.254/24 dev inet\n\
             route add 192.168.0.0/16 via {P1}\n",
            builder.wan_mtu,
            text(INET_MAC)
        );
        if builder.second_uplink {
            line(&mut batch, format_args!("link set gw2 up\naddr add {ISP2}/24 dev gw2"));
        }
        for host in self.servers() {
            line(&mut batch, format_args!("link set {} master inet up", port_of(host)));
        }
        batch
    }

    fn switch_batch(&self, builder: Builder) -> String {
        let mut batch = format!(
            "link add lan type bridge mcast_snooping 0\nlink set gw mtu {} master lan up\nlink set lan up\n",
            builder.lan_mtu
        );
        for host in self.clients().into_iter().chain(&self.q) {
            line(&mut batch, format_args!("link set {} master lan up", port_of(host)));
        }
        batch
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut batch = String::new();
        for name in self.namespaces() {
            line(&mut batch, format_args!("netns del {name}"));
        }
        // -force: a lab that was only half made has namespaces missing.
        let mut command = Command::new("ip");
        command.args(["-force", "-batch", "-"]).stderr(process::Stdio::null());
        if let Ok(mut child) = command.stdin(process::Stdio::piped()).spawn() {
            if let Some(mut stdin) = child.stdin.take() {
                let _ = std::io::Write::write_all(&mut stdin, batch.as_bytes());
            }
            let _ = child.wait();
        }
    }
}

fn gateway_batch(builder: Builder) -> String {
    let mut batch = format!(
        "link set lo up\nlink set lan mtu {} up\nlink set wan mtu {} up\n\
         addr add {GATEWAY_LAN}/24 dev lan\naddr add {P1}/24 dev wan\nroute add default via {ISP}\n",
        builder.lan_mtu, builder.wan_mtu
    );
    if builder.d == Behind::Gateway {
        batch.push_str("link set lan2 up\naddr add 192.168.2.1/24 dev lan2\n");
    }
    if builder.d == Behind::Router {
        batch.push_str("route add 192.168.2.0/24 via 192.168.1.2\n");
    }
    if builder.second_uplink {
        line(&mut batch, format_args!("link set wan2 up\naddr add {Q1}/24 dev wan2"));
    }
    batch
}

fn inside(prefix: &str, name: &str, last: u8) -> Host {
    Host {
        namespace: format!("{prefix}-{name}"),
        interface: "eth0".to_owned(),
        address: Ipv4Addr::new(192, 168, 1, last),
        mac: [0x02, 0, 0, 0, 1, last],
        next_hop: LAN_MAC,
    }
}

fn outside(prefix: &str, name: &str, address: Ipv4Addr) -> Host {
    let [_, _, network, last] = address.octets();
    Host {
        namespace: format!("{prefix}-{name}"),
        interface: "eth0".to_owned(),
        address,
        mac: [0x02, 0, 0, 0, network, last],
        next_hop: INET_MAC,
    }
}

/// The far end's name of a host's wire: the last word of its namespace's name.
///
/// Not the bare letter: `ip` reads a device called `a` as the keyword `address`.
fn port_of(host: &Host) -> String {
    let name = host.namespace.rsplit('-').next().expect("rsplit yields at least one piece");
    format!("port-{name}")
}

/// The provider's address in a server's subnet.
fn inet_address(server: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = server.octets();
    Ipv4Addr::new(a, b, c, 254)
}

/// A namespace as a host, for what needs no more than its name.
fn enter(namespace: &str) -> Host {
    Host {
        namespace: namespace.to_owned(),
        interface: String::new(),
        address: Ipv4Addr::UNSPECIFIED,
        mac: [0; 6],
        next_hop: [0; 6],
    }
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn line(batch: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(batch, "{text}").expect("writing to a string does not fail");
}
