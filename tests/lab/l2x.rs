//! The link: frames that are not the gateway's business, and those that are.

use nat_tests::{Decoded, Gateway, Host, Lab, Packet, gateway, invariants, packet::Mac};

use crate::stage::{Stage, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn l2x_03_frames_for_another_station_are_left_alone() {
    let stage = Stage::standard();
    stage.a.send(&stage.udp(CLIENT, SERVER).to_mac([0x02, 0, 0, 0, 9, 9]));
    stage.s1.expect_silence();
    assert_eq!(stage.session_count(), 0);
    stage.carries_the_next();
}

#[test]
fn l2x_04_padding_is_not_part_of_the_packet() {
    let stage = Stage::standard();
    let packet = stage.udp(CLIENT, SERVER).from_mac(stage.lab.a.mac).to_mac(stage.lab.a.next_hop);
    let mut frame = packet.build();
    frame.resize(frame.len() + 30, 0xee);
    stage.a.send_frame(&frame);
    let seen = stage.s1.expect("the padded datagram", |seen| seen.udp().is_some());
    assert_eq!(seen.ip().total_length, Decoded::parse(&frame).ip().total_length);
    assert_eq!(seen.checksums_valid(), Ok(()));
}

#[test]
fn l2x_05_frames_carry_the_addresses_of_their_link() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let out = stage.wan.expect("the datagram on the WAN", |seen| seen.udp().is_some());
    assert_eq!((out.from, out.to), (stage.lab.gateway.mac, stage.lab.isp.mac));
    let back = stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    assert_eq!((back.from, back.to), (stage.lab.a.next_hop, stage.lab.a.mac));
}

/// Frames that are no IPv4: what they are, destination (none for the gateway's own), EtherType or length, content.
fn foreign_frames() -> Vec<(&'static str, Option<Mac>, u16, Vec<u8>)> {
    let arp = |operation: u8, sender: [u8; 4], target: [u8; 4]| {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation, 0x02, 0, 0, 0, 9, 9];
        bytes.extend(sender);
        bytes.extend([0; 6]);
        bytes.extend(target);
        bytes
    };
    let all = Some([0xff; 6]);
    let group = |last: u8| Some([0x01, 0x80, 0xc2, 0, 0, last]);
    let mut ipv6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    ipv6.extend([0xfd; 32]);
    ipv6.extend([0x9c, 0x40, 0, 53, 0, 8, 0, 0]);
    let ipv4 = Packet::udp(CLIENT, SERVER).payload("inside of something else").ip();
    let mut pppoe = vec![0x11, 0, 0, 1];
    pppoe.extend((u16::try_from(ipv4.len()).unwrap() + 2).to_be_bytes());
    pppoe.extend([0, 0x21]);
    pppoe.extend(&ipv4);
    let mpls = [&[0, 0, 0x11, 0x40][..], &ipv4].concat();
    vec![
        ("ARP request", all, 0x0806, arp(1, [10, 9, 9, 9], [10, 9, 9, 1])),
        ("gratuitous ARP", all, 0x0806, arp(1, [10, 9, 9, 9], [10, 9, 9, 9])),
        ("ARP reply", None, 0x0806, arp(2, [10, 9, 9, 9], [10, 9, 9, 1])),
        ("LLDP", group(0x0e), 0x88cc, vec![2, 7, 4, 2, 0, 0, 0, 0, 1, 0, 0]),
        ("STP", group(0), 38, vec![0x42; 38]),
        ("EAPOL", group(3), 0x888e, vec![2, 1, 0, 0]),
        ("PPPoE discovery", all, 0x8863, vec![0x11, 9, 0, 0, 0, 0]),
        ("PPPoE session that carries IPv4", None, 0x8864, pppoe),
        ("MPLS that carries IPv4", None, 0x8847, mpls),
        ("an unknown EtherType", None, 0x9999, ipv4),
        ("IPv6", None, 0x86dd, ipv6),
    ]
}

#[test]
fn l2x_01_what_is_not_ipv4_reaches_the_kernel_untouched() {
    let stage = Stage::standard();
    let gateway = &stage.lab.gateway;
    for (from, own, mac) in [
        (&stage.a, gateway.tap_on("lan"), stage.lab.a.next_hop),
        (&stage.wan, gateway.tap_on("wan"), gateway.mac),
    ] {
        let other = if own.name().ends_with("lan") { &stage.wan } else { &stage.a };
        for (what, to, kind, content) in foreign_frames() {
            // A bridge, as the lab's switch is, keeps the link-local groups (IEEE 802.1D) to itself.
            let is_link_local = to.is_some_and(|to| to.starts_with(&[0x01, 0x80, 0xc2]));
            let to = if is_link_local && own.name().ends_with("lan") { mac } else { to.unwrap_or(mac) };
            let mut frame = [&to[..], &[0x02, 0, 0, 0, 9, 9], &kind.to_be_bytes(), &content].concat();
            frame.resize(frame.len().max(60), 0);
            from.send_frame(&frame);
            own.expect_frame(what, &frame);
            let carries = |seen: &Decoded| seen.payload() == b"inside of something else";
            assert!(other.incoming(carries).is_empty(), "{what} came out on the other side");
        }
    }
    assert_eq!(stage.session_count(), 0);
    stage.crosses(&stage.udp(CLIENT, SERVER));
}

/// natgw on other kinds of link than a plain veth: a bridge, a bridge's port, a macvlan.
#[test]
fn kinds_of_link() {
    type Rename = fn(&Host);
    let cases: [(&str, &str, &str, Rename); 4] = [
        ("a bridge inside", "br0", "wan", |gateway| {
            gateway.ip("addr flush dev lan");
            gateway.ip("link add br0 address 02:00:00:00:01:01 type bridge mcast_snooping 0");
            gateway.ip("link set lan master br0");
            gateway.ip("link set br0 up");
            gateway.ip("addr add 192.168.1.1/24 dev br0");
        }),
        ("a macvlan outside", "lan", "mv0", |gateway| {
            gateway.ip("addr flush dev wan");
            gateway.ip("link set wan address 02:00:00:00:02:77");
            gateway.ip("link add mv0 link wan address 02:00:00:00:02:01 type macvlan mode bridge");
            gateway.ip("link set mv0 up");
            gateway.ip("addr add 203.0.113.1/24 dev mv0");
            gateway.ip("route add default via 203.0.113.254");
        }),
        ("an MTU of PPPoE", "lan", "wan", |gateway| {
            gateway.ip("link set wan mtu 1492");
        }),
        ("a TAP device beside it", "lan", "wan", |gateway| {
            gateway.ip("tuntap add dev tap0 mode tap");
            gateway.ip("link set tap0 up");
        }),
    ];
    for (what, inside, outside, change) in cases {
        let lab = Lab::standard();
        change(&lab.gateway);
        lab.mute_all();
        let configuration = gateway::STANDARD
            .replace("name = \"lan\"", &format!("name = \"{inside}\""))
            .replace("name = \"wan\"", &format!("name = \"{outside}\""))
            .replace("out = \"wan\"", &format!("out = \"{outside}\""));
        let third = if what.starts_with("a TAP") {
            "\n[[interface]]\nname = \"tap0\"\nside = \"inside\"\n"
        } else {
            ""
        };
        let _gateway = Gateway::start(&lab, &format!("{configuration}{third}"));
        let (a, s1, wan) = (lab.a.tap(), lab.s1.tap(), lab.wan());
        // More than the first packet: that one the daemon sends, the others the fast path.
        for round in 0..3 {
            let payload = format!("{what}, round {round}");
            a.send(&Packet::udp(CLIENT, SERVER).payload(&payload));
            let seen = s1.expect_payload(&payload);
            assert_eq!(seen.source().unwrap().to_string(), "203.0.113.1:40000", "{what}");
            s1.send(&Packet::udp(SERVER, "203.0.113.1:40000").payload(&payload));
            assert_eq!(a.expect_payload(&payload).source().unwrap().to_string(), SERVER, "{what}");
        }
        if what.contains("PPPoE") {
            let whole = Packet::udp(CLIENT, SERVER).payload([7; 1464]).df();
            a.send(&whole);
            s1.expect_payload([7; 1464]);
            a.send(&Packet::udp(CLIENT, SERVER).payload([8; 1472]).df());
            let told =
                a.expect("ICMP 3/4", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 4)));
            assert_eq!(told.icmp().unwrap().seq, 1492);
        }
        let private = |seen: &Decoded| seen.ip.as_ref().is_some_and(|ip| ip.source.is_private());
        assert!(wan.incoming(private).is_empty(), "{what}");
    }
}

#[test]
fn links_without_ethernet_are_refused_by_name() {
    let lab = Lab::standard();
    lab.gateway.ip("tuntap add dev tun0 mode tun");
    let third = "\n[[interface]]\nname = \"tun0\"\nside = \"outside\"\n";
    let gateway = Gateway::prepare(&lab, &format!("{}{third}", gateway::STANDARD));
    let output = gateway.output(&["run", "--config", &gateway.configuration().to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("tun0") && said.contains("Ethernet"), "{said}");
    assert!(!lab.gateway.ip("-details link show").contains("xdp"), "something is attached");
}

#[test]
fn l2x_08_jumbo_frames_are_whole_or_refused_at_start() {
    // The largest MTU there may be: each size as the first of its flow, and as one of many.
    let stage = Stage::build(Lab::builder().lan_mtu(3818).wan_mtu(3818), gateway::STANDARD);
    let Lab { a, s1, isp, .. } = &stage.lab;
    for host in [a, s1] {
        host.ip("link set eth0 mtu 9000");
    }
    for port in ["port-s1", "inet"] {
        isp.ip(&format!("link set {port} mtu 9000"));
    }
    stage.lab.each_switch_port(|port| format!("link set {port} mtu 9000"));
    for (index, length) in (0..).zip([1472, 1473, 2020, 3400, 3500, 3600, 3789, 3790]) {
        let (client, server) = (format!("192.168.1.10:{}", 41000 + index), "198.51.100.1:9");
        for round in 1..4 {
            let payload = vec![round; length];
            let sent = stage.a.send(&Packet::udp(client.as_str(), server).payload(&payload));
            let seen = stage.s1.expect_payload(&payload);
            invariants::assert_translated(&sent, &seen, 2);
            let back = Packet::udp(server, source(&seen).as_str()).payload(&payload);
            invariants::assert_translated(&stage.s1.send(&back), &stage.a.expect_payload(&payload), 2);
        }
    }
    // Beyond it natgw does not start, and says which interface and what would do.
    for (lan, wan, name) in [(9000, 9000, "lan"), (9000, 1500, "lan"), (1500, 3819, "wan")] {
        let lab = Lab::builder().lan_mtu(lan).wan_mtu(wan).build();
        let gateway = Gateway::prepare(&lab, gateway::STANDARD);
        let output = gateway.output(&["run", "--config", &gateway.configuration().to_string_lossy()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("ip link set dev {name} mtu 3818")), "{said}");
    }
}
