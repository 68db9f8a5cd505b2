//! A packet as it is told of: by the daemon to its clients, and by them to people.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nat_common::Reason;
use nat_common::trace::{HEAD, Tuple};
use serde::{Deserialize, Serialize};

use super::advice;
use crate::config::protocol_name;
use crate::eventlog::Place;
use crate::gateway::{Explained, address, endpoint};

/// Who tells.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The XDP program.
    Xdp,
    /// The tc program.
    Tc,
    /// The daemon.
    Daemon,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was counted under this.
    Counted(Reason),
    /// The daemon translated and sent it.
    Sent,
    /// Likewise, in pieces.
    Cut,
    /// It waits, for a neighbour or a fragment.
    Held,
    /// It was made here: an answer, or a piece of what was cut.
    Made,
}

/// A packet that somebody asked for, as the worker saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Where it came in; empty for what was made here.
    pub interface: Arc<str>,
    /// Where it left.
    pub out: Option<Arc<str>>,
    /// Who tells.
    pub by: By,
    /// As it came, as much as is kept.
    pub before: Vec<u8>,
    /// As it left, likewise.
    pub after: Vec<u8>,
    /// Its lengths.
    pub lengths: [u32; 2],
    /// What it found.
    pub found: Explained,
    /// What became of it.
    pub verdict: Verdict,
}

/// Frames that go along with a row, in hexadecimal digits.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Frames {
    /// As it came.
    pub before: String,
    /// As it left.
    pub after: String,
    /// Their lengths on the wire.
    pub lengths: [u32; 2],
}

/// A packet, in fields that are there only where they mean something.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct TraceRow {
    /// UTC, to the microsecond.
    pub time: String,
    /// Where it came in; empty for what natgw itself made.
    pub interface: String,
    /// Where it left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
    /// Who judged it.
    pub by: By,
    /// `tcp`, `udp`, `icmp` or a number; absent for what is no IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Cow<'static, str>>,
    /// Source and destination as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<[Place; 2]>,
    /// Source and destination as it left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<[Place; 2]>,
    /// Bytes of the frame.
    pub length: u32,
    /// What it found: `flow`, `snat`, `static`, `forward`, `service`, `own socket` and so on.
    pub found: Cow<'static, str>,
    /// The rule's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// `translated`, `relayed`, `passed`, `held`, `cut`, `made` or `dropped`.
    pub verdict: Cow<'static, str>,
    /// Why it was dropped, as `natgw status` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Cow<'static, str>>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Cow<'static, str>>,
    /// The frames, where they are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
}

/// How many packets were not told of since the beginning.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Missed {
    /// There were more a second than were asked for.
    pub suppressed: u64,
    /// The client, or the daemon, did not keep up.
    pub lost: u64,
}

/// What a client that traces is told.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum TraceLine {
    /// From now on every packet that is asked for is told of.
    Begun,
    /// A packet.
    Packet(Box<TraceRow>),
    /// Packets were not told of.
    Missed(Missed),
}

impl TraceRow {
    /// The row of a packet, with its frames if they are asked for.
    pub fn new(seen: &Seen, frames: bool) -> Self {
        let (before, after) = (tuple(&seen.before), tuple(&seen.after));
        let (verdict, reason) = match seen.verdict {
            Verdict::Counted(Reason::Passed) => ("passed", None),
            Verdict::Counted(Reason::Relayed) => ("relayed", None),
            Verdict::Counted(reason) if reason.is_drop() => ("dropped", Some(reason)),
            Verdict::Counted(_) | Verdict::Sent => ("translated", None),
            Verdict::Cut => ("cut", None),
            Verdict::Held => ("held", None),
            Verdict::Made => ("made", None),
        };
        let protocol = if before.is_ipv4 != 0 { before.protocol } else { after.protocol };
        Self {
            time: humantime::format_rfc3339_micros(wall_clock(seen.time)).to_string(),
            interface: seen.interface.as_ref().to_owned(),
            out: seen.out.as_deref().map(str::to_owned),
            by: seen.by,
            protocol: (before.is_ipv4 | after.is_ipv4 != 0).then(|| protocol_name(protocol).into()),
            before: places(&before, &seen.before),
            after: places(&after, &seen.after),
            length: if seen.before.is_empty() { seen.lengths[1] } else { seen.lengths[0] },
            found: seen.found.what.into(),
            rule: seen.found.rule.clone(),
            verdict: verdict.into(),
            reason: reason.map(|reason| reason.name().into()),
            why: reason.map(|reason| reason.description().into()),
            advice: reason.map(|reason| advice(reason).into()),
            frames: frames.then(|| Frames {
                before: hex(&seen.before),
                after: hex(&seen.after),
                lengths: seen.lengths,
            }),
        }
    }

    /// In a line for people: `12:00:00.123456 lan -> wan  udp 10.1.1.7:40000 > 198.51.100.1:53  =>  …`.
    pub fn line(&self) -> String {
        let clock = self.time.split(['T', 'Z']).nth(1).unwrap_or(&self.time);
        let mut line =
            format!("{clock} {}", if self.interface.is_empty() { "natgw" } else { &self.interface });
        // A String takes everything.
        if let Some(out) = &self.out {
            let _ = write!(line, " -> {out}");
        }
        let _ = write!(line, "  {}", self.protocol.as_deref().unwrap_or("no IPv4"));
        for (before, places) in [(" ", &self.before), ("  =>  ", &self.after)] {
            if let Some([source, destination]) = places {
                let _ = write!(line, "{before}{source} > {destination}");
            }
        }
        let _ = write!(line, "  {}: {}", self.summary(), self.verdict);
        if let Some(why) = &self.why {
            let _ = write!(line, ": {why}");
        }
        if let Some(advice) = &self.advice {
            let _ = write!(line, " (to do: {advice})");
        }
        line
    }

    /// What it found, with the rule's name.
    pub fn summary(&self) -> String {
        match &self.rule {
            Some(rule) => format!("{} {rule}", self.found),
            None => self.found.clone().into_owned(),
        }
    }
}

/// Source and destination of a frame. For ICMP queries the identifier stands in the port's place.
fn places(tuple: &Tuple, frame: &[u8]) -> Option<[Place; 2]> {
    if tuple.is_ipv4 == 0 {
        return None;
    }
    let (source, destination) = (tuple.source, tuple.destination);
    if tuple.has_ports != 0 {
        return Some([
            Place::Endpoint(endpoint(source, tuple.source_port)),
            Place::Endpoint(endpoint(destination, tuple.destination_port)),
        ]);
    }
    let both = [Place::Address(address(source)), Place::Address(address(destination))];
    let Some(id) = identifier(tuple, frame) else { return Some(both) };
    Some(match id {
        (ECHO_REQUEST, id) => [Place::Endpoint(endpoint(source, id)), both[1]],
        (_, id) => [both[0], Place::Endpoint(endpoint(destination, id))],
    })
}

const ECHO_REQUEST: u8 = 8;

/// Type and identifier of an echo message.
fn identifier(tuple: &Tuple, frame: &[u8]) -> Option<(u8, u16)> {
    let mut network = 14;
    while matches!(frame.get(network - 2..network)?, [0x81, 0] | [0x88, 0xa8]) {
        network += 4;
    }
    let ip = frame.get(network..)?;
    let is_later = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x1fff != 0;
    let icmp = ip.get(usize::from(ip.first()? & 0xf) * 4..)?;
    let kind = *icmp.first()?;
    if tuple.protocol != nat_common::wire::ICMP || is_later || !matches!(kind, 0 | ECHO_REQUEST) {
        return None;
    }
    Some((kind, u16::from_ne_bytes([*icmp.get(4)?, *icmp.get(5)?])))
}

/// The endpoints of a frame.
pub(crate) fn tuple(frame: &[u8]) -> Tuple {
    let mut head = [0; HEAD];
    let length = frame.len().min(HEAD);
    head[..length].copy_from_slice(&frame[..length]);
    Tuple::of(&head, frame.len())
}

/// When an instant of `CLOCK_MONOTONIC` was, by the clock of the wall as it goes now.
fn wall_clock(time: u64) -> SystemTime {
    let age = monotonic().saturating_sub(time);
    let now = SystemTime::now();
    now.checked_sub(Duration::from_nanos(age)).unwrap_or(now)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let [seconds, nanoseconds] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds * 1_000_000_000 + nanoseconds
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 0xf)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

impl Frames {
    /// The two frames' bytes; `None` if the digits are none.
    pub fn bytes(&self) -> Option<[Vec<u8>; 2]> {
        let bytes = |digits: &str| -> Option<Vec<u8>> {
            let pairs = digits.as_bytes().chunks(2);
            pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()).collect()
        };
        Some([bytes(&self.before)?, bytes(&self.after)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(before: &[u8], after: &[u8], verdict: Verdict) -> Seen {
        let length = |frame: &[u8]| u32::try_from(frame.len()).expect("a short frame");
        Seen {
            time: monotonic(),
            interface: "lan".into(),
            out: (!after.is_empty()).then(|| "wan".into()),
            by: By::Xdp,
            before: before.to_vec(),
            after: after.to_vec(),
            lengths: [length(before), length(after)],
            found: Explained { what: "flow", rule: Some("office".to_owned()) },
            verdict,
        }
    }

    fn frame(protocol: u8, source: [u8; 4], destination: [u8; 4], transport: [u8; 8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend([source, destination].as_flattened());
        frame.extend(transport);
        frame
    }

    #[test]
    fn a_line_says_it_all() {
        let client = frame(17, [10, 1, 1, 7], [198, 51, 100, 1], [3, 232, 0, 53, 0, 8, 0, 0]);
        let public = frame(17, [203, 0, 113, 1], [198, 51, 100, 1], [4, 0, 0, 53, 0, 8, 0, 0]);
        let row = TraceRow::new(&seen(&client, &public, Verdict::Counted(Reason::Translated)), true);
        assert_eq!(
            row.line().split_once(' ').expect("a clock").1,
            "lan -> wan  udp 10.1.1.7:1000 > 198.51.100.1:53  =>  203.0.113.1:1024 > 198.51.100.1:53  flow office: translated"
        );
        assert_eq!(row.frames.as_ref().and_then(Frames::bytes), Some([client.clone(), public]));
        let again: TraceRow =
            serde_json::from_str(&serde_json::to_string(&row).expect("JSON")).expect("a row");
        assert_eq!(again, row);
        let row = TraceRow::new(&seen(&client, &[], Verdict::Counted(Reason::DropNoRoute)), false);
        assert_eq!(
            row.line().split_once(' ').expect("a clock").1,
            "lan  udp 10.1.1.7:1000 > 198.51.100.1:53  flow office: dropped: no route to the destination (to do: see `ip route get DESTINATION` and add the route)"
        );
    }

    #[test]
    fn an_identifier_stands_in_the_ports_place() {
        let ask = frame(1, [10, 1, 1, 7], [198, 51, 100, 1], [8, 0, 0, 0, 1, 49, 0, 1]);
        let answer = frame(1, [198, 51, 100, 1], [10, 1, 1, 7], [0, 0, 0, 0, 1, 49, 0, 1]);
        let other = frame(1, [198, 51, 100, 1], [10, 1, 1, 7], [3, 1, 0, 0, 0, 0, 0, 0]);
        let shown = |frame: &[u8]| {
            let [source, destination] = places(&tuple(frame), frame).expect("IPv4");
            format!("{source} > {destination}")
        };
        assert_eq!(shown(&ask), "10.1.1.7:305 > 198.51.100.1");
        assert_eq!(shown(&answer), "198.51.100.1 > 10.1.1.7:305");
        assert_eq!(shown(&other), "198.51.100.1 > 10.1.1.7");
    }
}
