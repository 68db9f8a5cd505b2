//! Starts and ends, also sudden ones: what is taken over, what is loaded anew, what is left.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use nat_tests::{Gateway, Lab, Packet, gateway};

use crate::stage::{Stage, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// SIGKILL at thirty moments, most of them of a start, under packets of every kind of flow; the thousand are
/// `cargo xtask torture`'s.
#[test]
fn killed_at_thirty_moments_nothing_established_is_lost() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    let ping = source(&stage.crosses(&Packet::echo_request("192.168.1.12", "198.51.100.1", 7, 1)));
    let ping_port: u16 = ping.rsplit(':').next().unwrap().parse().unwrap();
    let mut outside: HashMap<String, String> = HashMap::new();
    for moment in 0..30_u16 {
        stage.gateway.launch(&[]);
        let moment_of_start = Duration::from_millis(u64::from(moment) * 37 % 500);
        // Every third lives until it serves, and dies soon after.
        let serves = moment.is_multiple_of(3);
        let (launched, mut first) = (Instant::now(), None);
        let mut number = 0_u16;
        loop {
            // New flows, which may be half written down when the end comes.
            let client = format!("192.168.1.10:{}", 20_000 + moment * 64 + number % 64);
            let opened = stage.send(&stage.udp(&client, "198.51.100.2:9"));
            let seen =
                stage.s2.recv_matching(Duration::from_millis(2), |seen| seen.payload() == opened.payload());
            if let Some(seen) = seen {
                outside.insert(client, source(&seen.decoded));
                first.get_or_insert_with(Instant::now);
            }
            number += 1;
            let lives_on = match first {
                _ if !serves => launched.elapsed() < moment_of_start,
                Some(first) => first.elapsed() < Duration::from_millis(u64::from(moment)),
                None => launched.elapsed() < Duration::from_secs(20),
            };
            if !lives_on {
                break;
            }
        }
        stage.gateway.kill();
        stage.crosses(&stage.udp(CLIENT, SERVER));
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        stage.crosses(&stage.data("192.168.1.11:40001", SERVER));
        stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
        let echo = Packet::echo_reply("198.51.100.1", nat_tests::lab::P1, ping_port, moment);
        stage.reaches(&echo.payload(moment.to_be_bytes()), &stage.c);
    }
    stage.gateway.restart();
    // Who had an endpoint has it still, and nobody else.
    assert!(!outside.is_empty(), "no new flow was ever opened");
    let mut owners = HashMap::new();
    for session in stage.gateway.sessions() {
        let text = |field: &str| session[field].as_str().unwrap().to_owned();
        let owner =
            owners.entry((text("protocol"), text("outside"))).or_insert_with(|| text("inside")).clone();
        assert_eq!(owner, text("inside"), "{session}");
    }
    for (client, endpoint) in outside.iter().take(100) {
        assert_eq!(&source(&stage.crosses(&stage.udp(client, "198.51.100.2:9"))), endpoint, "{client}");
    }
}

/// Started in the moment that the last one is gone, while the kernel still has its `AF_XDP` sockets: it waits for them.
/// Found by `cargo xtask torture`.
#[test]
fn a_start_right_after_the_end_finds_its_queues_free() {
    let mut stage = Stage::standard();
    stage.gateway.keep_fast_path();
    stage.gateway.restart();
    for round in 0..8 {
        // Some work for those who clean up.
        let address = format!("198.51.100.1:{}", 100 + round);
        stage.send(&stage.udp(CLIENT, &address));
        if round % 2 == 0 {
            stage.gateway.stop();
        } else {
            stage.gateway.kill();
        }
        stage.gateway.restart();
    }
    stage.carries_the_next();
}

/// Kept, it leaves its pins; ended without, nothing.
#[test]
fn what_was_kept_is_taken_along_by_the_next_that_is_not() {
    let lab = Lab::standard();
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    gateway.keep_fast_path();
    gateway.restart();
    gateway.stop();
    assert!(gateway.pins().iter().any(|pin| pin.starts_with("link-xdp")), "{:?}", gateway.pins());
    gateway.drop_fast_path();
    gateway.restart();
    gateway.stop();
    assert!(gateway.pins().is_empty(), "{:?}", gateway.pins());
    let links = lab.gateway.succeed("ip -details link show");
    assert!(!links.contains("prog/xdp"), "{links}");
}

/// What a start takes over is not loaded anew: having the verifier walk it again was four fifths of the time.
#[test]
fn new_flows_work_soon_after_a_start() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let loaded = programs(&stage);
    let mut times = Vec::new();
    for round in 0..8_u16 {
        stage.gateway.kill();
        seconds(0.1);
        let start = Instant::now();
        stage.gateway.launch(&[]);
        // Of a host that the daemon knows nothing of.
        let opened = (0_u16..).find_map(|number| {
            assert!(start.elapsed() < Duration::from_secs(20), "no new flow");
            let sent =
                stage.send(&stage.udp(&format!("192.168.1.12:{}", 2000 * (round + 1) + number), SERVER));
            let is_it = |seen: &nat_tests::Decoded| seen.payload() == sent.payload();
            stage.s1.recv_matching(Duration::from_millis(2), is_it)
        });
        times.push(opened.expect("one gets through").at.duration_since(start));
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        stage.gateway.wait_until("it answers", Duration::from_secs(8), |gateway| gateway.socket().exists());
        assert_eq!(programs(&stage), loaded);
    }
    println!("from a start to a new flow: {times:?}");
    // Others may be busy on this machine; they are not all the time.
    assert!(times.iter().min() < Some(&Duration::from_millis(300)), "{times:?}");
}

/// Another build has programs of its own, which take the others' places and pins; the tables stay.
#[test]
fn another_build_loads_its_own_programs() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let (loaded, pins) = (programs(&stage), stage.gateway.pins());
    let original = stage.gateway.program().to_owned();
    let other = stage.gateway.configuration().with_file_name("natgw-of-another-build");
    let mut binary = fs::read(&original).unwrap();
    // The object in it: 64 bits, little-endian, for BPF (247). The last byte of its identification is padding.
    let is_object = |at: &usize| {
        binary[*at..].starts_with(b"\x7fELF\x02\x01") && binary.get(at + 18..at + 20) == Some(&[247, 0])
    };
    let object = (1..binary.len() - 64).find(is_object).expect("natgw has an object for BPF");
    binary[object + 15] ^= 1;
    fs::write(&other, binary).unwrap();
    fs::set_permissions(&other, PermissionsExt::from_mode(0o755)).unwrap();
    for program in [&other, &original] {
        stage.gateway.use_program(program);
        stage.gateway.kill();
        stage.gateway.restart();
        assert!(programs(&stage).is_disjoint(&loaded));
        assert_eq!(stage.gateway.pins().len(), pins.len(), "{:?}", stage.gateway.pins());
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        stage.carries_the_next();
    }
    assert_eq!(stage.gateway.pins(), pins);
}

/// The programs on the gateway's interfaces, by their numbers.
fn programs(stage: &Stage) -> HashSet<u64> {
    let attached = stage.lab.gateway.succeed("bpftool -j net show");
    let attached: serde_json::Value = serde_json::from_str(&attached).unwrap();
    let mut found = HashSet::new();
    let mut values = vec![&attached];
    while let Some(value) = values.pop() {
        for name in ["id", "prog_id"] {
            found.extend(value[name].as_u64());
        }
        values.extend(value.as_array().into_iter().flatten());
        values.extend(value.as_object().into_iter().flat_map(|fields| fields.values()));
    }
    assert!(!found.is_empty(), "{attached}");
    found
}

/// What the next configuration does not name any more is let go of.
#[test]
fn an_interface_that_is_configured_no_more_has_no_program_after_the_start() {
    let lab = Lab::builder().second_uplink().build();
    let second = "[[interface]]\nname = \"wan2\"\nside = \"outside\"\n";
    let mut gateway = Gateway::start(&lab, &format!("{}{second}", gateway::STANDARD));
    let attached =
        |name: &str| lab.gateway.succeed(&format!("ip -details link show {name}")).contains("prog/xdp");
    assert!(attached("wan") && attached("wan2"));
    gateway.kill();
    gateway.configure(gateway::STANDARD);
    gateway.restart();
    assert!(attached("wan") && !attached("wan2"));
}

/// Whatever a start does to the tables, packets of known flows go on the way that they went, past the daemon, which may
/// be killed just then; and slots of next hops are not used up.
#[test]
fn a_takeover_takes_no_packet_of_a_known_flow_out_of_its_way() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    let lan = "[[interface]]\nname = \"lan\"\nside = \"inside\"\n";
    let wan = "[[interface]]\nname = \"wan\"\nside = \"outside\"\n";
    let rules = "[[snat]]\nto = \"masquerade\"\n";
    let (mut highest, mut crossed) = (0, 0);
    for round in 0..12 {
        stage.gateway.kill();
        let before = punted(&stage);
        // The other order: what had been the place of one in the table of devices is the other's in the file.
        let order = if round % 2 == 0 { [wan, lan] } else { [lan, wan] };
        stage.gateway.configure(&format!("{}{rules}", order.concat()));
        stage.gateway.launch(&[]);
        let launched = Instant::now();
        while !stage.gateway.output(&["status"]).status.success() {
            assert!(launched.elapsed() < Duration::from_secs(20), "{}", stage.gateway.log());
            stage.crosses(&stage.udp(CLIENT, SERVER));
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            crossed += 1;
        }
        assert_eq!(punted(&stage), before, "packets that went up in round {round}");
        stage.carries_the_next();
        highest = highest.max(highest_hop(&stage));
    }
    assert!(crossed > 12, "traffic passes while natgw starts");
    assert!(highest < 16, "slot {highest} of next hops, of which there are five");
}

/// Packets that went up to the daemon so far, whichever it was.
fn punted(stage: &Stage) -> u64 {
    let key = (nat_common::Reason::Punted as u32).to_ne_bytes().map(|byte| byte.to_string());
    let pin = stage.gateway.pin("COUNTERS");
    let mut words = vec!["map", "lookup", "pinned", &pin, "key"];
    words.extend(key.iter().map(String::as_str));
    let found = stage.gateway.bpftool(&words);
    let values = found["values"].as_array().unwrap_or_else(|| panic!("{found}"));
    let values = values.iter().map(|of_cpu| {
        let bytes = of_cpu["value"].as_array().unwrap().iter();
        let bytes = bytes
            .map(|byte| u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap());
        u64::from_ne_bytes(bytes.collect::<Vec<u8>>().try_into().unwrap())
    });
    values.sum()
}

/// The last slot of next hops that has ever been written.
fn highest_hop(stage: &Stage) -> u32 {
    let pin = stage.gateway.pin("HOPS");
    let is_written = |slot: &u32| {
        let key = slot.to_ne_bytes().map(|byte| byte.to_string());
        let mut words = vec!["map", "lookup", "pinned", &pin, "key"];
        words.extend(key.iter().map(String::as_str));
        stage.gateway.bpftool(&words)["value"].as_array().unwrap().iter().any(|byte| byte != "0x00")
    };
    (1..100).rev().find(is_written).unwrap_or(0)
}
