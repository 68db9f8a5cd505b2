//! Packets that are no packets.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::{Duration, SystemTime},
};

use nat_tests::{
    Decoded, Gateway, Packet, Tap, gateway,
    packet::{Mac, protocol, tcp},
};
use natgw::config::Config;

use crate::stage::{Stage, scaled, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";
const CLIENT_MAC: Mac = [2, 0, 0, 0, 1, 10];

/// Packets that a gateway must not carry: what is wrong, and the packet.
fn malformed(source: &str, destination: &str) -> Vec<(String, Packet)> {
    let udp = || Packet::udp(source, destination).payload("malformed");
    let address = |endpoint: &str| endpoint.split(':').next().unwrap().to_owned();
    let short = |number: u8, length: usize| {
        Packet::raw(address(source).as_str(), address(destination).as_str(), number)
            .payload(vec![0x50; length])
    };
    let tcp_of = |words: u8| {
        let segment = Packet::tcp(source, destination).syn(1).ip();
        let mut bytes = segment[20..].to_vec();
        bytes[12] = words << 4;
        short(6, 0).payload(bytes)
    };
    let mut packets = vec![
        ("no header at all".to_owned(), udp().version_and_ihl(0x40)),
        ("IHL below 5".to_owned(), udp().version_and_ihl(0x44)),
        ("IHL beyond the packet".to_owned(), udp().version_and_ihl(0x4f).total_length(37)),
        ("total length 0".to_owned(), udp().total_length(0)),
        ("total length below 20".to_owned(), udp().total_length(19)),
        ("total length beyond the frame".to_owned(), udp().total_length(1000)),
        ("version 5".to_owned(), udp().version_and_ihl(0x55)),
        ("a bad header checksum".to_owned(), udp().bad_ip_checksum()),
        ("a TCP header of 16 bytes".to_owned(), tcp_of(4)),
        ("a TCP header beyond the packet".to_owned(), tcp_of(6)),
        ("UDP that claims less than its header".to_owned(), udp().udp_length(7)),
        ("UDP that claims more than there is".to_owned(), udp().udp_length(500)),
        ("an option of length 0".to_owned(), udp().ip_options([0x44, 0, 0, 0])),
        ("an option of length 1".to_owned(), udp().ip_options([0x44, 1, 0, 0])),
        ("an option beyond the header".to_owned(), udp().ip_options([0x44, 40, 5, 0])),
        ("an option without a length".to_owned(), udp().ip_options([1, 1, 1, 0x44])),
        ("SYN with FIN".to_owned(), Packet::tcp(source, destination).flags(tcp::SYN | tcp::FIN)),
        ("SYN with RST".to_owned(), Packet::tcp(source, destination).flags(tcp::SYN | tcp::RST)),
        ("TCP without flags".to_owned(), Packet::tcp(source, destination)),
    ];
    for (name, number, header) in [("TCP", 6, 20), ("UDP", 17, 8), ("ICMP", 1, 8)] {
        packets
            .extend((0..header).map(|length| (format!("{name} of {length} bytes"), short(number, length))));
    }
    packets
}

/// First fragments without a whole header of their transport.
fn headless_fragments(source: &str, destination: &str) -> Vec<Packet> {
    let address = |endpoint: &str| endpoint.split(':').next().unwrap().to_owned();
    let (source, destination) = (address(source), address(destination));
    let of = |number: u8, length: usize| {
        let id = 0x4000 + u16::from(number) * 64 + u16::try_from(length).unwrap();
        Packet::raw(source.as_str(), destination.as_str(), number)
            .payload(vec![0x50; length])
            .id(id)
            .more_fragments()
    };
    (0..20)
        .map(|length| of(6, length))
        .chain((0..8).flat_map(|length| [of(17, length), of(1, length)]))
        .collect()
}

/// How many packets natgw says it has dropped.
fn dropped(gateway: &Gateway) -> u64 {
    gateway.drops().values().sum()
}

#[test]
fn mal_01_to_04_and_10_malformed_packets_go_nowhere() {
    let stage = Stage::with(&format!(
        "{}filtering = \"endpoint-independent\"\n[timeouts]\nfragment = \"1s\"\n",
        gateway::STANDARD
    ));
    stage.expect_bad_packets();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let is_of_wan = |seen: &Decoded| seen.ip.is_some();
    for (source, destination, from, to) in
        [(CLIENT, SERVER, &stage.a, &stage.wan), (SERVER, mapped.as_str(), &stage.wan, &stage.a)]
    {
        stage.wan.clear();
        to.clear();
        let (before, packets) = (dropped(&stage.gateway), malformed(source, destination));
        for (_, packet) in &packets {
            // From the provider's end of the link: its router would not carry them either.
            from.send(packet);
        }
        let headless = headless_fragments(source, destination);
        for packet in &headless {
            from.send(packet);
        }
        // And frames that end before their headers do.
        for length in [14, 15, 33] {
            from.send_frame(&packets[0].1.clone().between(CLIENT_MAC, from.next_hop()).build()[..length]);
        }
        to.expect_none("something malformed", is_of_wan);
        assert_eq!(stage.session_count(), 1, "something malformed made a session");
        // Each is counted once: the fragments perhaps only when nothing more of them came. Frames of 14
        // bytes and less are no packets, and padded on the way.
        let all = u64::try_from(packets.len() + headless.len()).unwrap();
        stage.gateway.wait_until("all are counted", Duration::from_secs(5), |gateway| {
            dropped(gateway) - before >= all
        });
        assert!(dropped(&stage.gateway) - before <= all + 3, "{:?}", stage.gateway.drops());
        stage.crosses(&stage.udp(CLIENT, SERVER));
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    }
    // UDP that is shorter than its packet passes, surplus and all.
    for (packet, tap) in [
        (stage.udp(CLIENT, SERVER).udp_length(12), &stage.s1),
        (stage.udp(SERVER, &mapped).udp_length(12), &stage.a),
    ] {
        let sent = stage.send(&packet.checksum(0));
        let seen = tap.expect("UDP with a surplus", |seen| seen.udp().is_some_and(|udp| udp.length == 12));
        assert_eq!(seen.ip().body[8..], sent.ip().body[8..], "the surplus is kept");
    }
    // What may not open a connection passes on one that is open, or does not: it makes none.
    for flags in [tcp::SYN | tcp::FIN, tcp::SYN | tcp::RST, 0, 0xff] {
        stage.a.send(&Packet::tcp("192.168.1.10:40001", "198.51.100.2:80").flags(flags));
    }
    stage.s2.expect_silence();
    assert_eq!(stage.session_count(), 1);
}

#[test]
fn mal_05_the_reserved_bit_passes_unchanged() {
    let stage = Stage::standard();
    let evil = |packet: Packet| packet.fragment_offset(0).reserved();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    for _ in 0..2 {
        let seen = stage.crosses(&evil(stage.udp(CLIENT, SERVER)));
        assert_eq!(seen.ip().header[6], 0x80, "{seen}");
        let seen = stage.reaches(&evil(stage.udp(SERVER, &mapped)), &stage.a);
        assert_eq!(seen.ip().header[6], 0x80, "{seen}");
        // As the first packet of its flow, too.
        stage.crosses(&evil(stage.udp("192.168.1.11:40001", "198.51.100.2:9")));
        stage.gateway.text(&["session", "delete", "--inside", "192.168.1.11"]);
    }
}

#[test]
fn mal_06_protocols_without_ports() {
    for numbers in [[0, 255], [41, 4], [2, 47]] {
        let stage = Stage::standard();
        for number in numbers {
            let payload = vec![number; 24];
            let packet = |from: &str, to: &str| Packet::raw(from, to, number).payload(&payload);
            // One host behind the address may speak it to a remote; what comes back is that host's.
            let seen = stage.crosses(&packet("192.168.1.10", "198.51.100.1"));
            assert_eq!(seen.ip().source, nat_tests::lab::P1, "protocol {number}");
            stage.reaches(&packet("198.51.100.1", "203.0.113.1"), &stage.a);
            stage.wan.clear();
            // A second one cannot be told apart, and goes nowhere: least of all untranslated.
            stage.stopped(&packet("192.168.1.11", "198.51.100.1"), &stage.wan);
            stage.b.expect("ICMP 3/13", |seen| {
                seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 13))
            });
            // Nor does it come in from anybody else.
            stage.attacker.send(&packet("198.51.100.66", "203.0.113.1"));
            let comes = |seen: &Decoded| seen.ip.as_ref().is_some_and(|ip| ip.protocol == number);
            for tap in [&stage.a, &stage.b, &stage.c] {
                tap.expect_none("an uninvited packet", comes);
            }
        }
        stage.crosses(&stage.udp(CLIENT, SERVER));
    }
}

#[test]
fn inv_07_each_dropped_packet_has_one_reason() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let unknown = Packet::udp("203.0.113.1:50000", SERVER).ip();
    let cases = [
        ("a stranger's datagram", &stage.attacker, stage.udp("198.51.100.66:9", &mapped)),
        ("an error about nothing known", &stage.s1, {
            Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, &unknown)
        }),
        ("a bad header checksum", &stage.a, stage.udp(CLIENT, SERVER).bad_ip_checksum()),
        ("a header of less than 20 bytes", &stage.a, stage.udp(CLIENT, SERVER).version_and_ihl(0x44)),
        ("an inside address from outside", &stage.s1, stage.udp(SERVER, "192.168.1.10:9")),
    ];
    for (what, tap, packet) in cases {
        let before = stage.gateway.drops();
        tap.send(&packet);
        let counted = |gateway: &Gateway| {
            let after = gateway.drops();
            let more = after.iter().map(|(reason, count)| count - before.get(reason).unwrap_or(&0));
            more.sum::<u64>()
        };
        stage.gateway.wait_until(what, Duration::from_secs(10), |gateway| counted(gateway) > 0);
        assert_eq!(counted(&stage.gateway), 1, "{what}: {before:?}, then {:?}", stage.gateway.drops());
    }
}

#[test]
fn mal_07_addresses_that_are_nobodys() {
    let stage = Stage::with(&gateway::STANDARD.replace("source = [\"192.168.0.0/16\"]\n", ""));
    for source in ["0.0.0.0:9", "127.0.0.1:9", "224.0.0.1:9", "255.255.255.255:9", "240.0.0.1:9"] {
        stage.a.send(&Packet::udp(source, SERVER).payload("from nobody"));
    }
    for destination in ["0.0.0.0:9", "127.0.0.1:9", "240.0.0.1:9"] {
        stage.a.send(&Packet::udp(CLIENT, destination).payload("to nobody"));
    }
    stage.wan.expect_silence();
    assert_eq!(stage.session_count(), 0);
    stage.carries_the_next();
}

/// Chance that a failed run can be repeated with: xorshift.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    /// Seeded by the clock, or by `NATGW_SEED`.
    fn new() -> Self {
        let given = std::env::var("NATGW_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock =
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |now| now.as_secs());
        let seed = given.unwrap_or_else(clock);
        println!("NATGW_SEED={seed} repeats this run");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    fn of<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len())]
    }

    /// Turns bits over, cuts, lengthens or repeats; the first `keep` bytes stay.
    fn mutate(&mut self, bytes: &[u8], keep: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(6) {
            if bytes.len() <= keep {
                bytes.push(0);
            }
            let at = keep + self.below(bytes.len() - keep);
            match self.below(8) {
                0 => bytes.truncate(at.max(keep)),
                1 => bytes.extend(vec![self.next().to_be_bytes()[0]; self.below(40)]),
                2 => bytes[at] = *self.of(&[0, 1, 0x7f, 0x80, 0xff]),
                _ => bytes[at] ^= 1 << self.below(8),
            }
        }
        bytes
    }
}

/// Of a process, in KiB.
fn resident(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Valid frames of every kind, from one end to the other.
fn valid_frames(source: &str, destination: &str, quoted: (&str, &str), from: Mac, to: Mac) -> Vec<Vec<u8>> {
    let host = |endpoint: &str| endpoint.split(':').next().unwrap().to_owned();
    let (own, other) = (host(source), host(destination));
    let (own, other) = (own.as_str(), other.as_str());
    let quote = Packet::udp(quoted.0, quoted.1).payload("quoted").ip();
    let packets = [
        Packet::udp(source, destination).payload("a datagram"),
        Packet::tcp(source, destination).syn(1).tcp_options([2, 4, 5, 0xb4]),
        Packet::tcp(source, destination).seq(2).ack(5).payload("a segment"),
        Packet::echo_request(own, other, 7, 1).payload("ping"),
        Packet::echo_reply(own, other, 7, 1).payload("pong"),
        Packet::icmp_error(own, other, 3, 3, &quote),
        Packet::icmp_error(own, other, 3, 4, &quote).rest(0, 1400),
        Packet::udp(source, destination).payload([7; 64]).more_fragments(),
        Packet::udp(source, destination).payload([7; 64]).fragment_offset(9),
        Packet::udp(source, destination).ip_options([7, 7, 4, 0, 0, 0, 0]).payload("with an option"),
        Packet::raw(own, other, protocol::GRE).payload([0; 24]),
    ];
    packets.map(|packet| packet.between(from, to).build()).to_vec()
}

/// In the normal run a hundredth of the row's frames.
#[test]
fn mal_08_mutated_frames() {
    let frames = scaled(100_000, 10_000_000);
    let rounds = frames / 10_000;
    let limits = "filtering = \"endpoint-independent\"\n[limits]\nsessions = 4096\n[timeouts]\nfragment = \"1s\"\nquarantine = \"0s\"\n";
    let stage = Stage::with(&format!("{}{limits}", gateway::STANDARD));
    stage.expect_bad_packets();
    // Forged sources that a flipped bit makes up are answered by the gateway's own stack, unless it looks.
    for interface in ["all", "lan", "wan"] {
        stage.lab.gateway.sysctl(&format!("ipv4.conf.{interface}.rp_filter"), "1");
    }
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let Stage { a, wan, lab, .. } = &stage;
    let inside = valid_frames(CLIENT, SERVER, (SERVER, CLIENT), lab.a.mac, lab.a.next_hop);
    let outside = valid_frames(SERVER, &mapped, (&mapped, SERVER), lab.isp.mac, lab.isp.next_hop);
    let process = stage.gateway.id();
    let mut chance = Chance::new();
    let mut settled = 0;
    for round in 0..rounds {
        for frame in 0..frames / rounds {
            // Both Ethernet addresses stay, or nothing would get to the gateway.
            for (tap, frames) in [(a, &inside), (wan, &outside)] {
                let mut mutated = chance.mutate(chance.clone().of(frames), 12);
                // No interface sends less than a header.
                mutated.resize(mutated.len().max(14), 0);
                tap.send_frame(&mutated);
            }
            if frame % 256 == 0 {
                [a, wan, &stage.s1].into_iter().for_each(Tap::drain);
            }
        }
        for seen in wan.incoming(|seen| seen.ip.is_some()) {
            let ip = seen.ip();
            let quoted = seen
                .icmp()
                .and_then(|icmp| icmp.quoted.as_deref())
                .is_some_and(|quoted| quoted.source.is_private() || quoted.destination.is_private());
            let own = ip.source == nat_tests::lab::P1;
            assert!(own && !ip.destination.is_private() && !quoted, "INV-3: {seen}");
        }
        for tap in [a, &stage.b, &stage.c, wan, &stage.s1, &stage.s2, &stage.s3, &stage.attacker] {
            tap.clear();
        }
        stage.gateway.text(&["session", "flush"]);
        let now = resident(&stage.gateway);
        if round == 2 {
            settled = now;
        }
        assert!(settled == 0 || now < settled + 4096, "{now} KiB, {settled} KiB before");
        assert!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))).starts_with("203.0.113.1:"));
    }
    assert_eq!(stage.gateway.id(), process);
    assert!(!stage.gateway.log().contains("panicked"), "{}", stage.gateway.log());
}

/// Bytes as bpftool takes them.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Scaled: thousands of each.
#[test]
fn mal_09_mutated_requests_configurations_and_saved_state() {
    let mut stage = Stage::standard();
    let mut chance = Chance::new();
    // The control socket.
    let requests = [
        r#"{"version":1,"request":{"verb":"status"}}"#,
        r#"{"version":1,"request":{"verb":"session-list","filter":{"protocol":"udp","inside":"192.168.1.10"}}}"#,
        r#"{"version":1,"request":{"verb":"session-delete","filter":{"outside":"203.0.113.1:40000"}}}"#,
        r#"{"version":1,"request":{"verb":"pool-list"}}"#,
        r#"{"version":2,"request":{"verb":"rule-list"}}"#,
    ];
    for _ in 0..2000 {
        let request = chance.mutate(chance.clone().of(&requests).as_bytes(), 0);
        let mut client = UnixStream::connect(stage.gateway.socket()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // It may hang up on what it does not understand.
        let _ = client.write_all(&request).and_then(|()| client.write_all(b"\n"));
        let _ = client.shutdown(Shutdown::Write);
        let _ = client.read_to_end(&mut Vec::new());
    }
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    // The configuration, by the parser that the daemon and `natgw check` share.
    let examples = [
        gateway::STANDARD,
        include_str!("../../examples/office.toml"),
        include_str!("../../examples/port-forwards.toml"),
    ];
    let mut refused = 0;
    for _ in 0..4000 {
        let text = chance.mutate(chance.clone().of(&examples).as_bytes(), 0);
        refused += u32::from(Config::parse(&String::from_utf8_lossy(&text), "mutated").is_err());
    }
    assert!(refused > 1000, "only {refused} of the mutated files are refused");
    // Through the daemon: refused as a whole.
    for _ in 0..50 {
        let text = chance.mutate(gateway::STANDARD.as_bytes(), 0);
        stage.gateway.configure(&format!("{}\n[nonsense]\n", String::from_utf8_lossy(&text)));
        assert_eq!(stage.gateway.output(&["reload"]).status.code(), Some(1));
    }
    stage.gateway.configure(gateway::STANDARD);
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    // The state that a killed daemon leaves for the next: pinned maps.
    stage.connect("192.168.1.11:40001", SERVER);
    stage.gateway.kill();
    let mut batch = Vec::new();
    let segments = ["INDEX", "LINES"].map(|name| ("id", stage.gateway.first_segment(name)));
    for (by, map_name) in [segments[0].clone(), segments[1].clone(), ("pinned", stage.gateway.pin("HOPS"))] {
        let map = stage.gateway.bpftool(&["map", "show", by, &map_name]);
        let size = |field: &str| map[field].as_u64().unwrap().try_into().unwrap();
        let (key, value): (usize, usize) = (size("bytes_key"), size("bytes_value"));
        assert_eq!(key, size_of::<u32>(), "arrays all");
        for index in 0..500_u32 {
            let key = (index % 64).to_ne_bytes();
            let garbage: Vec<u8> = (0..value).map(|_| chance.next().to_be_bytes()[0]).collect();
            batch.push(format!(
                "map update {by} {map_name} key hex {} value hex {}\n",
                hex(&key),
                hex(&garbage)
            ));
        }
        // What is there, with bits turned over.
        let known: Vec<(Vec<u8>, Vec<u8>)> = stage.gateway.map_entries(by, &map_name);
        let live = known.iter().filter(|(_, value)| value.iter().any(|byte| *byte != 0));
        for (key, value) in live {
            let mut changed = chance.mutate(value, 0);
            changed.resize(value.len(), 0);
            batch.push(format!(
                "map update {by} {map_name} key hex {} value hex {}\n",
                hex(key),
                hex(&changed)
            ));
        }
    }
    let file = stage.gateway.configuration().with_file_name("batch");
    fs::write(&file, batch.concat()).unwrap();
    stage.lab.gateway.run(&format!("bpftool -f batch file {}", file.display()));
    stage.gateway.restart();
    // What it finds there may make no sense; what it lists has to, and new traffic is translated.
    for session in stage.gateway.sessions() {
        assert!(session["expires_in"].as_u64().is_some(), "{session}");
    }
    stage.gateway.text(&["session", "flush"]);
    assert_eq!(stage.session_count(), 0);
    let seen = stage.crosses(&stage.udp("192.168.1.12:40002", "198.51.100.2:9"));
    assert_eq!(seen.ip().source, nat_tests::lab::P1);
    stage.reaches(&stage.udp("198.51.100.2:9", &source(&seen)), &stage.c);
    assert!(!stage.gateway.log().contains("panicked"), "{}", stage.gateway.log());
}
