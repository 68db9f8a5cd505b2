//! Document 000: a Debian router with negated selectors, and a client in two networks.

use std::{net::TcpListener, time::Duration};

use nat_tests::{
    Decoded, Gateway, Host, Lab, Packet, Tap, gateway,
    packet::Mac,
    router::{RULES, Router},
};
use serde_json::Value;

use crate::stage::{Stage, seconds, source};

const X: &str = "198.51.100.1";

/// What `ping` says of packets sent and answered.
struct Pinged {
    sent: u32,
    answered: u32,
    text: String,
}

impl Pinged {
    fn all(&self, what: &str) {
        assert!(self.sent > 0 && self.sent == self.answered, "{what}:\n{}", self.text);
    }

    fn none(&self, what: &str) {
        assert!(self.sent > 0 && self.answered == 0, "{what}:\n{}", self.text);
    }
}

fn ping(host: &Host, arguments: &str) -> Pinged {
    let output = host.run(&format!("ping -n -c 3 -i 0.2 -W 1 {arguments}"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let number = |before: &str| {
        let line = text.lines().find(|line| line.contains("packets transmitted")).unwrap_or_default();
        let words: Vec<&str> = line.split(", ").filter(|part| part.contains(before)).collect();
        words.first().and_then(|part| part.split(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    Pinged { sent: number("transmitted"), answered: number(" received"), text }
}

fn echoes(tap: &Tap, kind: u8) -> Vec<Decoded> {
    tap.incoming(|seen| seen.icmp().is_some_and(|icmp| icmp.kind == kind))
}

/// Both ways: what was sent from here, too.
fn passed(tap: &Tap, kind: u8) -> Vec<Decoded> {
    let captured = tap.captured().into_iter().map(|frame| frame.decoded);
    captured.filter(|seen| seen.icmp().is_some_and(|icmp| icmp.kind == kind)).collect()
}

fn ends(packets: &[Decoded]) -> Vec<(String, String)> {
    let mut ends: Vec<_> = packets
        .iter()
        .map(|seen| (seen.ip().source.to_string(), seen.ip().destination.to_string()))
        .collect();
    ends.dedup();
    ends
}

fn pair(from: &str, to: &str) -> Vec<(String, String)> {
    vec![(from.to_owned(), to.to_owned())]
}

fn rule<'a>(rules: &'a Value, name: &str) -> &'a Value {
    let rules = rules.as_array().unwrap();
    rules.iter().find(|rule| rule["name"] == name).unwrap_or_else(|| panic!("no rule {name}"))
}

/// A host's count of packets whose source came by the wrong interface.
fn reverse_path_drops(host: &Host) -> u64 {
    let counts = host.succeed("cat /proc/net/netstat");
    let lines: Vec<&str> = counts.lines().filter(|line| line.starts_with("TcpExt:")).collect();
    let place = lines[0].split(' ').position(|name| name == "IPReversePathFilter").unwrap();
    lines[1].split(' ').nth(place).unwrap().parse().unwrap()
}

#[test]
fn s000_01_and_02_two_nats_in_a_row() {
    let lab = Router::new();
    let _gateway = lab.start(RULES);
    let (client, home, server) = (lab.client.tap(), lab.upstream.tap(), lab.server.tap());
    ping(&lab.client, X).all("through both");
    assert_eq!(ends(&passed(&client, 8)), pair("10.1.1.12", X));
    assert_eq!(ends(&echoes(&home, 8)), pair("192.168.1.10", X));
    assert_eq!(ends(&echoes(&server, 8)), pair("203.0.113.7", X));
    assert_eq!(ends(&echoes(&client, 0)), pair(X, "10.1.1.12"));
    // The identifier may differ between the links; each reply has that of its request.
    let (requests, replies) = (passed(&client, 8), echoes(&client, 0));
    assert_eq!((requests.len(), replies.len()), (3, 3));
    for (request, reply) in requests.iter().zip(&replies) {
        let (asked, answered) = (request.icmp().unwrap(), reply.icmp().unwrap());
        assert_eq!((asked.id, asked.seq), (answered.id, answered.seq));
        assert_eq!((request.ip().total_length, reply.ip().total_length), (84, 84), "64 bytes of ICMP");
        assert_eq!(asked.payload, answered.payload);
    }
    let outside = echoes(&home, 8);
    assert!(outside.windows(2).all(|two| two[0].icmp().unwrap().id == two[1].icmp().unwrap().id));
}

#[test]
fn s000_03_and_04_and_05_and_06_negated_selectors() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    let sees = |tap: &Tap| ends(&echoes(tap, 8));
    // r1: the destination is not outside.
    lab.client.ip("route add 10.1.1.99 via 10.1.1.1");
    lab.gateway.sysctl("ipv4.conf.eth1.send_redirects", "0");
    lab.gateway.sysctl("ipv4.conf.all.send_redirects", "0");
    let other = lab.other.tap();
    ping(&lab.client, "10.1.1.99").all("to the same network, through the gateway");
    assert_eq!(sees(&other), pair("10.1.1.12", "10.1.1.99"));
    assert!(gateway.sessions().is_empty(), "{:?}", gateway.sessions());
    // r1: to the gateway's own outer network.
    let neighbour = lab.neighbour.tap();
    ping(&lab.client, "192.168.1.72").all("to the outer network");
    assert_eq!(sees(&neighbour), pair("192.168.1.10", "192.168.1.72"));
    // r2: from there, under the address of the way in. Who asks an inside address is answered by it.
    gateway.expect_inside_addresses_outside();
    let client = lab.client.tap();
    ping(&lab.neighbour, "10.1.1.12").all("from the outer network");
    assert_eq!(sees(&client), pair("10.1.1.1", "10.1.1.12"));
    assert!(ends(&echoes(&neighbour, 0)).contains(&pair("10.1.1.12", "192.168.1.72")[0]));
    // r2 for the VPN, which no rule hides from the Internet.
    client.clear();
    ping(&lab.vpn, "10.1.1.12").all("from the VPN");
    assert_eq!(sees(&client), pair("10.1.1.1", "10.1.1.12"));
    let home = lab.upstream.tap();
    ping(&lab.vpn, X).all("from the VPN to the Internet");
    assert_eq!(sees(&home), pair("10.8.0.6", X));
}

#[test]
fn the_gateways_own_pings_are_its_own() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    let client = lab.client.tap();
    for source in ["10.1.1.1", "192.168.1.10"] {
        client.clear();
        ping(&lab.gateway, &format!("-I {source} 10.1.1.12")).all(source);
        assert_eq!(ends(&echoes(&client, 8)), pair(source, "10.1.1.12"));
    }
    ping(&lab.gateway, X).all("to the Internet");
    assert!(gateway.sessions().is_empty(), "{:?}", gateway.sessions());
}

#[test]
fn s000_08_a_packet_is_counted_by_one_rule() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    let counts = |gateway: &Gateway| {
        let rules = gateway.natgw(&["rule", "list", "--json"]);
        ["r1", "r2"].map(|name| rule(&rules, name)["packets"].as_u64().unwrap())
    };
    assert_eq!(counts(&gateway), [0, 0]);
    ping(&lab.client, X).all("r1");
    ping(&lab.client, "198.51.100.2").all("r1");
    // The replies, which r2's selectors would fit, are the session's.
    assert_eq!(counts(&gateway), [2, 0]);
    // Who asks an inside address is answered by it.
    gateway.expect_inside_addresses_outside();
    ping(&lab.neighbour, "10.1.1.12").all("r2");
    ping(&lab.vpn, X).all("no rule");
    assert_eq!(counts(&gateway), [2, 1]);
}

#[test]
fn s000_10_and_11_what_helps_a_client_in_two_networks() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    lab.two_homed();
    let set = |value: &str| {
        for which in ["all", "eth0", "eth1"] {
            lab.client.sysctl(&format!("ipv4.conf.{which}.rp_filter"), value);
        }
    };
    set("1");
    ping(&lab.client, &format!("-I eth1 {X}")).none("strict: the control of this test");
    for value in ["0", "2"] {
        set("0");
        set(value);
        ping(&lab.client, &format!("-I eth1 {X}")).all(value);
    }
    // With a table of its own the strict client is fine as well.
    set("1");
    lab.client.ip("route add default via 10.1.1.1 dev eth1 table 7");
    lab.client.ip("rule add from 10.1.1.12 lookup 7");
    ping(&lab.client, "-I 10.1.1.12 198.51.100.1").all("a table for its source");
    // Without a word about the interface, it goes the other way: the gateway sees nothing of it.
    gateway.text(&["session", "flush"]);
    let own = lab.gateway.tap_on("eth1");
    ping(&lab.client, X).all("by eth0");
    assert!(passed(&own, 8).is_empty(), "{:?}", passed(&own, 8));
    assert!(gateway.sessions().is_empty());
}

#[test]
fn s000_12_a_reply_without_its_request() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    lab.two_homed();
    // The request leaves by the other network with the address of this one; upstream sends the answer here.
    lab.upstream.ip("route add 10.1.1.0/24 via 192.168.1.10");
    lab.client.sysctl("ipv4.conf.all.rp_filter", "0");
    let (client, home) = (lab.client.tap(), lab.upstream.tap());
    let request = Packet::echo_request("10.1.1.12", X, 77, 1).to_mac(lab.upstream.mac);
    lab.client.tap_on("eth0").send(&request);
    home.expect("the request, as it was", |seen| {
        seen.icmp().is_some_and(|icmp| icmp.id == 77) && seen.ip().source.to_string() == "10.1.1.12"
    });
    // Upstream's answer comes to the gateway, which never saw the question.
    client.expect_none("a translated reply", |seen| {
        seen.icmp().is_some_and(|icmp| icmp.kind == 0) && seen.ip().source.to_string() != X
    });
    // Nor is TCP that answers what went another way.
    for segment in [
        Packet::tcp("198.51.100.1:80", "10.1.1.12:7000").syn(1).ack(2),
        Packet::tcp("198.51.100.1:80", "10.1.1.12:7000").seq(2).ack(2).payload("data"),
    ] {
        home.send(&segment.to_mac(lab.gateway.mac));
    }
    client.expect_none("a translated segment", |seen| seen.tcp().is_some());
    assert!(gateway.sessions().is_empty(), "{:?}", gateway.sessions());
    assert!(
        gateway.natgw(&["pool", "list", "--json"]).as_array().unwrap().iter().all(|pool| pool["used"] == 0)
    );
}

#[test]
fn s000_15_every_step_of_the_ladder() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    for step in ["127.0.0.1", "10.1.1.12", "10.1.1.1", "192.168.1.10", "192.168.1.1", X] {
        ping(&lab.client, step).all(step);
        let captured = gateway.sessions().iter().any(|session| {
            session["remote"]
                .as_str()
                .is_some_and(|remote| remote.starts_with("10.1.1.1:") || remote.starts_with("192.168.1.10:"))
        });
        assert!(!captured, "a ping to the gateway is no session's: {:?}", gateway.sessions());
    }
}

/// Scaled: a hundred replies, and a timeout of two seconds that passes again and again meanwhile.
#[test]
fn s000_19_replies_find_the_inside_host_by_their_own_addresses() {
    let lab = Router::new();
    let gateway = lab.start(&format!("{RULES}\n[timeouts]\nicmp = \"2s\"\n"));
    let output = lab.client.run(&format!("ping -n -q -c 100 -i 0.07 -W 1 {X}"));
    let second = ping(&lab.other, X);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("100 received"), "{text}");
    second.all("another host meanwhile");
    // One session did it all, and knows both of its ends.
    let sessions = gateway.sessions();
    let of_client: Vec<&Value> = sessions
        .iter()
        .filter(|session| session["inside"].as_str().unwrap().starts_with("10.1.1.12:"))
        .collect();
    assert_eq!(of_client.len(), 1, "{sessions:?}");
    assert!(of_client[0]["remote"].as_str().unwrap().starts_with(X));
    let done = |gateway: &Gateway| gateway.sessions().is_empty();
    gateway.wait_until("the session ends when the pings do", Duration::from_secs(8), done);
}

/// Findings of `natgw doctor`, by the check that found them.
fn diagnosed(gateway: &Gateway, host: &str) -> Vec<(String, String)> {
    let arguments: Vec<&str> =
        ["doctor", host, "--json"].into_iter().filter(|word| !word.is_empty()).collect();
    let findings = gateway.natgw(&arguments);
    let found = findings.as_array().unwrap().iter();
    found.map(|finding| (finding["check"].as_str().unwrap().to_owned(), finding.to_string())).collect()
}

fn finding(gateway: &Gateway, host: &str, check: &str) -> Option<String> {
    diagnosed(gateway, host).into_iter().find(|(name, _)| name == check).map(|(_, text)| text)
}

#[test]
fn s000_09_and_ops_14_the_loss_is_behind_the_gateway() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    lab.two_homed();
    for which in ["all", "eth0", "eth1"] {
        lab.client.sysctl(&format!("ipv4.conf.{which}.rp_filter"), "1");
    }
    let before = reverse_path_drops(&lab.client);
    let client = lab.client.tap();
    ping(&lab.client, &format!("-I eth1 {X}")).none("strict");
    let replies = echoes(&client, 0);
    assert_eq!(replies.len(), 3, "the tap sees what the stack drops: {replies:?}");
    assert!(replies.iter().all(|reply| reply.to == lab.client.mac));
    assert!(reverse_path_drops(&lab.client) >= before + 3);
    let session = gateway.sessions().into_iter().find(|session| session["packets_in"] == 3).unwrap();
    assert_eq!(session["packets_out"], 3, "{session}");
    let said = finding(&gateway, "10.1.1.12", "delivered").unwrap();
    let mac = lab.client.mac.map(|byte| format!("{byte:02x}")).join(":");
    assert!(
        said.contains(&format!("delivered 3 of 3 to MAC {mac} on eth1")) && said.contains("behind natgw"),
        "{said}"
    );
    // And it blames nothing on the gateway's side.
    assert!(finding(&gateway, "10.1.1.12", "no_replies").is_none());
    // Whoever does not know which host to ask about is told by a connection that is asked for again.
    let server = lab.server.within(|| TcpListener::bind((X, 8000))).unwrap();
    assert!(finding(&gateway, "", "asked_again").is_none());
    let _asks = lab.client.spawn(&format!("curl --silent --interface eth1 --max-time 20 http://{X}:8000/"));
    let is_told = |gateway: &Gateway| finding(gateway, "", "asked_again").is_some();
    gateway.wait_until("it is told", Duration::from_secs(8), is_told);
    let said = finding(&gateway, "", "asked_again").unwrap();
    for word in ["10.1.1.12 asks again", "back and delivered", "behind natgw", "all.rp_filter=2"] {
        assert!(said.contains(word), "{said}");
    }
    for which in ["all", "eth0", "eth1"] {
        lab.client.sysctl(&format!("ipv4.conf.{which}.rp_filter"), "2");
    }
    gateway.wait_until("mended", Duration::from_secs(10), |gateway| !is_told(gateway));
    drop(server);
}

#[test]
fn s000_13_and_ops_14_strict_filtering_on_the_gateway_itself() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    for which in ["all", "eth2"] {
        lab.gateway.sysctl(&format!("ipv4.conf.{which}.rp_filter"), "1");
    }
    lab.gateway.sysctl("ipv4.conf.all.log_martians", "1");
    let before = reverse_path_drops(&lab.gateway);
    assert!(finding(&gateway, "", "rp_filter").unwrap().contains("\"risk\""));
    // The gateway's own question goes by the VPN's interface; the answer comes in by eth2.
    lab.gateway.ip("route add 198.51.100.2 via 10.8.0.6 dev tun0 src 192.168.1.10");
    lab.vpn.sysctl("ipv4.ip_forward", "1");
    lab.upstream
        .tap()
        .send(&Packet::echo_reply("198.51.100.2", "192.168.1.10", 9, 1).to_mac(lab.gateway.mac));
    let dropped = |_: &Gateway| reverse_path_drops(&lab.gateway) > before;
    gateway.wait_until("the kernel drops it", Duration::from_secs(2), dropped);
    let said = finding(&gateway, "", "rp_filter").unwrap();
    assert!(
        said.contains("\"fault\"") && said.contains("has dropped 1 packets") && said.contains("eth2"),
        "{said}"
    );
    assert!(said.contains("sysctl -w net.ipv4.conf.all.rp_filter=2"), "{said}");
    for which in ["all", "eth2"] {
        lab.gateway.sysctl(&format!("ipv4.conf.{which}.rp_filter"), "2");
    }
    assert!(finding(&gateway, "", "rp_filter").is_none(), "mended");
}

#[test]
fn s000_14_and_ops_14_forwarding_off_and_a_forward_policy_of_drop() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    ping(&lab.vpn, X).all("plainly routed");
    assert!(
        finding(&gateway, "", "ip_forward").is_none() && finding(&gateway, "", "forward_policy").is_none()
    );
    lab.gateway.sysctl("ipv4.ip_forward", "0");
    ping(&lab.vpn, X).none("ip_forward is 0");
    let said = finding(&gateway, "", "ip_forward").unwrap();
    assert!(said.contains("sysctl -w net.ipv4.ip_forward=1"), "{said}");
    lab.gateway.sysctl("ipv4.ip_forward", "1");
    lab.gateway.nft("table inet fw { chain forward { type filter hook forward priority 0; policy drop; }; }");
    ping(&lab.vpn, X).none("the policy is drop");
    let said = finding(&gateway, "", "forward_policy").unwrap();
    assert!(said.contains("inet fw forward"), "{said}");
    assert!(finding(&gateway, "", "ip_forward").is_none());
    // What natgw translates passes either way.
    ping(&lab.client, X).all("translated");
    lab.gateway.nft("delete table inet fw");
    ping(&lab.vpn, X).all("mended");
}

#[test]
fn s000_16_a_stale_route_to_one_destination() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    ping(&lab.client, X).all("before");
    let sessions = gateway.sessions().len();
    // The exception leads to a router that is gone.
    lab.gateway.ip("route add 198.51.100.1 via 192.168.1.99");
    ping(&lab.client, "198.51.100.2").all("another destination");
    ping(&lab.client, X).none("the exception's destination");
    // Packets wait some time for the neighbour that does not answer.
    gateway.wait_until("they are given up", Duration::from_secs(5), |gateway| {
        finding(gateway, "10.1.1.12", "no_neighbour").is_some()
    });
    let said = finding(&gateway, "10.1.1.12", "no_neighbour").unwrap();
    assert!(said.contains("a route may point to a dead one") && said.contains("ip route get"), "{said}");
    // A running ping goes on at once, in its session, when the exception is gone.
    let client = lab.client.clone();
    let running = std::thread::spawn(move || client.run("ping -n -c 20 -i 0.1 -W 1 198.51.100.1"));
    std::thread::sleep(Duration::from_millis(800));
    lab.gateway.ip("route del 198.51.100.1 via 192.168.1.99");
    lab.gateway.ip("route flush cache");
    let output = running.join().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answered: u32 =
        text.split(", ").find_map(|part| part.strip_suffix(" received")).unwrap().parse().unwrap();
    assert!((5..20).contains(&answered), "{text}");
    assert!(gateway.sessions().len() >= sessions);
    ping(&lab.client, X).all("after");
}

/// Who answers an ARP request for an address, by its Ethernet address.
fn answers_arp(host: &Host, address: [u8; 4]) -> Vec<Mac> {
    let tap = host.tap();
    let request = [
        &[0xff; 6][..],
        &host.mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &host.mac,
        &host.address.octets(),
        &[0; 6],
        &address,
    ];
    tap.send_frame(&request.concat());
    std::thread::sleep(Duration::from_millis(400));
    let frames = tap.captured().into_iter().map(|captured| captured.frame);
    let replies = frames.filter(|frame| frame[12..14] == [8, 6] && frame[20..22] == [0, 2]);
    let mut macs: Vec<Mac> = replies
        .filter(|frame| frame[28..32] == address)
        .map(|frame| frame[22..28].try_into().expect("six bytes"))
        .collect();
    macs.sort_unstable();
    macs
}

#[test]
fn s000_17_two_networks_on_one_segment() {
    let lab = Router::new();
    let gateway = lab.start(RULES);
    assert!(finding(&gateway, "", "arp_flux").is_none());
    lab.one_segment();
    let (inner, outer) = (lab.client.next_hop, lab.gateway.mac);
    // The kernel's own way, and the control of this test: both answer for each address.
    assert_eq!(answers_arp(&lab.other, [10, 1, 1, 1]), [inner, outer]);
    assert_eq!(answers_arp(&lab.neighbour, [192, 168, 1, 10]), [inner, outer]);
    let said = finding(&gateway, "", "arp_flux").unwrap();
    assert!(said.contains("eth1 and eth2 are on one segment") && said.contains("10.1.1.99"), "{said}");
    let command = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2";
    assert!(said.contains(command), "{said}");
    lab.gateway.succeed(command);
    assert!(finding(&gateway, "", "arp_flux").is_none());
    assert_eq!(answers_arp(&lab.other, [10, 1, 1, 1]), [inner]);
    assert_eq!(answers_arp(&lab.neighbour, [192, 168, 1, 10]), [outer]);
    assert_eq!(answers_arp(&lab.neighbour, [192, 168, 1, 1]), [lab.upstream.mac], "others' are others'");
    // Frames for a station that no port has learnt reach every port of the switch.
    let (client, server, own) = (lab.client.tap(), lab.server.tap(), lab.gateway.tap_on("eth1"));
    let packet = Packet::udp("10.1.1.12:7000", "198.51.100.1:9");
    client.send(&packet.clone().payload("for another").to_mac([2, 9, 9, 9, 9, 9]));
    let flooded = |seen: &Decoded| seen.payload() == b"for another";
    let deadline = std::time::Instant::now() + Duration::from_secs(3);
    while !own.captured().iter().any(|captured| flooded(&captured.decoded)) {
        assert!(std::time::Instant::now() < deadline, "the switch floods it");
    }
    server.expect_none("a frame for another station", flooded);
    assert!(gateway.sessions().is_empty(), "{:?}", gateway.sessions());
    client.send(&packet.payload("for the gateway"));
    server.expect_payload("for the gateway");
}

#[test]
fn s000_18_a_session_stays_on_its_uplink() {
    let second = "[[interface]]\nname = \"wan2\"\nside = \"outside\"\n\
                  [[snat]]\nsource = [\"192.168.0.0/16\"]\nout = \"wan2\"\nto = \"masquerade\"\n\
                  [[forward]]\nexternal = \"wan:8080\"\ninternal = \"192.168.1.10:80\"\n\
                  [[forward]]\nexternal = \"wan2:8080\"\ninternal = \"192.168.1.10:80\"\n";
    let stage = Stage::build(Lab::builder().second_uplink(), &format!("{}\n{second}", gateway::STANDARD));
    let own = &stage.lab.gateway;
    own.ip("route add default via 192.0.2.254 metric 500");
    let (first, second) = (&stage.wan, &stage.lab.wan2());
    // What leaves by one uplink, with which source; the other stays silent. By the daemon at first, then without it.
    let leaves = |what: &str, from: &str, to: &str, uplink: &Tap, other: &Tap, external: &str| {
        for _ in 0..3 {
            let sent = stage.send(&stage.udp(from, to));
            let seen = uplink.expect_payload(sent.payload());
            assert_eq!(source(&seen), external, "{what}");
            other.expect_none(what, |seen| seen.payload() == sent.payload());
            stage.reaches(&stage.udp(to, external), &stage.a);
        }
    };
    let server = "198.51.100.1:5000";
    leaves("by the first", "192.168.1.10:40000", server, first, second, "203.0.113.1:40000");
    let of_first = source(&stage.reaches(&stage.udp("198.51.100.2:7", "203.0.113.1:8080"), &stage.a));
    leaves("in by the first", "192.168.1.10:80", &of_first, first, second, "203.0.113.1:8080");
    let of_second = source(&stage.reaches(&stage.udp("198.51.100.2:8", "192.0.2.1:8080"), &stage.a));
    leaves("in by the second", "192.168.1.10:80", &of_second, second, first, "192.0.2.1:8080");
    // The best route to all of them becomes the second uplink's.
    own.ip("route add 198.51.100.0/24 via 192.0.2.254");
    seconds(0.5);
    leaves("it began at the first", "192.168.1.10:40000", server, first, second, "203.0.113.1:40000");
    leaves("it came in by the first", "192.168.1.10:80", &of_first, first, second, "203.0.113.1:8080");
    leaves("it came in by the second", "192.168.1.10:80", &of_second, second, first, "192.0.2.1:8080");
    leaves("new now", "192.168.1.10:40001", server, second, first, "192.0.2.1:40001");
    // And the first one's again.
    own.ip("route del 198.51.100.0/24 via 192.0.2.254");
    seconds(0.5);
    leaves("it began at the second", "192.168.1.10:40001", server, second, first, "192.0.2.1:40001");
    leaves("new then", "192.168.1.10:40002", server, first, second, "203.0.113.1:40002");
}
