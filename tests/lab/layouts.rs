//! Tables of another version of natgw: moved where they are described, refused in words where they are not.

use std::{fmt::Write as _, fs, path::PathBuf};

use nat_tests::{Packet, gateway};

use crate::stage::{Stage, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// The sessions of a table with another layout, older or newer, are moved by its description, and its program goes on
/// until this one's takes its place.
#[test]
fn a_table_of_another_layout_is_moved() {
    for layout in ["v4", "v4000000"] {
        // No slots are lent, so that the first sessions are in the first lines.
        let mut stage = Stage::with(&format!("{}[limits]\ndelegated = 0\n", gateway::STANDARD));
        let udp = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
        let tcp = stage.connect("192.168.1.11:40001", SERVER);
        let ping = source(&stage.crosses(&Packet::echo_request("192.168.1.12", "198.51.100.1", 7, 1)));
        let ping_port: u16 = ping.rsplit(':').next().unwrap().parse().unwrap();
        let everything = |stage: &Stage, number: u16| {
            assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), udp);
            stage.reaches(&stage.udp(SERVER, &udp), &stage.a);
            stage.crosses(&stage.data("192.168.1.11:40001", SERVER));
            stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
            let echo = Packet::echo_reply("198.51.100.1", nat_tests::lab::P1, ping_port, number);
            stage.reaches(&echo.payload(number.to_be_bytes()), &stage.c);
        };
        (0..20).for_each(|number| everything(&stage, number));
        let listed = |stage: &Stage| {
            let sessions = stage.gateway.sessions();
            let text = |session: &serde_json::Value, field: &str| session[field].to_string();
            let each = sessions.iter().map(|session| {
                let fields = ["protocol", "inside", "outside", "remote", "direction", "state", "rule"];
                let packets = ["packets_out", "packets_in"].map(|field| session[field].as_u64().unwrap());
                (fields.map(|field| text(session, field)), packets)
            });
            let mut each: Vec<_> = each.collect();
            each.sort_by(|a, b| a.0.cmp(&b.0));
            each
        };
        let before = listed(&stage);
        stage.gateway.kill();
        let pins = as_another_layout(&stage, layout);
        everything(&stage, 20);
        stage.gateway.launch(&[]);
        // Not one packet is lost while it starts.
        let mut number = 21;
        while !stage.gateway.output(&["status"]).status.success() {
            assert_eq!(stage.gateway.ended(), None, "{}", stage.gateway.log());
            everything(&stage, number);
            number += 1;
        }
        everything(&stage, number);
        let after = listed(&stage);
        assert!(stage.gateway.log().contains("moved sessions"), "{}", stage.gateway.log());
        assert_eq!(before.len(), 3);
        for ((session, packets), (same, more)) in before.iter().zip(&after) {
            assert_eq!(session, same);
            let sum = |packets: &[u64; 2]| packets.iter().sum::<u64>();
            assert!(
                sum(packets) > 15 && sum(more) > sum(packets),
                "{session:?}: {packets:?} packets, then {more:?}"
            );
        }
        assert!(!pins.exists(), "its pins are gone");
        stage.carries_the_next();
        stage.gateway.kill();
        stage.gateway.restart();
        everything(&stage, number + 1);
    }
}

/// Whenever a daemon that moves sessions is killed, either table is whole, and the next goes on from there.
#[test]
fn a_move_that_is_cut_short_loses_nothing() {
    let mut stage = Stage::with(&format!("{}[limits]\ndelegated = 0\n", gateway::STANDARD));
    let udp = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    let everything = |stage: &Stage| {
        assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), udp);
        stage.reaches(&stage.udp(SERVER, &udp), &stage.a);
        stage.crosses(&stage.data("192.168.1.11:40001", SERVER));
        stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
    };
    for moment in 0..10 {
        stage.gateway.kill();
        as_another_layout(&stage, "v4");
        stage.gateway.launch(&[]);
        // A start is over after 0.2 s to 1.5 s, as the machine is.
        seconds(0.05 * f64::from(moment));
        stage.gateway.kill();
        everything(&stage);
        stage.gateway.restart();
        everything(&stage);
        assert_eq!(stage.session_count(), 2);
    }
    // Killed after the last of the other's pins, before its folder.
    stage.gateway.kill();
    let left = PathBuf::from(stage.gateway.pin("LINES")).parent().unwrap().with_file_name("v4");
    fs::create_dir(&left).unwrap();
    stage.gateway.restart();
    assert!(!left.exists());
    everything(&stage);
}

/// Writes the sessions of a dead daemon's table down in another layout, whose pins are at the place that is returned:
/// all fields elsewhere and twice as wide, entries of eight bytes, segments of two sessions. Its program is the old one.
fn as_another_layout(stage: &Stage, name: &str) -> PathBuf {
    let pins = PathBuf::from(stage.gateway.pin("LINES")).parent().unwrap().to_owned();
    let other = pins.with_file_name(name);
    fs::create_dir(&other).unwrap();
    let at = |map: &str| other.join(map).display().to_string();
    let bpftool = |words: String| stage.lab.gateway.succeed(&format!("bpftool {words}"));
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, " {byte:02x}").unwrap();
            text
        })
    };
    let update = |map: &str, key: usize, value: &[u8]| {
        let key = hex(&u32::try_from(key).unwrap().to_ne_bytes());
        bpftool(format!("map update pinned {} key hex{key} value hex{}", at(map), hex(value)));
    };
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap()) as usize;
    let own: Vec<(usize, usize)> = stage
        .gateway
        .map_entries("pinned", &stage.gateway.pin("LAYOUT"))
        .iter()
        .map(|(_, place)| (word(&place[..4]), word(&place[4..])))
        .filter(|(_, width)| *width > 0)
        .collect();
    let mut end = 128;
    let mut places = vec![own[0], (40, 8), (128, 256)];
    for (_, width) in &own[3..] {
        let width = (2 * width).min(8);
        end -= width;
        places.push((end, width));
    }
    bpftool(format!("map create {} type array key 4 value 8 entries 64 name LAYOUT", at("LAYOUT")));
    for (number, (place, width)) in places.iter().enumerate() {
        let [place, width] = [place, width].map(|value| u32::try_from(*value).unwrap().to_ne_bytes());
        update("LAYOUT", number, &[place, width].concat());
    }
    bpftool(format!("map create {} type array key 4 value 8 entries 1 name LEVEL flags 0x400", at("LEVEL")));
    update("LEVEL", 0, &16_384_u64.to_ne_bytes());
    for (map, value, entries, segments) in [("LINES", 256, 2, 3), ("INDEX", 64, 4096, 1)] {
        for segment in 0..segments {
            let pin = at(&format!("{map}-{segment}"));
            bpftool(format!(
                "map create {pin} type array key 4 value {value} entries {entries} name segment flags 0x400"
            ));
            if segment == 0 {
                let outer = at(map);
                bpftool(format!(
                    "map create {outer} type array_of_maps key 4 value 4 entries 64 name {map} inner_map pinned {pin}"
                ));
            }
            bpftool(format!(
                "map update pinned {} key hex {segment:02x} 00 00 00 value pinned {pin}",
                at(map)
            ));
        }
    }
    let segment = stage.gateway.first_segment("LINES");
    for place in 1..6_usize {
        let row = stage.gateway.bpftool(&[
            "map",
            "lookup",
            "id",
            &segment,
            "key",
            "hex",
            &format!("{place:02x}"),
            "0",
            "0",
            "0",
        ]);
        let bytes = row["value"]
            .as_array()
            .unwrap()
            .iter()
            .map(|byte| u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap());
        let lines: Vec<u8> = bytes.collect();
        if lines.iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut written = [0; 256];
        for direction in 0..2 {
            for ((from, width), (to, _)) in own.iter().zip(&places).skip(3) {
                let (from, to) = (64 * direction + from, 128 * direction + to);
                // Its higher half is zero, where a little-endian machine has it.
                written[to..to + width].copy_from_slice(&lines[from..from + width]);
            }
        }
        update(&format!("LINES-{}", place / 2), place % 2, &written);
        // Both directions' entries, in one bucket of eight, beyond the level.
        let entries = [2 * place, 2 * place + 1].map(|line| (0xabcd << 40 | line as u64).to_ne_bytes());
        let bucket = [entries.concat(), vec![0; 48]].concat();
        update("INDEX-0", 2048 + 5 * place, &bucket);
    }
    for pin in stage.gateway.pins() {
        if pin.starts_with("link-") {
            fs::rename(pins.join(&pin), other.join(&pin)).unwrap();
        }
    }
    fs::remove_dir_all(&pins).unwrap();
    other
}
