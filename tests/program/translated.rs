//! Packets of a session: every protocol, every header length, both ways; and what a flow alone does not decide.

use nat_common::Reason;
use nat_tests::{
    Packet, checksum,
    packet::{Endpoint, protocol, tcp},
};

use crate::{
    fixture::{Fixture, check, lan, tap, wan},
    stage::SMALL,
};

const CLIENT: &str = "192.168.1.10:40000";
const PUBLIC: &str = "203.0.113.1:61000";
const SERVER: &str = "198.51.100.1";

/// The packet that a session carries, given who sends it to whom, port or id last.
type Write = Box<dyn Fn(&str, &str) -> Packet>;

fn port(endpoint: &str) -> u16 {
    let Endpoint(endpoint) = endpoint.into();
    endpoint.port()
}

fn write(packet: impl Fn(&str, &str) -> Packet + 'static) -> Write {
    Box::new(packet)
}

/// A packet of a session on its way out and one on its way back. `write` gets the client's side first; `answer`
/// the server's.
fn both_ways(name: &str, remote: u16, request: &Write, answer: &Write) -> [Fixture; 2] {
    let server = format!("{SERVER}:{remote}");
    let [out, sent] = [CLIENT, PUBLIC].map(|client| request(client, &server));
    let [back, delivered] = [PUBLIC, CLIENT].map(|client| answer(&server, client));
    [
        lan(format!("{name}, out"), out.ttl(64)).sent(sent.ttl(63)),
        wan(format!("{name}, back"), back.ttl(64)).sent(delivered.ttl(63)),
    ]
}

fn udp(payload: &'static [u8]) -> Write {
    write(move |from, to| Packet::udp(from, to).payload(payload))
}

/// Every protocol, as it is asked and answered.
fn protocols() -> Vec<(&'static str, u16, Write, Write)> {
    let segment = || {
        write(|from, to| {
            Packet::tcp(from, to).seq(0xfff0_0000).ack(7).flags(tcp::PSH | tcp::ACK).payload(b"some data")
        })
    };
    let lite = || write(|from, to| Packet::udplite(from, to).payload(b"some voice"));
    let tunnelled = || {
        let bare = |endpoint: &str| Endpoint::from(endpoint).0.ip().to_owned();
        write(move |from, to| Packet::raw(bare(from), bare(to), protocol::GRE).payload([0, 0, 8, 0, 1, 2, 3]))
    };
    vec![
        ("UDP", 53, udp(b"a question"), udp(b"an answer")),
        ("UDP-Lite", 53, lite(), lite()),
        ("TCP", 80, segment(), segment()),
        (
            "echo",
            0,
            write(|from, to| Packet::echo_request(from, to, port(from), 9).payload(b"ping")),
            write(|from, to| Packet::echo_reply(from, to, port(to), 9).payload(b"ping")),
        ),
        ("GRE", 0, tunnelled(), tunnelled()),
    ]
}

#[test]
fn cks_05_every_protocol_both_ways() {
    check(
        protocols()
            .iter()
            .flat_map(|(name, remote, ask, answer)| both_ways(name, *remote, ask, answer))
            .collect(),
    );
}

#[test]
fn rtr_18_every_header_length() {
    let mut fixtures = Vec::new();
    for length in (4..=40).step_by(4) {
        for (name, remote, ask, answer) in protocols() {
            // A timestamp option of that length, or no-operations where it would be too short for one.
            let option = if length < 8 { vec![1; length] } else { timestamp(length) };
            let (first, second) = (option.clone(), option);
            let ask = write(move |from, to| ask(from, to).ip_options(&first));
            let answer = write(move |from, to| answer(from, to).ip_options(&second));
            fixtures.extend(both_ways(
                &format!("{name} behind {length} bytes of options"),
                remote,
                &ask,
                &answer,
            ));
        }
    }
    check(fixtures);
}

fn timestamp(length: usize) -> Vec<u8> {
    let mut option = vec![0x5a; length];
    option[0..4].copy_from_slice(&[68, u8::try_from(length).expect("at most 40"), 5, 0]);
    option
}

/// Changes a packet's field.
type Change = fn(Packet) -> Packet;

#[test]
fn inv_4_header_fields_stay() {
    let fields: [(&str, Change); 4] = [
        ("TOS and DF", |packet| packet.tos(0xb9).df()),
        ("id 0", |packet| packet.id(0).df()),
        ("id ffff", |packet| packet.id(0xffff)),
        ("an empty datagram", |packet| packet.payload(b"")),
    ];
    let mut fixtures = Vec::new();
    for (name, change) in fields {
        let change = move || write(move |from, to| change(Packet::udp(from, to).payload(b"odd")));
        fixtures.extend(both_ways(name, 53, &change(), &change()));
    }
    let syn = || {
        write(|from, to| Packet::tcp(from, to).syn(1).tcp_options([2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7, 0, 0]))
    };
    fixtures.extend(both_ways("a SYN with options", 80, &syn(), &syn()));
    let odd = || write(|from, to| Packet::tcp(from, to).flags(0xff).window(0));
    fixtures.extend(both_ways("every flag at once", 80, &odd(), &odd()));
    check(fixtures);
}

#[test]
fn icq_09_an_ethernet_trailer_is_no_part_of_the_packet() {
    check(
        both_ways("padded", 53, &udp(b""), &udp(b""))
            .map(|fixture| {
                let padded = fixture.clone().trailed_by(&[0xee; 18]);
                match fixture.verdict {
                    crate::fixture::Verdict::Sent(mut bytes) => {
                        bytes.extend([0xee; 18]);
                        Fixture { verdict: crate::fixture::Verdict::Sent(bytes), ..padded }
                    }
                    _ => unreachable!("both ways are sent"),
                }
            })
            .into(),
    );
}

#[test]
fn cks_01_udp_without_a_checksum_stays_without() {
    let without = || write(|from, to| Packet::udp(from, to).checksum(0).payload(b"none"));
    check(both_ways("no checksum", 53, &without(), &without()).into());
}

#[test]
fn cks_02_a_computed_zero_is_sent_as_all_ones() {
    let from_client = Packet::udp(CLIENT, "198.51.100.1:5000").payload([0xe9, 0xda]);
    let sent = Packet::udp("203.0.113.1:40000", "198.51.100.1:5000").payload([0xe9, 0xda]).ttl(63);
    let field = |packet: &Packet| checksum::internet(&[&packet.ip()[26..28]]);
    assert_eq!((!field(&from_client), !field(&sent)), (0x7a4f, 0xffff), "the vector of behaviour CKS-02");
    check(vec![lan("computed zero", from_client).sent(sent)]);
}

#[test]
fn cks_06_a_corrupt_checksum_arrives_corrupt() {
    let mut fixtures = Vec::new();
    for (name, remote, ask, answer) in protocols() {
        // Wrong by the same amount before and after: 1 more, unless that carries.
        let ask = write(move |from, to| wrong_by_one(&ask(from, to)));
        let answer = write(move |from, to| wrong_by_one(&answer(from, to)));
        fixtures.extend(both_ways(&format!("{name}, corrupt"), remote, &ask, &answer));
    }
    check(fixtures);
}

/// The packet with a transport checksum that is one too high; one that has none as it is.
fn wrong_by_one(packet: &Packet) -> Packet {
    let bytes = packet.ip();
    let at = match bytes[9] {
        protocol::TCP => 36,
        protocol::UDP | protocol::UDPLITE => 26,
        protocol::ICMP => 22,
        _ => return packet.clone(),
    };
    let right = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    assert!((1..0xfffe).contains(&right), "{right:04x}: another payload is needed");
    packet.clone().checksum(right + 1)
}

#[test]
fn rtr_01_what_a_flow_alone_does_not_decide() {
    let from = |port: u16| Packet::udp(("192.168.1.10", port), "198.51.100.1:53");
    let fits = usize::from(SMALL) - 28;
    let sent = |port: u16| Packet::udp(("203.0.113.1", port), "198.51.100.1:53").ttl(63);
    check(vec![
        lan("TTL 2", from(40000).ttl(2)).sent(sent(61000).ttl(1)),
        lan("TTL 255", from(40000).ttl(255)).sent(sent(61000).ttl(254)),
        lan("TTL 1 is the daemon's to answer", from(40000).ttl(1)).punted(),
        lan("TTL 0 is the daemon's to drop", from(40000).ttl(0)).punted(),
        lan("as big as fits", from(40001).payload(vec![7; fits])).sent(sent(61001).payload(vec![7; fits])),
        lan("a byte too big", from(40001).payload(vec![7; fits + 1])).punted(),
        lan("a byte too big, DF", from(40001).payload(vec![7; fits + 1]).df()).punted(),
        lan("no neighbour yet", from(40002)).punted(),
        lan("a way out without redirects", from(40003)).left_to_the_stack(),
        lan("a way out that is gone", from(40004)).dropped(Reason::DropTransmit),
        lan("judged to be plain routing", Packet::udp("192.168.1.10:40005", "198.51.101.9:53")).passed(),
    ]);
}

#[test]
fn cks_08_a_partial_checksum_is_the_stacks_to_finish() {
    let datagram = Packet::udp(CLIENT, "198.51.100.1:53").payload(b"left to an offload");
    let segment = Packet::tcp(CLIENT, "198.51.100.1:80").ack(1).payload(b"left to an offload");
    let partial = |packet: &Packet| {
        let bytes = packet.ip();
        let [source, destination] =
            [12, 16].map(|at| <[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four").into());
        !checksum::internet(&[&checksum::pseudo_header(source, destination, bytes[9], bytes.len() - 20)])
    };
    let unfinished = |packet: &Packet| packet.clone().checksum(partial(packet));
    let sent = Packet::udp(PUBLIC, "198.51.100.1:53").payload(b"left to an offload").ttl(63);
    check(vec![
        tap("UDP", unfinished(&datagram)).left_to_the_stack(),
        tap("TCP", unfinished(&segment)).left_to_the_stack(),
        tap("a complete one", datagram.clone()).sent(sent),
        // A physical NIC hands up none: there it is a wrong checksum like any other.
        lan("UDP on a physical NIC", unfinished(&datagram)),
        lan("TCP on a physical NIC", unfinished(&segment)),
    ]);
}
