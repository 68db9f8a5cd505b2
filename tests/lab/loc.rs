//! The gateway's own traffic, and what is for all on a link.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use nat_tests::{Decoded, Packet, Tap, gateway, lab::P1, packet::protocol};

use crate::stage::{Stage, public, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

fn gateway_socket(stage: &Stage, address: &str) -> UdpSocket {
    let socket = stage.lab.gateway.within(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

/// Who sent the next datagram to the gateway itself.
fn received_from(socket: &UdpSocket) -> String {
    let (_, from) = socket.recv_from(&mut [0; 64]).expect("a datagram for the gateway");
    from.to_string()
}

#[test]
fn loc_01_services_of_the_gateway_are_reached_from_everywhere() {
    let stage = Stage::standard();
    let socket = gateway_socket(&stage, "0.0.0.0:5353");
    stage.a.send(&stage.udp(CLIENT, "192.168.1.1:5353"));
    assert_eq!(received_from(&socket), CLIENT);
    stage.a.send(&stage.udp(CLIENT, "203.0.113.1:5353"));
    assert_eq!(received_from(&socket), CLIENT);
    stage.s1.send(&stage.udp(SERVER, "203.0.113.1:5353"));
    assert_eq!(received_from(&socket), SERVER);
    assert_eq!(stage.session_count(), 0);
    stage.carries_the_next();
}

#[test]
fn loc_02_the_gateway_talks_for_itself() {
    let stage = Stage::standard();
    let socket = gateway_socket(&stage, "203.0.113.1:0");
    socket.send_to(b"from the gateway", SERVER).unwrap();
    let own = source(&stage.s1.expect_payload("from the gateway"));
    assert_eq!(own, socket.local_addr().unwrap().to_string());
    stage.s1.send(&stage.udp(SERVER, &own));
    assert_eq!(received_from(&socket), SERVER);
    stage.lan_is_silent();
    stage.carries_the_next();
}

#[test]
fn loc_04_no_client_gets_a_port_that_the_gateway_listens_on() {
    let stage = Stage::standard();
    let socket = gateway_socket(&stage, "203.0.113.1:1405");
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:1405", "198.51.100.66:9")));
    assert_ne!(mapped, public(1405));
    stage.attacker.send(&stage.udp("198.51.100.66:9", &public(1405)));
    assert_eq!(received_from(&socket), "198.51.100.66:9");
}

/// Ends the muteness of a server, whose own kernel then speaks TCP.
fn tcp_server(stage: &Stage) -> TcpListener {
    stage.lab.s1.nft("delete table ip mute");
    stage.lab.s1.within(|| TcpListener::bind("198.51.100.1:80")).unwrap()
}

/// Opens a connection by hand from a's tap to a server that answers by itself; how the server sees it.
fn connect_by_hand(stage: &Stage, client: &str, listener: &TcpListener) -> TcpStream {
    stage.a.send(&Packet::tcp(client, "198.51.100.1:80").syn(1000));
    let answer = stage.a.expect("the server's SYN-ACK", |seen| seen.tcp().is_some_and(|tcp| tcp.ack == 1001));
    let ack = answer.tcp().unwrap().seq + 1;
    stage.a.send(&Packet::tcp(client, "198.51.100.1:80").seq(1001).ack(ack));
    stage.a.send(&Packet::tcp(client, "198.51.100.1:80").seq(1001).ack(ack).payload("of a"));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert_eq!(read(&mut stream), "of a");
    stream
}

fn read(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 64];
    let count = stream.read(&mut bytes).expect("data on the stream");
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[test]
fn loc_03_a_port_of_the_gateways_own_connection_is_no_clients() {
    let stage = Stage::standard();
    let listener = tcp_server(&stage);
    let mut own = stage
        .lab
        .gateway
        .within(|| nat_tests::host::connect_from("203.0.113.1:33000", "198.51.100.1:80"))
        .unwrap();
    let (mut of_gateway, _) = listener.accept().unwrap();
    let mut of_a = connect_by_hand(&stage, "192.168.1.10:33000", &listener);
    assert_ne!(of_a.peer_addr().unwrap().port(), 33000, "the client has the gateway's own port");
    own.write_all(b"of the gateway").unwrap();
    assert_eq!(read(&mut of_gateway), "of the gateway");
    of_gateway.write_all(b"for the gateway").unwrap();
    own.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert_eq!(read(&mut own), "for the gateway");
    of_a.write_all(b"for a").unwrap();
    stage.a.expect_payload("for a");
}

#[test]
fn loc_03_the_gateway_does_not_get_into_a_clients_connection() {
    let stage = Stage::standard();
    let listener = tcp_server(&stage);
    let mut of_a = connect_by_hand(&stage, "192.168.1.10:33001", &listener);
    assert_eq!(of_a.peer_addr().unwrap().to_string(), public(33001), "the case needs this port");
    stage.a.clear();
    let gateway = stage.lab.gateway.clone();
    let attempt = thread::spawn(move || {
        gateway.within(|| nat_tests::host::connect_from("203.0.113.1:33001", "198.51.100.1:80")).map(drop)
    });
    // Nothing of the attempt reaches the server, which would answer the client, or worse, reset it.
    stage.a.expect_none("an answer to the gateway's own SYN", |seen| seen.tcp().is_some());
    of_a.write_all(b"for a").unwrap();
    stage.a.expect_payload("for a");
    assert!(attempt.join().unwrap().is_err(), "the gateway's connection cannot have come about");
    // Elsewhere the gateway connects from that port as it likes.
    let other = stage.lab.s2.within(|| TcpListener::bind("198.51.100.2:80")).unwrap();
    stage.lab.s2.nft("delete table ip mute");
    stage
        .lab
        .gateway
        .within(|| nat_tests::host::connect_from("203.0.113.1:33001", "198.51.100.2:80"))
        .expect("a connection to another server");
    other.accept().unwrap();
}

#[test]
fn loc_05_a_service_opened_later_has_its_new_clients() {
    for filtering in ["endpoint-independent", "address-dependent"] {
        let stage = Stage::snat(&format!("filtering = \"{filtering}\""));
        let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:4500", SERVER)));
        assert_eq!(mapped, public(4500), "the case needs this port");
        let socket = gateway_socket(&stage, &mapped);
        for client in ["198.51.100.2:9", "198.51.100.66:9", "198.51.101.1:4500"] {
            stage.send(&stage.udp(client, &mapped));
            assert_eq!(received_from(&socket), client, "{filtering}");
        }
        stage.lan_is_silent();
        // What the client had begun goes on; with others it begins from another port.
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        stage.gateway.text(&["session", "flush"]);
        assert_ne!(source(&stage.crosses(&stage.udp("192.168.1.10:4500", "198.51.100.2:9"))), mapped);
    }
}

/// What a DHCP client and server say, as UDP payloads; what matters here is on which addresses.
#[test]
fn loc_06_dhcp_on_either_side() {
    // With and without a source selector: without one, any uninvited packet looks like one to a hidden host.
    let any_source = gateway::STANDARD.replace("source = [\"192.168.0.0/16\"]\n", "");
    for configuration in [gateway::STANDARD, &any_source] {
        let stage = Stage::with(configuration);
        let (lan, wan) = (stage.lab.gateway.tap_on("lan"), stage.lab.gateway.tap_on("wan"));
        // The client on the WAN has no address yet.
        stage.lab.gateway.ip("addr flush dev wan");
        stage.gateway.wait_until("the address is gone", Duration::from_secs(3), |gateway| {
            gateway.natgw(&["status", "--json"])["interfaces"][1]["addresses"].as_array().unwrap().is_empty()
        });
        let all = [0xff; 6];
        wan.send(&Packet::udp("0.0.0.0:68", "255.255.255.255:67").to_mac(all).payload("discover"));
        let asked = stage.wan.expect_payload("discover");
        assert_eq!(asked.source().unwrap().to_string(), "0.0.0.0:68");
        for (what, answer) in [
            ("offer to all", Packet::udp("203.0.113.254:67", "255.255.255.255:68").to_mac(all)),
            ("offer to the new address", Packet::udp("203.0.113.254:67", "203.0.113.1:68")),
        ] {
            let sent = stage.wan.send(&answer.payload(what));
            assert_eq!(wan.expect_payload(what).ip, sent.ip, "{what}, {configuration}");
        }
        // But nobody gets at inside hosts as a DHCP server.
        stage.wan.send(&Packet::udp("203.0.113.254:67", "192.168.1.10:68").payload("to the inside"));
        stage.a.expect_none("an uninvited packet", |seen| seen.payload() == b"to the inside");
        stage.lab.gateway.ip("addr add 203.0.113.1/24 dev wan");
        stage.lab.gateway.ip("route replace default via 203.0.113.254");
        // Renewed by unicast.
        let renewal = gateway_socket(&stage, "203.0.113.1:68");
        renewal.send_to(b"renew", "203.0.113.254:67").unwrap();
        assert_eq!(stage.wan.expect_payload("renew").source().unwrap().to_string(), "203.0.113.1:68");
        stage.wan.send(&Packet::udp("203.0.113.254:67", "203.0.113.1:68").payload("renewed"));
        assert_eq!(received_from(&renewal), "203.0.113.254:67");
        // The server on the LAN.
        let server = gateway_socket(&stage, "0.0.0.0:67");
        server.set_broadcast(true).unwrap();
        let mute_client = Packet::udp("0.0.0.0:68", "255.255.255.255:67").to_mac(all).payload("discover lan");
        let sent = stage.a.send(&mute_client);
        assert_eq!(lan.expect_payload("discover lan").ip, sent.ip);
        assert_eq!(received_from(&server), "0.0.0.0:68");
        server.send_to(b"offer lan", "192.168.1.255:68").unwrap();
        assert_eq!(stage.a.expect_payload("offer lan").source().unwrap().to_string(), "192.168.1.1:67");
        stage.a.send(&Packet::udp("192.168.1.10:68", "192.168.1.1:67").payload("renew lan"));
        assert_eq!(received_from(&server), "192.168.1.10:68");
        assert_eq!(stage.session_count(), 0);
        stage.expect_bad_packets();
    }
}

/// What is sent to all on one side reaches the gateway's stack and nothing else.
fn stays_on_its_link(
    stage: &Stage,
    from: &Tap,
    own: &Tap,
    interface: Ipv4Addr,
    sender: &str,
    broadcast: &str,
    beyond: &[&Tap],
) {
    let socket = gateway_socket(stage, "0.0.0.0:1900");
    for group in [Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(239, 255, 255, 250)] {
        socket.join_multicast_v4(&group, &interface).unwrap();
    }
    for group in [broadcast, "255.255.255.255", "224.0.0.251", "239.255.255.250"] {
        let group = format!("{group}:1900");
        let mac = if group.starts_with("224") || group.starts_with("239") {
            [0x01, 0, 0x5e, 0x7f, 0xff, 0xfa]
        } else {
            [0xff; 6]
        };
        // Whether by the group's MAC, by all's, or by the gateway's own.
        for mac in [mac, [0xff; 6]] {
            from.send(&stage.udp(sender, &group).to_mac(mac));
            assert_eq!(received_from(&socket), sender, "{group} from {sender}");
        }
        from.send(&stage.udp(sender, &group));
    }
    let host = sender.split(':').next().unwrap();
    let to_all_hosts = Packet::echo_request(host, "224.0.0.1", 7, 1).to_mac([1, 0, 0x5e, 0, 0, 1]);
    let membership = Packet::raw(host, "224.0.0.1", protocol::IGMP)
        .payload([0x11, 0x64, 0xee, 0x9b, 0, 0, 0, 0])
        .to_mac([1, 0, 0x5e, 0, 0, 1]);
    for packet in [to_all_hosts, membership] {
        let sent = from.send(&packet);
        own.expect("what is for all hosts", |seen| seen.ip == sent.ip);
    }
    let is_from = |seen: &Decoded| {
        seen.ip.as_ref().is_some_and(|ip| ip.source.to_string() == host || ip.protocol == protocol::ICMP)
    };
    for tap in beyond {
        tap.expect_none("what was for all on the other link", is_from);
    }
    from.expect_none("an ICMP error", |seen| seen.icmp().is_some_and(|icmp| icmp.kind != 0));
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn loc_07_what_is_for_all_stays_on_the_lan() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let own = stage.lab.gateway.tap_on("lan");
    let lan = Ipv4Addr::new(192, 168, 1, 1);
    stays_on_its_link(&stage, &stage.a, &own, lan, CLIENT, "192.168.1.255", &[&stage.wan]);
    stage.crosses(&stage.udp(CLIENT, SERVER));
}

#[test]
fn loc_08_what_is_for_all_stays_on_the_wan() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let own = stage.lab.gateway.tap_on("wan");
    let clients = [&stage.a, &stage.b, &stage.c];
    stays_on_its_link(&stage, &stage.wan, &own, P1, "203.0.113.254:5000", "203.0.113.255", &clients);
    stage.crosses(&stage.udp(CLIENT, SERVER));
}

#[test]
fn loc_09_errors_about_the_gateways_own_packets_are_its_own() {
    let stage = Stage::standard();
    // The provider's link to the servers takes less: its kernel says so to whoever sends more.
    stage.lab.isp.ip("link set inet mtu 1300");
    let listener = tcp_server(&stage);
    stage.lab.s1.ip("link set eth0 mtu 1500");
    let mut own = stage.lab.gateway.within(|| TcpStream::connect("198.51.100.1:80")).unwrap();
    let (mut at_server, _) = listener.accept().unwrap();
    let bytes = vec![7; 200_000];
    let writer = thread::spawn(move || own.write_all(&bytes).map(|()| own));
    let mut received = vec![0; 200_000];
    at_server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    at_server.read_exact(&mut received).expect("all of it, in smaller segments");
    let _own = writer.join().unwrap().unwrap();
    let learnt = stage.lab.gateway.ip("route get 198.51.100.1");
    assert!(learnt.contains("mtu 1300"), "{learnt}");
    // And one that says that nobody listens.
    let socket = gateway_socket(&stage, "203.0.113.1:0");
    socket.connect("198.51.100.1:9").unwrap();
    socket.send(b"is there anybody").unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    stage.lan_is_silent();
    stage.carries_the_next();
}

#[test]
fn loc_10_between_inside_interfaces_nothing_is_translated() {
    let any = gateway::STANDARD
        .replace("source = [\"192.168.0.0/16\"]\ndestination = [\"!192.168.0.0/16\"]\nout = \"wan\"\n", "");
    let third = "\n[[interface]]\nname = \"dmz\"\nside = \"inside\"\n";
    for configuration in [gateway::STANDARD, &any] {
        let lab = nat_tests::Lab::builder().forwarding().build();
        let (gateway, c) = (&lab.gateway, &lab.c);
        c.ip(&format!(
            "link add eth1 address 02:00:00:00:0a:0c type veth peer name dmz address 02:00:00:00:0a:01 netns {}",
            gateway.namespace
        ));
        c.ip("addr add 10.1.1.12/24 dev eth1");
        c.ip("link set eth1 up");
        c.ip("route add 192.168.1.10 via 10.1.1.1");
        gateway.ip("addr add 10.1.1.1/24 dev dmz");
        gateway.ip("link set dmz up");
        lab.mute_all();
        let daemon = nat_tests::Gateway::start(&lab, &format!("{configuration}{third}"));
        let mut server = c.clone();
        (server.mac, server.next_hop) = ([2, 0, 0, 0, 10, 12], [2, 0, 0, 0, 10, 1]);
        let (a, dmz) = (lab.a.tap(), server.tap_on("eth1"));
        for packet in [
            Packet::udp(CLIENT, "10.1.1.12:53").payload("plainly routed"),
            Packet::tcp(CLIENT, "10.1.1.12:80").syn(1),
            Packet::echo_request("192.168.1.10", "10.1.1.12", 7, 1),
        ] {
            let sent = a.send(&packet);
            let seen = dmz.expect("the packet, as it was", |seen| {
                seen.ip.as_ref().is_some_and(|ip| ip.protocol == sent.ip().protocol)
            });
            assert_eq!((seen.source(), seen.destination()), (sent.source(), sent.destination()));
            assert_eq!(seen.ip().ttl, 63);
        }
        dmz.send(&Packet::udp("10.1.1.12:53", CLIENT).payload("and back"));
        assert_eq!(source(&a.expect_payload("and back")), "10.1.1.12:53");
        assert!(daemon.sessions().is_empty(), "{:?}", daemon.sessions());
        // The same gateway translates what leaves it.
        let s1 = lab.s1.tap();
        dmz.send(&Packet::udp("10.1.1.12:5000", "198.51.100.1:9").payload("from the other inside"));
        let seen =
            s1.recv_matching(Duration::from_secs(1), |seen| seen.payload() == b"from the other inside");
        let translated = seen.is_some_and(|seen| seen.decoded.ip().source == P1);
        assert_eq!(translated, configuration == any, "a rule for any source translates this one as well");
    }
}

#[test]
fn loc_11_what_is_on_loopback_stays_as_it_is() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    // The client has the very port on the outside address.
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    assert_eq!(mapped, public(40000), "the case needs this port");
    let service = gateway_socket(&stage, "127.0.0.1:40000");
    let (local, to_own) =
        (gateway_socket(&stage, "127.0.0.1:5000"), gateway_socket(&stage, "127.0.0.1:5001"));
    for client in [&local, &to_own] {
        client.send_to(b"over loopback", "127.0.0.1:40000").unwrap();
        assert_eq!(received_from(&service), client.local_addr().unwrap().to_string());
        service.send_to(b"and back", client.local_addr().unwrap()).unwrap();
        assert_eq!(received_from(client), "127.0.0.1:40000");
    }
    // Nor does loopback listen to the wires.
    service.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stage.a.send(&stage.udp(CLIENT, "127.0.0.1:40000"));
    stage.wan.send(&stage.udp(SERVER, "127.0.0.1:40000"));
    assert!(service.recv_from(&mut [0; 8]).is_err(), "a packet for loopback came in from a wire");
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    assert_eq!(stage.session_count(), 1);
}
