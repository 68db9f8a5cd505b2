//! What the host does under a running gateway: links, addresses and next hops that come, go and change.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use nat_tests::{Gateway, Lab, Packet, gateway};

use crate::stage::{Stage, public, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn ops_11_a_new_address_is_used_at_once_and_the_old_one_never_again() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let gateway = &stage.lab.gateway;
    gateway.ip("addr add 203.0.113.2/24 dev wan");
    // A secondary address goes with its primary one, unless it is promoted.
    gateway.sysctl("ipv4.conf.wan.promote_secondaries", "1");
    gateway.ip("addr del 203.0.113.1/24 dev wan");
    gateway.ip("route replace default via 203.0.113.254");
    seconds(1.0);
    stage.wan.clear();
    let seen = stage.crosses(&stage.udp(CLIENT, SERVER));
    assert_eq!(seen.ip().source.to_string(), "203.0.113.2");
    stage.reaches(&stage.udp(SERVER, &source(&seen)), &stage.a);
    let old =
        stage.wan.incoming(|seen| seen.ip.as_ref().is_some_and(|ip| ip.source.to_string() == "203.0.113.1"));
    assert!(old.is_empty(), "{old:?}");
}

#[test]
fn rtr_20_a_new_next_hop_takes_over_live_sessions() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    // The provider's router is replaced: the same address at another Ethernet address.
    let isp = &stage.lab.isp;
    isp.ip("link set gw address 02:00:00:00:02:fd");
    let mut announce = Command::new("ip");
    announce.args(["netns", "exec", &isp.namespace, "ping", "-c", "1", "-W", "1", "203.0.113.1"]);
    // Its own question tells the gateway where it now is.
    announce.output().expect("run ping");
    stage.gateway.wait_until("traffic follows", Duration::from_secs(3), |_| {
        let sent = stage.send(&stage.udp(CLIENT, SERVER));
        let patience = Duration::from_millis(200);
        stage.s1.recv_matching(patience, |seen| seen.payload() == sent.payload()).is_some()
    });
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped);
}

/// Waits until datagrams of `client` come out again, and gives back under which address.
fn until_it_passes(stage: &Stage, client: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(8);
    loop {
        let sent = stage.send(&stage.udp(client, SERVER));
        let patience = Duration::from_millis(200);
        if let Some(seen) = stage.s1.recv_matching(patience, |seen| seen.payload() == sent.payload()) {
            return source(&seen.decoded);
        }
        assert!(Instant::now() < deadline, "nothing passes");
    }
}

#[test]
fn ops_09_links_that_go_and_come_back() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let gateway = &stage.lab.gateway;
    for interface in ["wan", "lan"] {
        gateway.ip(&format!("link set {interface} down"));
        seconds(0.5);
        gateway.ip(&format!("link set {interface} up"));
        gateway.ip("route replace default via 203.0.113.254");
        assert_eq!(until_it_passes(&stage, CLIENT), mapped, "{interface}");
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    }
    // Deleted, and created anew with its name: another interface to the kernel.
    gateway.ip("link del wan");
    seconds(0.3);
    gateway.ip(&format!(
        "link add wan address 02:00:00:00:02:01 type veth peer name gw address 02:00:00:00:02:fe netns {}",
        stage.lab.isp.namespace
    ));
    gateway.ip("addr add 203.0.113.1/24 dev wan");
    gateway.ip("link set wan up");
    stage.lab.isp.ip("addr add 203.0.113.254/24 dev gw");
    stage.lab.isp.ip("link set gw up");
    stage.lab.isp.ip("route add 192.168.0.0/16 via 203.0.113.1");
    gateway.ip("route replace default via 203.0.113.254");
    let again = until_it_passes(&stage, "192.168.1.11:40001");
    assert_eq!(again, public(40001));
    stage.reaches(&stage.udp(SERVER, &again), &stage.b);
    stage.expect_bad_packets();
}

#[test]
fn ops_10_started_before_its_interface_and_its_address() {
    let lab = Lab::standard();
    lab.gateway.ip("link set wan down");
    lab.gateway.ip("addr flush dev wan");
    lab.gateway.ip("link set wan name later");
    lab.mute_all();
    let gateway = Gateway::standard(&lab);
    let state = |gateway: &Gateway| gateway.natgw(&["status", "--json"])["interfaces"][1]["state"].clone();
    assert_eq!(state(&gateway), "missing");
    lab.gateway.ip("link set later name wan");
    lab.gateway.ip("link set wan up");
    gateway.wait_until("the interface is served", Duration::from_secs(5), |gateway| state(gateway) == "up");
    let (a, s1, wan) = (lab.a.tap(), lab.s1.tap(), lab.wan());
    // Without an address nothing can be translated, and nothing leaves as it is.
    lab.gateway.ip("route add 203.0.113.254 dev wan");
    lab.gateway.ip("route add default via 203.0.113.254 dev wan onlink");
    a.send(&Packet::udp(CLIENT, SERVER).payload("too early"));
    wan.expect_none("an untranslated packet", |seen| seen.payload() == b"too early");
    lab.gateway.ip("addr add 203.0.113.1/24 dev wan");
    gateway.wait_until("it works", Duration::from_secs(5), |_| {
        a.send(&Packet::udp(CLIENT, SERVER).payload("in time"));
        let seen = s1.recv_matching(Duration::from_millis(200), |seen| seen.payload() == b"in time");
        seen.is_some_and(|seen| source(&seen.decoded) == public(40000))
    });
}

#[test]
fn ops_11_forwards_follow_a_new_address() {
    let forward =
        "[[forward]]\nprotocol = [\"udp\"]\nexternal = \"wan:8080\"\ninternal = \"192.168.1.11:80\"\n";
    let stage = Stage::with(&format!("{}{forward}", gateway::STANDARD));
    stage.reaches(&stage.udp(SERVER, &public(8080)), &stage.b);
    let gateway = &stage.lab.gateway;
    gateway.sysctl("ipv4.conf.wan.promote_secondaries", "1");
    gateway.ip("addr add 203.0.113.2/24 dev wan");
    gateway.ip("addr del 203.0.113.1/24 dev wan");
    gateway.ip("route replace default via 203.0.113.254");
    seconds(1.0);
    stage.reaches(&stage.udp(SERVER, "203.0.113.2:8080"), &stage.b);
    stage.stopped(&stage.udp(SERVER, &public(8080)), &stage.b);
}

#[test]
fn ops_12_the_same_address_again() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    // As a DHCP client does at each renewal, and as one does that writes it anew.
    for line in [
        "addr replace 203.0.113.1/24 dev wan valid_lft 600 preferred_lft 600",
        "addr change 203.0.113.1/24 dev wan valid_lft forever preferred_lft forever",
    ] {
        stage.lab.gateway.ip(line);
        seconds(0.3);
        assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped, "{line}");
        stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
    }
    assert_eq!(stage.session_count(), 2);
}

/// What the host does to natgw's interfaces is in its log, once and with names; what natgw does itself is not.
#[test]
fn what_changes_on_the_host_is_logged() {
    let mut stage = Stage::with(&gateway::STANDARD.replace("\"masquerade\"", "[\"203.0.113.7\"]"));
    let own = stage.lab.gateway.clone();
    let mut steps: Vec<(&str, &str)> = vec![
        ("addr add 203.0.113.9/24 dev wan", "has a new address interface=\"wan\" address=203.0.113.9"),
        (
            "addr del 203.0.113.9/24 dev wan",
            "has lost an address: sessions behind it end interface=\"wan\" address=203.0.113.9",
        ),
        ("route add 198.51.102.0/24 via 203.0.113.254", "routes have changed: live sessions follow them"),
        (
            "link set wan down",
            "has no link: what would leave by it waits, or finds another route interface=\"wan\"",
        ),
        ("link set wan up", "has its link again interface=\"wan\""),
    ];
    for (line, said) in steps.drain(..) {
        own.ip(line);
        stage.gateway.wait_until(said, Duration::from_secs(10), |gateway| gateway.log().contains(said));
    }
    let log = stage.gateway.log();
    assert!(
        !log.contains("address=203.0.113.7 has")
            && !log.contains("new address interface=\"wan\" address=203.0.113.7"),
        "{log}"
    );
    assert_eq!(log.matches("has its link again").count(), 1, "{log}");
    own.ip("route replace default via 203.0.113.254");
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.gateway.stop();
}

/// Sends on while offloads are switched; CPUs are the machine's, not the lab's.
#[test]
fn offloads_toggled_under_traffic_lose_little() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let (mut sent, mut lost) = (0, 0);
    for setting in ["gro on", "gro off", "tx off", "tx on", "tso off gso off", "tso on gso on"] {
        for interface in ["lan", "wan"] {
            stage.lab.gateway.succeed(&format!("ethtool -K {interface} {setting}"));
            for _ in 0..20 {
                let packet = stage.send(&stage.udp(SERVER, &mapped));
                let seen = stage
                    .a
                    .recv_matching(Duration::from_millis(500), |seen| seen.payload() == packet.payload());
                sent += 1;
                lost += u32::from(seen.is_none());
                let packet = stage.send(&stage.udp(CLIENT, SERVER));
                let seen = stage
                    .s1
                    .recv_matching(Duration::from_millis(500), |seen| seen.payload() == packet.payload());
                sent += 1;
                lost += u32::from(seen.is_none());
            }
        }
    }
    assert!(lost <= 12, "{lost} of {sent}: more than one a toggle");
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
}

/// The far end of a veth with native XDP sends packets of the MTU: the kernel puts them together again before the tc
/// program sends them on. What was off before is off again afterwards.
#[test]
fn a_veth_merges_segments_while_natgw_serves_it() {
    let mut stage = Stage::standard();
    let gateway = stage.lab.gateway.clone();
    let merges = |interface: &str| {
        let features = gateway.succeed(&format!("ethtool -k {interface}"));
        features.contains("generic-receive-offload: on")
    };
    assert!(merges("lan") && merges("wan"));
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
    }
    let listener = stage.lab.s1.within(|| TcpListener::bind("198.51.100.1:80")).expect("listen");
    let received = || {
        let count = stage.lab.isp.succeed("cat /sys/class/net/gw/statistics/rx_packets");
        count.trim().parse::<u64>().expect("a number of packets")
    };
    let before = received();
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(|number| (number / 7).to_be_bytes()).collect();
    let mut stream = stage.lab.a.within(|| TcpStream::connect("198.51.100.1:80")).expect("connect");
    let arrived = std::thread::scope(|scope| {
        let arrived = scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut arrived = Vec::new();
            stream.read_to_end(&mut arrived).map(|_| arrived).expect("read")
        });
        stream.write_all(&sent).expect("write");
        drop(stream);
        arrived.join().expect("the server")
    });
    assert!(arrived == sent, "{} bytes of {} arrived, or others", arrived.len(), sent.len());
    let packets = received() - before;
    assert!(packets < 4_000_000 / 1448 / 2, "{packets} packets left the gateway");
    stage.gateway.stop();
    assert!(!merges("lan") && !merges("wan"));
    gateway.succeed("ethtool -K lan gro on");
    stage.gateway.restart();
    stage.gateway.stop();
    assert!(merges("lan") && !merges("wan"), "as it was found");
}
