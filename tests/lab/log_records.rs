//! What natgw records, as tests read it: a folder for its files, lines of JSON, and who had which endpoint when.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use nat_tests::{Metrics, Packet, gateway};
use serde_json::Value;

use crate::stage::Stage;

pub(crate) const SERVER: &str = "198.51.100.1:5000";
/// Host c gathers the records.
pub(crate) const COLLECTOR: &str = "192.168.1.12:4739";

/// A folder that goes with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("natgw-test-log-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).expect("make a folder");
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The standard set-up, its rule with more lines, and a log.
pub(crate) fn stage(rule: &str, log: &str) -> Stage {
    Stage::with(&format!("{}{rule}\n[log]\n{log}\n", gateway::STANDARD))
}

/// The lines of a JSON log.
pub(crate) fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The lines of a JSON log once there are so many.
pub(crate) fn awaited_lines(stage: &Stage, file: &Path, count: usize) -> Vec<Value> {
    stage.gateway.wait_until("the records are written", Duration::from_secs(10), |_| {
        fs::read_to_string(file).is_ok_and(|text| text.matches('\n').count() >= count)
    });
    lines(file)
}

pub(crate) fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("no {field} in {record}"))
}

/// A counter of natgw's.
pub(crate) fn counted(stage: &Stage, name: &str) -> f64 {
    Metrics::parse(&stage.gateway.text(&["metrics"])).expect("metrics").get(name)
}

/// One round's flows: endpoints of three hosts, three protocols, no endpoint twice.
pub(crate) fn flows(stage: &Stage, random: &mut u64, count: usize) -> Vec<Packet> {
    let mut draw = |below: u64| {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*random >> 33) % below
    };
    let mut taken = HashSet::new();
    (0..count)
        .map(|number| {
            loop {
                let host = format!("192.168.1.{}", 10 + draw(3));
                let port = u16::try_from(1024 + draw(60_000)).expect("a port");
                if !taken.insert((host.clone(), port, number % 3)) {
                    continue;
                }
                let from = format!("{host}:{port}");
                break match number % 3 {
                    0 => stage.udp(&from, SERVER),
                    1 => stage.syn(&from, SERVER),
                    _ => Packet::echo_request(host.as_str(), "198.51.100.1", port, 1).payload(from),
                };
            }
        })
        .collect()
}

/// Milliseconds since 1970 of the log's time.
fn milliseconds(time: &str) -> u128 {
    let time = humantime::parse_rfc3339(time).unwrap_or_else(|error| panic!("{error}: {time}"));
    time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis()
}

/// Who had an external endpoint, by protocol: from when, until when, and which inside endpoint.
pub(crate) type History<'a> = HashMap<(&'a str, &'a str), Vec<(u128, u128, &'a str)>>;

pub(crate) fn history<'a>(records: &'a [Value], kind: &str) -> History<'a> {
    let mut history = History::default();
    for record in records {
        let (event, at) = (text(record, "event"), milliseconds(text(record, "time")));
        let holders = history.entry((text(record, "protocol"), text(record, "outside"))).or_default();
        if event == format!("{kind}_created") {
            holders.push((at, u128::MAX, text(record, "inside")));
        } else if event == format!("{kind}_deleted") {
            let last = holders.last_mut().unwrap_or_else(|| panic!("deleted before it was made: {record}"));
            assert_eq!(last.2, text(record, "inside"));
            last.1 = at;
        }
    }
    history
}
