//! VLANs: frames with one tag and with two, on either side, by every way that a frame can take.
//!
//! A kernel without 802.1Q is enough: a veth stands for each VLAN's device, with its address, routes and permanent
//! neighbours, and the tagged frames are crafted on the parents' wires.

use std::{
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Decoded, Gateway, Lab, Packet, Tap, decode::Ip};

/// What a frame has between its MACs and the EtherType of IPv4.
type Tags = Vec<u8>;

/// A network of the lab: where a host or a router is.
#[derive(Clone, Copy)]
struct Network {
    /// Name of the gateway's device.
    device: &'static str,
    /// The gateway's address, and the neighbour's.
    own: &'static str,
    neighbour: &'static str,
    /// Numbers of the VLAN, outermost first.
    vlans: &'static [u16],
}

const INSIDE: [Network; 3] = [
    Network { device: "lan", own: "192.168.1.1", neighbour: "192.168.1.250", vlans: &[] },
    Network { device: "guests", own: "192.168.5.1", neighbour: "192.168.5.10", vlans: &[5] },
    Network { device: "tenant", own: "192.168.7.1", neighbour: "192.168.7.10", vlans: &[100, 7] },
];

/// Each leads to one server.
const OUTSIDE: [(Network, &str); 3] = [
    (Network { device: "wan", own: "203.0.113.1", neighbour: "203.0.113.254", vlans: &[] }, "198.51.100.1"),
    (Network { device: "uplink", own: "192.0.2.1", neighbour: "192.0.2.254", vlans: &[5] }, "198.51.100.2"),
    (
        Network { device: "leased", own: "198.18.9.1", neighbour: "198.18.9.254", vlans: &[200, 9] },
        "198.51.100.3",
    ),
];

impl Network {
    /// The tags of a frame in it, outermost priority first; more priorities than tags are left out.
    fn tags(&self, priorities: [u16; 2]) -> Tags {
        let kinds: &[u16] = if self.vlans.len() == 2 { &[0x88a8, 0x8100] } else { &[0x8100] };
        let tags = self.vlans.iter().zip(kinds).zip(priorities);
        tags.flat_map(|((vlan, kind), priority)| {
            [kind.to_be_bytes(), (priority << 13 | vlan).to_be_bytes()].concat()
        })
        .collect()
    }

    /// The priorities that a frame of this network leaves by another with, whose tags may be more.
    fn carried(&self, priorities: [u16; 2]) -> [u16; 2] {
        match self.vlans.len() {
            0 => [0, 0],
            1 => [priorities[0]; 2],
            _ => priorities,
        }
    }
}

/// The parents, and how their frames are served.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// The last step is the stack's: veths whose other ends take no redirected frames.
    Stack,
    /// From driver to driver.
    Redirect,
    /// On skbs.
    Generic,
}

struct Stage {
    lan: Tap,
    wan: Tap,
    gateway: Gateway,
    lab: Lab,
}

impl Stage {
    /// With more lines in each `[[snat]]`.
    fn new(way: Way, snat: &str) -> Self {
        Self::with(way, snat, "")
    }

    /// With more rules, too.
    fn with(way: Way, snat: &str, rules: &str) -> Self {
        let lab = Lab::standard();
        lab.mute_all();
        let mode = if way == Way::Generic { "mode = \"generic\"" } else { "" };
        let mut configuration = Vec::new();
        let sides = INSIDE.iter().map(|network| (network, "inside"));
        for (network, side) in sides.chain(OUTSIDE.iter().map(|(network, _)| (network, "outside"))) {
            let Network { device, own, neighbour, vlans } = network;
            let parent = if side == "inside" { "lan" } else { "wan" };
            configuration.push(format!("[[interface]]\nname = \"{device}\"\nside = \"{side}\"\n{mode}\n"));
            if !vlans.is_empty() {
                configuration.push(format!("parent = \"{parent}\"\nvlan = {vlans:?}\n"));
                // A VLAN's device has the MAC of its parent.
                let mac = if side == "inside" { lab.a.next_hop } else { lab.gateway.mac };
                let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                let ip = |line: &str| lab.gateway.ip(line);
                ip(&format!("link add {device} address {mac} type veth peer name {device}-end"));
                ip(&format!("link set {device}-end up"));
                ip(&format!("link set {device} up"));
                ip(&format!("addr add {own}/24 dev {device}"));
                let far = if side == "inside" { lab.lan().mac } else { lab.isp.mac };
                let far = far.map(|byte| format!("{byte:02x}")).join(":");
                ip(&format!("neigh add {neighbour} lladdr {far} dev {device} nud permanent"));
            }
        }
        let far = lab.lan().mac.map(|byte| format!("{byte:02x}")).join(":");
        lab.gateway.ip(&format!("neigh add 192.168.1.250 lladdr {far} dev lan nud permanent"));
        for (network, server) in &OUTSIDE {
            if !network.vlans.is_empty() {
                lab.gateway.ip(&format!("route add {server} via {}", network.neighbour));
            }
            configuration
                .push(format!("[[snat]]\nout = \"{}\"\nto = \"masquerade\"\n{snat}\n", network.device));
        }
        configuration.push(rules.to_owned());
        for parent in ["lan", "wan"] {
            lab.gateway.succeed(&format!("ethtool -K {parent} rxvlan off"));
        }
        if way == Way::Redirect {
            lab.lan().gro_on();
            lab.isp.gro_on();
        }
        let gateway = Gateway::start(&lab, &configuration.concat());
        Self { lan: lab.lan().tap(), wan: lab.wan(), gateway, lab }
    }

    /// Sends a packet from the LAN's wire, with tags.
    fn send_inside(&self, packet: &Packet, tags: &Tags) {
        let lan = self.lab.lan();
        self.lan.send_frame(&with_tags(&packet.clone().between(lan.mac, lan.next_hop).build(), tags));
    }

    /// Sends a packet from the WAN's wire, with tags.
    fn send_outside(&self, packet: &Packet, tags: &Tags) {
        let Lab { isp, .. } = &self.lab;
        self.wan.send_frame(&with_tags(&packet.clone().between(isp.mac, isp.next_hop).build(), tags));
    }
}

fn with_tags(frame: &[u8], tags: &Tags) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// The frame's tags, and what it is without them.
fn apart(mut frame: Vec<u8>) -> (Tags, Decoded) {
    let is_tag = |at: usize| matches!(frame[at..at + 2], [0x81, 0] | [0x88, 0xa8]);
    let end = (12..).step_by(4).find(|&at| !is_tag(at)).expect("an EtherType");
    let tags = frame.drain(12..end).collect();
    (tags, Decoded::parse(&frame))
}

/// The next frame at a tap with this payload, taken apart.
fn arrives(tap: &Tap, payload: &[u8]) -> (Tags, Decoded) {
    let (tags, packet) = apart(tap.expect_payload_frame(payload));
    assert_eq!(packet.checksums_valid(), Ok(()), "{packet}");
    (tags, packet)
}

#[test]
fn l2x_02_every_vlan_is_its_own_interface() {
    for way in [Way::Stack, Way::Redirect, Way::Generic] {
        let stage = Stage::new(way, "");
        let mut number = 0;
        for inside in &INSIDE {
            for (outside, server) in &OUTSIDE {
                number += 1;
                let what = format!("{way:?}, {} to {}", inside.device, outside.device);
                let (client, remote) =
                    (format!("{}:{}", inside.neighbour, 40_000 + number), format!("{server}:9"));
                // The first by the daemon, the others by the fast path.
                for round in 0..3 {
                    let payload = format!("{what} {round} out").into_bytes();
                    let packet = Packet::udp(client.as_str(), remote.as_str()).payload(&payload);
                    stage.send_inside(&packet, &inside.tags([3, 2]));
                    let (tags, seen) = arrives(&stage.wan, &payload);
                    assert_eq!(tags, outside.tags(inside.carried([3, 2])), "{what}");
                    let mapped = seen.source().expect("ports");
                    assert_eq!(mapped.ip().to_string(), outside.own, "{what}");
                    assert_eq!(
                        (seen.from, seen.to, seen.ip().ttl),
                        (stage.lab.gateway.mac, stage.lab.isp.mac, 63)
                    );
                    let payload = format!("{what} {round} back").into_bytes();
                    let back = Packet::udp(remote.as_str(), mapped.to_string().as_str()).payload(&payload);
                    stage.send_outside(&back, &outside.tags([5, 6]));
                    let (tags, seen) = arrives(&stage.lan, &payload);
                    assert_eq!(tags, inside.tags(outside.carried([5, 6])), "{what}");
                    assert_eq!(seen.destination().expect("ports").to_string(), client, "{what}");
                    assert_eq!((seen.from, seen.to), (stage.lab.a.next_hop, stage.lab.lan().mac), "{what}");
                }
            }
        }
        assert_eq!(stage.gateway.sessions().len(), 9, "{way:?}");
    }
}

/// Two clients in different VLANs, and the uplink with a tag.
const GUEST: &str = "192.168.5.10:40000";
const TENANT: &str = "192.168.7.10:40000";
const SERVER: &str = "198.51.100.2:9";

#[test]
fn l2x_02_tags_of_no_interface_are_nobodys() {
    for way in [Way::Stack, Way::Redirect, Way::Generic] {
        let stage = Stage::new(way, "");
        let own = stage.lab.gateway.tap_on("lan");
        let packet = Packet::udp("192.168.1.250:40000", "198.51.100.1:9");
        // A session of the untagged LAN: its packets in a VLAN are others'.
        stage.send_inside(&packet.clone().payload("untagged"), &vec![]);
        arrives(&stage.wan, b"untagged");
        let foreign: [(&str, Tags); 5] = [
            ("VLAN 6", vec![0x81, 0, 0, 6]),
            ("VLAN 5, of the provider", vec![0x88, 0xa8, 0, 5]),
            ("VLAN 0, which is a priority", vec![0x81, 0, 0x60, 0]),
            ("VLAN 7 within 101", vec![0x88, 0xa8, 0, 101, 0x81, 0, 0, 7]),
            ("three tags", vec![0x88, 0xa8, 0, 100, 0x81, 0, 0, 7, 0x81, 0, 0, 5]),
        ];
        for (what, tags) in foreign {
            let lan = stage.lab.lan();
            let packet = packet.clone().payload(what).between(lan.mac, lan.next_hop);
            let frame = with_tags(&packet.build(), &tags);
            stage.lan.send_frame(&frame);
            own.expect_frame(what, &frame);
            stage.wan.expect_none(what, |seen| seen.payload() == what.as_bytes());
        }
        assert_eq!(stage.gateway.sessions().len(), 1, "{way:?}");
        // And one of the others that are there.
        stage.send_inside(&Packet::udp(GUEST, SERVER).payload("a guest"), &INSIDE[1].tags([0, 0]));
        assert_eq!(arrives(&stage.wan, b"a guest").0, OUTSIDE[1].0.tags([0, 0]));
    }
}

#[test]
fn l2x_02_errors_fragments_and_what_waits_have_their_tags() {
    let stage = Stage::new(Way::Stack, "");
    let (guests, uplink) = (&INSIDE[1], &OUTSIDE[1].0);
    let (came, leaves) = (guests.tags([3, 0]), uplink.tags([3, 0]));
    let error = |what: &str, kind: u8| {
        let is_error = |seen: &Decoded| seen.icmp().is_some_and(|icmp| icmp.kind == kind);
        let frame = stage.lan.recv_matching(Duration::from_secs(3), is_error);
        let (tags, seen) = apart(frame.unwrap_or_else(|| panic!("{what}: no error")).frame);
        assert_eq!((tags, seen.checksums_valid()), (came.clone(), Ok(())), "{what}");
        assert_eq!(seen.ip().source.to_string(), guests.own, "{what}");
    };
    // A TTL that ends, of a first packet and of one that the fast path would know.
    for what in ["of no session", "of a session"] {
        stage.send_inside(&Packet::udp(GUEST, SERVER).payload(what).ttl(1), &came);
        error(what, 11);
        stage.send_inside(&Packet::udp(GUEST, SERVER).payload(what), &came);
        assert_eq!(arrives(&stage.wan, what.as_bytes()).0, leaves);
    }
    // Too big for the way out: an error, or pieces.
    stage.lab.gateway.ip("link set uplink mtu 1000");
    thread::sleep(Duration::from_millis(300));
    stage.send_inside(&Packet::udp(GUEST, SERVER).payload([7; 1400]).df(), &came);
    error("too big", 3);
    stage.wan.clear();
    stage.send_inside(&Packet::udp(GUEST, SERVER).payload([8; 1400]), &came);
    let pieces = |number: usize| {
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let is_piece = |seen: &Decoded| seen.ip.as_ref().is_some_and(Ip::is_fragment);
            let captured = stage.wan.captured().into_iter().filter(|frame| is_piece(&frame.decoded));
            let pieces: Vec<(Tags, Decoded)> = captured.map(|captured| apart(captured.frame)).collect();
            if pieces.len() == number {
                return pieces;
            }
            assert!(Instant::now() < deadline, "{number} pieces, not {}", pieces.len());
            thread::sleep(Duration::from_millis(20));
        }
    };
    for (tags, piece) in pieces(2) {
        assert_eq!((tags, piece.ip().source.to_string().as_str()), (leaves.clone(), uplink.own));
    }
    // Fragments that came as such, the second one first.
    stage.wan.clear();
    let lan = stage.lab.lan();
    let whole = Packet::udp(GUEST, SERVER).payload([9; 900]).between(lan.mac, lan.next_hop);
    for fragment in whole.fragments(480).iter().rev() {
        stage.lan.send_frame(&with_tags(fragment, &came));
    }
    for (tags, piece) in pieces(2) {
        assert_eq!((tags, piece.ip().source.to_string().as_str()), (leaves.clone(), uplink.own));
    }
    // What waits for a neighbour.
    stage.lab.gateway.ip("neigh del 192.0.2.254 dev uplink");
    thread::sleep(Duration::from_millis(300));
    stage.send_inside(&Packet::udp(GUEST, SERVER).payload("it waits"), &came);
    stage.wan.expect_none("without a neighbour", |seen| seen.payload() == b"it waits");
    let mac = stage.lab.isp.mac.map(|byte| format!("{byte:02x}")).join(":");
    stage.lab.gateway.ip(&format!("neigh replace 192.0.2.254 lladdr {mac} dev uplink nud permanent"));
    assert_eq!(arrives(&stage.wan, b"it waits").0, leaves);
}

#[test]
fn l2x_02_and_hpn_13_hairpin_between_vlans() {
    for way in [Way::Stack, Way::Redirect] {
        let stage = Stage::new(way, "filtering = \"endpoint-independent\"");
        let (guests, tenant) = (&INSIDE[1], &INSIDE[2]);
        let external = |network: &Network, client: &str, payload: &str| {
            stage.send_inside(&Packet::udp(client, SERVER).payload(payload), &network.tags([0, 0]));
            arrives(&stage.wan, payload.as_bytes()).1.source().expect("ports").to_string()
        };
        let of_guest = external(guests, GUEST, "the guest is out");
        let of_tenant = external(tenant, TENANT, "the tenant is out");
        stage.wan.clear();
        for round in 0..3 {
            let payload = format!("{way:?}, over {round}").into_bytes();
            let packet = Packet::udp(TENANT, of_guest.as_str()).payload(&payload);
            stage.send_inside(&packet, &tenant.tags([3, 2]));
            let (tags, seen) = arrives(&stage.lan, &payload);
            assert_eq!(tags, guests.tags([3, 0]), "{way:?}");
            let ends =
                (seen.source().expect("ports").to_string(), seen.destination().expect("ports").to_string());
            assert_eq!(ends, (of_tenant.clone(), GUEST.to_owned()));
            let payload = format!("{way:?}, back {round}").into_bytes();
            let packet = Packet::udp(GUEST, of_tenant.as_str()).payload(&payload);
            stage.send_inside(&packet, &guests.tags([4, 0]));
            let (tags, seen) = arrives(&stage.lan, &payload);
            assert_eq!(tags, tenant.tags([4, 4]), "{way:?}");
            let ends =
                (seen.source().expect("ports").to_string(), seen.destination().expect("ports").to_string());
            assert_eq!(ends, (of_guest.clone(), TENANT.to_owned()));
        }
        stage.wan.expect_none("a hairpin outside", |seen| seen.udp().is_some());
    }
}

#[test]
fn l2x_02_one_to_one_and_forwards_in_vlans() {
    for way in [Way::Stack, Way::Redirect] {
        let more = "[[static]]\nexternal = \"192.0.2.9\"\ninternal = \"192.168.5.10\"\n\
                    [[forward]]\nexternal = \"uplink:80\"\ninternal = \"192.168.7.10:8080\"\n";
        let stage = Stage::with(way, "", more);
        let (guests, tenant, uplink) = (&INSIDE[1], &INSIDE[2], &OUTSIDE[1].0);
        stage.lab.gateway.sysctl("ipv4.ip_forward", "1");
        for (inside, address, external, asked) in [
            (guests, GUEST, "192.0.2.9:40000", "192.0.2.9:40000"),
            (tenant, "192.168.7.10:8080", "192.0.2.1:80", "192.0.2.1:80"),
        ] {
            for round in 0..3 {
                let payload = format!("{way:?}, {asked}, in {round}").into_bytes();
                stage.send_outside(&Packet::udp(SERVER, asked).payload(&payload), &uplink.tags([6, 0]));
                let (tags, seen) = arrives(&stage.lan, &payload);
                assert_eq!(tags, inside.tags([6, 6]), "{way:?}");
                assert_eq!(seen.destination().expect("ports").to_string(), address);
                let payload = format!("{way:?}, {asked}, out {round}").into_bytes();
                stage.send_inside(&Packet::udp(address, SERVER).payload(&payload), &inside.tags([2, 1]));
                let (tags, seen) = arrives(&stage.wan, &payload);
                assert_eq!(tags, uplink.tags([2, 0]), "{way:?}");
                assert_eq!(seen.source().expect("ports").to_string(), external);
            }
        }
    }
}

#[test]
fn vlans_follow_their_parents_and_a_new_daemon_goes_on() {
    let mut stage = Stage::new(Way::Stack, "");
    let passes = |stage: &Stage, payload: &str| {
        stage.send_inside(&Packet::udp(GUEST, SERVER).payload(payload), &INSIDE[1].tags([1, 0]));
        let (tags, seen) = arrives(&stage.wan, payload.as_bytes());
        assert_eq!(tags, OUTSIDE[1].0.tags([1, 0]), "{payload}");
        seen.source().expect("ports").to_string()
    };
    let mapped = passes(&stage, "at first");
    stage.gateway.kill();
    assert_eq!(passes(&stage, "without a daemon"), mapped);
    stage.gateway.restart();
    assert_eq!(passes(&stage, "with a new one"), mapped);
    assert_eq!(stage.gateway.sessions().len(), 1);
    // The device that stands for a VLAN goes, and comes again: the others on its parent are served throughout.
    stage.lab.gateway.ip("link del guests");
    stage.gateway.wait_until("it is missing", Duration::from_secs(3), |gateway| {
        gateway.text(&["status"]).lines().any(|line| line.starts_with("guests") && line.contains("missing"))
    });
    stage.send_inside(&Packet::udp(TENANT, SERVER).payload("a tenant"), &INSIDE[2].tags([0, 0]));
    assert_eq!(arrives(&stage.wan, b"a tenant").0, OUTSIDE[1].0.tags([0, 0]));
    stage.lab.gateway.ip("link add guests address 02:00:00:00:01:01 type veth peer name guests-end");
    for line in ["link set guests-end up", "link set guests up", "addr add 192.168.5.1/24 dev guests"] {
        stage.lab.gateway.ip(line);
    }
    stage.lab.gateway.ip("neigh replace 192.168.5.10 lladdr 02:00:00:00:01:fa dev guests nud permanent");
    stage.gateway.wait_until("it is up", Duration::from_secs(3), |gateway| {
        gateway.text(&["status"]).lines().any(|line| line.starts_with("guests") && line.contains("up "))
    });
    passes(&stage, "again");
    // Stopped, it leaves nothing on either.
    stage.gateway.stop();
    let links = stage.lab.gateway.ip("-details link show");
    assert!(!links.contains("xdp"), "{links}");
}

/// In a VLAN and out by another: told of under the VLANs' names, whoever sends it.
#[test]
fn a_trace_tells_of_vlans() {
    for way in [Way::Stack, Way::Redirect, Way::Generic] {
        let stage = Stage::new(way, "");
        let path = stage.gateway.socket().with_extension("trace");
        let _trace = stage.gateway.spawn(&["trace", "--json", "dst", "host", "198.51.100.3"], &path);
        let lines = || -> Vec<serde_json::Value> {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
        };
        // An emulated machine takes its time to verify the tracing programs.
        stage.gateway.wait_until("it has begun", Duration::from_secs(60), |_| !lines().is_empty());
        let (tenant, leased) = (&INSIDE[2], &OUTSIDE[2].0);
        for payload in ["the daemon's", "the fast path's"] {
            let packet = Packet::udp(TENANT, "198.51.100.3:9").payload(payload);
            stage.send_inside(&packet, &tenant.tags([3, 2]));
            assert_eq!(arrives(&stage.wan, payload.as_bytes()).0, leased.tags([3, 2]), "{way:?}");
        }
        stage.gateway.wait_until("both are told of", Duration::from_secs(5), |_| lines().len() >= 3);
        let by = if way == Way::Redirect { stage.gateway.redirected_by() } else { "tc" };
        for (line, by) in lines()[1..].iter().zip(["daemon", by]) {
            assert_eq!(
                (&line["by"], &line["interface"], &line["out"]),
                (&by.into(), &"tenant".into(), &"leased".into()),
                "{way:?} {line}"
            );
            assert_eq!(line["before"], serde_json::json!([TENANT, "198.51.100.3:9"]), "{way:?} {line}");
            assert_eq!(line["after"][0], "198.18.9.1:40000", "{way:?} {line}");
        }
    }
}
